"""Checks of SPEC.md "Routing audits": shares of choices, and how far they are spread.

Expectations are loops over whole numbers: a share is a fraction, a root is taken once.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from fractions import Fraction

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.audit import SIZES
from openmoe_conformance.compare import close
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.subject import Subject

BOUND = {"relative": 1e-9, "absolute": 1e-12}
Key = Sequence[Sequence[int]]

_TOKENS = (0, 1, 2, 3, 7, 60, 1000, 3_000_000_000)


def _key(draw: st.DrawFn, experts: int, k: int, pool: Sequence[int]) -> list[list[int]]:
    """Draw the counts [E, K] of a key: a few sets of experts take turns, or all alike."""
    tokens, even = draw(st.sampled_from(pool)), draw(st.integers(0, 3)) == 0
    chosen = st.lists(st.integers(0, experts - 1), min_size=k, max_size=k, unique=True)
    turns = [[(turn * k + rank) % experts for rank in range(k)] for turn in range(experts)]
    if not even:
        turns = draw(st.lists(chosen, min_size=1, max_size=4))
    counts = [[0] * k for _ in range(experts)]
    for number, turn in enumerate(turns):
        for rank, expert in enumerate(turn):
            counts[expert][rank] += tokens // len(turns) + (number < tokens % len(turns))
    return counts


@st.composite
def _tables(
    draw: st.DrawFn, pool: Sequence[int] = _TOKENS, *, sizes: Sequence[tuple[int, int]] = SIZES
) -> Case:
    """Draw counts by key, and those of the whole text, which may be of other tokens too."""
    experts, k = draw(st.sampled_from(sizes))
    keys = [_key(draw, experts, k, pool) for _ in range(draw(st.integers(1, 5)))]
    whole = _key(draw, experts, k, [one for one in _TOKENS if one])
    return {"counts": np.array(keys, np.int64), "whole": np.array(whole, np.int64)}


def _tokens(key: Key) -> int:
    return sum(ranks[0] for ranks in key)


def _chosen(key: Key) -> list[int]:
    return [sum(ranks) for ranks in key]


def _even(key: Key) -> Key:
    """Return counts of which every expert has the same: as many tokens as experts."""
    return [[1] * len(key[0])] * len(key)


def _square(key: Key, centre: Key) -> Fraction:
    """Return the mean over the experts of (share - centre)^2."""
    n, m, k = _tokens(key), _tokens(centre), len(key[0])
    squares = ((a * m - b * n) ** 2 for a, b in zip(_chosen(key), _chosen(centre), strict=True))
    return Fraction(sum(squares), len(key) * (k * n * m) ** 2)


def _noise(key: Key, trials: int) -> Fraction:
    """Return the sum of p (1 - p) over (E trials K^2), p as in these counts."""
    n, k = _tokens(key), len(key[0])
    return Fraction(sum(c * (n - c) for c in _chosen(key)), n**2 * len(key) * trials * k**2)


def _debiased_square(key: Key, centre: Key) -> Fraction:
    return _square(key, centre) - _noise(key, _tokens(key) - 1)


def _shares(key: Key) -> list[float]:
    n, k = _tokens(key), len(key[0])
    return [c / (k * n) if n else math.nan for c in _chosen(key)]


def _compare(
    subject: Subject,
    function: str,
    case: Case,
    evidence: Evidence,
    wanted: Callable[[Key], float | list[float]],
    **options: ndarray,
) -> None:
    """Compare an answer to counts with what each key makes."""
    right = np.array([wanted(key) for key in case["counts"].tolist()], np.float64)
    answer = subject.call(function, case["counts"], **options)
    close(function, answers.numbers(function, answer, right.shape), right, evidence, **BOUND)


@check("AUDIT-03", "choice_shares", cases=_tables())
def shares_of_all_choices(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A share is of the choices of all ranks; a key without a token has none."""
    _compare(subject, "choice_shares", case, evidence, _shares)


def _spread(key: Key) -> float:
    return math.sqrt(_square(key, _even(key))) if _tokens(key) else math.nan


