"""Mutants of SPEC.md "Losses and metrics of the layer"."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import losses
from openmoe_spec.records import Decision, ExpertsChoice


@mutant("LOSS-01")
class BalanceTimesE(ReferenceAdapter):
    """The mean of f x P is multiplied by E instead of E^2."""

    def balance_loss(self, probabilities: ndarray, expert_index: ndarray, **options: Any) -> Any:
        full = super().balance_loss(probabilities, expert_index, **options)
        return full / probabilities.shape[-1]


@mutant("LOSS-01")
class BalanceCountsFirstChoices(ReferenceAdapter):
    """f counts first choices only, as in the Switch Transformer."""

    def balance_loss(self, probabilities: ndarray, expert_index: ndarray, **options: Any) -> Any:
        return super().balance_loss(probabilities, expert_index[..., :1], **options)


@mutant("LOSS-02")
class BalanceOverTheBatch(ReferenceAdapter):
    """f and P are averaged over all groups before they are multiplied."""

    def balance_loss(self, probabilities: ndarray, expert_index: ndarray, **options: Any) -> Any:
        super().balance_loss(probabilities, expert_index, **options)
        mask = options.get("padding_mask")
        return super().balance_loss(
            probabilities.reshape(1, -1, probabilities.shape[-1]),
            expert_index.reshape(1, -1, expert_index.shape[-1]),
            padding_mask=None if mask is None else mask.reshape(1, -1),
        )


@mutant("LOSS-03")
class BalanceDividedByK(ReferenceAdapter):
    """Perfect balance gives 1."""

    def balance_loss(self, probabilities: ndarray, expert_index: ndarray, **options: Any) -> Any:
        full = super().balance_loss(probabilities, expert_index, **options)
        return full / expert_index.shape[-1]


class _Metrics(ReferenceAdapter):
    """The layer with one metric changed."""

    def change(
        self, sown: dict[str, Any], probabilities: ndarray, decision: Any, mask: Any
    ) -> None:
        raise NotImplementedError

    def metrics(
        self,
        logits: ndarray,
        probabilities: ndarray,
        decision: Decision | ExpertsChoice,
        **options: Any,
    ) -> dict[str, Any]:
        sown = super().metrics(logits, probabilities, decision, **options)
        with np.errstate(divide="ignore", invalid="ignore"):
            self.change(sown, probabilities, decision, options.get("padding_mask"))
        return sown


@mutant("LOSS-03")
class BalanceAfterDrops(_Metrics):
    """f counts only choices that were kept."""

    def change(
        self, sown: dict[str, Any], probabilities: ndarray, decision: Any, mask: Any
    ) -> None:
        if isinstance(decision, Decision):
            kept = np.where(decision.kept, decision.expert_index, -1)
            sown["auxiliary_loss"] = self.balance_loss(probabilities, kept, padding_mask=mask)


@mutant("LOSS-04")
class PaddingLeavesTheDivisor(ReferenceAdapter):
    """Ignored padding is not counted in the means over T."""

    def balance_loss(self, probabilities: ndarray, expert_index: ndarray, **options: Any) -> Any:
        full = super().balance_loss(probabilities, expert_index, **options)
        mask = options.get("padding_mask")
        return full if mask is None else full / max(mask.mean() ** 2, 1e-6)


@mutant("LOSS-04")
class ScatterPaddingIsNotCounted(_Metrics):
    """The choices of the scatter router's ignored padding are left out of f."""

    def change(
        self, sown: dict[str, Any], probabilities: ndarray, decision: Any, mask: Any
    ) -> None:
        if isinstance(decision, Decision) and mask is not None:
            index = np.where(mask[..., None], decision.expert_index, -1)
            sown["auxiliary_loss"] = self.balance_loss(probabilities, index, padding_mask=mask)


@mutant("LOSS-05")
class ZLossIsNotSquared(ReferenceAdapter):
    """The router z-loss is the mean of |logsumexp|."""

    def router_z_loss(self, logits: ndarray, **options: Any) -> Any:
        super().router_z_loss(logits, **options)
        mask = options.get("padding_mask")
        real = logits if mask is None else logits * mask[..., None]
        return np.abs(np.logaddexp.reduce(real.astype(np.float64), axis=-1)).mean()


