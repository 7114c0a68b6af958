"""Mutants of the clauses of class P: what is drawn for objectives, documents and mixtures."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import documents, noise
from openmoe_spec.data import MAX_DOCUMENT_LENGTH, MIXTURES, OBJECTIVES

# ---- objectives --------------------------------------------------------------------------------


@mutant("OBJ-16")
class RunsAreDrawnOneByOne(ReferenceAdapter):
    """Each run's length is uniform over what is left, so that first runs are long."""

    def draw_noise_masks(self, length: int, *, count: int, seed: int, **how: float) -> ndarray:
        counts = noise.noise_counts(length, **how)
        generator = np.random.default_rng(seed)
        spans = counts["num_noise_spans"]

        def runs(tokens: int) -> list[int]:
            found = []
            for left in range(spans - 1, 0, -1):
                found.append(int(generator.integers(1, tokens - left + 1)))
                tokens -= found[-1]
            return [*found, tokens]

        masks = []
        for _ in range(count):
            pairs = zip(
                runs(counts["num_nonnoise_tokens"]), runs(counts["num_noise_tokens"]), strict=True
            )
            masks.append([bit for o, n in pairs for bit in [False] * o + [True] * n])
        return np.array(masks)


@mutant("OBJ-16")
class BothCutsAreTheSame(ReferenceAdapter):
    """Noise and other tokens are cut by one seed, and so alike."""

    def draw_noise_masks(self, length: int, *, count: int, seed: int, **how: float) -> ndarray:
        counts = noise.noise_counts(length, **how)
        generator = np.random.default_rng(seed)
        least = min(counts["num_noise_tokens"], counts["num_nonnoise_tokens"]) - 1
        masks = []
        for _ in range(count):
            order = generator.permutation(least)
            drawn = {
                f"{kind}_permutation": np.concatenate(
                    [order, np.arange(least, counts[f"num_{kind}_tokens"] - 1)]
                )
                for kind in ("noise", "nonnoise")
            }
            masks.append(noise.noise_mask(length, **how, **drawn))  # type: ignore[arg-type]
        return np.stack(masks)


@mutant("OBJ-17")
class TheLongestPrefixIsNeverDrawn(ReferenceAdapter):
    """The range's end is left out."""

    def draw_splits(self, length: int, *, count: int, seed: int) -> ndarray:
        right = super().draw_splits(length, count=count, seed=seed)
        least, most = noise.prefix_bounds(length)
        return np.where(right == most, least, right)


@mutant("OBJ-17")
class PrefixesTakeTurns(ReferenceAdapter):
    """Every length comes in turn, each as often as any other."""

    def draw_splits(self, length: int, *, count: int, seed: int) -> ndarray:
        super().draw_splits(length, count=count, seed=seed)
        least, most = noise.prefix_bounds(length)
        return least + np.arange(count) % (most - least + 1)


@mutant("OBJ-17")
class PrefixesAreNearTheMiddle(ReferenceAdapter):
    """A prefix is the mean of two draws."""

    def draw_splits(self, length: int, *, count: int, seed: int) -> ndarray:
        two = [
            super(PrefixesAreNearTheMiddle, self).draw_splits(length, count=count, seed=seed + i)
            for i in (0, 1)
        ]
        return (two[0] + two[1]) // 2


@mutant("OBJ-18")
class ObjectivesAreEquallyLikely(ReferenceAdapter):
    """Each objective has a sixth of the examples."""

    def draw_objectives(self, count: int, *, seed: int) -> ndarray:
        return np.random.default_rng(seed).integers(len(OBJECTIVES), size=count)


@mutant("OBJ-18")
class TheSeedIsConstant(ReferenceAdapter):
    """The order of the objectives is the same for every seed, as in the training code."""

    def draw_objectives(self, count: int, *, seed: int) -> ndarray:
        super().draw_objectives(count, seed=seed)
        return super().draw_objectives(count, seed=7)


@mutant("OBJ-18")
class ObjectivesTakeTurns(ReferenceAdapter):
    """Ten examples in a fixed order hold the rates exactly, again and again."""

    def draw_objectives(self, count: int, *, seed: int) -> ndarray:
        return np.resize([5, 0, 5, 1, 5, 2, 5, 3, 5, 4], count)


# ---- documents and mixtures --------------------------------------------------------------------


@mutant("DATA-02")
class TheFirstBlockIsTaken(ReferenceAdapter):
    """Documents are cut behind their first block."""

    def draw_blocks(self, length: int, *, count: int, seed: int, **options: int) -> ndarray:
        return np.zeros_like(super().draw_blocks(length, count=count, seed=seed, **options))


@mutant("DATA-02")
class BlocksAreDrawnByLength(ReferenceAdapter):
    """A block is as likely as it is long."""

    def draw_blocks(self, length: int, *, count: int, seed: int, **options: int) -> ndarray:
        super().draw_blocks(length, count=count, seed=seed, **options)
        largest = options.get("max_length", MAX_DOCUMENT_LENGTH)
        return np.random.default_rng(seed).integers(length, size=count) // largest


@mutant("DATA-09")
class TasksAreEquallyLikely(ReferenceAdapter):
    """Every task has the same share."""

    def draw_tasks(self, mixture: str, count: int, *, seed: int) -> tuple[str, ...]:
        tasks = list(documents.mixture(mixture))
        places = np.random.default_rng(seed).integers(len(tasks), size=count)
        return tuple(tasks[place] for place in places)


@mutant("DATA-09")
class TheStackIsAThird(ReferenceAdapter):
    """The Stack keeps 50 beside the other tasks' 100, as if halved rates were added up."""

    def draw_tasks(self, mixture: str, count: int, *, seed: int) -> tuple[str, ...]:
        rates = dict(MIXTURES[mixture])
        rates = {t: rate / 2 if t.startswith("the_stack") else rate for t, rate in rates.items()}
        shares = np.array(list(rates.values())) / sum(rates.values())
        places = np.random.default_rng(seed).choice(len(shares), count, p=shares)
        return tuple(list(rates)[place] for place in places)
