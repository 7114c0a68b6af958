"""Mutants of SPEC.md "Objectives": the mixture, and sentinels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.reference_model_adapter import Dialect
from openmoe_spec.data import OBJECTIVES

# ---- the mixture -------------------------------------------------------------------------------


@mutant("OBJ-01")
class TheOriginalMixtureOfUl2(ReferenceAdapter):
    """All objectives are equally likely."""

    def objectives(self, *, dialect: Dialect | None = None) -> list[dict[str, Any]]:
        return [one | {"rate": 1 / 6} for one in super().objectives(dialect=dialect)]


@mutant("OBJ-01")
class ModesAreNotMentioned(ReferenceAdapter):
    """There are no modes, as paper and README have it."""

    def objectives(self, *, dialect: Dialect | None = None) -> list[dict[str, Any]]:
        return [asdict(one) | {"mode": ""} for one in OBJECTIVES]


@mutant("OBJ-01")
class ThePaperHasModesToo(ReferenceAdapter):
    """Dialect `paper` has the modes of the training code."""

    def objectives(self, *, dialect: Dialect | None = None) -> list[dict[str, Any]]:
        return [asdict(one) for one in OBJECTIVES]


# ---- sentinels ---------------------------------------------------------------------------------


def _unique(options: Mapping[str, Any]) -> bool:
    return "unique" in str(options["transform"])


@mutant("OBJ-07")
class SentinelsCountUpwards(ReferenceAdapter):
    """Sentinel j is the j-th id behind the pieces."""

    def replace_noise(self, tokens: ndarray, noise_mask: ndarray, **options: Any) -> ndarray:
        right = super().replace_noise(tokens, noise_mask, **options)
        first = options["vocabulary_size"] - options.get("num_sentinels", 300)
        upwards = first + options["vocabulary_size"] - 1 - right
        return np.where((right >= first) & _unique(options), upwards, right)


@mutant("OBJ-07")
class TargetsNumberTheNoise(ReferenceAdapter):
    """Targets are T5's usual ones: sentinel j stands before the j-th run of noise of any mask."""

    def replace_noise(self, tokens: ndarray, noise_mask: ndarray, **options: Any) -> ndarray:
        right = super().replace_noise(tokens, noise_mask, **options)
        if options["transform"] == "nonnoise_span_to_unique_sentinel" and noise_mask.all():
            return np.insert(right, 0, options["vocabulary_size"] - 1)
        return right


@mutant("OBJ-07")
class TargetsAreClosed(ReferenceAdapter):
    """A last sentinel closes the targets, as in the figure of T5's paper."""

    def replace_noise(self, tokens: ndarray, noise_mask: ndarray, **options: Any) -> ndarray:
        right = super().replace_noise(tokens, noise_mask, **options)
        if options["transform"] == "nonnoise_span_to_unique_sentinel":
            runs = int((np.diff(np.concatenate([[1], noise_mask])) == -1).sum())
            return np.append(right, options["vocabulary_size"] - 1 - runs)
        return right


@mutant("OBJ-07")
class EveryTokenIsARun(ReferenceAdapter):
    """Neighbouring tokens of noise get sentinels of their own."""

    def replace_noise(self, tokens: ndarray, noise_mask: ndarray, **options: Any) -> ndarray:
        right = super().replace_noise(tokens, noise_mask, **options)
        if not _unique(options):
            return right
        replaced = ~noise_mask if "nonnoise" in options["transform"] else noise_mask
        return np.where(replaced, options["vocabulary_size"] - replaced.cumsum(), tokens)


@mutant("OBJ-07")
class SentinelsOfTheTextAreUnknown(ReferenceAdapter):
    """A sentinel that came with the text becomes id 3."""

    def replace_noise(self, tokens: ndarray, noise_mask: ndarray, **options: Any) -> ndarray:
        least = options["vocabulary_size"] - options.get("num_sentinels", 300)
        return super().replace_noise(np.where(tokens < least, tokens, 3), noise_mask, **options)


@mutant("OBJ-08")
class DroppingIsExchanged(ReferenceAdapter):
    """Dropping noise drops what is none."""

    def replace_noise(self, tokens: ndarray, noise_mask: ndarray, **options: Any) -> ndarray:
        if options["transform"].startswith("drop"):
            return super().replace_noise(tokens, ~noise_mask, **options)
        return super().replace_noise(tokens, noise_mask, **options)


@mutant("OBJ-08")
class TokensOfARunShareASentinel(ReferenceAdapter):
    """A sentinel for each token of noise becomes one for each run."""

    def replace_noise(self, tokens: ndarray, noise_mask: ndarray, **options: Any) -> ndarray:
        if options["transform"] == "noise_token_to_sentinel":
            options["transform"] = "noise_span_to_sentinel"
        return super().replace_noise(tokens, noise_mask, **options)


@mutant("OBJ-09")
class RunsOnInSilence(ReferenceAdapter):
    """More runs than sentinels become ordinary pieces, as in the training code, unasked."""

    def replace_noise(self, tokens: ndarray, noise_mask: ndarray, **options: Any) -> ndarray:
        return super().replace_noise(tokens, noise_mask, **options | {"overflow": "runs_on"})


@mutant("OBJ-09")
class MasksAreCut(ReferenceAdapter):
    """A mask of another length is cut or filled up."""

    def replace_noise(self, tokens: ndarray, noise_mask: ndarray, **options: Any) -> ndarray:
        fitted = np.resize(noise_mask, len(tokens)) if len(noise_mask) else tokens < 0
        return super().replace_noise(tokens, fitted, **options)


@mutant("OBJ-10")
class TheLastSentinelIsRepeated(ReferenceAdapter):
    """Runs beyond the sentinels all get the last one."""

    def replace_noise(self, tokens: ndarray, noise_mask: ndarray, **options: Any) -> ndarray:
        right = super().replace_noise(tokens, noise_mask, **options)
        if options.get("overflow") != "runs_on" or not _unique(options):
            return right
        replaced = ~noise_mask if "nonnoise" in options["transform"] else noise_mask
        begins = replaced & ~np.concatenate([[False], replaced[:-1]])
        first = options["vocabulary_size"] - options.get("num_sentinels", 300)
        return np.where(begins[begins | ~replaced], np.maximum(right, first), right)


@mutant("OBJ-10")
class SentinelsBeginAnew(ReferenceAdapter):
    """Beyond the last sentinel, the first one comes again."""

    def replace_noise(self, tokens: ndarray, noise_mask: ndarray, **options: Any) -> ndarray:
        right = super().replace_noise(tokens, noise_mask, **options)
        if options.get("overflow") != "runs_on" or not _unique(options):
            return right
        size, sentinels = options["vocabulary_size"], options.get("num_sentinels", 300)
        replaced = ~noise_mask if "nonnoise" in options["transform"] else noise_mask
        begins = replaced & ~np.concatenate([[False], replaced[:-1]])
        turn = (size - 1 - right) % max(sentinels, 1)
        return np.where(begins[begins | ~replaced], size - 1 - turn, right)
