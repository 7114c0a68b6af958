"""Checks of SPEC.md "Routing": the scatter and the experts-choose router."""

from __future__ import annotations

import numpy as np
from hypothesis import strategies as st

from openmoe_conformance import strategies
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.checks.routing_cases import (
    compare_records,
    decision_options,
)
from openmoe_conformance.compare import same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.subject import Subject
from openmoe_reference import routing


@check("ROUTE-21", "decide_scatter", cases=strategies.probabilities())
def scatter_decides_as_masked(subject: Subject, case: Case, _: Evidence) -> None:
    """Without ignored padding the scatter router's record is the masked router's."""
    got = subject.decide(case["probabilities"], function="decide_scatter", **decision_options(case))
    compare_records(got, routing.decide_scatter(case["probabilities"], **decision_options(case)))


@check("ROUTE-22", "decide_scatter(padding_mask)", cases=strategies.probabilities(masked=True))
def scatter_padding_still_takes_slots(subject: Subject, case: Case, _: Evidence) -> None:
    """Ignored padding chooses experts 0 ... K-1 with gate 0 and stands in their queues."""
    got = subject.decide(case["probabilities"], function="decide_scatter", **decision_options(case))
    wanted = routing.decide_scatter(case["probabilities"], **decision_options(case))
    compare_records(got, wanted)
    same("gate of kept choices", got.gate[got.kept], wanted.gate[wanted.kept])


@st.composite
def _experts_cases(draw: st.DrawFn, *, masked: bool = False) -> Case:
    case = draw(strategies.probabilities(masked=masked))
    tokens = case["probabilities"].shape[1]
    del case["k"]
    return case | {"capacity": min(case["capacity"], tokens)}


@check("ROUTE-23", "experts_choose", cases=_experts_cases())
def experts_take_their_best_tokens(subject: Subject, case: Case, _: Evidence) -> None:
    """Slot c of an expert is its c-th best token; equals by lower token index."""
    got = subject.experts_choose(**case)
    wanted = routing.experts_choose(**case)
    same("token_index", got.token_index, wanted.token_index)
    same("gate", got.gate, wanted.gate)


@check("ROUTE-24", "experts_choose(padding_mask)", cases=_experts_cases(masked=True))
def experts_see_masked_probabilities(subject: Subject, case: Case, _: Evidence) -> None:
    """Ignored padding has probability 0 before the experts choose; it may still fill slots."""
    got = subject.experts_choose(**case)
    wanted = routing.experts_choose(**case)
    same("token_index", got.token_index, wanted.token_index)
    same("gate", got.gate, wanted.gate)


@check(
    "ROUTE-25",
    "rejects_invalid_input",
    "experts_choose",
    cases=lambda _: iter([{"capacity": capacity} for capacity in (4, 9, 0)]),
)
def more_slots_than_tokens_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Three tokens cannot fill four slots."""
    probabilities = np.full((1, 3, 2), 0.5, np.float32)
    must_reject(
        f"experts_choose with capacity {case['capacity']}, T = 3",
        lambda: subject.call("experts_choose", probabilities, capacity=case["capacity"]),
    )
