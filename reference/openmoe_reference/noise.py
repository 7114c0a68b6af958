"""SPEC.md "Objectives": how much of a segment is noise, and where; every draw is an input.

Line-comparable to t5 preprocessors.py::random_spans_noise_mask, random_spans_helper,
random_prefix_noise_mask@3eb38e6. Counting is float32 where TensorFlow counted, else float64.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from openmoe_reference.arguments import (
    check_finite,
    check_integer,
    check_permutation,
    check_positive,
)
from openmoe_spec.errors import RejectedError

LONGEST = 2**20
"""Tokens of a segment, at most: with next to nothing but noise any segment would fit."""


def noise_counts(
    length: int, *, noise_density: float, mean_noise_span_length: float
) -> Mapping[str, int]:
    """Return num_noise_tokens, num_noise_spans, num_nonnoise_tokens of a segment.

    Errors: RejectedError OBJ-06, also when there are more spans than tokens to be cut into them.
    Spec: OBJ-02. Source: preprocessors.py::random_spans_noise_mask.
    """
    length = max(check_integer("length", length, "OBJ-06", least=1), 2)
    density = _density(noise_density)
    mean = _mean(mean_noise_span_length)
    noise = int(np.rint(np.float32(length) * np.float32(density)))
    noise = min(max(noise, 1), length - 1)
    with np.errstate(over="ignore"):  # there may be more spans than float32 holds
        spans = max(np.rint(np.float32(noise) / np.float32(mean)), 1)
    if spans > min(noise, length - noise):
        raise RejectedError(
            "mean_noise_span_length",
            "OBJ-06",
            f"{spans:.0f} spans cannot be cut from {noise} tokens of noise and {length - noise} others",
        )
    return {
        "num_noise_tokens": noise,
        "num_noise_spans": int(spans),
        "num_nonnoise_tokens": length - noise,
    }


def run_lengths(
    num_tokens: int, num_runs: int, permutation: Int[ndarray, " m"]
) -> Int[ndarray, " s"]:
    """Return the lengths of the runs that a permutation of the places between tokens makes.

    Errors: RejectedError OBJ-06. Spec: OBJ-03. Source: random_spans_noise_mask.
    """
    num_tokens = check_integer("num_tokens", num_tokens, "OBJ-06", least=1)
    num_runs = check_integer("num_runs", num_runs, "OBJ-06", least=1, most=num_tokens)
    order = check_permutation("permutation", permutation, num_tokens - 1, "OBJ-06")
    begins = np.arange(num_tokens - 1) < num_runs - 1
    run_of_token = np.concatenate([[0], begins[order].cumsum()])
    return np.bincount(run_of_token, minlength=num_runs)


def noise_mask(
    length: int,
    *,
    noise_density: float,
    mean_noise_span_length: float,
    noise_permutation: Int[ndarray, " k"],
    nonnoise_permutation: Int[ndarray, " m"],
    roll: int = 0,
) -> Bool[ndarray, " L"]:
    """Return which tokens are noise: runs of other tokens and of noise in turn.

    The permutations are of the places between the tokens of each kind; at density 0 they are not read.
    Errors: RejectedError OBJ-06. Spec: OBJ-04. Source: random_spans_noise_mask.
    """
    length = check_integer("length", length, "OBJ-06", least=1)
    roll = check_integer("roll", roll, "OBJ-06", least=0, most=length)
    if _density(noise_density) == 0:
        return np.zeros(length, bool)
    counts = noise_counts(
        length, noise_density=noise_density, mean_noise_span_length=mean_noise_span_length
    )
    spans = counts["num_noise_spans"]
    noise = run_lengths(counts["num_noise_tokens"], spans, noise_permutation)
    other = run_lengths(counts["num_nonnoise_tokens"], spans, nonnoise_permutation)
    runs = np.stack([other, noise], axis=1).reshape(-1)  # in turn, beginning without noise
    mask = np.repeat(np.arange(2 * spans) % 2 == 1, runs)
    return np.roll(mask[:length], roll)  # a segment of one token was counted as two


def span_lengths(
    inputs_length: int,
    *,
    noise_density: float,
    mean_noise_span_length: float,
    extra_tokens_per_span_inputs: int = 1,
    extra_tokens_per_span_targets: int = 1,
) -> Mapping[str, int]:
    """Return tokens_length, the longest segment whose inputs fit, and its targets_length.

    The search begins one below the inputs' length, which is not looked at itself.
    Errors: RejectedError OBJ-06, also when a segment of LONGEST tokens fits. Spec: OBJ-05. Source: preprocessors.py::random_spans_helper.
    """
    inputs_length = check_integer("inputs_length", inputs_length, "OBJ-06", least=1, most=LONGEST)
    density, mean = _density(noise_density), _mean(mean_noise_span_length)
    extra = [
        check_integer(name, value, "OBJ-06", least=0)
        for name, value in (
            ("extra_tokens_per_span_inputs", extra_tokens_per_span_inputs),
            ("extra_tokens_per_span_targets", extra_tokens_per_span_targets),
        )
    ]

    def lengths(tokens: int) -> tuple[int, int]:
        noise = round(tokens * density)  # Python's round, float64, half to even
        spans = round(noise / mean)
        return tokens - noise + spans * extra[0] + 1, noise + spans * extra[1] + 1

    tokens = inputs_length - 1
    while lengths(tokens + 1)[0] <= inputs_length:
        tokens += 1
        if tokens > LONGEST:
            raise RejectedError(
                "noise_density", "OBJ-06", f"segments of {LONGEST} tokens still fit"
            )
    inputs, targets = lengths(tokens)
    if density == 0.5 and targets > inputs:
        tokens, targets = tokens - 1, targets - 1
    return {"tokens_length": tokens, "targets_length": targets}


def prefix_bounds(length: int, *, noise_density: float = 0.5) -> tuple[int, int]:
    """Return the fewest and the most tokens of a prefix, both included.

    Errors: RejectedError OBJ-12. Spec: OBJ-11.
    Source: preprocessors.py::random_prefix_noise_mask.
    """
    length = check_integer("length", length, "OBJ-12", least=1)
    density = check_finite("noise_density", noise_density, "OBJ-12")
    if not 0 <= density <= 0.5:
        raise RejectedError("noise_density", "OBJ-12", f"must be in 0..0.5, got {density}")
    most = length - 1
    share = np.float32(1 - 2 * density) * np.float32(most)
    return min(most, max(1, int(np.rint(share)))), most


def _mean(value: object) -> float:
    """Return a span length that float32 holds: neither 0 nor infinite there."""
    mean = check_positive("mean_noise_span_length", value, "OBJ-06")
    limits = np.finfo(np.float32)
    if not float(limits.tiny) <= mean <= float(limits.max):
        raise RejectedError("mean_noise_span_length", "OBJ-06", f"must be a float32, got {mean}")
    return mean


def _density(value: object) -> float:
    density = check_finite("noise_density", value, "OBJ-06")
    if not 0 <= density <= 1:
        raise RejectedError("noise_density", "OBJ-06", f"must be in 0..1, got {density}")
    return density
