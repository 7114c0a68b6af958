"""Checks of SPEC.md "Routing audits": tokens of experts, neighbours, load and margins."""

from __future__ import annotations

import math
from collections.abc import Iterator
from fractions import Fraction
from itertools import combinations

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.audit import SIZES, texts
from openmoe_conformance.checks.audit_spreads import BOUND
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject

_TOKENS = (0, 1, 1, 2, 4, 9, 10, 11, 30, 300)


def counts_of_an_id(draws: np.random.Generator, experts: int, k: int, tokens: int) -> ndarray:
    """Return counts [E, K] of an id whose tokens take turns among a few sets of experts."""
    counts, turns = np.zeros((experts, k), np.int64), draws.integers(1, 4)
    for turn in range(turns):
        # All are among the first five, so that ids have some in common.
        chosen = draws.permutation(min(experts, 5))[:k]
        counts[chosen, np.arange(k)] += tokens // turns + (turn < tokens % turns)
    return counts


@st.composite
def _tables(draw: st.DrawFn) -> Case:
    """Draw counts [V, E, K]: ids of few and of many tokens; in half of the tables each is twice."""
    size = draw(st.sampled_from(SIZES))
    draws = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    tokens = draw(st.lists(st.sampled_from(_TOKENS), min_size=1, max_size=12))
    table = np.stack([counts_of_an_id(draws, *size, one) for one in tokens])
    return {"counts": np.concatenate([table, table[::-1]]) if draw(st.booleans()) else table}


def _scores(counts: ndarray, by: str, least: int) -> dict[int, dict[int, Fraction]]:
    """Return what ids are ranked by, for each expert, of ids that chose it."""
    table = counts.tolist()
    k, whole = counts.shape[2], int(counts.sum())
    found: dict[int, dict[int, Fraction]] = {}
    for expert in range(counts.shape[1]):
        load = Fraction(sum(sum(id_[expert]) for id_ in table), whole or 1)
        scores = {}
        for token, id_ in enumerate(table):
            n, chosen = sum(ranks[0] for ranks in id_), sum(id_[expert])
            if not chosen:
                continue
            if by == "count":
                scores[token] = Fraction(chosen)
            elif by == "precision" and n >= least:
                scores[token] = Fraction(chosen, k * n)
            elif by == "lift":
                scores[token] = (chosen + least * k * load) / (k * (n + least)) / load
        found[expert] = scores
    return found


def _apart(case: Case) -> bool:
    """Return whether ids of unlike counts have unlike lifts: equal ones rounding tells apart."""
    counts = case["counts"]
    chosen, tokens = counts.sum(axis=2).tolist(), counts[..., 0].sum(axis=1).tolist()
    for expert, scores in _scores(counts, "lift", 10).items():
        kinds = {(lift, chosen[id_][expert], tokens[id_]) for id_, lift in scores.items()}
        if len(kinds) > len({lift for lift, *_ in kinds}):
            return False
    return True


def _top(subject: Subject, case: Case, *rankings: str, **options: int) -> None:
    number, least = options.get("number", 10), options.get("least", 10)
    shape = (case["counts"].shape[1], number)
    for by in rankings:
        wanted = []
        for scores in _scores(case["counts"], by, least).values():
            ranked = [token for _, token in sorted((-s, token) for token, s in scores.items())]
            ranked = ranked[:number]
            wanted.append(ranked + [-1] * (number - len(ranked)))
        answer = subject.call("top_tokens", case["counts"], by=by, **options)
        name = f"top_tokens by {by}"
        same(name, answers.whole(name, answer, shape), wanted)


@check("AUDIT-08", "top_tokens", cases=_tables())
def tokens_of_experts(subject: Subject, case: Case, _: Evidence) -> None:
    """Ids are ranked by count and precision; equals in order, ids without a choice not at all."""
    _top(subject, case, "count", "precision")


@check("AUDIT-08", "top_tokens", cases=_tables().filter(_apart))
def tokens_above_the_load(subject: Subject, case: Case, _: Evidence) -> None:
    """Ids are ranked by lift, each as if it had ten tokens more that choose as the whole text."""
    _top(subject, case, "lift")


