"""Probes of groups, capacity, router and experts."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_conformance.adapter import UnsupportedError, call
from openmoe_conformance.compare import fields_of
from openmoe_conformance.probes import Known, probe
from openmoe_conformance.probes.silent import (
    SOME,
    WIDTH,
    batch_of,
    fields_with,
    forward_of,
    logits_of,
    representable,
    silent_model,
)


@probe("expert_capacity", "capacity", what="36 and 44 tokens, 8 experts, factor 1, K = 2")
def _(adapter: Any, _: Known) -> Any:
    options = {"num_experts": 8, "capacity_factor": 1.0, "k": 2}
    return [call(adapter, "expert_capacity", tokens, **options) for tokens in (36, 44)]


FACTORS = (2.5, 3.5)
"""Half to even, up, down, with K: each rounds them to another pair of capacities."""


def _crowd(factor: float) -> dict[str, Any]:
    return fields_with(num_experts=8, eval_capacity_factor=factor, min_expert_capacity=1)


@probe("moe_layer", "groups", "capacity", what="64 equal tokens, factors 2.5, 3.5: first dropped")
def _(adapter: Any, known: Known) -> Any:
    layer = _layer(silent_model(_crowd(1.0), known, loud=("mlp/expert",)))
    inputs = np.ones((1, 64, WIDTH), np.float32)
    found = []
    for factor in FACTORS:
        options = {"eval_capacity_factor": factor, "min_expert_capacity": 1}
        output = _output(call(adapter, "moe_layer", inputs, layer, training=False, **options))
        found.append(_first_other((np.abs(output) > 0).any(axis=-1)))
    return found


def _layer(weights: dict[str, ndarray]) -> dict[str, ndarray]:
    path = "decoder/layers_0/mlp"
    layer = {name: weights[f"{path}/expert/{name}/kernel"] for name in ("wi_0", "wi_1", "wo")}
    return layer | {"router": weights[f"{path}/router/router_weights/w/kernel"]}


def _output(answer: Any) -> ndarray:
    found = fields_of(answer, ("output",))["output"]
    return np.asarray(answer if found is None else found)


@probe("forward", "groups", "capacity", what="64 equal tokens, factors 2.5, 3.5: first dropped")
def _(adapter: Any, known: Known) -> Any:
    found = []
    for factor in FACTORS:
        fields = _crowd(factor)
        weights = silent_model(fields, known, loud=("mlp/expert",))
        logits = logits_of(adapter, weights, batch_of(np.full((1, 64), 5)), fields)
        same = np.abs(logits - logits[:, :1]).max(axis=-1) < 1e-3 * np.abs(logits).max()
        found.append(_first_other(same))
    return found


def _first_other(alike: ndarray) -> int:
    """Return the first place that is false; 64 when none is."""
    return int(np.append(alike.reshape(-1), False).argmin())


@probe("forward", "extra_mlp", what="experts and the extra feed-forward")
def _(adapter: Any, known: Known) -> Any:
    fields = fields_with()
    weights = silent_model(fields, known, loud=("mlp/expert", "extra_mlp"))
    return logits_of(adapter, weights, batch_of(SOME), fields)


def _one_choice(
    known: Known, columns: tuple[float, ...]
) -> tuple[dict[str, Any], dict[str, ndarray]]:
    """Return a model with K = 1 whose router logits are the first input times `columns`."""
    fields = fields_with(num_selected_experts=1)
    weights = silent_model(fields, known, loud=("mlp/expert",), seed=3)
    weights["token_embedder/embedding"][:, 0] = 1
    kernel = np.zeros((WIDTH, 4), np.float32)
    kernel[0] = columns
    weights["decoder/layers_0/mlp/router/router_weights/w/kernel"] = kernel
    return fields, weights


@probe("forward", "one_choice", what="K = 1, two logits 2^-26 apart: one float32 probability")
def _(adapter: Any, known: Known) -> Any:
    fields, weights = _one_choice(known, (0.0, 2.0**-26, -1.0, -1.0))
    return logits_of(adapter, weights, batch_of(SOME), fields)


@probe("route", "one_choice", what="K = 1, logits 0 and 2^-26")
def _(adapter: Any, _: Known) -> Any:
    kernel = np.array([[0.0, 2.0**-26, -1.0]], np.float32)
    answer = call(adapter, "route", np.ones((1, 1, 1), np.float32), kernel, k=1, capacity=1)
    return np.asarray(fields_of(answer, ("expert_index",))["expert_index"])


@probe("forward", "router_kernel", what="bfloat16, K = 1, router weights 1 and 1.001", share=0.1)
def _(adapter: Any, known: Known) -> Any:
    fields, weights = _one_choice(known, (1.0, 1.001, -1.0, -1.0))
    return logits_of(adapter, weights, batch_of(SOME), fields, dtype="bfloat16")


@probe("moe_layer", "combine", what="bfloat16 inputs: share of outputs that bfloat16 holds")
def _(adapter: Any, known: Known) -> Any:
    layer = _layer(silent_model(fields_with(), known, loud=("mlp/expert",)))
    inputs = np.random.default_rng(4).normal(size=(1, 16, WIDTH)).astype(ml_dtypes.bfloat16)
    options = {"training": False, "eval_capacity_factor": 64.0, "expert_dtype": "bfloat16"}
    return representable(_output(call(adapter, "moe_layer", inputs, layer, **options))) > 0.9


@probe("forward", "combine", what="bfloat16: share of the experts' trace that bfloat16 holds")
def _(adapter: Any, known: Known) -> Any:
    fields = fields_with()
    weights = silent_model(fields, known, loud=("mlp/expert",))
    answer = forward_of(adapter, weights, batch_of(SOME), fields, dtype="bfloat16")
    shown = fields_of(answer, ("activations",))["activations"] or {}
    if "decoder/layers_0/mlp" not in shown:
        raise UnsupportedError("forward() shows no activations")
    return representable(shown["decoder/layers_0/mlp"]) > 0.9


@probe("forward", "logits", what="bfloat16: share of logits that bfloat16 holds")
def _(adapter: Any, known: Known) -> Any:
    fields = fields_with()
    logits = logits_of(
        adapter, silent_model(fields, known), batch_of(SOME), fields, dtype="bfloat16"
    )
    return representable(logits) > 0.9
