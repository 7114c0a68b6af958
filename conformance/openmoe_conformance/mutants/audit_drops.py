"""Planted bugs of SPEC.md "Routing audits": choices that found no slot."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter


@mutant("AUDIT-16")
class AnyIsTheSum(ReferenceAdapter):
    """Any choice dropped is the sum of first and second ones: dropped choices, not tokens."""

    def drop_counts(self, dropped: ndarray, keys: ndarray, *, num_keys: int) -> ndarray:
        counts = super().drop_counts(dropped, keys, num_keys=num_keys)
        counts[:, 3] = counts[:, 1] + counts[:, 2]
        return counts


@mutant("AUDIT-16")
class SecondAfterAKeptFirst(ReferenceAdapter):
    """A dropped second choice counts only where the first was kept."""

    def drop_counts(self, dropped: ndarray, keys: ndarray, *, num_keys: int) -> ndarray:
        counts = super().drop_counts(dropped, keys, num_keys=num_keys)
        both = dropped[:, :2].all(axis=1) & (dropped.shape[1] > 1)
        counts[:, 2] -= super().drop_counts(both[:, None], keys, num_keys=num_keys)[:, 1]
        return counts


@mutant("AUDIT-16")
class EveryIsAny(ReferenceAdapter):
    """A token with one dropped choice counts as wholly dropped."""

    def drop_counts(self, dropped: ndarray, keys: ndarray, *, num_keys: int) -> ndarray:
        counts = super().drop_counts(dropped, keys, num_keys=num_keys)
        counts[:, 4] = counts[:, 3]
        return counts


@mutant("AUDIT-16")
class DropsOfNoKeyAreTheLasts(ReferenceAdapter):
    """A key of -1 is taken as an index from the end."""

    def drop_counts(self, dropped: ndarray, keys: ndarray, *, num_keys: int) -> ndarray:
        return super().drop_counts(dropped, keys % num_keys, num_keys=num_keys)


@mutant("AUDIT-16")
class SecondIsTheLast(ReferenceAdapter):
    """The second choice is the last one: with K = 1 the first, with K = 3 the third."""

    def drop_counts(self, dropped: ndarray, keys: ndarray, *, num_keys: int) -> ndarray:
        counts = super().drop_counts(dropped, keys, num_keys=num_keys)
        counts[:, 2] = super().drop_counts(dropped[:, -1:], keys, num_keys=num_keys)[:, 1]
        return counts


@mutant("AUDIT-17")
class MeanOfTokens(ReferenceAdapter):
    """Each token's lost part is taken first, and then their mean."""

    def lost_gate_share(self, gate: ndarray, dropped: ndarray) -> float:
        super().lost_gate_share(gate, dropped)
        each = gate.astype(np.float64)
        total = each.sum(axis=1)
        lost = (each * dropped).sum(axis=1)
        return float(np.mean(lost[total > 0] / total[total > 0]))


@mutant("AUDIT-17")
class DroppedChoicesOverAll(ReferenceAdapter):
    """Choices are counted, whatever their gates."""

    def lost_gate_share(self, gate: ndarray, dropped: ndarray) -> float:
        super().lost_gate_share(gate, dropped)
        return float(dropped.mean())


@mutant("AUDIT-17")
class LostOverKept(ReferenceAdapter):
    """The gates of dropped choices are divided by those of kept ones."""

    def lost_gate_share(self, gate: ndarray, dropped: ndarray) -> float:
        lost = super().lost_gate_share(gate, dropped)
        return lost / (1 - lost) if lost < 1 else float("inf")


@mutant("AUDIT-17")
class GatesInFloat32(ReferenceAdapter):
    """Gates are summed in the float32 that they are recorded in."""

    def lost_gate_share(self, gate: ndarray, dropped: ndarray) -> float:
        super().lost_gate_share(gate, dropped)
        return float(gate[dropped].sum(dtype=np.float32) / gate.sum(dtype=np.float32))


@mutant("AUDIT-17")
class GatesOfFirstChoices(ReferenceAdapter):
    """Only first choices have gates to lose."""

    def lost_gate_share(self, gate: ndarray, dropped: ndarray) -> float:
        first = gate[:, :1]
        return super().lost_gate_share(first, dropped[:, :1]) if first.any() else 0.0


@mutant("AUDIT-18")
class TokenByToken(ReferenceAdapter):
    """By `choices`, a token's second choice stands before the next token's first."""

    def replay_choices(self, expert_index: ndarray, **options: Any) -> ndarray:
        found = "tokens" if options["priority"] == "choices" else options["priority"]
        return super().replay_choices(expert_index, **options | {"priority": found})


