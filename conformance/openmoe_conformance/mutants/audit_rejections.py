"""Planted bugs of SPEC.md "Routing audits": bad input that is taken."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter


@mutant("AUDIT-27")
class SentinelIsNoToken(ReferenceAdapter):
    """A token with an expert that there is not is passed over in silence."""

    def count_choices(self, keys: ndarray, expert_index: ndarray, **sizes: int) -> ndarray:
        within = (expert_index >= 0) & (expert_index < sizes["num_experts"])
        legal = np.asarray(within.all(axis=1))
        some = np.arange(expert_index.shape[1], dtype=expert_index.dtype)
        chosen = np.where(legal[:, None], expert_index, some)
        return super().count_choices(np.where(legal, keys, -1), chosen, **sizes)


@mutant("AUDIT-27")
class SentinelIsCounted(ReferenceAdapter):
    """255 is an expert where a table has no more: it becomes the last one's."""

    def count_choices(self, keys: ndarray, expert_index: ndarray, **sizes: int) -> ndarray:
        most = max(sizes["num_experts"], 256)
        counts = super().count_choices(keys, expert_index, **sizes | {"num_experts": most})
        return counts[:, : sizes["num_experts"]]


def _without_repeats(expert_index: ndarray) -> ndarray:
    """Return choices with an expert's second mention turned into another expert."""
    found = expert_index.copy()
    for token in found.reshape(-1, found.shape[-1]):
        for rank in range(1, len(token)):
            while token[rank] != -1 and token[rank] in token[:rank]:
                token[rank] = (token[rank] + 1) % 4
    return found


@mutant("AUDIT-27")
class AnExpertTwiceIsCounted(ReferenceAdapter):
    """A token may name an expert twice."""

    def count_choices(self, keys: ndarray, expert_index: ndarray, **sizes: int) -> ndarray:
        return super().count_choices(keys, _without_repeats(expert_index), **sizes)


@mutant("AUDIT-27")
class AnExpertTwiceIsReplayed(ReferenceAdapter):
    """A recorded token may name an expert twice."""

    def replay_choices(self, expert_index: ndarray, **options: Any) -> ndarray:
        return super().replay_choices(_without_repeats(expert_index), **options)


@mutant("AUDIT-27")
class SentinelIsReplayed(ReferenceAdapter):
    """An expert that there is not takes no slot, as -1."""

    def replay_choices(self, expert_index: ndarray, **options: Any) -> ndarray:
        legal = (expert_index >= 0) & (expert_index < options["num_experts"])
        return super().replay_choices(np.where(legal, expert_index, -1), **options)


@mutant("AUDIT-27")
class KeysBelowNothing(ReferenceAdapter):
    """Every key below 0 is one that is not counted."""

    def count_choices(self, keys: ndarray, expert_index: ndarray, **sizes: int) -> ndarray:
        return super().count_choices(np.maximum(keys, -1), expert_index, **sizes)


@mutant("AUDIT-27")
class DropsBeyondTheLastKey(ReferenceAdapter):
    """A drop of a key beyond the last one is passed over in silence."""

    def drop_counts(self, dropped: ndarray, keys: ndarray, *, num_keys: int) -> ndarray:
        known = np.where(keys < num_keys, keys, -1)
        return super().drop_counts(dropped, known, num_keys=num_keys)


@mutant("AUDIT-27")
class IdsBelowNothing(ReferenceAdapter):
    """An id of -1 is padding."""

    def counted_tokens(self, ids: ndarray) -> ndarray:
        return super().counted_tokens(np.maximum(ids, 0))


def _shares_of_any(counts: ndarray) -> ndarray:
    chosen = counts.sum(axis=-1)
    return np.asarray(chosen / np.maximum(chosen.sum(axis=-1, keepdims=True), 1))


@mutant("AUDIT-27")
class SharesOfUnequalRanks(ReferenceAdapter):
    """Shares are of all choices there are, though ranks are of different tokens."""

    def choice_shares(self, counts: ndarray) -> ndarray:
        some = counts.sum(axis=(-2, -1), keepdims=True)[..., 0] > 0
        return np.where(some, _shares_of_any(counts), np.nan)


@mutant("AUDIT-27")
class SpreadOfUnequalRanks(ReferenceAdapter):
    """The spread is of all choices there are, though ranks are of different tokens."""

    def share_spread(self, counts: ndarray) -> ndarray:
        some = counts.sum(axis=(-2, -1)) > 0
        return np.where(some, _shares_of_any(counts).std(axis=-1), np.nan)


@mutant("AUDIT-27")
class SecondChoicesAreNotLookedAt(ReferenceAdapter):
    """Where ranks are of different tokens, first choices stand for all."""

    def debiased_spread(self, counts: ndarray, *, shares: ndarray | None = None) -> ndarray:
        ranks = counts.sum(axis=-2)
        if (ranks != ranks[..., :1]).any():
            counts = counts[..., :1]
        return super().debiased_spread(counts, shares=shares)


@mutant("AUDIT-27")
class GatesThatAreNone(ReferenceAdapter):
    """A gate that is not a number counts nothing."""

    def lost_gate_share(self, gate: ndarray, dropped: ndarray) -> float:
        return super().lost_gate_share(np.nan_to_num(gate), dropped)


@mutant("AUDIT-27")
class GatesBelowNothing(ReferenceAdapter):
    """A gate below 0 counts as 0."""

    def lost_gate_share(self, gate: ndarray, dropped: ndarray) -> float:
        some = np.maximum(gate, 0) if np.isfinite(gate).all() else gate
        return super().lost_gate_share(some, dropped)


@mutant("AUDIT-27")
class CountsBelowNothing(ReferenceAdapter):
    """Counts below 0 are summed like others."""

    def choice_shares(self, counts: ndarray) -> ndarray:
        ranks = counts.sum(axis=-2)
        alike = (ranks == ranks[..., :1]).all() and counts.sum(axis=-1).max() <= ranks.max()
        if alike and counts.min() < 0:
            return _shares_of_any(counts)
        return super().choice_shares(counts)


@mutant("AUDIT-27")
class NothingIsLostOfNothing(ReferenceAdapter):
    """Where gates add up to nothing, nothing is lost."""

    def lost_gate_share(self, gate: ndarray, dropped: ndarray) -> float:
        return super().lost_gate_share(gate, dropped) if gate.any() else 0.0


@mutant("AUDIT-27")
class GatesWithoutOrder(ReferenceAdapter):
    """A gate that is not a number stands where a sort puts it."""

    def replay_choices(self, expert_index: ndarray, **options: Any) -> ndarray:
        if options.get("gate") is not None:
            options["gate"] = np.nan_to_num(options["gate"])
        return super().replay_choices(expert_index, **options)


@mutant("AUDIT-27")
class SharesThatAreNone(ReferenceAdapter):
    """A floor around shares that are no numbers is none."""

    def spread_floor(self, tokens: ndarray, **options: Any) -> ndarray:
        shares = options.get("shares")
        if shares is not None and not np.isfinite(shares).all():
            return np.full(tokens.shape, np.nan)
        return super().spread_floor(tokens, **options)


@mutant("AUDIT-27")
class CentreThatIsNone(ReferenceAdapter):
    """A spread around shares that are no numbers is around even ones."""

    def debiased_spread(self, counts: ndarray, *, shares: ndarray | None = None) -> ndarray:
        known = shares is not None and bool(np.isfinite(shares).all())
        return super().debiased_spread(counts, shares=shares if known else None)
