"""Mutants of SPEC.md "Training": learning rate, and the form of Adafactor's state."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import optimizer
from openmoe_reference.optimizer import Factoring

Shape = tuple[int, ...]
Axes = tuple[str, ...]


@mutant("OPT-01")
class LinearWarmup(ReferenceAdapter):
    """The rate climbs to 0.01 in 10,000 steps, as "warmup 10K" reads."""

    def learning_rate(self, step: int, **options: Any) -> Any:
        return optimizer.learning_rate_with_linear_warmup(step)


@mutant("OPT-01")
class FallsFromTheStart(ReferenceAdapter):
    """The rate is 1 / sqrt(s) from the first step on."""

    def learning_rate(self, step: int, **options: Any) -> Any:
        return 1 / np.sqrt(max(step, 1))


@mutant("OPT-01")
class StepsCountFromOne(ReferenceAdapter):
    """The rate is that of the next step."""

    def learning_rate(self, step: int, **options: Any) -> Any:
        return super().learning_rate(step + 1, **options)


@mutant("OPT-02")
class LargerAxisDecides(ReferenceAdapter):
    """A matrix is factored as soon as one axis has 128."""

    def factoring(self, shape: Shape, axes: Axes) -> Factoring:
        how = super().factoring(shape, axes)
        if len(shape) == 2 and max(shape) >= optimizer.MIN_DIM_TO_FACTOR:
            row, column = np.argsort(shape, kind="stable").tolist()
            return replace(how, row=row, column=column)
        return how


@mutant("OPT-02")
class FactoredAbove128(ReferenceAdapter):
    """A smaller axis of exactly 128 is not factored."""

    def factoring(self, shape: Shape, axes: Axes) -> Factoring:
        how = super().factoring(shape, axes)
        at_limit = len(shape) == 2 and min(shape) == optimizer.MIN_DIM_TO_FACTOR
        return Factoring(how.averaged) if at_limit else how


@mutant("OPT-02")
class RowsAreTheLargerAxis(ReferenceAdapter):
    """v_row and v_col are exchanged."""

    def factoring(self, shape: Shape, axes: Axes) -> Factoring:
        how = super().factoring(shape, axes)
        return how if "expert" in axes else replace(how, row=how.column, column=how.row)


@mutant("OPT-02")
class RowsOfASquareAreItsLastAxis(ReferenceAdapter):
    """Equal axes are ordered the other way."""

    def factoring(self, shape: Shape, axes: Axes) -> Factoring:
        how = super().factoring(shape, axes)
        if len(set(shape)) == 1:
            return replace(how, row=how.column, column=how.row)
        return how


@mutant("OPT-02")
class RowsByName(ReferenceAdapter):
    """The axis called embed is the row, as the logical rules of the training code say."""

    def factoring(self, shape: Shape, axes: Axes) -> Factoring:
        how = super().factoring(shape, axes)
        named = [i for i, axis in enumerate(axes) if axis.endswith("embed")]
        if how.row is None or "expert" in axes or not named:
            return how
        return replace(how, row=named[0], column=1 - named[0])


@mutant("OPT-03")
class SmallExpertsAreNotFactored(ReferenceAdapter):
    """The threshold of 128 holds for experts too."""

    def factoring(self, shape: Shape, axes: Axes) -> Factoring:
        how = super().factoring(shape, axes)
        small = "expert" in axes and min(shape[1:]) < optimizer.MIN_DIM_TO_FACTOR
        return Factoring(how.averaged) if small else how


@mutant("OPT-03")
class RowsOfExpertsBySize(ReferenceAdapter):
    """An expert's rows are its smaller axis."""

    def factoring(self, shape: Shape, axes: Axes) -> Factoring:
        how = super().factoring(shape, axes)
        if "expert" not in axes:
            return how
        row, column = (1 + np.argsort(shape[1:], kind="stable")).tolist()
        return replace(how, row=row, column=column)


@mutant("OPT-03")
class OneEstimateForAllExperts(ReferenceAdapter):
    """The moments of experts lack the axis of experts."""

    def optimizer_state(self, shape: Shape, axes: Axes) -> dict[str, ndarray]:
        state = super().optimizer_state(shape, axes)
        if "expert" not in axes:
            return state
        return {name: slot[0] if slot.ndim == 2 else slot for name, slot in state.items()}


@mutant("OPT-04")
class StateBeginsAtTheFloor(ReferenceAdapter):
    """Second moments begin at 1e-30."""

    def optimizer_state(self, shape: Shape, axes: Axes) -> dict[str, ndarray]:
        state = super().optimizer_state(shape, axes)
        return {name: slot + np.float32(optimizer.GRADIENT_FLOOR) for name, slot in state.items()}


@mutant("OPT-04")
class UnusedSlotsAreEmpty(ReferenceAdapter):
    """A slot that is not used has no element."""

    def optimizer_state(self, shape: Shape, axes: Axes) -> dict[str, ndarray]:
        state = super().optimizer_state(shape, axes)
        return {name: slot[:0] if name == "m" else slot for name, slot in state.items()}
