"""Checks of SPEC.md "Documents": that what a pipeline feeds follows from its documents, row by row.

Every token of the documents is another id, so a token tells its place. From an example the segment
that it was made of is known, and from that the example again.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import cycle, islice
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_conformance import chances
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.feeding import (
    LENGTH,
    NAMES,
    PIECES,
    PROMPTS,
    SENTINELS,
    documents_of_own_ids,
    examples_of_rows,
    fed,
)
from openmoe_conformance.compare import same
from openmoe_conformance.data_answers import FEATURES, same_ids
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import batching, documents, noise, objectives
from openmoe_spec.data import GROUP_OF_DOCUMENTS, MAX_DOCUMENT_LENGTH, OBJECTIVES

_TARGETS = LENGTH + 8
"""Length of targets here: at so short inputs those of spans of 64 are longer than these, and cut."""


class _Segment(NamedTuple):
    """Where the segment of an example lies in the joined documents, and which of it is noise.

    Of PrefixLM the targets are what is marked.
    """

    start: int
    marked: ndarray


def _places(given: list[ndarray]) -> tuple[ndarray, ndarray]:
    """Return the joined documents, and where each id stands in them."""
    joined = np.concatenate([one for one in given if len(one)])
    places = np.full(int(joined.max()) + 1, -1)
    places[joined] = np.arange(len(joined))
    return joined, places


def _segment(inputs: ndarray, targets: ndarray, places: ndarray) -> _Segment:
    """Return the segment of an example: from its first to its last token, cut ones between them."""
    body, rest = inputs[len(PROMPTS[0]) : -1], targets[:-1]
    parts = [one[one < PIECES] for one in (body, rest)]
    found = [places[np.minimum(one, len(places) - 1)] for one in parts]
    every = np.concatenate(found)
    if not len(every) or (every < 0).any():
        raise Disagreement(f"feed: an example holds {[one.tolist() for one in parts]}, no document")
    start = int(every.min())
    marked = np.zeros(int(every.max()) + 1 - start, bool)
    marked[found[1] - start] = True
    return _Segment(start, marked)


def _made(segment: _Segment, objective: int, joined: ndarray) -> Any:
    """Return the example that the reference makes of a segment."""
    tokens = joined[segment.start : segment.start + len(segment.marked)]
    if OBJECTIVES[objective].is_prefix:
        example = objectives.split_prefix(tokens, int((~segment.marked).sum()))
    else:
        example = objectives.denoise(tokens, segment.marked, vocabulary_size=PIECES + SENTINELS)
    return objectives.finish_example(
        example["inputs"],
        example["targets"],
        inputs_length=LENGTH,
        targets_length=_TARGETS,
        prompt=PROMPTS[objective],
    )


def _length_of(objective: int) -> int:
    """Return the tokens of a whole segment."""
    made = OBJECTIVES[objective]
    if made.mean_noise_span_length is None:
        return LENGTH - 1
    longest = noise.span_lengths(
        LENGTH,
        noise_density=made.noise_density,
        mean_noise_span_length=made.mean_noise_span_length,
    )
    return longest["tokens_length"]


def _cuts(given: list[ndarray], objective: int) -> Iterator[tuple[int, int]]:
    """Yield start and length of an objective's segments in turn, for ever."""
    own = [len(one) for one in given if len(one)]
    ends = np.cumsum([0, *own])
    borders = [*range(0, len(own), GROUP_OF_DOCUMENTS), len(own)]
    longest, pieces = _length_of(objective), []
    for group in documents.objective_groups(len(borders) - 1, objective):
        first, last = int(ends[borders[group]]), int(ends[borders[group + 1]])
        pieces += [(i, min(longest, last - i)) for i in range(first, last, longest)]
    return cycle(pieces)


def _cases(_: Profile) -> Iterator[Case]:
    yield {"documents": 800, "seed": 6, "rows": 150}
    yield {"documents": 2000, "seed": 7, "rows": 400}


# ---- rows --------------------------------------------------------------------------------------


@check("DATA-14", "feed", cases=_cases)
def rows_are_those_of_their_examples(subject: Subject, case: Case, _: Evidence) -> None:
    """Packed from the first row on, every feature as BATCH-01 to BATCH-07 have it."""
    given = documents_of_own_ids(case["documents"])
    features, _state = fed(subject, given, case["rows"], seed=case["seed"], targets_length=_TARGETS)
    examples = [
        dict(zip(FEATURES, (inputs, targets), strict=True))
        for _, inputs, targets in examples_of_rows(features)
    ]
    lengths = {"inputs": LENGTH, "targets": _TARGETS}
    wanted = batching.decoder_features(examples, lengths=lengths, pack=True)
    for name in NAMES:
        same(f"fed {name}", features[name], wanted[name])


# ---- examples ----------------------------------------------------------------------------------


