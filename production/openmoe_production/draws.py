"""Draws from a seed, many at once: masks, splits, objectives, blocks, tasks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import Any

import numpy as np

from openmoe_production import documents
from openmoe_production.data_arguments import whole
from openmoe_production.noise import noise_counts, noise_masks, prefix_bounds
from openmoe_spec.data import MAX_DOCUMENT_LENGTH, OBJECTIVES


def segment_draws(
    objective: int, lengths: Sequence[int], generator: np.random.Generator
) -> dict[str, Any]:
    """Return the draws of segments of these lengths, as keywords of `ul2_examples`.

    Errors: RejectedError OBJ-15. Spec: OBJ-16, OBJ-17.
    """
    index = whole("objective", objective, "OBJ-15", least=0, most=len(OBJECTIVES) - 1)
    made = OBJECTIVES[index]
    if made.mean_noise_span_length is None:
        bounds = np.array([prefix_bounds(length) for length in lengths]).reshape(-1, 2)
        return {"splits": generator.integers(bounds[:, 0], bounds[:, 1], endpoint=True)}
    drawn: dict[str, list[Any]] = {"noise_permutations": [], "nonnoise_permutations": []}
    for length, equals in groupby(lengths):
        counts = noise_counts(
            length,
            noise_density=made.noise_density,
            mean_noise_span_length=made.mean_noise_span_length,
        )
        for name, rows in permutations(counts, len(list(equals)), generator).items():
            drawn[name] += list(rows)
    return dict(drawn)


def document_blocks(
    given: Sequence[np.ndarray], generator: np.random.Generator
) -> list[np.ndarray]:
    """Return one block of each document [n], uniform over its blocks; an empty one has none.

    Spec: DATA-01, DATA-02.
    """
    lengths = np.fromiter(map(len, given), np.float32, len(given))
    blocks = np.ceil(lengths / np.float32(MAX_DOCUMENT_LENGTH)).astype(np.int64)
    drawn = generator.integers(np.maximum(blocks, 1)).tolist()
    return [
        documents.document_block(one, block) if count > 1 else one
        for one, count, block in zip(given, blocks.tolist(), drawn, strict=True)
        if count
    ]


def permutations(
    counts: Mapping[str, int], count: int, generator: np.random.Generator
) -> dict[str, np.ndarray]:
    """Return both permutations of `count` masks, [count, n - 1] each, uniform over all."""
    return {
        f"{kind}_permutations": generator.permuted(
            np.tile(np.arange(counts[f"num_{kind}_tokens"] - 1), (count, 1)), axis=1
        )
        for kind in ("noise", "nonnoise")
    }


def draw_noise_masks(
    length: int, *, noise_density: float, mean_noise_span_length: float, count: int, seed: int
) -> np.ndarray:
    """Return masks, bool [count, L], uniform over all pairs of cuts.

    Errors: RejectedError OBJ-06. Spec: OBJ-16.
    """
    how: dict[str, Any] = {
        "noise_density": noise_density,
        "mean_noise_span_length": mean_noise_span_length,
    }
    counts = noise_counts(length, **how)
    generator, count = _begin(seed, count, "OBJ-06")
    drawn: dict[str, Any] = permutations(counts, count, generator)
    return noise_masks(length, **how, **drawn)


def draw_splits(length: int, *, count: int, seed: int) -> np.ndarray:
    """Return lengths of prefixes, int64 [count], uniform over their range.

    Errors: RejectedError OBJ-12. Spec: OBJ-17.
    """
    least, most = prefix_bounds(length)
    generator, count = _begin(seed, count, "OBJ-12")
    return generator.integers(least, most, count, endpoint=True)


def draw_objectives(count: int, *, seed: int) -> np.ndarray:
    """Return objectives, int64 [count], by their rates. Errors: RejectedError OBJ-15.

    Spec: OBJ-18.
    """
    generator, count = _begin(seed, count, "OBJ-15")
    return generator.choice(len(OBJECTIVES), count, p=[one.rate for one in OBJECTIVES])


def draw_blocks(
    length: int, *, count: int, seed: int, max_length: int = MAX_DOCUMENT_LENGTH
) -> np.ndarray:
    """Return blocks of a document, int64 [count], uniform over all.

    Errors: RejectedError DATA-11. Spec: DATA-02.
    """
    length = whole("length", length, "DATA-11", least=1)
    blocks = documents.num_blocks(length, max_length=max_length)
    generator, count = _begin(seed, count, "DATA-11")
    return generator.integers(blocks, size=count)


def draw_tasks(mixture: str, count: int, *, seed: int) -> tuple[str, ...]:
    """Return tasks by a mixture's shares. Errors: RejectedError DATA-11. Spec: DATA-09."""
    shares = documents.mixture(mixture)
    generator, count = _begin(seed, count, "DATA-11")
    return tuple(generator.choice(list(shares), count, p=list(shares.values())).tolist())


def _begin(seed: int, count: int, clause: str) -> tuple[np.random.Generator, int]:
    count = whole("count", count, clause, least=1)
    return np.random.default_rng(whole("seed", seed, clause, least=0)), count
