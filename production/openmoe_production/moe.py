"""The mixture-of-experts layer by indices: gathers both ways, one integer scatter, no masks.

With J ways for a token into the experts (K choices; E when experts choose), `slot` [G, T, J] says
where each way leads and `inverse` [G, E * C] which way, t * J + j, fills a slot. Both are
integers; out-of-range values mean "nowhere". Forward and backward only gather by them, so no
floating-point value is ever scattered or added in an order that a device may choose.
Spec: MOE-01..MOE-14.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from openmoe_production import grouping, losses, routing
from openmoe_production.arguments import require_shape
from openmoe_production.collectives import ALONE, Shard
from openmoe_production.dropout import Dropout
from openmoe_production.layers import DTYPES, gated_mlp
from openmoe_production.moe_arguments import (
    require_forced,
    require_layer,
    require_names,
    require_record,
)
from openmoe_spec.records import Decision, ExpertsChoice, LayerResult

jax.tree_util.register_dataclass(
    LayerResult, data_fields=["output", "decision", "metrics", "logits"], meta_fields=[]
)


def moe(
    inputs: jax.Array,
    parameters: Mapping[str, jax.Array],
    *,
    k: int,
    capacity: int,
    router: str = "masked",
    ignore_padding: bool = False,
    batch_prioritized: bool = False,
    expert_dtype: str = "float32",
    noise: jax.Array | None = None,
    decision: Decision | None = None,
    dropout: Dropout | None = None,
    shard: Shard = ALONE,
) -> LayerResult:
    """Apply the layer to whole groups [G, T, D]; parameters as in `records.PARAMETERS`.

    In a `shard` the groups are its own, experts and their widths its part, the router is whole;
    metrics are those of all groups.
    A given `decision` of a tokens-choose router is used instead of this router's own, with the
    gates of these probabilities (JUDGE-04). `dropout` is of the experts' hidden values.
    Pure and static in shape: `jit` and differentiate it freely.
    Errors: RejectedError MOE-11 on parameters, ROUTE-20 on what the router refuses.
    Spec: MOE-01..MOE-14, MESH-01..MESH-03.
    """
    require_layer(inputs, parameters, router, expert_dtype, shares=shard.size("expert"))
    num_experts = parameters["router"].shape[1]
    mask = routing.padding_mask(inputs) if ignore_padding else None
    logits, probabilities = routing.logits_and_probabilities(
        inputs, parameters["router"], noise=noise
    )
    record: Decision | ExpertsChoice
    if router == "experts_choose":
        record = routing.experts_choose(probabilities, capacity=capacity, padding_mask=mask)
        slot, inverse, weight = ways_of_experts(record, probabilities, mask)
    else:
        rule = routing.decide if router == "masked" else routing.decide_scatter
        if decision is not None:
            require_forced(decision, (*inputs.shape[:2], k), capacity)
            record = routing.with_gates(decision, probabilities, padding_mask=mask)
        else:
            record = rule(
                probabilities,
                k=k,
                capacity=capacity,
                padding_mask=mask,
                batch_prioritized=batch_prioritized,
            )
        slot, inverse = ways_of_tokens(record, num_experts)
        weight = jnp.where(record.kept, record.gate, 0)
    # Shares of one width take parts of it through the exchange, not each the whole.
    part = shard.part("expert_mlp", inputs)
    expert_inputs = dispatch(part, slot, inverse)  # [G, E * C, D]
    expert_outputs = _experts(expert_inputs, parameters, DTYPES[expert_dtype], dropout, shard)
    weight = shard.varying("expert_mlp", weight)
    output = combine(expert_outputs.astype(inputs.dtype), weight, slot, inverse)
    output = shard.whole("expert_mlp", output)
    scalars = losses.metrics(
        logits,
        probabilities,
        record,
        padding_mask=mask,
        scatter=router == "scatter",
        shard=shard,
    )
    return LayerResult(output, record, scalars, logits)


def moe_layer(
    inputs: jax.Array,
    parameters: Mapping[str, jax.Array],
    *,
    training: bool,
    k: int = 2,
    train_capacity_factor: float = 1.25,
    eval_capacity_factor: float = 2.0,
    min_expert_capacity: int = 4,
    max_group_size: int = 4096,
    num_expert_replicas: int = 1,
    router: str = "masked",
    ignore_padding: bool = False,
    batch_prioritized: bool = False,
    expert_dtype: str = "float32",
    decision: Decision | None = None,
    dropout: Dropout | None = None,
    shard: Shard = ALONE,
) -> LayerResult:
    """Apply the layer to a batch [B, L, D], grouped as a training run with R replicas did.

    R is an input, never read off the devices at hand. Decision and metrics are of whole groups. In a
    `shard` the rows are its own, and groups those of the whole batch.
    Errors: RejectedError GROUP-09, MOE-11, ROUTE-20, MESH-06 when a share has no whole groups.
    Spec: GROUP-01..GROUP-08, MOE-07, MOE-08, MESH-01.
    """
    require_shape("inputs", inputs, {"B": None, "L": None, "D": None}, "MOE-11")
    require_names(parameters)
    require_shape("parameters['router']", parameters["router"], {"D": None, "E": None}, "MOE-11")
    batch, length, _ = inputs.shape
    num_experts = parameters["router"].shape[1]
    padded, group_size = grouping.share_of_groups(
        batch,
        length,
        shares=shard.size("batch"),
        max_group_size=max_group_size,
        num_experts=num_experts,
        num_expert_replicas=num_expert_replicas,
    )
    capacity = grouping.expert_capacity(
        group_size,
        num_experts=num_experts,
        capacity_factor=train_capacity_factor if training else eval_capacity_factor,
        min_expert_capacity=min_expert_capacity,
    )
    result = moe(
        grouping.to_groups(inputs, padded=padded, group_size=group_size),
        parameters,
        k=k,
        capacity=capacity,
        router=router,
        ignore_padding=ignore_padding,
        batch_prioritized=batch_prioritized,
        expert_dtype=expert_dtype,
        decision=decision,
        dropout=dropout,
        shard=shard,
    )
    output = grouping.from_groups(result.output, padded=padded, shape=(batch, length))
    return replace(result, output=output)


def _experts(
    slots: jax.Array,
    parameters: Mapping[str, jax.Array],
    dtype: Any,
    dropout: Dropout | None,
    shard: Shard,
) -> jax.Array:
    """Return each slot's output [G, E * C, D]; in a shard slots and outputs hold its part of D.

    Slots travel to the shares that hold their experts and back; weights stay where they are.
    """
    groups, _, width = slots.shape
    num_experts = parameters["router"].shape[1]
    here = slots.astype(dtype).reshape(groups, num_experts, -1, width)
    # [all groups of these experts' shares, experts of this one, C, D]
    brought = shard.exchange("expert", here, split=1, concat=0)
    brought = shard.gathered("expert_mlp", brought, axis=3)
    by_expert = brought.swapaxes(0, 1)
    outputs = gated_mlp(
        by_expert.reshape(by_expert.shape[0], -1, by_expert.shape[3]),  # one batched product
        parameters["wi_0"],
        parameters["wi_1"],
        parameters["wo"],
        dropped=None if dropout is None else partial(dropout.of_experts, shard=shard),
    )
    outputs = shard.sum_in_parts("expert_mlp", outputs)
    by_group = outputs.reshape(*by_expert.shape[:3], -1).swapaxes(0, 1)
    returned = shard.exchange("expert", by_group, split=0, concat=1)
    return returned.reshape(slots.shape)


def ways_of_tokens(decision: Decision, num_experts: int) -> tuple[jax.Array, jax.Array]:
    """Return slot [G, T, K] and inverse [G, E * C] of a tokens-choose decision. Spec: MOE-01."""
    require_record(decision, num_experts)
    groups, tokens, k = decision.expert_index.shape
    slots = num_experts * decision.capacity
    slot = decision.expert_index * decision.capacity + decision.position
    slot = jnp.where(decision.kept, slot, slots)
    way = jnp.arange(tokens * k, dtype=jnp.int32)
    return slot, _inverse(slot.reshape(groups, -1), way, slots, nowhere=tokens * k)


def ways_of_experts(
    choice: ExpertsChoice, probabilities: jax.Array, mask: jax.Array | None
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return slot [G, T, E], inverse [G, E * C] and weight [G, T, E]. Spec: MOE-14."""
    groups, num_experts, capacity = choice.token_index.shape
    tokens = probabilities.shape[1]
    slots = num_experts * capacity
    expert = jnp.arange(num_experts, dtype=jnp.int32)[:, None]
    inverse = (choice.token_index * num_experts + expert).reshape(groups, slots)
    slot = _inverse(
        inverse, jnp.arange(slots, dtype=jnp.int32), tokens * num_experts, nowhere=slots
    ).reshape(groups, tokens, num_experts)
    kept = slot < slots
    if mask is not None:
        kept = kept & mask[..., None]
    return slot, inverse, jnp.where(kept, probabilities, 0)


