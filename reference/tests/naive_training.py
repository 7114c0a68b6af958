"""Deliberately naive losses, gradients by differences, and Adafactor.

Written from SPEC.md chapters 12 and 13 as plain loops over float64, sharing nothing with the
reference but records and configuration. Shapes use the letters of chapter 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from naive_model import Model, Pass, forward
from numpy import ndarray

Batch = Mapping[str, ndarray]

# ---------------------------------------------------------------------------- losses


def log_sum(row: Sequence[float]) -> float:
    """Return the logarithm of the sum of exponentials."""
    largest = max(row)
    return largest + math.log(math.fsum(math.exp(value - largest) for value in row))


def wanted_distribution(target: int, size: int, smoothing: float) -> list[float]:
    """Return 1 - smoothing at the target, the rest spread over the other ids."""
    other = smoothing / (size - 1)
    return [1 - smoothing if v == target else other for v in range(size)]


def cross_entropy(
    logits: ndarray,
    targets: ndarray,
    *,
    weights: ndarray | None = None,
    normalizing_factor: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> dict[str, float]:
    """Return loss (z-loss included), z-loss and sum of weights of logits [B, L, V]."""
    losses, squares, counted = [], [], []
    for place in np.ndindex(targets.shape):
        row = [float(value) for value in logits[place]]
        weight = 1.0 if weights is None else float(weights[place])
        wanted = wanted_distribution(int(targets[place]), len(row), label_smoothing)
        total = log_sum(row)
        cost = math.fsum(p * (total - value) for p, value in zip(wanted, row, strict=True))
        entropy = -math.fsum(p * math.log(p) for p in wanted if p > 0)
        losses.append(weight * (cost - entropy))
        squares.append(weight * z_loss * total**2)
        counted.append(weight)
    factor = 1.0 if normalizing_factor is None else normalizing_factor
    squares_sum = math.fsum(squares) / factor
    return {
        "loss": math.fsum(losses) / factor + squares_sum,
        "z_loss": squares_sum,
        "weight_sum": math.fsum(counted),
    }


def cross_entropy_gradient(
    logits: ndarray,
    targets: ndarray,
    *,
    weights: ndarray | None = None,
    normalizing_factor: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> ndarray:
    """Return the gradient of the loss in the logits, by its formula."""
    gradient = np.zeros(logits.shape)
    for place in np.ndindex(targets.shape):
        row = [float(value) for value in logits[place]]
        weight = 1.0 if weights is None else float(weights[place])
        if normalizing_factor is not None:
            weight /= normalizing_factor
        total = log_sum(row)
        wanted = wanted_distribution(int(targets[place]), len(row), label_smoothing)
        for v, value in enumerate(row):
            share = (1 + 2 * z_loss * total) * math.exp(value - total)
            gradient[(*place, v)] = weight * (share - wanted[v])
    return gradient


def normalizer(name: str, batch: Batch) -> tuple[float, ndarray]:
    """Return the normalising factor that a name stands for, and the weights of positions."""
    targets = batch["decoder_target_tokens"]
    weights = np.zeros(targets.shape)
    for place in np.ndindex(targets.shape):
        if "decoder_loss_weights" in batch:
            weights[place] = batch["decoder_loss_weights"][place]
        else:
            weights[place] = 1.0 if targets[place] > 0 else 0.0
    if name == "NUM_TOTAL_TARGET_TOKENS":
        return float(targets.shape[0] * targets.shape[1]), weights
    if name == "AVERAGE_PER_SEQUENCE":
        segments = batch.get("decoder_segment_ids", np.ones(targets.shape, int))
        averaged = np.zeros(targets.shape)
        for b, i in np.ndindex(targets.shape):
            together = [j for j in range(targets.shape[1]) if segments[b, j] == segments[b, i]]
            total = math.fsum(weights[b, j] for j in together)
            averaged[b, i] = weights[b, i] / total if weights[b, i] > 0 else 0.0
        weights = averaged
    return math.fsum(weights.ravel().tolist()), weights


def total_loss(model: Model, batch: Batch, result: Pass) -> dict[str, float]:
    """Return the parts of a pass's loss by their names in records.LOSSES."""
    c, targets = model.configuration, batch["decoder_target_tokens"]
    factor, weights = normalizer("NUM_REAL_TARGET_TOKENS", batch)
    text = cross_entropy(
        result.logits,
        targets,
        weights=weights,
        normalizing_factor=factor,
        z_loss=c.z_loss_factor,
        label_smoothing=c.label_smoothing,
    )
    sown = list(result.metrics.values())
    balance = math.fsum(one["auxiliary_loss"] for one in sown) / len(sown)
    router_z = math.fsum(one["router_z_loss"] for one in sown) / len(sown)
    right = 0.0
    for place in np.ndindex(targets.shape):
        row = result.logits[place].tolist()
        if row.index(max(row)) == targets[place]:
            right += weights[place]
    parts = {
        "cross_entropy": text["loss"] - text["z_loss"],
        "z_loss": text["z_loss"],
        "auxiliary_loss": c.auxiliary_loss_factor * balance,
        "router_z_loss": c.router_z_loss_factor * router_z,
    }
    return {
        "total": math.fsum(parts.values()),
        **parts,
        "weight_sum": text["weight_sum"],
        "accuracy": right / text["weight_sum"],
    }


# ---------------------------------------------------------------------------- gradients


