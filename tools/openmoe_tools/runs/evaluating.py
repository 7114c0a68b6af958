"""`openmoe eval`: loss and accuracy of a run's checkpoints on text that it has not seen.

The report's schema is `eval.schema.json`, beside this file. Spec: RUN-07.
"""

from __future__ import annotations

import json as json_module
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from openmoe_conformance.outcome import UsageError
from openmoe_spec import SPEC_VERSION, __version__
from openmoe_spec.data import SFT_ENDS
from openmoe_tools import conforming, files
from openmoe_tools.data import opening
from openmoe_tools.runs import devices
from openmoe_tools.runs.training import explained, file_of
from openmoe_tools.terminal import console, say

if TYPE_CHECKING:  # optional extras
    from openmoe_production.run_settings import RunSettings
    from openmoe_production.settings_sections import Evaluation, Stage, Task

COMMAND = "openmoe eval"
SCHEMA = "openmoe-eval/1"


@dataclass(frozen=True)
class Request:
    """The options of `openmoe eval`; `data` is of pairs NAME=PATH, `mesh` of sizes DxExM."""

    config: Path
    output: Path | None
    data: tuple[str, ...]
    field: str
    step: int | None
    every_step: bool
    mode: str | None
    batches: int | None
    mesh: str | None
    devices: devices.Devices
    json: Path | None


def evaluate(request: Request) -> int:
    """Evaluate steps of a run, print and write what came; return 0. Errors: UsageError."""
    conforming.require_jax(COMMAND)
    opening.require(COMMAND, "grain", "sentencepiece", "orbax.checkpoint")
    files.writable(request.json)
    if request.every_step and request.step is not None:
        raise UsageError("--step and --every-step: one of them, not both")
    devices.begin(request.devices)
    to = console() if devices.is_first() else Console(quiet=True)
    started = time.perf_counter()
    request = replace(request, config=file_of(request.config))
    with explained(request.config):
        settings = _settings(request)
        pairs = list(_pairs(settings, request.mode))
        if not pairs:
            raise UsageError(
                f"{request.config}: no stage is fed with these tasks"
                + (f" in mode {request.mode}" if request.mode else "")
                + f"; {', '.join(SFT_ENDS)} are for sft, other names for the other modes"
            )
        rows = _evaluated(request, settings, pairs, to)
    made = {
        "schema": SCHEMA,
        "spec_version": SPEC_VERSION,
        "version": __version__,
        "config": str(request.config),
        "mesh": {name: getattr(settings.mesh, name) for name in ("data", "expert", "model")},
        "batches": _evaluation(settings).batches,
        "rows": rows,
        "seconds": time.perf_counter() - started,
    }
    _render(made, settings, to)
    if devices.is_first():
        files.write(request.json, lambda: json_module.dumps(made, indent=1) + "\n")
    return 0


# ---- what is evaluated -------------------------------------------------------------------------


def _settings(request: Request) -> RunSettings:
    """Return the run's settings with what was asked for in place of what they say."""
    from openmoe_production import run_settings, settings_sections  # noqa: PLC0415

    settings = run_settings.load(request.config)
    if request.mesh is not None:
        data, expert, model = devices.sizes(request.mesh)
        settings = replace(
            settings, mesh=replace(settings.mesh, data=data, expert=expert, model=model)
        )
    evaluation = settings.evaluation
    if request.data:
        tasks = tuple(_task(one, request.field) for one in request.data)
        evaluation = settings_sections.Evaluation(tasks=tasks)
    if evaluation is None:
        raise UsageError(
            f"{request.config}: has no [evaluation]; add one, or name text with --data NAME=PATH"
        )
    if request.batches is not None:
        evaluation = replace(evaluation, batches=request.batches)
    return replace(settings, evaluation=evaluation)


def _evaluation(settings: RunSettings) -> Evaluation:
    assert settings.evaluation is not None  # `_settings` has seen to it
    return settings.evaluation