@check("AUDIT-08", "top_tokens(number)", "top_tokens(least)", cases=_tables())
def fewer_tokens_of_experts(subject: Subject, case: Case, _: Evidence) -> None:
    """So many are listed, of ids with so many tokens."""
    _top(subject, case, "count", "precision", number=3, least=4)


@check("AUDIT-10", "coactivation", "coactivation_shares", cases=texts())
def experts_of_one_token(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Every pair of a token's experts counts, both ways round; rows of shares make K - 1."""
    experts = case["num_experts"]
    together, tokens = np.zeros((experts, experts), np.int64), np.zeros(experts, np.int64)
    for chosen in case["expert_index"].tolist():
        for one, other in combinations(chosen, 2):
            together[one, other] += 1
            together[other, one] += 1
        for one in chosen:
            tokens[one] += 1
    answer = subject.call("coactivation", case["expert_index"], num_experts=experts)
    same("coactivation", answers.array("coactivation", answer), together)
    wanted = [
        [count / n if n else math.nan for count in row]
        for row, n in zip(together.tolist(), tokens.tolist(), strict=True)
    ]
    answer = subject.call("coactivation_shares", together, tokens)
    got = answers.numbers("coactivation_shares", answer, (experts, experts))
    close("coactivation_shares", got, wanted, evidence, **BOUND)


def _specialised(
    subject: Subject, case: Case, evidence: Evidence, *, least: int = 0, weighted: bool = False
) -> None:
    parts: dict[int, list[tuple[int, float]]] = {}
    for key in case["counts"].tolist():
        n, chosen = sum(ranks[0] for ranks in key), [sum(ranks) for ranks in key]
        if n and n >= least:
            best = chosen.index(max(chosen))
            parts.setdefault(best, []).append((n if weighted else 1, max(chosen) / n))
    wanted = []
    for expert in range(case["counts"].shape[1]):
        own = parts.get(expert, [])
        weight = sum(w for w, _ in own)
        wanted.append(math.fsum(w * part for w, part in own) / weight if own else math.nan)
    options = {"least": least, "weighted": weighted} if least or weighted else {}
    answer = subject.call("vocabulary_specialisation", case["counts"], **options)
    got = answers.numbers("vocabulary_specialisation", answer, (len(wanted),))
    close(f"vocabulary_specialisation, {options}", got, wanted, evidence, **BOUND)


@check("AUDIT-11", "vocabulary_specialisation", cases=_tables())
def specialisation_as_published(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Keys that prefer an expert count once each, however few tokens they have."""
    _specialised(subject, case, evidence)


_OPTIONS = ("vocabulary_specialisation(least)", "vocabulary_specialisation(weighted)")


@check("AUDIT-11", *_OPTIONS, cases=_tables())
def specialisation_of_frequent_keys(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Keys with fewer tokens are left out; weighted, a key counts with its tokens."""
    for least, weighted in ((4, False), (0, True), (10, True)):
        _specialised(subject, case, evidence, least=least, weighted=weighted)


@check("AUDIT-12", "repetition", cases=texts(least=2))
def neighbours_of_one_row(subject: Subject, case: Case, _: Evidence) -> None:
    """Neighbours are of one row: those with the same first choice, and with an expert in common."""
    chosen, row = case["expert_index"].tolist(), np.sort(case["keys"]) + 1
    found = [0, 0, 0]
    for t in range(len(chosen) - 1):
        if row[t] == row[t + 1]:
            found[0] += 1
            found[1] += chosen[t][0] == chosen[t + 1][0]
            found[2] += bool({*chosen[t]} & {*chosen[t + 1]})
    answer = subject.call("repetition", case["expert_index"], row)
    same("repetition", answers.array("repetition", answer), found)


def _sizes(_: Profile) -> Iterator[Case]:
    for experts, k in (*SIZES, (8, 1), (8, 2), (32, 8)):
        yield {"num_experts": experts, "k": k}


@check("AUDIT-12", "repetition_by_chance", cases=_sizes)
def neighbours_by_chance(subject: Subject, case: Case, evidence: Evidence) -> None:
    """By chance the second token's K experts are any K of the E."""
    k, experts = case["k"], case["num_experts"]
    apart = Fraction(1)
    for place in range(k):  # one after the other, none of the first token's
        apart *= Fraction(max(experts - k - place, 0), experts - place)
    answer = subject.call("repetition_by_chance", k, experts)
    got = answers.numbers("repetition_by_chance", answer, (2,))
    close("repetition_by_chance", got, [1 / experts, float(1 - apart)], evidence, **BOUND)


_LOADS = st.lists(st.sampled_from([0, 1, 2, 3, 50, 51, 10**6]), min_size=1, max_size=40).filter(any)
_STATISTICS = (
    *("cv", "max_over_mean", "min_over_mean", "entropy", "effective_experts"),
    *("gini", "dead_fraction"),
)


@check("AUDIT-13", "load_statistics", cases=st.fixed_dictionaries({"loads": _LOADS}))
def statistics_of_loads(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Seven numbers of how evenly choices are spread."""
    loads = case["loads"]
    experts, total = len(loads), sum(loads)
    mean = Fraction(total, experts)
    nats = -math.fsum(x / total * math.log(x / total) for x in loads if x)
    wanted = {
        "cv": math.sqrt(sum((x - mean) ** 2 for x in loads) / experts) / float(mean),
        "max_over_mean": max(loads) / mean,
        "min_over_mean": min(loads) / mean,
        "entropy": nats / math.log(experts) if experts > 1 else 1.0,
        "effective_experts": math.exp(nats),
        "gini": sum(abs(x - y) for x in loads for y in loads) / (2 * experts**2 * mean),
        "dead_fraction": loads.count(0) / experts,
    }
    answer = subject.call("load_statistics", np.array(loads, np.int64))
    for name in _STATISTICS:
        if not hasattr(answer, "keys") or name not in answer:
            raise Disagreement(f"load_statistics: must be a mapping with {name}")
        got = answers.numbers(f"load_statistics[{name}]", answer[name], ())
        close(f"load_statistics[{name}]", got, float(wanted[name]), evidence, **BOUND)


def _margins(_: Profile) -> Iterator[Case]:
    for code in range(255):
        # floor(2^(24 + eighth/8)) by whole roots: 2^23 to 2^24 with a bit more, which rounds.
        octave, eighth = divmod(code, 8)
        root = math.isqrt(math.isqrt(math.isqrt(2 ** (8 * 24 + eighth))))
        yield {"code": code, "threshold": math.ldexp((root + 1) // 2, octave - 24 - 23)}


@check("AUDIT-14", "margin_codes", cases=_margins)
def codes_of_margins(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A margin at a threshold reaches it; the float32 below does not."""
    at = np.float32(case["threshold"])
    below, above = np.nextafter(at, np.float32(0)), np.nextafter(at, np.float32(1e9))
    values = np.array([at, below, above, 0, 1e-30, 3e38], np.float32)
    code = case["code"]
    wanted = [code + 1, code, code + 1, 0, 0, 255]
    answer = answers.array("margin_codes", subject.call("margin_codes", values))
    same(f"margin_codes of {values.tolist()}", answer, wanted)
    evidence.examples += 1


@check(
    "AUDIT-14",
    "near_tie_share",
    cases=st.fixed_dictionaries({"seed": st.integers(0, 2**32 - 1), "few": st.booleans()}),
)
def share_of_near_ties(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Near-ties are the codes below that of 2^-7, which is 137."""
    draws = np.random.default_rng(case["seed"])
    histogram = draws.integers(0, 3 if case["few"] else 10**6, 256)
    histogram[[136, 137]] += [1, 2]
    wanted = int(histogram[:137].sum()) / int(histogram.sum())
    answer = answers.numbers("near_tie_share", subject.call("near_tie_share", histogram), ())
    close("near_tie_share", answer, wanted, evidence, **BOUND)
