"""Comparisons of stored noise: counts, masks drawn and cut, replacements, whole examples."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations, product
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import answers, chances
from openmoe_conformance.adapter import UnsupportedError
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import same
from openmoe_conformance.data_answers import FEATURES, ids, same_example, same_ids, same_numbers
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.subject import Subject
from openmoe_conformance.vector_cases import Arrays, Comparison, Kind, Run, VectorCase
from openmoe_spec.data import TRANSFORMS

_SETTING = ("noise_density", "mean_noise_span_length")
_COUNTS = ("num_noise_tokens", "num_noise_spans", "num_nonnoise_tokens")
_FORM = ("mask_sum", "mask_runs", "starts_nonnoise", "ends_noise")
_DENOISED = ("denoised_inputs", "denoised_targets")
_SEED = 20240202
"""Seed of the draws: any would do."""


def _of(case: VectorCase, *names: str) -> dict[str, Any]:
    return {name: case.config[name] for name in names if name in case.config}


def _ids(case: VectorCase, name: str) -> ndarray:
    return np.asarray(case.config[name], np.int32)


def _rejects(s: Subject) -> None:
    if not s.rejects_invalid_input:
        raise UnsupportedError("does not declare rejects_invalid_input")


# ---- replacing noise ---------------------------------------------------------------------------

_UNIQUE = tuple(name for name in TRANSFORMS if "unique" in name)


def _replaced(s: Subject, case: VectorCase, transform: str, **options: Any) -> Any:
    options |= _of(case, "vocabulary_size", "num_sentinels")
    mask = np.asarray(case.config["noise_mask"], bool)
    return s.call("replace_noise", _ids(case, "tokens"), mask, transform=transform, **options)


def _transform(name: str) -> Run:
    def run(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
        same_ids(name, _replaced(s, case, name, **_of(case, "overflow")), _ids(case, name))

    return run


def _too_many_runs(name: str) -> Run:
    def run(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
        _rejects(s)
        must_reject(f"replace_noise with more runs: {name}", lambda: _replaced(s, case, name))

    return run


# ---- counts and masks --------------------------------------------------------------------------


def _counts(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    answer = s.call("noise_counts", case.config["length"], **_of(case, *_SETTING))
    same_numbers("noise_counts", answer, _of(case, *_COUNTS))


def _counts_rejected(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    _rejects(s)
    must_reject(
        f"noise_counts of {case.config['length']} tokens",
        lambda: s.call("noise_counts", case.config["length"], **_of(case, *_SETTING)),
    )


def _mask(s: Subject, case: VectorCase, noise: ndarray, other: ndarray) -> ndarray:
    answer = s.call(
        "noise_mask",
        case.config["length"],
        **_of(case, *_SETTING),
        noise_permutation=noise,
        nonnoise_permutation=other,
        roll=0,
    )
    found = answers.array("noise_mask", answer)
    if found.shape != (case.config["length"],):
        raise Disagreement(f"noise_mask: shape {list(found.shape)}, not of {case.config['length']}")
    return found.astype(bool)


def _form(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    """Compare what all masks of a setting have in common, on two of them."""
    sizes = [case.config[name] - 1 for name in ("num_noise_tokens", "num_nonnoise_tokens")]
    for step in (1, -1):
        mask = _mask(s, case, *(np.arange(size)[::step] for size in sizes))
        found = {
            "mask_sum": mask.sum(),
            "mask_runs": (np.diff(mask.astype(np.int8), prepend=0) == 1).sum(),
            "starts_nonnoise": not mask[0],
            "ends_noise": mask[-1],
        }
        for name in _FORM:
            same(name, found[name], case.config[name])


def permutation(runs: Sequence[int], step: int = 1) -> ndarray:
    """Return one of the permutations that cut tokens into these runs (OBJ-03).

    The i-th place gets the marker at p_i, and the first len(runs) - 1 markers begin a run; with
    step -1 they are handed out backwards.
    """
    begins = np.zeros(max(sum(runs) - 1, 0), bool)
    begins[np.cumsum(runs)[:-1] - 1] = True
    order = np.empty(len(begins), np.int32)
    order[begins] = np.arange(len(runs) - 1)[::step]
    order[~begins] = np.arange(len(runs) - 1, len(begins))[::step]
    return order


def _cut(s: Subject, case: VectorCase, _: Arrays, evidence: Evidence) -> None:
    """Every pair of cuts must make another of the stored masks, and there must be no other."""
    wanted = sorted(map(tuple, np.asarray(case.config["masks"], bool).tolist()))
    spans = case.config["num_noise_spans"]
    cuts = [
        [
            np.diff([0, *places, count]).tolist()
            for places in combinations(range(1, count), spans - 1)
        ]
        for count in (case.config["num_noise_tokens"], case.config["num_nonnoise_tokens"])
    ]
    for step in (1, -1):
        made = [
            tuple(_mask(s, case, *(permutation(runs, step) for runs in pair)).tolist())
            for pair in product(*cuts)
        ]
        evidence.examples += len(made)
        same("noise_mask: masks of all cuts", sorted(made), wanted)


# ---- draws -------------------------------------------------------------------------------------


def _uniform(name: str, drawn: ndarray, outcomes: list[Any], evidence: Evidence) -> None:
    """Require each draw to be one of the outcomes, and all of them to be as likely."""
    places = {str(outcome): place for place, outcome in enumerate(outcomes)}
    counts = [0] * len(outcomes)
    for draw in drawn.tolist():
        if str(draw) not in places:
            raise Disagreement(f"{name}: drew {draw}, which the original never did")
        counts[places[str(draw)]] += 1
    chances.judge(name, counts, [1.0] * len(outcomes), evidence)


def _drawn_masks(s: Subject, case: VectorCase, _: Arrays, evidence: Evidence) -> None:
    length, count = case.config["length"], case.config["count"]
    given = _of(case, *_SETTING)
    answer = s.call("draw_noise_masks", length, **given, count=count, seed=_SEED)
    drawn = answers.array("draw_noise_masks", answer)
    if drawn.shape != (count, length):
        raise Disagreement(
            f"draw_noise_masks: shape {list(drawn.shape)}, expected {[count, length]}"
        )
    _uniform("draw_noise_masks", drawn.astype(np.int32), case.config["masks"], evidence)


def _drawn_splits(s: Subject, case: VectorCase, _: Arrays, evidence: Evidence) -> None:
    length, count = case.config["length"], case.config["count"]
    drawn = ids("draw_splits", s.call("draw_splits", length, count=count, seed=_SEED))
    same("draw_splits: number of draws", len(drawn), count)
    _uniform("draw_splits", drawn, case.config["splits"], evidence)


# ---- examples ----------------------------------------------------------------------------------


def _denoised(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    mask = np.asarray(case.config["noise_mask"], bool)
    options = _of(case, "vocabulary_size", "num_sentinels")
    for transform, name in zip(_UNIQUE, FEATURES, strict=True):
        answer = s.call(
            "replace_noise", _ids(case, "segment"), mask, transform=transform, **options
        )
        same_ids(f"replace_noise to {name}", answer, _ids(case, f"denoised_{name}"))


def _split(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    answer = s.call("split_prefix", _ids(case, "segment"), case.config["split"])
    wanted = {name: _ids(case, f"denoised_{name}") for name in FEATURES}
    same_example("split_prefix", answer, wanted)


def _finished(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    answer = s.call(
        "finish_example",
        *(_ids(case, f"denoised_{name}") for name in FEATURES),
        **_of(case, "inputs_length", "targets_length"),
        prompt=_ids(case, "prompt"),
    )
    same_example("finish_example", answer, {name: _ids(case, name) for name in FEATURES})


def _whole(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    """Compare the example made of a segment and its choices; a mask is one by its permutations."""
    choices = _of(case, "split")
    if "noise_mask" in case.config:
        other, noise = runs_of(case.config["noise_mask"])
        choices = {
            "noise_permutation": permutation(noise),
            "nonnoise_permutation": permutation(other),
        }
    names = ("inputs_length", "targets_length", "vocabulary_size", "num_sentinels")
    answer = s.call(
        "ul2_example",
        _ids(case, "segment"),
        case.config["objective"],
        **_of(case, *names),
        prompt=_ids(case, "prompt"),
        **choices,
    )
    same_example("ul2_example", answer, {name: _ids(case, name) for name in FEATURES})


def runs_of(mask: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the lengths of the runs of other tokens and of noise, beginning with the former.

    One token alone is counted as two (OBJ-02), the second of which is noise.
    """
    ends = np.flatnonzero(np.diff([*mask, -1])) + 1
    runs = np.diff(ends, prepend=0).tolist()
    return (runs[::2], runs[1::2]) if len(mask) > 1 else ([1], [1])


