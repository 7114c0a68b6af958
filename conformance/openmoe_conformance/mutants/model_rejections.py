"""Mutants of SPEC.md "The model": what it must reject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.reference_model_adapter import Fields, Tree
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import ForwardResult


class _Repairing(ReferenceAdapter):
    """A model that mends its input instead of rejecting it."""

    def tree(self, parameters: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
        return parameters

    def mended(self, batch: dict[str, ndarray], configuration: Fields) -> dict[str, ndarray]:
        return batch

    def forward(
        self, parameters: Tree, batch: Tree, *, configuration: Fields, **options: Any
    ) -> ForwardResult:
        tree = self.tree(dict(parameters), self.parameters(configuration))
        batch = self.mended(dict(batch), configuration)
        return super().forward(tree, batch, configuration=configuration, **options)


@mutant("MODEL-09")
class MissingLeavesAreZeros(_Repairing):
    """A tensor that is missing is taken to be zeros, as a lenient loader does."""

    def tree(self, parameters: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
        zeros = {name: np.zeros(one["shape"], np.float32) for name, one in wanted.items()}
        return zeros | parameters


@mutant("MODEL-09")
class ExtraLeavesAreIgnored(_Repairing):
    """A tensor that the model has no place for is left out in silence."""

    def tree(self, parameters: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in parameters.items() if name in wanted}


@mutant("MODEL-09")
class LeavesAreReshaped(_Repairing):
    """A tensor with the right number of elements is reshaped until it fits."""

    def tree(self, parameters: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
        return {
            name: value.reshape(wanted[name]["shape"])
            if name in wanted and value.size == np.prod(wanted[name]["shape"])
            else value
            for name, value in parameters.items()
        }


@mutant("MODEL-09")
class NarrowLeavesAreWidened(_Repairing):
    """A tensor in bfloat16 is taken where float32 is required."""

    def tree(self, parameters: dict[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
        return {name: np.asarray(value, np.float32) for name, value in parameters.items()}


@mutant("MODEL-09")
class RejectsWithoutSaying(ReferenceAdapter):
    """What is wrong with the parameters is not said."""

    def forward(self, *arguments: Any, **options: Any) -> ForwardResult:
        try:
            return super().forward(*arguments, **options)
        except RejectedError as error:
            raise ValueError("these are not the parameters of this model") from error


@mutant("MODEL-10")
class IdsAreClipped(_Repairing):
    """Unknown ids are clipped to the nearest known one."""

    def mended(self, batch: dict[str, ndarray], configuration: Fields) -> dict[str, ndarray]:
        last = configuration["vocabulary_size"] - 1
        clipped = ("decoder_input_tokens", "decoder_target_tokens")
        return batch | {name: batch[name].clip(0, last) for name in clipped}


@mutant("MODEL-10")
class LongRowsAreCut(_Repairing):
    """Rows are cut to the greatest length."""

    def mended(self, batch: dict[str, ndarray], configuration: Fields) -> dict[str, ndarray]:
        return {name: value[:, : configuration["max_length"]] for name, value in batch.items()}


@mutant("MODEL-10")
class EmptyBatchesAreAnswered(ReferenceAdapter):
    """A batch without rows or columns gives logits without rows or columns."""

    def forward(
        self, parameters: Tree, batch: Tree, *, configuration: Fields, **options: Any
    ) -> ForwardResult:
        shape = batch["decoder_input_tokens"].shape
        if 0 in shape:
            return ForwardResult(np.zeros((*shape, configuration["vocabulary_size"])))
        return super().forward(parameters, batch, configuration=configuration, **options)


@mutant("MODEL-10")
class PaddingRowsAreAnswered(_Repairing):
    """A row of only padding is computed like any other."""

    def mended(self, batch: dict[str, ndarray], configuration: Fields) -> dict[str, ndarray]:
        targets = batch["decoder_target_tokens"].copy()
        targets[(targets == 0).all(axis=1), 0] = 1
        return batch | {"decoder_target_tokens": targets}


@mutant("MODEL-10")
class SegmentsMayInterleave(_Repairing):
    """Segments that interleave are renumbered by their runs."""

    def mended(self, batch: dict[str, ndarray], configuration: Fields) -> dict[str, ndarray]:
        ids = batch.get("decoder_segment_ids")
        if ids is None:
            return batch
        begins = np.diff(ids, prepend=0, axis=1) != 0
        return batch | {"decoder_segment_ids": np.cumsum(begins, axis=1).astype(np.int32)}
