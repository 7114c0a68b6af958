"""Mutants of SPEC.md "Objectives": how much of a segment is noise, and where."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import noise
from openmoe_spec.errors import RejectedError

RUN_LENGTHS = noise.run_lengths
"""The reference's own, for mutants that put another in its place."""


# ---- counts ------------------------------------------------------------------------------------


def _counted(length: int, tokens: int, spans: int) -> Mapping[str, int]:
    """Return counts, or refuse them as the reference does."""
    length = max(length, 2)
    noisy = min(max(tokens, 1), length - 1)
    if not 1 <= spans <= min(noisy, length - noisy):
        raise RejectedError("mean_noise_span_length", "OBJ-06", f"{spans} spans")
    return {
        "num_noise_tokens": noisy,
        "num_noise_spans": spans,
        "num_nonnoise_tokens": length - noisy,
    }


@mutant("OBJ-02")
class CountsInFloat64(ReferenceAdapter):
    """Noise is counted in float64."""

    def noise_counts(self, length: int, **how: float) -> Mapping[str, int]:
        super().noise_counts(length, **how)
        tokens = round(max(length, 2) * how["noise_density"])
        noisy = min(max(tokens, 1), max(length, 2) - 1)
        return _counted(length, tokens, max(round(noisy / how["mean_noise_span_length"]), 1))


@mutant("OBJ-02")
class HalvesAreRoundedUp(ReferenceAdapter):
    """round(2.5) is 3 noise tokens or spans."""

    def noise_counts(self, length: int, **how: float) -> Mapping[str, int]:
        super().noise_counts(length, **how)
        half = np.float32(0.5)
        product = np.float32(max(length, 2)) * np.float32(how["noise_density"])
        noisy = min(max(int(np.floor(product + half)), 1), max(length, 2) - 1)
        quotient = np.float32(noisy) / np.float32(how["mean_noise_span_length"])
        return _counted(length, noisy, max(int(np.floor(quotient + half)), 1))


@mutant("OBJ-02")
class SpansFollowFromTheUnroundedNoise(ReferenceAdapter):
    """Spans are counted from length x density, not from the whole number of noise tokens."""

    def noise_counts(self, length: int, **how: float) -> Mapping[str, int]:
        counts = super().noise_counts(length, **how)
        product = np.float32(max(length, 2)) * np.float32(how["noise_density"])
        spans = max(int(np.rint(product / np.float32(how["mean_noise_span_length"]))), 1)
        return _counted(length, counts["num_noise_tokens"], spans)


@mutant("OBJ-02")
class ThereMayBeNoNoise(ReferenceAdapter):
    """A share of less than half a token gives no noise at all."""

    def noise_counts(self, length: int, **how: float) -> Mapping[str, int]:
        counts = dict(super().noise_counts(length, **how))
        if round(length * how["noise_density"]) == 0:
            counts["num_noise_tokens"] = 0
        return counts


# ---- masks -------------------------------------------------------------------------------------


class _OtherCuts(ReferenceAdapter):
    """Masks with another cut into runs."""

    def run_lengths(self, num_tokens: int, num_runs: int, permutation: ndarray) -> ndarray:
        raise NotImplementedError

    def noise_mask(self, length: int, **options: Any) -> ndarray:
        with patch.object(noise, "run_lengths", self.run_lengths):
            return super().noise_mask(length, **options)


@mutant("OBJ-03")
class PermutationIsInverted(_OtherCuts):
    """Entry i goes to place p_i; the i-th entry should be the one at p_i."""

    def run_lengths(self, num_tokens: int, num_runs: int, permutation: ndarray) -> ndarray:
        return RUN_LENGTHS(num_tokens, num_runs, np.argsort(permutation, kind="stable"))


@mutant("OBJ-03")
class RunsAreAllAlike(_OtherCuts):
    """Every run is as long as the others, but for the last; nothing is drawn."""

    def run_lengths(self, num_tokens: int, num_runs: int, permutation: ndarray) -> ndarray:
        RUN_LENGTHS(num_tokens, num_runs, permutation)
        share = num_tokens // num_runs
        return np.array([share] * (num_runs - 1) + [num_tokens - share * (num_runs - 1)])


@mutant("OBJ-03")
class RunsMayBeEmpty(_OtherCuts):
    """Tokens fall into runs one by one, so that a run may get none."""

    def run_lengths(self, num_tokens: int, num_runs: int, permutation: ndarray) -> ndarray:
        RUN_LENGTHS(num_tokens, num_runs, permutation)
        run_of = np.append(permutation % num_runs, 0)
        return np.bincount(run_of, minlength=num_runs)


