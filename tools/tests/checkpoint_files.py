"""Small checkpoints for tests: one model of four layers, written in every container and layout."""

from __future__ import annotations

import gzip
import json
import tracemalloc

import ml_dtypes
import msgpack
import numpy as np
import pytest
import tensorstore
from safetensors.numpy import save_file

from openmoe_conformance.outcome import UsageError
from openmoe_spec import layouts, places
from openmoe_tools.checkpoints.containers.opening import open_checkpoint
from openmoe_tools.checkpoints.containers.stored import Unreadable

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
WIDTH, VOCABULARY, EXPERTS = 6, 9, 3
MEMORY = 64 << 20
FILES = {"driver": "file", "file_io_sync": False}
"""Files as tensorstore writes them, here without waiting for the disk."""
GZIP = {"id": "gzip", "level": 1}


def model(dtype=np.float32, seed=0):
    """Return a model's tensors by the names of PARAM-01, layers 1 and 3 with experts."""
    shapes = {"token_embedder/embedding": (VOCABULARY, WIDTH)}
    for i in range(4):
        own = {f"self_attention/{name}/kernel": (WIDTH, 8) for name in ("query", "key", "value")}
        own |= {"self_attention/out/kernel": (8, WIDTH)}
        own |= {
            "pre_self_attention_layer_norm/scale": (WIDTH,),
            "pre_mlp_layer_norm/scale": (WIDTH,),
        }
        blocks = {"mlp": ((), 4)}
        if i % 2:
            own |= {"mlp/router/router_weights/w/kernel": (WIDTH, EXPERTS)}
            own |= {"pre_extra_mlp_layer_norm/scale": (WIDTH,)}
            blocks = {"mlp/expert": ((EXPERTS,), 5), "extra_mlp": ((), 4)}
        for block, (lead, inner) in blocks.items():
            own |= {f"{block}/wi_0/kernel": (*lead, WIDTH, 2 * inner)}
            own |= {f"{block}/wi_1/kernel": (*lead, WIDTH, inner)}
            own |= {f"{block}/wo/kernel": (*lead, inner, WIDTH)}
        shapes |= {f"decoder/layers_{i}/{name}": shape for name, shape in own.items()}
    shapes |= {
        "decoder/decoder_norm/scale": (WIDTH,),
        "decoder/logits_dense/kernel": (WIDTH, VOCABULARY),
    }
    generator = np.random.default_rng(seed)
    return {name: generator.normal(size=shape).astype(dtype) for name, shape in shapes.items()}


def _halves(value):
    return value.reshape(*value.shape[:-1], 2, -1)


def arranged(ours, name):
    """Return a model as a layout stores it: `scanned_2` is layers along axis 0, `scanned_3` along 1."""
    if name == "blocks":
        return _in_blocks(arranged(ours, "split"))
    if name.startswith("scanned"):
        kind = layouts.layout(name)
        folder = next(r.theirs for r in kind.rules if r.stacked is not None).split("/")[1]
        return _stacked(ours, folder, int(name[-1]) % 2)
    stored = {}
    shapes = {key: value.shape for key, value in ours.items()}
    for key, placed in places.place(layouts.layout(name), shapes).items():
        for part in placed.parts:
            value = ours[key] if part.matrix is None else ours[key][part.matrix]
            for one in part.operations:
                value = value.swapaxes(-1, -2) if one == layouts.TRANSPOSE else _halves(value)
            stored[part.theirs] = np.ascontiguousarray(value)
    return stored


def _in_blocks(split):
    stored = {}
    for key, value in split.items():
        if key.startswith(("decoder/layers_2/", "decoder/layers_3/")):
            place = int(key[len("decoder/layers_")]) - 2
            inner = key.split("/", 2)[2]
            stored[f"decoder/blocks/layers_{place}/{inner}"] = value[None]
        else:
            stored[key] = value
    return stored