@check("AUDIT-04", "share_spread", cases=_tables())
def spread_around_even_shares(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The spread is the root of the mean square around 1/E; a key without a token has none."""
    _compare(subject, "share_spread", case, evidence, _spread)


def _mean(subject: Subject, case: Case, evidence: Evidence, **option: int) -> None:
    least = option.get("least", 128)
    found = [_spread(key) for key in case["counts"].tolist() if _tokens(key) > least]
    wanted = math.fsum(found) / len(found) if found else math.nan
    answer = subject.call("mean_spread", case["counts"], **option)
    close("mean_spread", answers.numbers("mean_spread", answer, ()), wanted, evidence, **BOUND)


@check("AUDIT-05", "mean_spread", cases=_tables((5, 128, 129, 1000)))
def mean_spread_of_frequent_keys(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Keys with 129 tokens or more count, each once; without one there is no mean."""
    _mean(subject, case, evidence)


@check("AUDIT-05", "mean_spread(least)", cases=_tables((0, 1, 2, 7)))
def mean_spread_of_other_keys(subject: Subject, case: Case, evidence: Evidence) -> None:
    """With another filter, too, keys have strictly more tokens."""
    for least in (0, 1, 2, 7):
        _mean(subject, case, evidence, least=least)


_SOME = tuple((experts, k) for experts, k in SIZES if k < experts)


def _size(key: Key, centre: Key) -> Fraction:
    """Return how large the numbers are of which a debiased square is the difference."""
    return max(_square(key, centre), _noise(key, _tokens(key) - 1))


def _well_conditioned(case: Case) -> bool:
    """Return whether no root is taken of what rounding makes of 0."""
    whole, even = case["whole"].tolist(), _even(case["whole"].tolist())
    # Where tokens all take the same experts p (1 - p) is 0, and so is every floor.
    sound = _noise(whole, 1) > 0
    for key in case["counts"].tolist():
        for centre in (whole, even) if _tokens(key) > 1 else ():
            sound &= _size(key, centre) > 0
    return sound


_SOUND = _tables(sizes=_SOME).filter(_well_conditioned)


def _floors(subject: Subject, case: Case, evidence: Evidence, of: Key, **option: ndarray) -> None:
    tokens = case["counts"][..., 0].sum(axis=1)
    wanted = [math.sqrt(_noise(of, n)) if n else math.nan for n in tokens.tolist()]
    sizes = {"k": case["counts"].shape[2], "num_experts": case["counts"].shape[1]}
    answer = subject.call("spread_floor", tokens, **sizes, **option)
    got = answers.numbers("spread_floor", answer, tokens.shape)
    close("spread_floor", got, wanted, evidence, **BOUND)


@check("AUDIT-06", "spread_floor", cases=_SOUND)
def floor_of_experts_alike(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The floor is what chance gives where every expert is as likely."""
    _floors(subject, case, evidence, _even(case["whole"].tolist()))


@check("AUDIT-06", "spread_floor(shares)", cases=_SOUND)
def floor_of_the_whole_text(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The floor is what chance gives where experts are as likely as in the whole text."""
    whole = case["whole"].tolist()
    _floors(subject, case, evidence, whole, shares=np.array(_shares(whole)))


def _debiased(
    subject: Subject, case: Case, evidence: Evidence, centre: Key, **option: ndarray
) -> None:
    experts, k = case["whole"].shape
    largest = math.sqrt(Fraction(1, k * experts) - Fraction(1, experts**2))
    for function, unit in (("debiased_spread", 1.0), ("specialisation", largest)):
        answer = subject.call(function, case["counts"], **option)
        got = answers.numbers(function, answer, case["counts"].shape[:1]) * unit
        for key, spread in zip(case["counts"].tolist(), got, strict=True):
            if _tokens(key) < 2:
                close(function, spread, math.nan, evidence, **BOUND)
                continue
            square, size = _debiased_square(key, centre), _size(key, centre)
            if abs(square) > size / 10_000:
                wanted = math.sqrt(max(square, Fraction(0)))
                close(function, spread, wanted, evidence, **BOUND)
            else:  # they nearly cancel
                wanted = float(max(square, Fraction(0)) / size)
                close(
                    f"{function}, squared",
                    spread**2 / float(size),
                    wanted,
                    evidence,
                    absolute=1e-9,
                    relative=0,
                )


@check("AUDIT-07", "debiased_spread", "specialisation", cases=_SOUND)
def debiased_around_even_shares(subject: Subject, case: Case, evidence: Evidence) -> None:
    """What chance adds is taken off, not below 0; the specialisation is a part of the largest."""
    _debiased(subject, case, evidence, _even(case["whole"].tolist()))


@check("AUDIT-07", "debiased_spread(shares)", "specialisation(shares)", cases=_SOUND)
def debiased_around_the_whole_text(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The centre is the whole text's share, and what is taken off is still the key's own."""
    whole = case["whole"].tolist()
    _debiased(subject, case, evidence, whole, shares=np.array(_shares(whole)))
