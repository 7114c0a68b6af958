"""What every container of tensors looks like from here: a list, and any region of any tensor.

Files are opened to be read, and nothing in them is executed. A name from a file never leaves its folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Protocol

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_spec.places import Region, Shape

DTYPES: Mapping[str, np.dtype] = {
    name: np.dtype(getattr(ml_dtypes, name, None) or name)
    for name in (
        *("float64", "float32", "float16", "bfloat16", "float8_e4m3fn", "float8_e5m2"),
        *("int64", "int32", "int16", "int8", "uint64", "uint32", "uint16", "uint8", "bool"),
    )
}
"""The dtypes that are read, by NumPy's names."""

MOST_ELEMENTS, MOST_AXES = 1 << 48, 32
"""More no array has: a file that says so is damaged."""

WEIGHTS = ("float32", "bfloat16", "float16", "float64")
"""The dtypes that a weight may have."""


@dataclass(frozen=True)
class Stored:
    """One tensor as a file has it.

    name     as the container has it, levels of a tree joined by /
    place    the file or folder that holds it, relative to the checkpoint's
    chunk    what is decoded at once; None: any region can be read by itself
    of_state  it is the optimizer's, or a counter
    """

    name: str
    shape: Shape
    dtype: str
    place: str
    chunk: Shape | None = None
    of_state: bool = False

    @property
    def size(self) -> int:
        """Return the number of bytes of its values."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize

    @property
    def least(self) -> int:
        """Return the bytes that have to be decoded to read one element."""
        if self.chunk is None:
            return DTYPES[self.dtype].itemsize
        return math.prod(self.chunk) * DTYPES[self.dtype].itemsize


class Reader(Protocol):
    """A container: `tensors` by name, `notes` of what is odd about it, and reading."""

    kind: str
    path: Path
    notes: list[str]

    @property
    def tensors(self) -> Mapping[str, Stored]:
        """Return what it has, by name."""

    def read(self, name: str, region: Region) -> ndarray:
        """Return a region of a tensor, in the dtype it has. Errors: UsageError."""

    def stream(self, name: str) -> Iterator[bytes] | None:
        """Yield a tensor's bytes in C order, little-endian; None: only regions can be read."""


class Unreadable(UsageError):  # noqa: N818 - what a checkpoint is
    """A checkpoint that cannot be read, or not wholly, in one line."""

    def __init__(self, line: str) -> None:
        super().__init__(printable(line))


class Incomplete(Unreadable):
    """A checkpoint of which a part is not there."""

    exit_code = 2


@dataclass
class Memory:
    """A container in memory, for tests and for what a function made."""

    arrays: Mapping[str, ndarray]
    path: Path = Path("memory")
    kind: str = "memory"
    notes: list[str] = field(default_factory=list)

    @cached_property
    def tensors(self) -> Mapping[str, Stored]:
        return {
            name: Stored(name, one.shape, one.dtype.name, "memory")
            for name, one in self.arrays.items()
        }

    def read(self, name: str, region: Region) -> ndarray:
        return self.arrays[name][slices(region)]

    def stream(self, name: str) -> Iterator[bytes] | None:
        del name
        return None


def printable(text: str, most: int = 600) -> str:
    """Return a text as one line that a terminal shows as it is, cut in the middle where it is long.

    Names come from files of strangers: line breaks, escape codes and halves of characters in them.
    """
    if len(text) > most:
        text = f"{text[: most - 150]} ... {text[-145:]}"
    shown = (one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)
    return "".join(shown)


def slices(region: Region) -> tuple[slice, ...]:
    """Return a region as NumPy's index."""
    return tuple(slice(*one) for one in region)


def extent(region: Region) -> Shape:
    """Return the shape of a region."""
    return tuple(stop - start for start, stop in region)


def inside(folder: Path, name: str, source: Path | str) -> Path:
    """Return a path that a file names, refusing one that is not in the folder. Errors: UsageError."""
    path = folder / name
    parts = Path(name).parts
    if not parts or "\0" in name or Path(name).is_absolute() or ".." in parts:
        raise Unreadable(f"{source}: names {name[:60]!r}, which is not in its folder")
    try:
        resolved, root = path.resolve(strict=False), folder.resolve(strict=False)
        resolved.exists()  # a name that no file can have is an error from here on
    except (OSError, RuntimeError, ValueError) as error:
        raise Unreadable(f"{source}: names {name[:60]!r}, which leads nowhere") from error
    if root not in resolved.parents and not _is_cached(root, resolved):
        raise Unreadable(f"{source}: names {name[:60]!r}, which leads out of its folder")
    return path


def _is_cached(root: Path, resolved: Path) -> bool:
    """Return whether a link leads where a cache of downloads keeps the files of its snapshots."""
    return root.parent.name == "snapshots" and resolved.parent == root.parent.parent / "blobs"


def dtype_of(name: object, source: object) -> str:
    """Return a dtype's name, refusing those that are not read. Errors: UsageError."""
    if not isinstance(name, str) or name not in DTYPES:
        raise Unreadable(f"{source}: has dtype {str(name)[:60]}, which is not read")
    return name


def shape_of(given: object, source: object) -> Shape:
    """Return a shape that a file states, refusing what no array has. Errors: UsageError."""
    sizes = tuple(given) if isinstance(given, list | tuple) else (None,)
    are_sizes = all(type(n) is int and 0 <= n <= MOST_ELEMENTS for n in sizes)
    if not are_sizes or len(sizes) > MOST_AXES or math.prod(n or 1 for n in sizes) > MOST_ELEMENTS:
        raise Unreadable(f"{source}: has shape {str(given)[:60]}, which no array has")
    return sizes
