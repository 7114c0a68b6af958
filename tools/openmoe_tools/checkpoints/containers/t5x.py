"""T5X checkpoints: a msgpack index, and zarr arrays beside it.

Source: t5x checkpoints.py@3234135 (version 3), flax serialization.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_spec.places import Region
from openmoe_tools.checkpoints.containers import orbax, zarr_arrays
from openmoe_tools.checkpoints.containers.stored import (
    DTYPES,
    Incomplete,
    Stored,
    Unreadable,
    dtype_of,
    inside,
    shape_of,
    slices,
)
from openmoe_tools.checkpoints.containers.zarr_arrays import Zarr, short

INDEX = "checkpoint"
TARGET, STATE = "target", "state"
_PLACEHOLDER = "PLACEHOLDER://"
_CHUNKED = "__msgpack_chunked_array__"
_LARGEST_INDEX = 1 << 33
_LONGEST_LIST = 1024
_ARRAY, _COMPLEX, _SCALAR = 1, 2, 3

Leaf = ndarray | Zarr


class T5X:
    """A folder `checkpoint_<step>`, of which `target` is the model and `state` the optimizer's."""

    kind = "t5x"

    def __init__(self, path: Path) -> None:
        """Read the index, and the names and sizes of the arrays. Errors: UsageError."""
        self.path = path
        self.notes: list[str] = []
        self._leaves: dict[str, Leaf] = {}
        self._beside: dict[str, Zarr] | None = None
        self.tensors: dict[str, Stored] = {}
        self.version, trees = _index(path / INDEX)
        for name, leaf in trees.items():
            self._add(name, leaf)
        if not any(not one.of_state for one in self.tensors.values()):
            raise Unreadable(f"{path / INDEX}: has no tensor of a model under {TARGET}")

    def read(self, name: str, region: Region) -> ndarray:
        leaf = self._leaves[name]
        if isinstance(leaf, Zarr):
            found = zarr_arrays.read(leaf, region, self._source(leaf))
        else:
            found = leaf[slices(region)]
        return found.view(DTYPES[self.tensors[name].dtype]) if found.dtype == np.uint16 else found

    def stream(self, name: str) -> Iterator[bytes] | None:
        leaf = self._leaves[name]
        if isinstance(leaf, Zarr):
            return zarr_arrays.stream(leaf, self.path) if leaf.store["driver"] == "file" else None
        return iter([np.ascontiguousarray(leaf).tobytes()])

    def _source(self, leaf: Zarr) -> str:
        return str(self.path / leaf.path)

    def _add(self, name: str, leaf: Any) -> None:
        of_state = not name.startswith(f"{TARGET}/")
        short_name = name.removeprefix(f"{TARGET}/")
        if isinstance(leaf, Mapping):
            leaf = self._array(name, leaf)
        elif isinstance(leaf, str):
            leaf = self._placeholder(name, leaf)
        if isinstance(leaf, Zarr):
            shape, dtype, chunk = leaf.shape, leaf.dtype, leaf.chunk
            place = leaf.path.rstrip("/")
        else:
            shape, dtype, chunk, place = leaf.shape, leaf.dtype.name, None, INDEX
        if dtype == "uint16" and not of_state:  # bfloat16, as versions before 3 wrote it
            dtype = "bfloat16"
            note = "weights are stored as uint16, read as the bits of bfloat16"
            self.notes += [note] if note not in self.notes else []
        if short_name in self.tensors:
            raise Unreadable(f"{self.path / INDEX}: has {short_name} twice")
        self._leaves[short_name] = leaf
        dtype = dtype_of(dtype, f"{self.path}: {name}")
        self.tensors[short_name] = Stored(short_name, shape, dtype, place, chunk, of_state)

    def _array(self, name: str, spec: Mapping[str, Any]) -> Zarr:
        """Return the array of a TensorStore spec, whichever file system it was written to."""
        source = f"{self.path / INDEX}: {name}"
        store = spec.get("kvstore", {})
        given = store.get("path", spec.get("path")) if isinstance(store, Mapping) else None
        if spec.get("driver") != "zarr" or not isinstance(given, str):
            raise Unreadable(f"{source}: is a spec of no zarr array with a path")
        folder = inside(self.path, given.rstrip("/"), source)
        path = f"{folder.relative_to(self.path).as_posix()}/"
        where = zarr_arrays.folder_store(self.path)
        try:
            present = zarr_arrays.files(folder)
            content = (folder / ".zarray").read_bytes() if ".zarray" in present else b""
        except FileNotFoundError as error:
            raise Incomplete(f"{source}: {folder} is not there; the copy is not whole") from error
        except OSError as error:
            place = error.filename or folder
            raise Unreadable(f"{source}: {place} cannot be read ({error.strerror})") from error
        if ".zarray" in present:
            array = zarr_arrays.parse(where, path, content, "zarr", str(folder / ".zarray"))
        else:
            array = self._assumed(source, path, spec)
            note = "arrays without .zarray are read by what the index says of them"
            self.notes += [note] if note not in self.notes else []
        metadata = spec.get("metadata", {})
        if not isinstance(metadata, Mapping):
            raise Unreadable(f"{source}: is a spec of which the metadata are no mapping")
        stated = shape_of(metadata.get("shape", array.shape), source)
        if stated != array.shape:
            raise Unreadable(f"{folder}: has shape {array.shape}, its index says {stated}")
        zarr_arrays.require_chunks(array, present, sum(present.values()), str(folder))
        zarr_arrays.require_ends(array, self.path)
        return array

    def _assumed(self, source: str, path: str, spec: Mapping[str, Any]) -> Zarr:
        """Return an array whose metadata is not there, as the training code wrote them."""
        try:
            given = spec["metadata"]
            dtype = np.dtype(DTYPES[str(spec["dtype"])])
            metadata = {
                "zarr_format": 2,
                "shape": list(given["shape"]),
                "chunks": list(given["chunks"]),
                "compressor": given.get("compressor", {"id": "gzip", "level": 1}),
                "dtype": "bfloat16" if dtype.name == "bfloat16" else dtype.str,
                "fill_value": None,
                "filters": None,
                "order": "C",
                "dimension_separator": ".",
            }
            store = zarr_arrays.folder_store(self.path)
            found = zarr_arrays.from_metadata(store, path, metadata, "zarr", source)
        except (KeyError, TypeError, AttributeError) as error:
            raise Unreadable(f"{source}: its array lacks .zarray, the index its {error}") from error
        return Zarr(**{**vars(found), "assumed": True})

    def _placeholder(self, name: str, text: str) -> Zarr:
        """Return the array that Orbax wrote beside an index of placeholders."""
        if not text.startswith(_PLACEHOLDER):
            raise Unreadable(f"{self.path / INDEX}: {name}: is text, {text[:40]!r}")
        if self._beside is None:
            self._beside = orbax.arrays(self.path)
        key = text.removeprefix(_PLACEHOLDER)
        for candidate in (key, key.replace("/", ".")):
            if candidate in self._beside:
                return self._beside[candidate]
        raise Incomplete(f"{self.path}: lacks the array {key}, which its index names")


