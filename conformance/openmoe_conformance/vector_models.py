"""Comparisons of stored whole models: one forward pass, one loss, one gradient a case.

Each function of the implementation is called once a case, however much is compared with its answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.adapter import offers
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.subject import Subject, UnsupportedError
from openmoe_conformance.vector_cases import (
    Arrays,
    Comparison,
    Kind,
    Run,
    VectorCase,
    below,
    once,
)
from openmoe_conformance.vector_passes import (
    BFLOAT16_BOUND,
    batch,
    compare_decisions,
    compare_gradients,
    forward,
    is_bfloat16,
    of_layer,
    parameters,
    shown,
)
from openmoe_reference import grouping, routing
from openmoe_spec.config import Configuration
from openmoe_spec.parameters import sparse_layers
from openmoe_spec.records import METRICS, Decision, ForwardResult

BOUND = {"relative": 2e-5, "absolute": 2e-5}
BFLOAT16_LOGITS = 0.08
LOSS_BOUND = {"relative": 2e-6}
BFLOAT16_LOSS_BOUND = {"relative": 1e-2}
METRIC_BOUND = {"relative": 1e-5, "absolute": 1e-5}
BFLOAT16_METRIC_BOUND = {"relative": 1e-2, "absolute": 1e-2}
LEAST_COSINE = 0.99
"""Of a bfloat16 gradient with the stored one."""


# ---- how a case is run -------------------------------------------------------------------------


def _options(s: Subject, case: VectorCase, arrays: Arrays, function: str) -> dict[str, Any]:
    """Return keywords of a whole pass; bfloat16 near-ties are decided as stored where they can be."""
    options = {"training": case.config["training"]}
    if is_bfloat16(case) and offers(s.adapter, f"{function}(decisions)") is None:
        options["decisions"] = _implied_decisions(case, arrays)
    return options


def _implied_decisions(case: VectorCase, arrays: Arrays) -> dict[int, Decision]:
    """Return what the stored router logits decide, by layer."""
    c = Configuration(**case.config["configuration"])
    factor = c.train_capacity_factor if case.config["training"] else c.eval_capacity_factor
    decided = {}
    for layer in sparse_layers(c.num_layers, c.num_moe_layers):
        logits = arrays[f"acts/decoder/layers_{layer}/mlp/router/router_weights"]
        capacity = grouping.expert_capacity(
            logits.shape[1],
            num_experts=c.num_experts,
            capacity_factor=factor,
            min_expert_capacity=c.min_expert_capacity,
        )
        probabilities = routing.softmax(logits)
        decided[layer] = routing.decide(probabilities, k=c.num_selected_experts, capacity=capacity)
    return decided


def _pass(s: Subject, case: VectorCase, arrays: Arrays) -> ForwardResult:
    return forward(s, case, arrays, **_options(s, case, arrays, "forward"))


# ---- the forward pass --------------------------------------------------------------------------


def _logits(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    wide = {"relative": 0.0, "absolute": BFLOAT16_LOGITS}
    bound = wide if is_bfloat16(case) else BOUND
    close("logits", _pass(s, case, arrays).logits, arrays["logits"], evidence, **bound)


def _masked_logits(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    masked = (arrays["logits"] == 0).all(axis=-1)
    got = _pass(s, case, arrays).logits[masked]
    same("logits of masked positions", got, np.zeros(got.shape))


MODULES: Mapping[str, str] = {
    "embedder": "token_embedder",
    "attention": r"decoder/layers_\d+/self_attention",
    "mlp": r"decoder/layers_\d+/mlp",
    "experts": r"decoder/layers_\d+/mlp",
    "router": r"decoder/layers_\d+/mlp/router/router_weights",
    "extra_mlp": r"decoder/layers_\d+/extra_mlp",
    "residual": r"decoder/layers_\d+",
    "norm": "decoder/decoder_norm",
}
"""Patterns of the names that activations of one sort are stored under."""


def _of_module(module: str, names: Iterable[str]) -> list[str]:
    """Return the names of activations of one sort: a feed-forward with a router has experts."""
    known = set(names)
    found = [name for name in sorted(known) if re.fullmatch(MODULES[module], name)]
    if module in ("mlp", "experts"):
        sparse = {name for name in found if f"{name}/router/router_weights" in known}
        found = [name for name in found if (name in sparse) == (module == "experts")]
    if not found:
        raise UnsupportedError(f"the case stores no {module}")
    return found


def _activations(module: str) -> Run:
    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        wanted = below(arrays, "acts/")
        bound = BFLOAT16_BOUND if is_bfloat16(case) else BOUND
        got = _pass(s, case, arrays).activations
        for name in _of_module(module, wanted):
            close(name, shown(got, name), wanted[name], evidence, **bound)

    return run


def _dtypes(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    got = _pass(s, case, arrays).activations
    for name, dtype in case.config["activation_dtypes"].items():
        same(f"dtype of {name}", shown(got, name).dtype.name, dtype)


def _decisions(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    got = _pass(s, case, arrays).decisions
    for layer, wanted in _implied_decisions(case, arrays).items():
        compare_decisions(f"layer {layer}", of_layer(got, layer), vars(wanted))


def _metric(metric: str) -> Run:
    """Return the comparison of one sown scalar: of each sparse layer, and of their mean if stored."""

    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        bound = BFLOAT16_METRIC_BOUND if is_bfloat16(case) else METRIC_BOUND
        got = _pass(s, case, arrays).metrics
        pattern = rf"sown/decoder/layers_(\d+)/mlp/{metric}"
        layers = {int(m[1]): m[0] for name in arrays if (m := re.fullmatch(pattern, name))}
        if lacking := [layer for layer in layers if metric not in got.get(layer, ())]:
            raise UnsupportedError(f"forward() shows no {metric} of layer {lacking[0]}")
        for layer, name in layers.items():
            close(f"{metric} of layer {layer}", got[layer][metric], arrays[name], evidence, **bound)
        if f"metrics/{metric}" in arrays:
            mean = np.mean([got[layer][metric] for layer in layers])
            close(f"mean {metric}", mean, arrays[f"metrics/{metric}"], evidence, **bound)

    return run


# ---- loss and gradients ------------------------------------------------------------------------

LOSSES: Mapping[str, str] = {
    "total": "total",
    "cross_entropy": "cross_entropy",
    "z_loss": "z_loss",
    "auxiliary_loss": "aux_scaled",
    "router_z_loss": "router_z_scaled",
    "weight_sum": "nonpadding_tokens",
    "accuracy": "accuracy",
}
"""Parts of the loss by the names they are stored under."""


def _loss(part: str) -> Run:
    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        answer = once(
            s,
            case,
            "loss",
            lambda: s.call(
                "loss",
                parameters(arrays),
                batch(arrays),
                configuration=case.config["configuration"],
                **case.config["call"],
                **_options(s, case, arrays, "loss"),
            ),
        )
        got = answers.named("loss", answer, {part: ()})[part]
        bound = BFLOAT16_LOSS_BOUND if is_bfloat16(case) else LOSS_BOUND
        if is_bfloat16(case) and part == "accuracy":
            bound = LOSS_BOUND | {"absolute": _undecided_share(arrays)}
        close(f"loss: {part}", got, arrays[f"loss/{LOSSES[part]}"], evidence, **bound)

    return run


def _undecided_share(arrays: Arrays) -> float:
    """Return the share of positions whose best id hangs on the rounding of the logits."""
    logits, targets = arrays["logits"], arrays["batch/decoder_target_tokens"][..., None]
    of_target = np.take_along_axis(logits, targets, axis=-1)[..., 0]
    others = logits.copy()
    np.put_along_axis(others, targets, -np.inf, axis=-1)
    open_ = np.abs(others.max(axis=-1) - of_target) <= 2 * BFLOAT16_LOGITS
    weights = arrays.get("batch/decoder_loss_weights", targets[..., 0] > 0)
    return float((open_ * weights).sum() / weights.sum())


def _gradients(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    wanted = below(arrays, "grads/")
    got = s.named(
        "model_gradients",
        {name: array.shape for name, array in wanted.items()},
        parameters(arrays),
        batch(arrays),
        configuration=case.config["configuration"],
        **case.config["call"],
        **_options(s, case, arrays, "model_gradients"),
    )
    compare = _compare_directions if is_bfloat16(case) else compare_gradients
    compare(got, wanted, evidence)


def _compare_directions(
    got: Mapping[str, ndarray], wanted: Mapping[str, ndarray], evidence: Evidence
) -> None:
    for name, array in wanted.items():
        ours, stored = got[name].astype(np.float64).ravel(), array.astype(np.float64).ravel()
        size = np.sqrt((ours @ ours) * (stored @ stored))
        cosine = float(ours @ stored / size) if size else float(not (ours.any() or stored.any()))
        evidence.measured((1 - cosine) / (1 - LEAST_COSINE))
        if not cosine > LEAST_COSINE:
            raise Disagreement(
                f"gradient of {name}: cosine {cosine:.5g}, must exceed {LEAST_COSINE}"
            )


_ROUTERS = f"acts/{MODULES['router']}"
KINDS: Mapping[str, Kind] = {
    "parameters": Kind({}),
    "model": Kind(
        {
            "forward_logits": Comparison(_logits, ("logits",)),
            "forward_masked": Comparison(_masked_logits, ("logits",)),
            **{
                f"forward_{module}": Comparison(_activations(module), (f"acts/{pattern}",))
                for module, pattern in MODULES.items()
            },
            "forward_decisions": Comparison(_decisions, (_ROUTERS,)),
            "forward_dtypes": Comparison(_dtypes),
            **{
                f"forward_{metric}": Comparison(
                    _metric(metric), (rf"sown/decoder/layers_\d+/mlp/{metric}",)
                )
                for metric in METRICS
            },
            **{
                f"loss_{part}": Comparison(_loss(part), (f"loss/{name}",))
                for part, name in LOSSES.items()
            },
            "gradients": Comparison(_gradients, ("grads/.+",)),
        },
        ("batch/decoder_input_tokens", "params/token_embedder/embedding"),
        ("configuration", "training", "call"),
    ),
}
"""Kinds of models by name; a case of `parameters` only lends its arrays."""
