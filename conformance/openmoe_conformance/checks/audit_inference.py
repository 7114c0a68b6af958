"""Checks of SPEC.md "Routing audits": what keys tell of the routing."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st

from openmoe_conformance import answers
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.audit import counted, texts
from openmoe_conformance.checks.audit_intervals import LEVELS, jackknife_half
from openmoe_conformance.checks.audit_spreads import BOUND
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject

Table = list[list[int]]
_COUNT = st.sampled_from([0, 0, 0, 1, 1, 2, 3, 40])


@st.composite
def _first_choices(draw: st.DrawFn, *, folds: int = 1) -> Case:
    """Draw first choices [F, keys, E]; every fold lacks some keys, and has two experts at least."""
    experts, keys = draw(st.integers(2, 9)), draw(st.integers(1, 6))
    row = st.lists(_COUNT, min_size=experts, max_size=experts)
    row = st.one_of(row, row, st.just([0] * experts))
    table = st.lists(row, min_size=keys, max_size=keys)
    found = np.array([draw(table) for _ in range(folds)], np.int64)
    pair = st.lists(st.integers(0, experts - 1), min_size=2, max_size=2, unique=True)
    found[:, draw(st.integers(0, keys - 1)), draw(pair)] += 1
    return {"by_fold": found}


@st.composite
def _independent(draw: st.DrawFn) -> Case:
    """Draw first choices [1, keys, E] that are spread alike for every key, which tells nothing."""
    sizes = st.lists(st.integers(1, 5), min_size=2, max_size=6)
    return {"by_fold": np.outer(draw(sizes), draw(sizes)).astype(np.int64)[None]}


@check("AUDIT-22", "information", cases=st.one_of(_first_choices(), _independent()))
def what_a_key_tells(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Mutual information in nats, each entropy corrected; by chance it falls below 0."""
    table = case["by_fold"][0].tolist()
    tokens = sum(map(sum, table))

    def entropy(cells: list[int]) -> float:
        there = [one for one in cells if one]
        nats = -math.fsum(one / tokens * math.log(one / tokens) for one in there)
        return nats + (len(there) - 1) / (2 * tokens)

    choice = entropy([sum(column) for column in zip(*table, strict=True)])
    both = entropy([one for row in table for one in row])
    wanted = [choice + entropy([sum(row) for row in table]) - both, choice]
    answer = subject.call("information", case["by_fold"][0])
    got = answers.numbers("information", answer, (2,))
    close("information", got, wanted, evidence, relative=1e-9, of_largest=1e-9, absolute=1e-12)


def _hits(train: Table, test: Table) -> list[int]:
    sums = [sum(column) for column in zip(*train, strict=True)]
    overall = sums.index(max(sums))
    tokens, hits, plain = 0, 0, 0
    for known, asked in zip(train, test, strict=True):
        guess = known.index(max(known)) if any(known) else overall
        tokens, hits, plain = tokens + sum(asked), hits + asked[guess], plain + asked[overall]
    return [tokens, hits, plain]


@check("AUDIT-23", "held_out_hits", cases=_first_choices(folds=2))
def guesses_of_first_choices(subject: Subject, case: Case, _: Evidence) -> None:
    """A key's commonest expert is guessed, of unknown keys the commonest of all; equals by index."""
    train, test = case["by_fold"]
    answer = subject.call("held_out_hits", train, test)
    same(
        "held_out_hits",
        answers.array("held_out_hits", answer),
        _hits(train.tolist(), test.tolist()),
    )


def _among_many(_: Profile) -> Iterator[Case]:
    for first in (0, 42, 255, 256, 299):
        train = np.zeros((3, 300), np.int64)
        train[0, first], train[1, 299 - first] = 2, 3
        test = np.arange(900).reshape(3, 300)
        yield {"by_fold": np.stack([train, test])}


