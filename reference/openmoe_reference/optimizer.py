"""SPEC.md "Training": Adafactor as trained, the learning rate, microbatches.

Line-comparable to t5x adafactor.py, trainer.py, contrib/moe/trainer.py, utils.py@3234135.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from openmoe_reference.arguments import (
    check_array,
    check_integer,
    check_names,
    check_positive,
    rows_of,
)
from openmoe_spec.errors import RejectedError

WARMUP = 10_000
MIN_DIM_TO_FACTOR = 128
DECAY_EXPONENT = 0.8
GRADIENT_FLOOR = 1e-30
PARAMETER_FLOOR = 1e-3
CLIPPING = 1.0
EXPERT = re.compile(".*expert.*")
"""Which tensors' gradients are multiplied by the expert partitions; the router's is not."""

SLOTS = ("v_row", "v_col", "v", "m")
"""Names of one tensor's optimizer state; an unused slot is zeros of shape (1,)."""


def learning_rate(step: int) -> np.float32:
    """Return the rate of an update: 1 / sqrt(max(step, 10000)), flat from the first step on.

    Errors: RejectedError OPT-12 on a step below 0.
    Spec: OPT-01. Source: utils.py::create_learning_rate_scheduler, contrib/moe pretrain.gin.
    """
    step = check_integer("step", step, "OPT-12", least=0)
    return np.maximum(1 / np.sqrt(np.float32(max(step, WARMUP))), np.float32(1e-8))


def learning_rate_with_linear_warmup(step: int) -> np.float32:
    """Return the same with the ramp that the paper's "warmup 10K" suggests. Spec: DIAL-03.

    Source: arXiv 2402.01739, table 12.
    """
    return learning_rate(step) * np.float32(min(step, WARMUP) / WARMUP)


@dataclass(frozen=True)
class Factoring:
    """How a tensor's second moments are kept.

    averaged  axes over which its scale and its clipping are computed
    row, column  the axes that v_row and v_col are indexed by; None: not factored
    """

    averaged: tuple[int, ...]
    row: int | None = None
    column: int | None = None


def factoring(shape: Sequence[int], axes: Sequence[str]) -> Factoring:
    """Return the factoring of a tensor with named axes.

    Expert tensors: one estimate an expert, whatever the sizes. Others of rank 2: when the smaller
    axis has 128 or more; rows are then the SMALLER axis (the first when equal).
    Errors: RejectedError OPT-12 on axes that do not name the shape, a rank above 2 without experts.
    Spec: OPT-02, OPT-03. Source: adafactor.py::Adafactor._parse_rule, _factored_dims.
    """
    if len(axes) != len(shape):
        raise RejectedError("axes", "OPT-12", f"must name {len(shape)} axes, got {tuple(axes)}")
    if "expert" in axes:
        if not {"mlp_embed", "expert_mlp"} <= set(axes):
            raise RejectedError("axes", "OPT-12", f"name no matrix of an expert, {tuple(axes)}")
        inner = tuple(i for i, axis in enumerate(axes) if axis != "expert")
        return Factoring(inner, axes.index("mlp_embed"), axes.index("expert_mlp"))
    if len(shape) > 2:
        raise RejectedError("shape", "OPT-12", f"no rule for rank {len(shape)}: {tuple(axes)}")
    every = tuple(range(len(shape)))
    if len(shape) < 2 or min(shape) < MIN_DIM_TO_FACTOR:
        return Factoring(every)
    row, column = np.argsort(shape, kind="stable").tolist()
    return Factoring(every, row, column)


def initial_state(shape: Sequence[int], how: Factoring) -> dict[str, ndarray]:
    """Return one tensor's state before the first update, by the names of SLOTS. Spec: OPT-04.

    Source: adafactor.py::Adafactor.init_param_state.
    """
    state = {name: np.zeros(1, np.float32) for name in SLOTS}
    if how.row is None or how.column is None:
        return state | {"v": np.zeros(shape, np.float32)}
    return state | {
        "v_row": np.zeros(np.delete(shape, how.column), np.float32),
        "v_col": np.zeros(np.delete(shape, how.row), np.float32),
    }


