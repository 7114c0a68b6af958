"""Checks of SPEC.md "Routing audits": what measures, predictors and intervals refuse."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np

from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject

_CHOSEN = np.array([[0, 1], [2, 3]], np.int32)
_WRONG = {"an expert twice": 2, "255": 255, "-1": -1}


def _illegal(*names: str) -> Callable[[Profile], Iterator[Case]]:
    """Return cases of a last choice that is wrong in one of these ways."""

    def cases(_: Profile) -> Iterator[Case]:
        for name in names:
            chosen = _CHOSEN.copy()
            chosen[1, 1] = _WRONG[name]
            yield {"wrong": name, "expert_index": chosen}

    return cases


@check("AUDIT-27", "rejects_invalid_input", "coactivation", cases=_illegal(*_WRONG))
def experts_that_are_none_go_with_nobody(subject: Subject, case: Case, _: Evidence) -> None:
    """An expert that there is not, and one twice for one token, raise."""
    must_reject(
        f"coactivation with {case['wrong']}",
        lambda: subject.call("coactivation", case["expert_index"], num_experts=4),
    )


@check("AUDIT-27", "rejects_invalid_input", "repetition", cases=_illegal("an expert twice", "-1"))
def experts_that_are_none_are_not_repeated(subject: Subject, case: Case, _: Evidence) -> None:
    """A sentinel is not an expert that neighbours have in common."""
    row = np.zeros(2, np.int32)
    must_reject(
        f"repetition with {case['wrong']}",
        lambda: subject.call("repetition", case["expert_index"], row),
    )


@check("AUDIT-27", "rejects_invalid_input", "saturation", cases=_illegal("an expert twice", "-1"))
def experts_that_are_none_are_not_shared(subject: Subject, case: Case, _: Evidence) -> None:
    """A sentinel of either checkpoint is not an expert that both choose."""
    wrong = case["expert_index"]
    for pair in ((wrong, _CHOSEN), (_CHOSEN, wrong), (wrong, wrong)):
        must_reject(f"saturation with {case['wrong']}", partial(subject.call, "saturation", *pair))


# ---- counts --------------------------------------------------------------------------------------

_COUNTS = np.array([[[1, 0], [0, 1], [0, 0]], [[2, 0], [0, 1], [0, 1]]])


def _unequal(_: Profile) -> Iterator[Case]:
    more, twice = _COUNTS.copy(), _COUNTS.copy()
    more[1, 2, 1] = 2
    yield {"wrong": "ranks of different tokens", "counts": more}
    twice[1, :2, 1] = 2, 0
    twice[1, 2, 1] = 0
    yield {"wrong": "an expert twice for one token", "counts": twice}
    below = _COUNTS.copy()
    below[1, 1:, 0] = 1, -1
    yield {"wrong": "a count below 0", "counts": below}


def _needs(function: str) -> tuple[str, str]:
    return "rejects_invalid_input", function


@check("AUDIT-27", *_needs("top_tokens"), cases=_unequal)
def tokens_of_counts_that_are_none(subject: Subject, case: Case, _: Evidence) -> None:
    """Counts below 0, of an expert twice for one token, or of different tokens by rank raise."""
    for by in ("count", "precision", "lift"):
        must_reject(
            f"top_tokens of {case['wrong']}",
            partial(subject.call, "top_tokens", case["counts"], by=by),
        )


@check("AUDIT-27", *_needs("vocabulary_specialisation"), cases=_unequal)
def preferences_of_counts_that_are_none(subject: Subject, case: Case, _: Evidence) -> None:
    """Counts below 0, of an expert twice for one token, or of different tokens by rank raise."""
    must_reject(
        f"vocabulary_specialisation of {case['wrong']}",
        lambda: subject.call("vocabulary_specialisation", case["counts"]),
    )


@check("AUDIT-27", *_needs("table_divergence"), cases=_unequal)
def distances_of_counts_that_are_none(subject: Subject, case: Case, _: Evidence) -> None:
    """Either table may be the one whose counts are none."""
    for pair in ((case["counts"], _COUNTS), (_COUNTS, case["counts"])):
        must_reject(
            f"table_divergence of {case['wrong']}",
            partial(subject.call, "table_divergence", *pair),
        )


@check("AUDIT-27", *_needs("explained_by_tokens"), cases=_unequal)
def slices_of_counts_that_are_none(subject: Subject, case: Case, _: Evidence) -> None:
    """Counts of the whole text, and of the slice, are of the same tokens in every rank."""
    tokens = np.array([0, 2])
    for whole, part in ((case["counts"], _COUNTS[1]), (_COUNTS, case["counts"][1])):
        must_reject(
            f"explained_by_tokens of {case['wrong']}",
            partial(subject.call, "explained_by_tokens", tokens, whole, part),
        )


# ---- no token at all -----------------------------------------------------------------------------


def _nothing(_: Profile) -> Iterator[Case]:
    yield {}


@check("AUDIT-27", *_needs("saturation"), cases=_nothing)
def nothing_is_shared_of_no_token(subject: Subject, _: Case, __: Evidence) -> None:
    """No token at all raises."""
    none = np.zeros((0, 2), np.int32)
    must_reject("saturation of no token", lambda: subject.call("saturation", none, none))


@check("AUDIT-27", *_needs("near_tie_share"), cases=_nothing)
def near_ties_of_no_token(subject: Subject, _: Case, __: Evidence) -> None:
    """No margin at all raises."""
    none = np.zeros(256, np.int64)
    must_reject("near_tie_share of no margin", lambda: subject.call("near_tie_share", none))


@check("AUDIT-27", *_needs("held_out_gain"), cases=_nothing)
def gain_of_no_token(subject: Subject, _: Case, __: Evidence) -> None:
    """Folds without a token raise."""
    none = np.zeros((8, 2, 3), np.int64)
    must_reject("held_out_gain of no token", lambda: subject.call("held_out_gain", none))


@check("AUDIT-27", *_needs("explained_by_tokens"), cases=_nothing)
def slices_of_no_token(subject: Subject, _: Case, __: Evidence) -> None:
    """A slice without a token raises."""
    tokens, part = np.zeros(2, np.int64), np.zeros((3, 2), np.int64)
    must_reject(
        "explained_by_tokens of no token",
        lambda: subject.call("explained_by_tokens", tokens, _COUNTS, part),
    )


@check("AUDIT-27", *_needs("information"), cases=_nothing)
def information_of_no_token(subject: Subject, _: Case, __: Evidence) -> None:
    """No token at all raises."""
    none = np.zeros((3, 4), np.int64)
    must_reject("information of no token", lambda: subject.call("information", none))


@check("AUDIT-27", *_needs("load_statistics"), cases=_nothing)
def load_of_no_choice(subject: Subject, _: Case, __: Evidence) -> None:
    """No choice at all raises."""
    none = np.zeros(4, np.int64)
    must_reject("load_statistics of no choice", lambda: subject.call("load_statistics", none))


# ---- below 0 -------------------------------------------------------------------------------------


def _tables_of(*functions: str) -> Callable[[Profile], Iterator[Case]]:
    """Return cases of functions of tables [keys, E], one of which has a count below 0."""

    def cases(_: Profile) -> Iterator[Case]:
        right, wrong = np.array([[3, 1], [2, 4]]), np.array([[3, 1], [2, -1]])
        for function in functions:
            yield {"function": function, "first": wrong, "second": right}
            yield {"function": function, "first": right, "second": wrong}

    return cases


def _refuse_below_0(subject: Subject, case: Case, _: Evidence) -> None:
    must_reject(
        f"{case['function']} with a count below 0",
        lambda: subject.call(case["function"], case["first"], case["second"]),
    )


@check("AUDIT-27", *_needs("held_out_hits"), cases=_tables_of("held_out_hits"))
def guesses_of_counts_below_0(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A count below 0 raises, to learn from or to be asked."""
    _refuse_below_0(subject, case, evidence)