@check("AUDIT-23", "held_out_hits", cases=_among_many)
def guesses_among_many_experts(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Not all experts fit a byte."""
    guesses_of_first_choices(subject, case, evidence)


def _gain(folds: list[Table]) -> tuple[float, float, Fraction]:
    """Return accuracy, baseline and gain of folds that are guessed from each other."""
    sums = [0, 0, 0]
    for number, fold in enumerate(folds):
        others = [one for i, one in enumerate(folds) if i != number]
        train = [
            [sum(cells) for cells in zip(*rows, strict=True)] for rows in zip(*others, strict=True)
        ]
        sums = [a + b for a, b in zip(sums, _hits(train, fold), strict=True)]
    tokens, right, plain = sums
    return right / tokens, plain / tokens, Fraction(right - plain, tokens - plain)


_IN_FOLDS = st.one_of(*(_first_choices(folds=n) for n in (3, 4, 8)))


def _gained(subject: Subject, case: Case, evidence: Evidence, **option: float) -> None:
    folds = case["by_fold"].tolist()
    accuracy, baseline, gain = _gain(folds)
    left_out = [_gain(folds[:n] + folds[n + 1 :])[2] for n in range(len(folds))]
    half = jackknife_half(option.get("level", 0.95), left_out)
    wanted = [accuracy, baseline, float(gain), float(gain) - half, float(gain) + half]
    answer = subject.call("held_out_gain", case["by_fold"], **option)
    got = answers.numbers("held_out_gain", answer, (5,))
    close("held_out_gain", got, wanted, evidence, relative=1e-9, of_largest=1e-9, absolute=1e-12)


@check("AUDIT-23", "held_out_gain", cases=_IN_FOLDS)
def gain_of_a_key(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The gain is a part of the baseline's misses; a fold that is left out is not guessed from."""
    _gained(subject, case, evidence)


@check("AUDIT-26", "held_out_gain(level)", cases=_IN_FOLDS)
def gain_of_a_key_at_a_level(subject: Subject, case: Case, evidence: Evidence) -> None:
    """At another level the ends are elsewhere, and a fold that is left out is not guessed from."""
    for level in LEVELS:
        _gained(subject, case, evidence, level=level)


def _two_folds(_: Profile) -> Iterator[Case]:
    yield {"by_fold": np.array([[[2, 1], [0, 3]], [[1, 1], [1, 2]]])}


@check("AUDIT-26", "rejects_invalid_input", "held_out_gain", cases=_two_folds)
def gain_of_two_folds(subject: Subject, case: Case, _: Evidence) -> None:
    """Without one of two folds nothing is left to guess from."""
    must_reject(
        "held_out_gain of two folds", lambda: subject.call("held_out_gain", case["by_fold"])
    )


@st.composite
def _slices(draw: st.DrawFn) -> Case:
    """Draw a text, and a slice of its tokens."""
    case = draw(texts(least=3))
    here = case["keys"] >= 0
    mine = np.array(draw(st.lists(st.booleans(), min_size=len(here), max_size=len(here)))) & here
    mine[:2] = here[:2]
    if not mine.any():
        case["keys"][0] = 0
        mine[0] = True
    part = case | {"keys": np.where(mine, case["keys"], -1)}
    return {"whole": counted(case), "part": counted(part)}


@check("AUDIT-24", "explained_by_tokens", cases=_slices())
def what_ids_explain_of_a_slice(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Two total variations, to the whole text and to what the slice's ids lead to expect."""
    whole, part = case["whole"], case["part"]
    k = whole.shape[2]
    tokens = part[:, :, 0].sum(axis=1)

    def shares(counts: np.ndarray) -> list[Fraction]:
        chosen = counts.sum(axis=-1).tolist()
        n = int(counts[..., 0].sum())
        return [Fraction(one, k * n) for one in chosen]

    total = int(tokens.sum())
    own, all_of = shares(part.sum(axis=0)), shares(whole.sum(axis=0))
    expected = [Fraction(0)] * len(own)
    for n, counts in zip(tokens.tolist(), whole, strict=True):
        if n:
            by_id = shares(counts)
            expected = [x + Fraction(n, total) * y for x, y in zip(expected, by_id, strict=True)]
    shift = sum(abs(x - y) for x, y in zip(own, all_of, strict=True)) / 2
    unexplained = sum(abs(x - y) for x, y in zip(own, expected, strict=True)) / 2
    quotient = float(unexplained / shift) if shift else math.nan
    answer = subject.call("explained_by_tokens", tokens, whole, part.sum(axis=0))
    got = answers.numbers("explained_by_tokens", answer, (3,))
    # Shares that cancel leave some rounding: whoever has a shift of 1e-17 has a quotient too.
    close("explained_by_tokens", got[:2], [float(shift), float(unexplained)], evidence, **BOUND)
    if shift > Fraction(1, 10**4) or (not shift and not np.any(got[0])):
        close("explained_by_tokens: share", got[2], quotient, evidence, **BOUND)


def _without_shift(_: Profile) -> Iterator[Case]:
    even = np.array([[3, 1, 1, 3], [1, 3, 3, 1]])
    for part in (even, even // 3, np.array([[1, 1, 1, 1], [0, 0, 0, 0]])):
        yield {"whole": even[..., None], "part": part[..., None]}


@check("AUDIT-24", "explained_by_tokens", cases=_without_shift)
def slices_without_a_shift(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Where a slice's shares are the whole text's nothing is to be explained, whatever its ids are."""
    what_ids_explain_of_a_slice(subject, case, evidence)
