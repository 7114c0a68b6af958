"""Which tokens of a segment are noise: counts, cuts and masks, of many segments at once.

Counting is float32 where the training code counted in float32, else float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from openmoe_production.data_arguments import MOST, finite, permutations, whole
from openmoe_spec.errors import RejectedError

LONGEST = 2**20
"""Tokens of a segment, at most: with next to nothing but noise any segment would fit."""

_FLOAT32 = np.finfo(np.float32)


def noise_counts(
    length: int, *, noise_density: float, mean_noise_span_length: float
) -> Mapping[str, int]:
    """Return num_noise_tokens, num_noise_spans, num_nonnoise_tokens of a segment.

    Errors: RejectedError OBJ-06. Spec: OBJ-02.
    """
    length = max(whole("length", length, "OBJ-06", least=1, most=MOST), 2)
    density = np.float32(_density(noise_density))
    mean = _mean(mean_noise_span_length)
    noise = min(max(int(np.rint(np.float32(length) * density)), 1), length - 1)
    with np.errstate(over="ignore"):  # there may be more spans than float32 holds
        spans = np.maximum(np.rint(np.float32(noise) / np.float32(mean)), 1)
    if spans > min(noise, length - noise):
        raise RejectedError(
            "mean_noise_span_length",
            "OBJ-06",
            f"makes {spans:.0f} spans of {noise} tokens of noise and {length - noise} others",
        )
    return {
        "num_noise_tokens": noise,
        "num_noise_spans": int(spans),
        "num_nonnoise_tokens": length - noise,
    }


def run_lengths(cuts: np.ndarray, num_runs: int) -> np.ndarray:
    """Return the lengths, [N x num_runs], of the runs that permutations [N, n - 1] cut n tokens into.

    Spec: OBJ-03.
    """
    begins = np.ones((len(cuts), cuts.shape[1] + 1), bool)
    np.less(cuts, num_runs - 1, out=begins[:, 1:])
    # Every row begins a run, so rows need not be told apart.
    return np.diff(np.flatnonzero(begins), append=begins.size)


def noise_masks(
    length: int,
    *,
    noise_density: float,
    mean_noise_span_length: float,
    noise_permutations: Any,
    nonnoise_permutations: Any,
    roll: int = 0,
) -> np.ndarray:
    """Return which tokens of N segments are noise, bool [N, L], from permutations of both kinds.

    Errors: RejectedError OBJ-06. Spec: OBJ-04.
    """
    length = whole("length", length, "OBJ-06", least=1)
    roll = whole("roll", roll, "OBJ-06", least=0, most=length)
    if _density(noise_density) == 0:
        return np.zeros((len(noise_permutations), length), bool)
    counts = noise_counts(
        length, noise_density=noise_density, mean_noise_span_length=mean_noise_span_length
    )
    runs = segment_runs(counts, noise_permutations, nonnoise_permutations)
    # In turn, beginning without noise: where an odd number of runs has ended, there is noise.
    ends = np.stack([runs["nonnoise"], runs["noise"]], axis=1).ravel().cumsum()
    turns = np.zeros(ends[-1] + 1, np.uint8)
    turns[ends] = 1
    masks = (turns[:-1].cumsum(dtype=np.uint8) & 1).astype(bool)
    # A segment of one token was counted as two.
    masks = masks.reshape(-1, max(length, 2))[:, :length]
    return np.roll(masks, roll, axis=1)


def segment_runs(
    counts: Mapping[str, int], noise_permutations: Any, nonnoise_permutations: Any
) -> dict[str, np.ndarray]:
    """Return the lengths [N x spans] of the runs of `noise` and of `nonnoise`.

    Errors: RejectedError OBJ-06. Spec: OBJ-03.
    """
    given = {"noise": noise_permutations, "nonnoise": nonnoise_permutations}
    cuts = {
        kind: permutations(
            f"{kind}_permutation", one, counts[f"num_{kind}_tokens"] - 1, clause="OBJ-06"
        )
        for kind, one in given.items()
    }
    if len(cuts["noise"]) != len(cuts["nonnoise"]):
        raise RejectedError(
            "noise_permutation",
            "OBJ-06",
            f"are {len(cuts['noise'])}, the others {len(cuts['nonnoise'])}",
        )
    return {kind: run_lengths(one, counts["num_noise_spans"]) for kind, one in cuts.items()}


def noise_mask(
    length: int,
    *,
    noise_density: float,
    mean_noise_span_length: float,
    noise_permutation: np.ndarray,
    nonnoise_permutation: np.ndarray,
    roll: int = 0,
) -> np.ndarray:
    """Return which tokens of one segment are noise, bool [L]. Errors, Spec: as `noise_masks`."""
    masks = noise_masks(
        length,
        noise_density=noise_density,
        mean_noise_span_length=mean_noise_span_length,
        noise_permutations=[noise_permutation],
        nonnoise_permutations=[nonnoise_permutation],
        roll=roll,
    )
    return masks[0]


_LOOK = 4096
"""Segment lengths that are looked at together."""


def span_lengths(
    inputs_length: int,
    *,
    noise_density: float,
    mean_noise_span_length: float,
    extra_tokens_per_span_inputs: int = 1,
    extra_tokens_per_span_targets: int = 1,
) -> Mapping[str, int]:
    """Return tokens_length, the longest segment whose inputs fit, and its targets_length.

    Errors: RejectedError OBJ-06, also when a segment of more than LONGEST fits. Spec: OBJ-05.
    """
    inputs_length = whole("inputs_length", inputs_length, "OBJ-06", least=1, most=LONGEST)
    density, mean = _density(noise_density), _mean(mean_noise_span_length)
    extra = [
        whole(f"extra_tokens_per_span_{name}", value, "OBJ-06", least=0)
        for name, value in (
            ("inputs", extra_tokens_per_span_inputs),
            ("targets", extra_tokens_per_span_targets),
        )
    ]
    # One below the inputs' length is taken without a look at it.
    for first in range(inputs_length - 1, LONGEST + 1, _LOOK):
        tokens = np.arange(first, first + _LOOK + 1)
        noise = np.rint(tokens * density)
        spans = np.rint(noise / mean)
        inputs = tokens - noise + spans * extra[0] + 1
        fits = inputs[1:] <= inputs_length
        place = int(fits.argmin())
        if not fits[place] and tokens[place] <= LONGEST:
            targets = noise[place] + spans[place] * extra[1] + 1
            less = int(density == 0.5 and targets > inputs[place])
            return {
                "tokens_length": int(tokens[place]) - less,
                "targets_length": int(targets) - less,
            }
    raise RejectedError("noise_density", "OBJ-06", f"a segment of {LONGEST} tokens still fits")


def prefix_bounds(length: int, *, noise_density: float = 0.5) -> tuple[int, int]:
    """Return the fewest and the most tokens of a prefix, both included.

    Errors: RejectedError OBJ-12. Spec: OBJ-11.
    """
    most = whole("length", length, "OBJ-12", least=1) - 1
    density = finite("noise_density", noise_density, "OBJ-12", least=0, most=0.5)
    share = np.rint(np.float32(1 - 2 * density) * np.float32(most))
    return min(most, max(1, int(share))), most


def _density(value: Any) -> float:
    return finite("noise_density", value, "OBJ-06", least=0, most=1)


def _mean(value: Any) -> float:
    return finite(
        "mean_noise_span_length",
        value,
        "OBJ-06",
        least=float(_FLOAT32.tiny),
        most=float(_FLOAT32.max),
    )
