"""Comparisons of stored layers and of the sizes that follow from shapes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.subject import Subject, UnsupportedError
from openmoe_conformance.vector_cases import Arrays, Comparison, Kind, Run, VectorCase
from openmoe_reference import grouping
from openmoe_spec.records import METRICS, LayerResult

LAYER_BOUND = {"relative": 1e-5, "absolute": 1e-5}
LAYER_GRADIENT_BOUND = {"relative": 2e-5, "absolute": 2e-5}
BFLOAT16_BOUND = {"relative": 3e-2, "absolute": 3e-2}
BFLOAT16_GRADIENT_BOUND = {"relative": 5e-2, "of_largest": 5e-2}


STORED_PARAMETERS = {
    "router/router_weights/w": "router",
    "expert/wi_0": "wi_0",
    "expert/wi_1": "wi_1",
    "expert/wo": "wo",
}
"""Names of the layer's weights by the names they are stored under."""


def _parameters(arrays: Arrays) -> dict[str, ndarray]:
    return {name: arrays[f"params/{path}/kernel"] for path, name in STORED_PARAMETERS.items()}


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


def _layer_metric(name: str) -> Run:
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
    for path, name in STORED_PARAMETERS.items():
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


_SIZES = ("num_experts", "num_expert_replicas", "max_group_size", "tokens_per_group", "num_groups")
_PADDING = ("batch", "seq", "padded_batch", "padded_seq")
_SHAPES = {
    "padded_shape": Comparison(_padded_shape),
    "num_groups": Comparison(_num_groups),
    "expert_capacity": Comparison(_expert_capacity),
}
KINDS: Mapping[str, Kind] = {
    "moe_layer": Kind(
        {
            **_SHAPES,
            "output": Comparison(_layer_output),
            **{name: Comparison(_layer_metric(name)) for name in METRICS},
            "gradients": Comparison(_layer_gradients),
        },
        (
            *("inputs", "cotangent", "output", "d_inputs"),
            *(f"metrics/{name}" for name in METRICS),
            *(f"params/{path}/kernel" for path in STORED_PARAMETERS),
            *(f"d_params/{path}/kernel" for path in STORED_PARAMETERS),
        ),
        (
            *(*_SIZES, *_PADDING, "expert_capacity", "train", "in_dtype"),
            *("train_capacity_factor", "eval_capacity_factor"),
            *("aux_loss_factor", "router_z_loss_factor"),
        ),
    ),
    "group_sizes": Kind(_SHAPES, (), (*_SIZES, *_PADDING, "capacity_factor", "capacity")),
    "replicas": Kind(
        {"num_expert_replicas": Comparison(_replicas)},
        (),
        (
            *("device_count", "num_expert_partitions", "num_model_partitions"),
            "num_expert_replicas",
        ),
    ),
}
"""Kinds of layers and of what follows from shapes, by name."""
