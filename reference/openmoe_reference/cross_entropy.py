"""SPEC.md "Loss of the model": cross entropy with z-loss, its divisor, and what is added to it.

Line-comparable to t5x losses.py and contrib/moe/models.py@3234135.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from openmoe_reference.arguments import check_array, check_choice, check_finite, check_within
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError

NORMALIZERS = ("NUM_REAL_TARGET_TOKENS", "NUM_TOTAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE")
"""What a loss may be divided by, by the training code's names; OpenMoE uses the first."""


class CrossEntropy(NamedTuple):
    """Cross entropy of a batch: `loss` contains `z_loss`; `weight_sum` is not divided."""

    loss: np.floating
    z_loss: np.floating
    weight_sum: np.floating


def cross_entropy(
    logits: Float[ndarray, "B L V"],
    targets: Int[ndarray, "B L"],
    *,
    weights: ndarray | None = None,
    normalizing_factor: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> CrossEntropy:
    """Return sum of weight x (cross entropy + z_loss x logsumexp^2), over the factor if given.

    Without weights every position counts, padding too; smoothing's least value is subtracted.
    Errors: RejectedError LOSS-25 on shapes, values that are not finite, targets outside 0..V-1.
    Spec: LOSS-15, LOSS-16, LOSS-17, LOSS-18. Source: losses.py::compute_weighted_cross_entropy.
    """
    sizes = check_targets(logits, targets, weights)
    check_finite("z_loss", z_loss, "LOSS-25")
    on, off, least = smoothing(label_smoothing, sizes["V"], logits.dtype)
    log_z = logsumexp(logits)
    log_softmax = logits - log_z[..., None]
    of_target = np.take_along_axis(log_softmax, targets[..., None], axis=-1)[..., 0]
    soft = (on - off) * of_target + off * log_softmax.sum(axis=-1)
    penalty = logits.dtype.type(z_loss) * log_z**2
    per_token = -soft + penalty - least
    weight_sum = logits.dtype.type(targets.size)
    if weights is not None:
        weights = weights.astype(logits.dtype)
        per_token, penalty = per_token * weights, penalty * weights
        weight_sum = weights.sum(dtype=logits.dtype)
    divisor = 1.0 if normalizing_factor is None else normalizing_factor
    divisor = logits.dtype.type(check_divisor(divisor))
    return CrossEntropy((per_token / divisor).sum(), (penalty / divisor).sum(), weight_sum)


def smoothing(
    label_smoothing: float, vocabulary: int, kind: np.dtype
) -> tuple[np.floating, np.floating, np.floating]:
    """Return the soft target of the right id, of any other id, and the least cross entropy.

    Spec: LOSS-17. Source: losses.py::compute_weighted_cross_entropy.
    """
    share = check_finite("label_smoothing", label_smoothing, "LOSS-25")
    if not 0 <= share < 1:
        raise RejectedError("label_smoothing", "LOSS-25", f"must be in [0, 1), got {share}")
    on, off = 1 - share, share / max(vocabulary - 1, 1)
    least = -(on * np.log(on) + (vocabulary - 1) * off * np.log(off + 1e-20))
    return kind.type(on), kind.type(off), kind.type(least)


def logsumexp(logits: Float[ndarray, "B L V"]) -> Float[ndarray, "B L"]:
    """Return log of the sum of exponentials over the vocabulary, without overflow."""
    largest = logits.max(axis=-1, keepdims=True)
    return np.log(np.exp(logits - largest).sum(axis=-1)) + largest[..., 0]


def all_ones_loss(
    logits: Float[ndarray, "B L V"],
    targets: Int[ndarray, "B L"],
    *,
    z_loss: float,
    label_smoothing: float,
    by_row: bool = False,
) -> np.floating:
    """Return the published port's loss: every target is 1, the ids are never looked at.

    The last position predicts nothing; rows are added up, or averaged with `by_row`.
    Spec: DIAL-02. Source: modeling_openmoe.py::OpenMoeForCausalLM._calculate_loss@95e3378e.
    """
    sizes = check_targets(logits, targets, None)
    check_finite("z_loss", z_loss, "LOSS-25")
    _, _, least = smoothing(label_smoothing, sizes["V"], logits.dtype)
    logits = logits[:, :-1]
    log_z = logsumexp(logits)
    per_token = sizes["V"] * log_z - logits.sum(axis=-1)  # -sum over V of log p
    per_token = per_token + logits.dtype.type(z_loss) * log_z**2 - least
    rows = per_token.sum(axis=-1)
    return rows.mean() if by_row else rows.sum()


def normalizer(
    name: str, batch: Mapping[str, ndarray]
) -> tuple[np.floating, Float[ndarray, "B L"]]:
    """Return what the loss is divided by, and the weight of each position.

    Without loss weights a position counts when its target is above 0.
    Errors: RejectedError LOSS-25 on an unknown name or weights that add up to 0.
    Spec: LOSS-19, LOSS-20. Source: losses.py::get_loss_normalizing_factor_and_weights.
    """
    check_choice("name", name, NORMALIZERS, "LOSS-25")
    if not isinstance(batch, Mapping) or "decoder_target_tokens" not in batch:
        raise RejectedError("batch", "LOSS-25", "must hold decoder_target_tokens")
    sizes: dict[str, int] = {}
    for feature in ("decoder_target_tokens", "decoder_segment_ids"):
        if feature in batch:
            check_array(f"batch[{feature!r}]", batch[feature], "B L", sizes, "LOSS-25", kind="i")
    if "decoder_loss_weights" in batch:
        check_weights(batch["decoder_loss_weights"], sizes)
    targets, weights = batch["decoder_target_tokens"], batch.get("decoder_loss_weights")
    weights = (targets > 0 if weights is None else weights).astype(np.float32)
    if name == "NUM_TOTAL_TARGET_TOKENS":
        return np.float32(targets.size), weights
    if name == "AVERAGE_PER_SEQUENCE":
        weights = _averaged(weights, batch.get("decoder_segment_ids"))
    return np.float32(check_divisor(weights.sum())), weights


def _averaged(weights: ndarray, segment_ids: ndarray | None) -> ndarray:
    """Return weights that add up to 1 in each sequence: a row, or a packed segment of it."""
    if segment_ids is None:
        segment_ids = np.ones(weights.shape, np.int32)
    averaged = np.zeros_like(weights)
    for row, ids in enumerate(segment_ids):
        for one in np.unique(ids[ids != 0]):
            total = weights[row, ids == one].sum()
            if total:
                averaged[row, ids == one] = weights[row, ids == one] / total
    return averaged


def total_loss(
    logits: Float[ndarray, "B L V"],
    batch: Mapping[str, ndarray],
    metrics: Mapping[int, Mapping[str, np.floating]],
    configuration: Configuration,
) -> dict[str, np.floating]:
    """Return the parts of the training loss by the names of `records.LOSSES`.

    Router losses are MEANS over the sparse layers and are not divided by tokens.
    Errors: RejectedError LOSS-25.
    Spec: LOSS-21, LOSS-22, LOSS-23, LOSS-24. Source: contrib/moe/models.py::MoeDecoderOnlyModel.
    """
    divisor, weights = normalizer("NUM_REAL_TARGET_TOKENS", batch)
    targets = batch["decoder_target_tokens"]
    text = cross_entropy(
        logits,
        targets,
        weights=weights,
        normalizing_factor=float(divisor),
        z_loss=configuration.z_loss_factor,
        label_smoothing=configuration.label_smoothing,
    )
    right = (logits.argmax(axis=-1) == targets) * weights
    parts = {
        "cross_entropy": text.loss - text.z_loss,
        "z_loss": text.z_loss,
        **router_losses(metrics, configuration, logits.dtype),
    }
    return {
        "total": sum(parts.values(), start=logits.dtype.type(0)),
        **parts,
        "weight_sum": text.weight_sum,
        "accuracy": right.sum() / text.weight_sum,
    }


def router_losses(
    metrics: Mapping[int, Mapping[str, np.floating]], configuration: Configuration, kind: np.dtype
) -> dict[str, np.floating]:
    """Return the two router losses: factor x mean over sparse layers. Spec: LOSS-23."""
    factors = {
        "auxiliary_loss": configuration.auxiliary_loss_factor,
        "router_z_loss": configuration.router_z_loss_factor,
    }
    return {
        name: kind.type(factor) * np.mean([one[name] for one in metrics.values()], dtype=kind)
        for name, factor in factors.items()
    }


def check_targets(logits: ndarray, targets: ndarray, weights: ndarray | None) -> dict[str, int]:
    """Refuse logits, targets and weights that do not belong together. Spec: LOSS-25."""
    sizes: dict[str, int] = {}
    check_array("logits", logits, "B L V", sizes, "LOSS-25")
    check_array("targets", targets, "B L", sizes, "LOSS-25", kind="i")
    check_within("targets", targets, "LOSS-25", 0, sizes["V"] - 1)
    if weights is not None:
        check_weights(weights, sizes)
    return sizes


def check_weights(weights: object, sizes: dict[str, int]) -> None:
    """Refuse weights of other shapes or below 0. Spec: LOSS-25."""
    whole = isinstance(weights, ndarray) and weights.dtype.kind in "iu"
    array = check_array("weights", weights, "B L", sizes, "LOSS-25", kind="i" if whole else "f")
    if array.min() < 0:
        raise RejectedError("weights", "LOSS-25", "must not be negative")


def check_divisor(value: object) -> float:
    """Refuse a divisor that is not a number above 0: no position has a weight. Spec: LOSS-25."""
    number = check_finite("normalizing_factor", value, "LOSS-25")
    if number <= 0:
        raise RejectedError(
            "normalizing_factor", "LOSS-25", f"must be above 0, got {number}: nothing is weighed"
        )
    return number
