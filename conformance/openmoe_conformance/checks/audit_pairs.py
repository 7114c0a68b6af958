"""Checks of SPEC.md "Routing audits": two checkpoints on the same tokens."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.audit import SIZES
from openmoe_conformance.checks.audit_measures import counts_of_an_id
from openmoe_conformance.checks.audit_spreads import BOUND
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.subject import Subject


@st.composite
def _choices(draw: st.DrawFn) -> Case:
    """Draw tokens with K experts each, twice: the same, in another order, or other ones."""
    experts, k = draw(st.sampled_from(SIZES))
    draws = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    pairs = []
    for same_ones in draw(st.lists(st.booleans(), min_size=1, max_size=16)):
        few = draws.permutation(experts)[: k + 1]  # one more than are chosen, so that most meet
        first = draws.permutation(few)[:k]
        pairs.append((first, draws.permutation(first if same_ones else few)[:k]))
    first, second = np.array(pairs, np.int32).swapaxes(0, 1)
    return {"first": first, "second": second}


@check("AUDIT-09", "saturation", cases=_choices())
def experts_that_both_choose(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The mean part of a token's experts that both choose, in any order; of one column too."""
    for k in {1, case["first"].shape[1]}:
        first, second = case["first"][:, :k], case["second"][:, :k]
        pairs = zip(first.tolist(), second.tolist(), strict=True)
        wanted = sum(len({*one} & {*other}) for one, other in pairs) / first.size
        got = answers.numbers("saturation", subject.call("saturation", first, second), ())
        close(f"saturation of {k} choices", got, wanted, evidence, **BOUND)


@st.composite
def _two_tables(draw: st.DrawFn) -> Case:
    """Draw counts of the same ids by two checkpoints; some ids are only of one."""
    size = draw(st.sampled_from(SIZES))
    draws = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens = st.sampled_from([0, 1, 3, 5, 7, 40])
    pairs = draw(st.lists(st.tuples(tokens, tokens), min_size=1, max_size=8))
    first = np.stack([counts_of_an_id(draws, *size, n) for n, _ in pairs])
    second = np.stack([counts_of_an_id(draws, *size, n) for _, n in pairs])
    return {"first": first, "second": draw(st.sampled_from([second, second, second, first]))}


def _distance(first: list[list[int]], second: list[list[int]], n: int, m: int) -> float:
    k, bits = len(first[0]), 0.0
    for one, other in zip(first, second, strict=True):
        p, q = sum(one) / (k * n), sum(other) / (k * m)
        middle = (p + q) / 2
        bits += sum(x / 2 * math.log2(x / middle) for x in (p, q) if x)
    return bits


@check("AUDIT-15", "table_divergence", cases=_two_tables())
def distance_of_two_tables(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Jensen-Shannon divergence in bits, mean over ids of both by their tokens in both."""
    total, weight = 0.0, 0
    for one, other in zip(case["first"].tolist(), case["second"].tolist(), strict=True):
        n, m = (sum(ranks[0] for ranks in table) for table in (one, other))
        if n and m:
            total += (n + m) * _distance(one, other, n, m)
            weight += n + m
    wanted = total / weight if weight else math.nan
    answer = subject.call("table_divergence", case["first"], case["second"])
    got = answers.numbers("table_divergence", answer, ())
    # Of equal tables each term cancels, but for rounding.
    close("table_divergence", got, wanted, evidence, relative=1e-9, absolute=1e-12)


_COUNT = st.sampled_from([0, 0, 1, 2, 5, 100])


@st.composite
def _overlapping(draw: st.DrawFn) -> Case:
    """Draw choices [V, E] of two checkpoints, whose experts may have other numbers."""
    experts, ids = draw(st.integers(1, 6)), draw(st.integers(1, 5))
    row = st.lists(_COUNT, min_size=experts, max_size=experts)
    first = np.array(draw(st.lists(row, min_size=ids, max_size=ids)), np.int64)
    other = np.array(draw(st.lists(row, min_size=ids, max_size=ids)), np.int64)
    order = draw(st.permutations(range(experts)))
    return {"first": first, "second": draw(st.sampled_from([first, first[:, order], other]))}


def _overlap(first: ndarray, second: ndarray) -> list[list[int]]:
    return [
        [
            sum(min(one[i], other[j]) for one, other in zip(first, second, strict=True))
            for j in range(len(second[0]))
        ]
        for i in range(len(first[0]))
    ]


@check("AUDIT-15", "overlap", cases=_overlapping())
def overlap_of_experts(subject: Subject, case: Case, _: Evidence) -> None:
    """Of two experts the smaller count of each id is in common."""
    wanted = _overlap(case["first"].tolist(), case["second"].tolist())
    answer = subject.call("overlap", case["first"], case["second"])
    same("overlap", answers.array("overlap", answer), wanted)


@check("AUDIT-15", "relabelling", cases=_overlapping())
def experts_under_other_numbers(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The relabelling overlaps most; where numbers may stay, they do."""
    shared = _overlap(case["first"].tolist(), case["second"].tolist())
    experts = len(shared)

    def reached(order: tuple[int, ...]) -> int:
        return sum(shared[i][j] for i, j in enumerate(order))

    best = max(map(reached, permutations(range(experts))))
    answer = subject.call("relabelling", case["first"], case["second"])
    got = tuple(answers.whole("relabelling", answer, (experts,), below=experts).tolist())
    if sorted(got) != list(range(experts)):
        raise Disagreement(f"relabelling: gives an expert twice, {list(got)}")
    same("relabelling: overlap", reached(got), best)
    if reached(tuple(range(experts))) == best:
        same("relabelling: numbers that may stay", list(got), list(range(experts)))
    evidence.measured(0.0)
