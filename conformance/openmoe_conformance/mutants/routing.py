"""Mutants of SPEC.md "Routing": probabilities, selection and queues of the masked router."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import routing
from openmoe_spec.records import Decision


class Variant(ReferenceAdapter):
    """The masked router with replaceable steps; unchanged it is the reference."""

    def scores(self, probabilities: ndarray) -> ndarray:
        """Return what is ranked, best highest, equals by lower index."""
        return probabilities

    def select(self, probabilities: ndarray, k: int) -> ndarray:
        """Return the chosen experts [G, T, K]."""
        return np.argsort(-self.scores(probabilities), axis=-1, kind="stable")[..., :k]

    def queue(self, expert_index: ndarray, gate: ndarray, experts: int) -> ndarray:
        """Return positions [G, T, K]."""
        return routing.decide_positions(expert_index, gate, experts, False)

    def order(self, gate: ndarray) -> ndarray:
        """Return the order of tokens [G, T] with batch-prioritised routing."""
        return np.argsort(-gate[..., 0], axis=-1, kind="stable")

    def keep(self, position: ndarray, capacity: int) -> ndarray:
        return (position >= 0) & (position < capacity)

    def weigh(self, gate: ndarray, kept: ndarray) -> ndarray:
        del kept
        return gate

    def decide(
        self,
        probabilities: ndarray,
        *,
        k: int,
        capacity: int,
        padding_mask: ndarray | None = None,
        batch_prioritized: bool = False,
    ) -> Decision:
        routing.decide(probabilities, k=k, capacity=capacity, padding_mask=padding_mask)
        index = self.select(probabilities, k)
        gate = np.take_along_axis(probabilities, index, axis=-1)
        if padding_mask is not None:
            gate = np.where(padding_mask[..., None], gate, 0)
            index = np.where(padding_mask[..., None], index, -1)
        experts = probabilities.shape[-1]
        if batch_prioritized:
            order = self.order(gate)[..., None]
            back = order.argsort(axis=1)
            turned = np.take_along_axis(index, order, axis=1)
            position = np.take_along_axis(self.queue(turned, gate, experts), back, axis=1)
        else:
            position = self.queue(index, gate, experts)
        kept = self.keep(position, capacity)
        return Decision(index, self.weigh(gate, kept), position, kept, capacity)


# ---- probabilities -------------------------------------------------------------------------


@mutant("ROUTE-02")
class Bfloat16Operands(ReferenceAdapter):
    """The router's weights are rounded to bfloat16 and its logits too."""

    def logits(self, inputs: ndarray, kernel: ndarray, noise: ndarray | None = None) -> ndarray:
        exact = super().logits(inputs, kernel, noise)
        return exact.astype(ml_dtypes.bfloat16).astype(np.float32)


@mutant("ROUTE-02")
class RouterHasBias(ReferenceAdapter):
    """A bias of 0.01 e is added to the logits."""

    def logits(self, inputs: ndarray, kernel: ndarray, noise: ndarray | None = None) -> ndarray:
        exact = super().logits(inputs, kernel, noise)
        return exact + np.float32(0.01) * np.arange(exact.shape[-1], dtype=np.float32)


@mutant("ROUTE-03")
class Bfloat16Softmax(ReferenceAdapter):
    """Probabilities are rounded to bfloat16."""

    def softmax(self, logits: ndarray) -> ndarray:
        return super().softmax(logits).astype(ml_dtypes.bfloat16).astype(np.float32)


@mutant("ROUTE-03")
class SoftmaxOfTheTopTwo(ReferenceAdapter):
    """The softmax runs over the two largest logits only."""

    def softmax(self, logits: ndarray) -> ndarray:
        rank = np.argsort(np.argsort(-logits, axis=-1, kind="stable"), axis=-1)
        return super().softmax(np.where(rank < 2, logits, np.float32(-1e4)))


@mutant("ROUTE-16")
class JitterIsAdded(ReferenceAdapter):
    """Noise is added to the input instead of multiplied."""

    def logits(self, inputs: ndarray, kernel: ndarray, noise: ndarray | None = None) -> ndarray:
        moved = inputs if noise is None else inputs + (noise - 1)
        return super().logits(moved, kernel)


@mutant("ROUTE-16")
class JitterOnLogits(ReferenceAdapter):
    """Noise multiplies the logits, as in the published port."""

    def logits(self, inputs: ndarray, kernel: ndarray, noise: ndarray | None = None) -> ndarray:
        exact = super().logits(inputs, kernel)
        return exact if noise is None else exact * noise.mean(axis=-1, keepdims=True)


# ---- selection -----------------------------------------------------------------------------


@mutant("ROUTE-04")
class TiesToHigherIndex(Variant):
    """Equal probabilities go to the higher expert index."""

    def select(self, probabilities: ndarray, k: int) -> ndarray:
        turned = super().select(np.ascontiguousarray(probabilities[..., ::-1]), k)
        return probabilities.shape[-1] - 1 - turned


@mutant("ROUTE-04")
class IndexBiasedTies(Variant):
    """Ties are broken by subtracting 3e-7 x index, which also reorders near-ties."""

    def scores(self, probabilities: ndarray) -> ndarray:
        return probabilities - np.float32(3e-7) * np.arange(probabilities.shape[-1])


@mutant("ROUTE-05")
class RanksByLogit(ReferenceAdapter):
    """Experts are ranked by their logits, which do not underflow."""

    def route(self, inputs: ndarray, kernel: ndarray, **options: Any) -> Decision:
        found = super().route(inputs, kernel, **options)
        if options.get("ignore_padding"):
            return found
        index = np.argsort(-self.logits(inputs, kernel), axis=-1, kind="stable")
        return replace(found, expert_index=index[..., : options["k"]])


