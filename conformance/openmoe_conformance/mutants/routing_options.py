"""Mutants of SPEC.md "Routing": padding, priorities, rejection and gradients of the masked router."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.mutants.routing import Variant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_spec.records import Decision


@mutant("ROUTE-11")
class IgnoresPaddingByDefault(ReferenceAdapter):
    """Zero rows are left out although padding is not ignored."""

    def route(self, inputs: ndarray, kernel: ndarray, **options: Any) -> Decision:
        return super().route(inputs, kernel, **options | {"ignore_padding": True})


@mutant("ROUTE-12")
class IgnoredPaddingTakesSlots(ReferenceAdapter):
    """Ignored padding is not kept, but its choices still stand in the queues."""

    def decide(self, probabilities: ndarray, **options: Any) -> Decision:
        mask = options.pop("padding_mask", None)
        found = super().decide(probabilities, **options)
        if mask is None:
            return found
        real = mask[..., None]
        return replace(
            found,
            kept=found.kept & real,
            expert_index=np.where(real, found.expert_index, -1),
        )


@mutant("ROUTE-13")
class PaddingBySum(ReferenceAdapter):
    """A row is padding when its plain sum is not above 0."""

    def padding_mask(self, inputs: ndarray) -> ndarray:
        return inputs.sum(axis=-1) > 0


@mutant("ROUTE-13")
class PaddingByThreshold(ReferenceAdapter):
    """A row is padding when its absolute sum is below 1e-6."""

    def padding_mask(self, inputs: ndarray) -> ndarray:
        return np.abs(inputs).sum(axis=-1) > 1e-6


@mutant("ROUTE-14")
class UnstablePriority(Variant):
    """Tokens of equal confidence queue from last to first."""

    def order(self, gate: ndarray) -> ndarray:
        return np.argsort(gate[..., 0], axis=-1, kind="stable")[:, ::-1]


@mutant("ROUTE-14")
class PriorityByGateSum(Variant):
    """Tokens queue by the sum of their K gates."""

    def order(self, gate: ndarray) -> ndarray:
        return np.argsort(-gate.sum(axis=-1), axis=-1, kind="stable")


@mutant("ROUTE-14")
class PriorityIsIgnored(ReferenceAdapter):
    """Batch-prioritised routing changes nothing."""

    def decide(self, probabilities: ndarray, **options: Any) -> Decision:
        return super().decide(probabilities, **options | {"batch_prioritized": False})


@mutant("ROUTE-20")
class AcceptsAnything(ReferenceAdapter):
    """Nonsense is repaired instead of rejected."""

    def decide(self, probabilities: ndarray, *, k: Any, capacity: Any, **options: Any) -> Decision:
        clean = np.abs(np.nan_to_num(np.asarray(probabilities, np.float32)))
        clean = clean.reshape(-1, *clean.shape[-2:])
        k = min(max(int(k), 1), clean.shape[-1])
        return super().decide(clean, k=k, capacity=max(int(capacity), 1), **options)


# ---- gradients -----------------------------------------------------------------------------


@mutant("ROUTE-26")
class DroppedChoicesCarryGradient(ReferenceAdapter):
    """Gradient flows through the gates of dropped choices."""

    def route_gradients(self, *arguments: Any, **options: Any) -> dict[str, ndarray]:
        return super().route_gradients(*arguments, **options | {"capacity": 10**6})


@mutant("ROUTE-26")
class GatesAreConstant(ReferenceAdapter):
    """Gates carry no gradient at all."""

    def route_gradients(self, *arguments: Any, **options: Any) -> dict[str, ndarray]:
        inputs, kernel, cotangent = arguments
        return super().route_gradients(inputs, kernel, np.zeros_like(cotangent), **options)