def _task(given: str, field: str) -> Task:
    from openmoe_production.settings_sections import Task  # noqa: PLC0415

    name, _, path = given.partition("=")
    if not name or not path:
        raise UsageError(f"--data {given}: must be NAME=PATH, as held_out=held_out.jsonl")
    if not Path(path).exists():
        raise UsageError(f"--data {given}: {path} does not exist")
    return Task(paths=(Path(path).absolute(),), name=name, field=field)


def _pairs(settings: RunSettings, mode: str | None) -> Iterator[tuple[Stage, Task]]:
    """Yield what is fed how: each mode has the lengths of its last stage."""
    stages = {one.mode: one for one in settings.stage}
    if mode is not None and mode not in stages:
        raise UsageError(f"--mode {mode}: the run has {', '.join(stages)}")
    for task in _evaluation(settings).tasks:
        for name, stage in stages.items():
            if mode in {None, name} and (name == "sft") == (task.name in SFT_ENDS):
                yield stage, task


def _evaluated(
    request: Request, settings: RunSettings, pairs: Sequence[tuple[Stage, Task]], to: Console
) -> list[dict[str, Any]]:
    """Return a row for each step, task and kind. Errors: UsageError, CheckpointError, SourceError."""
    from openmoe_production import evaluating, run_data, trainer  # noqa: PLC0415
    from openmoe_production.checkpoints import Checkpoints, restored_parameters  # noqa: PLC0415

    layout = trainer.layout_of(settings)
    pieces = run_data.vocabulary(settings)
    folder = (request.output or request.config.parent) / "checkpoints"
    saved = Checkpoints(folder, settings.fixed(), warn=lambda text: say(to, f"warning: {text}"))
    steps = saved.steps()
    if not steps:
        raise UsageError(f"{folder}: holds no complete step of a run")
    if request.step is not None and request.step not in steps:
        raise UsageError(f"--step {request.step}: saved are {', '.join(map(str, steps))}")
    if not request.every_step:
        steps = [steps[-1] if request.step is None else request.step]
    shapes = trainer.abstract_state(settings, layout)["parameters"]
    pass_of = evaluating.Evaluator(settings, layout)
    rows = []
    with Progress(console=to, transient=True, disable=not to.is_terminal) as bar:
        shown = bar.add_task("evaluating", total=None)
        for step in steps:
            parameters = restored_parameters(folder, step, shapes)
            for stage, task in pairs:
                asked = evaluating.by_objective(
                    settings, stage, task, pieces, batches=_evaluation(settings).batches
                )
                for kind, batches in asked.items():
                    found = pass_of(parameters, batches, lambda: bar.advance(shown))
                    if found is None:
                        raise UsageError(
                            f"{_named(task)}: too little text for {kind}: no loss in it"
                        )
                    rows.append(
                        {"step": step, "data": _named(task), "mode": stage.mode, "kind": kind}
                        | found._asdict()
                    )
    return rows


def _named(task: Task) -> str:
    return task.name or task.paths[0].name


def _render(made: dict[str, Any], settings: RunSettings, to: Console) -> None:
    mesh = " x ".join(f"{axis} {size}" for axis, size in made["mesh"].items())
    say(to, f"{COMMAND}: {settings.model.name}, mesh {mesh}", "bold")
    table = Table("step", "data", "asked", "tokens", "loss", "accuracy", "unigram", "below it")
    for column in table.columns[3:]:
        column.justify = "right"
    table.columns[0].justify = "right"
    for row in made["rows"]:
        table.add_row(
            str(row["step"]),
            row["data"],
            row["kind"],
            f"{row['tokens']:,}",
            f"{row['loss']:.4f}",
            f"{row['accuracy']:.4f}",
            f"{row['unigram']:.4f}",
            f"{row['unigram'] - row['loss']:.4f}",
        )
    to.print(table)
    say(
        to,
        "loss: nats a token; unigram: entropy of the targets' own frequencies, which no model that "
        f"knows these alone can beat; {made['seconds']:.0f} s",
        "dim",
    )
