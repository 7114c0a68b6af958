"""Damaged and hostile T5X and Orbax checkpoints: one clear line, and nothing changed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil

import pytest

pytest.importorskip("tensorstore")
msgpack = pytest.importorskip("msgpack")

import checkpoint_files as make
import numpy as np
from checkpoint_files import read_all, refuses

from openmoe_tools.checkpoints.containers.opening import open_checkpoint
from openmoe_tools.checkpoints.containers.stored import Incomplete, Unreadable

NAME = "token_embedder/embedding"
FOLDER = "target.token_embedder.embedding"
VALUE = np.arange(20, dtype=np.float32).reshape(5, 4)


# ---- T5X ---------------------------------------------------------------------------------------


@pytest.fixture
def t5x(tmp_path):
    return make.t5x(tmp_path, {NAME: VALUE, "other/one": np.ones(3, np.float32)})


def test_damaged_chunks(t5x):
    chunk = t5x / FOLDER / "1.1"
    content = chunk.read_bytes()
    for damaged in (b"", content[:-1], content[:9], b"x" * len(content), make.gzipped(bytes(99))):
        chunk.write_bytes(damaged)
        refuses(t5x, FOLDER)
    chunk.write_bytes(make.gzipped(bytes(256 << 20)))
    refuses(t5x, FOLDER)
    chunk.unlink()
    refuses(t5x, FOLDER, "lacks chunk 1.1", kind=Incomplete)
    os.mkfifo(chunk)
    refuses(t5x, FOLDER, "lacks chunk 1.1", kind=Incomplete)
    chunk.unlink()
    chunk.mkdir()
    refuses(t5x, FOLDER, "lacks chunk 1.1", kind=Incomplete)
    shutil.rmtree(t5x / FOLDER)
    refuses(t5x, FOLDER, kind=Incomplete)
    (t5x / FOLDER).write_text("", encoding="utf-8")
    refuses(t5x, FOLDER)
    (t5x / FOLDER).unlink()
    (t5x / FOLDER).symlink_to(FOLDER)
    refuses(t5x, FOLDER)


def test_streams_of_damaged_chunks(tmp_path):
    make.t5x(tmp_path, {NAME: VALUE}, chunks=tuple)
    chunk = tmp_path / FOLDER / "0.0"
    content = chunk.read_bytes()
    for damaged in (
        b"",
        content[:-1],
        content[:-9],
        make.gzipped(bytes(64 << 20)),
        b"\0" + content,
    ):
        stream = open_checkpoint(tmp_path).reader.stream(NAME)
        chunk.write_bytes(damaged)
        with pytest.raises(Unreadable, match=r"0\.0"):
            list(stream)
        chunk.write_bytes(content)


@pytest.mark.parametrize(
    "path", ["/etc", "../outside", "", ".", "a/../..", "link", "loop", "\0", 5, None, "x" * 300]
)
def test_paths_of_arrays(tmp_path, path):
    folder = tmp_path / "own"
    make.zarr(tmp_path / "outside", FOLDER, VALUE, (5, 4))
    leaf = make.spec(f"target/{NAME}", VALUE, (5, 4))
    leaf["kvstore"]["path"] = path
    make.packed_index(folder, {"token_embedder": {"embedding": leaf}})
    (folder / "link").symlink_to(tmp_path / "outside" / FOLDER)
    (folder / "loop").symlink_to("loop")
    refuses(folder, "checkpoint", NAME)


@pytest.mark.parametrize(
    "leaf",
    [
        {"driver": "zarr"},
        {"driver": 3},
        {"driver": "n5", "kvstore": {"path": FOLDER}},
        {"driver": "zarr", "kvstore": []},
        {"driver": "zarr", "kvstore": "file:///etc"},
        {"driver": "zarr", "kvstore": {"path": FOLDER}, "metadata": [1]},
        {"driver": "zarr", "kvstore": {"path": FOLDER}, "metadata": {"shape": 5}},
        {"driver": "zarr", "kvstore": {"path": FOLDER}, "metadata": {"shape": {"a": 5}}},
        {"driver": "zarr", "kvstore": {"path": FOLDER}, "metadata": {"shape": [5, 4, 1]}},
        {"driver": "zarr", "kvstore": {"path": FOLDER}, "metadata": {"shape": ["\n", "x" * 9999]}},
        "text",
        "PLACEHOLDER://nothing",
        b"bytes",
        [],
        ["a"],
        [[1], [2, 3]],
        {1: make.inline(VALUE)},
        {"a": {1: make.inline(VALUE)}},
        {"__msgpack_chunked_array__": True},
        {"__msgpack_chunked_array__": True, "shape": {}, "chunks": {"0": 5}},
        {"__msgpack_chunked_array__": True, "shape": {"0": 9}, "chunks": {"0": make.inline(VALUE)}},
        *(msgpack.ExtType(code, b"\x93\x90\xa5int32\xc4\x04\0\0\0\0") for code in (0, 2, 5, 127)),
        *(
            msgpack.ExtType(1, one)
            for one in (b"", b"\x90", b"\xc1", b"\x93\x01\x02\x03", b"\xff" * 9)
        ),
        *(
            msgpack.ExtType(1, msgpack.packb((shape, name, bytes(8))))
            for shape, name in (
                ((-1, -2), "float32"),
                ((2.0,), "float32"),
                ((True, 2), "float32"),
                ((3,), "float32"),
                ((2**40,), "float32"),
                (2, "float32"),
                ((2,), "object"),
                ((1,), "complex64"),
                ((2,), "\u00e9"),
                ((2,), 5),
                (("a",), "float32"),
                ((1,) * 70 + (2,), "float32"),
            )
        ),
    ],
)
def test_hostile_leaves(tmp_path, leaf):
    make.zarr(tmp_path, FOLDER, VALUE, VALUE.shape)
    make.packed_index(tmp_path, {"token_embedder": {"embedding": leaf}})
    refuses(tmp_path)


def _packed(target):
    return msgpack.packb({"version": 3, "optimizer": {"target": target}})


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        b"\x80",
        b"\x90",
        b"\xdd\xff\xff\xff\xff",
        b"\xdd\x00\x00\x10\x00" * 1000,
        b"\xdf\xff\xff\xff\xff",
        b"\xc6\xff\xff\xff\xff",
        b"\xc9\xff\xff\xff\xff\x01",
        b"\x81\xa1a" * 100000,
        b"\x91" * 100000,
        b"\xa2\xff\xfe",
        b"\xd6\xff\0\0\0\0",
        msgpack.packb({"version": "x", "optimizer": {"target": {}}}),
        msgpack.packb({"version": float("nan"), "optimizer": {"target": {"a": 1}}}),
        msgpack.packb({"version": 3, "optimizer": []}),
        msgpack.packb({"version": 3}),
        _packed({}),
        _packed(None),
        _packed([]),
        _packed({"": 1})[:-1],
        _packed({"a": 1}) + b"\0",
        _packed({"a": {"b": 1.5}, "a/b": 2.5}),
        _packed({"a": 1.0, "b": 2.0}).replace(b"\xa1b", b"\xa1a"),
    ],
)
def test_hostile_indices(tmp_path, content):
    (tmp_path / "checkpoint").write_bytes(content)
    refuses(tmp_path, "checkpoint")


GOOD = {"zarr_format": 2, "shape": [5, 4], "chunks": [5, 4], "dtype": "<f4", "order": "C"}
GOOD |= {"compressor": make.GZIP, "fill_value": None, "filters": None}
HUGE = 2**40
METADATA = [
    *(
        {"shape": one}
        for one in ([-5, 4], [5.5, 4], [float("nan"), 4], [1e999, 4], ["5", 4], 5, "54", None)
    ),
    *(
        {"shape": one}
        for one in ([True, 4], [], [5], [5, 4, 1], [HUGE, HUGE], [5, HUGE], [2**63, 0], {"a": 1})
    ),
    *({"chunks": one} for one in ([0, 4], [-5, 4], [5], None, [5.0, 4], [1, 1], "54", [2**63, 4])),
    *({"shape": [HUGE, 1], "chunks": one} for one in ([HUGE, 1], [1, 1], [2**39, 1])),
    {"shape": [2**20, 2**20], "chunks": [2**20, 2**20]},
    {"shape": [1] * 5000, "chunks": [1] * 5000},
    *(
        {"dtype": one}
        for one in (None, 5, "x", "<c8", "|O", "<V4", [["a", "<f4"]], "<f4,<f4", "", "<f3", {})
    ),
    *({"dtype": one} for one in ("a5", "bytes", "(2,3)f4", "float", "m8[s]", "O", "<f8", "<f2")),
    *(
        {"compressor": one}
        for one in ("gzip", 5, [], {"id": "nope"}, {"id": 5}, {"level": 1}, None, True)
    ),
    *({"dimension_separator": one} for one in (5, "", "xx", None, "/", ["."])),
    *({"order": one} for one in ("X", 5, None)),
    *({"filters": one} for one in ([{"id": "delta"}], 5)),
    *({"zarr_format": one} for one in (3, "2", None)),
]


@pytest.mark.parametrize("changes", METADATA)
def test_hostile_metadata_of_arrays(tmp_path, changes):
    make.zarr(tmp_path, FOLDER, VALUE, VALUE.shape)
    leaf = {"driver": "zarr", "kvstore": {"path": FOLDER}}
    make.packed_index(tmp_path, {"token_embedder": {"embedding": leaf}})
    (tmp_path / FOLDER / ".zarray").write_text(json.dumps(GOOD | changes), encoding="utf-8")
    refuses(tmp_path, FOLDER)
    for key in changes:
        lacking = {name: one for name, one in GOOD.items() if name != key}
        (tmp_path / FOLDER / ".zarray").write_text(json.dumps(lacking), encoding="utf-8")
        with contextlib.suppress(Unreadable):
            assert make.same(read_all(tmp_path).read(NAME), VALUE)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"5", b"\xff", b"[" * 100000, b'{"shape":' * 100000, b" " * (2 << 20)],
)
def test_metadata_of_nonsense(tmp_path, content):
    make.t5x(tmp_path, {NAME: VALUE})
    (tmp_path / FOLDER / ".zarray").write_bytes(content)
    refuses(tmp_path, ".zarray")


# ---- Orbax -------------------------------------------------------------------------------------


@pytest.mark.parametrize("ocdbt", [True, False])
@pytest.mark.parametrize("zarr3", [True, False])
def test_damaged_trees_of_orbax(tmp_path, ocdbt, zarr3):
    make.orbax(tmp_path, {NAME: VALUE, "other": VALUE}, ocdbt=ocdbt, zarr3=zarr3)
    files = [one for one in tmp_path.rglob("*") if one.is_file() and one.name not in UNREAD]
    assert files
    for file in files:
        content = file.read_bytes()
        for damaged in (b"", content[: len(content) // 2], content[:-1], os.urandom(len(content))):
            file.write_bytes(damaged)
            with contextlib.suppress(Unreadable):  # a byte at a file's end may be of no use
                found = read_all(tmp_path).read(NAME)
                assert zarr3 or make.same(found, VALUE)  # without compression nothing tells
        file.unlink()
        if "manifest" not in str(file.parent) and file.name != "_METADATA":
            with contextlib.suppress(Unreadable):
                assert make.same(read_all(tmp_path).read(NAME), VALUE)
        file.write_bytes(content)
    assert make.same(read_all(tmp_path).read(NAME), VALUE)


UNREAD = {"_CHECKPOINT_METADATA", "commit_success.txt"}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"\xff",
        b"[" * 100000,
        b'{"tree_metadata": []}',
        b'{"tree_metadata": {"a": []}}',
        b'{"tree_metadata": {"a": {"key_metadata": 5}}}',
        b'{"tree_metadata": {"a": {"key_metadata": ["a"]}}}',
        b'{"tree_metadata": {"a": {"key_metadata": [{}]}}}',
        b'{"tree_metadata": {"a": {"key_metadata": [{"key": "a"}], "value_metadata": null}}}',
        b'{"tree_metadata": {"a": {"key_metadata": [{"key": "absent\\n\\ud800"}]}}}',
        (
            b'{"tree_metadata": {"a": {"key_metadata": [{"key": "a"}, {"key": "b"}]},'
            b' "b": {"key_metadata": [{"key": "a.b"}]}}}'
        ),
    ],
)
def test_hostile_metadata_of_orbax(tmp_path, content):
    make.orbax(tmp_path, {NAME: VALUE})
    (tmp_path / "_METADATA").write_bytes(content)
    refuses(tmp_path)


def test_arrays_of_orbax_that_are_not_there(tmp_path):
    make.orbax(tmp_path, {NAME: VALUE, "other": VALUE}, ocdbt=False)
    chunk = tmp_path / "other/0.1"
    chunk.rename(tmp_path / "aside")
    refuses(tmp_path, "other", "lacks chunk 0.1", kind=Incomplete)
    shutil.rmtree(tmp_path / "other")
    refuses(tmp_path, "other", kind=Incomplete)
