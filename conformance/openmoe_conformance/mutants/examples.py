"""Mutants of SPEC.md "Objectives": finishing, and whole examples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.reference_model_adapter import Dialect
from openmoe_reference import noise, objectives
from openmoe_spec.data import OBJECTIVES

Example = Mapping[str, ndarray]

FINISH, DENOISE = objectives.finish_example, objectives.denoise
"""The reference's own, for mutants that put others in their places."""


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