def update(
    parameter: ndarray,
    gradient: ndarray,
    state: Mapping[str, ndarray],
    how: Factoring,
    *,
    step: int,
    rate: float,
) -> tuple[ndarray, dict[str, ndarray]]:
    """Return one tensor and its state after update number `step`, counted from 0.

    Errors: RejectedError OPT-12 on shapes, values that are not finite, a step below 0.
    Spec: OPT-05..OPT-09. Source: adafactor.py::Adafactor.apply_param_gradient.
    """
    shape, sizes = f"{rows_of(parameter)}last", dict[str, int]()
    check_array("parameter", parameter, shape, sizes, "OPT-12")
    check_array("gradient", gradient, shape, sizes, "OPT-12")
    check_names("state", state, SLOTS, "OPT-12")
    for name, slot in initial_state(parameter.shape, how).items():
        letters = dict(zip("IJK", slot.shape, strict=False))
        check_array(
            f"state[{name!r}]", state[name], "I J K"[: 2 * slot.ndim - 1], letters, "OPT-12"
        )
    step = check_integer("step", step, "OPT-12", least=0)
    check_positive("rate", rate, "OPT-12")
    one = np.float32(1)
    old = np.float32(1.0 - (step + 1.0) ** -DECAY_EXPONENT)  # 0 in the first update
    new = one - old
    g = gradient.astype(np.float32)
    square = g * g + np.float32(GRADIENT_FLOOR)
    found = {name: np.zeros(1, np.float32) for name in SLOTS}
    if how.row is None or how.column is None:
        found["v"] = old * state["v"] + new * square
        u = g * found["v"] ** np.float32(-0.5)
    else:
        found["v_row"] = old * state["v_row"] + new * square.mean(axis=how.column)
        found["v_col"] = old * state["v_col"] + new * square.mean(axis=how.row)
        rows = how.row - (how.column < how.row)  # where the row axis stands in v_row
        relative = found["v_row"] / found["v_row"].mean(axis=rows, keepdims=True)
        u = g * np.expand_dims(relative ** np.float32(-0.5), how.column)
        u = u * np.expand_dims(found["v_col"] ** np.float32(-0.5), how.row)
    # Clipping and scale are of one expert where there are experts, not of the whole tensor.
    u = u / np.maximum(one, _root_mean_square(u, how.averaged) / np.float32(CLIPPING))
    p = parameter.astype(np.float32)
    scale = np.maximum(_root_mean_square(p, how.averaged), np.float32(PARAMETER_FLOOR))
    return p - np.float32(rate) * scale * u, found


def _root_mean_square(values: ndarray, axes: tuple[int, ...]) -> ndarray:
    return np.sqrt((values * values).mean(axis=axes, keepdims=True))


def scaled_gradients(
    gradients: Mapping[str, ndarray], *, num_expert_partitions: int
) -> dict[str, ndarray]:
    """Return gradients with those of experts multiplied by the partitions, as the trainer did.

    Adafactor is scale free, so a power of two changes nothing there; with another optimizer it does.
    Spec: OPT-10. Source: contrib/moe/trainer.py::MoeTrainer, scale_sharded_grads.
    """
    factor = check_integer("num_expert_partitions", num_expert_partitions, "OPT-12", least=1)
    check_names("gradients", gradients, tuple(gradients or ()), "OPT-12")
    for name, value in gradients.items():
        check_array(f"gradients[{name!r}]", value, f"{rows_of(value)}last", {}, "OPT-12")
    return {
        name: value * np.float32(factor) if EXPERT.fullmatch(name) else value
        for name, value in gradients.items()
    }


Gradients = Callable[[Mapping[str, ndarray]], tuple[Mapping[str, float], Mapping[str, ndarray]]]
"""From a batch to the parts of its loss and the gradient of each tensor."""


def accumulated(
    of_batch: Gradients, batch: Mapping[str, ndarray], *, num_microbatches: int
) -> tuple[dict[str, float], dict[str, ndarray]]:
    """Return losses and gradients ADDED UP, not averaged, over contiguous slices of the rows.

    Groups, capacity and divisors are those of each microbatch, so splitting changes the result.
    Errors: RejectedError OPT-12 when the microbatches do not divide the rows.
    Spec: OPT-11. Source: trainer.py::accumulate_grads_microbatched.
    """
    rows = len(batch["decoder_input_tokens"])
    count = check_integer("num_microbatches", num_microbatches, "OPT-12", least=1, most=rows)
    if rows % count:
        raise RejectedError("num_microbatches", "OPT-12", f"must divide {rows} rows, got {count}")
    losses: dict[str, float] = {}
    gradients: dict[str, ndarray] = {}
    for i in range(count):
        part = slice(i * rows // count, (i + 1) * rows // count)
        of_losses, of_tensors = of_batch({name: value[part] for name, value in batch.items()})
        losses = {name: losses.get(name, 0.0) + value for name, value in of_losses.items()}
        gradients = {name: gradients.get(name, 0) + value for name, value in of_tensors.items()}
    return losses, gradients
