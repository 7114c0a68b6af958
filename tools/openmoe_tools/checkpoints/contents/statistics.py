"""What the values of a checkpoint look like, in one pass over each tensor.

Values are taken in the order in which they are stored, so that nothing is read twice; accumulations
are float64.
"""

from __future__ import annotations

import hashlib
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_spec.places import Part
from openmoe_tools.checkpoints import working
from openmoe_tools.checkpoints.containers.opening import Checkpoint
from openmoe_tools.checkpoints.containers.regions import blocks
from openmoe_tools.checkpoints.containers.stored import DTYPES, Unreadable
from openmoe_tools.checkpoints.verification.structure import EMBEDDING

BLOCK = 16 << 20
"""Bytes of a tensor that are read at once, where its chunks allow it."""

LARGEST_BLOCK = 128 << 20
"""Bytes up to which a block grows to whole chunks, each of which is decoded once then."""

_MEMORY = 1 << 30
_PIECE = 1 << 20


@dataclass
class Moments:
    """Numbers of some values; extremes, mean and squared distances from it are of finite ones."""

    number: int = 0
    nan: int = 0
    infinite: int = 0
    zeros: int = 0
    minimum: float = math.inf
    maximum: float = -math.inf
    mean: float = 0.0
    squares: float = 0.0

    @property
    def finite(self) -> int:
        return self.number - self.nan - self.infinite

    @property
    def deviation(self) -> float:
        """Return the standard deviation, of all values and not of a sample."""
        return math.sqrt(self.squares / self.finite) if self.finite else math.nan

    @property
    def largest(self) -> float:
        """Return the largest magnitude."""
        return max(-self.minimum, self.maximum) if self.finite else math.nan

    @property
    def constant(self) -> float | None:
        """Return the value that all have; None: they differ, or are not finite, or none."""
        alike = self.minimum == self.maximum and self.finite == self.number
        return self.minimum if alike else None

    def add(self, values: ndarray) -> None:
        """Take in values of any dtype, given in one dimension."""
        for start in range(0, len(values), _PIECE):
            self.merge(_moments(values[start : start + _PIECE]))

    def merge(self, other: Moments) -> None:
        """Take in the values of others. Source: Chan, Golub and LeVeque 1979."""
        finite = self.finite + other.finite
        if other.finite:
            apart, share = other.mean - self.mean, other.finite / finite
            with np.errstate(over="ignore", invalid="ignore"):
                self.squares += other.squares + apart * apart * self.finite * share
            self.mean += apart * share
            self.minimum = min(self.minimum, other.minimum)
            self.maximum = max(self.maximum, other.maximum)
        for name in ("number", "nan", "infinite", "zeros"):
            setattr(self, name, getattr(self, name) + getattr(other, name))

    @classmethod
    def of(cls, told: Mapping[str, Any], number: int) -> Moments:
        """Return the moments that `as_dict` gave for so many values."""
        counts = {name: told[name] for name in ("nan", "infinite", "zeros")}
        made = cls(number, **counts)
        if told["minimum"] is not None:
            made.minimum, made.maximum = told["minimum"], told["maximum"]
            made.mean = math.nan if told["mean"] is None else told["mean"]
            spread = math.nan if told["deviation"] is None else told["deviation"]
            made.squares = spread * spread * made.finite
        return made

    def as_dict(self) -> dict[str, float | int | None]:
        """Return it as JSON has it: null where there is no finite number."""
        numbers = (self.minimum, self.maximum, self.mean, self.deviation, self.largest)
        names = ("minimum", "maximum", "mean", "deviation", "largest")
        found: dict[str, float | int | None] = {
            name: one if self.finite and math.isfinite(one) else None
            for name, one in zip(names, numbers, strict=True)
        }
        return found | {"nan": self.nan, "infinite": self.infinite, "zeros": self.zeros}


