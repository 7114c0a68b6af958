"""What is compared for each kind of stored case, and within which bound.

Inputs, stored intermediates and expected outputs of every kind are described in
`conformance/openmoe_conformance/vectors/README.md`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_conformance.compare import close, judge_choices, logit_band, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.subject import Subject, UnsupportedError
from openmoe_conformance.vector_calls import compare_call
from openmoe_conformance.vector_sets import VectorCase
from openmoe_reference import grouping, routing
from openmoe_spec.records import METRICS, Decision, LayerResult

Arrays = Mapping[str, ndarray]
Comparison = Callable[[Subject, VectorCase, Arrays, Evidence], None]

ROUTER_BOUND = {"relative": 2e-6, "of_largest": 1e-7}
# The floor of 1e-7 is for gradients that are zero: with K = E the balance loss is constant and
# what is stored is rounding noise.
ROUTER_GRADIENT_BOUND = {"relative": 2e-6, "of_largest": 1e-5, "absolute": 1e-7}
LAYER_BOUND = {"relative": 1e-5, "absolute": 1e-5}
LAYER_GRADIENT_BOUND = {"relative": 2e-5, "absolute": 2e-5}
BFLOAT16_BOUND = {"relative": 3e-2, "absolute": 3e-2}
BFLOAT16_GRADIENT_BOUND = {"relative": 5e-2, "of_largest": 5e-2}


def compare(
    subject: Subject, case: VectorCase, comparison: str, arrays: Arrays, evidence: Evidence
) -> None:
    """Run one comparison of a case; raise Disagreement where it fails."""
    evidence.examples += 1
    KINDS[case.kind][comparison](subject, case, arrays, evidence)


# ---- routers -------------------------------------------------------------------------------


def _mask(case: VectorCase, arrays: Arrays) -> ndarray | None:
    if not case.config["ignore_padding_tokens"]:
        return None
    return (arrays["token_inputs"] != 0).any(axis=-1)


def _options(case: VectorCase, arrays: Arrays) -> dict[str, Any]:
    return {
        "k": case.config["num_selected_experts"],
        "capacity": case.config["expert_capacity"],
        "padding_mask": _mask(case, arrays),
        "batch_prioritized": case.config["batch_prioritized_routing"],
    }


def _probabilities(s: Subject, _: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    got = s.probabilities(arrays["token_inputs"], arrays["kernel"])
    close("probabilities", got, arrays["probs"], evidence, **ROUTER_BOUND)


def _slot_of(decision: Decision, experts: int) -> ndarray:
    """Return [G, T, E]: the slot of each kept (token, expert), else -1."""
    groups, tokens, _ = decision.expert_index.shape
    slot = np.full((groups, tokens, experts), -1, np.int64)
    for g, t, j in np.argwhere(decision.kept):
        slot[g, t, decision.expert_index[g, t, j]] = decision.position[g, t, j]
    return slot


def _masked_decision(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    got = s.decide(arrays["probs"], **_options(case, arrays))
    slot = _slot_of(got, case.config["num_experts"])
    same("slot of each token at each expert", slot, arrays["dispatch_position"])
    slots = np.arange(case.config["expert_capacity"])
    same("dispatch_mask", slot[..., None] == slots, arrays["dispatch_mask"] != 0)


def _masked_gates(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    got = s.decide(arrays["probs"], **_options(case, arrays))
    gate = np.zeros(arrays["combine_gate"].shape)
    for g, t, j in np.argwhere(got.kept):
        gate[g, t, got.expert_index[g, t, j]] = got.gate[g, t, j]
    close("gates", gate, arrays["combine_gate"], evidence, **ROUTER_BOUND)
    combined = gate[..., None] * (arrays["dispatch_mask"] != 0)
    close("combine_array", combined, arrays["combine_array"], evidence, **ROUTER_BOUND)


def _masked_route(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    """From hidden states, by the near-tie rule; ignored padding is compared on its own."""
    inputs, kernel = arrays["token_inputs"], arrays["kernel"]
    options = _options(case, arrays)
    mask = options.pop("padding_mask")
    got = s.route(inputs, kernel, ignore_padding=mask is not None, **options)
    wanted = routing.decide(arrays["probs"], **_options(case, arrays))
    real = np.ones(inputs.shape[:2], bool) if mask is None else mask
    logits, half = logit_band(inputs, kernel, s.arithmetic)
    judged = [
        np.where(real[..., None], d.expert_index, np.arange(options["k"])) for d in (got, wanted)
    ]
    decided = ~real | judge_choices(judged[0], logits, half, judged[1])
    same("tokens without expert", (got.expert_index < 0).all(axis=-1), ~real)
    evidence.judged(decided.size, int((~decided).sum()))
    groups = decided.all(axis=-1)  # an undecided token may move every later slot of its group
    slot = _slot_of(got, case.config["num_experts"])
    same("slots from hidden states", slot[groups], arrays["dispatch_position"][groups])


def _scatter_decision(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    got = s.decide(arrays["probs"], function="decide_scatter", **_options(case, arrays))
    wanted = arrays["dispatch_indices"]
    same("expert_index", got.expert_index, wanted[..., 0])
    same("kept", got.kept, wanted[..., 1] < case.config["expert_capacity"])
    shown = got.position != -1
    same("position", got.position[shown], wanted[..., 1][shown])


def _scatter_gates(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    got = s.decide(arrays["probs"], function="decide_scatter", **_options(case, arrays))
    weights = np.where(got.kept, got.gate, 0)
    close("combine_weights", weights, arrays["combine_weights"], evidence, **ROUTER_BOUND)


def _experts_choose(s: Subject, case: VectorCase, arrays: Arrays) -> tuple[ndarray, ndarray]:
    got = s.experts_choose(
        arrays["probs"],
        capacity=case.config["expert_capacity"],
        padding_mask=_mask(case, arrays),
    )
    mask = np.zeros(arrays["dispatch_mask"].shape, bool)
    combined = np.zeros(mask.shape)
    tokens = arrays["probs"].shape[1]
    if ((got.token_index < 0) | (got.token_index >= tokens)).any():
        raise Disagreement(f"token_index: must be in 0..{tokens - 1}")
    group, expert, slot = np.indices(got.token_index.shape)
    mask[group, got.token_index, expert, slot] = True
    combined[group, got.token_index, expert, slot] = got.gate
    return mask, combined


def _experts_decision(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    same("dispatch_mask", _experts_choose(s, case, arrays)[0], arrays["dispatch_mask"] != 0)


def _experts_gates(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    combined = _experts_choose(s, case, arrays)[1]
    close("combine_array", combined, arrays["combine_array"], evidence, **ROUTER_BOUND)


def _balance_loss(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    mask = _mask(case, arrays)
    rule = routing.decide_scatter if case.kind == "router_scatter" else routing.decide
    index = rule(arrays["probs"], **_options(case, arrays)).expert_index
    got = s.scalar("balance_loss", arrays["probs"], index, padding_mask=mask)
    close("auxiliary_loss", got, arrays["auxiliary_loss"], evidence, **ROUTER_BOUND)


def _router_z_loss(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    got = s.scalar("router_z_loss", arrays["logits"], padding_mask=_mask(case, arrays))
    close("router_z_loss", got, arrays["router_z_loss"], evidence, **ROUTER_BOUND)


def _router_gradients(which: str) -> Comparison:
    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        options = _options(case, arrays)
        mask = options.pop("padding_mask")
        cotangent = arrays["cotangent"].sum(axis=-1)  # one slot at most of each (token, expert)
        got = s.gradients(
            "route_gradients",
            (
                arrays["token_inputs"],
                arrays["kernel"],
                cotangent if which == "combine" else np.zeros_like(cotangent),
            ),
            auxiliary_loss_factor=float(which == "aux"),
            router_z_loss_factor=float(which == "z"),
            ignore_padding=mask is not None,
            **options,
        )
        for name, stored in (("inputs", "d_inputs"), ("router", "d_kernel")):
            wanted = arrays[f"{stored}_{which}"]
            close(f"{stored}_{which}", got[name], wanted, evidence, **ROUTER_GRADIENT_BOUND)

    return run


# ---- layers --------------------------------------------------------------------------------


_STORED_PARAMETERS = {
    "router/router_weights/w": "router",
    "expert/wi_0": "wi_0",
    "expert/wi_1": "wi_1",
    "expert/wo": "wo",
}
"""Names of the layer's weights by the names they are stored under."""


