"""The settings of a training run: a TOML file read into frozen dataclasses, or refused by field.

Needs neither JAX nor Grain. Spec: RUN-01.
"""
# ruff: noqa: RUF009 - `read.setting` makes a field, as `dataclasses.field` does

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from openmoe_production import settings_fields as read
from openmoe_production.settings_sections import (
    Arithmetic,
    Checkpoints,
    Data,
    Dropout,
    Evaluation,
    Log,
    Mesh,
    Optimizer,
    Stage,
    Start,
    configuration,
)
from openmoe_spec.config import Configuration
from openmoe_spec.data import SFT_ENDS
from openmoe_spec.errors import RejectedError


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Everything that a training run follows from. Made by `load` and `from_mapping`."""

    seed: int = read.whole(least=0, most=2**32 - 1, default=0)
    model: Configuration = read.setting(configuration)
    data: Data = read.setting(partial(read.section, Data))
    stage: tuple[Stage, ...] = read.setting(partial(read.some, partial(read.values, Stage)))
    optimizer: Optimizer = read.setting(partial(read.section, Optimizer), default=Optimizer())
    dropout: Dropout = read.setting(partial(read.section, Dropout), default=Dropout())
    mesh: Mesh = read.setting(partial(read.section, Mesh), default=Mesh())
    arithmetic: Arithmetic = read.setting(partial(read.section, Arithmetic), default=Arithmetic())
    checkpoints: Checkpoints = read.setting(
        partial(read.section, Checkpoints), default=Checkpoints()
    )
    log: Log = read.setting(partial(read.section, Log), default=Log())
    start: Start | None = read.setting(partial(read.section, Start), default=None)
    evaluation: Evaluation | None = read.setting(partial(read.section, Evaluation), default=None)

    @property
    def total_steps(self) -> int:
        """Updates of all stages."""
        return sum(one.steps for one in self.stage)

    @property
    def data_seed(self) -> int:
        """The seed of what is fed."""
        return self.seed if self.data.seed is None else self.data.seed

    def stage_at(self, step: int) -> tuple[int, int]:
        """Return the number of the stage whose turn it is behind `step` updates, and where it began.

        Behind the last step of all it is still the last stage.
        """
        ends = list(accumulate(one.steps for one in self.stage))
        stage = min(sum(step >= end for end in ends), len(ends) - 1)
        return stage, ends[stage] - self.stage[stage].steps

    def to_mapping(self) -> dict[str, Any]:
        """Return everything as JSON has it; `from_mapping` reads it again."""
        found: dict[str, Any] = _plain(asdict(self))
        return found

    def fixed(self) -> dict[str, Any]:
        """Return what runs must agree on so that one goes on exactly as the other would have.

        Not among it: where files lie, how devices are used, what is saved, logged and evaluated, and
        how long the last stage is, so a run may be moved and lengthened.
        """
        found = self.to_mapping()
        for name in ("checkpoints", "log", "start", "evaluation"):
            del found[name]
        found["mesh"] = {"num_expert_replicas": self.mesh.num_expert_replicas}
        del found["arithmetic"]["remat"]
        data = found["data"]
        for name in ("tokenizer", "threads", "ahead", "tasks", "inputs_length", "targets_length"):
            del data[name]
        data["seed"] = self.data_seed
        for stage in found["stage"]:
            for task in stage["tasks"]:
                del task["paths"]
        del found["stage"][-1]["steps"]
        return found


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(one) for name, one in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, Path) else value


# ---- the whole ---------------------------------------------------------------------------------


def load(path: Path) -> RunSettings:
    """Return the settings in a TOML file, whose folder paths in it begin at.

    Errors: RejectedError RUN-01, with the section and the field as its argument.
    """
    try:
        given = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RejectedError("file", read.CLAUSE, f"cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise RejectedError("file", read.CLAUSE, "is not UTF-8 text") from error
    except tomllib.TOMLDecodeError as error:
        raise RejectedError("file", read.CLAUSE, f"is no TOML: {error}") from error
    return from_mapping(given, path.absolute().parent)


def from_mapping(given: Mapping[str, Any], folder: Path | None = None) -> RunSettings:
    """Return the settings of a mapping as `to_mapping` gives it, or as a TOML file in a folder has it.

    Without a folder paths stay as they are, and need not exist. Errors: RejectedError RUN-01.
    """
    values = read.values(RunSettings, "", given, folder)
    data = values.get("data")
    if data is not None and "stage" in values:
        shared = {
            name: getattr(data, name)
            for name in ("tasks", "inputs_length", "targets_length")
            if getattr(data, name) is not None
        }
        values["stage"] = tuple(
            _stage(f"stage[{i}]", one, shared) for i, one in enumerate(values["stage"])
        )
    settings: RunSettings = read.made(RunSettings, "", values)
    _check(settings)
    return settings


def _stage(place: str, own: Mapping[str, Any], shared: Mapping[str, Any]) -> Stage:
    """Return a stage, with what stands in [data] for all of them."""
    mode = own.get("mode")
    if mode == "full_lm":
        shared = {name: one for name, one in shared.items() if name != "inputs_length"}
    found: Stage = read.made(Stage, place, {**shared, **own}, ", here or in [data]")
    if (found.inputs_length is None) != (found.mode == "full_lm"):
        reason = f"is not of {mode}" if found.mode == "full_lm" else f"must be given for {mode}"
        raise RejectedError(f"{place}.inputs_length", read.CLAUSE, reason)
    for i, task in enumerate(found.tasks):
        if found.mode == "sft" and task.name not in SFT_ENDS:
            legal = ", ".join(SFT_ENDS)
            raise RejectedError(
                f"{place}.tasks[{i}].name",
                read.CLAUSE,
                f"must be one of {legal}, got {task.name!r}",
            )
    return found


def _check(settings: RunSettings) -> None:
    """Refuse what does not fit together. Errors: RejectedError RUN-01."""
    model, mesh, rows = settings.model, settings.mesh, settings.data.batch_size
    for i, stage in enumerate(settings.stage):
        if stage.row_length > model.max_length:
            raise RejectedError(
                f"stage[{i}].targets_length",
                read.CLAUSE,
                f"makes rows of {stage.row_length}, model.max_length is {model.max_length}",
            )
    chosen = settings.optimizer
    slices = chosen.num_microbatches
    if rows % slices:
        reason = f"must divide data.batch_size, {rows}, got {slices}"
        raise RejectedError("optimizer.num_microbatches", read.CLAUSE, reason)
    shares = mesh.data * mesh.expert
    if rows // slices % shares:
        step = slices * shares
        raise RejectedError(
            "data.batch_size",
            read.CLAUSE,
            f"{rows} rows in {slices} microbatches cannot be split over {mesh.data} x {mesh.expert} "
            f"devices; {-(-rows // step) * step} would do",
        )
    if (chosen.rate is None) != (chosen.schedule != "constant"):
        reason = "must be given for constant" if chosen.rate is None else "is of constant alone"
        raise RejectedError("optimizer.rate", read.CLAUSE, reason)
