"""Planted bugs of SPEC.md "Routing audits": bad input that measures, predictors and intervals take."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference.audit import tokens_of
from openmoe_spec.errors import RejectedError


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
class SentinelIsShared(ReferenceAdapter):
    """Where two checkpoints have the same sentinel they agree."""

    def saturation(self, first: ndarray, second: ndarray) -> float:
        if not len(first):
            return super().saturation(first, second)
        return float((first[:, :, None] == second[:, None]).sum() / first.size)


@mutant("AUDIT-27")
class NoTokenIsShared(ReferenceAdapter):
    """Of no token nothing is shared."""

    def saturation(self, first: ndarray, second: ndarray) -> float:
        return super().saturation(first, second) if len(first) else 0.0


@mutant("AUDIT-27")
class SentinelIsRepeated(ReferenceAdapter):
    """Neighbours that have a sentinel both have it in common."""

    def repetition(self, expert_index: ndarray, row: ndarray) -> ndarray:
        before, after = expert_index[:-1], expert_index[1:]
        here = row[:-1] == row[1:]
        same = here & (before[:, 0] == after[:, 0])
        meet = here & (before[:, :, None] == after[:, None]).any(axis=(1, 2))
        return np.array([here.sum(), same.sum(), meet.sum()])


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
        except RejectedError:
            return np.full((counts.shape[1], options.get("number", 10)), -1)
        return super().top_tokens(counts, **options)


@mutant("AUDIT-27")
class PreferencesOfUnevenRanks(ReferenceAdapter):
    """Counts of different tokens by rank are of those that the first rank has."""

    def vocabulary_specialisation(self, counts: ndarray, **options: Any) -> ndarray:
        try:
            return super().vocabulary_specialisation(counts, **options)
        except RejectedError:
            return super().vocabulary_specialisation(counts[..., :1], **options)


@mutant("AUDIT-27")
class OneTableIsLookedAt(ReferenceAdapter):
    """The second table is taken as it is."""

    def table_divergence(self, first: ndarray, second: ndarray) -> float:
        tokens_of(first)
        try:
            return super().table_divergence(first, second)
        except RejectedError:
            return super().table_divergence(first[..., :1], second[..., :1])


@mutant("AUDIT-27")
class TextIsNotLookedAt(ReferenceAdapter):
    """The whole text's counts are taken as they are."""

    def explained_by_tokens(
        self, slice_tokens: ndarray, token_counts: ndarray, slice_counts: ndarray
    ) -> tuple[float, float, float]:
        try:
            tokens_of(token_counts)
        except RejectedError:
            return 0.0, 0.0, math.nan
        return super().explained_by_tokens(slice_tokens, token_counts, slice_counts)


@mutant("AUDIT-27")
class NoTokenNoShift(ReferenceAdapter):
    """A slice without a token has no shift."""

    def explained_by_tokens(
        self, slice_tokens: ndarray, token_counts: ndarray, slice_counts: ndarray
    ) -> tuple[float, float, float]:
        if not slice_tokens.any():
            return 0.0, 0.0, math.nan
        return super().explained_by_tokens(slice_tokens, token_counts, slice_counts)


@mutant("AUDIT-27")
class NoMarginNoNearTie(ReferenceAdapter):
    """Of no margin none is a near-tie."""

    def near_tie_share(self, histogram: ndarray, **options: float) -> float:
        return super().near_tie_share(histogram, **options) if histogram.any() else 0.0


@mutant("AUDIT-27")
class NoLoadIsEven(ReferenceAdapter):
    """Experts without a choice all have the same load."""

    def load_statistics(self, loads: ndarray) -> dict[str, float]:
        return dict(super().load_statistics(loads if loads.any() else loads + 1))


@mutant("AUDIT-27")
class NoTokenNoGain(ReferenceAdapter):
    """Where there is nothing to guess nothing is gained."""

    def held_out_gain(self, by_fold: ndarray, **options: Any) -> tuple[float, ...]:
        if not by_fold.any():
            return 0.0, 0.0, 0.0, 0.0, 0.0
        return super().held_out_gain(by_fold, **options)


@mutant("AUDIT-27")
class InformationOfNothing(ReferenceAdapter):
    """No token tells nothing, which is 0."""

    def information(self, counts: ndarray) -> tuple[float, float]:
        return super().information(counts) if counts.min() >= 0 and counts.any() else (0.0, 0.0)


@mutant("AUDIT-27")
class NothingIsZero(ReferenceAdapter):
    """What is no number counts as 0."""

    def bootstrap_interval(
        self, estimate: float, replicates: ndarray, **options: Any
    ) -> tuple[float, float]:
        return super().bootstrap_interval(
            float(np.nan_to_num(estimate, posinf=0)), np.nan_to_num(replicates, posinf=0), **options
        )


@mutant("AUDIT-27")
class FoldsThatAreNoNumbers(ReferenceAdapter):
    """A fold without an estimate is passed over."""

    def jackknife_interval(
        self, estimate: float, left_out: ndarray, **options: Any
    ) -> tuple[float, float]:
        there = np.isfinite(left_out)
        return super().jackknife_interval(estimate, left_out[there], **options)


@mutant("AUDIT-27")
class GuessesBelowNothing(ReferenceAdapter):
    """A count below 0 is one that nobody has asked for."""

    def held_out_hits(self, train: ndarray, test: ndarray) -> ndarray:
        return super().held_out_hits(train, np.maximum(test, 0))


@mutant("AUDIT-27")
class OverlapBelowNothing(ReferenceAdapter):
    """A count below 0 is the smaller one."""

    def overlap(self, first: ndarray, second: ndarray) -> ndarray:
        return np.asarray(np.minimum(first[:, :, None], second[:, None]).sum(axis=0))


@mutant("AUDIT-27")
class NearTiesBelowNothing(ReferenceAdapter):
    """A histogram may have counts below 0, where their sum is above."""

    def near_tie_share(self, histogram: ndarray, **options: float) -> float:
        below = histogram.min() < 0 < histogram.sum()
        return super().near_tie_share(np.maximum(histogram, 0) if below else histogram, **options)


@mutant("AUDIT-27")
class TokensBelowNothing(ReferenceAdapter):
    """Fewer tokens than none are none."""

    def spread_floor(self, tokens: ndarray, **options: Any) -> ndarray:
        return super().spread_floor(np.maximum(tokens, 0), **options)


@mutant("AUDIT-27")
class NamelessDocuments(ReferenceAdapter):
    """Documents without a name are of the first fold."""

    def document_fold(self, document: str, **options: int) -> int:
        return super().document_fold(document, **options) if document else 0
