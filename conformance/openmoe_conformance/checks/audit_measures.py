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
from openmoe_conformance.checks.audit import SIZES, counted, texts
from openmoe_conformance.checks.audit_spreads import BOUND
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject


@st.composite
def _tables(draw: st.DrawFn) -> Case:
    """Draw counts [V, E, K]: ids of few and of many tokens, some with equal ones."""
    case = draw(texts())
    counts = counted(case)
    times = [draw(st.sampled_from([0, 1, 1, 4, 10, 20, 300])) for _ in counts]
    table = counts * np.array(times)[:, None, None]
    return {"counts": np.concatenate([table, table[::-1]])}  # every id has one that is equal


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


def _top(subject: Subject, case: Case, **options: int) -> None:
    number, least = options.get("number", 10), options.get("least", 10)
    shape = (case["counts"].shape[1], number)
    for by in ("count", "precision", "lift"):
        wanted = []
        for scores in _scores(case["counts"], by, least).values():
            ranked = [token for _, token in sorted((-s, token) for token, s in scores.items())]
            ranked = ranked[:number]
            wanted.append(ranked + [-1] * (number - len(ranked)))
        answer = subject.call("top_tokens", case["counts"], by=by, **options)
        got = answers.array("top_tokens", answer)
        same(f"top_tokens by {by}: shape", got.shape, shape)
        same(f"top_tokens by {by}", got, wanted)


@check("AUDIT-08", "top_tokens", cases=_tables())
def tokens_of_experts(subject: Subject, case: Case, _: Evidence) -> None:
    """Ids are ranked by count, precision and lift; equals in order, ids without a choice not at all."""
    _top(subject, case)


@check("AUDIT-08", "top_tokens(number, least)", cases=_tables())
def fewer_tokens_of_experts(subject: Subject, case: Case, _: Evidence) -> None:
    """So many are listed, of ids with so many tokens."""
    _top(subject, case, number=3, least=4)


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
    options = {"least": least, "weighted": weighted}
    answer = subject.call("vocabulary_specialisation", case["counts"], **options)
    got = answers.numbers("vocabulary_specialisation", answer, (len(wanted),))
    close(f"vocabulary_specialisation, {options}", got, wanted, evidence, **BOUND)


@check("AUDIT-11", "vocabulary_specialisation", cases=_tables())
def specialisation_as_published(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Keys that prefer an expert count once each, however few tokens they have."""
    _specialised(subject, case, evidence)


@check("AUDIT-11", "vocabulary_specialisation(least, weighted)", cases=_tables())
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
    for code in (0, 1, 7, 8, 100, 136, 191, 192, 253, 254):
        exponent = Fraction(code, 8) - 24
        yield {"code": code, "threshold": float(np.float32(2.0 ** float(exponent)))}


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


# ---- what is refused -------------------------------------------------------------------------------


def _illegal(_: Profile) -> Iterator[Case]:
    twice = np.array([[0, 1], [2, 2]], np.int32)
    beyond = np.array([[0, 1], [2, 255]], np.int32)
    none = np.array([[0, 1], [2, -1]], np.int32)
    for what, chosen in (("an expert twice", twice), ("255", beyond), ("-1", none)):
        yield {"wrong": what, "expert_index": chosen}


@check("AUDIT-27", "rejects_invalid_input", "coactivation", cases=_illegal)
def experts_that_are_none_go_with_nobody(subject: Subject, case: Case, _: Evidence) -> None:
    """An expert that there is not, and one twice for one token, raise."""
    must_reject(
        f"coactivation with {case['wrong']}",
        lambda: subject.call("coactivation", case["expert_index"], num_experts=4),
    )


def _no_loads(_: Profile) -> Iterator[Case]:
    yield {"loads": np.zeros(4, np.int64)}
    yield {"loads": np.array([3, -1, 2])}


@check("AUDIT-27", "rejects_invalid_input", "load_statistics", cases=_no_loads)
def loads_that_are_none(subject: Subject, case: Case, _: Evidence) -> None:
    """No choice at all, and fewer than none, raise."""
    must_reject(
        f"load_statistics of {case['loads'].tolist()}",
        lambda: subject.call("load_statistics", case["loads"]),
    )


def _no_margins(_: Profile) -> Iterator[Case]:
    for value in (np.nan, np.inf, -0.5):
        yield {"margins": np.array([0.5, value], np.float32)}


@check("AUDIT-27", "rejects_invalid_input", "margin_codes", cases=_no_margins)
def margins_that_are_none(subject: Subject, case: Case, _: Evidence) -> None:
    """What is not finite, and what is below 0, is no margin."""
    must_reject(
        f"margin_codes of {case['margins'].tolist()}",
        lambda: subject.call("margin_codes", case["margins"]),
    )


def _unequal(_: Profile) -> Iterator[Case]:
    yield {"counts": np.array([[[1, 0], [0, 1]], [[2, 0], [0, 1]]])}


@check("AUDIT-27", "rejects_invalid_input", "top_tokens", cases=_unequal)
def tokens_of_counts_that_are_none(subject: Subject, case: Case, _: Evidence) -> None:
    """Counts whose ranks are of different tokens raise."""
    must_reject("top_tokens", lambda: subject.call("top_tokens", case["counts"], by="count"))
