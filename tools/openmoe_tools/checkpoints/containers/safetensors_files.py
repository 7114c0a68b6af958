"""Safetensors: one file, or shards with an index. Headers are checked by the library made for them.

Values are read by their offsets, a region at a time: mapped into memory, a large file would count as
used. Source: safetensors format; transformers' `model.safetensors.index.json`.
"""

from __future__ import annotations

import json
import math
import os
import re
import weakref
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from safetensors import SafetensorError, safe_open

from openmoe_spec.places import Region, Shape
from openmoe_tools.checkpoints.containers.stored import (
    DTYPES,
    Incomplete,
    Stored,
    Unreadable,
    dtype_of,
    extent,
    inside,
    shape_of,
)

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TYPES: Mapping[str, str] = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I64": "int64",
    "I32": "int32",
    "I16": "int16",
    "I8": "int8",
    "BOOL": "bool",
    "U64": "uint64",
    "U32": "uint32",
    "U16": "uint16",
    "U8": "uint8",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E5M2": "float8_e5m2",
}
"""The format's names of dtypes, and NumPy's."""

_PIECE = 1 << 24
_SHARD = re.compile(r".*-(\d+)-of-(\d+)\.\w+")


@dataclass(frozen=True)
class _Held:
    """Where a tensor's values begin in a file."""

    file: Path
    offset: int


