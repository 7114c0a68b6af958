"""SPEC.md "Routing audits": what a key tells of the routing, with intervals over documents."""

from __future__ import annotations

import hashlib
import math
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int64, Integer
from numpy import ndarray

from openmoe_reference.arguments import check_array, check_finite, check_integer, check_positive
from openmoe_reference.audit import check_counts, choice_shares, tokens_of
from openmoe_spec.errors import RejectedError

FOLDS, REPLICATES = 8, 100
"""Parts that documents are in for held-out predictions; sets of weights of the bootstrap."""


def _check_first_choices(name: str, counts: object, shape: str, sizes: dict[str, int]) -> ndarray:
    array = check_array(name, counts, shape, sizes, "AUDIT-27", kind="i")
    if (array < 0).any():
        raise RejectedError(name, "AUDIT-27", "must not hold numbers below 0")
    return array.astype(np.int64)


# ---- what a key tells --------------------------------------------------------------------------


class Information(NamedTuple):
    """What knowing a key tells of the first choice, and what there is to be told; nats."""

    information: float
    entropy: float


def information(counts: Integer[ndarray, "keys E"]) -> Information:
    """Return mutual information of key and first choice, and the choice's entropy, without small bias.

    Both have the correction of Miller and Madow: half the cells that occur, less one, over the tokens.
    Errors: RejectedError AUDIT-27, also where nothing was counted.
    Spec: AUDIT-22. Source: Miller 1955, "Note on the bias of information estimates".
    """
    exact = _check_first_choices("counts", counts, "keys E", {})
    tokens = int(exact.sum())
    if not tokens:
        raise RejectedError("counts", "AUDIT-27", "count no token")
    choice = _entropy(exact.sum(axis=0), tokens)
    told = choice + _entropy(exact.sum(axis=1), tokens) - _entropy(exact.reshape(-1), tokens)
    return Information(told, choice)


def _entropy(counts: Int64[ndarray, " cells"], tokens: int) -> float:
    there = counts[counts > 0]
    shares = there / tokens
    return float(-(shares * np.log(shares)).sum()) + (len(there) - 1) / (2 * tokens)


def held_out_hits(
    train: Integer[ndarray, "keys E"], test: Integer[ndarray, "keys E"]
) -> Int64[ndarray, " 3"]:
    """Return tokens of `test`, and how often two guesses of their first choice are right.

    The first guess is the expert that `train` has most often for the key, and for a key without tokens
    there the second: the expert that `train` has most often of all. Among equals the lower index.
    Errors: RejectedError AUDIT-27. Spec: AUDIT-23. Source: this specification.
    """
    sizes: dict[str, int] = {}
    known = _check_first_choices("train", train, "keys E", sizes)
    asked = _check_first_choices("test", test, "keys E", sizes)
    overall = int(known.sum(axis=0).argmax())
    guess = np.where(known.sum(axis=1) > 0, known.argmax(axis=1), overall)
    hits = np.take_along_axis(asked, guess[:, None], axis=1).sum()
    return np.array([asked.sum(), hits, asked[:, overall].sum()], np.int64)


class Gain(NamedTuple):
    """How much better the first choice is guessed where the key is known.

    accuracy, baseline  shares of right guesses with the key, and without
    gain                part of the baseline's misses that the key removes; below 0: it misleads
    low, high           interval of the gain
    """

    accuracy: float
    baseline: float
    gain: float
    low: float
    high: float


def held_out_gain(by_fold: Integer[ndarray, "F keys E"], *, level: float = 0.95) -> Gain:
    """Return the gain of a key, each fold of documents guessed from the others.

    A fold that is left out for the interval is neither guessed nor guessed from: guesses that shared what
    they were learnt from would look more certain than they are.
    Errors: RejectedError AUDIT-27, also where without some fold the baseline is never wrong.
    Spec: AUDIT-23, AUDIT-26. Source: this specification.
    """
    sizes: dict[str, int] = {}
    exact = _check_first_choices("by_fold", by_fold, "F keys E", sizes)
    if sizes["F"] < 3:
        raise RejectedError("by_fold", "AUDIT-27", "must have three folds at least")
    accuracy, baseline, gain = _guessed(exact)
    left_out = [_guessed(np.delete(exact, fold, axis=0))[2] for fold in range(sizes["F"])]
    low, high = jackknife_interval(gain, np.array(left_out), level=level)
    return Gain(accuracy, baseline, gain, low, high)


