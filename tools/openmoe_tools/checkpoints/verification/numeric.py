"""How far two tensors are apart: in units of the last place, by value, and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_spec.places import Region, Shape
from openmoe_tools.checkpoints import working
from openmoe_tools.checkpoints.containers.opening import Checkpoint
from openmoe_tools.checkpoints.containers.regions import blocks
from openmoe_tools.checkpoints.containers.stored import DTYPES
from openmoe_tools.checkpoints.digests import cast

MOST_PLACES = 8
_PIECE = 1 << 20
_UNSIGNED = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}


def bits(values: ndarray) -> ndarray:
    """Return values as unsigned whole numbers of the same width."""
    return np.ascontiguousarray(values).view(_UNSIGNED[values.dtype.itemsize])


def ordered(values: ndarray) -> ndarray:
    """Return each float's place among the floats, so that neighbours differ by 1, as int64."""
    width = 8 * values.dtype.itemsize
    raw = bits(values).astype(np.int64) if width < 64 else bits(values).view(np.int64)
    low = np.int64(-(2**63)) if width == 64 else np.int64(1 << (width - 1))
    negative = raw < 0 if width == 64 else raw >= low
    return np.where(negative, low - raw, raw)


def together(
    a: Checkpoint, b: Checkpoint, name: str, budget: working.Budget, *, declared: str | None
) -> Iterator[tuple[Region, ndarray, ndarray]]:
    """Yield regions of both sides' tensor of one shape.

    a's values are cast to b's dtype where that was declared; else the narrower side is widened.
    """
    one, other = a.dtype(name), b.dtype(name)
    dtype = other if other == declared else _wider(one, other)
    limit = max(
        budget.block,
        *(min(working.limit_of(side, name, budget), side.size(name)) for side in (a, b)),
    )
    itemsize = max(DTYPES[side].itemsize for side in (one, other))
    for region in blocks(a.tensors[name].shape, itemsize, limit):
        yield region, cast(a.read(name, region), dtype), cast(b.read(name, region), dtype)


def _wider(one: str, other: str) -> str:
    """Return a dtype that holds the values of both."""
    if {one, other} == {"bfloat16", "float16"}:
        return "float32"
    return max((one, other), key=lambda name: DTYPES[name].itemsize)


@dataclass
class Difference:
    """How two tensors of one shape differ, after the cast to b's dtype.

    elements    how many there are, and `differing` how many differ
    ulps        counts by distance: key 0 none, 1, 2, 4, ... the largest distance of its class
    largest     the largest absolute and relative difference of finite values, the largest distance
    not_finite  how many are NaN or infinite on one side alone
    places      indices of the first few that differ
    """

    elements: int = 0
    differing: int = 0
    ulps: dict[int, int] = field(default_factory=dict)
    largest_absolute: float = 0.0
    largest_relative: float = 0.0
    largest_ulps: int = 0
    not_finite: int = 0
    places: list[tuple[int, ...]] = field(default_factory=list)

    def add(self, region: Region, a: ndarray, b: ndarray) -> None:
        """Take in a region, a piece at a time: what is computed of one is several times its size."""
        one, other = a.reshape(-1), b.reshape(-1)
        for start in range(0, one.size, _PIECE):
            piece = slice(start, start + _PIECE)
            unequal = np.flatnonzero(bits(one[piece]) != bits(other[piece]))
            self.elements += len(one[piece])
            self.ulps[0] = self.ulps.get(0, 0) + len(one[piece]) - len(unequal)
            if len(unequal):
                self._place(region, a.shape, start + unequal[: MOST_PLACES - len(self.places)])
                self._add(one[piece][unequal], other[piece][unequal])

    def _place(self, region: Region, shape: Shape, flat: ndarray) -> None:
        corner = [first for first, _ in region]
        for place in zip(*np.unravel_index(flat, shape), strict=True):
            self.places.append(tuple(int(c + i) for c, i in zip(corner, place, strict=True)))

    def _add(self, one: ndarray, other: ndarray) -> None:
        """Take in values that differ."""
        self.differing += len(one)
        wide, wider = one.astype(np.float64), other.astype(np.float64)
        finite = np.isfinite(wide) & np.isfinite(wider)
        self.not_finite += int(np.count_nonzero(np.isfinite(wide) != np.isfinite(wider)))
        if finite.any():
            apart = np.abs(wide - wider)[finite]
            scale = np.abs(wide)[finite]
            self.largest_absolute = max(self.largest_absolute, float(apart.max()))
            relative = np.divide(apart, scale, out=np.zeros_like(apart), where=scale > 0)
            self.largest_relative = max(self.largest_relative, float(relative.max()))
            distance = np.abs(ordered(one[finite]) - ordered(other[finite]))
            self.largest_ulps = max(self.largest_ulps, int(distance.max()))
            classes = np.ceil(np.log2(np.maximum(distance, 1).astype(np.float64))).astype(int)
            for power, count in zip(*np.unique(classes, return_counts=True), strict=True):
                key = 1 << int(power)
                self.ulps[key] = self.ulps.get(key, 0) + int(count)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it; keys of the histogram are text there."""
        return {
            "elements": self.elements,
            "differing": self.differing,
            "ulps": {str(key): self.ulps[key] for key in sorted(self.ulps)},
            "largest_absolute": self.largest_absolute,
            "largest_relative": self.largest_relative,
            "largest_ulps": self.largest_ulps,
            "not_finite": self.not_finite,
            "places": [list(one) for one in self.places],
        }


def difference(
    a: Checkpoint, b: Checkpoint, name: str, budget: working.Budget, declared: str | None = None
) -> Difference:
    """Return how a tensor of one shape differs, after the declared cast. Errors: UsageError."""
    found = Difference()
    for region, one, other in together(a, b, name, budget, declared=declared):
        found.add(region, one, other)
    return found