def _stacked(ours, folder, axis):
    stored, apart = {}, {}
    for key, value in ours.items():
        if key.startswith("decoder/layers_"):
            apart.setdefault(key.split("/", 2)[2], []).append(value)
        else:
            stored[key] = value
    return stored | {
        f"decoder/{folder}/{key}": np.stack(values, min(axis, values[0].ndim))
        for key, values in apart.items()
    }


LAYOUTS = tuple(one.name for one in layouts.LAYOUTS)


# ---- safetensors -------------------------------------------------------------------------------


INDEX = "model.safetensors.index.json"


def safetensors(folder, tensors, shards=1):
    """Write one file, or shards with an index; return the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    if shards == 1:
        save_file(tensors, folder / "model.safetensors")
        return folder
    places_of = {}
    for i in range(shards):
        file = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        names = sorted(tensors)[i::shards]
        save_file({name: tensors[name] for name in names}, folder / file)
        places_of |= dict.fromkeys(names, file)
    total = sum(one.nbytes for one in tensors.values())
    index(folder, places_of, total)
    return folder


def index(folder, weight_map, total):
    """Write an index of shards."""
    content = {"metadata": {"total_size": total}, "weight_map": weight_map}
    (folder / INDEX).write_text(json.dumps(content), encoding="utf-8")


def raw_safetensors(path, header, data=b""):
    """Write a file with a header of one's own, as text or as an object."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)
    return path


# ---- T5X ---------------------------------------------------------------------------------------


def inline(value):
    """Return an array as flax packs it, msgpack's extension 1."""
    value = np.asarray(value)
    packed = msgpack.packb((value.shape, value.dtype.name, value.tobytes()), use_bin_type=True)
    return msgpack.ExtType(1, packed)


def spec(name, value, chunks, store="file"):
    """Return the spec of an array as the training code leaves it in the index."""
    kvstore = {"driver": store, "path": f"{name.replace('/', '.')}/"}
    if store == "gcs":
        kvstore["bucket"] = "t5x-dummy-bucket"
    metadata = {"chunks": list(chunks), "compressor": GZIP, "shape": list(value.shape)}
    made = {"driver": "zarr", "dtype": value.dtype.name, "kvstore": kvstore, "metadata": metadata}
    if store == "old":  # of versions before the path belonged to the key-value store
        made |= {"kvstore": {"driver": "file"}, "path": kvstore["path"]}
    return made


def zarr(folder, name, value, chunks, **more):
    """Write one array of zarr 2 with tensorstore, by default in gzip as the training code does."""
    dtype = "bfloat16" if value.dtype == BFLOAT16 else value.dtype.str
    metadata = {"shape": list(value.shape), "chunks": list(chunks), "dtype": dtype}
    metadata |= {"compressor": GZIP, "fill_value": None, "filters": None, "order": "C"} | more
    path = f"{folder}/{name}/"
    store = {"driver": "zarr", "kvstore": {**FILES, "path": path}, "metadata": metadata}
    handle = tensorstore.open(
        {**store, "store_data_equal_to_fill_value": True}, create=True, open=False
    ).result()
    handle.write(value).result()


def nested(flat):
    """Return a tree of names joined by /."""
    tree = {}
    for name, value in flat.items():
        *levels, last = name.split("/")
        inner = tree
        for one in levels:
            inner = inner.setdefault(one, {})
        inner[last] = value
    return tree


