"""Order-invariant fingerprints: sums of mixed bits by row and by column of each matrix.

Equal sums in another order are the same values in other places; the order says which. A sum can
deceive (equal rows, a collision): whatever is found by one is confirmed by a second, exact read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy import ndarray

from openmoe_tools.checkpoints.containers.opening import Checkpoint
from openmoe_tools.checkpoints.containers.stored import DTYPES
from openmoe_tools.checkpoints.digests import cast
from openmoe_tools.checkpoints.verification.numeric import bits


def mix(values: ndarray) -> ndarray:
    """Return a uint64 of each value's bits that looks drawn at random.

    Source: the finaliser of splitmix64 (Steele, Lea and Flood 2014).
    """
    mixed = bits(values).astype(np.uint64) + np.uint64(0x9E3779B97F4A7C15)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


@dataclass(frozen=True)
class Matrix:
    """One matrix of a tensor, read by rows: a vector is one row, an expert's is one of E.

    dtype  what its values are cast to
    """

    checkpoint: Checkpoint
    name: str
    dtype: str
    index: int | None
    shape: tuple[int, int]
    block: int

    def rows(self, start: int, stop: int) -> ndarray:
        """Return rows [stop - start, C], cast."""
        return cast(self.own_rows(start, stop), self.dtype)

    def own_rows(self, start: int, stop: int) -> ndarray:
        """Return rows in the dtype that they are stored in."""
        region: tuple[tuple[int, int], ...] = ((start, stop), (0, self.shape[1]))
        if len(self.checkpoint.tensors[self.name].shape) == 1:
            return self.checkpoint.read(self.name, region[1:])[None]
        if self.index is not None:
            return self.checkpoint.read(self.name, ((self.index, self.index + 1), *region))[0]
        return self.checkpoint.read(self.name, region)

    def columns(self, start: int, stop: int) -> ndarray:
        """Return columns [R, stop - start], cast."""
        region: tuple[tuple[int, int], ...] = ((0, self.shape[0]), (start, stop))
        if len(self.checkpoint.tensors[self.name].shape) == 1:
            return cast(self.checkpoint.read(self.name, region[1:])[None], self.dtype)
        if self.index is not None:
            whole = self.checkpoint.read(self.name, ((self.index, self.index + 1), *region))[0]
        else:
            whole = self.checkpoint.read(self.name, region)
        return cast(whole, self.dtype)

    def ranges(self, other: tuple[int, int] | None = None) -> Iterator[tuple[int, int]]:
        """Yield ranges of rows, of about a block's bytes."""
        rows, columns = other or self.shape
        step = max(1, self.block // max(1, columns * DTYPES[self.dtype].itemsize))
        return ((start, min(start + step, rows)) for start in range(0, rows, step))


def matrices(checkpoint: Checkpoint, name: str, dtype: str, block: int) -> list[Matrix]:
    """Return the matrices of a tensor."""
    shape = checkpoint.tensors[name].shape
    if len(shape) > 2:
        two = (shape[1], shape[2])
        return [Matrix(checkpoint, name, dtype, e, two, block) for e in range(shape[0])]
    rows, columns = (1, *shape)[-2:]
    return [Matrix(checkpoint, name, dtype, None, (rows, columns), block)]


@dataclass(frozen=True)
class Fingerprint:
    """Sums modulo 2^64 of the mixed bits of a matrix: by row [R], by column [C]."""

    rows: ndarray
    columns: ndarray

    @cached_property
    def total(self) -> int:
        """Return the sum over all of it."""
        with np.errstate(over="ignore"):
            return int(self.rows.sum(dtype=np.uint64))


def fingerprint(matrix: Matrix) -> Fingerprint:
    """Return the fingerprint of a matrix, read once by blocks of rows."""
    rows = np.zeros(matrix.shape[0], np.uint64)
    columns = np.zeros(matrix.shape[1], np.uint64)
    for start, stop in matrix.ranges():
        mixed = mix(matrix.rows(start, stop))
        rows[start:stop] = mixed.sum(axis=1, dtype=np.uint64)
        columns += mixed.sum(axis=0, dtype=np.uint64)
    return Fingerprint(rows, columns)


def is_rearranged(one: ndarray, other: ndarray) -> bool:
    """Return whether sums are the same in another order."""
    return one.shape == other.shape and bool((np.sort(one) == np.sort(other)).all())


def permutation(one: ndarray, other: ndarray) -> ndarray:
    """Return p with other = one[p]; equal sums are matched in their order."""
    found = np.empty(len(one), np.int64)
    found[np.argsort(other, kind="stable")] = np.argsort(one, kind="stable")
    return found
