"""Mutants of the scatter and the experts-choose router."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.mutants.routing import TokenMajorQueue
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import routing
from openmoe_spec.records import Decision, ExpertsChoice


@mutant("ROUTE-21")
class ScatterIsTokenMajor(ReferenceAdapter):
    """The scatter router queues token by token."""

    def decide_scatter(self, probabilities: ndarray, **options: Any) -> Decision:
        if options.get("padding_mask") is not None:
            return super().decide_scatter(probabilities, **options)
        return TokenMajorQueue().decide(probabilities, **options)


@mutant("ROUTE-22")
class ScatterDropsPadding(ReferenceAdapter):
    """The scatter router treats ignored padding as the masked router does."""

    def decide_scatter(self, probabilities: ndarray, **options: Any) -> Decision:
        return routing.decide(probabilities, **options)


@mutant("ROUTE-22")
class ScatterPaddingKeepsItsExperts(ReferenceAdapter):
    """Padding chooses by its own probabilities, and only its gate is zeroed."""

    def decide_scatter(self, probabilities: ndarray, **options: Any) -> Decision:
        mask = options.pop("padding_mask", None)
        found = super().decide_scatter(probabilities, **options)
        return found if mask is None else replace(found, gate=found.gate * mask[..., None])


@mutant("ROUTE-15")
class ScatterPaddingSortsByItsProbability(ReferenceAdapter):
    """With priorities, padding queues by the probability it had before it was masked."""

    def decide_scatter(self, probabilities: ndarray, **options: Any) -> Decision:
        mask = options.get("padding_mask")
        if mask is None or not options.get("batch_prioritized"):
            return super().decide_scatter(probabilities, **options)
        plain = super().decide_scatter(probabilities, **options)
        unmasked = routing.decide(
            probabilities, k=options["k"], capacity=1, batch_prioritized=True
        ).gate
        experts = probabilities.shape[-1]
        position = routing.decide_positions(plain.expert_index, unmasked, experts, True)
        return replace(plain, position=position, kept=position < options["capacity"])


@mutant("ROUTE-23")
class ExpertsPreferLaterTokens(ReferenceAdapter):
    """Of equally probable tokens an expert takes the last."""

    def experts_choose(self, probabilities: ndarray, **options: Any) -> ExpertsChoice:
        if options.get("padding_mask") is not None:
            return super().experts_choose(probabilities, **options)
        turned = super().experts_choose(np.ascontiguousarray(probabilities[:, ::-1]), **options)
        return replace(turned, token_index=probabilities.shape[1] - 1 - turned.token_index)


@mutant("ROUTE-23")
class ExpertsRenormalise(ReferenceAdapter):
    """An expert's gates are divided by their sum."""

    def experts_choose(self, probabilities: ndarray, **options: Any) -> ExpertsChoice:
        found = super().experts_choose(probabilities, **options)
        total = found.gate.sum(axis=-1, keepdims=True)
        return replace(found, gate=found.gate / np.where(total > 0, total, 1))


@mutant("ROUTE-24")
class ExpertsIgnoreTheMask(ReferenceAdapter):
    """Experts choose on unmasked probabilities; only the gates are masked afterwards."""

    def experts_choose(self, probabilities: ndarray, **options: Any) -> ExpertsChoice:
        mask = options.pop("padding_mask", None)
        found = super().experts_choose(probabilities, **options)
        if mask is None:
            return found
        real = np.take_along_axis(mask[:, None, :], found.token_index, axis=-1)
        return replace(found, gate=found.gate * real)


@mutant("ROUTE-25")
class ExpertsTruncateTheCapacity(ReferenceAdapter):
    """A capacity above T is cut to T without a word."""

    def experts_choose(self, probabilities: ndarray, **options: Any) -> ExpertsChoice:
        options["capacity"] = min(max(options["capacity"], 1), probabilities.shape[1])
        return super().experts_choose(probabilities, **options)