@mutant("LOSS-05")
class ZLossOverflows(ReferenceAdapter):
    """logsumexp is computed without subtracting the largest logit."""

    def router_z_loss(self, logits: ndarray, **options: Any) -> Any:
        super().router_z_loss(logits, **options)
        mask = options.get("padding_mask")
        real = logits if mask is None else logits * mask[..., None]
        with np.errstate(over="ignore", divide="ignore"):
            return (np.log(np.exp(real).sum(axis=-1)) ** 2).mean()


@mutant("LOSS-06")
class ZLossSkipsPadding(ReferenceAdapter):
    """Ignored padding adds nothing to the z-loss."""

    def router_z_loss(self, logits: ndarray, **options: Any) -> Any:
        full = super().router_z_loss(logits, **options)
        mask = options.get("padding_mask")
        if mask is None:
            return full
        return full - (~mask).mean() * np.log(logits.shape[-1]) ** 2


@mutant("LOSS-07")
class LeftBehindCountsChoices(_Metrics):
    """fraction_tokens_left_behind is the share of dropped choices."""

    def change(
        self, sown: dict[str, Any], probabilities: ndarray, decision: Any, mask: Any
    ) -> None:
        if isinstance(decision, Decision) and mask is None:
            sown["fraction_tokens_left_behind"] = 1 - np.asarray(decision.kept).mean()


@mutant("LOSS-08")
class ConfidencePerToken(_Metrics):
    """router_confidence is divided by the tokens instead of the kept choices."""

    def change(
        self, sown: dict[str, Any], probabilities: ndarray, decision: Any, mask: Any
    ) -> None:
        if isinstance(decision, Decision):
            dispatched = np.asarray(decision.kept).sum()
            tokens = probabilities.shape[0] * probabilities.shape[1]
            sown["router_confidence"] = sown["router_confidence"] * dispatched / tokens


@mutant("LOSS-09")
class UsageOfOneGroup(_Metrics):
    """expert_usage forgets the number of groups."""

    def change(
        self, sown: dict[str, Any], probabilities: ndarray, decision: Any, mask: Any
    ) -> None:
        if isinstance(decision, Decision):
            sown["expert_usage"] = sown["expert_usage"] * probabilities.shape[0]


@mutant("LOSS-10")
class LeftBehindCountsPadding(_Metrics):
    """Ignored padding counts as left behind."""

    def change(
        self, sown: dict[str, Any], probabilities: ndarray, decision: Any, mask: Any
    ) -> None:
        if isinstance(decision, Decision) and mask is not None:
            somewhere = np.asarray(decision.kept).any(axis=-1)
            sown["fraction_tokens_left_behind"] = 1 - somewhere.mean()


@mutant("LOSS-10")
class ScatterCountsOnce(ReferenceAdapter):
    """The scatter router's count of real tokens is mended."""

    def metrics(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        return super().metrics(*arguments, **options | {"scatter": False})


@mutant("LOSS-11")
class ExpertsChooseIsBalanced(_Metrics):
    """The experts-choose router reports the balance loss of perfect balance."""

    def change(
        self, sown: dict[str, Any], probabilities: ndarray, decision: Any, mask: Any
    ) -> None:
        if isinstance(decision, ExpertsChoice):
            sown["auxiliary_loss"] = np.float32(1)


@mutant("LOSS-12")
class BalanceIsNotDifferentiated(ReferenceAdapter):
    """The balance loss carries no gradient."""

    def route_gradients(self, *arguments: Any, **options: Any) -> dict[str, ndarray]:
        return super().route_gradients(*arguments, **options | {"auxiliary_loss_factor": 0.0})


@mutant("LOSS-12")
class ZLossGradientLacksTwo(ReferenceAdapter):
    """The derivative of the square lost its factor 2."""

    def route_gradients(self, *arguments: Any, **options: Any) -> dict[str, ndarray]:
        half = options.get("router_z_loss_factor", 0.0) / 2
        return super().route_gradients(*arguments, **options | {"router_z_loss_factor": half})


@mutant("LOSS-13")
class LossesOfNonsense(ReferenceAdapter):
    """Values that are not finite are replaced by 0."""

    def balance_loss(self, probabilities: ndarray, expert_index: ndarray, **options: Any) -> Any:
        try:
            return super().balance_loss(probabilities, expert_index, **options)
        except ValueError:
            return np.float32(0)

    def router_z_loss(self, logits: ndarray, **options: Any) -> Any:
        return losses.router_z_loss(np.nan_to_num(logits, posinf=0, neginf=0), **options)
