"""Mutants of SPEC.md "Loss of the model": its parts, their sum and accuracy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.reference_model_adapter import Tree
from openmoe_reference import cross_entropy
from openmoe_spec.config import Configuration
from openmoe_spec.records import LOSSES


class _Total(ReferenceAdapter):
    """A model's loss with some of its parts changed, or of a changed configuration."""

    def fields(self, configuration: Configuration) -> dict[str, float]:
        return {}

    def changed(self, parts: dict[str, Any], batch: Tree, layers: int) -> dict[str, Any]:
        return {}

    def total_loss(self, logits: ndarray, batch: Tree, metrics: Any, configuration: Any) -> Any:
        other = replace(configuration, **self.fields(configuration))
        parts = super().total_loss(logits, batch, metrics, other)
        return parts | self.changed(parts | {"logits": logits}, batch, len(metrics))


@mutant("LOSS-21")
class CrossEntropyContainsZLoss(_Total):
    """What is reported as cross entropy contains the z-loss."""

    def changed(self, parts: dict[str, Any], batch: Tree, layers: int) -> dict[str, Any]:
        return {"cross_entropy": parts["cross_entropy"] + parts["z_loss"]}


@mutant("LOSS-21")
class TotalLacksZLoss(_Total):
    """The total is cross entropy and router losses."""

    def changed(self, parts: dict[str, Any], batch: Tree, layers: int) -> dict[str, Any]:
        return {"total": parts["total"] - parts["z_loss"]}


@mutant("LOSS-21")
class RouterLossesAreNotAdded(_Total):
    """Router losses are reported and not added."""

    def changed(self, parts: dict[str, Any], batch: Tree, layers: int) -> dict[str, Any]:
        return {"total": parts["cross_entropy"] + parts["z_loss"]}


@mutant("LOSS-21")
class ZLossOfThePaper(_Total):
    """The z-loss has the weight 1e-3, whatever the configuration says."""

    def fields(self, configuration: Configuration) -> dict[str, float]:
        return {"z_loss_factor": 1e-3}


@mutant("LOSS-22")
class AccuracyIsNotWeighted(_Total):
    """Accuracy is the share of all positions."""

    def changed(self, parts: dict[str, Any], batch: Tree, layers: int) -> dict[str, Any]:
        right = parts["logits"].argmax(axis=-1) == batch["decoder_target_tokens"]
        return {"accuracy": right.mean()}


@mutant("LOSS-22")
class LastOfEqualsWins(_Total):
    """Among equal logits the highest id is the answer."""

    def changed(self, parts: dict[str, Any], batch: Tree, layers: int) -> dict[str, Any]:
        logits = parts["logits"]
        last = logits.shape[-1] - 1 - logits[..., ::-1].argmax(axis=-1)
        _, weights = cross_entropy.normalizer("NUM_REAL_TARGET_TOKENS", batch)
        right = (last == batch["decoder_target_tokens"]) * weights
        return {"accuracy": right.sum() / weights.sum()}


@mutant("LOSS-23")
class RouterLossesAreSummed(_Total):
    """Router losses are added up over the sparse layers."""

    def changed(self, parts: dict[str, Any], batch: Tree, layers: int) -> dict[str, Any]:
        return {name: parts[name] * layers for name in ("auxiliary_loss", "router_z_loss")}


@mutant("LOSS-23")
class RouterLossesArePerToken(_Total):
    """Router losses are divided by the tokens of the batch."""

    def changed(self, parts: dict[str, Any], batch: Tree, layers: int) -> dict[str, Any]:
        tokens = batch["decoder_target_tokens"].size
        return {name: parts[name] / tokens for name in ("auxiliary_loss", "router_z_loss")}


@mutant("LOSS-23")
class FactorsAreExchanged(_Total):
    """The factor of each router loss multiplies the other."""

    def fields(self, configuration: Configuration) -> dict[str, float]:
        return {
            "auxiliary_loss_factor": configuration.router_z_loss_factor,
            "router_z_loss_factor": configuration.auxiliary_loss_factor,
        }


@mutant("LOSS-24")
class LossAlwaysEvaluates(ReferenceAdapter):
    """The loss of a training batch is that of an evaluation pass."""

    def loss(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        return super().loss(*arguments, **options | {"training": False})


@mutant("LOSS-24")
class LossAlwaysTrains(ReferenceAdapter):
    """The loss of an evaluation batch is that of a training pass."""

    def loss(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        return super().loss(*arguments, **options | {"training": True})


@mutant("LOSS-25")
class LossOfNothingIsZero(ReferenceAdapter):
    """A batch without weights has the loss 0."""

    def loss(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        try:
            return super().loss(*arguments, **options)
        except ValueError:
            return dict.fromkeys(LOSSES, np.float32(0))
