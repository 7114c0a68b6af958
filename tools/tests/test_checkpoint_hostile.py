"""Damaged and hostile files and folders: one clear line, nothing executed, nothing changed."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

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


# ---- safetensors -------------------------------------------------------------------------------

HEADER = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"abc",
        (2**60).to_bytes(8, "little") + b"{}",
        (2**64 - 1).to_bytes(8, "little"),
        (20).to_bytes(8, "little") + os.urandom(20),
        (2).to_bytes(8, "little") + b"[]",
        (200000).to_bytes(8, "little") + b"[" * 200000,
        (200000).to_bytes(8, "little") + b'{"a":' * 40000,
    ],
    ids=["empty", "short", "2^60", "2^64", "garbage", "list", "nested", "nested objects"],
)
def test_headers_of_nonsense(tmp_path, content):
    (tmp_path / "model.safetensors").write_bytes(content)
    refuses(tmp_path, "model.safetensors")


def _header(**changes):
    return {"a": {**HEADER["a"], **changes}}


@pytest.mark.parametrize(
    "header",
    [
        _header(data_offsets=[0, 12]),
        _header(data_offsets=[8, 0]),
        _header(data_offsets=[-8, 0]),
        _header(data_offsets=[4, 12]),
        _header(data_offsets=[0, 2**63]),
        _header(shape=[3]),
        _header(shape=[-2]),
        _header(shape=[2.0]),
        _header(shape=[2**62, 4]),
        _header(shape=[2**62, 0], data_offsets=[0, 0]),
        _header(shape=[float("nan")]),
        _header(shape="2"),
        _header(dtype="F99"),
        _header(dtype=["F32"]),
        _header(dtype="C64", shape=[1]),
        {**HEADER, "b": HEADER["a"]},
        {**HEADER, "b": {**HEADER["a"], "data_offsets": [4, 12]}},
        {"a": 5},
        {"a": {"dtype": "F32"}},
        (
            b'{"a":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},'
            b'"a":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}}'
        ),
        b'{"a":{"dtype":"F32","shape":[2],"shape":[2],"data_offsets":[0,8]}}',
    ],
)
def test_headers_that_contradict(tmp_path, header):
    make.raw_safetensors(tmp_path / "model.safetensors", header, bytes(8))
    refuses(tmp_path, "model.safetensors")


def test_hostile_names_of_tensors(tmp_path):
    name = "a\x1b[31m\n\u202e\ud800"
    make.raw_safetensors(
        tmp_path / "model.safetensors", {name: {**HEADER["a"], "dtype": "I32"}}, bytes(8)
    )
    with pytest.raises(Unreadable) as raised:
        open_checkpoint(tmp_path)
    assert str(raised.value).isprintable()
    header = {name[:-1]: {**HEADER["a"], "dtype": "F8_E8M0", "shape": [8]}}
    make.raw_safetensors(tmp_path / "model.safetensors", header, bytes(8))
    refuses(tmp_path, "F8_E8M0")


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("model.layers.1.mlp.experts.999999999.up_proj.weight", [2]),
        ("decoder/layers_999999999/mlp/wi_0/kernel", [2]),
        ("decoder/blocks/layers_99999999/mlp/wi_0/kernel", [1, 1, 2]),
        ("decoder/layers/mlp/wi_0/kernel", [2**40, 0]),
        ("decoder/layers/mlp/wi_0/kernel", [0, 2**40]),
    ],
)
def test_no_billions_of_layers_or_experts(tmp_path, name, shape):
    header = {name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 4 * int(np.prod(shape))]}}
    content = bytes(4 * int(np.prod(shape)))
    make.raw_safetensors(tmp_path / "model.safetensors", header, content)
    refuses(tmp_path, name, "more layers or experts")


@pytest.fixture
def shards(tmp_path):
    make.safetensors(tmp_path, {"a": VALUE, "b": VALUE, "c": VALUE, "d": VALUE}, shards=2)
    return tmp_path


FIRST, SECOND = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
INDEX = "model.safetensors.index.json"


def test_truncated_and_missing_shards(shards):
    content = (shards / SECOND).read_bytes()
    for size in (0, 7, 30, len(content) - 1):
        (shards / SECOND).write_bytes(content[:size])
        refuses(shards, SECOND)
    (shards / SECOND).write_bytes(content + b"x")
    refuses(shards, SECOND)
    (shards / SECOND).unlink()
    refuses(shards, SECOND, kind=Incomplete)
    (shards / SECOND).mkdir()
    refuses(shards, SECOND, kind=Incomplete)
    (shards / SECOND).rmdir()
    (shards / SECOND).symlink_to(SECOND)
    refuses(shards, SECOND)


def test_shard_truncated_while_it_is_read(shards):
    opened = open_checkpoint(shards)
    os.truncate(shards / SECOND, (shards / SECOND).stat().st_size - 1)
    with pytest.raises(Unreadable, match="ends before"):
        [opened.reader.read(name, ((0, 5), (0, 4))) for name in opened.reader.tensors]


def test_files_outside_the_folder(shards, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / SECOND
    shutil.copy(shards / SECOND, outside)
    here = {"a": FIRST, "c": FIRST}
    for name in (
        str(outside),
        f"../{outside.parent.name}/{SECOND}",
        "",
        ".",
        "..",
        "\0",
        "a" * 300,
    ):
        make.index(shards, here | {"b": name, "d": name}, 320)
        refuses(shards, INDEX)
    (shards / SECOND).unlink()
    (shards / SECOND).symlink_to(outside)
    make.index(shards, here | {"b": SECOND, "d": SECOND}, 320)
    refuses(shards, "out of its folder")
    (shards / "sub").symlink_to(outside.parent)
    make.index(shards, here | {"b": f"sub/{SECOND}", "d": f"sub/{SECOND}"}, 320)
    refuses(shards, "out of its folder")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"{}",
        b"NaN",
        b'{"weight_map": []}',
        b'{"weight_map": {"a": 5}}',
        b'{"weight_map": {"a": null}}',
        b'{"weight_map": {}, "metadata": "x"}',
        b'{"weight_map": {}}',
        b'{"weight_map": {"a": "\\ud800"}}',
        b'{"weight_map": {"a": "x\\n\\u001b[31m"}}',
        b"[" * 100000,
        b'{"weight_map":' * 100000,
        b'{"metadata": {"total_size": ' + b"9" * 5000 + b"}}",
    ],
)
def test_indices_of_nonsense(shards, content):
    (shards / INDEX).write_bytes(content)
    refuses(shards)


def test_index_and_headers_disagree(shards):
    right = {"a": FIRST, "c": FIRST, "b": SECOND, "d": SECOND}
    make.index(shards, right | {"e": FIRST}, 320)
    refuses(shards, "e is in", FIRST, kind=Incomplete)
    make.index(shards, {k: v for k, v in right.items() if k != "d"}, 320)
    refuses(shards, SECOND, "d")
    make.index(shards, right | {"a": SECOND}, 320)
    refuses(shards, "a is in")
    make.safetensors(shards / "x", {"a": VALUE, "b": VALUE, "d": VALUE})
    (shards / "x/model.safetensors").rename(shards / SECOND)
    make.index(shards, right, 320)
    refuses(shards, "a stands in", FIRST)


@pytest.mark.parametrize(
    "size", ["1e999", "NaN", "-5", '"\\n\\u001b"', "[[1]]", "{}", "true", '"' + "9" * 9999 + '"']
)
def test_odd_total_sizes_are_a_note(shards, size):
    content = json.loads((shards / INDEX).read_text(encoding="utf-8"))
    text = json.dumps(content).replace(": 320", f": {size}")
    (shards / INDEX).write_text(text, encoding="utf-8")
    notes = read_all(shards).notes
    assert len(notes) == 1
    assert notes[0].isprintable()
    assert len(notes[0]) < 300


# ---- PyTorch -----------------------------------------------------------------------------------


class Code:
    """What runs a command when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


