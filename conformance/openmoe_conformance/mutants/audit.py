"""Planted bugs of SPEC.md "Routing audits": what is counted."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter


@mutant("AUDIT-01")
class PaddingCounts(ReferenceAdapter):
    """Every position of a row is counted."""

    def counted_tokens(self, ids: ndarray) -> ndarray:
        return np.ones(ids.shape, bool)


@mutant("AUDIT-01")
class WhatIsNotPaddingCounts(ReferenceAdapter):
    """Ids other than padding's are counted, so the start token is not."""

    def counted_tokens(self, ids: ndarray) -> ndarray:
        return np.asarray(ids != 0)


@mutant("AUDIT-01")
class FillersHaveAStart(ReferenceAdapter):
    """A row of padding alone counts its start token."""

    def counted_tokens(self, ids: ndarray) -> ndarray:
        counted = super().counted_tokens(ids)
        counted[:, 0] = True
        return counted


@mutant("AUDIT-01")
class FirstPaddingEndsARow(ReferenceAdapter):
    """A row ends at the first id of padding behind its start."""

    def counted_tokens(self, ids: ndarray) -> ndarray:
        within = np.cumsum(ids[:, 1:] == 0, axis=1) == 0
        return super().counted_tokens(ids) & np.insert(within, 0, values=True, axis=1)


@mutant("AUDIT-02")
class FirstChoicesAlone(ReferenceAdapter):
    """Second choices are not counted."""

    def count_choices(self, keys: ndarray, expert_index: ndarray, **sizes: int) -> ndarray:
        counts = super().count_choices(keys, expert_index, **sizes)
        counts[..., 1:] = 0
        return counts


@mutant("AUDIT-02")
class RanksByExpert(ReferenceAdapter):
    """A token's choices are sorted by expert before they are counted by rank."""

    def count_choices(self, keys: ndarray, expert_index: ndarray, **sizes: int) -> ndarray:
        return super().count_choices(keys, np.sort(expert_index, axis=1), **sizes)


@mutant("AUDIT-02")
class NoKeyIsTheLast(ReferenceAdapter):
    """A key of -1 is taken as an index from the end."""

    def count_choices(self, keys: ndarray, expert_index: ndarray, **sizes: int) -> ndarray:
        return super().count_choices(keys % sizes["num_keys"], expert_index, **sizes)


@mutant("AUDIT-02")
class RepeatedPlacesOnce(ReferenceAdapter):
    """One is added to all places at once: a place that is named twice gets one."""

    def count_choices(self, keys: ndarray, expert_index: ndarray, **sizes: int) -> ndarray:
        return np.minimum(super().count_choices(keys, expert_index, **sizes), 1)


@mutant("AUDIT-02")
class SixteenBits(ReferenceAdapter):
    """Counts are held in 16 bits."""

    def count_choices(self, keys: ndarray, expert_index: ndarray, **sizes: int) -> ndarray:
        return super().count_choices(keys, expert_index, **sizes).astype(np.uint16)


@mutant("AUDIT-02")
class ExpertsOfAByte(ReferenceAdapter):
    """A trace holds experts in a byte: the 257th is the first."""

    def count_choices(self, keys: ndarray, expert_index: ndarray, **sizes: int) -> ndarray:
        counts = super().count_choices(keys, expert_index, **sizes)
        for expert in range(256, counts.shape[1]):
            counts[:, expert - 256] += counts[:, expert]
            counts[:, expert] = 0
        return counts


@mutant("AUDIT-02")
class AfterDrops(ReferenceAdapter):
    """Choices that found no slot at twice the mean load are not counted."""

    def count_choices(self, keys: ndarray, expert_index: ndarray, **sizes: int) -> ndarray:
        counts = super().count_choices(keys, expert_index, **sizes)
        experts = sizes["num_experts"]
        dropped = self.replay_choices(
            expert_index[None],
            num_experts=experts,
            capacity=-(-2 * expert_index.size // experts),
            priority="choices",
        )[0]
        for rank in range(expert_index.shape[1]):
            lost = dropped[:, rank] & (keys >= 0)
            np.subtract.at(counts, (keys[lost], expert_index[lost, rank], rank), 1)
        return counts


@mutant("AUDIT-21")
class LargerOfTwoCalls(ReferenceAdapter):
    """Tables of calls are merged by the larger count."""

    _before = np.zeros((0, 0, 0), np.int64)

    def count_choices(self, keys: ndarray, expert_index: ndarray, **sizes: int) -> ndarray:
        counts = super().count_choices(keys, expert_index, **sizes)
        if counts.shape == self._before.shape:
            counts = np.maximum(counts, self._before)
        self._before = counts
        return counts


@mutant("AUDIT-21")
class PaddedToEight(ReferenceAdapter):
    """A call is padded to eight tokens, and the padding counts as its first one."""

    def count_choices(self, keys: ndarray, expert_index: ndarray, **sizes: int) -> ndarray:
        more = (0, -len(keys) % 8)
        # Padding repeats a token: what it adds depends on where the text is cut.
        keys = np.pad(keys, more, constant_values=keys[0])
        chosen = np.pad(expert_index, (more, (0, 0)), mode="wrap")
        chosen[len(expert_index) :] = expert_index[0]
        return super().count_choices(keys, chosen, **sizes)


@mutant("AUDIT-21")
class RemainderIsLost(ReferenceAdapter):
    """Tokens behind the last whole block of four are not counted."""

    def count_choices(self, keys: ndarray, expert_index: ndarray, **sizes: int) -> ndarray:
        kept = np.arange(len(keys)) < len(keys) // 4 * 4
        return super().count_choices(np.where(kept, keys, -1), expert_index, **sizes)
