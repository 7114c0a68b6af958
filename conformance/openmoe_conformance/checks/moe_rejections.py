"""Checks of SPEC.md "The mixture-of-experts layer": what it must reject."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from openmoe_conformance import strategies
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import routing


def _legal_layer() -> Case:
    return {
        "inputs": np.ones((1, 4, strategies.WIDTH), np.float32),
        "kernel": np.ones((strategies.WIDTH, 2), np.float32),
        "k": 1,
        "capacity": 2,
    } | strategies.expert_weights(0, 2)


def _illegal_layers(_: Profile) -> Iterator[Case]:
    good = _legal_layer()
    yield good | {"wi_0": good["wi_0"][..., :-1], "wrong": "wi_0"}
    yield good | {"wi_0": good["wi_1"], "wrong": "wi_0"}
    yield good | {"wo": good["wo"].swapaxes(1, 2), "wrong": "wo"}
    yield good | {"wi_1": good["wi_1"][:1], "wrong": "wi_1"}
    yield good | {"wo": good["wo"] * np.nan, "wrong": "wo"}
    yield good | {"kernel": good["kernel"][:-1], "wrong": "kernel"}
    yield good | {"inputs": good["inputs"] * np.inf, "wrong": "inputs"}


@check("MOE-11", "rejects_invalid_input", "moe", cases=_illegal_layers)
def illegal_parameters_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Parameters of the wrong shape or with values that are not finite raise."""
    must_reject(
        f"moe with a wrong {case['wrong']}",
        lambda: subject.call(
            "moe", case["inputs"], strategies.parameters(case), k=1, capacity=case["capacity"]
        ),
    )


@check(
    "MOE-11",
    "rejects_invalid_input",
    "moe",
    cases=lambda _: iter([{"lacks": name} for name in ("router", "wi_0", "wi_1", "wo")]),
)
def missing_parameters_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """A layer without one of its four weights raises."""
    good = _legal_layer()
    weights = strategies.parameters(good)
    del weights[case["lacks"]]
    must_reject(
        f"moe without {case['lacks']}",
        lambda: subject.call("moe", good["inputs"], weights, k=1, capacity=2),
    )


def _illegal_options(_: Profile) -> Iterator[Case]:
    yield {"option": "router", "value": "random"}
    yield {"option": "expert_dtype", "value": "float8"}


@check(
    "MOE-11", "rejects_invalid_input", "moe(router)", "moe(expert_dtype)", cases=_illegal_options
)
def unknown_words_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """A router or a dtype that nobody knows raises."""
    good = _legal_layer()
    options = {"k": 1, "capacity": 2, case["option"]: case["value"]}
    must_reject(
        f"moe with {case['option']} {case['value']}",
        lambda: subject.call("moe", good["inputs"], strategies.parameters(good), **options),
    )


def _broken_decisions(_: Profile) -> Iterator[Case]:
    yield {"field": "expert_index", "value": -1, "wrong": "kept without an expert"}
    yield {"field": "expert_index", "value": 4, "wrong": "an expert that is none"}
    yield {"field": "position", "value": -1, "wrong": "kept without a slot"}
    yield {"field": "position", "value": 2, "wrong": "a slot beyond the capacity"}
    yield {"field": "position", "value": 1, "wrong": "two choices in one slot"}


@check("MOE-11", "rejects_invalid_input", "dispatch", cases=_broken_decisions)
def broken_decisions_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """A record whose kept choices lack an expert or a slot of their own raises."""
    probabilities = np.array([[[0.7, 0.1, 0.1, 0.1], [0.7, 0.1, 0.1, 0.1]]], np.float32)
    decision = routing.decide(probabilities, k=1, capacity=2)
    field = getattr(decision, case["field"]).copy()
    field[0, 0, 0] = case["value"]
    broken = replace(decision, **{case["field"]: field})
    inputs = np.ones((1, 2, 3), np.float32)
    must_reject(
        f"dispatch of a decision with {case['wrong']}",
        lambda: subject.call("dispatch", inputs, broken, num_experts=4),
    )
