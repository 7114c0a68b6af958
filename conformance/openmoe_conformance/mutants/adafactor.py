"""Mutants of SPEC.md "Training": an update of Adafactor."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import optimizer
from openmoe_reference.optimizer import Factoring


class _Update(ReferenceAdapter):
    """The update written out, so that one line of it may be wrong."""

    def old_weight(self, step: int) -> float:
        return float(1 - (step + 1) ** -optimizer.DECAY_EXPONENT)

    def squares(self, gradient: ndarray) -> ndarray:
        return gradient * gradient + np.float32(optimizer.GRADIENT_FLOOR)

    def direction(self, gradient: ndarray, found: Mapping[str, ndarray], how: Factoring) -> ndarray:
        if how.row is None or how.column is None:
            return gradient / np.sqrt(found["v"])
        relative = self.relative(found["v_row"], how)
        rows = np.expand_dims(np.sqrt(relative), how.column)
        return gradient / rows / np.expand_dims(np.sqrt(found["v_col"]), how.row)

    def relative(self, v_row: ndarray, how: Factoring) -> ndarray:
        return v_row / v_row.mean(axis=-1, keepdims=True)

    def clipped(self, direction: ndarray, how: Factoring) -> ndarray:
        return direction / np.maximum(1, _root_mean_square(direction, how.averaged))

    def scale(self, parameter: ndarray, how: Factoring) -> ndarray:
        floor = np.float32(optimizer.PARAMETER_FLOOR)
        return np.maximum(_root_mean_square(parameter, how.averaged), floor)

    def moved(self, parameter: ndarray, step: ndarray) -> ndarray:
        return parameter - step

    def adafactor(
        self,
        parameter: ndarray,
        gradient: ndarray,
        state: Mapping[str, ndarray],
        *,
        axes: tuple[str, ...],
        step: int,
        rate: float,
    ) -> dict[str, Any]:
        super().adafactor(parameter, gradient, state, axes=axes, step=step, rate=rate)
        how = self.factoring(parameter.shape, axes)
        old, squares = np.float32(self.old_weight(step)), self.squares(gradient)
        means = {"v": squares}
        if how.row is not None and how.column is not None:
            means = {"v_row": squares.mean(axis=how.column), "v_col": squares.mean(axis=how.row)}
        found = {
            name: old * state[name] + (1 - old) * means[name] if name in means else state[name]
            for name in optimizer.SLOTS
        }
        with np.errstate(divide="ignore", invalid="ignore"):  # what a missing floor comes to
            direction = self.clipped(self.direction(gradient, found, how), how)
        taken = np.float32(rate) * self.scale(parameter, how) * direction
        return {"parameter": self.moved(parameter, taken), "state": found}


def _root_mean_square(values: ndarray, axes: tuple[int, ...] | None = None) -> ndarray:
    return np.sqrt((values * values).mean(axis=axes, keepdims=True))


@mutant("OPT-05")
class DecayLagsOneStep(_Update):
    """The weight is 1 - s^-0.8: the second update forgets the first."""

    def old_weight(self, step: int) -> float:
        return super().old_weight(max(step - 1, 0))


@mutant("OPT-05")
class DecayIsAhead(_Update):
    """The weight is 1 - (s + 2)^-0.8: the first update keeps some of the zeros."""

    def old_weight(self, step: int) -> float:
        return super().old_weight(step + 1)


@mutant("OPT-05")
class DecayIsConstant(_Update):
    """The old moments weigh 0.999, as in Adam."""

    def old_weight(self, step: int) -> float:
        return 0.999


@mutant("OPT-05")
class NoFloorOfSquares(_Update):
    """1e-30 is not added to g^2."""

    def squares(self, gradient: ndarray) -> ndarray:
        return gradient * gradient


@mutant("OPT-05")
class FloorOfAdam(_Update):
    """1e-8 is added to g^2."""

    def squares(self, gradient: ndarray) -> ndarray:
        return gradient * gradient + np.float32(1e-8)


@mutant("OPT-06")
class RowsAreNotRelative(_Update):
    """v_row is not divided by its mean."""

    def relative(self, v_row: ndarray, how: Factoring) -> ndarray:
        return v_row


@mutant("OPT-06")
class RowsAreRelativeToAllExperts(_Update):
    """v_row is divided by its mean over all experts."""

    def relative(self, v_row: ndarray, how: Factoring) -> ndarray:
        return v_row / v_row.mean()


@mutant("OPT-06")
class MomentsHaveNoRoot(_Update):
    """g is divided by v where it is not factored."""

    def direction(self, gradient: ndarray, found: Mapping[str, ndarray], how: Factoring) -> ndarray:
        if how.row is None:
            return gradient / found["v"]
        return super().direction(gradient, found, how)


@mutant("OPT-07")
class ClippedByTensor(_Update):
    """The root mean square of a direction is taken over all experts."""

    def clipped(self, direction: ndarray, how: Factoring) -> ndarray:
        return direction / np.maximum(1, _root_mean_square(direction))


@mutant("OPT-07")
class NotClipped(_Update):
    """Large directions stay."""

    def clipped(self, direction: ndarray, how: Factoring) -> ndarray:
        return direction


@mutant("OPT-07")
class AlwaysNormalised(_Update):
    """Small directions are scaled up to 1."""

    def clipped(self, direction: ndarray, how: Factoring) -> ndarray:
        size = _root_mean_square(direction, how.averaged)
        return direction / np.where(size > 0, size, 1)


@mutant("OPT-07")
class ClippedByElement(_Update):
    """Each element of a direction is cut at 1."""

    def clipped(self, direction: ndarray, how: Factoring) -> ndarray:
        return direction.clip(-1, 1)


@mutant("OPT-08")
class ScaledByTensor(_Update):
    """The scale of a step is the root mean square over all experts."""

    def scale(self, parameter: ndarray, how: Factoring) -> ndarray:
        floor = np.float32(optimizer.PARAMETER_FLOOR)
        return np.maximum(_root_mean_square(parameter), floor)


@mutant("OPT-08")
class NoFloorOfTheScale(_Update):
    """Parameters that are all 0 stay there."""

    def scale(self, parameter: ndarray, how: Factoring) -> ndarray:
        return _root_mean_square(parameter, how.averaged)


@mutant("OPT-08")
class NotScaled(_Update):
    """A step does not depend on the size of the parameter."""

    def scale(self, parameter: ndarray, how: Factoring) -> ndarray:
        return np.ones_like(super().scale(parameter, how))


@mutant("OPT-09")
class WeightDecay(_Update):
    """Parameters shrink by 1e-3 of themselves in each update."""

    def moved(self, parameter: ndarray, step: ndarray) -> ndarray:
        return super().moved(parameter * np.float32(1 - 1e-3), step)


@mutant("OPT-09")
class Momentum(ReferenceAdapter):
    """Steps are running means of steps, kept in the slot m."""

    def adafactor(
        self, parameter: ndarray, gradient: ndarray, state: Mapping[str, ndarray], **options: Any
    ) -> dict[str, Any]:
        found = super().adafactor(parameter, gradient, state, **options)
        mean = 0.9 * state["m"] + 0.1 * (parameter - found["parameter"])
        return {"parameter": parameter - mean.astype(np.float32), "state": found["state"]}


@mutant("OPT-09")
class NormOfTheGradientIsClipped(ReferenceAdapter):
    """A gradient longer than 1 is made as long as 1 before the update."""

    def adafactor(
        self, parameter: ndarray, gradient: ndarray, state: Mapping[str, ndarray], **options: Any
    ) -> dict[str, Any]:
        norm = np.linalg.norm(gradient.astype(np.float64))
        short = gradient / np.maximum(norm, 1).astype(np.float32)
        return super().adafactor(parameter, short, state, **options)
