"""Comparisons of stored passes and losses of the published PyTorch port, in its dialect."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.adapter import offers
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Evidence
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
    compare_decisions,
    forward,
    is_bfloat16,
    of_layer,
    parameters,
    shown,
)
from openmoe_spec.dialects import DIALECTS
from openmoe_spec.records import Decision, ForwardResult

DIALECT = "torch_port"
DECIDED = ("expert_index", "position", "kept")
BOUND = {"relative": 0.0, "absolute": 2e-4}
ACTIVATION_BOUND = BOUND | {"of_largest": 2e-5}  # before a norm they may be large
LOSS_BOUND = {"relative": 5e-6}


def _bound(case: VectorCase, float32: Mapping[str, float] = BOUND) -> Mapping[str, float]:
    return BFLOAT16_BOUND if is_bfloat16(case) else float32


def passed(
    s: Subject, case: VectorCase, arrays: Arrays, ids: str = "in/input_ids", **more: Any
) -> ForwardResult:
    """Return the pass of stored ids; masks and position ids go with those of the port's caller."""
    fed = below(arrays, "in/") | {"decoder_input_tokens": arrays[ids]}
    fed.pop("input_ids", None)
    given = {f"batch/{name}": array for name, array in fed.items()}
    given |= {
        name: array
        for name, array in arrays.items()
        if name.startswith("params/") and name[len("params/") :] not in case.config["unused"]
    }
    return forward(s, case, given, what=ids, **more)


def _model_pass(s: Subject, case: VectorCase, arrays: Arrays) -> ForwardResult:
    """Return the pass of a model case; bfloat16 near-ties are decided as stored where they can be."""
    options: dict[str, Any] = {"training": case.config["training"]}
    if is_bfloat16(case) and offers(s.adapter, "forward(decisions)") is None:
        options["decisions"] = {
            layer: Decision(
                **{name: stored[name][None] for name in (*DECIDED, "gate")},
                capacity=int(stored["capacity"]),
            )
            for layer, stored in stored_layers(arrays).items()
        }
    return passed(s, case, arrays, **options)


def stored_layers(arrays: Arrays, prefix: str = "") -> dict[int, dict[str, ndarray]]:
    """Return what is stored of each sparse layer below `<prefix>moe<i>/`, by layer."""
    found = (re.match(rf"{prefix}moe(\d+)/", name) for name in arrays)
    layers = sorted({int(match[1]) for match in found if match})
    return {layer: below(arrays, f"{prefix}moe{layer}/") for layer in layers}


def same_decision(name: str, got: Decision, stored: Mapping[str, ndarray]) -> None:
    """Require the stored integers [T, K] of a call that is one group."""
    compare_decisions(name, got, {key: array[None] for key, array in stored.items()})
    if "capacity" in stored:
        same(f"{name}: capacity", got.capacity, stored["capacity"])
    if "used_capacity" in stored:
        used = np.bincount(got.expert_index[got.kept], minlength=len(stored["used_capacity"]))
        same(f"{name}: used_capacity", used, stored["used_capacity"])


def close_gates(
    name: str, case: VectorCase, got: Decision, stored: Mapping[str, ndarray], evidence: Evidence
) -> None:
    """Require the stored gates [T, K], 0 where a choice is dropped."""
    gate = np.where(got.kept, got.gate, 0)[0]
    close(f"{name}: gate", gate, stored["gate"], evidence, **_bound(case))


def close_router_logits(
    activations: Mapping[str, Any] | None,
    layer: int,
    case: VectorCase,
    stored: Mapping[str, ndarray],
    evidence: Evidence,
) -> None:
    """Require the stored router logits [T, E] of a layer."""
    logits = shown(activations, f"decoder/layers_{layer}/mlp/router/router_weights")
    bound, wanted = _bound(case, ACTIVATION_BOUND), stored["gate_logits"][None]
    close(f"gate_logits of layer {layer}", logits, wanted, evidence, **bound)


