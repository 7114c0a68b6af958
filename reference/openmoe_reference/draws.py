"""SPEC.md "Objectives" and "Documents": draws from a seed; their distributions are clauses.

NumPy's generator stands for TensorFlow's: which numbers it gives is no property of the model.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from openmoe_reference.arguments import check_integer
from openmoe_reference.documents import mixture as shares_of
from openmoe_reference.documents import num_blocks
from openmoe_reference.noise import noise_counts, noise_mask, prefix_bounds
from openmoe_spec.data import MAX_DOCUMENT_LENGTH, OBJECTIVES


def permutations(
    generator: np.random.Generator, counts: Mapping[str, int]
) -> Mapping[str, Int[ndarray, " _"]]:
    """Return both permutations of a mask, uniform over all. Spec: OBJ-16."""
    return {
        f"{kind}_permutation": generator.permutation(counts[f"num_{kind}_tokens"] - 1)
        for kind in ("noise", "nonnoise")
    }


def draw_noise_masks(
    length: int, *, noise_density: float, mean_noise_span_length: float, count: int, seed: int
) -> Bool[ndarray, "count L"]:
    """Return masks drawn uniformly from all pairs of cuts.

    Errors: RejectedError OBJ-06. Spec: OBJ-16. Source: preprocessors.py::random_spans_noise_mask.
    """
    how = {"noise_density": noise_density, "mean_noise_span_length": mean_noise_span_length}
    counts = noise_counts(length, **how)
    generator = _generator(seed, "OBJ-06")
    count = check_integer("count", count, "OBJ-06", least=1)
    masks = [
        noise_mask(length, **how, **permutations(generator, counts))  # type: ignore[arg-type]
        for _ in range(count)
    ]
    return np.stack(masks)


def draw_splits(length: int, *, count: int, seed: int) -> Int[ndarray, " count"]:
    """Return lengths of prefixes drawn uniformly from their range.

    Errors: RejectedError OBJ-12. Spec: OBJ-17.
    Source: preprocessors.py::random_prefix_noise_mask.
    """
    least, most = prefix_bounds(length)
    count = check_integer("count", count, "OBJ-12", least=1)
    return _generator(seed, "OBJ-12").integers(least, most, count, endpoint=True)


def draw_objectives(count: int, *, seed: int) -> Int[ndarray, " count"]:
    """Return objectives drawn by their rates. Errors: RejectedError OBJ-15. Spec: OBJ-18.

    Source: preprocessors.py::ul2_objective.
    """
    count = check_integer("count", count, "OBJ-15", least=1)
    rates = [one.rate for one in OBJECTIVES]
    return _generator(seed, "OBJ-15").choice(len(rates), count, p=rates)


def draw_blocks(
    length: int, *, count: int, seed: int, max_length: int = MAX_DOCUMENT_LENGTH
) -> Int[ndarray, " count"]:
    """Return blocks of a document drawn uniformly. Errors: RejectedError DATA-11. Spec: DATA-02.

    Source: preprocessors.py::select_random_chunk.
    """
    length = check_integer("length", length, "DATA-11", least=1)
    count = check_integer("count", count, "DATA-11", least=1)
    blocks = num_blocks(length, max_length=max_length)
    return _generator(seed, "DATA-11").integers(blocks, size=count)


def draw_tasks(mixture: str, count: int, *, seed: int) -> tuple[str, ...]:
    """Return tasks drawn by a mixture's shares. Errors: RejectedError DATA-11. Spec: DATA-09.

    Source: seqio dataset_providers.py::Mixture.
    """
    shares = shares_of(mixture)
    count = check_integer("count", count, "DATA-11", least=1)
    places = _generator(seed, "DATA-11").choice(len(shares), count, p=list(shares.values()))
    return tuple(list(shares)[place] for place in places)


def _generator(seed: object, clause: str) -> np.random.Generator:
    return np.random.default_rng(check_integer("seed", seed, clause, least=0))
