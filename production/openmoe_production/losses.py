"""The layer's losses and metrics. Spec: LOSS-01..LOSS-12."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from openmoe_production.arguments import (
    require_floats,
    require_integers,
    require_mask,
    require_shape,
)
from openmoe_production.collectives import ALONE, Shard
from openmoe_spec.records import Decision, ExpertsChoice


def balance_loss(
    probabilities: jax.Array, expert_index: jax.Array, *, padding_mask: jax.Array | None = None
) -> jax.Array:
    """Return E^2 x mean over groups and experts of share x mean probability.

    Errors: RejectedError LOSS-13. Spec: LOSS-01..LOSS-04, LOSS-12.
    """
    require_shape("probabilities", probabilities, {"G": None, "T": None, "E": None}, "LOSS-13")
    require_floats("probabilities", probabilities, "LOSS-13")
    groups, tokens, num_experts = probabilities.shape
    require_shape("expert_index", expert_index, {"G": groups, "T": tokens, "K": None}, "LOSS-13")
    require_integers("expert_index", expert_index, "LOSS-13", least=-1, most=num_experts - 1)
    if padding_mask is not None:
        require_mask("padding_mask", padding_mask, {"G": groups, "T": tokens}, "LOSS-13")
        probabilities = jnp.where(padding_mask[..., None], probabilities, 0)
    chosen = (expert_index[..., None] == jnp.arange(num_experts)).any(axis=2)  # [G, T, E]
    share = chosen.mean(axis=1, dtype=jnp.float32)
    return jnp.mean(share * probabilities.mean(axis=1)) * num_experts**2


def router_z_loss(logits: jax.Array, *, padding_mask: jax.Array | None = None) -> jax.Array:
    """Return the mean over tokens of logsumexp(logits)^2.

    Errors: RejectedError LOSS-13. Spec: LOSS-05, LOSS-06, LOSS-12.
    """
    require_shape("logits", logits, {"G": None, "T": None, "E": None}, "LOSS-13")
    require_floats("logits", logits, "LOSS-13")
    if padding_mask is not None:
        tokens = {"G": logits.shape[0], "T": logits.shape[1]}
        require_mask("padding_mask", padding_mask, tokens, "LOSS-13")
        logits = jnp.where(padding_mask[..., None], logits, 0)
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) ** 2)


def metrics(
    logits: jax.Array,
    probabilities: jax.Array,
    decision: Decision | ExpertsChoice,
    *,
    padding_mask: jax.Array | None = None,
    scatter: bool = False,
    shard: Shard = ALONE,
) -> dict[str, jax.Array]:
    """Return the five sown scalars by name; in a `shard` of groups those of all groups.

    Shares hold equally many groups: a mean of means is the mean. Counts are added before they divide.
    Errors: RejectedError LOSS-13. Spec: LOSS-01..LOSS-11, MESH-02.
    """
    groups, tokens, num_experts = probabilities.shape
    counted = jnp.asarray(groups * tokens if padding_mask is None else padding_mask.sum())
    if isinstance(decision, ExpertsChoice):
        auxiliary_loss = jnp.float32(0)
        dispatched = jnp.asarray(decision.token_index.size)
        # Distinct tokens of a group: where a sorted list of the chosen ones changes.
        chosen = jnp.sort(decision.token_index.reshape(groups, -1), axis=-1)  # [G, E * C]
        somewhere = groups + (jnp.diff(chosen, axis=-1) != 0).sum()
        weight = decision.gate.sum()
        slots = dispatched
    else:
        auxiliary_loss = shard.mean(
            "batch",
            balance_loss(probabilities, decision.expert_index, padding_mask=padding_mask),
        )
        dispatched = decision.kept.sum()
        somewhere = decision.kept.any(axis=-1).sum()
        weight = jnp.where(decision.kept, decision.gate, 0).sum()
        slots = jnp.asarray(num_experts * decision.capacity * groups)
        if scatter and padding_mask is not None:
            counted = counted * decision.expert_index.shape[-1]  # LOSS-10: as trained
    z_loss = router_z_loss(logits, padding_mask=padding_mask)
    counted, somewhere, dispatched, slots, weight = (
        shard.sum("batch", shard.varying("batch", one))
        for one in (counted, somewhere, dispatched, slots, weight)
    )
    return {
        "auxiliary_loss": auxiliary_loss,
        "router_z_loss": shard.mean("batch", z_loss),
        "fraction_tokens_left_behind": 1 - somewhere / counted.astype(jnp.float32),
        "router_confidence": weight / dispatched.astype(jnp.float32),
        "expert_usage": dispatched / slots.astype(jnp.float32),
    }


def load(decision: Decision, *, num_experts: int, shard: Shard = ALONE) -> dict[str, jax.Array]:
    """Return int32 [E] by name: how many choices fell on each expert, and how many had a slot.

    In a `shard` of groups those of all groups. Spec: RUN-08.
    """
    chosen = decision.expert_index[..., None] == jnp.arange(num_experts)  # [G, T, K, E]
    kept = chosen & decision.kept[..., None]
    return {
        name: shard.sum("batch", found.sum(axis=(0, 1, 2), dtype=jnp.int32))
        for name, found in (("chosen", chosen), ("kept", kept))
    }
