"""Arrays of zarr 2 and 3 through tensorstore, in a folder or in an OCDBT store.

Chunks that are not there would read as zeros: they are counted before anything is read.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_spec.places import Region, Shape
from openmoe_tools.checkpoints.containers.stored import (
    DTYPES,
    Incomplete,
    Unreadable,
    dtype_of,
    extent,
    printable,
    shape_of,
    slices,
)

_STREAM = 1 << 24
_LARGEST_METADATA = 1 << 20
_DENSEST = 1 << 16
"""So many times their own size chunks hold at most: zstd makes 32768 zeros of a byte, gzip 1032."""

_TRACE = re.compile(r" \[(?:source|tensorstore_spec)|\n")
_PLAIN_DTYPE = re.compile(r"[<>|][fiub][1248]")


def tensorstore() -> Any:
    """Return the library. Errors: UsageError where it is not installed."""
    try:
        import tensorstore as library  # type: ignore[import-untyped, unused-ignore] # noqa: PLC0415
    except ImportError as error:
        raise Unreadable(
            "reading T5X and Orbax checkpoints needs tensorstore and msgpack: "
            "pip install 'openmoe-spec[checkpoints]'"
        ) from error
    return library


@dataclass(frozen=True)
class Zarr:
    """One array: the store that holds it, its path there, and what its metadata says."""

    store: Mapping[str, Any]
    path: str
    driver: str
    shape: Shape
    chunk: Shape
    dtype: str
    metadata: Mapping[str, Any]
    separator: str
    prefix: str = ""
    assumed: bool = False

    def key(self, place: tuple[int, ...]) -> str:
        """Return the key of a chunk behind the array's path."""
        parts = [self.prefix] if self.prefix else []
        return self.separator.join([*parts, *map(str, place)]) or "0"

    def chunks(self) -> Iterator[str]:
        """Yield the keys of all chunks."""
        return (self.key(place) for place in _places(self._grid))

    @property
    def _grid(self) -> Shape:
        return tuple(-(-n // c) for n, c in zip(self.shape, self.chunk, strict=True))

    @property
    def number(self) -> int:
        """Return how many chunks there are."""
        return math.prod(self._grid)

    @property
    def decoded(self) -> int:
        """Return how many bytes all chunks have when they are decoded."""
        return self.number * math.prod(self.chunk) * DTYPES[self.dtype].itemsize


def _places(grid: Shape) -> Iterator[tuple[int, ...]]:
    """Yield the places of a grid, however many it says it has, holding none of them."""
    if not grid:
        yield ()
        return
    for first in range(grid[0]):
        for others in _places(grid[1:]):
            yield (first, *others)


def folder_store(folder: Path) -> dict[str, Any]:
    """Return a folder as a store."""
    return {"driver": "file", "path": f"{folder.resolve()}/"}


def ocdbt_store(folder: Path) -> dict[str, Any]:
    """Return a folder as an OCDBT store."""
    return {"driver": "ocdbt", "base": folder_store(folder)}


def files(folder: Path) -> dict[str, int]:
    """Return the sizes of a folder's files by their paths in it. Errors: OSError."""

    def refuse(error: OSError) -> None:
        raise error

    found = {}
    for root, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            path = Path(root, name)
            if path.is_file():  # neither a pipe, which would never end, nor a link to nothing
                found[path.relative_to(folder).as_posix()] = path.stat().st_size
    return found


def parse(store: Mapping[str, Any], path: str, content: bytes, driver: str, source: str) -> Zarr:
    """Return an array from the bytes of its metadata. Errors: UsageError."""
    if len(content) > _LARGEST_METADATA:
        raise Unreadable(f"{source}: has {len(content):,} bytes, no metadata of an array")
    try:
        metadata = json.loads(content)
        return from_metadata(store, path, metadata, driver, source)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise Unreadable(f"{source}: is no metadata of an array ({short(error)})") from error


def from_metadata(
    store: Mapping[str, Any], path: str, metadata: Mapping[str, Any], driver: str, source: str
) -> Zarr:
    """Return an array from its metadata. Errors: UsageError; those of malformed mappings."""
    shape, prefix = shape_of(metadata["shape"], source), ""
    if driver == "zarr3":
        grid = metadata["chunk_grid"]["configuration"]["chunk_shape"]
        name = metadata["data_type"]
        encoding = metadata.get("chunk_key_encoding", {"name": "default"})
        prefix, usual = ("c", "/") if encoding["name"] == "default" else ("", ".")
        separator = encoding.get("configuration", {}).get("separator", usual)
    else:
        grid, name = metadata["chunks"], _numpy_name(metadata["dtype"])
        separator = metadata.get("dimension_separator", ".")
    chunk = shape_of(grid, f"{source}: a chunk")
    if len(shape) != len(chunk) or 0 in chunk:
        raise Unreadable(
            f"{source}: has shape {shape} and chunks {chunk}, which do not go together"
        )
    if separator not in {".", "/"}:
        raise Unreadable(f"{source}: separates numbers by {str(separator)[:20]!r}, not by . or /")
    dtype = dtype_of(name, source)
    return Zarr(store, path, driver, shape, chunk, dtype, metadata, separator, prefix)


def _numpy_name(name: object) -> object:
    """Return NumPy's name of a dtype as zarr 2 writes it, `<f4`, `>f4` or the bare `bfloat16`."""
    if isinstance(name, str) and _PLAIN_DTYPE.fullmatch(name):
        return np.dtype(name).name
    return name


def require_chunks(array: Zarr, present: Collection[str], held: int, source: str) -> None:
    """Refuse an array of which chunks are not there. Errors: UsageError.

    held  the bytes of the files that its chunks are in: no few bytes are a huge array
    """
    lacking = next((key for key in array.chunks() if key not in present), None)
    if lacking is not None:
        raise Incomplete(
            f"{source}: lacks chunk {lacking} of {array.number}; the copy is not whole"
        )
    if array.decoded > held * _DENSEST:
        raise Unreadable(
            f"{source}: has shape {array.shape} and chunks {array.chunk}, more than its {held:,} "
            "bytes can hold"
        )


def require_ends(array: Zarr, folder: Path) -> None:
    """Refuse chunks of gzip that are cut off: each ends with the size of what it holds. Errors: UsageError."""
    compressor = array.metadata.get("compressor")
    if not isinstance(compressor, Mapping) or compressor.get("id") != "gzip":
        return
    expected = math.prod(array.chunk) * DTYPES[array.dtype].itemsize % (1 << 32)
    for key in array.chunks():
        path = folder / array.path / key
        try:
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - 4))
                end = file.read(4)
        except OSError as error:
            raise Unreadable(f"{path}: cannot be read ({error.strerror})") from error
        if int.from_bytes(end, "little") != expected:
            raise Unreadable(f"{path}: is cut off or damaged; copy it again")


