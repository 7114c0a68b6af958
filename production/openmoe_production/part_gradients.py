"""Gradients of the parts of a model, of sum(output x cotangent), by reverse mode."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from openmoe_production import attention, cross_entropy, layers, losses, mesh_layer, routing


def cross_entropy_gradient(logits: jax.Array, targets: jax.Array, **options: Any) -> jax.Array:
    """Return the gradient [B, L, V] of the loss, its z-loss included. Spec: LOSS-18."""

    def loss(logits: jax.Array) -> jax.Array:
        return cross_entropy.cross_entropy(logits, targets, **options).loss

    return jax.grad(loss)(logits)


def layer_gradients(
    inputs: jax.Array,
    parameters: dict[str, jax.Array],
    cotangent: jax.Array,
    loss_factors: tuple[jax.Array, jax.Array],
    **options: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return gradients of inputs and weights of the layer, its weighted losses included. Spec: MOE-09."""

    def loss(x: jax.Array, weights: dict[str, jax.Array]) -> jax.Array:
        result = mesh_layer.layer(x, weights, **options)
        assert result.metrics is not None
        return (
            (result.output * cotangent).sum()
            + loss_factors[0] * result.metrics["auxiliary_loss"]
            + loss_factors[1] * result.metrics["router_z_loss"]
        )

    return jax.grad(loss, argnums=(0, 1))(inputs, parameters)


def router_gradients(
    inputs: jax.Array,
    kernel: jax.Array,
    gate_cotangent: jax.Array,
    loss_factors: tuple[jax.Array, jax.Array],
    *,
    ignore_padding: bool = False,
    **options: Any,
) -> tuple[jax.Array, jax.Array]:
    """Return gradients of inputs and kernel of the router's gates and losses. Spec: ROUTE-26."""

    def loss(x: jax.Array, w: jax.Array) -> jax.Array:
        mask = routing.padding_mask(x) if ignore_padding else None
        logits, probabilities = routing.logits_and_probabilities(x, w)
        decision = routing.decide(probabilities, padding_mask=mask, **options)
        expert = decision.expert_index
        cotangent = jnp.take_along_axis(gate_cotangent, expert.clip(0), axis=-1)
        gates = jnp.where(decision.kept, decision.gate * cotangent, 0).sum()
        balance = losses.balance_loss(probabilities, expert, padding_mask=mask)
        z = losses.router_z_loss(logits, padding_mask=mask)
        return gates + loss_factors[0] * balance + loss_factors[1] * z

    return jax.grad(loss, argnums=(0, 1))(inputs, kernel)


def attention_gradients(
    inputs: jax.Array,
    weights: dict[str, jax.Array],
    cotangent: jax.Array,
    mask: jax.Array | None = None,
    *,
    num_heads: int,
) -> dict[str, jax.Array]:
    """Return gradients `inputs`, `query`, `key`, `value` and `out`. Spec: ATTN-13."""

    def output(x: jax.Array, kernels: dict[str, jax.Array]) -> jax.Array:
        return attention.attention(x, kernels, mask, num_heads=num_heads)[0]

    return _pulled_back(output, inputs, weights, cotangent)


def feed_forward_gradients(
    inputs: jax.Array, weights: dict[str, jax.Array], cotangent: jax.Array
) -> dict[str, jax.Array]:
    """Return gradients `inputs`, `wi_0`, `wi_1` and `wo`. Spec: MODEL-08."""

    def output(x: jax.Array, kernels: dict[str, jax.Array]) -> jax.Array:
        return layers.feed_forward(x, kernels)

    return _pulled_back(output, inputs, weights, cotangent)


def norm_gradients(
    inputs: jax.Array, weights: dict[str, jax.Array], cotangent: jax.Array
) -> dict[str, jax.Array]:
    """Return gradients `inputs` and `scale`. Spec: LAYER-09."""

    def output(x: jax.Array, kernels: dict[str, jax.Array]) -> jax.Array:
        return layers.rms_norm(x, kernels["scale"])

    return _pulled_back(output, inputs, weights, cotangent)


def embedding_gradients(
    inputs: jax.Array, weights: dict[str, jax.Array], cotangent: jax.Array, *, size: int
) -> dict[str, jax.Array]:
    """Return the gradient `table` [V, D], V being `size`, for ids [B, L]. Spec: LAYER-09."""
    del weights
    table = jnp.zeros((size, cotangent.shape[-1]), jnp.float32)
    _, pull_back = jax.vjp(lambda table: layers.embed(table, inputs), table)
    return {"table": pull_back(cotangent)[0]}


def _pulled_back(
    output: Callable[..., jax.Array],
    inputs: jax.Array,
    weights: dict[str, jax.Array],
    cotangent: jax.Array,
) -> dict[str, jax.Array]:
    _, pull_back = jax.vjp(output, inputs, weights)
    d_inputs, d_weights = pull_back(cotangent)
    return {"inputs": d_inputs, **d_weights}


PARTS: dict[str, tuple[Callable[..., dict[str, jax.Array]], str]] = {
    "rms_norm": (norm_gradients, "LAYER-08"),
    "attention": (attention_gradients, "ATTN-12"),
    "feed_forward": (feed_forward_gradients, "MOE-11"),
    "embed": (embedding_gradients, "LAYER-08"),
}
"""Function and clause of each part by name."""
