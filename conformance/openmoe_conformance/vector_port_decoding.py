"""Comparisons of stored cached calls, pairs of passes and generation of the published PyTorch port."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from openmoe_conformance import answers
from openmoe_conformance.compare import close, fields_of, same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.subject import Subject, UnsupportedError
from openmoe_conformance.vector_cases import Arrays, Comparison, Kind, Run, VectorCase, once
from openmoe_conformance.vector_passes import of_layer, parameters
from openmoe_conformance.vector_port import (
    BOUND,
    DECIDED,
    DIALECT,
    close_gates,
    close_router_logits,
    layer_arrays,
    passed,
    same_decision,
    stored_layers,
)


def _cached_calls(s: Subject, case: VectorCase, arrays: Arrays) -> dict[str, Any]:
    def run() -> dict[str, Any]:
        fed = {"decoder_input_tokens": arrays["input_ids"].astype(np.int32)}
        if "attention_mask" in arrays:
            fed["attention_mask"] = arrays["attention_mask"].astype(np.int32)
        answer = s.call(
            "cached_calls",
            parameters(arrays),
            fed,
            configuration=case.config["configuration"],
            prefill=case.config["prefill"],
            chunk=case.config["chunk"],
            positions_from_mask=case.config["positions_from_mask"],
            dialect=case.config["call"]["dialect"],
        )
        return fields_of(answer, ("logits", "decisions"))

    return once(s, case, "cached_calls", run)


def _cached_logits(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    wanted = arrays["decode_logits"]
    got = answers.numbers("logits", _cached_calls(s, case, arrays)["logits"], wanted.shape)
    close("logits of cached calls", got, wanted, evidence, **BOUND)


def _cached_decisions(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    """Of each call: 00 is the prefill."""
    calls = _cached_calls(s, case, arrays)["decisions"]
    if calls is None:
        raise UnsupportedError("cached_calls() shows no decisions")
    k = case.config["configuration"]["num_selected_experts"]
    experts = case.config["configuration"]["num_experts"]
    for number, expected in enumerate(case.config["steps"]):
        for layer, stored in stored_layers(arrays, f"step{number:02d}/").items():
            facts = expected[f"moe{layer}"]
            name, shape = f"call {number}, layer {layer}", (1, facts["tokens"], k)
            got = answers.decision(
                name, calls[number][layer], shape, experts=experts, capacity=facts["capacity"]
            )
            same_decision(name, got, stored)
            close_gates(name, case, got, stored, evidence)
            same(f"{name}: dropped", int((~got.kept).sum()), facts["dropped"])


def _full_logits(ids: str, wanted: str) -> Run:
    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        got = passed(s, case, _masked(arrays), ids, training=False).logits
        close(wanted, got, arrays[wanted], evidence, **BOUND)

    return run


def _full_decisions(ids: str, prefix: str) -> Run:
    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        got = passed(s, case, _masked(arrays), ids, training=False).decisions
        for layer, stored in stored_layers(arrays, prefix).items():
            same_decision(f"layer {layer}", of_layer(got, layer), stored)
            close_gates(f"layer {layer}", case, of_layer(got, layer), stored, evidence)

    return run


def _full_router(ids: str, prefix: str) -> Run:
    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        got = passed(s, case, _masked(arrays), ids, training=False).activations
        for layer, stored in stored_layers(arrays, prefix).items():
            close_router_logits(got, layer, case, stored, evidence)

    return run


def _masked(arrays: Arrays) -> Arrays:
    """Return the arrays with the mask of a decoding case where a pass looks for one."""
    mask = arrays.get("attention_mask")
    return arrays if mask is None else {**arrays, "in/attention_mask": mask}


def _generated(stored: str, *, use_cache: bool) -> Run:
    def run(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
        ids = np.array(case.config["input_ids"], np.int32)
        mask = case.config["attention_mask"]
        got = s.call(
            "greedy",
            parameters(arrays),
            ids,
            configuration=case.config["configuration"],
            new_tokens=case.config["new_tokens"],
            attention_mask=None if mask is None else np.array(mask, np.int32),
            use_cache=use_cache,
            dialect=DIALECT,
        )
        same("ids", answers.array("greedy", got), case.config[stored])

    return run


_WEIGHTS = ("configuration", "call", "unused")
KINDS: Mapping[str, Kind] = {
    "port_decoding": Kind(
        {
            "decode_logits": Comparison(_cached_logits, ("decode_logits",)),
            "decode_decisions": Comparison(_cached_decisions, layer_arrays("step00/", *DECIDED)),
            "forward_logits": Comparison(
                _full_logits("input_ids", "full_logits"), ("full_logits",)
            ),
            "forward_decisions": Comparison(
                _full_decisions("input_ids", "full/"), layer_arrays("full/", *DECIDED)
            ),
        },
        ("input_ids",),
        (*_WEIGHTS, "prefill", "chunk", "positions_from_mask", "steps"),
    ),
    "port_pair": Kind(
        {
            f"forward_{what}_{side}": comparison
            for side in "ab"
            for what, comparison in {
                "logits": Comparison(
                    _full_logits(f"input_{side}", f"logits_{side}"), (f"logits_{side}",)
                ),
                "router": Comparison(
                    _full_router(f"input_{side}", f"{side}/"),
                    layer_arrays(f"{side}/", "gate_logits"),
                ),
                "decisions": Comparison(
                    _full_decisions(f"input_{side}", f"{side}/"),
                    layer_arrays(f"{side}/", *DECIDED),
                ),
            }.items()
        },
        ("input_a", "input_b"),
        _WEIGHTS,
    ),
    "port_generation": Kind(
        {
            "generate_with_cache": Comparison(_generated("greedy_use_cache", use_cache=True)),
            "generate_without_cache": Comparison(_generated("greedy_no_cache", use_cache=False)),
        },
        (),
        ("configuration", "input_ids", "attention_mask", "new_tokens"),
    ),
}
"""The port's kinds of decoding by name."""
