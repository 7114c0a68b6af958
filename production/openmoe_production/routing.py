"""Routing on an accelerator: float32 probabilities, then integer decisions. Spec: ROUTE-01..ROUTE-27."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import jax
import jax.numpy as jnp
from jax import lax

from openmoe_production.arguments import (
    require_count,
    require_floats,
    require_mask,
    require_shape,
)
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Decision, ExpertsChoice

jax.tree_util.register_dataclass(
    Decision,
    data_fields=["expert_index", "gate", "position", "kept"],
    meta_fields=["capacity"],
)
jax.tree_util.register_dataclass(ExpertsChoice, data_fields=["token_index", "gate"], meta_fields=[])


_SMALLEST = 2.0**-126
"""Least normal float32: what is below counts as 0, as where the weights were trained (NUM-04)."""


def logits_and_probabilities(
    inputs: jax.Array, kernel: jax.Array, *, noise: jax.Array | None = None
) -> tuple[jax.Array, jax.Array]:
    """Return float32 logits and softmax, both [G, T, E], of inputs [G, T, D] and kernel [D, E].

    On a CPU the bits of a group do not depend on how many groups share the call.
    Errors: RejectedError ROUTE-20.
    Spec: ROUTE-02, ROUTE-03, ROUTE-16, ROUTE-17, ROUTE-27.
    """
    require_shape("inputs", inputs, {"G": None, "T": None, "D": None}, "ROUTE-20")
    require_shape("kernel", kernel, {"D": inputs.shape[2], "E": None}, "ROUTE-20")
    require_floats("inputs", inputs, "ROUTE-20")
    require_floats("kernel", kernel, "ROUTE-20")
    x = inputs.astype(jnp.float32)
    if noise is not None:
        require_shape("noise", noise, dict(zip("GTD", inputs.shape, strict=True)), "ROUTE-20")
        require_floats("noise", noise, "ROUTE-20")
        x = x * noise.astype(jnp.float32)
    weights = kernel.astype(jnp.float32)

    def one_group(group: jax.Array) -> tuple[jax.Array, jax.Array]:
        # HIGHEST: the default rounds operands to bfloat16 on TPU and to TF32 on GPU.
        logits = jnp.einsum(
            "td,de->te",
            group,
            weights,
            precision=lax.Precision.HIGHEST,
            preferred_element_type=jnp.float32,
        )
        return logits, jax.nn.softmax(logits, axis=-1)

    return _each_group(one_group, x)


def _each_group(
    function: Callable[[jax.Array], tuple[jax.Array, jax.Array]], x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    # Batching groups into one product lets XLA's CPU code differ with their number, by an ulp.
    if jax.default_backend() == "cpu":
        return lax.map(function, x)
    return jax.vmap(function)(x)


def padding_mask(inputs: jax.Array) -> jax.Array:
    """Return bool [G, T], True for tokens with any non-zero input. Spec: ROUTE-13."""
    return (jnp.abs(inputs.astype(jnp.float32)) >= _SMALLEST).any(axis=-1)


def decide(
    probabilities: jax.Array,
    *,
    k: int,
    capacity: int,
    padding_mask: jax.Array | None = None,
    batch_prioritized: bool = False,
) -> Decision:
    """Return the masked router's decision on float32 probabilities [G, T, E].

    Errors: RejectedError ROUTE-20. Spec: ROUTE-04..ROUTE-15.
    """
    _require_decidable(probabilities, k, capacity, padding_mask)
    expert_index = _largest(probabilities, k)
    gate = _gates(probabilities, expert_index)
    if padding_mask is not None:
        expert_index = jnp.where(padding_mask[..., None], expert_index, -1)
        gate = jnp.where(padding_mask[..., None], gate, 0)
    position = _positions(expert_index, gate, probabilities.shape[-1], batch_prioritized)
    kept = (position >= 0) & (position < capacity)
    return Decision(expert_index, gate, position, kept, capacity)


def decide_scatter(
    probabilities: jax.Array,
    *,
    k: int,
    capacity: int,
    padding_mask: jax.Array | None = None,
    batch_prioritized: bool = False,
) -> Decision:
    """Return the scatter router's decision. Errors: RejectedError ROUTE-20. Spec: ROUTE-21, ROUTE-22."""
    _require_decidable(probabilities, k, capacity, padding_mask)
    return decide(
        _masked(probabilities, padding_mask),
        k=k,
        capacity=capacity,
        batch_prioritized=batch_prioritized,
    )