def _moments(values: ndarray) -> Moments:
    with np.errstate(over="ignore", invalid="ignore"):
        wide = values.astype(np.float64)
        made = Moments(len(values), zeros=len(values) - int(np.count_nonzero(wide)))
        low, high = float(wide.min()), float(wide.max())
        if not (math.isfinite(low) and math.isfinite(high)):
            made.nan = int(np.count_nonzero(np.isnan(wide)))
            made.infinite = int(np.count_nonzero(np.isinf(wide)))
            wide = wide[np.isfinite(wide)]
            if not wide.size:
                return made
            low, high = float(wide.min()), float(wide.max())
        made.minimum, made.maximum, made.mean = low, high, float(wide.mean())
        wide -= made.mean
        made.squares = float(np.dot(wide, wide))
    return made


@dataclass
class Rows:
    """Rows of a matrix that are odd: all zeros, one value throughout, equal to another."""

    zero: list[int] = field(default_factory=list)
    constant: list[int] = field(default_factory=list)
    equal: list[list[int]] = field(default_factory=list)


@dataclass(frozen=True)
class Summary:
    """What one tensor's values look like.

    experts  the moments of each expert's matrix, and `digests` of its bytes; empty: it has no experts
    rows     odd rows of the embedding; None: it is another tensor
    """

    name: str
    shape: tuple[int, ...]
    total: Moments
    experts: tuple[Moments, ...] = ()
    digests: tuple[str, ...] = ()
    rows: Rows | None = None


# ---- reading -----------------------------------------------------------------------------------


def summary(checkpoint: Checkpoint, name: str) -> Summary:
    """Return what a tensor's values look like, read once in blocks. Errors: UsageError."""
    shape = checkpoint.tensors[name].shape
    number = shape[0] if len(shape) > 2 else 1
    moments = [Moments() for _ in range(number)]
    hashes = [hashlib.sha256() for _ in range(number)]
    rows = _RowReader(shape[-1]) if name == EMBEDDING and len(shape) == 2 else None
    for matrix, values in _pieces(checkpoint, name):
        moments[matrix].add(values)
        if number > 1:
            hashes[matrix].update(np.ascontiguousarray(values).view(np.uint8).data)
        if rows is not None:
            rows.add(values)
    total = Moments()
    for one in moments:
        total.merge(one)
    return Summary(
        name,
        shape,
        total,
        tuple(moments) if number > 1 else (),
        tuple(one.hexdigest() for one in hashes) if number > 1 else (),
        None if rows is None else rows.found(),
    )


def summaries(
    checkpoint: Checkpoint, jobs: int = 0, done: Callable[[int], None] = lambda _: None
) -> dict[str, Summary]:
    """Return the summaries of all tensors by name, by threads; jobs 0: one a core.

    Errors: UsageError.
    """
    budget = working.Budget.of(_MEMORY, jobs)
    names = sorted(checkpoint.tensors, key=lambda name: -checkpoint.size(name))
    made = working.each(
        names,
        lambda name: summary(checkpoint, name),
        budget=budget,
        need=lambda name: _need(checkpoint, name),
        done=lambda name: done(checkpoint.size(name)),
    )
    return {name: made[name] for name in checkpoint.tensors}


def _pieces(checkpoint: Checkpoint, name: str) -> Iterator[tuple[int, ndarray]]:
    """Yield matrices' numbers and values that follow each other in one, as they are stored."""
    shape = checkpoint.tensors[name].shape
    inner = math.prod(shape[1:] if len(shape) > 2 else shape)
    for part in checkpoint.tensors[name].parts:
        first, given = part.matrix or 0, 0
        for found in _values(checkpoint, part):
            values = found
            while len(values):
                matrix, within = divmod(given, inner)
                taken = values[: inner - within]
                yield first + matrix, taken
                given, values = given + len(taken), values[len(taken) :]