def _parameters(arrays: Arrays) -> dict[str, ndarray]:
    return {name: arrays[f"params/{path}/kernel"] for path, name in _STORED_PARAMETERS.items()}


def _is_bfloat16(case: VectorCase) -> bool:
    return str(case.config.get("dtype", "float32")) == "bfloat16"


def _layer_options(case: VectorCase) -> dict[str, Any]:
    router = case.config.get("router", "masked")
    return {
        "k": case.config.get("k", 2),
        "router": "experts_choose" if router == "experts" else router,
        "ignore_padding": case.config.get("ignore", False),
        "batch_prioritized": case.config.get("bpr", False),
        "expert_dtype": case.config.get("dtype", "float32"),
    }


def _inputs(case: VectorCase, arrays: Arrays) -> ndarray:
    inputs = arrays["inputs"]
    if case.config["in_dtype"] == "bfloat16":
        return inputs.astype(ml_dtypes.bfloat16)
    return inputs


def _padded(case: VectorCase) -> tuple[int, int]:
    return case.config["padded_batch"], case.config["padded_seq"]


def _run_layer(s: Subject, case: VectorCase, arrays: Arrays) -> LayerResult:
    """Use the implementation's own derivation of groups where it has one, else the kit's."""
    inputs, weights, options = _inputs(case, arrays), _parameters(arrays), _layer_options(case)
    capacity, config = case.config["expert_capacity"], case.config
    if callable(getattr(s.adapter, "moe_layer", None)):
        return s.moe_layer(
            inputs,
            weights,
            groups=(config["num_groups"], config["tokens_per_group"]),
            capacity=capacity,
            training=config["train"],
            train_capacity_factor=config["train_capacity_factor"],
            eval_capacity_factor=config["eval_capacity_factor"],
            min_expert_capacity=config.get("min_cap", 4),
            max_group_size=config["max_group_size"],
            num_expert_replicas=config["num_expert_replicas"],
            **options,
        )
    grouped = grouping.to_groups(inputs, padded=_padded(case), num_groups=config["num_groups"])
    result = s.moe(grouped, weights, capacity=capacity, **options)
    output = grouping.from_groups(result.output, padded=_padded(case), shape=inputs.shape[:2])
    return LayerResult(output, result.decision, result.metrics)