def open_array(array: Zarr) -> Any:
    """Return tensorstore's handle of an array, which caches nothing."""
    library = tensorstore()
    spec: dict[str, Any] = {
        "driver": array.driver,
        "kvstore": {**array.store, "path": array.store.get("path", "") + array.path},
        "context": {"cache_pool": {"total_bytes_limit": 0}},
    }
    options: dict[str, Any] = {"open": True, "read": True}
    if array.assumed:
        spec["metadata"] = dict(array.metadata)
        options["assume_metadata"] = True
    return library.open(spec, **options).result()


def read(array: Zarr, region: Region, source: str) -> ndarray:
    """Return a region, in the machine's byte order. Errors: UsageError."""
    try:
        found = np.asarray(open_array(array)[slices(region)].read().result())
    except Unreadable:
        raise
    except Exception as error:  # of many kinds, on damaged bytes
        raise Unreadable(f"{source}: cannot be read ({short(error)})") from error
    if found.shape != extent(region) or found.dtype != DTYPES[array.dtype]:
        raise Unreadable(f"{source}: is of {found.dtype}, its metadata said {array.dtype}")
    return found


def stream(array: Zarr, folder: Path) -> Iterator[bytes] | None:
    """Yield an array's bytes in C order, a chunk's file decompressed piece by piece.

    None: its chunks do not follow each other in C order, or not by gzip or zlib.
    """
    compressor = array.metadata.get("compressor")
    plain = array.driver == "zarr" and array.metadata.get("order", "C") == "C"
    little = str(array.metadata.get("dtype", "")).startswith(("<", "bfloat16"))
    if not plain or not little or array.metadata.get("filters") or not array.shape:
        return None
    leading = all(n == c for n, c in zip(array.shape[1:], array.chunk[1:], strict=True))
    if not leading or array.shape[0] % array.chunk[0]:
        return None
    if not isinstance(compressor, Mapping) or compressor.get("id") not in {"gzip", "zlib"}:
        return None
    return _inflated(array, folder)


def _inflated(array: Zarr, folder: Path) -> Iterator[bytes]:
    expected = math.prod(array.chunk) * DTYPES[array.dtype].itemsize
    for key in array.chunks():
        path, given = folder / array.path / key, 0
        inflater = zlib.decompressobj(wbits=47)
        try:
            with path.open("rb") as file:
                while not inflater.eof and (raw := inflater.unconsumed_tail or file.read(_STREAM)):
                    piece = inflater.decompress(raw, _STREAM)
                    given += len(piece)
                    if given > expected:
                        break
                    yield piece
        except (OSError, zlib.error) as error:
            raise Unreadable(f"{path}: cannot be read ({short(error)})") from error
        if given != expected or not inflater.eof:
            raise Unreadable(
                f"{path}: holds {given} bytes or more, its array has {expected} a chunk"
            )


def short(error: BaseException) -> str:
    """Return what a library says in a few words, without tensorstore's trace of its sources."""
    text = _TRACE.split(str(error), maxsplit=1)[0].strip() or type(error).__name__
    return printable(text, 200)