def _plan(checkpoint: Checkpoint, part: Part) -> tuple[tuple[int, ...], int, int]:
    """Return the stored shape, the bytes of a block and the rows of a chunk, `part.at` left out."""
    stored = checkpoint.reader.tensors[part.theirs]
    axis = None if part.at is None else part.at[0]
    shape = tuple(n for i, n in enumerate(stored.shape) if i != axis)
    if stored.chunk is None or not shape:
        return shape, BLOCK, 1
    chunk = tuple(n for i, n in enumerate(stored.chunk) if i != axis)
    slab = math.prod((chunk[0], *shape[1:])) * DTYPES[stored.dtype].itemsize
    limit = max(BLOCK, slab) if slab <= LARGEST_BLOCK else BLOCK
    return shape, limit, chunk[-2] if len(chunk) > 1 else 1


def _need(checkpoint: Checkpoint, name: str) -> int:
    """Return the bytes that a thread holds for a tensor: a block, what it is decoded from, float64."""
    held = 0
    for part in checkpoint.tensors[name].parts:
        stored = checkpoint.reader.tensors[part.theirs]
        _, limit, _ = _plan(checkpoint, part)
        decoded = 0 if _must_stream(checkpoint, part) else stored.least
        held = max(held, 2 * max(min(limit, stored.size), decoded) + 4 * 8 * _PIECE)
    return held


def _must_stream(checkpoint: Checkpoint, part: Part) -> bool:
    large = checkpoint.reader.tensors[part.theirs].least > LARGEST_BLOCK
    return large and part.at is None and checkpoint.reader.stream(part.theirs) is not None


def _values(checkpoint: Checkpoint, part: Part) -> Iterator[ndarray]:
    """Yield a part's values in the order of the stored tensor, in one dimension."""
    stored = checkpoint.reader.tensors[part.theirs]
    dtype = DTYPES[stored.dtype]
    if _must_stream(checkpoint, part):
        pieces, rest, given = checkpoint.reader.stream(part.theirs), b"", 0
        assert pieces is not None, part.theirs
        for piece in pieces:
            content = rest + piece
            number = len(content) // dtype.itemsize
            rest, given = content[number * dtype.itemsize :], given + number
            yield np.frombuffer(content, dtype, number)
        if rest or given != math.prod(stored.shape):
            raise Unreadable(
                f"{checkpoint.path}: {part.theirs} has {given} values, too few or many"
            )
        return
    shape, limit, rows = _plan(checkpoint, part)
    for own in blocks(shape, dtype.itemsize, limit, rows):
        region = list(own)
        if part.at is not None:
            region.insert(part.at[0], (part.at[1], part.at[1] + 1))
        yield checkpoint.reader.read(part.theirs, tuple(region)).reshape(-1)


class _RowReader:
    """The rows of a matrix as its values come: which are constant, and a hash of each."""

    def __init__(self, width: int) -> None:
        self.width = width
        self._rest: ndarray | None = None
        self._hashes: dict[int, list[int]] = defaultdict(list)
        self._number = 0
        self._rows = Rows()

    def add(self, values: ndarray) -> None:
        if self._rest is not None and len(self._rest):
            values = np.concatenate([self._rest, values])
        number = len(values) // self.width if self.width else 0
        rows = values[: number * self.width].reshape(number, self.width)
        self._rest = values[number * self.width :].copy()
        alike = (rows == rows[:, :1]).all(axis=1)
        zero = alike & (rows[:, 0] == 0)
        self._rows.zero += [int(i) + self._number for i in np.flatnonzero(zero)]
        self._rows.constant += [int(i) + self._number for i in np.flatnonzero(alike & ~zero)]
        for i in np.flatnonzero(~alike):
            self._hashes[hash(rows[i].tobytes())].append(int(i) + self._number)
        self._number += number

    def found(self) -> Rows:
        self._rows.equal = [ones for ones in self._hashes.values() if len(ones) > 1]
        return self._rows
