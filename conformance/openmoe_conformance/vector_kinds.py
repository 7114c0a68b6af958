"""What is compared for each kind of stored case.

Inputs, stored intermediates, expected outputs and bounds of every kind are described in
`vectors/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping

from openmoe_conformance import vector_layers, vector_routers
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.subject import Subject
from openmoe_conformance.vector_calls import compare_call, malformed
from openmoe_conformance.vector_cases import Arrays, Comparison, VectorCase
from openmoe_conformance.vector_layers import STORED_PARAMETERS
from openmoe_spec.records import METRICS

KINDS: Mapping[str, Mapping[str, Comparison]] = {
    "router_masked": vector_routers.MASKED,
    "router_scatter": vector_routers.SCATTER,
    "router_experts_choose": vector_routers.EXPERTS_CHOOSE,
    "moe_layer": vector_layers.LAYER,
    "group_sizes": vector_layers.SHAPES,
    "replicas": vector_layers.REPLICAS,
    "call": {"answer": compare_call},
}
"""Comparisons by kind of case and name."""

REQUIRED_ARRAYS: Mapping[str, tuple[str, ...]] = {
    "router_masked": (
        *("token_inputs", "kernel", "logits", "probs", "dispatch_mask", "dispatch_position"),
        *("combine_array", "combine_gate", "auxiliary_loss", "router_z_loss", "cotangent"),
        *(f"d_{x}_{y}" for x in ("inputs", "kernel") for y in ("combine", "aux", "z")),
    ),
    "router_scatter": (
        *("token_inputs", "kernel", "logits", "probs", "dispatch_indices", "combine_weights"),
        *("auxiliary_loss", "router_z_loss"),
    ),
    "router_experts_choose": (
        *("token_inputs", "kernel", "logits", "probs", "dispatch_mask", "combine_array"),
        "router_z_loss",
    ),
    "moe_layer": (
        *("inputs", "cotangent", "output", "d_inputs"),
        *(f"metrics/{name}" for name in METRICS),
        *(f"params/{p}/kernel" for p in STORED_PARAMETERS),
        *(f"d_params/{p}/kernel" for p in STORED_PARAMETERS),
    ),
}
"""Arrays that a case of each kind must hold."""


_SIZES = ("num_experts", "num_expert_replicas", "max_group_size", "tokens_per_group", "num_groups")
_PADDING = ("batch", "seq", "padded_batch", "padded_seq")
_ROUTER = ("num_experts", "expert_capacity", "ignore_padding_tokens")
_TOKENS_CHOOSE = (*_ROUTER, "num_selected_experts", "batch_prioritized_routing")
REQUIRED_CONFIG: Mapping[str, tuple[str, ...]] = {
    "router_masked": _TOKENS_CHOOSE,
    "router_scatter": _TOKENS_CHOOSE,
    "router_experts_choose": _ROUTER,
    "moe_layer": (
        *(*_SIZES, *_PADDING, "expert_capacity", "train", "in_dtype"),
        *("train_capacity_factor", "eval_capacity_factor"),
        *("aux_loss_factor", "router_z_loss_factor"),
    ),
    "group_sizes": (*_SIZES, *_PADDING, "capacity_factor", "capacity"),
    "replicas": (
        *("device_count", "num_expert_partitions", "num_model_partitions"),
        "num_expert_replicas",
    ),
}
"""Keys that the config of a case of each kind must hold."""


def missing(case: VectorCase) -> str:
    """Return what a case lacks, naming file and case; empty when it is whole."""
    where = f"{case.set_name}/index.json, case {case.id}"
    if case.kind not in KINDS:
        return f"{where}: unknown kind {case.kind!r}"
    unknown = sorted(set(case.comparisons) - set(KINDS[case.kind]))
    if unknown:
        return f"{where}: unknown comparison {', '.join(unknown)}"
    lacking = sorted(set(REQUIRED_ARRAYS.get(case.kind, ())) - set(case.arrays))
    if lacking:
        return f"{where}: lacks array {', '.join(lacking)}"
    lacking = sorted(set(REQUIRED_CONFIG.get(case.kind, ())) - set(case.config))
    if lacking:
        return f"{where}: its config lacks {', '.join(lacking)}"
    wrong = malformed(case) if case.kind == "call" else ""
    return f"{where}: {wrong}" if wrong else ""


def compare(
    subject: Subject, case: VectorCase, comparison: str, arrays: Arrays, evidence: Evidence
) -> None:
    """Run one comparison of a case; raise Disagreement where it fails."""
    evidence.examples += 1
    KINDS[case.kind][comparison](subject, case, arrays, evidence)