@mutant("ROUTE-06")
class ChoicesInIndexOrder(Variant):
    """A token's choices are listed by expert index."""

    def select(self, probabilities: ndarray, k: int) -> ndarray:
        return np.sort(super().select(probabilities, k), axis=-1)


@mutant("ROUTE-19")
class ApproximateTopK(Variant):
    """One token in twenty gets its third expert instead of its second."""

    def select(self, probabilities: ndarray, k: int) -> ndarray:
        index = super().select(probabilities, k)
        if 1 < k < probabilities.shape[-1]:
            index[:, 7::20, k - 1] = super().select(probabilities, k + 1)[:, 7::20, k]
        return index


@mutant("ROUTE-19")
class JitterLeftOn(ReferenceAdapter):
    """Jitter of 1e-2 is applied at evaluation."""

    def logits(self, inputs: ndarray, kernel: ndarray, noise: ndarray | None = None) -> ndarray:
        if noise is None:
            draw = np.random.default_rng(5).uniform(0.99, 1.01, inputs.shape)
            noise = draw.astype(np.float32)
        return super().logits(inputs, kernel, noise)


@mutant("ROUTE-18")
class Float16Logits(ReferenceAdapter):
    """Logits are stored in float16."""

    def logits(self, inputs: ndarray, kernel: ndarray, noise: ndarray | None = None) -> ndarray:
        return super().logits(inputs, kernel, noise).astype(np.float16).astype(np.float32)


@mutant("ROUTE-18")
class IndexBiasedRouter(IndexBiasedTies):
    """The same bias of 3e-7 x index: invisible to random tokens, seen on the ladder."""


# ---- queues --------------------------------------------------------------------------------


@mutant("ROUTE-07")
class TokenMajorQueue(Variant):
    """A token's choices queue together: token by token, not choice by choice."""

    def queue(self, expert_index: ndarray, gate: ndarray, experts: int) -> ndarray:
        groups, tokens, k = expert_index.shape
        one = expert_index.reshape(groups, tokens * k, 1)
        return super().queue(one, gate, experts).reshape(expert_index.shape)


@mutant("ROUTE-07")
class SecondChoicesBackwards(Variant):
    """Second choices queue from the last token to the first."""

    def queue(self, expert_index: ndarray, gate: ndarray, experts: int) -> ndarray:
        first = super().queue(expert_index[..., :1], gate, experts)
        turned = np.concatenate([expert_index[..., :1], expert_index[:, ::-1, 1:]], axis=-1)
        rest = super().queue(turned, gate, experts)[:, ::-1, 1:]
        return np.concatenate([first, rest], axis=-1)


@mutant("ROUTE-07")
class AlwaysPrioritises(ReferenceAdapter):
    """Batch-prioritised routing is on although it was not asked for."""

    def decide(self, probabilities: ndarray, **options: Any) -> Decision:
        return super().decide(probabilities, **options | {"batch_prioritized": True})


@mutant("ROUTE-08")
class EachChoiceHasItsOwnQueue(Variant):
    """Second choices are counted from 0 again."""

    def queue(self, expert_index: ndarray, gate: ndarray, experts: int) -> ndarray:
        columns = np.split(expert_index, expert_index.shape[-1], axis=-1)
        return np.concatenate(
            [Variant.queue(self, column, gate, experts) for column in columns], axis=-1
        )


@mutant("ROUTE-08")
class PositionsStartAtOne(Variant):
    """Positions count from 1."""

    def queue(self, expert_index: ndarray, gate: ndarray, experts: int) -> ndarray:
        return super().queue(expert_index, gate, experts) + 1


@mutant("ROUTE-09")
class DropsAboveTheCapacity(Variant):
    """Position C is kept as well."""

    def keep(self, position: ndarray, capacity: int) -> ndarray:
        return (position >= 0) & (position <= capacity)


@mutant("ROUTE-09")
class DropsWholeTokens(Variant):
    """A token with one dropped choice loses the others too."""

    def keep(self, position: ndarray, capacity: int) -> ndarray:
        kept = super().keep(position, capacity)
        return kept & kept.all(axis=-1, keepdims=True)


@mutant("ROUTE-09")
class NeverDrops(Variant):
    """Capacity is not enforced."""

    def keep(self, position: ndarray, capacity: int) -> ndarray:
        return position >= 0


@mutant("ROUTE-10")
class RenormalisedGates(Variant):
    """Gates are divided by their sum over the K choices."""

    def weigh(self, gate: ndarray, kept: ndarray) -> ndarray:
        with np.errstate(invalid="ignore"):
            return np.nan_to_num(gate / gate.sum(axis=-1, keepdims=True))


@mutant("ROUTE-10")
class RenormalisedAfterDrops(Variant):
    """What a dropped choice leaves is given to the other."""

    def weigh(self, gate: ndarray, kept: ndarray) -> ndarray:
        total = (gate * kept).sum(axis=-1, keepdims=True)
        return gate * gate.sum(axis=-1, keepdims=True) / np.where(total > 0, total, 1)


@mutant("ROUTE-17")
class GroupsShareQueues(Variant):
    """Queues run on from one group to the next."""

    def queue(self, expert_index: ndarray, gate: ndarray, experts: int) -> ndarray:
        groups, tokens, k = expert_index.shape
        flat = expert_index.reshape(1, groups * tokens, k)
        return super().queue(flat, gate, experts).reshape(expert_index.shape)
