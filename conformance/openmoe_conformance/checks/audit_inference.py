"""Checks of SPEC.md "Routing audits": what keys tell, documents, intervals."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from fractions import Fraction
from statistics import NormalDist

import numpy as np
from hypothesis import strategies as st

from openmoe_conformance import answers
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.audit import counted, texts
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
    """Draw first choices [F, keys, E], of which no fold is without any two experts."""
    experts, keys = draw(st.integers(2, 9)), draw(st.integers(1, 6))
    row = st.lists(_COUNT, min_size=experts, max_size=experts)
    table = st.lists(row, min_size=keys, max_size=keys)
    found = np.array([draw(table) for _ in range(folds)], np.int64)
    found[:, 0, :2] += 1
    return {"by_fold": found}


@check("AUDIT-22", "information", cases=_first_choices())
def what_a_key_tells(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Mutual information in nats, each entropy with half its cells less one over the tokens."""
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


_T_975 = {2: 4.302652729911275, 3: 3.182446305284263, 7: 2.364624251592785}
"""Student's 97.5 % quantiles by degrees of freedom."""


@check("AUDIT-23", "held_out_gain", cases=st.one_of(*(_first_choices(folds=n) for n in (3, 4, 8))))
def gain_of_a_key(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The gain is a part of the baseline's misses; a fold that is left out is not guessed from."""
    folds = case["by_fold"].tolist()
    number = len(folds)
    accuracy, baseline, gain = _gain(folds)
    left_out = [_gain([one for i, one in enumerate(folds) if i != n])[2] for n in range(number)]
    mean = sum(left_out) / number
    squares = sum((one - mean) ** 2 for one in left_out)
    half = _T_975[number - 1] * math.sqrt(Fraction(number - 1, number) * squares)
    wanted = [accuracy, baseline, float(gain), float(gain) - half, float(gain) + half]
    answer = subject.call("held_out_gain", case["by_fold"])
    got = answers.numbers("held_out_gain", answer, (5,))
    close("held_out_gain", got, wanted, evidence, relative=1e-9, of_largest=1e-9, absolute=1e-12)


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
    # Shares that cancel leave some rounding, which a quotient of nearly nothing shows.
    close("explained_by_tokens", got[:2], [float(shift), float(unexplained)], evidence, **BOUND)
    if shift > Fraction(1, 10**4) or (not shift and not np.any(got[0])):
        close("explained_by_tokens: share", got[2], quotient, evidence, **BOUND)


# ---- documents -----------------------------------------------------------------------------------

_NAMES = ("a", "german/0", "python/abc.py", "日本語/一", "x" * 300)


def _documents(_: Profile) -> Iterator[Case]:
    for name in _NAMES:
        for seed in (0, 1, 123_456):
            yield {"name": name, "seed": seed}


def _words(text: str) -> list[int]:
    digest = hashlib.sha256(text.encode()).digest()
    return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4)]


