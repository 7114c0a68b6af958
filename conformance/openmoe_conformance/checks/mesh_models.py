"""Checks of SPEC.md "Meshes": whole models, their losses, gradients and steps.

What is right on a mesh is what is right without one, so bodies of other chapters' checks are used on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from typing import Any

from openmoe_conformance import model_cases
from openmoe_conformance.adapter import UnsupportedError
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.clear_models import Oracle
from openmoe_conformance.checks.decoding import a_step_routes_rows_of_length_one, built
from openmoe_conformance.checks.meshes import cases_of, meshes_of, on_each
from openmoe_conformance.checks.microbatches import (
    LOSS_BOUND,
    LOSSES,
    a_training_step_is_composed,
    slices_are_added_up,
)
from openmoe_conformance.compare import close, same
from openmoe_conformance.model_judging import (
    OF_LARGEST,
    Decisions,
    answered,
    by_hand,
    cancelling,
    given,
    judge_routing,
)
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject

CLEAR = 1e-4
"""Least gap in logits of a clear case; a float32 model's logits err by less than 3e-5."""

MODEL = model_cases.in_eighths(blocks=1, rows=32)
"""Every size has eight parts; rows of unlike numbers of tokens; a capacity of one slot."""

DEEP = MODEL | {"blocks": 2, "rows": 16}
"""Two sparse layers: what the first one moves, the second one reads."""

STEPS = MODEL | {"rows": 8, "length": 12, "eval_capacity_factor": 2.0}


def _clear(world: Case, run: Callable[[Oracle, Case], Any]) -> Callable[[Profile], Iterator[Case]]:
    """Return cases of a world in which no choice of the run is closer than CLEAR."""

    @cache
    def found(number: int) -> Case:
        for seed in range(1000 * number, 1000 * number + 1000):
            oracle, case = Oracle(), world | {"seed": seed}
            run(oracle, case)
            if oracle.least_gap > CLEAR:
                return case
        raise AssertionError("no clear case")

    def cases(profile: Profile) -> Iterator[Case]:
        for number in range(cases_of(profile)):
            yield found(number) | {"meshes": meshes_of(profile)}

    return cases


def _forward(oracle: Oracle, case: Case) -> Decisions:
    one = given(case)
    return oracle.forward(one.parameters, one.batch, **one.arguments()).decisions


def _accumulated(oracle: Oracle, case: Case) -> None:
    fields, parameters, batch = model_cases.build(case, min_expert_capacity=1)
    options = {"configuration": fields, "num_microbatches": case["num_microbatches"]}
    oracle.accumulated_gradients(parameters, batch, **options)


def _decoded(oracle: Oracle, case: Case) -> None:
    fields, parameters, batch = built(case)
    oracle.decode(parameters, batch, configuration=fields, steps=4, dtype="float64")


DEEP_CASES = _clear(DEEP, _forward)
MODEL_CASES = _clear(MODEL, _forward)
SLICED_CASES = _clear(MODEL | {"num_microbatches": 2}, _accumulated)
STEPS_CASES = _clear(STEPS, _decoded)


def _compare_routing(got: Decisions, wanted: Decisions) -> None:
    if not got:
        raise UnsupportedError("forward() shows no decisions")
    for layer, decision in wanted.items():
        for name in ("expert_index", "position", "kept"):
            shown = getattr(got[layer], name)
            same(f"layer {layer}: {name}", shown, getattr(decision, name))


