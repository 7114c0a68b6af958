"""Checks of SPEC.md "Documents": a whole pipeline, whose stream is its own but for what it promises.

Documents are told apart by their tokens: each consists of ids of its own.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import same
from openmoe_conformance.data_answers import fields, rows
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import documents
from openmoe_spec.data import END, GROUP_OF_DOCUMENTS, OBJECTIVES

NAMES = tuple(
    f"decoder_{name}"
    for name in (
        *("target_tokens", "input_tokens", "loss_weights", "causal_attention"),
        *("segment_ids", "positions"),
    )
)
LENGTH = 32
PIECES, SENTINELS = 40_000, 300
PROMPTS = [np.array([10 + i, 20 + i]) for i in range(len(OBJECTIVES))]
"""A mode of its own for each objective, so that rows tell which one made them."""
_FIRST = 100
_OPTIONS: dict[str, Any] = {
    "inputs_length": LENGTH,
    "targets_length": LENGTH,
    "vocabulary_size": PIECES + SENTINELS,
    "prompts": PROMPTS,
}


def documents_of_own_ids(count: int, *, longest: int = 12) -> list[ndarray]:
    """Return documents of ids of their own; every seventh is empty."""
    sizes = np.random.default_rng(count).integers(1, longest + 1, count)
    sizes[3::7] = 0
    ends = sizes.cumsum() + _FIRST
    return [np.arange(end - n, end).astype(np.int32) for end, n in zip(ends, sizes, strict=True)]


def fed(subject: Subject, given: list[ndarray], count: int, **more: Any) -> tuple[Any, Any]:
    """Return rows by feature, and the state behind them; `more` goes over the options here."""
    options = _OPTIONS | more
    answer = subject.call("feed", given, count=count, **options)
    found = fields("feed", answer, ("features", "state"))
    features = rows("feed", found["features"], NAMES)
    for name, array in features.items():
        if array.shape != (count, options["inputs_length"] + options["targets_length"]):
            raise Disagreement(f"feed: {name} of shape {list(array.shape)}, asked for {count} rows")
    return features, found["state"]


def examples_of_rows(features: dict[str, ndarray]) -> Iterator[tuple[int, ndarray, ndarray]]:
    """Yield objective, inputs and targets of every example in some rows."""
    modes = {tuple(one.tolist()): i for i, one in enumerate(PROMPTS)}
    columns = (features[f"decoder_{n}"] for n in ("target_tokens", "segment_ids", "loss_weights"))
    for tokens, segments, weights in zip(*columns, strict=True):
        for number in range(1, int(segments.max(initial=0)) + 1):
            here = segments == number
            ids, is_target = tokens[here], weights[here] == 1
            inputs, targets = ids[~is_target], ids[is_target]
            mode = tuple(inputs[:2].tolist())
            if mode not in modes:
                raise Disagreement(f"feed: an example begins with {list(mode)}, which is no mode")
            yield modes[mode], inputs, targets


def _sizes(_: Profile) -> Iterator[Case]:
    yield {"documents": 800, "seed": 3}
    yield {"documents": 1700, "seed": 4}


# ---- the same rows, wherever it stops ----------------------------------------------------------


@check("DATA-12", "feed", cases=_sizes)
def the_same_seed_gives_the_same_rows(subject: Subject, case: Case, _: Evidence) -> None:
    """And another one does not."""
    given = documents_of_own_ids(case["documents"])
    one, _state = fed(subject, given, 40, seed=case["seed"])
    again, _state = fed(subject, given, 40, seed=case["seed"])
    for name in NAMES:
        same(f"{name}, a second time", again[name], one[name])
    other, _state = fed(subject, given, 40, seed=case["seed"] + 1)
    if all(np.array_equal(other[name], one[name]) for name in NAMES):
        raise Disagreement("feed: another seed gives the same rows")


def _stops(profile: Profile) -> Iterator[Case]:
    for number in range(3 + profile.examples // 50):
        generator = np.random.default_rng(number)
        yield {"seed": number, "stops": generator.integers(1, 30, 3).tolist()}


@check("DATA-12", "feed(state)", cases=_stops)
def a_pipeline_goes_on_where_it_stopped(subject: Subject, case: Case, _: Evidence) -> None:
    """After any number of rows, more than once, and in the middle of a group."""
    given = documents_of_own_ids(800)
    whole, _state = fed(subject, given, sum(case["stops"]), seed=case["seed"])
    state, first = None, 0
    for count in case["stops"]:
        part, state = fed(subject, given, count, seed=case["seed"], state=state)
        for name in NAMES:
            wanted = whole[name][first : first + count]
            same(f"{name} from row {first} on", part[name], wanted)
        first += count


@check("DATA-12", "feed(state)", "feed(process)", "feed(num_processes)", cases=_stops)
def a_process_goes_on_where_it_stopped(subject: Subject, case: Case, _: Evidence) -> None:
    """With its own documents."""
    given = documents_of_own_ids(2400)
    own = {"process": 2, "num_processes": 3, "seed": case["seed"]}
    first, second, _third = case["stops"]
    whole, _state = fed(subject, given, first + second, **own)
    _part, state = fed(subject, given, first, **own)
    part, _state = fed(subject, given, second, state=state, **own)
    for name in NAMES:
        same(f"{name} of process 2 of 3, from row {first} on", part[name], whole[name][first:])


# ---- processes ---------------------------------------------------------------------------------


@check("DATA-13", "feed(process)", "feed(num_processes)", cases=_sizes)
def processes_see_documents_of_their_own(subject: Subject, case: Case, _: Evidence) -> None:
    """Every n-th one each."""
    given = documents_of_own_ids(case["documents"])
    owner = {int(i): place for place, one in enumerate(given) for i in one}
    for process in range(3):
        options = {"process": process, "num_processes": 3, "seed": case["seed"]}
        features, _state = fed(subject, given, 40, **options)
        tokens = features["decoder_target_tokens"]
        ordinary = tokens[(tokens >= _FIRST) & (tokens < PIECES)]
        seen = sorted({owner[int(one)] % 3 for one in ordinary if int(one) in owner})
        same(f"documents of process {process} of 3, modulo 3", seen, [process])


# ---- what is fed -------------------------------------------------------------------------------


@check("DATA-14", "feed", cases=_sizes)
def objectives_are_fed_from_their_own_groups(subject: Subject, case: Case, _: Evidence) -> None:
    """Groups of 128 documents that hold something, each for one objective only."""
    given = documents_of_own_ids(case["documents"])
    features, _state = fed(subject, given, 120, seed=case["seed"])
    groups = -(-sum(1 for one in given if len(one)) // GROUP_OF_DOCUMENTS)
    seen: dict[int, set[int]] = {}
    for objective, inputs, targets in examples_of_rows(features):
        found = np.concatenate([inputs, targets])
        seen.setdefault(objective, set()).update(
            found[(found >= _FIRST) & (found < PIECES)].tolist()
        )
    wanted = [i for i in range(len(OBJECTIVES)) if documents.objective_groups(groups, i)]
    same("objectives that were fed", sorted(seen), wanted)
    for one in wanted:
        for other in wanted:
            if one < other and (both := seen[one] & seen[other]):
                raise Disagreement(
                    f"feed: objectives {one} and {other} see the same {len(both)} tokens"
                )


@check("DATA-14", "feed", cases=_sizes)
def examples_are_whole(subject: Subject, case: Case, _: Evidence) -> None:
    """A mode, an end on each side, sentinels in turn, tokens in the order of the text."""
    features, _state = fed(subject, documents_of_own_ids(case["documents"]), 80, seed=case["seed"])
    for objective, inputs, targets in examples_of_rows(features):
        where = f"feed: an example of objective {objective}"
        if inputs[-1] != END or targets[-1] != END or len(inputs) > LENGTH:
            raise Disagreement(f"{where} does not end in {END} on both sides")
        sentinels = targets[targets >= PIECES]
        if OBJECTIVES[objective].is_prefix:
            same(f"{where}: sentinels", len(sentinels), 0)
            continue
        last = PIECES + SENTINELS - 1
        same(f"{where}: sentinels of its targets", sentinels, last - np.arange(len(sentinels)))
        if targets[0] != last:
            raise Disagreement(f"{where}: targets begin with {targets[0]}, not with sentinel 0")


@check("DATA-14", "feed", cases=lambda _: iter([{"documents": 800, "seed": 5}]))
def ended_groups_begin_anew(subject: Subject, case: Case, _: Evidence) -> None:
    """Rates hold for as long as the pipeline runs: PrefixLM has half of the examples."""
    given = documents_of_own_ids(case["documents"])
    features, _state = fed(subject, given, 1200, seed=case["seed"])
    shown = [objective for objective, _, _ in examples_of_rows(features)][-600:]
    share = shown.count(5) / len(shown)
    # Half of 600 draws: 0.4 and 0.6 are 4.9 standard deviations off.
    if not 0.4 < share < 0.6:
        raise Disagreement(f"feed: PrefixLM has {share:.3f} of the examples of a late part")


# ---- what must be rejected ---------------------------------------------------------------------


def _illegal(_: Profile) -> Iterator[Case]:
    yield {"wrong": "no document", "documents": []}
    yield {"wrong": "empty documents", "documents": [[], []]}
    yield {"wrong": "a negative id", "documents": [[5, -1]]}


@check("DATA-11", "rejects_invalid_input", "feed", cases=_illegal)
def documents_without_a_token_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """A pipeline that could never feed a row ends at once."""
    given = [np.array(one, np.int32) for one in case["documents"]]
    must_reject(case["wrong"], lambda: subject.call("feed", given, count=1, seed=0, **_OPTIONS))