# ---- the index ---------------------------------------------------------------------------------


def _index(path: Path) -> tuple[int, dict[str, Any]]:
    """Return the version and the leaves by their names. Errors: UsageError."""
    try:
        import msgpack  # type: ignore[import-untyped, unused-ignore] # noqa: PLC0415
    except ImportError as error:
        zarr_arrays.tensorstore()
        raise Unreadable("reading T5X checkpoints needs msgpack: pip install msgpack") from error
    if (size := path.stat().st_size) > _LARGEST_INDEX:
        raise Unreadable(f"{path}: has {size:,} bytes, an index at most {_LARGEST_INDEX:,}")
    try:
        content = msgpack.unpackb(
            path.read_bytes(),
            ext_hook=_extension(path),
            object_pairs_hook=_once,
            raw=False,
            strict_map_key=False,
            max_array_len=_LONGEST_LIST,
        )
        version, optimizer = content["version"], content["optimizer"]
        trees = {TARGET: optimizer[TARGET], STATE: optimizer.get(STATE, {})}
        return int(version), _once(_leaves(trees, ""))
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read ({error.strerror})") from error
    except Unreadable:
        raise
    except Exception as error:  # msgpack raises of many kinds on damaged bytes
        reason = f"{type(error).__name__}: {short(error)}"
        raise Unreadable(f"{path}: is no index of a T5X checkpoint ({reason})") from error


def _once(pairs: Iterable[tuple[Any, Any]]) -> dict[Any, Any]:
    """Return a mapping, refusing a name that stands in it twice."""
    made: dict[Any, Any] = {}
    for key, one in pairs:
        if key in made:
            raise KeyError(f"{key} stands in it twice")
        made[key] = one
    return made


def _extension(path: Path) -> Any:
    import msgpack  # noqa: PLC0415

    def unpack(code: int, data: bytes) -> Any:
        if code not in {_ARRAY, _SCALAR}:
            raise Unreadable(f"{path}: holds a value of the kind {code}, which no checkpoint has")
        given, name, content = msgpack.unpackb(data, raw=True, max_array_len=_LONGEST_LIST)
        dtype = DTYPES[dtype_of(name.decode("ascii"), path)]
        shape = shape_of(given, path)
        if math.prod(shape) * dtype.itemsize != len(content):
            raise Unreadable(f"{path}: an array of shape {shape} has {len(content)} bytes")
        return np.frombuffer(content, dtype).reshape(shape)

    return unpack


def _leaves(tree: Any, name: str) -> Iterator[tuple[str, Any]]:
    """Yield names and leaves: arrays, specs, placeholders."""
    if tree is None:  # of an optimizer that keeps nothing for a tensor
        return
    if isinstance(tree, ndarray | str):
        yield name, tree
    elif isinstance(tree, bool | int | float):
        yield name, np.asarray(tree)
    elif not isinstance(tree, Mapping):
        raise TypeError(f"{name} is of {type(tree).__name__}")
    elif _CHUNKED in tree:
        shape = [tree["shape"][str(i)] for i in range(len(tree["shape"]))]
        chunks = [tree["chunks"][str(i)] for i in range(len(tree["chunks"]))]
        if len({one.dtype for one in chunks}) != 1:
            raise TypeError(f"{name} is in pieces of several dtypes")
        yield name, np.concatenate([one.ravel() for one in chunks]).reshape(shape)
    elif "driver" in tree and not isinstance(tree["driver"], Mapping):
        yield name, tree
    else:
        for key, one in tree.items():
            if not isinstance(key, str):
                raise TypeError(f"a name in it is no text, {key!r}")
            yield from _leaves(one, f"{name}/{key}" if name else key)
