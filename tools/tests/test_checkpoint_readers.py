"""Reading checkpoints: every container and layout gives back the values, bit for bit."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

pytest.importorskip("tensorstore")
pytest.importorskip("msgpack")

import checkpoint_files as make

from openmoe_tools.checkpoints.containers.opening import of, open_checkpoint
from openmoe_tools.checkpoints.containers.regions import blocks
from openmoe_tools.checkpoints.containers.stored import Incomplete, Memory, Unreadable

WRITERS = {
    "safetensors": make.safetensors,
    "shards": lambda folder, tensors: make.safetensors(folder, tensors, shards=3),
    "t5x": make.t5x,
    "t5x inline": lambda folder, tensors: make.t5x(folder, tensors, small=10**9),
    "t5x whole chunks": lambda folder, tensors: make.t5x(folder, tensors, chunks=tuple, small=0),
    "t5x uneven": lambda folder, tensors: make.t5x(folder, tensors, chunks=_uneven),
    "t5x gcs": lambda folder, tensors: make.t5x(folder, tensors, store="gcs"),
    "t5x gfile": lambda folder, tensors: make.t5x(folder, tensors, store="gfile"),
    "t5x old": lambda folder, tensors: make.t5x(folder, tensors, store="old"),
    "ocdbt": make.orbax,
    "folders": lambda folder, tensors: make.orbax(folder, tensors, ocdbt=False),
    "ocdbt zarr3": lambda folder, tensors: make.orbax(folder, tensors, zarr3=True),
    "folders zarr3": lambda folder, tensors: make.orbax(folder, tensors, ocdbt=False, zarr3=True),
}
DTYPES = {"float32": np.float32, "bfloat16": make.BFLOAT16, "float16": np.float16}


def _uneven(shape):
    return tuple(min(n, 4) for n in shape)


def _holds(opened, ours):
    assert set(opened.tensors) == set(ours)
    assert not opened.found.unknown
    assert not opened.found.problems
    for name, value in ours.items():
        assert opened.dtype(name) == value.dtype.name
        assert opened.size(name) == value.nbytes
        assert make.same(opened.read(name), value), name
        for limit in (1, 50, 1 << 20):
            parts = [opened.read(name, one).tobytes() for one in opened.blocks(name, limit)]
            assert b"".join(parts) == value.tobytes(), (name, limit)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("writer", WRITERS)
def test_containers(tmp_path, writer, dtype):
    ours = make.model(DTYPES[dtype])
    folder = WRITERS[writer](tmp_path / "a b%20é#?", ours)
    before = make.contents(folder)
    opened = open_checkpoint(folder)
    _holds(opened, ours)
    for name in opened.tensors:
        streamed = opened.reader.stream(opened.tensors[name].parts[0].theirs)
        assert streamed is None or b"".join(streamed) == ours[name].tobytes()
    assert not opened.notes
    assert make.contents(folder) == before


@pytest.mark.parametrize("layout", make.LAYOUTS)
@pytest.mark.parametrize("writer", ["safetensors", "t5x", "ocdbt"])
def test_layouts(tmp_path, writer, layout):
    ours = make.model()
    folder = WRITERS[writer](tmp_path / "x", make.arranged(ours, layout))
    opened = open_checkpoint(folder)
    assert opened.found.layout.name == layout
    _holds(opened, ours)


@pytest.fixture(scope="module")
def opened_layouts(tmp_path_factory):
    ours, found = make.model(), {}
    for layout in make.LAYOUTS:
        for writer in ("safetensors", "t5x uneven"):
            folder = tmp_path_factory.mktemp("regions") / layout
            WRITERS[writer](folder, make.arranged(ours, layout))
            found[layout, writer] = open_checkpoint(folder)
    return ours, found


@given(st.data())
@settings(max_examples=150, deadline=None, derandomize=True)
def test_regions(opened_layouts, data):
    ours, found = opened_layouts
    opened = found[data.draw(st.sampled_from(sorted(found)))]
    name = data.draw(st.sampled_from(sorted(ours)))
    bounds = [sorted(data.draw(st.tuples(*[st.integers(0, n)] * 2))) for n in ours[name].shape]
    region = tuple((a, b) for a, b in bounds)
    expected = ours[name][tuple(slice(a, b) for a, b in region)]
    assert make.same(opened.read(name, region), expected)


@pytest.mark.parametrize("layout", ["split", "blocks"])
def test_regions_that_cut_both_halves_of_a_gate(opened_layouts, layout):
    ours, found = opened_layouts
    for name in ("decoder/layers_0/mlp/wi_0/kernel", "decoder/layers_3/mlp/expert/wi_0/kernel"):
        value = ours[name]
        region = (*((0, n) for n in value.shape[:-1]), (1, value.shape[-1] - 2))
        assert make.same(found[layout, "safetensors"].read(name, region), value[..., 1:-2])


SHAPES = st.lists(st.integers(0, 5), max_size=4).map(tuple)


@given(SHAPES, st.integers(1, 8), st.integers(0, 200), st.integers(1, 4))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_blocks_follow_each_other(shape, itemsize, limit, multiple):
    whole = np.arange(int(np.prod(shape))).reshape(shape)
    parts = [
        whole[tuple(slice(a, b) for a, b in one)]
        for one in blocks(shape, itemsize, limit, multiple)
    ]
    assert np.array_equal(np.concatenate([one.ravel() for one in parts]), whole.ravel())


# ---- what T5X has written over the years -------------------------------------------------------


def _one(tmp_path, leaf, value=None, **more):
    """Open a T5X folder with one weight, of which the index has `leaf`."""
    target = {"token_embedder": {"embedding": leaf}}
    if value is not None:
        make.zarr(tmp_path, "target.token_embedder.embedding", value, value.shape, **more)
    make.packed_index(tmp_path, target)
    return open_checkpoint(tmp_path)


NAME = "token_embedder/embedding"
VALUE = np.arange(20, dtype=np.float32).reshape(5, 4)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_arrays_without_their_metadata(tmp_path, dtype):
    value = VALUE.astype(DTYPES[dtype])
    make.t5x(tmp_path, {NAME: value}, small=0)
    (tmp_path / f"target.{NAME.replace('/', '.')}" / ".zarray").unlink()
    opened = open_checkpoint(tmp_path)
    assert make.same(opened.read(NAME), value)
    assert "without .zarray" in opened.notes[0]


def test_other_byte_order_and_layout(tmp_path):
    big = VALUE.astype(">f4")
    opened = _one(tmp_path, make.spec(f"target/{NAME}", VALUE, VALUE.shape), big)
    assert (tmp_path / "target.token_embedder.embedding/0.0").is_file()
    assert b'">f4"' in (tmp_path / "target.token_embedder.embedding/.zarray").read_bytes()
    assert make.same(opened.read(NAME), VALUE)
    assert opened.reader.stream(NAME) is None


@pytest.mark.parametrize(
    "more",
    [
        {"order": "F"},
        {"compressor": None},
        {"compressor": {"id": "zlib", "level": 1}},
        {"compressor": {"id": "zstd", "level": 1}},
        {"compressor": {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0}},
        {"dimension_separator": "/"},
    ],
)
def test_other_encodings(tmp_path, more):
    opened = _one(tmp_path, make.spec(f"target/{NAME}", VALUE, VALUE.shape), VALUE, **more)
    assert make.same(opened.read(NAME), VALUE)
    streamed = opened.reader.stream(NAME)
    assert streamed is None or b"".join(streamed) == VALUE.tobytes()


@pytest.mark.parametrize("where", ["inline", "zarr"])
def test_bfloat16_written_as_uint16(tmp_path, where):
    value = VALUE.astype(make.BFLOAT16)
    bits = value.view(np.uint16)
    if where == "inline":
        opened = _one(tmp_path, make.inline(bits))
    else:
        opened = _one(tmp_path, make.spec(f"target/{NAME}", bits, bits.shape), bits)
    assert opened.dtype(NAME) == "bfloat16"
    assert make.same(opened.read(NAME), value)
    assert "uint16" in opened.notes[0]


def test_large_inline_arrays_are_in_pieces(tmp_path):
    flat = VALUE.ravel()
    pieces = {str(i): make.inline(flat[i * 7 : i * 7 + 7]) for i in range(3)}
    leaf = {"__msgpack_chunked_array__": True, "shape": {"0": 5, "1": 4}, "chunks": pieces}
    assert make.same(_one(tmp_path, leaf).read(NAME), VALUE)


def test_state_is_listed_and_no_part_of_the_model(tmp_path):
    states = make.inline(np.zeros(1, np.float32))
    state = {"step": make.inline(np.int32(7)), "param_states": {"a": {"v": states, "m": None}}}
    make.t5x(tmp_path / "checkpoint_7", {NAME: VALUE}, state=state)
    opened = open_checkpoint(tmp_path)
    assert opened.step == 7
    assert opened.state == ["state/step", "state/param_states/a/v"]
    assert set(opened.tensors) == {NAME}
    assert opened.reader.read("state/step", ()) == 7


@pytest.mark.parametrize("ocdbt", [False, True])
def test_placeholders_of_orbax(tmp_path, ocdbt):
    ours = make.model()
    prefixed = {f"target/{name}": value for name, value in ours.items()}
    make.orbax(tmp_path, prefixed, ocdbt=ocdbt)
    leaves = {name: f"PLACEHOLDER://target.{name.replace('/', '.')}" for name in ours}
    make.packed_index(tmp_path, make.nested(leaves))
    _holds(open_checkpoint(tmp_path), ours)


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (1, 0, 3)])
@pytest.mark.parametrize("writer", WRITERS)
def test_scalars_and_empty_tensors(tmp_path, writer, shape):
    odd = {NAME: VALUE, "other/one": np.ones(shape, np.float32), "other/two": VALUE}
    opened = open_checkpoint(WRITERS[writer](tmp_path, odd))
    region = tuple((0, n) for n in shape)
    assert make.same(opened.reader.read("other/one", region), odd["other/one"])
    assert sorted(opened.found.unknown) == ["other/one", "other/two"]
    streamed = opened.reader.stream("other/one")
    assert streamed is None or b"".join(streamed) == odd["other/one"].tobytes()


# ---- folders of steps --------------------------------------------------------------------------


def test_newest_step(tmp_path):
    for step in (5, 20, 100):
        make.t5x(tmp_path / f"checkpoint_{step}", {NAME: VALUE + step})
    assert open_checkpoint(tmp_path).step == 100
    assert make.same(open_checkpoint(tmp_path, 20).read(NAME), VALUE + 20)
    with pytest.raises(Unreadable, match="has 5, 20, 100, and not 6"):
        open_checkpoint(tmp_path, 6)


def test_names_of_steps(tmp_path):
    for name in ("checkpoint_000005", "checkpoint_000004", "checkpoint_000007.tmp-1690000000"):
        make.t5x(tmp_path / name, {NAME: VALUE})
    (tmp_path / "6").mkdir()
    (tmp_path / "8").write_text("", encoding="utf-8")
    opened = open_checkpoint(tmp_path)
    assert opened.step == 5
    assert [one.split(":")[0] for one in opened.notes] == [
        "step 7 is passed over",
        "step 6 is passed over",
    ]
    with pytest.raises(Incomplete, match="half-written"):
        open_checkpoint(tmp_path, 7)


@pytest.mark.parametrize("item", ["items", "default", "params", "parameters"])
def test_items_of_steps(tmp_path, item):
    ours = make.model()
    for step in ("3", "12"):
        make.orbax(tmp_path / step / item, {f"params/{k}": v for k, v in ours.items()})
    opened = open_checkpoint(tmp_path)
    assert opened.step == 12
    _holds(opened, ours)
    _holds(open_checkpoint(tmp_path / "3"), ours)
    _holds(open_checkpoint(tmp_path / "3" / item), ours)


def _half_write(step, how):
    if how == "no mark":
        (step / "items/commit_success.txt").unlink()
        (step / "items/_CHECKPOINT_METADATA").unlink()
    elif how == "renamed later":
        step.rename(step.with_name(f"{step.name}.orbax-checkpoint-tmp-17"))
    elif how == "item renamed later":
        (step / "items").rename(step / "items.orbax-checkpoint-tmp-17")
    else:
        (step / "items/manifest.ocdbt").unlink()


@pytest.mark.parametrize("how", ["no mark", "renamed later", "item renamed later", "no manifest"])
def test_half_written_steps_are_passed_over(tmp_path, how):
    for step in ("5", "7"):
        make.orbax(tmp_path / step / "items", {NAME: VALUE})
    _half_write(tmp_path / "7", how)
    opened = open_checkpoint(tmp_path)
    assert opened.step == 5
    assert "step 7 is passed over" in opened.notes[0]
    _half_write(tmp_path / "5", how)
    with pytest.raises(Unreadable) as raised:
        open_checkpoint(tmp_path)
    assert isinstance(raised.value, Incomplete) or how == "item renamed later"
    left = next(one for one in tmp_path.iterdir() if one.name.startswith("7"))
    with pytest.raises(Unreadable):
        open_checkpoint(left)


# ---- Orbax itself ------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize(("ocdbt", "zarr3"), [(True, False), (False, False), (True, True)])
def test_written_by_orbax(tmp_path, flat, ocdbt, zarr3):
    pytest.importorskip("jax")
    ocp = pytest.importorskip("orbax.checkpoint")
    ours = make.model(make.BFLOAT16)
    ours["decoder/decoder_norm/scale"] = np.zeros(make.WIDTH, make.BFLOAT16)  # as its fill value
    tree = ours if flat else make.nested(ours)
    handler = ocp.PyTreeCheckpointHandler(use_ocdbt=ocdbt, use_zarr3=zarr3)
    with ocp.Checkpointer(handler) as writer:
        writer.save(tmp_path / "4", args=ocp.args.PyTreeSave({"params": tree, "step": np.int32(4)}))
    opened = open_checkpoint(tmp_path)
    assert opened.step == 4
    assert opened.state == ["step"]
    _holds(opened, ours)


@pytest.mark.filterwarnings("ignore")
def test_written_by_a_manager_of_orbax(tmp_path):
    pytest.importorskip("jax")
    ocp = pytest.importorskip("orbax.checkpoint")
    ours = make.model()
    with ocp.CheckpointManager(tmp_path, item_names=("parameters", "counters")) as manager:
        for step in (1, 2):
            saved = {
                "parameters": ocp.args.StandardSave(ours),
                "counters": ocp.args.JsonSave({"a": 1}),
            }
            manager.save(step, args=ocp.args.Composite(**saved))
    opened = open_checkpoint(tmp_path)
    assert opened.step == 2
    _holds(opened, ours)


# ---- safetensors -------------------------------------------------------------------------------


def test_index_file_and_shard_and_notes(tmp_path):
    ours = make.model()
    make.safetensors(tmp_path, ours, shards=2)
    index = tmp_path / "model.safetensors.index.json"
    _holds(open_checkpoint(index), ours)
    shard = open_checkpoint(tmp_path / "model-00001-of-00002.safetensors")
    assert set(shard.tensors) == set(sorted(ours)[0::2])
    content = json.loads(index.read_text(encoding="utf-8"))
    content["metadata"]["total_size"] += 1
    index.write_text(json.dumps(content), encoding="utf-8")
    make.safetensors(tmp_path / "more", {"a": VALUE})
    (tmp_path / "more/model.safetensors").rename(tmp_path / "other.safetensors")
    notes = open_checkpoint(tmp_path).notes
    assert "total_size" in notes[0]
    assert "other.safetensors" in notes[1]


def test_shards_linked_by_a_cache(tmp_path):
    """A cache of downloads keeps the files aside, and links to them from a folder a revision."""
    ours = make.model()
    folder = make.safetensors(tmp_path / "snapshots/0a1b", ours, shards=2)
    (tmp_path / "blobs").mkdir()
    for i, file in enumerate(sorted(folder.iterdir())):
        file.rename(tmp_path / f"blobs/{i}")
        file.symlink_to(f"../../blobs/{i}")
    _holds(open_checkpoint(folder), ours)


# ---- experts that are apart --------------------------------------------------------------------


def test_experts_that_do_not_fit_together():
    stored = make.arranged(make.model(), "per_expert")
    name = "decoder/layers_1/mlp/expert/wi_1/kernel"
    one = "model.layers.1.mlp.experts.1.up_proj.weight"
    other = of(Memory(stored | {one: stored[one][:1]}))
    with pytest.raises(Unreadable, match="shape"):
        other.read(name)
    other = of(Memory(stored | {one: stored[one].astype(np.float16)}))
    with pytest.raises(Unreadable, match="dtypes"):
        other.read(name)
    lacking = of(Memory({key: value for key, value in stored.items() if key != one}))
    with pytest.raises(Incomplete, match="expert 1"):
        lacking.read(name)
    with pytest.raises(Incomplete, match="expert 1"):
        lacking.read(name, ((1, 2), (0, 6), (0, 5)))
    assert lacking.read(name, ((2, 3), (0, 6), (0, 5))).shape == (1, 6, 5)


@pytest.mark.parametrize("kind", ["t5x", "ocdbt", "files"])
def test_a_path_may_go_up_and_down(tmp_path, monkeypatch, kind):
    weights = make.model()
    folder = tmp_path / "model"
    if kind == "t5x":
        make.t5x(folder, weights)
    else:
        make.orbax(folder, weights, ocdbt=kind == "ocdbt")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    found = make.read_all(Path("..") / "here" / ".." / "model")
    assert found.tensors.keys() == weights.keys()