class Safetensors:
    """The tensors of one file or of all shards."""

    kind = "safetensors"

    def __init__(self, path: Path) -> None:
        """Read the index and the headers. Errors: UsageError."""
        self.path = path
        self.notes: list[str] = []
        self.tensors: dict[str, Stored] = {}
        self._held: dict[str, _Held] = {}
        self._open: dict[Path, int] = {}
        folder, index = (path.parent, None) if path.is_file() else (path, path / INDEX)
        if index is not None and index.is_file() and not (path / WEIGHTS).is_file():
            shards = Shards(index)
            for name in shards.files:
                self._add(folder / name, name)
            shards.compare({name: one.place for name, one in self.tensors.items()})
            self.notes += shards.notes(self.tensors, ".safetensors")
        else:
            self._add(*((path, path.name) if index is None else (path / WEIGHTS, WEIGHTS)))

    def _add(self, file: Path, place: str) -> None:
        try:
            with file.open("rb") as content:
                with safe_open(file, framework="np"):
                    pass  # the library checks the header, and does not tell offsets
                length = int.from_bytes(content.read(8), "little")
                header = json.loads(content.read(length), object_pairs_hook=_once(file))
        except SafetensorError as error:
            reason = str(error).removeprefix("Error while deserializing header: ")
            raise Unreadable(f"{file}: is no whole safetensors file ({reason})") from error
        except OSError as error:
            raise Unreadable(f"{file}: cannot be read ({error.strerror or error})") from error
        except (ValueError, RecursionError) as error:
            raise Unreadable(f"{file}: its header is no JSON ({error})") from error
        for name, one in header.items():
            if name == "__metadata__":
                continue
            if name in self.tensors:
                raise Unreadable(f"{file}: {name} stands in {self.tensors[name].place} too")
            dtype = dtype_of(TYPES.get(one["dtype"], one["dtype"]), f"{file}: {name}")
            shape = shape_of(one["shape"], f"{file}: {name}")
            self.tensors[name] = Stored(name, shape, dtype, place)
            self._held[name] = _Held(file, 8 + length + one["data_offsets"][0])

    def read(self, name: str, region: Region) -> ndarray:
        one, held = self.tensors[name], self._held[name]
        found = np.empty(extent(region), DTYPES[one.dtype])
        if found.size:
            file = _File(self._descriptor(held.file), held.file, DTYPES[one.dtype].itemsize)
            file.fill(found, held.offset, one.shape, region)
        return found

    def stream(self, name: str) -> Iterator[bytes] | None:
        del name
        return None

    def _descriptor(self, file: Path) -> int:
        if file not in self._open:
            try:
                self._open[file] = os.open(file, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise Unreadable(f"{file}: cannot be read ({error.strerror})") from error
            weakref.finalize(self, os.close, self._open[file])
        return self._open[file]


@dataclass(frozen=True)
class _File:
    """An open file of which regions are read."""

    descriptor: int
    path: Path
    itemsize: int

    def fill(self, out: ndarray, offset: int, shape: Shape, region: Region) -> None:
        """Read a region of the tensor of a shape that begins at an offset."""
        inner = math.prod(shape[1:]) * self.itemsize
        if all((0, n) == one for n, one in zip(shape[1:], region[1:], strict=True)):
            start = region[0][0] if shape else 0
            self._into(out, offset + start * inner)
        elif len(shape) > 2:
            for i, row in enumerate(range(*region[0])):
                self.fill(out[i], offset + row * inner, shape[1:], region[1:])
        else:
            (first, last), (low, high) = region
            step = max(1, _PIECE // inner)
            for row in range(first, last, step):
                number = min(step, last - row)
                rows = np.empty((number, shape[1]), out.dtype)
                self._into(rows, offset + row * inner)
                out[row - first : row - first + number] = rows[:, low:high]

    def _into(self, out: ndarray, offset: int) -> None:
        view = out.reshape(-1).view(np.uint8).data
        while view:
            try:
                number = os.preadv(self.descriptor, [view[: 1 << 30]], offset)
            except OSError as error:
                raise Unreadable(f"{self.path}: cannot be read ({error.strerror})") from error
            if not number:
                raise Unreadable(f"{self.path}: ends before its tensors do")
            view, offset = view[number:], offset + number


class Shards:
    """An index of shards: which file has which tensor."""

    def __init__(self, index: Path) -> None:
        """Read an index. Errors: UsageError on names outside the folder, or of no file."""
        self.index = index
        try:
            content = json.loads(index.read_text(encoding="utf-8"), object_pairs_hook=_once(index))
            places = content["weight_map"]
            total = (content.get("metadata") or {}).get("total_size")
        except OSError as error:
            raise Unreadable(f"{index}: cannot be read ({error.strerror})") from error
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            reason = str(error)[:200]
            raise Unreadable(
                f"{index}: has no weight_map from tensor to file ({reason})"
            ) from error
        if not isinstance(places, dict) or not all(isinstance(v, str) for v in places.values()):
            raise Unreadable(f"{index}: must have a weight_map from tensor to file")
        self.places: dict[str, str] = places
        self.total = total
        self.files = sorted(set(places.values()))
        for name in self.files:
            if not inside(index.parent, name, index).is_file():
                raise Incomplete(f"{index}: names {name}, which is no file of this folder")
        numbers = {int(m[2]) for name in self.files if (m := _SHARD.fullmatch(name))}
        if numbers and numbers != {len(self.files)}:
            named = ", ".join(map(str, sorted(numbers)))
            raise Incomplete(
                f"{index}: names {len(self.files)} files, their names speak of {named}"
            )

    def compare(self, found: Mapping[str, str]) -> None:
        """Refuse an index that says other than the files. Errors: UsageError."""
        for name, file in self.places.items():
            if name not in found:
                raise Incomplete(f"{self.index}: says {name} is in {file}, which lacks it")
            if found[name] != file:
                raise Unreadable(
                    f"{self.index}: says {name} is in {file}, and it is in {found[name]}"
                )
        for name, file in found.items():
            if name not in self.places:
                shard = self.index.parent / file
                raise Unreadable(f"{shard}: has {name}, which {self.index.name} does not name")

    def notes(self, tensors: Mapping[str, Stored], ending: str) -> list[str]:
        """Return what is odd and no reason to refuse."""
        notes = []
        size = sum(one.size for one in tensors.values())
        if self.total is not None and self.total != size:
            notes.append(
                f"{self.index.name} says total_size {str(self.total)[:40]}, the tensors have {size}"
            )
        others = {one.name for one in self.index.parent.glob(f"*{ending}")} - set(self.files)
        notes += [
            f"{name} lies beside the shards, and the index does not name it"
            for name in sorted(others)
        ]
        return notes


def _once(source: Path) -> Any:
    """Return what makes an object of JSON, refusing a name that stands in it twice."""

    def build(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            twice = Counter(name for name, _ in pairs).most_common(1)[0][0]
            raise Unreadable(f"{source}: has {twice} twice")
        return made

    return build
