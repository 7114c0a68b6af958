"""The reference's measures of routing behind the adapter's functions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy import ndarray

from openmoe_reference import audit, audit_drops, audit_inference, audit_measures


class ReferenceAuditAdapter:
    """Counting, shares, spreads, drops, predictors and intervals."""

    def counted_tokens(self, ids: ndarray) -> ndarray:
        return audit.counted_tokens(ids)

    def count_choices(self, keys: ndarray, expert_index: ndarray, **sizes: int) -> ndarray:
        return audit.count_choices(keys, expert_index, **sizes)

    def choice_shares(self, counts: ndarray) -> ndarray:
        return audit.choice_shares(counts)

    def share_spread(self, counts: ndarray) -> ndarray:
        return audit.share_spread(counts)

    def mean_spread(self, counts: ndarray, *, least: int = audit.NUM_TOKENS_FILTER) -> float:
        return audit.mean_spread(counts, least=least)

    def spread_floor(self, tokens: ndarray, **options: Any) -> ndarray:
        return audit.spread_floor(tokens, **options)

    def debiased_spread(self, counts: ndarray, *, shares: ndarray | None = None) -> ndarray:
        return audit.debiased_spread(counts, shares=shares)

    def specialisation(self, counts: ndarray, *, shares: ndarray | None = None) -> ndarray:
        return audit.specialisation(counts, shares=shares)

    def top_tokens(self, counts: ndarray, **options: Any) -> ndarray:
        return audit_measures.top_tokens(counts, **options)

    def saturation(self, first: ndarray, second: ndarray) -> float:
        return audit_measures.saturation(first, second)

    def coactivation(self, expert_index: ndarray, *, num_experts: int) -> ndarray:
        return audit_measures.coactivation(expert_index, num_experts=num_experts)

    def coactivation_shares(self, counts: ndarray, tokens: ndarray) -> ndarray:
        return audit_measures.coactivation_shares(counts, tokens)

    def vocabulary_specialisation(self, counts: ndarray, **options: Any) -> ndarray:
        return audit_measures.vocabulary_specialisation(counts, **options)

    def repetition(self, expert_index: ndarray, row: ndarray) -> ndarray:
        return audit_measures.repetition(expert_index, row)

    def repetition_by_chance(self, k: int, num_experts: int) -> tuple[float, float]:
        return audit_measures.repetition_by_chance(k, num_experts)

    def load_statistics(self, loads: ndarray) -> Mapping[str, float]:
        return audit_measures.load_statistics(loads)

    def margin_codes(self, margins: ndarray) -> ndarray:
        return audit_measures.margin_codes(margins)

    def near_tie_share(self, histogram: ndarray, **options: float) -> float:
        return audit_measures.near_tie_share(histogram, **options)

    def table_divergence(self, first: ndarray, second: ndarray) -> float:
        return audit_measures.table_divergence(first, second)

    def overlap(self, first: ndarray, second: ndarray) -> ndarray:
        return audit_measures.overlap(first, second)

    def relabelling(self, first: ndarray, second: ndarray) -> ndarray:
        return audit_measures.relabelling(first, second)

    def drop_counts(self, dropped: ndarray, keys: ndarray, *, num_keys: int) -> ndarray:
        return audit_drops.drop_counts(dropped, keys, num_keys=num_keys)

    def lost_gate_share(self, gate: ndarray, dropped: ndarray) -> float:
        return audit_drops.lost_gate_share(gate, dropped)

    def replay_choices(self, expert_index: ndarray, **options: Any) -> ndarray:
        return audit_drops.replay(expert_index, **options)

    def information(self, counts: ndarray) -> tuple[float, float]:
        return audit_inference.information(counts)

    def held_out_hits(self, train: ndarray, test: ndarray) -> ndarray:
        return audit_inference.held_out_hits(train, test)

    def held_out_gain(self, by_fold: ndarray, *, level: float = 0.95) -> tuple[float, ...]:
        return audit_inference.held_out_gain(by_fold, level=level)

    def explained_by_tokens(
        self, slice_tokens: ndarray, token_counts: ndarray, slice_counts: ndarray
    ) -> tuple[float, float, float]:
        return audit_inference.explained_by_tokens(slice_tokens, token_counts, slice_counts)

    def document_fold(self, document: str, **options: int) -> int:
        return audit_inference.document_fold(document, **options)

    def document_weights(self, document: str, **options: int) -> ndarray:
        return audit_inference.document_weights(document, **options)

    def bootstrap_interval(
        self, estimate: float, replicates: ndarray, **options: float
    ) -> tuple[float, float]:
        return audit_inference.bootstrap_interval(estimate, replicates, **options)

    def jackknife_interval(
        self, estimate: float, left_out: ndarray, **options: float
    ) -> tuple[float, float]:
        return audit_inference.jackknife_interval(estimate, left_out, **options)
