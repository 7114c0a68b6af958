"""What a report claims, at a false-positive rate for all its claims together. Spec: AUDIT-26, AUDIT-28.

A claim is of a key in a layer, or of the ends of rows under a capacity rule. With m claims in a report,
intervals are at the level 1 - RATE/m, so that routing by chance is called something by one report of a
hundred at most; half of that, since claims look at lower ends alone, which leaves room for the bootstrap's
own error.
"""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

from openmoe_reference import audit_inference
from openmoe_tools.audit.measures.drops import Even, ends
from openmoe_tools.audit.measures.intervals import at_level
from openmoe_tools.audit.measures.view import KEYS, View

RATE = 0.01
HOLDS, PART, NOT, UNDECIDED, UNTOLD = (
    *("holds", "in part", "does not hold", "not decided", "not recorded"),
)
CLEAR, NOTHING = 0.5, 0.05
"""A gain whose lower end is above the first holds; one whose upper end is below the second is none."""
MORE, NO_MORE = 1.5, 0.01
"""Times as many drops at the end of rows as at their start; a difference that is none."""


class Claim(NamedTuple):
    """An estimate with the ends of its interval, at the level of the report's claims."""

    value: float
    low: float
    high: float

    @property
    def made(self) -> bool:
        """Return whether it is claimed that there is something."""
        return self.low > 0


def number(view: View) -> int:
    """Return how many claims a report tests: layers times keys, and capacity rules."""
    keys = sum(view.untold(key) is None for key in KEYS)
    rules = len(view.sizes.rules) if view.has("drops") and view.has("positions") else 0
    return max(view.sizes.layers * keys + rules, 1)


def level(view: View) -> float:
    """Return the level of the intervals of claims."""
    return 1 - RATE / number(view)


def of_key(view: View, key: str, layer: int) -> Claim | None:
    """Return the claim that a key tells of the first choice; none where it cannot be said."""
    found = view.gain(key, layer)
    if found is None:
        return None
    low, high = at_level(found, level(view))
    return Claim(found.gain, low, min(high, 1.0))  # no more misses than there are can be removed


def of_drops(view: View, rule: int, layer: int) -> Claim | None:
    """Return the claim that more is dropped at the end of rows than of routing by chance.

    None where it cannot be said; where calls' groups are not known, the claim is of more than nothing.
    """
    found = ends(view, rule, layer)
    if not (math.isfinite(found.difference) and np.isfinite(found.replicates).all()):
        return None
    even = found.chance or Even(0.0, 0.0, 0.0)
    excess = found.difference - even.difference
    ends_of = audit_inference.bootstrap_interval(excess, found.replicates, level=level(view))
    quantile = NormalDist().inv_cdf((1 + level(view)) / 2)
    # What chance drops is itself drawn.
    half = math.hypot(ends_of.high - excess, quantile * even.error)
    return Claim(excess, excess - half, excess + half)


def answer(claim: Claim | None) -> str:
    """Return what a claim about a key comes to."""
    if claim is None:
        return UNDECIDED
    if claim.made:
        return HOLDS if claim.low > CLEAR else PART
    return NOT if claim.high < NOTHING else UNDECIDED