@check("DATA-14", "feed", cases=_cases)
def examples_are_those_of_their_segments(subject: Subject, case: Case, _: Evidence) -> None:
    """Sentinels, order, cut ends: what OBJ-14 makes of the segment, with as much noise as OBJ-02 says."""
    given = documents_of_own_ids(case["documents"])
    joined, places = _places(given)
    features, _state = fed(subject, given, case["rows"], seed=case["seed"], targets_length=_TARGETS)
    for objective, inputs, targets in examples_of_rows(features):
        segment = _segment(inputs, targets, places)
        right = _made(segment, objective, joined)
        for name, found in zip(FEATURES, (inputs, targets), strict=True):
            same_ids(f"{name} of a fed example of objective {objective}", found, right[name])
        made = OBJECTIVES[objective]
        if made.mean_noise_span_length is not None and len(segment.marked) > 1:
            counts = noise.noise_counts(
                len(segment.marked),
                noise_density=made.noise_density,
                mean_noise_span_length=made.mean_noise_span_length,
            )
            runs = int((np.diff(segment.marked.astype(int)) == 1).sum())
            wanted = [counts["num_noise_tokens"], counts["num_noise_spans"]]
            got = [int(segment.marked.sum()), runs]
            same(f"[noise, spans] fed of objective {objective}", got, wanted)


@check("DATA-14", "feed", cases=_cases)
def segments_follow_one_another(subject: Subject, case: Case, _: Evidence) -> None:
    """Every group of an objective in turn, cut from its beginning to its short end, and then anew."""
    given = documents_of_own_ids(case["documents"])
    places = _places(given)[1]
    features, _state = fed(subject, given, case["rows"], seed=case["seed"], targets_length=_TARGETS)
    found: dict[int, list[tuple[int, int]]] = {}
    for objective, inputs, targets in examples_of_rows(features):
        segment = _segment(inputs, targets, places)
        found.setdefault(objective, []).append((segment.start, len(segment.marked)))
    for objective, pairs in sorted(found.items()):
        wanted = list(islice(_cuts(given, objective), len(pairs)))
        same(f"[start, length] of the segments of objective {objective}", pairs, wanted)


@check("DATA-14", "feed", cases=lambda _: iter([{"documents": 800, "seed": 8, "rows": 1200}]))
def every_example_has_draws_of_its_own(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Prefixes of whole segments are uniform, and spans fall elsewhere each time."""
    given = documents_of_own_ids(case["documents"])
    places = _places(given)[1]
    features, _state = fed(subject, given, case["rows"], seed=case["seed"], targets_length=_TARGETS)
    masks: dict[int, list[bytes]] = {}
    splits: list[int] = []
    for objective, inputs, targets in examples_of_rows(features):
        marked = _segment(inputs, targets, places).marked
        if len(marked) == _length_of(objective):
            if OBJECTIVES[objective].is_prefix:
                splits.append(int((~marked).sum()))
            elif (np.diff(marked.astype(int)) == 1).sum() > 1:
                masks.setdefault(objective, []).append(marked.tobytes())
    least, most = noise.prefix_bounds(LENGTH - 1)
    counts = np.bincount(np.array(splits) - least, minlength=most - least + 1)
    chances.judge("prefixes that were fed", counts, [1.0] * len(counts), evidence)
    # One of so many lengths is missed by so many draws with a chance below that of a false positive.
    if (
        len(counts) * np.log(2 / chances.FALSE_POSITIVES) < len(splits)
        and not counts[[0, -1]].all()
    ):
        raise Disagreement(f"feed: {len(splits)} prefixes are never of {least} or of {most} tokens")
    for number, shown in masks.items():
        if len(shown) >= _ENOUGH and len(set(shown)) < _ENOUGH // 4:
            raise Disagreement(
                f"feed: {len(shown)} examples of objective {number} have {len(set(shown))} masks"
            )


_ENOUGH = 20
"""Examples of an objective that cannot have a few masks by chance: there are hundreds."""


# ---- long documents ----------------------------------------------------------------------------

_WIDE = {"inputs_length": 1024, "targets_length": 1024, "vocabulary_size": 600_300}


def _long(_: Profile) -> Iterator[Case]:
    """Yield a document, and a group of PrefixLM's, longer than a block, and rows enough for both blocks."""
    yield {"sizes": [MAX_DOCUMENT_LENGTH + 4500, 300, 300], "rows": 80, "objective": 0}
    yield {"sizes": [600] * 6 * GROUP_OF_DOCUMENTS, "rows": 200, "objective": 5}


@check("DATA-14", "feed", cases=_long)
def one_block_is_looked_at(subject: Subject, case: Case, __: Evidence) -> None:
    """Of a long document, and by PrefixLM of a long group: no example lies across two of them."""
    ends = np.cumsum([0, *case["sizes"]]) + 1000
    pairs = list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))
    given = [np.arange(begin, end, dtype=np.int32) for begin, end in pairs]
    features, _state = fed(subject, given, case["rows"], seed=3, **_WIDE)
    first, last = pairs[0] if case["objective"] == 0 else (pairs[-GROUP_OF_DOCUMENTS][0], ends[-1])
    border = first + MAX_DOCUMENT_LENGTH
    for objective, inputs, targets in examples_of_rows(features):
        tokens = np.concatenate([inputs, targets])
        tokens = tokens[(tokens >= first) & (tokens < last)]
        if objective == case["objective"] and len(np.unique(tokens < border)) > 1:
            raise Disagreement(f"feed: an example of objective {objective} lies across two blocks")