def _layer_output(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    got = _run_layer(s, case, arrays).output
    if got.dtype != np.float32:
        raise Disagreement(f"output: dtype {got.dtype}, expected float32")
    bound = BFLOAT16_BOUND if _is_bfloat16(case) else LAYER_BOUND
    close("output", got, arrays["output"], evidence, **bound)


def _layer_metric(name: str) -> Comparison:
    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        got = _run_layer(s, case, arrays).metrics
        if got is None or name not in got:
            raise UnsupportedError(f"the layer shows no metric {name}")
        bound = BFLOAT16_BOUND if _is_bfloat16(case) else LAYER_BOUND
        close(name, got[name], arrays[f"metrics/{name}"], evidence, **bound)

    return run


def _layer_gradients(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    config, padded = case.config, _padded(case)
    inputs = _inputs(case, arrays)
    groups = config["num_groups"]
    got = s.gradients(
        "moe_gradients",
        (
            grouping.to_groups(inputs, padded=padded, num_groups=groups),
            _parameters(arrays),
            grouping.to_groups(arrays["cotangent"], padded=padded, num_groups=groups),
        ),
        capacity=config["expert_capacity"],
        auxiliary_loss_factor=config["aux_loss_factor"],
        router_z_loss_factor=config["router_z_loss_factor"],
        **_layer_options(case),
    )
    bound = BFLOAT16_GRADIENT_BOUND if _is_bfloat16(case) else LAYER_GRADIENT_BOUND
    d_inputs = grouping.from_groups(got["inputs"], padded=padded, shape=inputs.shape[:2])
    close("d_inputs", d_inputs, arrays["d_inputs"], evidence, **bound)
    for path, name in _STORED_PARAMETERS.items():
        close(f"d_{name}", got[name], arrays[f"d_params/{path}/kernel"], evidence, **bound)


# ---- shapes --------------------------------------------------------------------------------


def _sizes(case: VectorCase) -> tuple[int, int]:
    return case.config["num_experts"], case.config["num_expert_replicas"]


def _padded_shape(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    experts, replicas = _sizes(case)
    config = case.config
    got = s.call("padded_shape", config["batch"], config["seq"], multiple=experts * replicas)
    same("padded_shape", got, _padded(case))


def _num_groups(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    experts, replicas = _sizes(case)
    got = s.integer(
        "num_groups",
        case.config["padded_batch"] * case.config["padded_seq"],
        max_group_size=case.config["max_group_size"],
        num_experts=experts,
        num_expert_replicas=replicas,
    )
    same("num_groups", got, case.config["num_groups"])


def _expert_capacity(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    config = case.config
    factor = config.get("capacity_factor")
    if factor is None:
        factor = config["train_capacity_factor" if config["train"] else "eval_capacity_factor"]
    got = s.integer(
        "expert_capacity",
        config["tokens_per_group"],
        num_experts=config["num_experts"],
        capacity_factor=factor,
        min_expert_capacity=config.get("min_cap", 4),
    )
    same("expert_capacity", got, config.get("capacity", config.get("expert_capacity")))


def _replicas(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    config = case.config
    got = s.integer(
        "num_expert_replicas",
        config["device_count"],
        num_expert_partitions=config["num_expert_partitions"],
        num_model_partitions=config["num_model_partitions"],
    )
    same("num_expert_replicas", got, config["num_expert_replicas"])


_ROUTER: dict[str, Comparison] = {
    "probabilities": _probabilities,
    "router_z_loss": _router_z_loss,
}
_SHAPES: dict[str, Comparison] = {
    "padded_shape": _padded_shape,
    "num_groups": _num_groups,
    "expert_capacity": _expert_capacity,
}

KINDS: Mapping[str, Mapping[str, Comparison]] = {
    "router_masked": {
        **_ROUTER,
        "decision": _masked_decision,
        "gates": _masked_gates,
        "route": _masked_route,
        "balance_loss": _balance_loss,
        "gradients_combine": _router_gradients("combine"),
        "gradients_aux": _router_gradients("aux"),
        "gradients_z": _router_gradients("z"),
    },
    "router_scatter": {
        **_ROUTER,
        "decision": _scatter_decision,
        "gates": _scatter_gates,
        "balance_loss": _balance_loss,
    },
    "router_experts_choose": {
        **_ROUTER,
        "decision": _experts_decision,
        "gates": _experts_gates,
    },
    "moe_layer": {
        **_SHAPES,
        "output": _layer_output,
        **{name: _layer_metric(name) for name in METRICS},
        "gradients": _layer_gradients,
    },
    "group_sizes": _SHAPES,
    "replicas": {"num_expert_replicas": _replicas},
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
        *(f"params/{p}/kernel" for p in _STORED_PARAMETERS),
        *(f"d_params/{p}/kernel" for p in _STORED_PARAMETERS),
    ),
}
"""Arrays that a case of each kind must hold."""


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
    return ""