def test_torch_values(tmp_path, torch):
    ours = make.arranged(make.model(), "port")
    for dtype in ("float32", "bfloat16", "float16"):
        values = {k: torch.tensor(v).to(getattr(torch, dtype)) for k, v in ours.items()}
        turned = next(iter(values))
        values[turned] = values[turned].T.contiguous().T
        values["lm_head.weight"] = torch.nn.Parameter(values["lm_head.weight"])
        torch.save(values, tmp_path / "pytorch_model.bin")
        opened = read_all(tmp_path)
        assert opened.found.layout.name == "port"
        for name, value in values.items():
            found = opened.reader.read(name, tuple((0, n) for n in value.shape))
            assert found.dtype.name == dtype
            assert np.array_equal(found.astype(np.float32), value.detach().float().numpy())


def test_torch_that_runs_code(tmp_path, torch):
    torch.save({"a": Code(tmp_path / "made")}, tmp_path / "pytorch_model.bin")
    refuses(tmp_path, "weights-only")
    assert not (tmp_path / "made").exists()


def test_torch_values_that_are_none(tmp_path, torch):
    for value in (
        torch.zeros(1).expand(1 << 40),
        torch.zeros(4, device="meta"),
        torch.zeros(2, 2).to_sparse(),
        torch.zeros(2, dtype=torch.complex64),
        {"b": torch.zeros(1)},
        5,
    ):
        torch.save({"a": value}, tmp_path / "pytorch_model.bin")
        refuses(tmp_path, "pytorch_model.bin")
    torch.save([torch.zeros(1)], tmp_path / "pytorch_model.bin")
    refuses(tmp_path, "pytorch_model.bin")


