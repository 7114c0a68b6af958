"""Checks of the clauses of class P: what is drawn for objectives, documents and mixtures."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from itertools import combinations, product

import numpy as np

from openmoe_conformance import answers, chances
from openmoe_conformance.checks import Case, check
from openmoe_conformance.data_answers import ids
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import documents, noise
from openmoe_spec.data import MIXTURES, OBJECTIVES


def _seeds(*more: Case) -> Callable[[Profile], Iterator[Case]]:
    """Return cases with more draws in longer profiles; each has a seed of its own."""

    def cases(profile: Profile) -> Iterator[Case]:
        for number, one in enumerate(more or ({},)):
            yield one | {"seed": 7 + number, "count": max(20_000, 200 * profile.examples)}

    return cases


@check(
    "OBJ-16",
    "draw_noise_masks",
    cases=_seeds(
        {"length": 12, "noise_density": 0.5, "mean_noise_span_length": 3.0},
        {"length": 12, "noise_density": 0.5, "mean_noise_span_length": 2.0},
        {"length": 9, "noise_density": 0.3, "mean_noise_span_length": 1.5},
    ),
)
def masks_are_uniform(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Over every pair of cuts, each of which is enumerated."""
    length = case["length"]
    how = {name: case[name] for name in ("noise_density", "mean_noise_span_length")}
    counts = noise.noise_counts(length, **how)
    legal = _masks(
        counts["num_noise_tokens"], counts["num_nonnoise_tokens"], counts["num_noise_spans"]
    )
    drawn = {name: case[name] for name in ("count", "seed")}
    answer = subject.call("draw_noise_masks", length, **how, **drawn)
    found = answers.array("draw_noise_masks", answer)
    if found.shape != (case["count"], length):
        raise Disagreement(f"draw_noise_masks: shape {list(found.shape)}")
    seen = Counter(map(tuple, found.astype(int).tolist()))
    if odd := set(seen) - set(legal):
        raise Disagreement(f"draw_noise_masks: {odd.pop()} is no mask of these numbers")
    chances.judge("masks", [seen[one] for one in legal], [1.0] * len(legal), evidence)


def _masks(noise_tokens: int, others: int, spans: int) -> list[tuple[int, ...]]:
    """Return every mask of some tokens in some spans, from every pair of cuts."""

    def cuts(tokens: int) -> list[list[int]]:
        ends = combinations(range(1, tokens), spans - 1)
        return [np.diff([0, *one, tokens]).tolist() for one in ends]

    return [
        tuple(bit for o, n in zip(other, noisy, strict=True) for bit in [0] * o + [1] * n)
        for other, noisy in product(cuts(others), cuts(noise_tokens))
    ]


@check("OBJ-17", "draw_splits", cases=_seeds({"length": 11}, {"length": 2}, {"length": 63}))
def prefixes_are_uniform(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Over every length that leaves a token on each side."""
    least, most = noise.prefix_bounds(case["length"])
    answer = subject.call("draw_splits", case["length"], count=case["count"], seed=case["seed"])
    found = _drawn("draw_splits", answer, case["count"], least, most)
    if most > least:
        counts = np.bincount(found - least, minlength=most - least + 1)
        chances.judge("prefixes", counts, [1.0] * len(counts), evidence)
        _judge_pairs("pairs of prefixes", found - least, [1.0] * len(counts), evidence)


@check("OBJ-18", "draw_objectives", cases=_seeds({}))
def objectives_have_their_rates(subject: Subject, case: Case, evidence: Evidence) -> None:
    """One by one, and each beside the one before it: draws are independent."""
    answer = subject.call("draw_objectives", case["count"], seed=case["seed"])
    found = _drawn("draw_objectives", answer, case["count"], 0, len(OBJECTIVES) - 1)
    rates = np.array([one.rate for one in OBJECTIVES])
    chances.judge("objectives", np.bincount(found, minlength=6), rates.tolist(), evidence)
    _judge_pairs("pairs of objectives", found, rates.tolist(), evidence)


@check(
    "DATA-02",
    "draw_blocks",
    cases=_seeds({"length": 5 * 65_536}, {"length": 65_537}, {"length": 3}),
)
def blocks_are_uniform(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Over all that begin in the document, the short last one too."""
    blocks = documents.num_blocks(case["length"])
    answer = subject.call("draw_blocks", case["length"], count=case["count"], seed=case["seed"])
    found = _drawn("draw_blocks", answer, case["count"], 0, blocks - 1)
    if blocks > 1:
        counts = np.bincount(found, minlength=blocks)
        chances.judge("blocks", counts, [1.0] * blocks, evidence)


@check(
    "DATA-09",
    "draw_tasks",
    cases=_seeds({"mixture": "mix_ul2"}, {"mixture": "mix_full_lm_v2"}),
)
def tasks_have_their_shares(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Of examples, not of tokens or documents."""
    shares = documents.mixture(case["mixture"])
    drawn = subject.call("draw_tasks", case["mixture"], case["count"], seed=case["seed"])
    seen = Counter(drawn)
    if odd := set(seen) - set(MIXTURES[case["mixture"]]):
        raise Disagreement(f"draw_tasks: {odd.pop()} is no task of {case['mixture']}")
    counts = [seen[task] for task in shares]
    if sum(counts) != case["count"]:
        raise Disagreement(f"draw_tasks: {sum(counts)} draws, expected {case['count']}")
    chances.judge("tasks", counts, list(shares.values()), evidence)


@check(
    "OBJ-18",
    "draw_objectives",
    cases=_seeds({"seeds": 20}),
)
def seeds_matter(subject: Subject, case: Case, _: Evidence) -> None:
    """Another seed gives other draws."""
    answers_ = {
        ids("draw_objectives", subject.call("draw_objectives", 200, seed=seed)).tobytes()
        for seed in range(case["seeds"])
    }
    if len(answers_) < case["seeds"]:
        raise Disagreement(f"draw_objectives: {case['seeds']} seeds give {len(answers_)} answers")


@check("DATA-09", "draw_tasks", cases=_seeds({"seeds": 20}))
def seeds_matter_for_tasks(subject: Subject, case: Case, _: Evidence) -> None:
    """Another seed gives other tasks."""
    answers_ = {
        tuple(map(str, subject.call("draw_tasks", "mix_ul2", 200, seed=seed)))
        for seed in range(case["seeds"])
    }
    if len(answers_) < case["seeds"]:
        raise Disagreement(f"draw_tasks: {case['seeds']} seeds give {len(answers_)} answers")


def _judge_pairs(name: str, found: np.ndarray, shares: Sequence[float], evidence: Evidence) -> None:
    """Require that draws are independent of the ones before them: every second pair is."""
    count, half = len(shares), len(found) // 2
    if count**2 * 20 > half:
        return  # too few for so many outcomes
    pairs = np.bincount(found[: 2 * half : 2] * count + found[1 : 2 * half : 2], minlength=count**2)
    chances.judge(name, pairs, np.outer(shares, shares).ravel().tolist(), evidence)


def _drawn(name: str, answer: object, count: int, least: int, most: int) -> np.ndarray:
    found = ids(name, answer)
    if len(found) != count:
        raise Disagreement(f"{name}: {len(found)} draws, expected {count}")
    if found.min() < least or found.max() > most:
        raise Disagreement(f"{name}: {found.min()} to {found.max()}, must be {least} to {most}")
    return found
