"""Mutants of SPEC.md "Training": gradients of a batch, a whole step, what it must reject."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.protocol import Mesh
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import optimizer

Tree = Mapping[str, ndarray]


@mutant("OPT-10")
class ExpertsAreNotScaled(ReferenceAdapter):
    """Gradients are returned as they are."""

    def scaled_gradients(self, gradients: Tree, *, num_expert_partitions: int) -> dict[str, Any]:
        return dict(gradients)


@mutant("OPT-10")
class RouterIsScaledToo(ReferenceAdapter):
    """The router counts as one of the experts' tensors."""

    def scaled_gradients(self, gradients: Tree, *, num_expert_partitions: int) -> dict[str, Any]:
        found = super().scaled_gradients(gradients, num_expert_partitions=num_expert_partitions)
        return {
            name: value * num_expert_partitions if "/router/" in name else value
            for name, value in found.items()
        }


@mutant("OPT-10")
class ExpertsAreDivided(ReferenceAdapter):
    """Gradients of experts are divided by the partitions."""

    def scaled_gradients(self, gradients: Tree, *, num_expert_partitions: int) -> dict[str, Any]:
        return {
            name: value / num_expert_partitions if "/expert/" in name else value
            for name, value in gradients.items()
        }


class _Slices(ReferenceAdapter):
    """Accumulation with slices, and what a slice counts, of its own."""

    def slices(self, batch: Tree, count: int) -> list[dict[str, ndarray]]:
        return [
            {name: np.split(value, count)[i] for name, value in batch.items()} for i in range(count)
        ]

    def weight(self, part: Tree, batch: Tree, count: int) -> float:
        return 1.0

    def accumulated_gradients(
        self,
        parameters: Tree,
        batch: Tree,
        *,
        configuration: Mapping[str, Any],
        num_microbatches: int,
        training: bool = True,
        mesh: Mesh | None = None,
    ) -> dict[str, Any]:
        options: dict[str, Any] = {"configuration": configuration, "training": training}
        losses: dict[str, Any] = {}
        gradients: dict[str, Any] = {}
        for part in self.slices(batch, num_microbatches):
            found = super().accumulated_gradients(
                parameters, part, num_microbatches=1, mesh=mesh, **options
            )
            weight = self.weight(part, batch, num_microbatches)
            for total, one in ((losses, found["loss"]), (gradients, found["gradients"])):
                for name, value in one.items():
                    total[name] = total.get(name, 0.0) + weight * value
        return {"loss": losses, "gradients": gradients}


@mutant("OPT-11")
class GradientsAreAveraged(_Slices):
    """The sum is divided by the number of microbatches."""

    def weight(self, part: Tree, batch: Tree, count: int) -> float:
        return 1 / count


@mutant("OPT-11")
class RowsAreDealtOut(_Slices):
    """A microbatch holds every n-th row."""

    def slices(self, batch: Tree, count: int) -> list[dict[str, ndarray]]:
        return [{name: value[i::count] for name, value in batch.items()} for i in range(count)]


@mutant("OPT-11")
class OneDivisorForAll(_Slices):
    """Losses are divided by the tokens of the whole batch."""

    def weight(self, part: Tree, batch: Tree, count: int) -> float:
        real, every = (one["decoder_target_tokens"] > 0 for one in (part, batch))
        return float(real.sum() / every.sum())


@mutant("OPT-11")
class OnePassOverTheBatch(_Slices):
    """The whole batch is routed in one pass, and its gradient multiplied by the microbatches."""

    def slices(self, batch: Tree, count: int) -> list[dict[str, ndarray]]:
        return [dict(batch)]

    def weight(self, part: Tree, batch: Tree, count: int) -> float:
        return float(count)


@mutant("OPT-11")
class LossesAreAveraged(ReferenceAdapter):
    """Gradients are added up, losses averaged."""

    def accumulated_gradients(
        self, *arguments: Any, num_microbatches: int, **options: Any
    ) -> dict[str, Any]:
        found = super().accumulated_gradients(
            *arguments, num_microbatches=num_microbatches, **options
        )
        losses = {name: value / num_microbatches for name, value in found["loss"].items()}
        return {"loss": losses, "gradients": found["gradients"]}


@mutant("OPT-11")
class EvaluationCapacity(ReferenceAdapter):
    """The passes of training are evaluation passes."""

    def accumulated_gradients(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        return super().accumulated_gradients(*arguments, **options | {"training": False})


@mutant("OPT-09")
class GlobalNormIsClipped(ReferenceAdapter):
    """A training step clips all gradients together to a norm of 0.1."""

    def scaled_gradients(self, gradients: Tree, *, num_expert_partitions: int) -> dict[str, Any]:
        found = super().scaled_gradients(gradients, num_expert_partitions=num_expert_partitions)
        norm = np.sqrt(sum(np.square(one, dtype=np.float64).sum() for one in found.values()))
        return {name: one * min(1, 0.1 / norm) for name, one in found.items()}


@mutant("OPT-09")
class StepForgetsThePartitions(ReferenceAdapter):
    """A training step updates with gradients that are not scaled."""

    def train_step(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        return super().train_step(*arguments, **options | {"num_expert_partitions": 1})


@mutant("OPT-09")
class StepAtAConstantRate(ReferenceAdapter):
    """A training step is taken at 0.01 however late it is."""

    def learning_rate(self, step: int, **options: Any) -> Any:
        return super().learning_rate(0, **options)


# ---- what training must reject -----------------------------------------------------------------


@mutant("OPT-12")
class StepsBelowZero(ReferenceAdapter):
    """A step below 0 counts as 0."""

    def learning_rate(self, step: int, **options: Any) -> Any:
        return super().learning_rate(max(step, 0), **options)


@mutant("OPT-12")
class UnknownTensorsAreNotFactored(ReferenceAdapter):
    """A tensor that no rule fits keeps one moment an element."""

    def factoring(self, shape: tuple[int, ...], axes: tuple[str, ...]) -> optimizer.Factoring:
        try:
            return super().factoring(shape, axes)
        except ValueError:
            return optimizer.Factoring(tuple(range(len(shape))))


@mutant("OPT-12")
class GradientsNeedNotBeFinite(ReferenceAdapter):
    """Gradients that are not finite count as 0."""

    def adafactor(
        self, parameter: ndarray, gradient: ndarray, state: Tree, **options: Any
    ) -> dict[str, Any]:
        finite = np.nan_to_num(gradient, nan=0.0, posinf=0.0, neginf=0.0)
        return super().adafactor(parameter, finite, state, **options)


@mutant("OPT-12")
class LastRowsAreLeftOut(ReferenceAdapter):
    """Rows that do not fill a microbatch are left out."""

    def accumulated_gradients(
        self, parameters: Tree, batch: Tree, *, num_microbatches: int, **options: Any
    ) -> dict[str, Any]:
        rows = len(batch["decoder_input_tokens"])
        whole = {
            name: value[: rows - rows % max(num_microbatches, 1)] for name, value in batch.items()
        }
        return super().accumulated_gradients(
            parameters, whole, num_microbatches=num_microbatches, **options
        )