def _inverse(target: jax.Array, value: jax.Array, size: int, *, nowhere: int) -> jax.Array:
    """Return [G, size] with value[i] at target[g, i], `nowhere` elsewhere: the only scatter."""

    def one_group(places: jax.Array) -> jax.Array:
        empty = jnp.full((size,), nowhere, jnp.int32)
        return empty.at[places].set(value, mode="drop")  # places are distinct or out of range

    return jax.vmap(one_group)(target)


def _take(rows: jax.Array, index: jax.Array) -> jax.Array:
    """Return rows[g, index[g, ...]], zeros where the index is out of range."""
    return jax.vmap(partial(jnp.take, axis=0, mode="fill", fill_value=0))(rows, index)


@jax.custom_vjp
def dispatch(inputs: jax.Array, slot: jax.Array, inverse: jax.Array) -> jax.Array:
    """Return the slots' contents [G, E * C, D] of inputs [G, T, D]. Spec: MOE-01, MOE-13."""
    return _take(inputs, inverse // slot.shape[2])


def _dispatch_forward(
    inputs: jax.Array, slot: jax.Array, inverse: jax.Array
) -> tuple[jax.Array, jax.Array]:
    return dispatch(inputs, slot, inverse), slot


def _dispatch_backward(slot: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None, None]:
    ways = (_take(cotangent, slot[..., j]) for j in range(slot.shape[2]))
    return sum(ways), None, None  # type: ignore[return-value]


dispatch.defvjp(_dispatch_forward, _dispatch_backward)


@jax.custom_vjp
def combine(
    outputs: jax.Array, weight: jax.Array, slot: jax.Array, inverse: jax.Array
) -> jax.Array:
    """Return [G, T, D]: each token's slots times float32 weight [G, T, J], summed in way order.

    Only the backward pass looks at `inverse`.
    Spec: MOE-04, MOE-05, MOE-06, MOE-13.
    """
    ways = (
        weight[..., j, None] * _take(outputs, slot[..., j]).astype(weight.dtype)
        for j in range(slot.shape[2])
    )
    return sum(ways)  # type: ignore[return-value]


_Residuals = tuple[jax.Array, jax.Array, jax.Array, jax.Array]


def _combine_forward(
    outputs: jax.Array, weight: jax.Array, slot: jax.Array, inverse: jax.Array
) -> tuple[jax.Array, _Residuals]:
    return combine(outputs, weight, slot, inverse), (outputs, weight, slot, inverse)


def _combine_backward(
    saved: _Residuals, cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, None, None]:
    outputs, weight, slot, inverse = saved
    ways = slot.shape[2]
    flat = weight.reshape(weight.shape[0], -1)
    d_outputs = _take(cotangent, inverse // ways) * _take(flat, inverse)[..., None]
    # Inner products by einsum: XLA's CPU code for (a * b).sum(axis=-1) is 35 times slower. HIGHEST:
    # an accelerator's default would round the operands.
    d_weight = jnp.stack(
        [
            jnp.einsum(
                "gtd,gtd->gt",
                cotangent,
                _take(outputs, slot[..., j]).astype(weight.dtype),
                precision=lax.Precision.HIGHEST,
            )
            for j in range(ways)
        ],
        axis=-1,
    )
    return d_outputs.astype(outputs.dtype), d_weight, None, None


combine.defvjp(_combine_forward, _combine_backward)
