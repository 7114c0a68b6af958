"""A checkpoint as a model to be run: its configuration, and all its weights in memory.

Spec: MODEL-09, PARAM-01, PARAM-05.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_spec.config import Configuration
from openmoe_spec.layouts import layout
from openmoe_spec.parameters import Parameter, parameters
from openmoe_spec.places import place, shape_after, stored_shapes
from openmoe_tools.checkpoints import settings
from openmoe_tools.checkpoints.containers.opening import Checkpoint, open_checkpoint
from openmoe_tools.checkpoints.containers.stored import Unreadable

DTYPES = ("float32", "bfloat16", "float16")
"""Dtypes of weights that float32 holds exactly."""


class Loaded(NamedTuple):
    """A model as a checkpoint has it."""

    model: Configuration
    weights: Mapping[str, ndarray]
    step: int | None


def load(path: Path) -> Loaded:
    """Return a checkpoint's configuration and its weights, float32, by the names of PARAM-01.

    Errors: UsageError naming the file, the tensor, and the shapes that it has and must have.
    """
    return load_opened(open_checkpoint(path))


def load_opened(checkpoint: Checkpoint) -> Loaded:
    """Return what `load` does, of a checkpoint that is open. Errors: UsageError."""
    model = settings.configuration(checkpoint)
    if model is None:
        raise UsageError(
            f"{checkpoint.path}: holds no {settings.CONFIG}, and nothing else says what model it is"
        )
    tensors = parameters(model)
    _compare(checkpoint, tensors)
    return Loaded(model, weights(checkpoint), checkpoint.step)


def weights(checkpoint: Checkpoint) -> dict[str, ndarray]:
    """Return all tensors of a checkpoint, float32. Errors: UsageError on what cannot be a weight."""
    found = {}
    for name in checkpoint.tensors:
        dtype = checkpoint.dtype(name)
        if dtype not in DTYPES:
            raise Unreadable(
                f"{_place(checkpoint, name)} must be one of {', '.join(DTYPES)}, got {dtype}"
            )
        values = np.ascontiguousarray(checkpoint.read(name), np.float32)
        if not np.isfinite(values).all():
            raise Unreadable(f"{_place(checkpoint, name)} holds values that are not finite")
        found[name] = values
    return found


def _place(checkpoint: Checkpoint, name: str) -> str:
    part = checkpoint.tensors[name].parts[0]
    return f"{checkpoint.path}: {part.theirs}"


def _compare(checkpoint: Checkpoint, tensors: tuple[Parameter, ...]) -> None:
    """Refuse what no rule names, what the configuration lacks, what is missing or misshaped."""
    for name in checkpoint.found.unknown:
        one = checkpoint.reader.tensors[name]
        raise Unreadable(
            f"{checkpoint.path}: {name}, shape {one.shape}, is no tensor of an OpenMoE model"
        )
    for problem in checkpoint.found.problems:
        raise Unreadable(f"{checkpoint.path}: {problem}")
    wanted = {one.name: one.shape for one in tensors}
    for name, there in checkpoint.tensors.items():
        if name not in wanted:
            raise Unreadable(
                f"{_place(checkpoint, name)}, shape {there.shape}, is no tensor of the model that "
                f"{settings.CONFIG} describes"
            )
    for name, shape in wanted.items():
        placed = checkpoint.tensors.get(name)
        if placed is None:
            theirs, own = _would_be(checkpoint, name, shape)
            raise Unreadable(f"{checkpoint.path}: lacks the tensor {theirs}, shape {own}")
        if placed.shape != shape:
            part = placed.parts[0]
            own = shape_after(part.operations, shape if part.matrix is None else shape[1:]) or shape
            held = checkpoint.reader.tensors[part.theirs].shape
            raise Unreadable(f"{checkpoint.path}: {part.theirs} must have shape {own}, got {held}")


def _would_be(
    checkpoint: Checkpoint, name: str, shape: tuple[int, ...]
) -> tuple[str, tuple[int, ...]]:
    """Return the name and shape that a tensor would have in a checkpoint's layout."""
    try:
        placed = place(layout(checkpoint.found.layout.name), {name: shape})
    except KeyError:  # a layout that stacks layers
        return name, shape
    return next(iter(stored_shapes(placed).items()))
