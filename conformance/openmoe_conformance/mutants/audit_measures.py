"""Planted bugs of SPEC.md "Routing audits": tokens of experts, and neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter


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
class TenAreTooFew(ReferenceAdapter):
    """Precision is of ids with more than ten tokens."""

    def top_tokens(self, counts: ndarray, **options: Any) -> ndarray:
        more = options.get("least", 10) + (options["by"] == "precision")
        return super().top_tokens(counts, **options | {"least": more})


@mutant("AUDIT-08")
class LiftOfRareIds(ReferenceAdapter):
    """Lift is not drawn towards 1."""

    def top_tokens(self, counts: ndarray, **options: Any) -> ndarray:
        least = 0 if options["by"] == "lift" else options.get("least", 10)
        return super().top_tokens(counts, **options | {"least": least})


@mutant("AUDIT-08")
class LiftTowardsNothing(ReferenceAdapter):
    """Lift is drawn towards 0: ten tokens are added that do not choose the expert."""

    def top_tokens(self, counts: ndarray, **options: Any) -> ndarray:
        found = super().top_tokens(counts, **options)
        if options["by"] != "lift":
            return found
        chosen, tokens = counts.sum(axis=2), counts[..., 0].sum(axis=1)
        score = -chosen / (tokens + options.get("least", 10))[:, None]
        for expert, column in enumerate(score.T):
            there = (found[expert] >= 0).sum()
            found[expert, :there] = np.argsort(column, kind="stable")[:there]
        return found


@mutant("AUDIT-08")
class IdsOfFirstChoices(ReferenceAdapter):
    """First choices alone make an id one of an expert's."""

    def top_tokens(self, counts: ndarray, **options: Any) -> ndarray:
        return super().top_tokens(counts[..., :1], **options)


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
class PairsWithTheFirst(ReferenceAdapter):
    """Only pairs with the first choice count."""

    def coactivation(self, expert_index: ndarray, *, num_experts: int) -> ndarray:
        found = np.zeros((num_experts, num_experts), np.int64)
        for rank in range(1, expert_index.shape[1]):
            found += super().coactivation(expert_index[:, [0, rank]], num_experts=num_experts)
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


@mutant("AUDIT-10")
class SharesOfPairs(ReferenceAdapter):
    """The pairs of an expert are divided by their sum, so that its row makes 1."""

    def coactivation_shares(self, counts: ndarray, tokens: ndarray) -> ndarray:
        pairs = np.maximum(counts.sum(axis=1, keepdims=True), 1)
        return np.where(tokens[:, None] > 0, counts / pairs, np.nan)


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


@mutant("AUDIT-11")
class HigherOfEquals(ReferenceAdapter):
    """A key prefers the higher of equal experts."""

    def vocabulary_specialisation(self, counts: ndarray, **options: Any) -> ndarray:
        return super().vocabulary_specialisation(counts[:, ::-1], **options)[::-1]


@mutant("AUDIT-11")
class LeastIsNotEnough(ReferenceAdapter):
    """A key with the least number of tokens is left out."""

    def vocabulary_specialisation(self, counts: ndarray, **options: Any) -> ndarray:
        more = options.get("least", 0) + 1
        return super().vocabulary_specialisation(counts, **options | {"least": more})


@mutant("AUDIT-11")
class FilteredUnasked(ReferenceAdapter):
    """Where no filter is asked for, keys with fewer than ten tokens are left out."""

    def vocabulary_specialisation(self, counts: ndarray, **options: Any) -> ndarray:
        return super().vocabulary_specialisation(counts, **{"least": 10} | options)


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
class FirstChoicesMeet(ReferenceAdapter):
    """An expert in common is the first of both."""

    def repetition(self, expert_index: ndarray, row: ndarray) -> ndarray:
        return super().repetition(expert_index, row)[[0, 1, 1]]


@mutant("AUDIT-12")
class ChanceWithReplacement(ReferenceAdapter):
    """By chance each choice misses by itself, as if an expert could be chosen twice."""

    def repetition_by_chance(self, k: int, num_experts: int) -> tuple[float, float]:
        return 1 / num_experts, 1 - (1 - k / num_experts) ** k
