"""The mixture-of-experts layer alone on a mesh, for those who want to time or judge it. Spec: MESH-01..MESH-03, MESH-08."""

from __future__ import annotations

from collections.abc import Mapping
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


def layer_on_mesh(
    inputs: jax.Array,
    parameters: Mapping[str, jax.Array],
    *,
    layout: Layout,
    noise: jax.Array | None = None,
    decision: Decision | None = None,
    **options: Any,
) -> LayerResult:
    """Return `moe.moe` of whole groups [G, T, D], computed by all devices of a layout's mesh.

    Options are those of `moe.moe`.
    Errors: RejectedError MESH-06 on groups, experts or widths that cannot be cut evenly, and those of
    `moe.moe`. Spec: MESH-01..MESH-03, MESH-08.
    """
    experts, width, hidden = parameters["wi_1"].shape
    for name, size, logical in (
        ("groups", inputs.shape[0], "batch"),
        ("experts", experts, "expert"),
        ("F", hidden, "expert_mlp"),
        ("D", width, "expert_mlp"),
    ):
        layout.require_divisible(name, size, logical)
    halves = dict(parameters) | {"wi_0": parameters["wi_0"].reshape(experts, width, 2, -1)}
    extra = {"noise": noise, "decision": decision}
    given = {name: value for name, value in extra.items() if value is not None}
    rows, whole = layout.spec("batch"), layout.spec()

    def share(
        x: jax.Array, weights: Mapping[str, jax.Array], given: Mapping[str, Any], *, shard: Shard
    ) -> LayerResult:
        own = {name: shard.at_hand(weights[name], axes) for name, axes in AXES.items()}
        own["wi_0"] = own["wi_0"].reshape(*own["wi_1"].shape[:2], -1)
        return moe.moe(x, own, shard=shard, **given, **options)

    of_result: Any = LayerResult  # of partitions
    of_weights = {name: layout.spec(*axes) for name, axes in AXES.items()}
    found = of_result(rows, rows, whole, rows)
    result: LayerResult = layout.spread(share, (rows, of_weights, rows), found)(
        inputs, halves, given
    )
    return result