def _guessed(by_fold: Int64[ndarray, "F keys E"]) -> tuple[float, float, float]:
    """Return accuracy, baseline and gain of folds that are guessed from each other."""
    whole = by_fold.sum(axis=0)
    hits = np.stack([held_out_hits(whole - fold, fold) for fold in by_fold])  # [F, 3]
    tokens, right, plain = hits.sum(axis=0).tolist()
    if not tokens or plain == tokens:
        raise RejectedError("by_fold", "AUDIT-27", "leave nothing to guess")
    return right / tokens, plain / tokens, (right - plain) / (tokens - plain)


class Explained(NamedTuple):
    """How far a slice's routing is from the whole text's, and from what its token ids lead to expect.

    shift        total variation of the slice's shares from those of the whole text
    unexplained  that from the shares its token ids have in the whole text
    share        unexplained / shift; not-a-number where there is no shift
    """

    shift: float
    unexplained: float
    share: float


def explained_by_tokens(
    slice_tokens: Integer[ndarray, " V"],
    token_counts: Integer[ndarray, "V E K"],
    slice_counts: Integer[ndarray, "E K"],
) -> Explained:
    """Return how much of a slice's shift is not what its token ids alone lead to expect.

    slice_tokens  tokens of each id in the slice
    token_counts  choices of each id in the whole text, the slice among it
    slice_counts  choices of the slice
    Errors: RejectedError AUDIT-27, also where the slice has no token, or one that was not counted.
    Spec: AUDIT-24. Source: this specification; the paper, section 4.2, claims it in prose.
    """
    sizes: dict[str, int] = {}
    tokens = _check_first_choices("slice_tokens", slice_tokens, "V", sizes)
    check_array("token_counts", token_counts, "V E K", sizes, "AUDIT-27", kind="i")
    check_array("slice_counts", slice_counts, "E K", sizes, "AUDIT-27", kind="i")
    check_counts("token_counts", token_counts)
    check_counts("slice_counts", slice_counts)
    if not tokens.sum() or tokens.sum() != tokens_of(slice_counts):
        raise RejectedError("slice_tokens", "AUDIT-27", "must be the tokens of the slice's choices")
    whole_text = token_counts.sum(axis=0, dtype=np.int64)
    if (tokens > tokens_of(token_counts)).any() or (slice_counts > whole_text).any():
        raise RejectedError("token_counts", "AUDIT-27", "must count the slice's tokens too")
    there = tokens > 0
    expected = tokens[there] @ choice_shares(token_counts[there]) / tokens.sum()
    own, whole = choice_shares(slice_counts), choice_shares(whole_text)
    shift = float(np.abs(own - whole).sum() / 2)
    unexplained = float(np.abs(own - expected).sum() / 2)
    return Explained(shift, unexplained, unexplained / shift if shift > 0 else math.nan)


# ---- documents ---------------------------------------------------------------------------------


def document_fold(document: str, *, folds: int = FOLDS) -> int:
    """Return the fold that a document is in, which follows from its name alone.

    Errors: RejectedError AUDIT-27. Spec: AUDIT-25. Source: this specification.
    """
    folds = check_integer("folds", folds, "AUDIT-27", least=2, most=2**16)
    return int(_words(document)[0] % folds)