@check("MESH-04", "forward(mesh)", "meshes", cases=DEEP_CASES)
def clear_routing_is_the_same(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Where no choice is close, every layer's choices, positions and drops are those of one device."""
    one, wanted = given(case), _forward(Oracle(), case)

    def body(on: Subject) -> None:
        got = on.forward(one.parameters, one.batch, **one.arguments())
        _compare_routing(got.decisions, wanted)

    on_each(subject, case, evidence, body)


def _crowds(profile: Profile) -> Iterator[Case]:
    for seed in range(cases_of(profile)):
        yield DEEP | {"rows": 32, "seed": seed, "meshes": meshes_of(profile)}


@check("MESH-04", "forward(mesh)", "meshes", cases=_crowds)
def only_near_ties_differ(subject: Subject, case: Case, evidence: Evidence) -> None:
    """1024 drawn tokens: nothing differs where no sum is cut, elsewhere by the interval rule alone."""
    one = given(case)
    alone = subject.forward(one.parameters, one.batch, **one.arguments()).decisions

    def body(on: Subject) -> None:
        assert on.mesh is not None
        got = judge_routing(on, one, evidence)
        if on.mesh[2] == 1:
            _compare_routing(got, alone)
        moved = sum(
            int((got[i].expert_index != alone[i].expert_index).any(axis=-1).sum()) for i in got
        )
        most = evidence.details.get("tokens routed otherwise", 0)
        evidence.details["tokens routed otherwise"] = max(most, moved)

    on_each(subject, case, evidence, body)


@check("MESH-05", "forward(mesh)", "meshes", cases=DEEP_CASES)
def logits_are_the_same(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Heads, widths and ids in parts: within 1e-5 of the largest logit of the float64 reference."""

    def body(on: Subject) -> None:
        both = answered(on, given(case), evidence)
        if both is not None:
            got, wanted = both[0].logits, both[1].result.logits
            close("logits", got, wanted, evidence, relative=0, of_largest=OF_LARGEST)

    on_each(subject, case, evidence, body)


@check("MESH-05", "loss(mesh)", "loss(training)", "meshes", cases=MODEL_CASES)
def losses_are_of_the_whole_batch(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Divided by the weights of all rows, whose shares have unlike numbers of tokens."""
    one = given(case)
    wanted = Oracle().loss(one.parameters, one.batch, **one.arguments())

    def body(on: Subject) -> None:
        shapes: dict[str, tuple[int, ...]] = dict.fromkeys(LOSSES, ())
        got = on.named("loss", shapes, one.parameters, one.batch, **one.arguments())
        for name in LOSSES:
            close(f"loss {name}", got[name], wanted[name], evidence, **LOSS_BOUND)

    on_each(subject, case, evidence, body)


@check(
    "MESH-05",
    "model_gradients(mesh)",
    "model_gradients(training)",
    "meshes",
    cases=MODEL_CASES,
)
def tensors_gradients_are_the_same(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Of every tensor, those that each share has whole and those that it has a part of."""
    one = given(case)
    wanted = by_hand(one, _forward(Oracle(), case))
    bound = {"relative": 0.0, "of_largest": OF_LARGEST, "absolute": cancelling(wanted)}

    def body(on: Subject) -> None:
        shapes = {name: value.shape for name, value in one.parameters.items()}
        got = on.named("model_gradients", shapes, one.parameters, one.batch, **one.arguments())
        for name, value in got.items():
            close(f"gradient of {name}", value, wanted[name], evidence, **bound)

    on_each(subject, case, evidence, body)


@check(
    "MESH-05",
    "accumulated_gradients(mesh)",
    "train_step(mesh)",
    "train_step(num_microbatches)",
    "train_step(num_expert_partitions)",
    "meshes",
    cases=SLICED_CASES,
)
def a_step_is_the_same(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Gradients, tensors and moments of one step of training, wherever their parts lie."""

    def body(on: Subject) -> None:
        slices_are_added_up(on, case, evidence)
        a_training_step_is_composed(on, case, evidence)

    on_each(subject, case, evidence, body)


def _prompts(profile: Profile) -> Iterator[Case]:
    yield from (case | {"meshes": meshes_of(profile)[-1:]} for case in STEPS_CASES(profile))


@check("MESH-05", "decode(mesh)", "meshes", cases=_prompts)
def steps_are_the_same(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Prefill, cached steps and caches of eight rows."""
    on_each(
        subject, case, evidence, lambda on: a_step_routes_rows_of_length_one(on, case, evidence)
    )


@check("MESH-07", "accumulated_gradients(mesh)", "meshes", cases=SLICED_CASES)
def slices_are_of_the_whole_batch(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Two microbatches are the first half of all rows and the second, in whatever shares."""
    on_each(subject, case, evidence, lambda on: slices_are_added_up(on, case, evidence))
