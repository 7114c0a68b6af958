"""Random damage to a small file of each kind: a value or one clear line, and never much memory."""

from __future__ import annotations

import resource

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tensorstore")
pytest.importorskip("msgpack")

import checkpoint_files as make

from openmoe_tools.checkpoints.containers.stored import Unreadable

VALUES = {
    "token_embedder/embedding": np.arange(20, dtype=np.float32).reshape(5, 4),
    "decoder/decoder_norm/scale": np.ones(4, np.float32),
}
FOLDER = "target.token_embedder.embedding"
SHARD = "model-00001-of-00002.safetensors"
KINDS = {
    "safetensors": (make.safetensors, "model.safetensors"),
    "shard": (lambda folder, values: make.safetensors(folder, values, shards=2), SHARD),
    "index": (lambda folder, values: make.safetensors(folder, values, shards=2), f"{make.INDEX}"),
    "msgpack": (make.t5x, "checkpoint"),
    "msgpack inline": (lambda folder, values: make.t5x(folder, values, small=99), "checkpoint"),
    "zarray": (make.t5x, f"{FOLDER}/.zarray"),
    "chunk": (make.t5x, f"{FOLDER}/0.0"),
    "metadata of orbax": (make.orbax, "_METADATA"),
    "manifest": (make.orbax, "manifest.ocdbt"),
    "zarr3": (
        lambda folder, values: make.orbax(folder, values, ocdbt=False, zarr3=True),
        "token_embedder.embedding/zarr.json",
    ),
}
TOKENS = (
    *(b"0", b"-1", b"4294967296", b"99999999999999999999", b"1e999", b"2.0", b"NaN", b"null"),
    *(
        b"[",
        b"]",
        b"{}",
        b'"',
        b",",
        b"\\ud800",
        b"\\n",
        b"../",
        b"/etc",
        b"\xff",
        b"\0",
        b"\xdd\xff\xff\xff\xff",
    ),
)
MEMORY = 256 << 10
"""Kibibytes by which the process may grow."""


@st.composite
def damage(draw):
    """Draw a few changes: a byte, a cut, a token put in or over what is there, a piece lost."""
    kinds = ("byte", "cut", "token in", "token over", "lost")
    change = st.tuples(
        st.sampled_from(kinds), st.floats(0, 1), st.integers(1, 255), st.sampled_from(TOKENS)
    )
    return draw(st.lists(change, min_size=1, max_size=3))


def damaged(content, changes):
    """Return bytes after changes."""
    for kind, where, number, token in changes:
        at = int(where * max(0, len(content) - 1))
        before, after = content[:at], content[at:]
        if kind == "byte":
            content = before + bytes(one ^ number for one in after[:1]) + after[1:]
        elif kind == "cut":
            content = before
        elif kind == "token in":
            content = before + token + after
        elif kind == "token over":
            content = before + token + after[len(token) :]
        else:
            content = before + after[number % 16 :]
    return content


@pytest.fixture(scope="module", params=KINDS)
def kind(request, tmp_path_factory):
    write, name = KINDS[request.param]
    folder = write(tmp_path_factory.mktemp("fuzz") / "x", VALUES)
    return folder, folder / name, (folder / name).read_bytes()


@given(damage())
@settings(max_examples=250, deadline=None, derandomize=True)
def test_random_damage(kind, changes):
    folder, file, content = kind
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    file.write_bytes(damaged(content, changes))
    try:
        make.read_all(folder)
    except Unreadable as error:
        assert str(error).isprintable()  # noqa: PT017 - most damage is of a kind that is refused
    finally:
        file.write_bytes(content)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < MEMORY