def document_weights(
    document: str, *, replicates: int = REPLICATES, seed: int = 0
) -> Int64[ndarray, " replicates"]:
    """Return how often a document counts in each replicate of the bootstrap: Poisson, with mean 1.

    Errors: RejectedError AUDIT-27. Spec: AUDIT-25. Source: this specification.
    """
    replicates = check_integer("replicates", replicates, "AUDIT-27", least=1)
    seed = check_integer("seed", seed, "AUDIT-27", least=0)
    numbers = range(-(-replicates // 8))
    drawn = np.concatenate([_words(document, f"{seed} {number} ") for number in numbers])
    return np.searchsorted(_POISSON, drawn[:replicates], side="right").astype(np.int64)


def _words(document: object, before: str = "") -> ndarray:
    """Return the 8 little-endian words of 32 bits of a digest."""
    if not isinstance(document, str) or not document:
        raise RejectedError("document", "AUDIT-27", f"must be a name, got {document!r}")
    try:
        text = f"{before}{document}".encode()
    except UnicodeEncodeError as error:
        raise RejectedError("document", "AUDIT-27", f"has no UTF-8: {document!r}") from error
    return np.frombuffer(hashlib.sha256(text).digest(), "<u4")


def _thresholds() -> ndarray:
    """Return the least word of 1, 2, ... counts: 2^32 times the chance of fewer, rounded down."""
    chances = np.cumsum([math.exp(-1) / math.factorial(count) for count in range(12)])
    return np.floor(chances * 2**32).astype(np.uint32)


_POISSON = _thresholds()


# ---- intervals ---------------------------------------------------------------------------------


class Interval(NamedTuple):
    """The two ends of an interval."""

    low: float
    high: float


def _check_level(level: object, name: str = "level") -> float:
    found = check_positive(name, level, "AUDIT-27")
    if (1 + found) / 2 >= 1:  # so near to 1 that no quantile is left
        raise RejectedError(name, "AUDIT-27", f"must be below 1, got {level!r}")
    return found


def bootstrap_interval(
    estimate: float, replicates: Float[ndarray, " B"], *, level: float = 0.95
) -> Interval:
    """Return the estimate with the normal quantile of the replicates' standard deviation each side.

    Errors: RejectedError AUDIT-27. Spec: AUDIT-26. Source: Efron and Tibshirani 1993, chapter 13.
    """
    level, estimate = _check_level(level), check_finite("estimate", estimate, "AUDIT-27")
    values = check_array("replicates", replicates, "B", {}, "AUDIT-27").astype(np.float64)
    if len(values) < 2:
        raise RejectedError("replicates", "AUDIT-27", "must be two at least")
    half = NormalDist().inv_cdf((1 + level) / 2) * float(values.std(ddof=1))
    return Interval(estimate - half, estimate + half)


def jackknife_interval(
    estimate: float, left_out: Float[ndarray, " F"], *, level: float = 0.95
) -> Interval:
    """Return the estimate with the t quantile of the jackknife's standard error each side.

    left_out  the estimate from all folds but one, for each
    Errors: RejectedError AUDIT-27. Spec: AUDIT-26. Source: Efron and Tibshirani 1993, chapter 11.
    """
    level, estimate = _check_level(level), check_finite("estimate", estimate, "AUDIT-27")
    values = check_array("left_out", left_out, "F", {}, "AUDIT-27").astype(np.float64)
    folds = len(values)
    if folds < 2:
        raise RejectedError("left_out", "AUDIT-27", "must be two at least")
    error = math.sqrt((folds - 1) / folds * float(((values - values.mean()) ** 2).sum()))
    half = student_quantile((1 + level) / 2, folds - 1) * error
    return Interval(estimate - half, estimate + half)


def student_quantile(chance: float, degrees: int) -> float:
    """Return where Student's t distribution of whole degrees of freedom has a chance below it.

    Errors: RejectedError AUDIT-27. Spec: AUDIT-26. Source: Abramowitz and Stegun 1964, 26.7.3, 26.7.4.
    """
    degrees = check_integer("degrees", degrees, "AUDIT-27", least=1)
    chance = _check_level(chance, "chance")
    if chance < 0.5:
        return -student_quantile(1 - chance, degrees)
    low, high = 0.0, 1.0
    while _student_below(high, degrees) < chance and high < 1e12:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _student_below(middle, degrees) < chance else (low, middle)
    return (low + high) / 2


def _student_below(t: float, degrees: int) -> float:
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    odd = degrees % 2 == 1
    term, total = (cosine, cosine) if odd else (1.0, 1.0)
    for j in range(3 if odd else 2, degrees - 1, 2):
        term *= cosine**2 * (j - 1) / j
        total += term
    if odd:
        total = 2 / math.pi * (angle + (sine * total if degrees > 1 else 0.0))
    else:
        total *= sine
    return 0.5 + total / 2