@mutant("AUDIT-18")
class ChoiceByChoice(ReferenceAdapter):
    """By `tokens`, all first choices stand before all second ones."""

    def replay_choices(self, expert_index: ndarray, **options: Any) -> ndarray:
        found = "choices" if options["priority"] == "tokens" else options["priority"]
        return super().replay_choices(expert_index, **options | {"priority": found})


@mutant("AUDIT-18")
class NoExpertIsTheLast(ReferenceAdapter):
    """A choice of -1 takes a slot of the last expert."""

    def replay_choices(self, expert_index: ndarray, **options: Any) -> ndarray:
        last = options["num_experts"] - 1
        free = ~(expert_index == last).any(axis=-1)  # one choice of it a token
        one = (expert_index == -1).cumsum(axis=-1) == 1
        taken = np.where((expert_index == -1) & one & free[..., None], last, expert_index)
        return super().replay_choices(taken, **options) & (expert_index != -1)


@mutant("AUDIT-18")
class SmallestGatesFirst(ReferenceAdapter):
    """Tokens are ordered by their first gate, the smallest first."""

    def replay_choices(self, expert_index: ndarray, **options: Any) -> ndarray:
        if options.get("gate") is not None:
            options["gate"] = -options["gate"]
        return super().replay_choices(expert_index, **options)


@mutant("AUDIT-18")
class EqualGatesBackwards(ReferenceAdapter):
    """Among equal gates the later token comes first, as in a sort turned round."""

    def replay_choices(self, expert_index: ndarray, **options: Any) -> ndarray:
        if options.get("gate") is None:
            return super().replay_choices(expert_index, **options)
        turned = options | {"gate": options["gate"][:, ::-1]}
        return super().replay_choices(expert_index[:, ::-1], **turned)[:, ::-1]


@mutant("AUDIT-18")
class AllGatesOfAToken(ReferenceAdapter):
    """Tokens are ordered by the sum of their gates."""

    def replay_choices(self, expert_index: ndarray, **options: Any) -> ndarray:
        if options.get("gate") is not None:
            total = options["gate"].sum(axis=-1, keepdims=True)
            options["gate"] = np.broadcast_to(total, expert_index.shape)
        return super().replay_choices(expert_index, **options)


@mutant("AUDIT-18")
class EachRankByItsOwnGates(ReferenceAdapter):
    """Second choices are ordered by second gates."""

    def replay_choices(self, expert_index: ndarray, **options: Any) -> ndarray:
        found = super().replay_choices(expert_index, **options)
        if options.get("gate") is None:
            return found
        experts = options["num_experts"]
        for group, gates in enumerate(options["gate"]):
            before = [0] * experts
            for rank in range(expert_index.shape[-1]):
                for token in np.argsort(-gates[:, rank], kind="stable"):
                    expert = expert_index[group, token, rank]
                    if expert >= 0:
                        found[group, token, rank] = before[expert] >= options["capacity"]
                        before[expert] += 1
        return found


@mutant("AUDIT-18")
class WithoutAFirstNoSecond(ReferenceAdapter):
    """A token whose first choice is -1 has no other either."""

    def replay_choices(self, expert_index: ndarray, **options: Any) -> ndarray:
        some = np.where(expert_index[..., :1] < 0, -1, expert_index)
        return super().replay_choices(some, **options)


@mutant("AUDIT-18")
class GatesInHalfPrecision(ReferenceAdapter):
    """Gates are kept in 16 bits, and such that differ by little are equal."""

    def replay_choices(self, expert_index: ndarray, **options: Any) -> ndarray:
        if options.get("gate") is not None:
            options["gate"] = options["gate"].astype(np.float16).astype(np.float32)
        return super().replay_choices(expert_index, **options)


@mutant("AUDIT-18")
class OneSlotMore(ReferenceAdapter):
    """A choice with `capacity` others before it still finds a slot."""

    def replay_choices(self, expert_index: ndarray, **options: Any) -> ndarray:
        more = options | {"capacity": options["capacity"] + 1}
        return super().replay_choices(expert_index, **more)


@mutant("AUDIT-18")
class OneGroup(ReferenceAdapter):
    """All groups share the slots of one."""

    def replay_choices(self, expert_index: ndarray, **options: Any) -> ndarray:
        shape = expert_index.shape
        if options.get("gate") is not None:
            options["gate"] = options["gate"].reshape(1, -1, shape[-1])
        joined = expert_index.reshape(1, -1, shape[-1])
        return super().replay_choices(joined, **options).reshape(shape)
