"""The settings of a training run: a TOML file read into frozen dataclasses, or refused by field.

Sections of the file are dataclasses here, and each of their fields knows how it is read. Needs
neither JAX nor Grain. Spec: RUN-01.
"""
# ruff: noqa: RUF009 - `read.setting` makes a field, as `dataclasses.field` does

from __future__ import annotations

import sys
import tomllib
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

from openmoe_production import settings_fields as read
from openmoe_spec.config import PUBLISHED, Configuration
from openmoe_spec.data import SFT_ENDS
from openmoe_spec.errors import RejectedError

MODES = ("ul2", "full_lm", "sft")
SCHEDULES = ("inverse_square_root", "constant")
DTYPES = ("float32", "bfloat16")


# ---- sections ----------------------------------------------------------------------------------


def _model(place: str, value: Any, folder: Path | None) -> Configuration:
    """Return a published configuration by its name, or one of which all fields are given."""
    given = read.table(place, value, folder)
    known = {one.name: one.default for one in fields(Configuration)}
    read.require_known(place, given, known)
    name = given.get("name", "own")
    published = PUBLISHED.get(name) if isinstance(name, str) else None
    taken = {"name": name} | (asdict(published) if published else {}) | dict(given)
    absent = [one for one, default in known.items() if default is MISSING and one not in taken]
    if absent:
        hint = f"give all fields, or nothing but a name of {', '.join(PUBLISHED)}"
        raise RejectedError(place, read.CLAUSE, f"lacks {', '.join(absent)}; {hint}")
    try:
        found = Configuration(**taken)
    except RejectedError as error:
        raise RejectedError(read.at(place, error.argument), error.clause, error.reason) from error
    if published not in {None, found}:
        own = next(one for one in known if getattr(found, one) != getattr(published, one))
        reason = f"{name!r} is a published model of another {own}; give this one another name"
        raise RejectedError(read.at(place, "name"), read.CLAUSE, reason)
    return found


@dataclass(frozen=True, kw_only=True)
class Task:
    """Documents of one kind.

    name   of sft, what the fields of a record are (DATA-10); else any
    field  of JSON lines and Parquet, where the text stands; None in sft, which takes whole records
    """

    paths: tuple[Path, ...] = read.setting(partial(read.some, read.path))
    rate: float = read.finite(least=sys.float_info.min, default=1.0)
    name: str = read.setting(read.text, default="")
    field: str | None = read.setting(read.text, default=None)


_tasks = partial(read.some, partial(read.section, Task))


@dataclass(frozen=True, kw_only=True)
class Data:
    """What is fed. Tasks and lengths are for stages that have none of their own.

    batch_size     rows of a step, of all microbatches and devices
    seed           that of the run unless it is given
    threads, ahead  those of `data.Pipeline`, on which nothing depends but the time
    """

    tokenizer: Path = read.setting(read.path)
    batch_size: int = read.whole()
    seed: int | None = read.whole(least=0, most=2**32 - 1, default=None)
    shuffle_buffer: int = read.whole(least=0, default=0)
    threads: int = read.whole(least=0, default=0)
    ahead: int = read.whole(least=0, default=0)
    tasks: tuple[Task, ...] | None = read.setting(_tasks, default=None)
    inputs_length: int | None = read.whole(least=2, default=None)
    targets_length: int | None = read.whole(least=2, default=None)


@dataclass(frozen=True, kw_only=True)
class Stage:
    """A part of the run with data of its own; what [data] has for all stages stands here too.

    steps          of this stage alone
    inputs_length  None in full_lm
    """

    mode: str = read.one_of(MODES)
    steps: int = read.whole()
    tasks: tuple[Task, ...] = read.setting(_tasks)
    inputs_length: int | None = read.whole(least=2, default=None)
    targets_length: int = read.whole(least=2)

    @property
    def row_length(self) -> int:
        """Positions of a row."""
        return (self.inputs_length or 0) + self.targets_length


@dataclass(frozen=True, kw_only=True)
class Optimizer:
    """Adafactor's rate and what it is given.

    rate      of the schedule `constant` alone
    averaged  gradients of microbatches are averaged, not added up as trained (OPT-11)
    """

    schedule: str = read.one_of(SCHEDULES, default=SCHEDULES[0])
    rate: float | None = read.finite(least=sys.float_info.min, default=None)
    num_microbatches: int = read.whole(default=1)
    averaged: bool = read.setting(read.flag, default=False)
    num_expert_partitions: int = read.whole(default=1)


@dataclass(frozen=True, kw_only=True)
class Dropout:
    """The probability with which a value is dropped in training (MODEL-12)."""

    rate: float = read.finite(least=0.0, most=0.99, default=0.0)


@dataclass(frozen=True, kw_only=True)
class Mesh:
    """How devices are used, and R, on which the groups depend and which is never read off devices."""

    data: int = read.whole(default=1)
    expert: int = read.whole(default=1)
    model: int = read.whole(default=1)
    parameters_over_data: bool = read.setting(read.flag, default=False)
    num_expert_replicas: int = read.whole(default=1)


@dataclass(frozen=True, kw_only=True)
class Arithmetic:
    """Dtype of activations, and whether layers are computed again in the backward pass."""

    dtype: str = read.one_of(DTYPES, default=DTYPES[0])
    remat: bool = read.setting(read.flag, default=False)


@dataclass(frozen=True, kw_only=True)
class Checkpoints:
    """When the run is saved: after every so many steps, of which the newest `keep` stay, and after
    the steps `early`, which all stay.
    """

    every: int = read.whole(default=500)
    keep: int = read.whole(default=3)
    early: tuple[int, ...] = read.setting(read.steps, default=())


@dataclass(frozen=True, kw_only=True)
class Log:
    """Which steps are written down, and whether as TensorBoard's events too."""

    every: int = read.whole(default=10)
    tensorboard: bool = read.setting(read.flag, default=False)


@dataclass(frozen=True, kw_only=True)
class Start:
    """The checkpoint whose parameters the run begins with; `step` None: its newest."""

    checkpoint: Path = read.setting(read.path)
    step: int | None = read.whole(default=None)


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """Text that is not trained on; what a run computes does not depend on it.

    tasks    those that `sft` has a name for are fed so, the others as the other stages do
    batches  of a task and of what is asked of it, at most; None: all
    """

    tasks: tuple[Task, ...] = read.setting(_tasks)
    batches: int | None = read.whole(default=None)


@dataclass(frozen=True, kw_only=True)
class RunSettings:
    """Everything that a training run follows from. Made by `load` and `from_mapping`."""

    seed: int = read.whole(least=0, most=2**32 - 1, default=0)
    model: Configuration = read.setting(_model)
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
