"""The layer by one-hot masks, as the training code computes it: a test oracle, not for use.

It exists so that tests have a second form to compare the layer with, and the benchmark something
to compare its cost with. It builds arrays of [G, T, E, C], which the layer never does (MOE-12):
time and memory grow with the square of the tokens of a group.
"""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from openmoe_production import routing
from openmoe_production.layers import gated_mlp
from openmoe_spec.records import Decision


def moe(
    inputs: jax.Array, parameters: Mapping[str, jax.Array], *, k: int, capacity: int
) -> jax.Array:
    """Return the layer's output [G, T, D] on whole groups, with the masked router.

    Products run at JAX's default precision, so compare values on a CPU only.
    Errors: RejectedError ROUTE-20. Spec: MOE-01..MOE-06.
    """
    num_experts = parameters["router"].shape[1]
    _, probabilities = routing.logits_and_probabilities(inputs, parameters["router"])
    decision = routing.decide(probabilities, k=k, capacity=capacity)
    mask = dispatch_mask(decision, num_experts)
    combine_array = jnp.where(mask, probabilities[..., None], 0)  # [G, T, E, C]
    slots = jnp.einsum("gtd,gtec->egcd", inputs, mask.astype(inputs.dtype))
    outputs = gated_mlp(
        slots.reshape(num_experts, -1, inputs.shape[2]),
        parameters["wi_0"],
        parameters["wi_1"],
        parameters["wo"],
    ).reshape(slots.shape)
    return jnp.einsum("egcd,gtec->gtd", outputs, combine_array)


def dispatch_mask(decision: Decision, num_experts: int) -> jax.Array:
    """Return bool [G, T, E, C], True where a token fills a slot. Spec: MOE-01."""
    chosen = decision.expert_index[..., None] == jnp.arange(num_experts)  # [G, T, K, E]
    filled = chosen & decision.kept[..., None]
    # A token chooses an expert at most once, so the largest position is the only one.
    position = jnp.where(filled, decision.position[..., None], -1).max(axis=2)  # [G, T, E]
    return position[..., None] == jnp.arange(decision.capacity)
