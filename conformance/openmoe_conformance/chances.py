"""The chi-squared test of the clauses of class P: are draws distributed as they must be?

One test has a false-positive rate of 1e-6; the tail is computed in closed form, not approximated.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import Disagreement, Evidence

FALSE_POSITIVES = 1e-6
"""Share of right implementations that one test wrongly finds fault with."""


def tail(statistic: float, degrees: int) -> float:
    """Return the probability that a chi-squared variable of some degrees of freedom is larger.

    Q(a + 1, y) = Q(a, y) + y^a exp(-y) / gamma(a + 1), from Q(1/2, y) = erfc(sqrt(y)) or
    Q(1, y) = exp(-y), with a = degrees / 2 and y = statistic / 2.
    """
    half = statistic / 2
    if half <= 0:
        return 1.0
    order = 0.5 if degrees % 2 else 1.0
    total = math.erfc(math.sqrt(half)) if degrees % 2 else math.exp(-half)
    while order < degrees / 2:
        total += math.exp(order * math.log(half) - half - math.lgamma(order + 1))
        order += 1
    return min(total, 1.0)


def judge(
    name: str, counts: Sequence[int] | ndarray, shares: Sequence[float], evidence: Evidence
) -> None:
    """Require that counts of outcomes are those of draws with the given shares."""
    counts, expected = np.asarray(counts, np.float64), np.asarray(shares, np.float64)
    drawn = counts.sum()
    expected = expected / expected.sum() * drawn
    statistic = float(((counts - expected) ** 2 / expected).sum())
    chance = tail(statistic, len(counts) - 1)
    evidence.examples += int(drawn)
    if chance < FALSE_POSITIVES:
        worst = int(np.abs((counts - expected) / np.sqrt(expected)).argmax())
        raise Disagreement(
            f"{name}: {int(drawn)} draws have a chance of {chance:.2g} (limit {FALSE_POSITIVES:g}); "
            f"outcome {worst} came {int(counts[worst])} times, {expected[worst]:.1f} expected"
        )