def packed_index(folder, target, state=None, version=3):
    """Write the index of a T5X folder."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {"step": inline(np.int32(3))} if state is None else state
    content = {"version": version, "optimizer": {"target": target, "state": state}}
    (folder / "checkpoint").write_bytes(msgpack.packb(content, use_bin_type=True))


def halves(shape):
    """Return chunks that cut every axis in two, where it has two."""
    return tuple(max(1, (n + 1) // 2) for n in shape)


def t5x(folder, tensors, *, store="file", chunks=halves, small=8, state=None):
    """Write a T5X folder: leaves of at most `small` elements inline, the others zarr arrays."""
    leaves = {}
    for name, value in tensors.items():
        if value.size <= small:
            leaves[name] = inline(value)
            continue
        own = chunks(value.shape)
        zarr(folder, f"target.{name.replace('/', '.')}", value, own)
        leaves[name] = spec(f"target/{name}", value, own, store)
    packed_index(folder, nested(leaves), state)
    return folder


# ---- Orbax -------------------------------------------------------------------------------------


def orbax(folder, tensors, *, ocdbt=True, zarr3=False, chunks=halves):
    """Write a tree of arrays as Orbax does, with its metadata and marks, by tensorstore alone."""
    folder.mkdir(parents=True, exist_ok=True)
    base = {**FILES, "path": f"{folder}/"}
    store = {"driver": "ocdbt", "base": base} if ocdbt else base
    tree = {}
    for name, value in tensors.items():
        levels = tuple(name.split("/"))
        path = ".".join(levels) + "/"
        dtype = "bfloat16" if value.dtype == BFLOAT16 else value.dtype.str
        metadata = {"shape": list(value.shape), "chunks": list(chunks(value.shape)), "dtype": dtype}
        made = {
            "driver": "zarr",
            "metadata": {**metadata, "compressor": {"id": "zstd", "level": 1}},
        }
        if zarr3:
            grid = {"name": "regular", "configuration": {"chunk_shape": metadata["chunks"]}}
            metadata = {
                "shape": list(value.shape),
                "data_type": value.dtype.name,
                "chunk_grid": grid,
            }
            made = {"driver": "zarr3", "metadata": metadata}
        own = {"kvstore": {**store, "path": store.get("path", "") + path}}
        more = {"create": True, "open": False}
        handle = tensorstore.open(
            {**made, **own, "store_data_equal_to_fill_value": True}, **more
        ).result()
        handle.write(value).result()
        tree[str(levels)] = {
            "key_metadata": [{"key": one, "key_type": 2} for one in levels],
            "value_metadata": {"value_type": "jax.Array", "skip_deserialize": False},
        }
    metadata = {"tree_metadata": tree, "use_ocdbt": ocdbt, "use_zarr3": zarr3}
    (folder / "_METADATA").write_text(json.dumps(metadata), encoding="utf-8")
    (folder / "_CHECKPOINT_METADATA").write_text("{}", encoding="utf-8")
    (folder / "commit_success.txt").write_text("", encoding="utf-8")
    return folder


# ---- comparing ---------------------------------------------------------------------------------


def same(left, right):
    """Return whether two arrays are the same, bit for bit."""
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and np.ascontiguousarray(left).tobytes() == np.ascontiguousarray(right).tobytes()
    )


def contents(folder):
    """Return the names and bytes of all that lies in a folder."""
    return {
        str(one.relative_to(folder)): one.read_bytes() if one.is_file() else b""
        for one in sorted(folder.rglob("*"))
        if not one.is_symlink()
    }


def gzipped(content):
    """Return bytes as a chunk's file has them."""
    return gzip.compress(content, 1)


# ---- reading -----------------------------------------------------------------------------------


def read_all(path):
    """Open a checkpoint and read all of it, by regions and as streams."""
    opened = open_checkpoint(path)
    for name in opened.tensors:
        opened.read(name)
    for name, one in opened.reader.tensors.items():
        opened.reader.read(name, tuple((0, n) for n in one.shape))
        for _ in opened.reader.stream(name) or ():
            pass
    return opened


def refuses(path, *words, kind=Unreadable, watched=None):
    """Check that a checkpoint is refused in one line that has the words, and left as it is."""
    watched = path if path.is_dir() else path.parent if watched is None else watched
    before = contents(watched)
    tracemalloc.start()
    try:
        with pytest.raises(UsageError) as raised:
            read_all(path)
        assert tracemalloc.get_traced_memory()[1] < MEMORY
    finally:
        tracemalloc.stop()
    line = str(raised.value)
    assert isinstance(raised.value, kind), line
    assert line.isprintable(), line
    assert line.encode()
    assert len(line) < 700, line
    for word in (str(watched) if str(watched).isprintable() else "", *words):
        assert word in line, line
    assert contents(watched) == before
