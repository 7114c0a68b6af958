"""Adafactor as the models were trained, of Optax's parts, and the learning rate. Spec: OPT-01..OPT-10."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax  # type: ignore[import-untyped]

from openmoe_production.arguments import require_count, require_floats, require_integers
from openmoe_spec.errors import RejectedError

WARMUP = 10_000
MIN_DIM_TO_FACTOR = 128

SLOTS = ("v_row", "v_col", "v", "m")
"""Names of one tensor's moments; a slot that it does not use is zeros of shape (1,)."""

Tensors = Mapping[str, jax.Array]
Slots = dict[str, jax.Array]


class State(NamedTuple):
    """The optimizer's state, which holds what a checkpoint of the training code holds.

    step   int32 [], updates made so far
    slots  float32 arrays by tensor and SLOTS
    """

    step: jax.Array
    slots: dict[str, Slots]


def learning_rate(step: jax.Array | int) -> jax.Array:
    """Return the rate of an update, an Optax schedule: 1 / sqrt(max(step, 10000)), without a ramp.

    Errors: RejectedError OPT-12 on a step below 0. Spec: OPT-01.
    Source: t5x utils.py::create_learning_rate_scheduler, contrib/moe pretrain.gin.
    """
    require_step(step)
    return jnp.maximum(1 / jnp.sqrt(jnp.maximum(step, WARMUP).astype(jnp.float32)), 1e-8)


def require_step(step: jax.Array | int) -> None:
    """Refuse anything but a whole number of at least 0, where the value is known. Spec: OPT-12."""
    array = step if isinstance(step, jax.Array) else np.asarray(step)
    require_integers("step", array, "OPT-12", least=0, most=np.iinfo(np.int32).max)


def adafactor(
    axes: Mapping[str, tuple[str, ...]], rate: optax.Schedule = learning_rate
) -> optax.GradientTransformation:
    """Return the optimizer of a flat mapping of tensors, whose logical axes `axes` names.

    Its state is a `State`; its updates are to be added, as Optax's are.
    Errors: RejectedError OPT-12 on axes that do not name a tensor, a rank above 2 without experts,
    shapes that do not match, and outside a trace gradients that are not finite.
    Spec: OPT-02..OPT-09. Source: t5x adafactor.py::Adafactor, contrib/moe/adafactor_utils.py.
    """

    def init(parameters: Tensors) -> State:
        _require_axes(parameters, axes)
        slots = {name: _initial(value.shape, axes[name]) for name, value in parameters.items()}
        return State(jnp.zeros((), jnp.int32), slots)

    def update(
        gradients: Tensors, state: State, parameters: Tensors | None = None
    ) -> tuple[Tensors, State]:
        if parameters is None:
            raise RejectedError("parameters", "OPT-12", "must be given: they scale the update")
        _require_axes(parameters, axes)
        require_step(state.step)
        factor = -rate(state.step)
        changes, slots = {}, {}
        for name, parameter in parameters.items():
            gradient = gradients[name]
            require_floats(f"gradients[{name!r}]", gradient, "OPT-12")
            if gradient.shape != parameter.shape:
                wanted = f"must have shape {parameter.shape}, got {gradient.shape}"
                raise RejectedError(f"gradients[{name!r}]", "OPT-12", wanted)
            change, slots[name] = _update(
                gradient, state.slots[name], parameter, step=state.step, axes=axes[name]
            )
            changes[name] = factor * change
        return changes, State(optax.safe_increment(state.step), slots)

    return optax.GradientTransformation(init, update)


def _require_axes(parameters: Tensors, axes: Mapping[str, tuple[str, ...]]) -> None:
    for name, value in parameters.items():
        place, named = f"axes[{name!r}]", axes.get(name)
        if named is None or len(named) != value.ndim:
            raise RejectedError(place, "OPT-12", f"must name {value.ndim} axes, got {named}")
        if "expert" in named:
            if named[0] != "expert" or sorted(named[1:]) != ["expert_mlp", "mlp_embed"]:
                raise RejectedError(place, "OPT-12", f"no rule for the experts' axes {named}")
        elif value.ndim > 2:
            raise RejectedError(place, "OPT-12", f"no rule for rank {value.ndim}: {named}")


_MATRIX = optax.scale_by_factored_rms(min_dim_size_to_factor=MIN_DIM_TO_FACTOR)
_EXPERT = optax.scale_by_factored_rms(min_dim_size_to_factor=1)
_SIZES = optax.chain(optax.clip_by_block_rms(1.0), optax.scale_by_param_block_rms(1e-3))


def _initial(shape: tuple[int, ...], axes: tuple[str, ...]) -> Slots:
    """Return one tensor's moments before the first update. Spec: OPT-02, OPT-03, OPT-04."""
    moments, row, column = _moments(shape, axes)
    experts, inner = (shape[:1], shape[1:]) if "expert" in axes else ((), shape)
    one = jax.ShapeDtypeStruct(inner, jnp.float32)  # type: ignore[no-untyped-call]
    begun = jax.eval_shape(moments.init, one)
    shapes = {row: experts + begun.v_row.shape, column: experts + begun.v_col.shape}
    shapes |= {"v": begun.v.shape, "m": (1,)}
    return {name: jnp.zeros(shapes[name], jnp.float32) for name in SLOTS}


def _update(
    gradient: jax.Array,
    slots: Slots,
    parameter: jax.Array,
    *,
    step: jax.Array,
    axes: tuple[str, ...],
) -> tuple[jax.Array, Slots]:
    """Return what rate times is taken from one tensor, and its moments. Spec: OPT-05..OPT-08."""
    moments, row, column = _moments(parameter.shape, axes)

    def one(
        g: jax.Array, of_rows: jax.Array, of_columns: jax.Array, v: jax.Array, p: jax.Array
    ) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
        before = optax.FactoredState(step, of_rows, of_columns, v)
        direction, after = moments.update(g, before, p)
        if row == "v_col":  # Optax took the mean of its own rows, the training code of v_row
            direction *= jnp.sqrt(after.v_col.mean() / after.v_row.mean())
        change, _ = _SIZES.update(direction, _SIZES.init(p), p)
        return change, after.v_row, after.v_col, after.v

    if "expert" in axes:  # all of it is one expert's own
        one = jax.vmap(one, in_axes=(0, 0, 0, None, 0), out_axes=(0, 0, 0, None))
    change, *found = one(
        gradient.astype(jnp.float32),
        slots[row],
        slots[column],
        slots["v"],
        parameter.astype(jnp.float32),
    )
    return change, slots | dict(zip((row, column, "v"), found, strict=True))


def _moments(
    shape: tuple[int, ...], axes: tuple[str, ...]
) -> tuple[optax.GradientTransformation, str, str]:
    """Return how a tensor's moments are kept, and what Optax's v_row and v_col are called here.

    Optax has its rows along the smaller axis, the first when equal; experts have theirs by name.
    """
    if "expert" not in axes:
        return _MATRIX, "v_row", "v_col"
    of_rows = axes[1 + int(np.argsort(shape[1:], kind="stable")[0])]
    return _EXPERT, *(("v_row", "v_col") if of_rows == "mlp_embed" else ("v_col", "v_row"))


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