KINDS: Mapping[str, Kind] = {
    "noise_replaced": Kind(
        {
            **{name: Comparison(_transform(name), config=(name,)) for name in TRANSFORMS},
            **{f"{name}_rejected": Comparison(_too_many_runs(name)) for name in _UNIQUE},
        },
        config=("tokens", "noise_mask", "vocabulary_size"),
    ),
    "noise_counts": Kind(
        {
            "counts": Comparison(_counts, config=_COUNTS),
            "form": Comparison(_form, config=(*_COUNTS, *_FORM)),
            "rejected": Comparison(_counts_rejected),
        },
        config=("length", *_SETTING),
    ),
    "drawn_masks": Kind(
        {
            "cuts": Comparison(_cut, config=_COUNTS),
            "drawn": Comparison(_drawn_masks, config=("count",)),
        },
        config=("length", *_SETTING, "masks"),
    ),
    "drawn_splits": Kind(
        {"drawn": Comparison(_drawn_splits)}, config=("length", "count", "splits")
    ),
    "example": Kind(
        {
            "noise_replaced": Comparison(_denoised, config=("noise_mask", *_DENOISED)),
            "prefix_split": Comparison(_split, config=("split", *_DENOISED)),
            "finished": Comparison(_finished, config=_DENOISED),
            "whole": Comparison(_whole, config=("objective",)),
        },
        config=(
            *("segment", "prompt", "vocabulary_size"),
            *("inputs_length", "targets_length", "inputs", "targets"),
        ),
    ),
}
"""Kinds of noise and of what is made with it."""