def differences(
    function: Callable[[ndarray], float], value: ndarray, step: float = 1e-3
) -> ndarray:
    """Return the gradient of a smooth function, each element from four values of it.

    The error is of fourth order in the step: about 1e-11 of values near 1.
    """
    gradient = np.zeros(value.shape)
    for place in np.ndindex(value.shape):
        at = {}
        for steps in (-2, -1, 1, 2):
            moved = value.astype(np.float64)
            moved[place] += steps * step
            at[steps] = function(moved)
        gradient[place] = (at[-2] - 8 * at[-1] + 8 * at[1] - at[2]) / (12 * step)
    return gradient


def model_gradients(
    model: Model, batch: Batch, names: Sequence[str], *, training: bool = True
) -> dict[str, ndarray]:
    """Return gradients of the total loss in some tensors, decisions held constant."""
    decisions = forward(model, batch, training=training).decisions
    found = {}
    for name in names:

        def loss(value: ndarray, name: str = name) -> float:
            moved = replace(model, parameters={**model.parameters, name: value})
            result = forward(moved, batch, training=training, decisions=decisions)
            return total_loss(moved, batch, result)["total"]

        found[name] = differences(loss, np.asarray(model.parameters[name]))
    return found


# ---------------------------------------------------------------------------- training


def learning_rate(step: int, *, warmup: str = "flat") -> float:
    """Return the learning rate of a step; the paper's `linear` warm-up rises from 0."""
    rate = max(1 / math.sqrt(max(step, 10000)), 1e-8)
    return rate * min(step / 10000, 1) if warmup == "linear" else rate


def microbatches(batch: Batch, count: int) -> list[dict[str, ndarray]]:
    """Return contiguous slices of a batch's rows."""
    rows = len(batch["decoder_input_tokens"]) // count
    return [
        {name: value[m * rows : (m + 1) * rows] for name, value in batch.items()}
        for m in range(count)
    ]


def is_expert(axes: Sequence[str]) -> bool:
    """Tell whether a tensor has an expert axis."""
    return "expert" in axes


def factored_axes(shape: Sequence[int], axes: Sequence[str]) -> tuple[int, int] | None:
    """Return the axes that v_row and v_col are indexed by, or None for one moment an element."""
    if is_expert(axes):
        return list(axes).index("mlp_embed"), list(axes).index("expert_mlp")
    if len(shape) == 2 and min(shape) >= 128:
        return (0, 1) if shape[0] <= shape[1] else (1, 0)
    return None


def initial_state(shape: Sequence[int], axes: Sequence[str]) -> dict[str, ndarray]:
    """Return the slots of a tensor, zeros; those it does not use have one element."""
    state = {name: np.zeros(1) for name in ("v_row", "v_col", "v", "m")}
    indexed = factored_axes(shape, axes)
    if indexed is None:
        return {**state, "v": np.zeros(shape)}
    leading = shape[:1] if is_expert(axes) else ()
    for name, axis in zip(("v_row", "v_col"), indexed, strict=True):
        state[name] = np.zeros((*leading, shape[axis]))
    return state


def adafactor(
    parameter: ndarray,
    gradient: ndarray,
    state: Mapping[str, ndarray],
    *,
    axes: Sequence[str],
    step: int,
    rate: float,
) -> dict[str, Any]:
    """Return {"parameter", "state"} after one update."""
    if not is_expert(axes):
        indexed = factored_axes(parameter.shape, axes)
        return _update(parameter, gradient, state, indexed=indexed, step=step, rate=rate)
    # Without the expert axis, the axes of an expert's own matrix.
    row, column = (axes[1:].index(name) for name in ("mlp_embed", "expert_mlp"))
    made = []
    for e in range(len(parameter)):
        # Every expert is a matrix by itself: scale, clip and mean are its own.
        slots = {n: state[n][e] for n in ("v_row", "v_col")}
        one = {"indexed": (row, column), "step": step, "rate": rate}
        made.append(_update(parameter[e], gradient[e], slots, **one))
    moments = {n: np.array([one["state"][n] for one in made]) for n in ("v_row", "v_col")}
    return {
        "parameter": np.array([one["parameter"] for one in made]),
        "state": {**state, **moments},
    }


def _update(
    parameter: ndarray,
    gradient: ndarray,
    state: Mapping[str, ndarray],
    *,
    indexed: tuple[int, int] | None,
    step: int,
    rate: float,
) -> dict[str, Any]:
    old = 1 - (step + 1) ** -0.8
    g = np.asarray(gradient, np.float64)
    squares = g * g + 1e-30
    direction = np.zeros(g.shape)
    moments = dict(state)
    if indexed is None:
        moments["v"] = old * state["v"] + (1 - old) * squares
        for place in np.ndindex(g.shape):
            direction[place] = g[place] / math.sqrt(moments["v"][place])
    else:
        row, column = indexed
        by_row = squares if row == 0 else squares.T
        rows = [_mean(values) for values in by_row.tolist()]
        columns = [_mean(values) for values in by_row.T.tolist()]
        moments["v_row"] = old * state["v_row"] + (1 - old) * np.array(rows)
        moments["v_col"] = old * state["v_col"] + (1 - old) * np.array(columns)
        middle = _mean(moments["v_row"].tolist())
        for place in np.ndindex(g.shape):
            share = moments["v_row"][place[row]] / middle
            direction[place] = (
                g[place] / math.sqrt(share) / math.sqrt(moments["v_col"][place[column]])
            )
    direction /= max(1.0, _root_mean_square(direction))
    scale = max(_root_mean_square(parameter), 1e-3)
    return {"parameter": parameter - rate * scale * direction, "state": moments}


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)


def _root_mean_square(values: ndarray) -> float:
    return math.sqrt(_mean([value * value for value in values.ravel().tolist()]))