@check("AUDIT-25", "document_fold", cases=_documents)
def fold_of_a_document(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The first word of the name's SHA256, modulo the folds."""
    for folds in (8, 2, 5):
        answer = subject.call("document_fold", case["name"], folds=folds)
        same("document_fold", int(answer), _words(case["name"])[0] % folds)
    evidence.examples += 1


@check("AUDIT-25", "document_weights", cases=_documents)
def weights_of_a_document(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Words of SHA256 as counts of a Poisson distribution with mean 1."""
    chance, below, thresholds = Fraction(math.exp(-1)), Fraction(0), []
    for count in range(12):
        below += chance / math.factorial(count)
        thresholds.append(int(below * 2**32))
    for replicates in (100, 3):
        drawn: list[int] = []
        for number in range(-(-replicates // 8)):
            drawn += _words(f"{case['seed']} {number} {case['name']}")
        wanted = [sum(one <= word for one in thresholds) for word in drawn[:replicates]]
        options = {"replicates": replicates, "seed": case["seed"]}
        answer = subject.call("document_weights", case["name"], **options)
        same("document_weights", answers.array("document_weights", answer), wanted)
    evidence.examples += 1


# ---- intervals -----------------------------------------------------------------------------------

_REAL = st.integers(-1000, 1000).map(lambda n: n / 64)
_VALUES = st.lists(_REAL, min_size=2, max_size=30)
_OF_VALUES = st.fixed_dictionaries({"estimate": _REAL, "values": _VALUES})


def _spread(values: list[float]) -> Fraction:
    exact = [Fraction(one) for one in values]
    mean = sum(exact, Fraction(0)) / len(exact)
    return sum(((one - mean) ** 2 for one in exact), Fraction(0))


@check("AUDIT-26", "bootstrap_interval", cases=_OF_VALUES)
def interval_of_replicates(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The normal quantile at (1 + level)/2 times the replicates' standard deviation each side."""
    values, estimate = case["values"], case["estimate"]
    deviation = math.sqrt(_spread(values) / (len(values) - 1))
    for level in (0.95, 0.8):
        half = NormalDist().inv_cdf((1 + level) / 2) * deviation
        answer = subject.call("bootstrap_interval", estimate, np.array(values), level=level)
        got = answers.numbers("bootstrap_interval", answer, (2,))
        wanted = [estimate - half, estimate + half]
        close("bootstrap_interval", got, wanted, evidence, relative=1e-9, of_largest=1e-9)


@check(
    "AUDIT-26",
    "jackknife_interval",
    cases=st.fixed_dictionaries(
        {
            "estimate": _REAL,
            "values": st.sampled_from([3, 4, 8]).flatmap(
                lambda n: st.lists(_REAL, min_size=n, max_size=n)
            ),
        }
    ),
)
def interval_of_what_is_left(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Student's quantile with F - 1 degrees times the jackknife's error each side."""
    values, estimate = case["values"], case["estimate"]
    folds = len(values)
    half = _T_975[folds - 1] * math.sqrt(Fraction(folds - 1, folds) * _spread(values))
    answer = subject.call("jackknife_interval", estimate, np.array(values))
    got = answers.numbers("jackknife_interval", answer, (2,))
    wanted = [estimate - half, estimate + half]
    close("jackknife_interval", got, wanted, evidence, relative=1e-9, of_largest=1e-9)


# ---- what is refused -----------------------------------------------------------------------------


def _no_numbers(_: Profile) -> Iterator[Case]:
    for value in (math.nan, math.inf):
        yield {"values": np.array([1.0, value, 2.0]), "estimate": 1.0}
        yield {"values": np.array([1.0, 2.0, 3.0]), "estimate": value}


@check("AUDIT-27", "rejects_invalid_input", "bootstrap_interval", cases=_no_numbers)
def intervals_of_no_numbers(subject: Subject, case: Case, _: Evidence) -> None:
    """What is not finite raises."""
    must_reject(
        "bootstrap_interval",
        lambda: subject.call("bootstrap_interval", case["estimate"], case["values"]),
    )


@check("AUDIT-27", "rejects_invalid_input", "jackknife_interval", cases=_no_numbers)
def intervals_of_no_folds(subject: Subject, case: Case, _: Evidence) -> None:
    """What is not finite raises."""
    must_reject(
        "jackknife_interval",
        lambda: subject.call("jackknife_interval", case["estimate"], case["values"]),
    )


def _nothing(_: Profile) -> Iterator[Case]:
    yield {"counts": np.zeros((3, 4), np.int64)}
    yield {"counts": np.array([[1, 2], [3, -1]])}


@check("AUDIT-27", "rejects_invalid_input", "information", cases=_nothing)
def information_of_nothing(subject: Subject, case: Case, _: Evidence) -> None:
    """No token at all, and fewer than none, raise."""
    must_reject("information", lambda: subject.call("information", case["counts"]))
