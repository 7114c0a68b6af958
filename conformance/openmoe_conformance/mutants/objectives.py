"""Mutants of SPEC.md "Objectives": sentinels, finishing, whole examples, draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.reference_model_adapter import Dialect
from openmoe_reference import noise, objectives
from openmoe_spec.data import OBJECTIVES
from openmoe_spec.errors import RejectedError

Example = Mapping[str, ndarray]

FINISH, DENOISE = objectives.finish_example, objectives.denoise
"""The reference's own, for mutants that put others in their places."""


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


# ---- finishing ---------------------------------------------------------------------------------


class _Finishing(ReferenceAdapter):
    """Finishing in another way, alone and in whole examples."""

    def finished(self, inputs: ndarray, targets: ndarray, **options: Any) -> Example:
        raise NotImplementedError

    def finish_example(self, inputs: ndarray, targets: ndarray, **options: Any) -> Example:
        return self.finished(inputs, targets, **options)

    def ul2_example(self, segment: ndarray, objective: int, **options: Any) -> Example:
        with patch.object(objectives, "finish_example", self.finished):
            return super().ul2_example(segment, objective, **options)


@mutant("OBJ-13")
class TheModeIsNeverCut(_Finishing):
    """The text is cut before the mode is put in front, so that its end moves, not its last tokens."""

    def finished(self, inputs: ndarray, targets: ndarray, **options: Any) -> Example:
        prompt = options.pop("prompt", None)
        right = FINISH(inputs, targets, **options)
        mode = np.zeros(0, np.int64) if prompt is None else np.asarray(prompt, np.int64)
        return {**right, "inputs": np.concatenate([mode, right["inputs"]])}


@mutant("OBJ-13")
class OnlyTargetsEnd(_Finishing):
    """The inputs end without an end."""

    def finished(self, inputs: ndarray, targets: ndarray, **options: Any) -> Example:
        return FINISH(inputs, targets, **options | {"ends": ("targets",)})


@mutant("OBJ-13")
class EndsOnlyWhereThereIsRoom(_Finishing):
    """What fills its length already gets no end."""

    def finished(self, inputs: ndarray, targets: ndarray, **options: Any) -> Example:
        right = dict(FINISH(inputs, targets, **options))
        length = options["targets_length"]
        if len(targets) >= length and "targets" in options.get("ends", ("targets",)):
            right["targets"] = np.asarray(targets[:length])
        return right


@mutant("OBJ-13")
class BeginsAreCut(_Finishing):
    """What is too long loses its first tokens."""

    def finished(self, inputs: ndarray, targets: ndarray, **options: Any) -> Example:
        targets = targets[max(0, len(targets) - options["targets_length"] + 1) :]
        return FINISH(inputs, targets, **options)


@mutant("DATA-10")
class EveryTaskEndsBoth(_Finishing):
    """Fine-tuning examples end as all others do."""

    def finished(self, inputs: ndarray, targets: ndarray, **options: Any) -> Example:
        return FINISH(inputs, targets, **options | {"ends": ("inputs", "targets")})


# ---- whole examples ----------------------------------------------------------------------------


@mutant("OBJ-14")
class NoModeInExamples(ReferenceAdapter):
    """Examples have no mode in front."""

    def ul2_example(self, segment: ndarray, objective: int, **options: Any) -> Example:
        return super().ul2_example(segment, objective, **options | {"prompt": ()})


@mutant("OBJ-14")
class RoomIsLeftForTheMode(ReferenceAdapter):
    """The segment is shortened so that the last sentinel stays in the inputs."""

    def ul2_example(self, segment: ndarray, objective: int, **options: Any) -> Example:
        wide = options | {"inputs_length": options["inputs_length"] + len(options["prompt"])}
        return super().ul2_example(segment, objective, **wide)


@mutant("OBJ-14")
class NoiseOfExamplesIsCountedInFloat64(ReferenceAdapter):
    """In examples, noise is counted in float64: permutations of the right size do not fit."""

    def ul2_example(self, segment: ndarray, objective: int, **options: Any) -> Example:
        made = OBJECTIVES[objective]
        if made.mean_noise_span_length is not None and len(segment) > 1:
            wanted = round(len(segment) * made.noise_density)
            if len(options["noise_permutation"]) + 1 != min(max(wanted, 1), len(segment) - 1):
                raise ValueError("a permutation of another size")
        return super().ul2_example(segment, objective, **options)


@mutant("OBJ-14")
class InputsAndTargetsAreExchanged(ReferenceAdapter):
    """Spans are in the inputs, the text around them in the targets."""

    def ul2_example(self, segment: ndarray, objective: int, **options: Any) -> Example:
        def exchanged(*arrays: ndarray, **sizes: Any) -> Example:
            right = DENOISE(*arrays, **sizes)
            return {"inputs": right["targets"], "targets": right["inputs"]}

        with patch.object(objectives, "denoise", exchanged):
            return super().ul2_example(segment, objective, **options)


@mutant("OBJ-14")
class ThePaperDrawsItsPrefix(ReferenceAdapter):
    """In dialect `paper` a prefix is drawn too."""

    def ul2_example(
        self, segment: ndarray, objective: int, *, dialect: Dialect | None = None, **options: Any
    ) -> Example:
        if dialect is not None and OBJECTIVES[objective].is_prefix:
            return super().ul2_example(
                segment, objective, dialect={"mode_tokens": "none"}, **options
            )
        return super().ul2_example(segment, objective, dialect=dialect, **options)


@mutant("OBJ-15")
class SplitsAreMoved(ReferenceAdapter):
    """A split outside its range is moved to the nearest end, and a missing one is half."""

    def ul2_example(self, segment: ndarray, objective: int, **options: Any) -> Example:
        if len(segment) and objective == len(OBJECTIVES) - 1:
            least, most = noise.prefix_bounds(len(segment))
            split = options.get("split")
            options["split"] = min(max(len(segment) // 2 if split is None else split, least), most)
        return super().ul2_example(segment, objective, **options)


@mutant("OBJ-15")
class ObjectivesCountFromTheEndToo(ReferenceAdapter):
    """Objective -1 is the last one."""

    def ul2_example(self, segment: ndarray, objective: int, **options: Any) -> Example:
        return super().ul2_example(segment, objective % len(OBJECTIVES), **options)


@mutant("OBJ-12")
class SplitsMayBeAnything(ReferenceAdapter):
    """A split outside the text is cut to it."""

    def split_prefix(self, tokens: ndarray, split: int) -> Example:
        if not len(tokens):
            raise RejectedError("tokens", "OBJ-12", "must not be empty")
        return {"inputs": tokens[: max(split, 0)], "targets": tokens[max(split, 0) :]}


# ---- draws -------------------------------------------------------------------------------------


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
