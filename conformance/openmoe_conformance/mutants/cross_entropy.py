"""Mutants of SPEC.md "Loss of the model": cross entropy of logits and its divisor."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.reference_model_adapter import Tree
from openmoe_reference import cross_entropy

REAL, AVERAGE = "NUM_REAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE"


class _Other(ReferenceAdapter):
    """The reference called with other options: `class Wrong(_Text, weights=None)`."""

    _other: Mapping[str, Any] = MappingProxyType({})

    def __init_subclass__(cls, **other: Any) -> None:
        super().__init_subclass__()
        cls._other = other


class _Text(_Other):
    def cross_entropy(self, logits: ndarray, targets: ndarray, **options: Any) -> dict[str, Any]:
        return super().cross_entropy(logits, targets, **{**options, **self._other})


class _Slope(_Other):
    def cross_entropy_gradient(self, logits: ndarray, targets: ndarray, **options: Any) -> ndarray:
        return super().cross_entropy_gradient(logits, targets, **{**options, **self._other})


# ---- cross entropy of given logits ---------------------------------------------------------


@mutant("LOSS-15")
class WeightsAreIgnored(_Text, weights=None):
    """Every position counts, whatever its weight."""


@mutant("LOSS-15")
class FactorIsIgnored(_Text, normalizing_factor=None):
    """The sum of losses is not divided."""


@mutant("LOSS-15")
class PaddingIsLeftOut(ReferenceAdapter):
    """Without weights, positions of target id 0 do not count."""

    def cross_entropy(self, logits: ndarray, targets: ndarray, **options: Any) -> dict[str, Any]:
        if options.get("weights") is None:
            options["weights"] = (targets > 0).astype(np.int32)
        return super().cross_entropy(logits, targets, **options)


@mutant("LOSS-15")
class ExponentialsOverflow(ReferenceAdapter):
    """logsumexp is computed without subtracting the largest logit."""

    def cross_entropy(self, logits: ndarray, targets: ndarray, **options: Any) -> dict[str, Any]:
        found = super().cross_entropy(logits, targets, **options)
        with np.errstate(over="ignore"):
            overflows = np.isinf(np.exp(logits)).any()
        return found | {"loss": np.float32(np.inf)} if overflows else found


@mutant("LOSS-16")
class ZLossIsMissing(_Text, z_loss=0.0):
    """There is no z-loss."""


@mutant("LOSS-16")
class ZLossIsNotSquared(ReferenceAdapter):
    """The z-loss is z x |logsumexp|."""

    def cross_entropy(self, logits: ndarray, targets: ndarray, **options: Any) -> dict[str, Any]:
        found = super().cross_entropy(logits, targets, **options)
        weights, factor = options.get("weights"), options.get("normalizing_factor") or 1.0
        each = np.abs(cross_entropy.logsumexp(logits)) * (1 if weights is None else weights)
        z_loss = options.get("z_loss", 0.0) * each.sum() / factor
        return found | {"loss": found["loss"] - found["z_loss"] + z_loss, "z_loss": z_loss}


@mutant("LOSS-16")
class ZLossIsShownAlone(ReferenceAdapter):
    """The z-loss is shown and not added to the loss."""

    def cross_entropy(self, logits: ndarray, targets: ndarray, **options: Any) -> dict[str, Any]:
        found = super().cross_entropy(logits, targets, **options)
        return found | {"loss": found["loss"] - found["z_loss"]}


@mutant("LOSS-17")
class EntropyIsNotSubtracted(ReferenceAdapter):
    """A perfect prediction of smoothed targets costs their entropy."""

    def cross_entropy(self, logits: ndarray, targets: ndarray, **options: Any) -> dict[str, Any]:
        found = super().cross_entropy(logits, targets, **options)
        share = options.get("label_smoothing", 0.0)
        _, _, least = cross_entropy.smoothing(share, logits.shape[-1], logits.dtype)
        factor = options.get("normalizing_factor") or 1.0
        return found | {"loss": found["loss"] + least * found["weight_sum"] / factor}


@mutant("LOSS-17")
class SmoothingReachesTheTarget(ReferenceAdapter):
    """s / V is spread over all ids, the target's included."""

    def cross_entropy(self, logits: ndarray, targets: ndarray, **options: Any) -> dict[str, Any]:
        others = (logits.shape[-1] - 1) / logits.shape[-1]
        share = options.get("label_smoothing", 0.0) * others
        return super().cross_entropy(logits, targets, **options | {"label_smoothing": share})


@mutant("LOSS-17")
class SmoothingIsIgnored(_Text, label_smoothing=0.0):
    """Targets are never smoothed."""


