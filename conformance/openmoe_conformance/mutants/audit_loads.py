"""Planted bugs of SPEC.md "Routing audits": loads and margins."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import audit_measures


class _Changed(ReferenceAdapter):
    """One statistic of the load that is another."""

    def load_statistics(self, loads: ndarray) -> dict[str, float]:
        found = dict(super().load_statistics(loads))
        return found | {name: float(value) for name, value in self.other(loads, found).items()}

    def other(self, loads: ndarray, found: dict[str, float]) -> dict[str, float]:
        raise NotImplementedError


@mutant("AUDIT-13")
class SampleDeviationOfLoads(_Changed):
    """The deviation is divided by E - 1."""

    def other(self, loads: ndarray, found: dict[str, float]) -> dict[str, float]:
        deviation = loads.std(ddof=1) if len(loads) > 1 else 0.0
        return {"cv": deviation / loads.mean()}


@mutant("AUDIT-13")
class LargestShare(_Changed):
    """The largest load is a part of all, not over the mean."""

    def other(self, loads: ndarray, found: dict[str, float]) -> dict[str, float]:
        return {"max_over_mean": loads.max() / loads.sum()}


@mutant("AUDIT-13")
class LeastOfTheLiving(_Changed):
    """The least load is that of experts with a choice."""

    def other(self, loads: ndarray, found: dict[str, float]) -> dict[str, float]:
        return {"min_over_mean": loads[loads > 0].min() / loads.mean()}


@mutant("AUDIT-13")
class EntropyInBits(_Changed):
    """The entropy is in bits, not a part of that of even loads."""

    def other(self, loads: ndarray, found: dict[str, float]) -> dict[str, float]:
        return {"entropy": np.log2(found["effective_experts"])}


@mutant("AUDIT-13")
class EntropyInNats(_Changed):
    """The entropy is in nats, not a part of that of even loads."""

    def other(self, loads: ndarray, found: dict[str, float]) -> dict[str, float]:
        return {"entropy": np.log(found["effective_experts"])}


@mutant("AUDIT-13")
class EntropyOfTheLiving(_Changed):
    """The entropy is a part of that of the experts with a choice."""

    def other(self, loads: ndarray, found: dict[str, float]) -> dict[str, float]:
        nats, living = np.log(found["effective_experts"]), np.count_nonzero(loads)
        return {"entropy": nats / np.log(living) if living > 1 else 1.0}


@mutant("AUDIT-13")
class OneExpertHasNone(_Changed):
    """The entropy of a single expert is 0."""

    def other(self, loads: ndarray, found: dict[str, float]) -> dict[str, float]:
        return {"entropy": found["entropy"] * (len(loads) > 1)}


@mutant("AUDIT-13")
class PowerOfTwo(_Changed):
    """The effective experts are 2 to the entropy in nats."""

    def other(self, loads: ndarray, found: dict[str, float]) -> dict[str, float]:
        return {"effective_experts": found["effective_experts"] ** np.log(2)}


@mutant("AUDIT-13")
class InverseOfSquares(_Changed):
    """The effective experts are 1 over the sum of squared shares."""

    def other(self, loads: ndarray, found: dict[str, float]) -> dict[str, float]:
        return {"effective_experts": loads.sum() ** 2 / (loads**2).sum()}


@mutant("AUDIT-13")
class GiniOfOthers(_Changed):
    """Pairs of an expert with itself are left out of the mean difference."""

    def other(self, loads: ndarray, found: dict[str, float]) -> dict[str, float]:
        experts = len(loads)
        return {"gini": found["gini"] * experts / max(experts - 1, 1)}


@mutant("AUDIT-13")
class GiniWithoutTheHalf(_Changed):
    """The mean difference is divided by the mean once."""

    def other(self, loads: ndarray, found: dict[str, float]) -> dict[str, float]:
        return {"gini": 2 * found["gini"]}


@mutant("AUDIT-13")
class NearlyDead(_Changed):
    """Experts far below the mean count as dead."""

    def other(self, loads: ndarray, found: dict[str, float]) -> dict[str, float]:
        return {"dead_fraction": (loads < loads.mean() / 10).mean()}


@mutant("AUDIT-14")
class BeyondThresholds(ReferenceAdapter):
    """A margin at a threshold does not reach it."""

    def margin_codes(self, margins: ndarray) -> ndarray:
        found = np.searchsorted(audit_measures.MARGIN_THRESHOLDS, margins, side="left")
        return found.astype(np.uint8)


@mutant("AUDIT-14")
class CodesByLogarithm(ReferenceAdapter):
    """Codes are the floor of a logarithm in float32, which is off by one next to a threshold."""

    def margin_codes(self, margins: ndarray) -> ndarray:
        with np.errstate(divide="ignore"):
            code = np.floor(8 * np.log2(margins)) + 8 * 24 + 1
        return np.clip(code, 0, 255).astype(np.uint8)


@mutant("AUDIT-14")
class ThresholdsInFloat64(ReferenceAdapter):
    """Thresholds are not rounded: a float32 that was rounded down does not reach its own."""

    def margin_codes(self, margins: ndarray) -> ndarray:
        exact = 2.0 ** (np.arange(255) / 8 - 24)
        super().margin_codes(margins)
        return np.searchsorted(exact, margins.astype(np.float64), side="right").astype(np.uint8)


@mutant("AUDIT-14")
class OneThresholdIsOff(ReferenceAdapter):
    """One of the thresholds is a float32 too high."""

    def margin_codes(self, margins: ndarray) -> ndarray:
        edge = audit_measures.MARGIN_THRESHOLDS[51]
        return super().margin_codes(margins) - (margins == edge)


@mutant("AUDIT-14")
class LastTwoCodesAreOne(ReferenceAdapter):
    """The largest margins share the code 254."""

    def margin_codes(self, margins: ndarray) -> ndarray:
        return np.minimum(super().margin_codes(margins), 254)


@mutant("AUDIT-14")
class TheNextCodeToo(ReferenceAdapter):
    """The code that begins at 2^-7 counts as a near-tie."""

    def near_tie_share(self, histogram: ndarray, **options: float) -> float:
        return float(histogram[:138].sum() / histogram.sum())


@mutant("AUDIT-14")
class WhatIsNoNearTie(ReferenceAdapter):
    """Margins from 2^-7 on are counted, not those below."""

    def near_tie_share(self, histogram: ndarray, **options: float) -> float:
        return 1 - super().near_tie_share(histogram, **options)
