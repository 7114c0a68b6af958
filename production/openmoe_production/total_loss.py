"""The loss of a model: of its text, of its vocabulary's z-loss, and of its routers. Spec: LOSS-19..LOSS-25."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from openmoe_production.collectives import ALONE, Shard
from openmoe_production.vocabulary_loss import text_loss
from openmoe_spec.config import Configuration

ROUTER_FACTORS = {
    "auxiliary_loss": "auxiliary_loss_factor",
    "router_z_loss": "router_z_loss_factor",
}
"""The metrics of a layer that are losses, and the fields of a configuration that weigh them."""


def total_loss(
    normed: jax.Array,
    kernel: jax.Array,
    batch: Mapping[str, jax.Array],
    metrics: Mapping[int, Mapping[str, jax.Array]],
    configuration: Configuration,
    *,
    mask: jax.Array,
    shard: Shard = ALONE,
) -> dict[str, jax.Array]:
    """Return the parts of the training loss by the names of `records.LOSSES`.

    `normed` [B, L, D] and `mask` bool [B, L] are what the output projection `kernel` [D, V] reads;
    in a `shard` they are its part, and the losses those of all rows.
    Errors: RejectedError LOSS-25. Spec: LOSS-21..LOSS-24, MESH-05.
    """
    text = text_loss(
        normed,
        kernel,
        batch,
        mask=mask,
        z_loss_factor=configuration.z_loss_factor,
        label_smoothing=configuration.label_smoothing,
        shard=shard,
    )
    # Only sums are differentiated: the parts of the text's loss are told beside it.
    of_routers = {
        name: getattr(configuration, factor)
        * jnp.stack([one[name] for one in metrics.values()]).mean()
        for name, factor in ROUTER_FACTORS.items()
    }
    total = text["loss"] + sum(of_routers.values(), start=jnp.float32(0))
    of_text = ("cross_entropy", "z_loss")
    counts = ("weight_sum", "accuracy")
    return {
        "total": total,
        **{name: text[name] for name in of_text},
        **of_routers,
        **{name: text[name] for name in counts},
    }
