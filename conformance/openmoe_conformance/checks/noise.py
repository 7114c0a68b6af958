"""Checks of SPEC.md "Objectives": how much of a segment is noise, and where."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from itertools import permutations
from math import comb
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import same
from openmoe_conformance.data_answers import same_numbers
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import noise
from openmoe_spec.data import OBJECTIVES

Settings = dict[str, Any]

_SPANS = tuple(
    (one.noise_density, one.mean_noise_span_length)
    for one in OBJECTIVES
    if one.mean_noise_span_length is not None
)
_MEANS = st.sampled_from((3.0, 8.0, 64.0, 2.0, 4.0))
_HOW = st.sampled_from(_SPANS) | st.tuples(st.floats(0.01, 0.5), _MEANS)


@st.composite
def segments(draw: st.DrawFn, *, longest: int = 200) -> Case:
    """Draw a length and a setting that can be cut, and permutations for it."""
    density, mean = draw(_HOW)
    length = draw(st.integers(1, longest) | st.sampled_from((1, 2, 3, 1137, 1818)))
    seed = draw(st.integers(0, 2**16))
    return cut(length, density, mean, seed)


def cut(length: int, density: float, mean: float, seed: int) -> Case:
    """Return a case of a segment with permutations from a seed."""
    counts = noise.noise_counts(length, noise_density=density, mean_noise_span_length=mean)
    generator = np.random.default_rng(seed)
    return {
        "length": length,
        "noise_density": density,
        "mean_noise_span_length": mean,
        "noise_permutation": generator.permutation(counts["num_noise_tokens"] - 1),
        "nonnoise_permutation": generator.permutation(counts["num_nonnoise_tokens"] - 1),
    }


def setting(case: Case) -> Settings:
    """Return the two numbers that say how noise is made."""
    return {name: case[name] for name in ("noise_density", "mean_noise_span_length")}


def given(case: Case) -> Settings:
    """Return all keywords of a mask."""
    permutations_ = ("noise_permutation", "nonnoise_permutation")
    return setting(case) | {name: case[name] for name in permutations_}


def mask(subject: Subject, length: int, **options: Any) -> ndarray:
    """Return the implementation's mask of a segment."""
    found = answers.array("noise_mask", subject.call("noise_mask", length, **options))
    if found.shape != (length,):
        raise Disagreement(f"noise_mask: shape {list(found.shape)}, expected [{length}]")
    return found.astype(bool)


# ---- counts ------------------------------------------------------------------------------------


@check(
    "OBJ-02",
    "noise_counts",
    cases=st.fixed_dictionaries({"length": st.integers(1, 3000), "how": _HOW}),
)
def noise_is_counted(subject: Subject, case: Case, _: Evidence) -> None:
    """The share of the tokens, at least one of each kind, and the spans."""
    density, mean = case["how"]
    how = {"noise_density": density, "mean_noise_span_length": mean}
    try:
        wanted = noise.noise_counts(case["length"], **how)
    except ValueError:
        return  # more spans than tokens of a kind: OBJ-06
    same_numbers("noise_counts", subject.call("noise_counts", case["length"], **how), wanted)


def _roundings(_: Profile) -> Iterator[Case]:
    """Yield lengths at which float64, or halves away from zero, would give another count."""
    for density, mean in (*_SPANS, (0.3, 3.0), (0.35, 3.0), (0.07, 3.0), (0.1, 2.0)):
        for length in range(2, 3000):
            float64 = round(length * density)
            float32 = int(np.rint(np.float32(length) * np.float32(density)))
            half = (length * density) % 1 == 0.5 or (float32 / mean) % 1 == 0.5
            if float64 != float32 or (half and length % 7 == 0):
                yield {"length": length, "noise_density": density, "mean_noise_span_length": mean}


@check("OBJ-02", "noise_counts", cases=_roundings)
def counting_is_float32_and_half_to_even(subject: Subject, case: Case, _: Evidence) -> None:
    """Where float64 gives another number, and where a half is rounded."""
    how = setting(case)
    wanted = noise.noise_counts(case["length"], **how)
    same_numbers("noise_counts", subject.call("noise_counts", case["length"], **how), wanted)


# ---- masks -------------------------------------------------------------------------------------


@check("OBJ-03", "noise_mask", cases=segments())
def runs_are_cut_by_the_permutations(subject: Subject, case: Case, _: Evidence) -> None:
    """The mask that two permutations make."""
    wanted = noise.noise_mask(case["length"], **given(case))
    same("noise_mask", mask(subject, case["length"], **given(case)), wanted)


def _small(_: Profile) -> Iterator[Case]:
    for length, density, mean in ((8, 0.5, 2.0), (9, 0.5, 1.0), (10, 0.3, 1.5), (7, 0.5, 3.0)):
        yield {"length": length, "noise_density": density, "mean_noise_span_length": mean}


@check("OBJ-03", "noise_mask", cases=_small)
def every_cut_is_equally_likely(subject: Subject, case: Case, evidence: Evidence) -> None:
    """All pairs of permutations of a small segment give every pair of cuts equally often."""
    try:
        counts = noise.noise_counts(case["length"], **setting(case))
    except ValueError:
        return
    sizes = {k: counts[f"num_{k}_tokens"] for k in ("noise", "nonnoise")}
    fixed = {f"{k}_permutation": np.arange(size - 1) for k, size in sizes.items()}
    for kind, size in sizes.items():
        seen: Counter[bytes] = Counter()
        for order in permutations(range(size - 1)):
            options = fixed | {f"{kind}_permutation": np.array(order, np.int64)}
            found = mask(subject, case["length"], **setting(case), **options)
            seen[found.tobytes()] += 1
            evidence.examples += 1
        cuts = comb(size - 1, counts["num_noise_spans"] - 1)
        if len(seen) != cuts or len(set(seen.values())) != 1:
            raise Disagreement(
                f"noise_mask: all permutations of {size} {kind} tokens give {len(seen)} masks, "
                f"{min(seen.values())} to {max(seen.values())} times; expected {cuts}, equally often"
            )


