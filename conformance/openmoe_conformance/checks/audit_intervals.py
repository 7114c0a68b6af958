"""Checks of SPEC.md "Routing audits": folds and weights of documents, intervals."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator, Sequence
from fractions import Fraction
from statistics import NormalDist

import numpy as np
from hypothesis import strategies as st

from openmoe_conformance import answers
from openmoe_conformance.checks import Case, check
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject

LEVELS = (0.5, 0.8, 0.99, 0.9999)
"""Levels other than 0.95; the last one is that of a hundred claims."""


# ---- documents -----------------------------------------------------------------------------------

_NAMES = ("a", "german/0", "python/abc.py", "日本語/一", " ", "x" * 300)
_RARE = ("n/203", "n/2005", "n/786", "n/2393605", "n/206167", "n/122324747")
"""Documents that count 7, 8, ... 12 times in one of the first eight replicates of seed 0."""


def _documents(_: Profile) -> Iterator[Case]:
    for name in (*_NAMES, *_RARE):
        yield {"name": name}


def _documents_and_seeds(_: Profile) -> Iterator[Case]:
    for name in _NAMES:
        for seed in (0, 1, 123_456):
            yield {"name": name, "seed": seed}


def _words(text: str) -> list[int]:
    digest = hashlib.sha256(text.encode()).digest()
    return [int.from_bytes(digest[i : i + 4], "little") for i in range(0, 32, 4)]


@check("AUDIT-25", "document_fold", cases=_documents)
def fold_of_a_document(subject: Subject, case: Case, _: Evidence) -> None:
    """The first word of the name's SHA256, modulo 8."""
    same("document_fold", subject.integer("document_fold", case["name"]), _fold(case["name"], 8))


def _fold(name: str, folds: int) -> int:
    return _words(name)[0] % folds


@check("AUDIT-25", "document_fold(folds)", cases=_documents)
def one_of_other_folds(subject: Subject, case: Case, _: Evidence) -> None:
    """The word is taken modulo the folds, however many."""
    for folds in (3, 5, 16, 1000):
        got = subject.integer("document_fold", case["name"], folds=folds)
        same(f"document_fold of {folds}", got, _fold(case["name"], folds))


def _weights(subject: Subject, name: str, *, replicates: int = 100, seed: int = 0) -> None:
    chance, below, thresholds = Fraction(math.exp(-1)), Fraction(0), []
    for count in range(12):
        below += chance / math.factorial(count)
        thresholds.append(int(below * 2**32))
    drawn: list[int] = []
    for number in range(-(-replicates // 8)):
        drawn += _words(f"{seed} {number} {name}")
    wanted = [sum(one <= word for one in thresholds) for word in drawn[:replicates]]
    options = {"replicates": replicates, "seed": seed}
    got = answers.whole(
        "document_weights", subject.call("document_weights", name, **options), (replicates,)
    )
    same("document_weights", got, wanted)


@check("AUDIT-25", "document_weights", cases=_documents)
def weights_of_a_document(subject: Subject, case: Case, _: Evidence) -> None:
    """Words of SHA256 as counts of a Poisson distribution with mean 1, up to 12."""
    _weights(subject, case["name"])


@check(
    "AUDIT-25",
    "document_weights(replicates)",
    "document_weights(seed)",
    cases=_documents_and_seeds,
)
def weights_of_other_replicates(subject: Subject, case: Case, _: Evidence) -> None:
    """Each digest gives eight, and the seed stands before its number and the name."""
    for replicates in (1, 3, 8, 9, 100):
        _weights(subject, case["name"], replicates=replicates, seed=case["seed"])


# ---- intervals -----------------------------------------------------------------------------------

_REAL = st.integers(-1000, 1000).map(lambda n: n / 64)


@st.composite
def _values(draw: st.DrawFn, *, sizes: tuple[int, ...]) -> Case:
    size = draw(st.sampled_from(sizes))
    values = draw(st.lists(_REAL, min_size=size, max_size=size))
    return {"estimate": draw(_REAL), "values": np.array(values)}


_REPLICATES = _values(sizes=(2, 3, 10, 100))
_FOLDS = _values(sizes=(2, 3, 4, 5, 8, 20))


def _squares(values: Sequence[float | Fraction]) -> Fraction:
    exact = [Fraction(one) for one in values]
    mean = sum(exact, Fraction(0)) / len(exact)
    return sum(((one - mean) ** 2 for one in exact), Fraction(0))


def _bootstrap(subject: Subject, case: Case, evidence: Evidence, **option: float) -> None:
    level = option.get("level", 0.95)
    values = case["values"].tolist()
    deviation = math.sqrt(_squares(values) / (len(values) - 1))
    half = NormalDist().inv_cdf((1 + level) / 2) * deviation
    answer = subject.call("bootstrap_interval", case["estimate"], case["values"], **option)
    _both_ends(f"bootstrap_interval at {level}", answer, case["estimate"], half, evidence)


def _both_ends(name: str, answer: object, estimate: float, half: float, evidence: Evidence) -> None:
    got = answers.numbers(name, answer, (2,))
    ends = [estimate - half, estimate + half]
    close(name, got, ends, evidence, relative=1e-9, of_largest=1e-9)


@check("AUDIT-26", "bootstrap_interval", cases=_REPLICATES)
def interval_of_replicates(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The normal quantile at (1 + level)/2 times the replicates' standard deviation each side."""
    _bootstrap(subject, case, evidence)


@check("AUDIT-26", "bootstrap_interval(level)", cases=_REPLICATES)
def interval_of_replicates_at_a_level(subject: Subject, case: Case, evidence: Evidence) -> None:
    """At another level another quantile is taken."""
    for level in LEVELS:
        _bootstrap(subject, case, evidence, level=level)


_NODES, _WEIGHTS = np.polynomial.legendre.leggauss(60)


def _student(level: float, degrees: int) -> float:
    """Return t: at this level, Student's distribution is within t of 0. By quadrature.

    Where t = sqrt(degrees) / tan(a), the density goes as sin(a)^(degrees - 1).
    """

    def beyond(angle: float) -> float:
        return (
            angle / 2 * float((_WEIGHTS * np.sin(angle / 2 * (_NODES + 1)) ** (degrees - 1)).sum())
        )

    wanted, low, high = (1 - level) * beyond(math.pi / 2), 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        low, high = (middle, high) if beyond(middle) < wanted else (low, middle)
    return math.sqrt(degrees) / math.tan(low)


def jackknife_half(level: float, left_out: Sequence[float | Fraction]) -> float:
    """Return half the interval of an estimate from those that leave one fold out each."""
    folds = len(left_out)
    error = math.sqrt(Fraction(folds - 1, folds) * _squares(left_out))
    return _student(level, folds - 1) * error


def _jackknife(subject: Subject, case: Case, evidence: Evidence, **option: float) -> None:
    level = option.get("level", 0.95)
    values = case["values"].tolist()
    half = jackknife_half(level, values)
    answer = subject.call("jackknife_interval", case["estimate"], case["values"], **option)
    _both_ends(f"jackknife_interval at {level}", answer, case["estimate"], half, evidence)


@check("AUDIT-26", "jackknife_interval", cases=_FOLDS)
def interval_of_what_is_left(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Student's quantile with F - 1 degrees times the jackknife's error each side."""
    _jackknife(subject, case, evidence)


@check("AUDIT-26", "jackknife_interval(level)", cases=_FOLDS)
def interval_of_what_is_left_at_a_level(subject: Subject, case: Case, evidence: Evidence) -> None:
    """At another level another quantile is taken."""
    for level in LEVELS:
        _jackknife(subject, case, evidence, level=level)
