"""SPEC.md "Batching": how many tokens and loss positions an example has on average, by objective.

For whole segments, exactly: spans have fixed numbers, PrefixLM an average over its splits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from openmoe_reference.arguments import check_integer
from openmoe_reference.noise import noise_counts, prefix_bounds, span_lengths
from openmoe_spec.data import OBJECTIVES, Objective


@dataclass(frozen=True)
class Expectation:
    """Mean and variance of the tokens and of the loss positions of one example."""

    tokens: float
    loss_positions: float
    tokens_variance: float = 0.0
    loss_variance: float = 0.0


def of_objective(
    objective: int, *, inputs_length: int, targets_length: int, prompt_length: int
) -> Expectation:
    """Return what an example of a whole segment of an objective holds.

    Errors: RejectedError OBJ-15. Spec: OBJ-05, OBJ-13, OBJ-17.
    """
    index = check_integer("objective", objective, "OBJ-15", least=0, most=len(OBJECTIVES) - 1)
    sizes = _sizes(inputs_length, targets_length, prompt_length)
    inputs, targets = _lengths(OBJECTIVES[index], sizes[0])
    inputs = np.minimum(inputs + sizes[2], sizes[0] - 1) + 1
    targets = np.minimum(targets, sizes[1] - 1) + 1
    tokens = inputs + targets
    return Expectation(
        float(tokens.mean()), float(targets.mean()), float(tokens.var()), float(targets.var())
    )


def of_mixture(
    *, inputs_length: int, targets_length: int, prompt_length: int
) -> Mapping[str, float]:
    """Return shares of the positions: `fill` hold a token, `loss` a loss, one example a row.

    Errors: RejectedError OBJ-15. Spec: OBJ-18, BATCH-06.
    """
    positions = sum(_sizes(inputs_length, targets_length, prompt_length)[:2])
    each = [
        of_objective(
            i,
            inputs_length=inputs_length,
            targets_length=targets_length,
            prompt_length=prompt_length,
        )
        for i in range(len(OBJECTIVES))
    ]
    rates = [one.rate for one in OBJECTIVES]
    return {
        "fill": sum(r * e.tokens for r, e in zip(rates, each, strict=True)) / positions,
        "loss": sum(r * e.loss_positions for r, e in zip(rates, each, strict=True)) / positions,
    }


def _sizes(inputs_length: object, targets_length: object, prompt_length: object) -> list[int]:
    given = {
        "inputs_length": (inputs_length, 3),
        "targets_length": (targets_length, 2),
        "prompt_length": (prompt_length, 0),
    }
    return [
        check_integer(name, value, "OBJ-15", least=least) for name, (value, least) in given.items()
    ]


def _lengths(made: Objective, inputs_length: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the lengths of inputs and targets before they are finished, one for each equal chance."""
    if made.mean_noise_span_length is None:
        least, most = prefix_bounds(inputs_length - 1)
        prefixes = np.arange(least, most + 1)
        return prefixes, inputs_length - 1 - prefixes
    density, mean = made.noise_density, made.mean_noise_span_length
    longest = span_lengths(inputs_length, noise_density=density, mean_noise_span_length=mean)
    tokens = longest["tokens_length"]
    counts = noise_counts(tokens, noise_density=density, mean_noise_span_length=mean)
    spans = counts["num_noise_spans"]
    return (
        np.array([counts["num_nonnoise_tokens"] + spans]),
        np.array([counts["num_noise_tokens"] + spans]),
    )