@check("OBJ-04", "noise_mask", cases=segments(longest=60))
def masks_begin_without_noise_and_end_in_noise(subject: Subject, case: Case, _: Evidence) -> None:
    """As many tokens in as many runs as were counted, in turn."""
    length = case["length"]
    found = mask(subject, length, **given(case))
    if length == 1:
        same("noise_mask of one token", found, [False])
        return
    counts = noise.noise_counts(length, **setting(case))
    runs = int((np.diff(found.astype(int)) == 1).sum())
    same("[first, last]", found[[0, -1]], [False, True])
    same("[noise, runs]", [found.sum(), runs], [counts[k] for k in _COUNTED])


_COUNTED = ("num_noise_tokens", "num_noise_spans")


@check(
    "OBJ-04",
    "noise_mask",
    cases=lambda _: iter([{"length": length} for length in (1, 2, 5, 100)]),
)
def density_0_has_no_noise(subject: Subject, case: Case, _: Evidence) -> None:
    """Not one token, though at any other density there is at least one."""
    none = np.zeros(0, np.int64)
    options = {"noise_density": 0.0, "mean_noise_span_length": 3.0}
    drawn = {"noise_permutation": none, "nonnoise_permutation": none}
    found = mask(subject, case["length"], **options, **drawn)
    same("noise_mask at density 0", found, np.zeros(case["length"], bool))


@check(
    "OBJ-04",
    "noise_mask(roll)",
    cases=st.tuples(segments(longest=60), st.integers(0, 2**10)).map(
        lambda one: one[0] | {"roll": one[1] % one[0]["length"]}
    ),
)
def masks_are_rolled_to_the_right(subject: Subject, case: Case, _: Evidence) -> None:
    """The last tokens' noise comes first."""
    wanted = np.roll(noise.noise_mask(case["length"], **given(case)), case["roll"])
    found = mask(subject, case["length"], **given(case), roll=case["roll"])
    same("noise_mask, rolled", found, wanted)


# ---- lengths -----------------------------------------------------------------------------------


def _published(_: Profile) -> Iterator[Case]:
    for density, mean in (*_SPANS, (0.15, 64.0), (0.3, 3.0), (0.5, 2.0)):
        for length in (16, 64, 166, 172, 512, 1024, 2048):
            yield {
                "inputs": length,
                "noise_density": density,
                "mean_noise_span_length": mean,
                "extra": (1, 1),
            }


_LENGTHS = ("tokens_length", "targets_length")


def _compare_lengths(subject: Subject, case: Case) -> None:
    inputs, targets = case["extra"]
    options = setting(case) | {
        "extra_tokens_per_span_inputs": inputs,
        "extra_tokens_per_span_targets": targets,
    }
    wanted = noise.span_lengths(case["inputs"], **options)
    same_numbers("span_lengths", subject.call("span_lengths", case["inputs"], **options), wanted)


@check("OBJ-05", "span_lengths", cases=_published)
def segments_fill_the_inputs(subject: Subject, case: Case, _: Evidence) -> None:
    """The longest segment whose inputs, sentinels and end fit."""
    _compare_lengths(subject, case)


@check(
    "OBJ-05",
    "span_lengths(extra_tokens_per_span_inputs)",
    "span_lengths(extra_tokens_per_span_targets)",
    cases=st.fixed_dictionaries(
        {
            "inputs": st.integers(2, 600),
            "noise_density": st.sampled_from((0.15, 0.5, 0.3, 0.05)),
            "mean_noise_span_length": st.sampled_from((1.5, 3.0, 8.0)),
            "extra": st.tuples(st.integers(0, 2), st.integers(0, 2)),
        }
    ),
)
def sentinels_of_any_size_are_counted(subject: Subject, case: Case, _: Evidence) -> None:
    """Of any number of tokens on either side."""
    _compare_lengths(subject, case)


# ---- what must be rejected ---------------------------------------------------------------------

_COUNT_CASES = (
    *((0, 0.15, 3.0), (-3, 0.15, 3.0), (10, -0.1, 3.0), (10, 1.1, 3.0), (10, float("nan"), 3.0)),
    *((10, 0.5, 0.0), (10, 0.5, -1.0), (3, 0.5, 1.0), (20, 0.9, 1.0), (8, 0.6, 0.5)),
)


@check(
    "OBJ-06",
    "rejects_invalid_input",
    "noise_counts",
    cases=lambda _: iter(
        [{"length": n, "noise_density": d, "mean_noise_span_length": m} for n, d, m in _COUNT_CASES]
    ),
)
def impossible_noise_is_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """No length, no density, no span, and more spans than tokens of a kind."""
    must_reject(
        f"noise of {case}", lambda: subject.call("noise_counts", case["length"], **setting(case))
    )


def _no_permutations(_: Profile) -> Iterator[Case]:
    right = cut(20, 0.5, 3.0, 0)
    for kind in ("noise_permutation", "nonnoise_permutation"):
        order = right[kind]
        for wrong in (order[:-1], np.append(order, len(order)), np.zeros_like(order), order + 1):
            yield right | {kind: wrong}


@check("OBJ-06", "rejects_invalid_input", "noise_mask", cases=_no_permutations)
def what_is_no_permutation_is_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Of another size, with a place twice, or beyond the places."""
    must_reject("a mask", lambda: subject.call("noise_mask", case["length"], **given(case)))