@mutant("LOSS-18")
class ZLossSlopeLacksTwo(ReferenceAdapter):
    """The derivative of the square lost its factor 2."""

    def cross_entropy_gradient(self, logits: ndarray, targets: ndarray, **options: Any) -> ndarray:
        half = options.get("z_loss", 0.0) / 2
        return super().cross_entropy_gradient(logits, targets, **options | {"z_loss": half})


@mutant("LOSS-18")
class SlopeIsNotWeighted(_Slope, weights=None):
    """The gradient of a position does not know its weight."""


@mutant("LOSS-18")
class SlopeIsNotSmoothed(_Slope, label_smoothing=0.0):
    """The gradient is that of targets that are not smoothed."""


# ---- what it is divided by -----------------------------------------------------------------


class _Normalizer(ReferenceAdapter):
    """One normalising factor, of another batch."""

    of: str

    def batch(self, batch: dict[str, ndarray]) -> dict[str, ndarray]:
        return batch

    def normalizer(self, name: str, batch: Tree) -> dict[str, Any]:
        return super().normalizer(name, self.batch(dict(batch)) if name == self.of else batch)


@mutant("LOSS-19")
class WeightsAreMadeOnes(_Normalizer):
    """Loss weights are taken for a mask: what is above 0 weighs 1."""

    of = REAL

    def batch(self, batch: dict[str, ndarray]) -> dict[str, ndarray]:
        weights = batch.get("decoder_loss_weights")
        return batch if weights is None else batch | {"decoder_loss_weights": weights > 0}


@mutant("LOSS-19")
class LossWeightsAreIgnored(_Normalizer):
    """Every position with a target weighs 1 although loss weights are given."""

    of = REAL

    def batch(self, batch: dict[str, ndarray]) -> dict[str, ndarray]:
        return {name: value for name, value in batch.items() if name != "decoder_loss_weights"}


@mutant("LOSS-19")
class AllTokensDivide(ReferenceAdapter):
    """The loss is divided by B x L, padding included."""

    def normalizer(self, name: str, batch: Tree) -> dict[str, Any]:
        found = super().normalizer(name, batch)
        return found | {"factor": batch["decoder_target_tokens"].size} if name == REAL else found


@mutant("LOSS-20")
class TotalIsReal(ReferenceAdapter):
    """NUM_TOTAL_TARGET_TOKENS counts the positions with a target."""

    def normalizer(self, name: str, batch: Tree) -> dict[str, Any]:
        found = super().normalizer(name, batch)
        if name != "NUM_TOTAL_TARGET_TOKENS":
            return found
        return found | {"factor": (batch["decoder_target_tokens"] > 0).sum()}


@mutant("LOSS-20")
class AverageOfARow(_Normalizer):
    """AVERAGE_PER_SEQUENCE takes a row for a sequence although it is packed."""

    of = AVERAGE

    def batch(self, batch: dict[str, ndarray]) -> dict[str, ndarray]:
        return {name: value for name, value in batch.items() if name != "decoder_segment_ids"}


@mutant("LOSS-20")
class AverageCountsTokens(ReferenceAdapter):
    """AVERAGE_PER_SEQUENCE divides by the sum of the old weights."""

    def normalizer(self, name: str, batch: Tree) -> dict[str, Any]:
        found = super().normalizer(name, batch)
        if name != AVERAGE:
            return found
        return found | {"factor": super().normalizer(REAL, batch)["factor"]}


# ---- what must be rejected -----------------------------------------------------------------


@mutant("LOSS-25")
class TextsAreMended(ReferenceAdapter):
    """Unknown targets are clipped, negative weights turned, shares and factors pulled into range."""

    def cross_entropy(self, logits: ndarray, targets: ndarray, **options: Any) -> dict[str, Any]:
        if options.get("weights") is not None:
            options["weights"] = np.abs(options["weights"])
        options["normalizing_factor"] = abs(options.get("normalizing_factor") or 1.0)
        options["label_smoothing"] = min(max(options.get("label_smoothing", 0.0), 0.0), 0.99)
        known = targets.clip(0, logits.shape[-1] - 1)
        return super().cross_entropy(logits, known, **options)


@mutant("LOSS-25")
class NothingDividesByOne(ReferenceAdapter):
    """Weights that add up to 0 are divided by 1."""

    def normalizer(self, name: str, batch: Tree) -> dict[str, Any]:
        try:
            return super().normalizer(name, batch)
        except ValueError:
            shape = batch["decoder_target_tokens"].shape
            return {"factor": np.float32(1), "weights": np.zeros(shape, np.float32)}
