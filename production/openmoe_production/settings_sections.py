"""The sections of a training run's settings: dataclasses whose fields know how they are read.

Needs neither JAX nor Grain. Spec: RUN-01.
"""
# ruff: noqa: RUF009 - `read.setting` makes a field, as `dataclasses.field` does

from __future__ import annotations

import sys
from dataclasses import MISSING, asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

from openmoe_production import settings_fields as read
from openmoe_spec.config import PUBLISHED, Configuration
from openmoe_spec.errors import RejectedError

MODES = ("ul2", "full_lm", "sft")
SCHEDULES = ("inverse_square_root", "constant")
DTYPES = ("float32", "bfloat16")


def configuration(place: str, value: Any, folder: Path | None) -> Configuration:
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
