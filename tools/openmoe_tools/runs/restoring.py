"""A run's checkpoint as a model: its configuration, and its weights by the names of PARAM-01."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_tools import conforming
from openmoe_tools.data import opening


def is_run(path: Path) -> bool:
    """Return whether a path is a run's folder, that of its checkpoints, or that of one of its steps."""
    inside = path.name == "checkpoints" and path.is_dir()
    return inside or (path / "checkpoints").is_dir() or (path / "files.json").is_file()


def tokenizer_of(path: Path) -> Path | None:
    """Return the tokeniser that lies in a model's folder, or a run's as `openmoe prepare` puts it there."""
    if not is_run(path):
        beside = path / "tokenizer.model"
        return beside if beside.is_file() else None
    levels = (path, *path.absolute().parents[:2])
    runs = [one / "tokenizer.model" for one in levels if (one / "checkpoints").is_dir()]
    return next((one for one in runs if one.is_file()), None)


class Restored(NamedTuple):
    """A model as a step of a run has it."""

    model: Configuration
    weights: Mapping[str, ndarray]
    step: int


def load(path: Path) -> Restored:
    """Return the model of a step, of a run's folder the newest. Errors: UsageError."""
    conforming.require_jax(f"{path}: a run's checkpoint")
    opening.require(f"{path}: a run's checkpoint", "orbax.checkpoint")
    from openmoe_production import checkpoints, stacking  # noqa: PLC0415

    try:
        step = checkpoints.find_step(path)  # once: a run that goes on saves others
        settings = checkpoints.read_settings(step)
        shapes = checkpoints.read_shapes(step)["parameters"]
        found = checkpoints.restored_parameters(step, None, shapes)
        model = Configuration(**settings["model"])
    except checkpoints.CheckpointError as error:
        raise UsageError(str(error)) from error
    except (KeyError, TypeError, RejectedError) as error:
        raise UsageError(f"{path}: its settings are of no model ({error})") from error
    joined = stacking.join_gates(found)
    weights = {name: np.asarray(value) for name, value in joined.items()}
    return Restored(model, weights, int(step.name))