def _logits(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    got = _model_pass(s, case, arrays).logits
    close("logits", got, arrays["logits"], evidence, **_bound(case))


def _after(activations: Mapping[str, Any] | None, layer: int) -> ndarray:
    """Return the residual stream after a layer, its extra feed-forward included."""
    stream = shown(activations, f"decoder/layers_{layer}").astype(np.float32)
    extra = f"decoder/layers_{layer}/extra_mlp"
    return stream + shown(activations, extra) if extra in (activations or {}) else stream


def _hidden_states(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    """Embeddings, what each further layer reads, and the last norm's output."""
    got, wanted = _model_pass(s, case, arrays).activations, arrays["hidden_states"]
    states = [shown(got, "token_embedder").astype(np.float32)]
    states += [_after(got, layer) for layer in range(len(wanted) - 2)]
    states.append(shown(got, "decoder/decoder_norm").astype(np.float32))
    close("hidden_states", np.stack(states), wanted, evidence, **_bound(case, ACTIVATION_BOUND))


def _last_layer(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    last = case.config["configuration"]["num_layers"] - 1
    got = _after(_model_pass(s, case, arrays).activations, last)
    close(
        "last_layer_raw", got, arrays["last_layer_raw"], evidence, **_bound(case, ACTIVATION_BOUND)
    )


def _router_logits(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    got = _model_pass(s, case, arrays).activations
    for layer, stored in stored_layers(arrays).items():
        close_router_logits(got, layer, case, stored, evidence)


def _experts(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    got = _model_pass(s, case, arrays).activations
    for layer, stored in stored_layers(arrays).items():
        output = shown(got, f"decoder/layers_{layer}/mlp")
        close(
            f"output of layer {layer}",
            output,
            stored["output"],
            evidence,
            **_bound(case, ACTIVATION_BOUND),
        )


def _decisions(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    got = _model_pass(s, case, arrays).decisions
    for layer, stored in stored_layers(arrays).items():
        same_decision(f"layer {layer}", of_layer(got, layer), stored)


def _gates(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    got = _model_pass(s, case, arrays).decisions
    for layer, stored in stored_layers(arrays).items():
        close_gates(f"layer {layer}", case, of_layer(got, layer), stored, evidence)


def _sown(metric: str, stored: str) -> Run:
    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        metrics = _model_pass(s, case, arrays).metrics
        if any(metric not in one for one in metrics.values()) or not metrics:
            raise UnsupportedError(f"forward() shows no {metric}")
        got = np.array([metrics[layer][metric] for layer in sorted(metrics)])
        close(stored, got, arrays[stored], evidence, **_bound(case))

    return run


# ---- loss --------------------------------------------------------------------------------------


def _loss(s: Subject, case: VectorCase, arrays: Arrays, *, by_row: bool) -> dict[str, Any]:
    """Return the loss of the case's ids as targets; rows are added up, or averaged."""
    dialect: Any = DIALECTS[DIALECT]
    dialect = dialect | {"cross_entropy": "all_ones_by_row"} if by_row else DIALECT
    ids = arrays["in/input_ids"].astype(np.int32)

    def of(targets: ndarray) -> dict[str, Any]:
        answer = s.call(
            "loss",
            parameters(arrays),
            {"decoder_input_tokens": ids, "decoder_target_tokens": targets},
            configuration=case.config["configuration"],
            **case.config["call"] | {"dialect": dialect},
        )
        names = ("total", "cross_entropy", "auxiliary_loss", "router_z_loss")
        return answers.named("loss", answer, dict.fromkeys(names, ()))

    found = once(s, case, f"loss {by_row}", lambda: of(ids))
    if not by_row:
        # The port ignores its labels, -100 among them; here an id stands for those.
        hidden = ids.copy()
        hidden[:, :4] = 0
        same("loss of other labels", of(hidden)["total"], found["total"])
    return found


def _loss_total(*, by_row: bool) -> Run:
    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        got = _loss(s, case, arrays, by_row=by_row)
        key = f"chunk_head_{str(not by_row).lower()}"
        for labels in ("labels", "labels_-100_first4"):
            if labels in case.config["loss"]:
                wanted = case.config["loss"][labels][key]
                close(f"loss: {labels}", got["total"], wanted, evidence, **LOSS_BOUND)
        if by_row:
            wanted = case.config["loss"]["all_ones_target_formula"]
            close("loss without routers", got["cross_entropy"], wanted, evidence, **LOSS_BOUND)

    return run


def _loss_of_routers(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    got, wanted = _loss(s, case, arrays, by_row=False), case.config["loss"]["router_terms"]
    for name, stored in (("auxiliary_loss", "aux"), ("router_z_loss", "z")):
        close(f"router term {stored}", got[name], wanted[stored], evidence, **LOSS_BOUND)


_LAYER = r"moe\d+/"


def layer_arrays(prefix: str, *names: str) -> tuple[str, ...]:
    """Return the patterns of what is stored of sparse layers below `prefix`."""
    return tuple(prefix + _LAYER + name for name in names)


KINDS: Mapping[str, Kind] = {
    "port_model": Kind(
        {
            "forward_logits": Comparison(_logits, ("logits",)),
            "forward_hidden_states": Comparison(_hidden_states, ("hidden_states",)),
            "forward_last_layer": Comparison(_last_layer, ("last_layer_raw",)),
            "forward_router": Comparison(_router_logits, layer_arrays("", "gate_logits")),
            "forward_decisions": Comparison(_decisions, layer_arrays("", *DECIDED)),
            "forward_gates": Comparison(_gates, layer_arrays("", "gate")),
            "forward_experts": Comparison(_experts, layer_arrays("", "output")),
            "forward_balance_loss": Comparison(
                _sown("auxiliary_loss", "aux_losses"), ("aux_losses",)
            ),
            "forward_router_z_loss": Comparison(_sown("router_z_loss", "z_losses"), ("z_losses",)),
            "loss_added_up": Comparison(_loss_total(by_row=False)),
            "loss_by_row": Comparison(_loss_total(by_row=True)),
            "loss_of_routers": Comparison(_loss_of_routers),
        },
        ("in/input_ids",),
        ("configuration", "call", "unused", "training"),
    ),
}
"""The port's kinds of passes by name."""
