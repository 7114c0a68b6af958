"""Adafactor as the models were trained, and the learning rates. Spec: OPT-01..OPT-10.

Nothing is reshaped: moments are means over axes as they lie, so a tensor whose axes are split over
devices stays split. An axis without a name, that of the halves of a gate [D, 2, F], counts as one
with the next, so that the numbers are those of the joined form [D, 2F].
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from openmoe_production.arguments import (
    require_count,
    require_factor,
    require_floats,
    require_integers,
)
from openmoe_spec.errors import RejectedError

WARMUP = 10_000
MIN_DIM_TO_FACTOR = 128
DECAY_EXPONENT = 0.8
GRADIENT_FLOOR = 1e-30
PARAMETER_FLOOR = 1e-3

SLOTS = ("v_row", "v_col", "v", "m")
"""Names of one tensor's moments; a slot that it does not use is zeros (1,), of blocks (blocks, 1)."""

Axes = tuple[str | None, ...]
Rate = Callable[[jax.Array], jax.Array]
"""From the number of an update to its learning rate: a schedule of Optax is one."""

Tensors = Mapping[str, jax.Array]
Slots = dict[str, jax.Array]


class State(NamedTuple):
    """The optimizer's state, which holds what a checkpoint of the training code holds.

    step   int32 [], updates made so far
    slots  float32 arrays by tensor and SLOTS
    """

    step: jax.Array
    slots: dict[str, Slots]


class GradientTransformation(NamedTuple):
    """An optimizer as a pair of pure functions, to be chained with those of Optax as one of them.

    init    from parameters to the state before the first update
    update  from gradients, state and parameters to what is to be added to these, and the state
    """

    init: Callable[[Tensors], State]
    update: Callable[..., tuple[dict[str, jax.Array], State]]


def learning_rate(step: jax.Array | int) -> jax.Array:
    """Return the rate of an update of pre-training: 1 / sqrt(max(step, 10000)), without a ramp.

    Errors: RejectedError OPT-12 on a step below 0. Spec: OPT-01.
    Source: t5x utils.py::create_learning_rate_scheduler, contrib/moe pretrain.gin.
    """
    require_step(step)
    return jnp.maximum(1 / jnp.sqrt(jnp.maximum(step, WARMUP).astype(jnp.float32)), 1e-8)


def fine_tuning_rate(step: jax.Array | int) -> jax.Array:
    """Return the rate of an update of fine-tuning: 1e-3, without a ramp.

    The configuration sets 1000 steps of warm-up too, but names no factor that reads them.
    Errors: RejectedError OPT-12 on a step below 0.
    Source: t5x utils.py::create_learning_rate_scheduler, contrib/moe finetune.gin.
    """
    return _Constant(1e-3)(step)


def constant_rate(value: float) -> Rate:
    """Return the schedule of one rate for all updates; equal rates are equal static arguments.

    Errors: RejectedError OPT-12 on anything but a finite number above 0.
    """
    require_factor("value", value, "OPT-12")
    return _Constant(float(value))


@dataclass(frozen=True)
class _Constant:
    value: float

    def __call__(self, step: jax.Array | int) -> jax.Array:
        require_step(step)
        return jnp.float32(self.value)


def require_step(step: jax.Array | int) -> None:
    """Refuse anything but a whole number of at least 0, where the value is known. Spec: OPT-12."""
    array = step if isinstance(step, jax.Array) else np.asarray(step)
    require_integers("step", array, "OPT-12", least=0, most=np.iinfo(np.int32).max)


def adafactor(axes: Mapping[str, Axes], rate: Rate = learning_rate) -> GradientTransformation:
    """Return the optimizer of a flat mapping of tensors, whose logical axes `axes` names.

    Leading axes `block` and `expert` hold tensors that are updated each by itself; an axis of None
    is one with the next. Its state is a `State`; its updates are to be added, as Optax's are.
    Errors: RejectedError OPT-12 on axes that do not name a tensor, a rank above 2 without experts,
    shapes that do not match, and outside a trace gradients that are not finite.
    Spec: OPT-02..OPT-09. Source: t5x adafactor.py::Adafactor, contrib/moe/adafactor_utils.py.
    """

    def init(parameters: Tensors) -> State:
        slots = {}
        for name, value in parameters.items():
            shapes = _factoring(name, value.shape, axes).by_slot(value.shape, 1)
            slots[name] = {slot: jnp.zeros(shape, jnp.float32) for slot, shape in shapes.items()}
        return State(jnp.zeros((), jnp.int32), slots)

    def update(
        gradients: Tensors, state: State, parameters: Tensors | None = None
    ) -> tuple[dict[str, jax.Array], State]:
        if parameters is None:
            raise RejectedError("parameters", "OPT-12", "must be given: they scale the update")
        require_step(state.step)
        factor = -rate(state.step)
        changes, slots = {}, {}
        for name, parameter in parameters.items():
            how = _factoring(name, parameter.shape, axes)
            gradient = gradients[name]
            require_floats(f"gradients[{name!r}]", gradient, "OPT-12")
            if gradient.shape != parameter.shape:
                wanted = f"must have shape {parameter.shape}, got {gradient.shape}"
                raise RejectedError(f"gradients[{name!r}]", "OPT-12", wanted)
            change, slots[name] = _update(gradient, state.slots[name], parameter, state.step, how)
            changes[name] = factor * change
        return changes, State(state.step + 1, slots)

    return GradientTransformation(init, update)


