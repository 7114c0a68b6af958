"""Checks of SPEC.md "Routing audits": what is refused of ids, choices, keys, counts, shares and gates."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject

_E = 4
_CHOSEN = [[0, 1], [2, 0], [3, 2]]
_COUNTS = [[[2, 0], [1, 1], [0, 2], [0, 0]]]
_WHOLE = [0.5, 0.25, 0.25, 0.0]
_HALF = [[0.5, 0.25], [0.5, 0.125], [0.25, 0.25]]
_NO_NUMBERS = (float("nan"), float("inf"), -float("inf"))


def _with(legal: Any, place: tuple[int, ...], value: float, dtype: type) -> ndarray:
    array: ndarray = np.array(legal, dtype)
    array[place] = value
    return array


def _illegal_choices(none: int) -> Callable[[Profile], Iterator[Case]]:
    """Return cases of a last choice that is of no expert, `none` among them, or of one twice."""

    def cases(_: Profile) -> Iterator[Case]:
        for expert in (none, _E, 255, 2**31 - 1):
            wrong = _with(_CHOSEN, (2, 1), expert, np.int32)
            yield {"wrong": f"expert {expert}", "expert_index": wrong}
        yield {"wrong": "expert 255 of a byte", "expert_index": np.array([[0, 255]], np.uint8)}
        twice = _with(_CHOSEN, (1, 1), 2, np.int32)
        yield {"wrong": "an expert twice for one token", "expert_index": twice}

    return cases


@check("AUDIT-27", "rejects_invalid_input", "count_choices", cases=_illegal_choices(-1))
def choices_that_are_none_are_not_counted(subject: Subject, case: Case, _: Evidence) -> None:
    """A recorder's sentinel and an expert twice for one token raise."""
    keys = np.zeros(len(case["expert_index"]), np.int32)
    must_reject(
        f"count_choices with {case['wrong']}",
        lambda: subject.call(
            "count_choices", keys, case["expert_index"], num_keys=1, num_experts=_E
        ),
    )


@check("AUDIT-27", "rejects_invalid_input", "replay_choices", cases=_illegal_choices(-2))
def choices_that_are_none_are_not_replayed(subject: Subject, case: Case, _: Evidence) -> None:
    """An expert that there is not raises, but -1, and one twice for one token."""
    sizes = {"num_experts": _E, "capacity": 1}
    for priority in ("choices", "tokens"):
        replay = partial(subject.call, "replay_choices", case["expert_index"][None], **sizes)
        must_reject(
            f"replay_choices by {priority} with {case['wrong']}",
            partial(replay, priority=priority),
        )


def _illegal_keys(_: Profile) -> Iterator[Case]:
    for key in (-2, 2, 2**31 - 1):
        yield {"keys": np.array([0, 1, key], np.int32)}


@check("AUDIT-27", "rejects_invalid_input", "count_choices", cases=_illegal_keys)
def keys_that_there_are_not_are_not_counted(subject: Subject, case: Case, _: Evidence) -> None:
    """A key beyond the last, and one below -1, raise."""
    chosen = np.array(_CHOSEN, np.int32)
    must_reject(
        f"count_choices with key {case['keys'][2]}",
        lambda: subject.call("count_choices", case["keys"], chosen, num_keys=2, num_experts=_E),
    )


@check("AUDIT-27", "rejects_invalid_input", "drop_counts", cases=_illegal_keys)
def drops_of_keys_that_there_are_not(subject: Subject, case: Case, _: Evidence) -> None:
    """A key beyond the last, and one below -1, raise."""
    dropped = np.zeros((3, 2), bool)
    must_reject(
        f"drop_counts with key {case['keys'][2]}",
        lambda: subject.call("drop_counts", dropped, case["keys"], num_keys=2),
    )


def _illegal_ids(_: Profile) -> Iterator[Case]:
    for place in ((0, 0), (0, 2), (1, 3)):
        yield {"ids": _with([[0, 5, 6, 0], [0, 7, 0, 0]], place, -1, np.int32)}


@check("AUDIT-27", "rejects_invalid_input", "counted_tokens", cases=_illegal_ids)
def ids_below_0(subject: Subject, case: Case, _: Evidence) -> None:
    """-1 is no id, and no padding either."""
    must_reject("counted_tokens with -1", lambda: subject.call("counted_tokens", case["ids"]))


