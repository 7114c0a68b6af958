"""`openmoe train`: a run in a folder, watched, stopped and resumed.

The report's schema is `train.schema.json`, beside this file.
"""

from __future__ import annotations

import json as json_module
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from openmoe_conformance.outcome import UsageError
from openmoe_spec import SPEC_VERSION, __version__
from openmoe_spec.errors import RejectedError
from openmoe_tools import conforming, files
from openmoe_tools.data import opening
from openmoe_tools.runs import devices
from openmoe_tools.terminal import console, say

if TYPE_CHECKING:  # optional extras
    from openmoe_production.run_settings import RunSettings
    from openmoe_production.trainer import Record, Trainer

COMMAND = "openmoe train"
CONFIG = "run.toml"
SCHEMA = "openmoe-train/1"
HOLDS, DOES_NOT_HOLD, _, INTERRUPTED = range(4)


@dataclass(frozen=True)
class Request:
    """The options of `openmoe train`."""

    config: Path
    output: Path | None
    devices: devices.Devices
    json: Path | None


def train(request: Request) -> int:
    """Run or go on with a run; return 0 when it has ended or was told to stop, 1 when it diverged.

    3 after an interrupt from the keyboard, which saves too where there is one process. Errors: UsageError.
    """
    conforming.require_jax(COMMAND)
    opening.require(COMMAND, "grain", "sentencepiece", "orbax.checkpoint")
    files.writable(request.json)
    devices.begin(request.devices)
    to = console() if devices.is_first() else Console(quiet=True)
    config = file_of(request.config)
    folder = request.output or config.parent
    with explained(config):
        from openmoe_production import run_settings, trainer  # noqa: PLC0415

        settings = run_settings.load(config)
        folder.mkdir(parents=True, exist_ok=True)
        begun = trainer.Trainer(settings, folder, warn=lambda text: say(to, f"warning: {text}"))
        return _watched(request, begun, folder, to)


def file_of(config: Path) -> Path:
    """Return the settings file that is meant: of a folder its `run.toml`. Errors: UsageError."""
    if not config.is_dir():
        return config
    if not (config / CONFIG).is_file():
        raise UsageError(f"{config}: this folder holds no {CONFIG}; name a settings file")
    return config / CONFIG


@contextmanager
def explained(config: Path) -> Iterator[None]:
    """Turn what a run refuses or cannot go on with into one line. Errors: UsageError."""
    from openmoe_production.checkpoints import CheckpointError  # noqa: PLC0415
    from openmoe_production.sources import SourceError  # noqa: PLC0415

    try:
        yield
    except RejectedError as error:
        raise UsageError(f"{config}: {error.argument}: {error.reason} [{error.clause}]") from error
    except (CheckpointError, SourceError) as error:
        raise UsageError(str(error)) from error


def _watched(request: Request, run: Trainer, folder: Path, to: Console) -> int:
    from openmoe_production.metrics_log import MetricsLog  # noqa: PLC0415
    from openmoe_production.trainer import NotFiniteError  # noqa: PLC0415

    settings = run.settings
    _introduce(run, folder, to)
    begun, started = run.step, time.perf_counter()
    last: Record | None = None
    heard: list[int] = []
    log = MetricsLog(folder, begin_step=begun, tensorboard=settings.log.tensorboard)
    try:
        with log, _heard(run, heard), _progress(settings, begun, to) as shown:
            for record in run.run():
                last = record
                log.write(record.step, record._asdict())
                shown(record)
        code = INTERRUPTED if signal.SIGINT in heard else HOLDS
    except NotFiniteError as error:
        say(to, f"{COMMAND}: {error}", "bold")
        code = DOES_NOT_HOLD
    finally:
        run.close()
    made = {
        "schema": SCHEMA,
        "spec_version": SPEC_VERSION,
        "version": __version__,
        "config": str(request.config),
        "folder": str(folder),
        "begun_at": begun,
        "step": run.step,
        "steps": settings.total_steps,
        "saved": run.checkpoints.latest(),
        "finished": run.step == settings.total_steps and code == HOLDS,
        "last": None if last is None else last._asdict(),
        "seconds": time.perf_counter() - started,
    }
    _conclude(made, to)
    if devices.is_first():
        files.write(request.json, lambda: json_module.dumps(made, indent=1) + "\n")
    return code


@contextmanager
def _heard(run: Trainer, heard: list[int]) -> Iterator[None]:
    """Let SIGTERM and an interrupt end the run behind the step that is being made.

    With several processes JAX hears SIGTERM, so that all of them stop behind the same step.
    """
    import jax  # noqa: PLC0415

    def stop(number: int, _: Any) -> None:
        if number in heard and number == signal.SIGINT:
            raise KeyboardInterrupt  # a second one is meant
        heard.append(number)
        run.stopping = True

    alone = jax.process_count() == 1
    numbers = [signal.SIGINT, signal.SIGTERM] if alone else []
    before = {number: signal.signal(number, stop) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def _progress(settings: RunSettings, begun: int, to: Console) -> Iterator[Any]:
    """Yield a function of a record: a bar on a terminal, a line a logged step elsewhere."""

    def line(record: Record) -> str:
        losses = record.losses
        return (
            f"step {record.step:>{len(str(settings.total_steps))}}  {record.mode:7}  "
            f"loss {losses['cross_entropy']:.4f}  accuracy {losses['accuracy']:.3f}  "
            f"balance {losses['auxiliary_loss']:.4f}  "
            f"gradients {record.gradient_norms['all']:.3g}"
        )

    if not to.is_terminal:

        def plain(record: Record) -> None:
            if record.step % settings.log.every == 0 or record.step == settings.total_steps:
                say(to, line(record))

        yield plain
        return
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[line]}"),
    )
    with Progress(*columns, console=to, transient=True) as bar:
        task = bar.add_task("training", total=settings.total_steps, completed=begun, line="")
        yield lambda record: bar.update(task, completed=record.step, line=line(record))


def _introduce(run: Trainer, folder: Path, to: Console) -> None:
    from openmoe_spec.parameters import count  # noqa: PLC0415

    settings, mesh = run.settings, run.layout.mesh.shape
    sizes = " x ".join(f"{axis} {size}" for axis, size in mesh.items())
    stages = ", then ".join(f"{one.steps} steps of {one.mode}" for one in settings.stage)
    say(to, f"{COMMAND}: {settings.model.name}, {count(settings.model).total:,} parameters", "bold")
    say(to, f"mesh {sizes}; {stages}; {settings.data.batch_size} rows a step")
    if run.step:
        say(to, f"{folder}: goes on from step {run.step} of {settings.total_steps}")


def _conclude(made: dict[str, Any], to: Console) -> None:
    saved = "nothing is saved" if made["saved"] is None else f"step {made['saved']} is saved"
    if made["finished"]:
        say(to, f"finished: {made['steps']} steps, {made['seconds']:.0f} s; {saved}")
    else:
        say(
            to,
            f"stopped at step {made['step']} of {made['steps']}; {saved} in {made['folder']}, and the "
            "same command goes on from it",
        )