@check("AUDIT-27", *_needs("overlap"), "relabelling", cases=_tables_of("overlap", "relabelling"))
def overlaps_of_counts_below_0(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A count below 0 raises, in either table."""
    _refuse_below_0(subject, case, evidence)


def _below_0(_: Profile) -> Iterator[Case]:
    yield {"function": "information", "counts": np.array([[1, 2], [3, -1]])}
    yield {"function": "load_statistics", "counts": np.array([3, -1, 2])}
    yield {"function": "near_tie_share", "counts": np.where(np.arange(256) == 200, -1, 1)}
    folds = np.ones((4, 2, 3), np.int64)
    folds[2, 1, 2] = -1
    yield {"function": "held_out_gain", "counts": folds}


@check(
    "AUDIT-27",
    *_needs("information"),
    *("load_statistics", "near_tie_share", "held_out_gain"),
    cases=_below_0,
)
def measures_of_counts_below_0(subject: Subject, case: Case, _: Evidence) -> None:
    """A count below 0 raises, though what it is added to makes more than 0."""
    must_reject(
        f"{case['function']} with a count below 0",
        lambda: subject.call(case["function"], case["counts"]),
    )


@check("AUDIT-27", *_needs("spread_floor"), cases=_nothing)
def floors_of_tokens_below_0(subject: Subject, _: Case, __: Evidence) -> None:
    """Fewer tokens than none raise."""
    tokens = np.array([3, -1])
    must_reject(
        "spread_floor of -1 tokens",
        lambda: subject.call("spread_floor", tokens, k=2, num_experts=4),
    )


# ---- not finite ----------------------------------------------------------------------------------


def _no_margins(_: Profile) -> Iterator[Case]:
    for value in (np.nan, np.inf, -0.5):
        yield {"margins": np.array([0.5, value], np.float32)}


@check("AUDIT-27", *_needs("margin_codes"), cases=_no_margins)
def margins_that_are_none(subject: Subject, case: Case, _: Evidence) -> None:
    """What is not finite, and what is below 0, is no margin."""
    must_reject(
        f"margin_codes of {case['margins'].tolist()}",
        lambda: subject.call("margin_codes", case["margins"]),
    )


def _no_numbers(_: Profile) -> Iterator[Case]:
    for value in (math.nan, math.inf, -math.inf):
        yield {"values": np.array([1.0, value, 2.0]), "estimate": 1.0}
        yield {"values": np.array([1.0, 2.0, 3.0]), "estimate": value}


@check("AUDIT-27", *_needs("bootstrap_interval"), cases=_no_numbers)
def intervals_of_no_numbers(subject: Subject, case: Case, _: Evidence) -> None:
    """What is not finite raises."""
    must_reject(
        "bootstrap_interval",
        lambda: subject.call("bootstrap_interval", case["estimate"], case["values"]),
    )


@check("AUDIT-27", *_needs("jackknife_interval"), cases=_no_numbers)
def intervals_of_no_folds(subject: Subject, case: Case, _: Evidence) -> None:
    """What is not finite raises."""
    must_reject(
        "jackknife_interval",
        lambda: subject.call("jackknife_interval", case["estimate"], case["values"]),
    )


@check("AUDIT-27", *_needs("document_fold"), "document_weights", cases=_nothing)
def documents_without_a_name(subject: Subject, _: Case, __: Evidence) -> None:
    """An empty name raises: all such documents would be one."""
    must_reject("document_fold of no name", lambda: subject.call("document_fold", ""))
    must_reject("document_weights of no name", lambda: subject.call("document_weights", ""))
