"""Mutants of SPEC.md "Objectives": PrefixLM."""

from __future__ import annotations

from collections.abc import Mapping

from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_spec.errors import RejectedError


@mutant("OBJ-11")
class PrefixesAreHalf(ReferenceAdapter):
    """At density 0.5 every prefix is half of the text."""

    def prefix_bounds(self, length: int, *, noise_density: float = 0.5) -> tuple[int, int]:
        right = super().prefix_bounds(length, noise_density=noise_density)
        half = length // 2
        return (half, half) if noise_density == 0.5 else right


@mutant("OBJ-11")
class ThePrefixMayBeAll(ReferenceAdapter):
    """A prefix may leave no target."""

    def prefix_bounds(self, length: int, *, noise_density: float = 0.5) -> tuple[int, int]:
        least, most = super().prefix_bounds(length, noise_density=noise_density)
        return least, most + 1


@mutant("OBJ-11")
class ThePrefixMayBeEmpty(ReferenceAdapter):
    """At density 0.5 there may be no prefix."""

    def prefix_bounds(self, length: int, *, noise_density: float = 0.5) -> tuple[int, int]:
        least, most = super().prefix_bounds(length, noise_density=noise_density)
        return (0 if noise_density == 0.5 else least), most


@mutant("OBJ-11")
class PrefixesAreCountedInFloat64(ReferenceAdapter):
    """The shortest prefix is counted in float64."""

    def prefix_bounds(self, length: int, *, noise_density: float = 0.5) -> tuple[int, int]:
        _, most = super().prefix_bounds(length, noise_density=noise_density)
        return min(most, max(1, round((1 - 2 * noise_density) * most))), most


@mutant("OBJ-11")
class PrefixesAreTargets(ReferenceAdapter):
    """What comes first is the target: the original's mask is named the other way round."""

    def split_prefix(self, tokens: ndarray, split: int) -> Mapping[str, ndarray]:
        right = super().split_prefix(tokens, split)
        return {"inputs": right["targets"], "targets": right["inputs"]}


@mutant("OBJ-12")
class DenseTextHasAPrefixToo(ReferenceAdapter):
    """Above a density of 0.5 the prefix has at least one token."""

    def prefix_bounds(self, length: int, *, noise_density: float = 0.5) -> tuple[int, int]:
        return super().prefix_bounds(length, noise_density=min(noise_density, 0.5))


@mutant("OBJ-12")
class SplitsMayBeAnything(ReferenceAdapter):
    """A split outside the text is cut to it."""

    def split_prefix(self, tokens: ndarray, split: int) -> Mapping[str, ndarray]:
        if not len(tokens):
            raise RejectedError("tokens", "OBJ-12", "must not be empty")
        return {"inputs": tokens[: max(split, 0)], "targets": tokens[max(split, 0) :]}