def slot_axes(
    parameters: Mapping[str, Any], axes: Mapping[str, Axes]
) -> dict[str, dict[str, Axes]]:
    """Return the logical axes of every moment of tensors of these shapes, by names and SLOTS.

    Errors: RejectedError OPT-12 as `adafactor`. Spec: OPT-02..OPT-04.
    """
    return {
        name: _factoring(name, value.shape, axes).by_slot(axes[name], None)
        for name, value in parameters.items()
    }


_APART = ("block", "expert")
"""Leading axes of which every entry is a tensor of its own."""


class _Factoring(NamedTuple):
    """How the moments of a tensor are kept, by the numbers of its axes.

    blocks, apart  how many leading axes are blocks, and how many hold tensors of their own
    averaged       the slots in use, and over which axes each is the mean of g^2: v over none,
                   v_row over those of columns and v_col over those of rows
    """

    blocks: int
    apart: int
    averaged: dict[str, tuple[int, ...]]

    def by_slot(self, told: Sequence[Any], unused: Any) -> dict[str, tuple[Any, ...]]:
        """Return what is told of each axis of a tensor for each axis of its slots."""
        found = dict.fromkeys(SLOTS, (*told[: self.blocks], unused))
        for slot, over in self.averaged.items():
            found[slot] = tuple(one for i, one in enumerate(told) if i not in over)
        return found


def _factoring(name: str, shape: tuple[int, ...], axes: Mapping[str, Axes]) -> _Factoring:
    """Return how a tensor's moments are kept, or refuse its axes. Spec: OPT-02, OPT-03, OPT-12."""
    place, named = f"axes[{name!r}]", axes.get(name)
    if named is None or len(named) != len(shape):
        raise RejectedError(place, "OPT-12", f"must name {len(shape)} axes, got {named}")
    apart = tuple(axis for axis in _APART if axis in named)
    groups = _joined(named, len(apart))
    names = [str(named[group[-1]]) for group in groups]
    sizes = [math.prod(shape[i] for i in group) for group in groups]
    experts = "expert" in apart
    fits = sorted(names) == ["expert_mlp", "mlp_embed"] if experts else len(groups) <= 2
    if named[: len(apart)] != apart or named[-1:] == (None,) or not fits:
        raise RejectedError(place, "OPT-12", f"no rule for a tensor of axes {named}")
    averaged: dict[str, tuple[int, ...]] = {"v": ()}
    if experts or (len(groups) == 2 and min(sizes) >= MIN_DIM_TO_FACTOR):
        row = names.index("mlp_embed") if experts else int(sizes[1] < sizes[0])
        averaged = {"v_row": groups[1 - row], "v_col": groups[row]}
    return _Factoring(apart.count("block"), len(apart), averaged)


def _joined(named: Axes, start: int) -> list[tuple[int, ...]]:
    """Return the numbers of the axes from `start` on; those without a name stand with the next."""
    ends = [i for i in range(start, len(named)) if named[i] is not None or i == len(named) - 1]
    starts = [start, *(end + 1 for end in ends)]
    return [tuple(range(first, end + 1)) for first, end in zip(starts, ends, strict=False)]


def _update(
    gradient: jax.Array, slots: Slots, parameter: jax.Array, step: jax.Array, how: _Factoring
) -> tuple[jax.Array, Slots]:
    """Return what rate times is taken from one tensor, and its moments. Spec: OPT-05..OPT-08."""
    g, p = gradient.astype(jnp.float32), parameter.astype(jnp.float32)
    inner = tuple(range(how.apart, g.ndim))
    old = 1 - (step.astype(jnp.float32) + 1) ** -DECAY_EXPONENT  # 0 in the first update
    new = 1 - old
    square = g * g + GRADIENT_FLOOR
    found = {
        slot: old * slots[slot] + new * square.mean(axis=over)
        for slot, over in how.averaged.items()
    }
    u = g
    for slot, over in how.averaged.items():
        v = jnp.expand_dims(found[slot], over)
        if slot == "v_row":  # relative to the mean of its own axes, over which v_col is a mean
            v /= v.mean(axis=how.averaged["v_col"], keepdims=True)
        u *= lax.rsqrt(v)
    u /= jnp.maximum(1, _root_mean_square(u, inner))
    return jnp.maximum(_root_mean_square(p, inner), PARAMETER_FLOOR) * u, slots | found


def _root_mean_square(values: jax.Array, over: tuple[int, ...]) -> jax.Array:
    return jnp.sqrt((values * values).mean(axis=over, keepdims=True))


def scaled_gradients(gradients: Tensors, *, num_expert_partitions: int) -> dict[str, jax.Array]:
    """Return gradients with those of experts multiplied by the partitions, as the trainer did.

    Errors: RejectedError OPT-12 on partitions that are no count.
    Spec: OPT-10. Source: t5x contrib/moe/trainer.py::MoeTrainer.
    """
    require_count("num_expert_partitions", num_expert_partitions, "OPT-12")
    return {
        name: value * jnp.float32(num_expert_partitions) if "expert" in name else value
        for name, value in gradients.items()
    }
