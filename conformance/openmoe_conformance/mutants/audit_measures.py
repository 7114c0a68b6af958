"""Planted bugs of SPEC.md "Routing audits": tokens of experts, neighbours, load and margins."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import audit_measures
from openmoe_reference.audit import tokens_of


@mutant("AUDIT-08")
class HigherIdFirst(ReferenceAdapter):
    """Of equal ids the higher comes first."""

    def top_tokens(self, counts: ndarray, **options: Any) -> ndarray:
        found = super().top_tokens(counts[::-1], **options)
        return np.where(found < 0, -1, len(counts) - 1 - found)


@mutant("AUDIT-08")
class RareIdsAreMostPrecise(ReferenceAdapter):
    """Precision is of all ids: one that occurs once leads."""

    def top_tokens(self, counts: ndarray, **options: Any) -> ndarray:
        least = 0 if options["by"] == "precision" else options.get("least", 10)
        return super().top_tokens(counts, **options | {"least": least})


@mutant("AUDIT-08")
class LiftOfRareIds(ReferenceAdapter):
    """Lift is not drawn towards 1."""

    def top_tokens(self, counts: ndarray, **options: Any) -> ndarray:
        least = 0 if options["by"] == "lift" else options.get("least", 10)
        return super().top_tokens(counts, **options | {"least": least})


@mutant("AUDIT-08")
class IdsThatNeverChoseIt(ReferenceAdapter):
    """Where there are no more, ids are listed that never chose the expert."""

    def top_tokens(self, counts: ndarray, **options: Any) -> ndarray:
        found = super().top_tokens(counts, **options)
        return np.where(found < 0, 0, found)


@mutant("AUDIT-10")
class NeighboursInRank(ReferenceAdapter):
    """Only pairs of neighbours in rank count."""

    def coactivation(self, expert_index: ndarray, *, num_experts: int) -> ndarray:
        found = np.zeros((num_experts, num_experts), np.int64)
        for rank in range(expert_index.shape[1] - 1):
            pair = expert_index[:, rank : rank + 2]
            found += super().coactivation(pair, num_experts=num_experts)
        return found


@mutant("AUDIT-10")
class OneWayRound(ReferenceAdapter):
    """A pair counts for its better expert alone."""

    def coactivation(self, expert_index: ndarray, *, num_experts: int) -> ndarray:
        return np.triu(super().coactivation(expert_index, num_experts=num_experts))


@mutant("AUDIT-10")
class WithItself(ReferenceAdapter):
    """An expert goes with itself: the diagonal has its tokens."""

    def coactivation(self, expert_index: ndarray, *, num_experts: int) -> ndarray:
        tokens = np.bincount(expert_index.reshape(-1), minlength=num_experts)
        return super().coactivation(expert_index, num_experts=num_experts) + np.diag(tokens)


@mutant("AUDIT-10")
class SharesOfTheOther(ReferenceAdapter):
    """The pairs are divided by the other expert's tokens."""

    def coactivation_shares(self, counts: ndarray, tokens: ndarray) -> ndarray:
        return super().coactivation_shares(counts, tokens).T


@mutant("AUDIT-11")
class EveryKeyOnce(ReferenceAdapter):
    """Keys are not weighted by their tokens, whatever is asked for."""

    def vocabulary_specialisation(self, counts: ndarray, **options: Any) -> ndarray:
        return super().vocabulary_specialisation(counts, **options | {"weighted": False})


@mutant("AUDIT-11")
class RareKeysToo(ReferenceAdapter):
    """No key is left out, whatever is asked for."""

    def vocabulary_specialisation(self, counts: ndarray, **options: Any) -> ndarray:
        return super().vocabulary_specialisation(counts, **options | {"least": 0})


@mutant("AUDIT-11")
class PartsOfChoices(ReferenceAdapter):
    """The part is of the key's choices, not of its tokens."""

    def vocabulary_specialisation(self, counts: ndarray, **options: Any) -> ndarray:
        return super().vocabulary_specialisation(counts, **options) / counts.shape[2]


