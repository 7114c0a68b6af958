"""Comparisons of stored routers, whatever their layout."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.compare import close, judge_choices, logit_band, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.subject import Subject
from openmoe_conformance.vector_cases import Arrays, Comparison, Kind, Run, VectorCase
from openmoe_reference import gradients, routing
from openmoe_spec.records import Decision

ROUTER_BOUND = {"relative": 2e-6, "of_largest": 1e-7}
ROUTER_GRADIENT_BOUND = {"relative": 2e-6, "of_largest": 1e-5}
_ROUNDINGS = 8 * 2.0**-24
"""A float32 softmax and its derivative round each term a few times."""


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
    """Where both sides keep a choice: what is kept is another clause's business."""
    got = s.decide(arrays["probs"], **_options(case, arrays))
    gate = np.zeros(arrays["combine_gate"].shape)
    for g, t, j in np.argwhere(got.kept):
        gate[g, t, got.expert_index[g, t, j]] = got.gate[g, t, j]
    slot = _slot_of(got, case.config["num_experts"])
    both = (slot >= 0) & (arrays["dispatch_position"] >= 0)
    wanted = np.where(both, arrays["combine_gate"], 0)
    close("gates", np.where(both, gate, 0), wanted, evidence, **ROUTER_BOUND)
    stored = np.where(both, arrays["combine_array"].sum(axis=-1), 0)
    close("combine_array", np.where(both, gate, 0), stored, evidence, **ROUTER_BOUND)


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
    kept = got.kept & (arrays["dispatch_indices"][..., 1] < case.config["expert_capacity"])
    wanted = np.where(kept, arrays["combine_weights"], 0)
    close("combine_weights", np.where(kept, got.gate, 0), wanted, evidence, **ROUTER_BOUND)


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


def _router_gradients(which: str) -> Run:
    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        options = _options(case, arrays)
        mask = options.pop("padding_mask")
        cotangent = arrays["cotangent"].sum(axis=-1)  # one slot at most of each (token, expert)
        found = s.gradients(
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
        sizes = _sizes_of_terms(case, arrays, which)
        for name, stored in (("inputs", "d_inputs"), ("router", "d_kernel")):
            bound = ROUTER_GRADIENT_BOUND | {"absolute": _ROUNDINGS * sizes[name]}
            wanted = arrays[f"{stored}_{which}"]
            close(f"{stored}_{which}", found[name], wanted, evidence, **bound)

    return run


def _sizes_of_terms(case: VectorCase, arrays: Arrays, which: str) -> dict[str, float]:
    """Return how large a gradient would be if no terms cancelled, by name.

    With K = E the balance loss is constant: what is stored and what is computed are both rounding
    noise of terms that cancel, and only the size of those terms says how much is legitimate.
    """
    inputs, kernel = arrays["token_inputs"].astype(np.float64), arrays["kernel"]
    index = routing.decide(arrays["probs"], **_options(case, arrays)).expert_index
    of_probabilities, of_logits = gradients.loss_cotangents(
        inputs,
        kernel,
        index,
        balance=float(which == "aux"),
        z=float(which == "z"),
        padding_mask=_mask(case, arrays),
    )
    if which == "combine":
        of_probabilities = arrays["cotangent"].sum(axis=-1)
    weighted = arrays["probs"] * np.abs(of_probabilities)
    terms = weighted + arrays["probs"] * weighted.sum(axis=-1, keepdims=True) + np.abs(of_logits)
    return {
        "inputs": float((terms @ np.abs(kernel).T).max()),
        "router": float(np.einsum("gtd,gte->de", np.abs(inputs), terms).max()),
    }


_ALL = {"probabilities": Comparison(_probabilities), "router_z_loss": Comparison(_router_z_loss)}
_INPUTS = ("token_inputs", "kernel", "logits", "probs")
_CONFIG = ("num_experts", "expert_capacity", "ignore_padding_tokens")
_TOKENS_CHOOSE = (*_CONFIG, "num_selected_experts", "batch_prioritized_routing")
KINDS: Mapping[str, Kind] = {
    "router_masked": Kind(
        {
            **_ALL,
            "decision": Comparison(_masked_decision),
            "gates": Comparison(_masked_gates),
            "route": Comparison(_masked_route),
            "balance_loss": Comparison(_balance_loss),
            "gradients_combine": Comparison(_router_gradients("combine")),
            "gradients_aux": Comparison(_router_gradients("aux")),
            "gradients_z": Comparison(_router_gradients("z")),
        },
        (
            *(*_INPUTS, "dispatch_mask", "dispatch_position", "combine_array", "combine_gate"),
            *("auxiliary_loss", "router_z_loss", "cotangent"),
            *(f"d_{x}_{y}" for x in ("inputs", "kernel") for y in ("combine", "aux", "z")),
        ),
        _TOKENS_CHOOSE,
    ),
    "router_scatter": Kind(
        {
            **_ALL,
            "decision": Comparison(_scatter_decision),
            "gates": Comparison(_scatter_gates),
            "balance_loss": Comparison(_balance_loss),
        },
        (*_INPUTS, "dispatch_indices", "combine_weights", "auxiliary_loss", "router_z_loss"),
        _TOKENS_CHOOSE,
    ),
    "router_experts_choose": Kind(
        {
            **_ALL,
            "decision": Comparison(_experts_decision),
            "gates": Comparison(_experts_gates),
        },
        (*_INPUTS, "dispatch_mask", "combine_array", "router_z_loss"),
        _CONFIG,
    ),
}
"""Kinds of routers by name."""