def with_gates(
    decision: Decision, probabilities: jax.Array, *, padding_mask: jax.Array | None = None
) -> Decision:
    """Return the same places with the gates of these probabilities [G, T, E]. Spec: JUDGE-04."""
    weights = _masked(probabilities, padding_mask)
    return replace(decision, gate=_gates(weights, jnp.asarray(decision.expert_index)))


def experts_choose(
    probabilities: jax.Array, *, capacity: int, padding_mask: jax.Array | None = None
) -> ExpertsChoice:
    """Return each expert's `capacity` best tokens. Errors: RejectedError ROUTE-20, ROUTE-25.

    Spec: ROUTE-23, ROUTE-24, ROUTE-25.
    """
    _require_decidable(probabilities, 1, capacity, padding_mask)
    require_count("capacity", capacity, "ROUTE-25", most=probabilities.shape[1])
    by_expert = _masked(probabilities, padding_mask).swapaxes(1, 2)  # [G, E, T]
    token_index = _largest(by_expert, capacity)  # [G, E, C]
    # One row of the experts' choice may be long, so its gates are gathered; the values equal
    # those of the one-hot sum, and the layer differentiates `moe.ways_of_experts` instead.
    gate = jnp.take_along_axis(by_expert, token_index, axis=-1)
    return ExpertsChoice(token_index, gate)


def _masked(probabilities: jax.Array, padding_mask: jax.Array | None) -> jax.Array:
    if padding_mask is None:
        return probabilities
    return probabilities * padding_mask[..., None].astype(probabilities.dtype)


def _require_decidable(
    probabilities: jax.Array, k: int, capacity: int, padding_mask: jax.Array | None
) -> None:
    require_shape("probabilities", probabilities, {"G": None, "T": None, "E": None}, "ROUTE-20")
    if probabilities.dtype != jnp.float32:
        raise RejectedError(
            "probabilities", "ROUTE-20", f"must be float32, got {probabilities.dtype}"
        )
    require_floats("probabilities", probabilities, "ROUTE-20", least=0)
    require_count("k", k, "ROUTE-20", most=probabilities.shape[-1])
    require_count("capacity", capacity, "ROUTE-20")
    if padding_mask is not None:
        tokens = {"G": probabilities.shape[0], "T": probabilities.shape[1]}
        require_mask("padding_mask", padding_mask, tokens, "ROUTE-20")


def _largest(values: jax.Array, count: int) -> jax.Array:
    # top_k gives equals in index order, but ranks 0.0 above -0.0, and subnormals where a device
    # keeps them (NUM-04): make all zeros alike.
    return lax.top_k(jnp.where(values < _SMALLEST, 0, values), count)[1]


def _gates(probabilities: jax.Array, expert_index: jax.Array) -> jax.Array:
    # A one-hot sum: exact forward (one term is not zero), and its transpose is elementwise,
    # where the transpose of a gather would be a floating-point scatter.
    chosen = expert_index[..., None] == jnp.arange(probabilities.shape[-1])  # [G, T, K, E]
    return jnp.where(chosen, probabilities[..., None, :], 0).sum(axis=-1)


def _positions(
    expert_index: jax.Array, gate: jax.Array, num_experts: int, batch_prioritized: bool
) -> jax.Array:
    groups, tokens, k = expert_index.shape
    if batch_prioritized:
        order = jnp.argsort(-lax.stop_gradient(gate[..., 0]), axis=-1, stable=True)
        expert_index = jnp.take_along_axis(expert_index, order[..., None], axis=1)
    queue = expert_index.swapaxes(1, 2).reshape(groups, 1, k * tokens)  # choice-major
    chosen = queue == jnp.arange(num_experts)[:, None]  # [G, E, K * T]
    rank = jnp.cumsum(chosen.astype(jnp.int32), axis=-1)
    # Summing over E picks the one count that belongs to the choice; -1 where there is none.
    position = jnp.where(chosen, rank, 0).sum(axis=1) - 1  # [G, K * T]
    position = position.reshape(groups, k, tokens).swapaxes(1, 2)
    if batch_prioritized:
        inverse = jnp.argsort(order, axis=-1)
        position = jnp.take_along_axis(position, inverse[..., None], axis=1)
    return position
