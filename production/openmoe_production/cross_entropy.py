"""Cross entropy with z-loss of given logits, and what losses are divided by. Spec: LOSS-15..LOSS-20, LOSS-25."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from openmoe_production.arguments import (
    require_factor,
    require_floats,
    require_integers,
    require_shape,
)
from openmoe_spec.errors import RejectedError

NORMALIZERS = ("NUM_REAL_TARGET_TOKENS", "NUM_TOTAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE")
"""What a loss may be divided by, by the training code's names; OpenMoE uses the first."""


class CrossEntropy(NamedTuple):
    """Cross entropy of a batch: `loss` contains `z_loss`; `weight_sum` is not divided."""

    loss: jax.Array
    z_loss: jax.Array
    weight_sum: jax.Array


def cross_entropy(
    logits: jax.Array,
    targets: jax.Array,
    *,
    weights: jax.Array | None = None,
    normalizing_factor: jax.Array | float | None = None,
    z_loss: jax.Array | float = 0.0,
    label_smoothing: jax.Array | float = 0.0,
) -> CrossEntropy:
    """Return the loss of logits [B, L, V], weighted by [B, L] and over the factor where given.

    Differentiate it freely: only `logits` are kept for the backward pass, no other array of V.
    Errors: RejectedError LOSS-25. Spec: LOSS-15..LOSS-18.
    """
    require_targets(logits, targets, weights)
    require_options(normalizing_factor, z_loss, label_smoothing)
    per_token, penalty = jax.checkpoint(_per_token)(logits, targets, z_loss, label_smoothing)
    weight_sum = jnp.float32(targets.size)
    if weights is not None:
        per_token, penalty = per_token * weights, penalty * weights
        weight_sum = weights.sum(dtype=jnp.float32)
    divisor = 1.0 if normalizing_factor is None else normalizing_factor
    return CrossEntropy((per_token / divisor).sum(), (penalty / divisor).sum(), weight_sum)


def _per_token(
    logits: jax.Array, targets: jax.Array, z_loss: Any, label_smoothing: Any
) -> tuple[jax.Array, jax.Array]:
    """Return loss and z-loss [B, L] of each position. Spec: LOSS-15, LOSS-16, LOSS-17."""
    vocabulary = logits.shape[-1]
    log_z = jax.nn.logsumexp(logits, axis=-1)
    log_softmax = logits - log_z[..., None]
    on, off = 1 - label_smoothing, label_smoothing / max(vocabulary - 1, 1)
    # By comparison: a gather's transpose would add floats by index.
    target = jnp.where(targets[..., None] == jnp.arange(vocabulary), on, off)
    least = -(on * jnp.log(on) + (vocabulary - 1) * off * jnp.log(off + 1e-20))
    penalty = z_loss * log_z**2
    return penalty - (target * log_softmax).sum(axis=-1) - least, penalty


def normalizer(name: str, batch: Mapping[str, jax.Array]) -> tuple[jax.Array, jax.Array]:
    """Return what a loss is divided by, and the weight [B, L] of each position.

    Errors: RejectedError LOSS-25. Spec: LOSS-19, LOSS-20.
    """
    if name not in NORMALIZERS:
        raise RejectedError("name", "LOSS-25", f"must be one of {NORMALIZERS}, got {name!r}")
    if "decoder_target_tokens" not in batch:
        raise RejectedError("batch", "LOSS-25", "must hold decoder_target_tokens")
    targets = batch["decoder_target_tokens"]
    weights = jnp.asarray(batch.get("decoder_loss_weights", targets > 0)).astype(jnp.float32)
    require_floats("decoder_loss_weights", weights, "LOSS-25", least=0)
    if name == "NUM_TOTAL_TARGET_TOKENS":
        return jnp.float32(targets.size), weights
    if name == "AVERAGE_PER_SEQUENCE":
        weights = _averaged(weights, batch.get("decoder_segment_ids"))
    factor = weights.sum()
    _require_above_zero("decoder_loss_weights", factor)
    return factor, weights


def _averaged(weights: jax.Array, segment_ids: jax.Array | None) -> jax.Array:
    """Return weights that add up to 1 in each sequence: a row, or a packed segment of it."""
    if segment_ids is None:
        totals = weights.sum(axis=1, keepdims=True)
    else:
        weights = jnp.where(segment_ids != 0, weights, 0)
        same = segment_ids[:, :, None] == segment_ids[:, None, :]
        totals = jnp.where(same, weights[:, None, :], 0).sum(axis=-1)
    return jnp.where(totals > 0, weights / totals, 0)


def require_targets(logits: Any, targets: Any, weights: Any) -> None:
    """Refuse logits, targets and weights that do not belong together. Spec: LOSS-25."""
    require_shape("logits", logits, {"B": None, "L": None, "V": None}, "LOSS-25")
    require_floats("logits", logits, "LOSS-25")
    shape = dict(zip("BL", logits.shape, strict=False))
    require_shape("targets", targets, shape, "LOSS-25")
    require_integers("targets", targets, "LOSS-25", least=0, most=logits.shape[2] - 1)
    if weights is None:
        return
    require_shape("weights", weights, shape, "LOSS-25")
    if jnp.issubdtype(weights.dtype, jnp.integer):
        require_integers("weights", weights, "LOSS-25", least=0, most=2**31 - 1)
    else:
        require_floats("weights", weights, "LOSS-25", least=0)


def require_options(normalizing_factor: Any, z_loss: Any, label_smoothing: Any) -> None:
    """Refuse, outside a trace, numbers that a loss cannot have. Spec: LOSS-25."""
    if normalizing_factor is not None:
        _require_above_zero("normalizing_factor", normalizing_factor)
    if not isinstance(z_loss, jax.core.Tracer) and not np.isfinite(z_loss):
        raise RejectedError("z_loss", "LOSS-25", f"must be a finite number, got {z_loss!r}")
    if not isinstance(label_smoothing, jax.core.Tracer) and not 0 <= label_smoothing < 1:
        raise RejectedError(
            "label_smoothing", "LOSS-25", f"must be in [0, 1), got {label_smoothing}"
        )


def _require_above_zero(name: str, value: Any) -> None:
    if not isinstance(value, jax.core.Tracer):
        require_factor(name, np.asarray(value).item(), "LOSS-25")
