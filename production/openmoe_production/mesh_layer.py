"""The mixture-of-experts layer alone on a mesh, for those who want to time or judge it. Spec: MESH-01..MESH-03, MESH-08."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax

from openmoe_production import moe
from openmoe_production.collectives import Shard
from openmoe_production.sharding import Layout
from openmoe_spec.records import Decision, LayerResult

AXES: Mapping[str, tuple[str | None, ...]] = {
    "router": ("embed", "unmodeled"),
    "wi_0": ("expert", "mlp_embed", None, "expert_mlp"),
    "wi_1": ("expert", "mlp_embed", "expert_mlp"),
    "wo": ("expert", "expert_mlp", "mlp_embed"),
}
"""Logical axes of the layer's weights; of the doubled one with its halves apart."""


def layer(
    inputs: jax.Array,
    parameters: Mapping[str, jax.Array],
    noise: jax.Array | None = None,
    *,
    layout: Layout | None = None,
    decision: Decision | None = None,
    **options: Any,
) -> LayerResult:
    """Return `moe.moe` of whole groups [G, T, D], computed by all devices of a mesh, or by one.

    Options are those of `moe.moe`.
    Errors: RejectedError MESH-06 on groups, experts or widths that cannot be cut evenly, and those of
    `moe.moe`. Spec: MESH-01..MESH-03, MESH-08.
    """
    if layout is None:
        return moe.moe(inputs, parameters, noise=noise, decision=decision, **options)
    layout.require_divisible("groups", len(inputs), "batch")
    extra = {"noise": noise, "decision": decision}
    given = {name: value for name, value in extra.items() if value is not None}
    return _spread(moe.moe, inputs, parameters, given, layout, **options)


def layer_of_batch(
    inputs: jax.Array,
    parameters: Mapping[str, jax.Array],
    *,
    layout: Layout | None = None,
    **options: Any,
) -> LayerResult:
    """Return `moe.moe_layer` of a batch [B, L, D], on a mesh or on one device, as `layer` does.

    Errors: RejectedError MESH-06, and those of `moe.moe_layer`. Spec: MESH-01, MESH-02.
    """
    if layout is None:
        return moe.moe_layer(inputs, parameters, **options)
    layout.require_divisible("batch", len(inputs), "batch")
    return _spread(moe.moe_layer, inputs, parameters, {}, layout, **options)


def require_parts(parameters: Mapping[str, Any], layout: Layout) -> None:
    """Refuse experts and widths that a layout cannot cut evenly. Spec: MESH-06."""
    experts, width, hidden = parameters["wi_1"].shape
    layout.require_divisible("experts", experts, "expert")
    layout.require_divisible("F", hidden, "expert_mlp")
    layout.require_divisible("D", width, "expert_mlp")


def _spread(
    function: Callable[..., LayerResult],
    inputs: jax.Array,
    parameters: Mapping[str, jax.Array],
    given: Mapping[str, Any],
    layout: Layout,
    **options: Any,
) -> LayerResult:
    """Return a function's result; `given` are arrays that are split as the inputs are."""
    require_parts(parameters, layout)
    experts, width, _ = parameters["wi_1"].shape
    halves = dict(parameters) | {"wi_0": parameters["wi_0"].reshape(experts, width, 2, -1)}

    def share(
        x: jax.Array, weights: Mapping[str, jax.Array], given: Mapping[str, Any], *, shard: Shard
    ) -> LayerResult:
        own = {name: shard.at_hand(weights[name], axes) for name, axes in AXES.items()}
        own["wi_0"] = own["wi_0"].reshape(*own["wi_1"].shape[:2], -1)
        return function(x, own, shard=shard, **given, **options)

    of_result: Any = LayerResult  # of partitions
    rows, whole = layout.spec("batch"), layout.spec()
    of_weights = {name: layout.spec(*axes) for name, axes in AXES.items()}
    spread = layout.spread(share, (rows, of_weights, rows), of_result(rows, rows, whole, rows))
    result: LayerResult = spread(inputs, halves, given)
    return result