def test_torch_archives(tmp_path, torch):
    file = tmp_path / "pytorch_model.bin"
    torch.save({"a": torch.zeros(1000)}, file)
    content = file.read_bytes()
    for size in (0, 5, 1000, len(content) - 1):
        file.write_bytes(content[:size])
        refuses(tmp_path, file.name)
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("archive/data.pkl", bytes(1 << 28))
    refuses(tmp_path, "compressed")
    torch.save({"a": torch.zeros(4)}, file, _use_new_zipfile_serialization=False)
    refuses(tmp_path, file.name)


def test_torch_is_not_needed_to_say_so(tmp_path, monkeypatch):
    with zipfile.ZipFile(tmp_path / "pytorch_model.bin", "w") as archive:
        archive.writestr("archive/data.pkl", b"x")
    monkeypatch.setitem(sys.modules, "torch", None)
    refuses(tmp_path, "needs PyTorch")


# ---- folders -----------------------------------------------------------------------------------


def test_folders_that_are_none(tmp_path):
    refuses(tmp_path, "holds no checkpoint")
    refuses(tmp_path / "absent", "not there", watched=tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    refuses(tmp_path / "loop", watched=tmp_path)
    for name in ("checkpoint", "model.safetensors", "_METADATA", "pytorch_model.bin", INDEX, "7"):
        (tmp_path / name).mkdir()
    refuses(tmp_path, "holds no checkpoint")
    for name in ("x.safetensors", "x.txt", "x.bin"):
        (tmp_path / name).write_bytes(b"")
        refuses(tmp_path / name, name, watched=tmp_path)
    os.mkfifo(tmp_path / "y.safetensors")
    refuses(tmp_path / "y.safetensors", watched=tmp_path)


def test_names_that_are_no_text(tmp_path):
    base = os.fsencode(tmp_path)
    for name in (b"model-\xff.safetensors", b"9\xff", b"\xff.orbax-checkpoint-tmp-1"):
        Path(os.fsdecode(base + b"/" + name)).touch()
    make.t5x(tmp_path, {NAME: VALUE})
    Path(os.fsdecode(base + b"/" + FOLDER.encode() + b"/\xff")).touch()
    assert make.same(read_all(tmp_path).read(NAME), VALUE)
    make.safetensors(tmp_path / "shards", {"a": VALUE, "b": VALUE}, shards=2)
    Path(os.fsdecode(base + b"/shards/\xff.safetensors")).touch()
    assert all(one.isprintable() for one in read_all(tmp_path / "shards").notes)
    strange = Path(os.fsdecode(base + b"/\xff\n"))
    for write in (make.safetensors, make.t5x, make.orbax):
        with contextlib.suppress(RuntimeError, ValueError):  # tensorstore writes no such name
            write(strange, {NAME: VALUE})
        with contextlib.suppress(Unreadable):
            read_all(strange)
        shutil.rmtree(strange, ignore_errors=True)
    refuses(strange, watched=tmp_path)
    for ocdbt in (True, False):
        make.orbax(tmp_path / "tree", {NAME: VALUE}, ocdbt=ocdbt)
        odd = os.fsencode(tmp_path / "tree") + b"/\xff"
        os.mkdir(odd)  # noqa: PTH102 - bytes
        assert make.same(read_all(tmp_path / "tree").read(NAME), VALUE)
        Path(os.fsdecode(odd + b"/.zarray")).write_text("{}", encoding="utf-8")
        with contextlib.suppress(Unreadable):
            read_all(tmp_path / "tree")
        shutil.rmtree(tmp_path / "tree")


@pytest.fixture
def closed():
    """Give a folder, and what closes a file of it to this process, an administrator's or not."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        Path(folder).chmod(0o755)

        def close(path):
            stack.callback(path.chmod, path.stat().st_mode & 0o777)
            path.chmod(0)
            if os.geteuid() == 0:
                os.seteuid(65534)
                stack.callback(os.seteuid, 0)
            return stack

        yield Path(folder), close


@pytest.mark.parametrize(
    ("write", "name"),
    [
        (make.safetensors, ""),
        (make.safetensors, "model.safetensors"),
        (make.t5x, "checkpoint"),
        (make.t5x, FOLDER),
        (make.t5x, f"{FOLDER}/.zarray"),
        (make.t5x, f"{FOLDER}/0.0"),
        (make.orbax, "_METADATA"),
        (make.orbax, "manifest.ocdbt"),
    ],
)
def test_permission_denied(closed, write, name):
    folder, close = closed
    write(folder, {NAME: VALUE})
    for one in folder.rglob("*"):
        one.chmod(0o755)
    with close(folder / name):
        with pytest.raises(Unreadable) as raised:
            read_all(folder)
        line = str(raised.value)
        assert line.isprintable()
        assert str(folder) in line
        assert "ermission" in line


# ---- archives of NumPy arrays --------------------------------------------------------------------


@pytest.fixture
def archive(tmp_path):
    path = tmp_path / "model.npz"
    np.savez(path, **{name.replace("/", "|"): one for name, one in make.model().items()})
    return path


def test_an_archive_is_read(archive):
    found = open_checkpoint(archive)
    for name, one in make.model().items():
        assert found.read(name).tobytes() == one.tobytes()


@pytest.mark.parametrize("seed", range(40))
def test_a_damaged_archive_is_a_value_or_refused(archive, seed):
    draw = np.random.default_rng(seed)
    content = bytearray(archive.read_bytes())
    if seed % 4:
        content[int(draw.integers(len(content)))] ^= 1 << int(draw.integers(8))
    else:
        del content[int(draw.integers(len(content))) :]
    archive.write_bytes(content)
    with contextlib.suppress(Unreadable):  # nothing else may be raised
        read_all(archive)


def test_an_archive_with_objects_is_refused(tmp_path):
    np.savez(tmp_path / "model.npz", **{"a|b": np.array([{}], dtype=object)})
    with pytest.raises(Unreadable, match=r"model\.npz"):
        open_checkpoint(tmp_path / "model.npz")