def _illegal_counts(_: Profile) -> Iterator[Case]:
    more = _with(_COUNTS, (0, 3, 1), 1, np.int64)
    yield {"wrong": "ranks of different tokens", "counts": more}
    fewer = _with(_COUNTS, (0, 2, 1), 0, np.int64)
    yield {"wrong": "a rank of fewer tokens", "counts": fewer}
    twice = np.array([[[3, 1], [0, 1], [0, 1], [0, 0]]], np.int64)
    yield {"wrong": "an expert twice for one token", "counts": twice}
    below = np.array([[[2, 0], [1, 1], [1, 2], [-1, 0]]], np.int64)
    yield {"wrong": "a count below 0", "counts": below}


def _refuse_counts(subject: Subject, case: Case, function: str) -> None:
    what = f"{function} of {case['wrong']}"
    must_reject(what, lambda: subject.call(function, case["counts"]))


@check("AUDIT-27", "rejects_invalid_input", "choice_shares", cases=_illegal_counts)
def shares_of_counts_that_are_none(subject: Subject, case: Case, _: Evidence) -> None:
    """Counts below 0, of an expert twice for one token, or of different tokens by rank raise."""
    _refuse_counts(subject, case, "choice_shares")


@check("AUDIT-27", "rejects_invalid_input", "share_spread", "mean_spread", cases=_illegal_counts)
def spreads_of_counts_that_are_none(subject: Subject, case: Case, _: Evidence) -> None:
    """Counts below 0, of an expert twice for one token, or of different tokens by rank raise."""
    _refuse_counts(subject, case, "share_spread")
    _refuse_counts(subject, case, "mean_spread")


@check(
    "AUDIT-27",
    "rejects_invalid_input",
    "debiased_spread",
    "specialisation",
    cases=_illegal_counts,
)
def debiased_spreads_of_counts_that_are_none(subject: Subject, case: Case, _: Evidence) -> None:
    """Counts below 0, of an expert twice for one token, or of different tokens by rank raise."""
    _refuse_counts(subject, case, "debiased_spread")
    _refuse_counts(subject, case, "specialisation")


def _illegal_shares(_: Profile) -> Iterator[Case]:
    for value in _NO_NUMBERS:
        yield {"shares": _with(_WHOLE, (1,), value, np.float64)}
    yield {"shares": np.array([0.5, 0.5, -0.25, 0.25])}


@check("AUDIT-27", "rejects_invalid_input", "spread_floor(shares)", cases=_illegal_shares)
def floors_of_shares_that_are_none(subject: Subject, case: Case, _: Evidence) -> None:
    """Shares that are not finite, or below 0, raise."""
    tokens = np.array([3, 200], np.int64)
    must_reject(
        f"spread_floor with shares {case['shares'].tolist()}",
        lambda: subject.call("spread_floor", tokens, k=2, num_experts=_E, shares=case["shares"]),
    )


@check("AUDIT-27", "rejects_invalid_input", "debiased_spread(shares)", cases=_illegal_shares)
def spreads_around_shares_that_are_none(subject: Subject, case: Case, _: Evidence) -> None:
    """Shares that are not finite, or below 0, raise."""
    counts = np.array(_COUNTS, np.int64)
    must_reject(
        f"debiased_spread with shares {case['shares'].tolist()}",
        lambda: subject.call("debiased_spread", counts, shares=case["shares"]),
    )


def _illegal_gates(_: Profile) -> Iterator[Case]:
    for value in _NO_NUMBERS:
        yield {"gate": _with(_HALF, (1, 0), value, np.float32)}


def _gates_or_none(profile: Profile) -> Iterator[Case]:
    yield from _illegal_gates(profile)
    yield {"gate": _with(_HALF, (1, 0), -0.5, np.float32)}
    yield {"gate": np.zeros((3, 2), np.float32)}  # nothing to be a part of


@check("AUDIT-27", "rejects_invalid_input", "lost_gate_share", cases=_gates_or_none)
def losses_of_gates_that_are_none(subject: Subject, case: Case, _: Evidence) -> None:
    """Gates that are not finite or below 0 raise, dropped or kept, and gates that add up to nothing."""
    for dropped in (np.zeros((3, 2), bool), np.ones((3, 2), bool)):
        must_reject(
            f"lost_gate_share of gates {case['gate'].tolist()}",
            partial(subject.call, "lost_gate_share", case["gate"], dropped),
        )


@check("AUDIT-27", "rejects_invalid_input", "replay_choices(gate)", cases=_illegal_gates)
def replays_by_gates_that_are_none(subject: Subject, case: Case, _: Evidence) -> None:
    """Gates that are not finite raise: they have no order, or none that a router made."""
    chosen, sizes = np.array([_CHOSEN], np.int32), {"num_experts": _E, "capacity": 1}
    must_reject(
        f"replay_choices by gates {case['gate'].tolist()}",
        lambda: subject.call(
            "replay_choices", chosen, **sizes, priority="gates", gate=case["gate"][None]
        ),
    )
