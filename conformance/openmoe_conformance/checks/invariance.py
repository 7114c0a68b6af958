"""Checks of SPEC.md "Routing": invariance, choices from random tokens, what must be rejected."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from openmoe_conformance import strategies
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.checks.routing_cases import (
    decision_options,
    random_tokens,
    router_arguments,
)
from openmoe_conformance.compare import judge_choices, logit_band, same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.queues import compare_queue, queue
from openmoe_conformance.subject import Subject
from openmoe_reference import routing


def _many_groups(_: Profile) -> Iterator[Case]:
    generator = np.random.default_rng(7)
    for groups, tokens in ((4, 16), (6, 64)):
        inputs = generator.normal(size=(groups, tokens, 64)).astype(np.float32)
        kernel = generator.normal(scale=0.05, size=(64, 8)).astype(np.float32)
        yield {"inputs": inputs, "kernel": kernel, "k": 2, "capacity": max(4, tokens // 6)}


@check("ROUTE-17", "route", cases=_many_groups)
def groups_do_not_see_each_other(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Routing a batch whole, one group at a time and in two parts gives one record."""
    inputs = case["inputs"]
    whole = subject.route(**router_arguments(case))
    cuts = (list(range(1, len(inputs))), [len(inputs) // 2 + 1])
    for cut in cuts:
        parts = [
            subject.route(**router_arguments(case | {"inputs": np.ascontiguousarray(part)}))
            for part in np.split(inputs, cut)
        ]
        for name in ("expert_index", "position", "kept"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            same(f"{name} of a batch split at {cut}", joined, getattr(whole, name))
        evidence.examples += 1


@check("ROUTE-17", "decide", cases=strategies.probabilities())
def groups_can_be_permuted(subject: Subject, case: Case, _: Evidence) -> None:
    """Reversing the groups reverses the record and changes nothing else."""
    whole = subject.decide(case["probabilities"], **decision_options(case))
    turned = case | {"probabilities": np.ascontiguousarray(case["probabilities"][::-1])}
    back = subject.decide(turned["probabilities"], **decision_options(turned))
    for name in ("expert_index", "position", "kept"):
        same(f"{name} of reversed groups", getattr(back, name)[::-1], getattr(whole, name))


@check("ROUTE-19", "route", cases=random_tokens)
def choices_from_random_tokens(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Decided choices equal the reference's, others are admissible; queues are exact."""
    got = subject.route(**router_arguments(case))
    logits, half = logit_band(case["inputs"], case["kernel"], subject.arithmetic)
    wanted = routing.decide(
        routing.softmax(logits).astype(np.float32), k=case["k"], capacity=case["capacity"]
    )
    decided = judge_choices(got.expert_index, logits, half, wanted.expert_index)
    evidence.judged(decided.size, int((~decided).sum()))
    evidence.examples += decided.size
    # Given the implementation's own choices, its positions and drops are integers.
    compare_queue(got, queue(got.expert_index), case["capacity"])


def _illegal_decisions(_: Profile) -> Iterator[Case]:
    uniform = np.full((1, 3, 4), 0.25, np.float32)
    good: Case = {"probabilities": uniform, "k": 2, "capacity": 2}
    not_a_number = uniform.copy()
    not_a_number[0, 1, 2] = np.nan
    for name, value in (
        ("k", 5),
        ("k", 0),
        ("k", 2.0),
        ("capacity", 0),
        ("capacity", -1),
        ("capacity", 1.5),
        ("probabilities", not_a_number),
        ("probabilities", np.full((1, 3, 4), np.inf, np.float32)),
        ("probabilities", np.full((1, 3, 4), -0.25, np.float32)),
        ("probabilities", np.full((3, 4), 0.25, np.float32)),
        ("probabilities", np.full((1, 3, 4), 0.25, np.float64)),
    ):
        yield good | {name: value, "wrong": name}


@check("ROUTE-20", "rejects_invalid_input", "decide", cases=_illegal_decisions)
def illegal_decisions_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """K outside 1..E, capacity below 1, fractions, non-finite, negative, wrong shape or dtype."""
    must_reject(
        f"decide with a wrong {case['wrong']}",
        lambda: subject.call("decide", case["probabilities"], **decision_options(case)),
    )


def _illegal_inputs(_: Profile) -> Iterator[Case]:
    inputs, kernel = np.ones((1, 3, 4), np.float32), np.ones((4, 2), np.float32)
    yield {"inputs": inputs * np.nan, "kernel": kernel, "wrong": "inputs"}
    yield {"inputs": inputs * np.inf, "kernel": kernel, "wrong": "inputs"}
    yield {"inputs": inputs, "kernel": kernel * np.inf, "wrong": "kernel"}
    yield {"inputs": inputs, "kernel": np.ones((5, 2), np.float32), "wrong": "kernel"}
    yield {"inputs": inputs[0], "kernel": kernel, "wrong": "inputs"}


@check("ROUTE-20", "rejects_invalid_input", "probabilities", cases=_illegal_inputs)
def illegal_router_inputs_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Values that are not finite and shapes that do not match raise."""
    must_reject(
        f"probabilities with a wrong {case['wrong']}",
        lambda: subject.call("probabilities", case["inputs"], case["kernel"]),
    )