@mutant("AUDIT-11")
class NobodyIsZero(ReferenceAdapter):
    """An expert that no key prefers has 0."""

    def vocabulary_specialisation(self, counts: ndarray, **options: Any) -> ndarray:
        return np.nan_to_num(super().vocabulary_specialisation(counts, **options))


@mutant("AUDIT-12")
class AcrossRows(ReferenceAdapter):
    """The last token of a row and the first of the next are neighbours."""

    def repetition(self, expert_index: ndarray, row: ndarray) -> ndarray:
        return super().repetition(expert_index, np.zeros_like(row))


@mutant("AUDIT-12")
class SameRank(ReferenceAdapter):
    """An expert in common has the same rank in both."""

    def repetition(self, expert_index: ndarray, row: ndarray) -> ndarray:
        found = super().repetition(expert_index, row)
        same = (expert_index[:-1] == expert_index[1:]).any(axis=1)
        found[2] = (same & (row[:-1] == row[1:])).sum()
        return found


@mutant("AUDIT-12")
class ChanceWithReplacement(ReferenceAdapter):
    """By chance each choice misses by itself, as if an expert could be chosen twice."""

    def repetition_by_chance(self, k: int, num_experts: int) -> tuple[float, float]:
        return 1 / num_experts, 1 - (1 - k / num_experts) ** k


class _Changed(ReferenceAdapter):
    """A statistic of the load that is another."""

    def statistics(self, loads: ndarray) -> dict[str, float]:
        return dict(super().load_statistics(loads))


@mutant("AUDIT-13")
class SampleDeviationOfLoads(_Changed):
    """The deviation is divided by E - 1."""

    def load_statistics(self, loads: ndarray) -> dict[str, float]:
        deviation = loads.std(ddof=1) if len(loads) > 1 else 0.0
        return self.statistics(loads) | {"cv": float(deviation / loads.mean())}


@mutant("AUDIT-13")
class EntropyInBits(_Changed):
    """The entropy is in bits, not a part of that of even loads."""

    def load_statistics(self, loads: ndarray) -> dict[str, float]:
        found = self.statistics(loads)
        return found | {"entropy": float(np.log2(found["effective_experts"]))}


@mutant("AUDIT-13")
class GiniOfOthers(_Changed):
    """Pairs of an expert with itself are left out of the mean difference."""

    def load_statistics(self, loads: ndarray) -> dict[str, float]:
        found, experts = self.statistics(loads), len(loads)
        return found | {"gini": found["gini"] * experts / max(experts - 1, 1)}


@mutant("AUDIT-13")
class NearlyDead(_Changed):
    """Experts far below the mean count as dead."""

    def load_statistics(self, loads: ndarray) -> dict[str, float]:
        return self.statistics(loads) | {"dead_fraction": float((loads < loads.mean() / 10).mean())}


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
class TheNextCodeToo(ReferenceAdapter):
    """The code that begins at 2^-7 counts as a near-tie."""

    def near_tie_share(self, histogram: ndarray, **options: float) -> float:
        return float(histogram[:138].sum() / histogram.sum())


@mutant("AUDIT-27")
class SentinelsGoTogether(ReferenceAdapter):
    """255 and -1 are counted as experts of their own."""

    def coactivation(self, expert_index: ndarray, *, num_experts: int) -> ndarray:
        ordered = np.clip(expert_index, 0, num_experts - 1)
        found = np.zeros((num_experts, num_experts), np.int64)
        for one in range(ordered.shape[1]):
            for other in range(ordered.shape[1]):
                if one != other:
                    np.add.at(found, (ordered[:, one], ordered[:, other]), 1)
        return found


@mutant("AUDIT-27")
class MarginsOfNothing(ReferenceAdapter):
    """A margin that is no number has a code."""

    def margin_codes(self, margins: ndarray) -> ndarray:
        return super().margin_codes(np.clip(np.nan_to_num(margins), 0, None))


@mutant("AUDIT-27")
class UnevenRanks(ReferenceAdapter):
    """Counts of different tokens by rank are ranked."""

    def top_tokens(self, counts: ndarray, **options: Any) -> ndarray:
        try:
            tokens_of(counts)
        except ValueError:
            return np.full((counts.shape[1], options.get("number", 10)), -1)
        return super().top_tokens(counts, **options)