@mutant("OBJ-03")
class OnesComeLast(_OtherCuts):
    """The list that is permuted has its ones at the end."""

    def run_lengths(self, num_tokens: int, num_runs: int, permutation: ndarray) -> ndarray:
        return RUN_LENGTHS(num_tokens, num_runs, num_tokens - 2 - permutation)


@mutant("OBJ-04")
class MasksBeginInNoise(ReferenceAdapter):
    """The first run is noise."""

    def noise_mask(self, length: int, **options: Any) -> ndarray:
        right = super().noise_mask(length, **options)
        return right if not right.any() or options.get("roll") else right[::-1].copy()


@mutant("OBJ-04")
class OneTokenIsNoise(ReferenceAdapter):
    """A segment of one token is all noise."""

    def noise_mask(self, length: int, **options: Any) -> ndarray:
        right = super().noise_mask(length, **options)
        return ~right if length == 1 and options["noise_density"] else right


@mutant("OBJ-04")
class Density0HasOneToken(ReferenceAdapter):
    """At density 0 one token is noise, as at any small density."""

    def noise_mask(self, length: int, **options: Any) -> ndarray:
        right = super().noise_mask(length, **options)
        if options["noise_density"] == 0 and length > 1:
            right[-1] = True
        return right


@mutant("OBJ-04")
class RollsToTheLeft(ReferenceAdapter):
    """A rolled mask is turned to the left."""

    def noise_mask(self, length: int, *, roll: int = 0, **options: Any) -> ndarray:
        return np.roll(super().noise_mask(length, **options), -roll)


# ---- lengths -----------------------------------------------------------------------------------


@mutant("OBJ-05")
class TheEndIsNotCounted(ReferenceAdapter):
    """Segments are as long as inputs without an end allow."""

    def span_lengths(self, inputs_length: int, **options: Any) -> Mapping[str, int]:
        return super().span_lengths(inputs_length + 1, **options)


@mutant("OBJ-05")
class TheModeIsCounted(ReferenceAdapter):
    """Room is left for a mode of five ids, as `reserved_for_packing` could have."""

    def span_lengths(self, inputs_length: int, **options: Any) -> Mapping[str, int]:
        return super().span_lengths(max(inputs_length - 5, 2), **options)


@mutant("OBJ-05")
class LengthsAreCountedInFloat32(ReferenceAdapter):
    """Segments are counted in float32, as their noise is."""

    def span_lengths(self, inputs_length: int, **options: Any) -> Mapping[str, int]:
        right = super().span_lengths(inputs_length, **options)
        density = float(np.float32(options["noise_density"]))
        return super().span_lengths(inputs_length, **options | {"noise_density": density}) or right


@mutant("OBJ-05")
class HalfIsNotMadeEqual(ReferenceAdapter):
    """At density 0.5 targets may be longer than inputs."""

    def span_lengths(self, inputs_length: int, **options: Any) -> Mapping[str, int]:
        right = dict(super().span_lengths(inputs_length, **options))
        near = options | {"noise_density": float(np.nextafter(options["noise_density"], 1))}
        return super().span_lengths(inputs_length, **near) if near != options else right


@mutant("OBJ-05")
class SentinelsOfTargetsAreNotCounted(ReferenceAdapter):
    """The targets' length is that of the noise and an end."""

    def span_lengths(self, inputs_length: int, **options: Any) -> Mapping[str, int]:
        right = super().span_lengths(inputs_length, **options)
        bare = super().span_lengths(inputs_length, **options | {"extra_tokens_per_span_targets": 0})
        return {**right, "targets_length": bare["targets_length"]}


# ---- what must be rejected ---------------------------------------------------------------------


@mutant("OBJ-06")
class SpansAreCutDown(ReferenceAdapter):
    """More spans than tokens of a kind become as many as there are."""

    def noise_counts(self, length: int, **how: float) -> Mapping[str, int]:
        try:
            return super().noise_counts(length, **how)
        except RejectedError as error:
            if error.argument != "mean_noise_span_length" or "spans" not in str(error):
                raise
            noisy = min(max(round(length * how["noise_density"]), 1), length - 1)
            return _counted(length, noisy, min(noisy, length - noisy))


@mutant("OBJ-06")
class AnyPlacesAreAPermutation(ReferenceAdapter):
    """Places that are no permutation are ranked into one."""

    def noise_mask(self, length: int, **options: Any) -> ndarray:
        for kind in ("noise", "nonnoise"):
            counts = self.noise_counts(
                length, **{n: options[n] for n in ("noise_density", "mean_noise_span_length")}
            )
            places = np.resize(options[f"{kind}_permutation"], counts[f"num_{kind}_tokens"] - 1)
            options[f"{kind}_permutation"] = np.argsort(places, kind="stable")
        return super().noise_mask(length, **options)
