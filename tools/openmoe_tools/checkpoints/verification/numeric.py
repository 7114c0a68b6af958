"""How far two tensors are apart: in units of the last place, by value, and where."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_spec.places import Region
from openmoe_tools.checkpoints import working
from openmoe_tools.checkpoints.containers.opening import Checkpoint
from openmoe_tools.checkpoints.containers.regions import blocks
from openmoe_tools.checkpoints.containers.stored import DTYPES
from openmoe_tools.checkpoints.digests import cast

MOST_PLACES = 8
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
    a: Checkpoint, b: Checkpoint, name: str, budget: working.Budget
) -> Iterator[tuple[Region, ndarray, ndarray]]:
    """Yield regions of both sides' tensor of one shape, a's values in b's dtype."""
    dtype = b.dtype(name)
    limit = max(
        budget.block,
        *(min(working.limit_of(one, name, budget), one.size(name)) for one in (a, b)),
    )
    itemsize = max(DTYPES[one.dtype(name)].itemsize for one in (a, b))
    for region in blocks(a.tensors[name].shape, itemsize, limit):
        yield region, cast(a.read(name, region), dtype), b.read(name, region)


@dataclass
class Difference:
    """How two tensors of one shape differ, after the cast to b's dtype.

    elements    how many there are, and `differing` how many differ
    ulps        counts by distance: key 0 none, 1, 2, 4, ... the largest distance of its class
    largest     the largest absolute and relative difference of finite values, the largest distance
    not_finite  how many are NaN or infinite on one side alone
    rows        which rows of the matrices differ: by (matrix, row), the first few
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
        """Take in a region."""
        self.elements += a.size
        unequal = bits(a) != bits(b)
        number = int(np.count_nonzero(unequal))
        self.ulps[0] = self.ulps.get(0, 0) + a.size - number
        if not number:
            return
        self.differing += number
        start = [one[0] for one in region]
        for place in np.argwhere(unequal)[: MOST_PLACES - len(self.places)]:
            self.places.append(tuple(int(s + i) for s, i in zip(start, place, strict=True)))
        one, other = a[unequal], b[unequal]
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


def difference(a: Checkpoint, b: Checkpoint, name: str, budget: working.Budget) -> Difference:
    """Return how a tensor of one shape differs between two sides. Errors: UsageError."""
    found = Difference()
    for region, one, other in together(a, b, name, budget):
        found.add(region, one, other)
    return found
