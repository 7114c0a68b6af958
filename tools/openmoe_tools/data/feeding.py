"""`openmoe data feed`: the production pipeline over real text, its figures beside the predictions.

The report and its schema are those of `feed_report`.
Spec: DATA-01..DATA-14, BATCH-06.
"""

from __future__ import annotations

import json as json_module
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from openmoe_conformance.outcome import UsageError
from openmoe_spec.errors import RejectedError
from openmoe_tools import files
from openmoe_tools.data import feed_report, opening
from openmoe_tools.terminal import console, say

if TYPE_CHECKING:  # the extra `data` may be missing
    from openmoe_production.data import Pipeline
    from openmoe_production.sources import Documents, Task
    from openmoe_production.vocabulary import Vocabulary

COMMAND = "openmoe data feed"
HOLDS, DOES_NOT_HOLD, INCOMPLETE = range(3)
_MOST_POSITIONS = 2**28
"""Of a batch, which five features hold: gigabytes, so more is a mistake."""


@dataclass(frozen=True)
class Request:
    """The options of `openmoe data feed`."""

    paths: tuple[Path, ...]
    weights: tuple[float, ...]
    field: str
    standard_library: bool
    tokenizer: Path | None
    mode: str
    tokens: int
    inputs_length: int
    targets_length: int
    batch: int
    seed: int
    shuffle: bool
    process: int
    processes: int
    workers: int
    ahead: int
    state: Path | None
    json: Path | None


def feed(request: Request) -> int:
    """Feed, print and write what was fed; return 0 when it is as predicted, 1 when it is not.

    2 when it is, but an objective is missing. Errors: UsageError.
    """
    files.writable(request.json, request.state, read=[*request.paths, request.tokenizer])
    opening.require(COMMAND, "grain", "sentencepiece")
    _check(request)
    from openmoe_production.sources import SourceError  # noqa: PLC0415 - an optional extra

    to = console()
    begun = _read_state(request.state)
    tasks = _tasks(request)
    vocabulary = opening.vocabulary(_tokenizer(request, tasks, to))
    try:
        pipeline = _pipeline(request, tasks, vocabulary)
        if begun is not None:
            pipeline.set_state(begun)
        seconds = _run(request, pipeline, to)
    except RejectedError as error:
        raise UsageError(_explained(error, request)) from error
    except SourceError as error:
        raise UsageError(str(error)) from error
    made = feed_report.report(
        request, tasks, vocabulary, pipeline, seconds, resumed=begun is not None
    )
    feed_report.render(made, to)
    files.write(request.json, lambda: json_module.dumps(made, indent=1, allow_nan=False) + "\n")
    if not made["holds"]:
        return DOES_NOT_HOLD
    return INCOMPLETE if made["missing_objectives"] else HOLDS


# ---- what is given -----------------------------------------------------------------------------


def _check(request: Request) -> None:
    if request.mode not in {"ul2", "full_lm"}:
        raise UsageError(f"--mode {request.mode}: must be ul2 or full_lm")
    if request.batch * (request.inputs_length + request.targets_length) > _MOST_POSITIONS:
        raise UsageError(
            f"--batch {request.batch}: with these lengths a batch has more than "
            f"{_MOST_POSITIONS:,} positions"
        )
    if not all(0 < one < math.inf for one in request.weights):
        raise UsageError(
            "--weight: each, and so the sum, must be above 0; leave out files that get no share"
        )


def _tasks(request: Request) -> list[Task]:
    from openmoe_production.sources import Task  # noqa: PLC0415

    def opened(paths: Sequence[Path]) -> Documents:
        return opening.documents(
            paths,
            field=request.field,
            standard_library=request.standard_library,
        )

    if not request.weights:
        return [Task(opened(request.paths))]
    if len(request.weights) != len(request.paths):
        raise UsageError(
            f"--weight: {len(request.weights)} are given for {len(request.paths)} FILES; give one "
            "each, in their order, or none"
        )
    tasks = []
    for path, weight in zip(request.paths, request.weights, strict=True):
        with suppress(opening.EmptyError):  # an empty file is passed over, as without weights
            tasks.append(Task(opened([path]), weight, str(path)))
    if not tasks:
        raise UsageError(f"{', '.join(map(str, request.paths))}: no document that is not empty")
    return tasks


def _tokenizer(request: Request, tasks: Sequence[Task], to: Console) -> Path | bytes:
    if request.tokenizer is not None:
        return request.tokenizer
    if not request.standard_library:
        raise UsageError(
            "--tokenizer: name a SentencePiece model; `openmoe tokenizer train` makes one"
        )
    say(to, "No --tokenizer: trained one of 8,000 pieces on the standard library.", "dim")
    return opening.trained(tasks[0].documents, pieces=8000)


def _pipeline(request: Request, tasks: Sequence[Task], vocabulary: Vocabulary) -> Pipeline:
    from openmoe_production.data import Pipeline  # noqa: PLC0415
    from openmoe_production.streams import Settings  # noqa: PLC0415

    settings = Settings(
        mode=request.mode,
        seed=request.seed,
        inputs_length=request.inputs_length,
        targets_length=request.targets_length,
        vocabulary_size=vocabulary.size,
        prompts=vocabulary.modes,
        shuffle=request.shuffle,
        process=request.process,
        num_processes=request.processes,
    )
    return Pipeline(
        tasks,
        settings,
        batch_size=request.batch,
        vocabulary=vocabulary,
        threads=request.workers,
        ahead=request.ahead,
    )


def _read_state(path: Path | None) -> dict[str, Any] | None:
    if path is None or not path.exists():
        return None
    try:
        found = json_module.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, json_module.JSONDecodeError) as error:
        raise UsageError(f"{path}: is no state of a pipeline") from error
    if not isinstance(found, dict):
        raise UsageError(f"{path}: is no state of a pipeline")
    return found


def _write_state(path: Path | None, pipeline: Pipeline) -> None:
    files.write(path, lambda: json_module.dumps(pipeline.get_state()) + "\n")


def _explained(error: RejectedError, request: Request) -> str:
    """Return a refusal with the option that it is about."""
    options = {
        "state": f"--state {request.state}",
        "documents": ", ".join(map(str, request.paths)) or "--standard-library",
        "num_processes": "--processes",
        "rate": "--weight",
        "batch_size": "--batch",
    }
    if error.argument not in options:
        return opening.explained(error, request.inputs_length)
    name = options[error.argument]
    more = {
        "state": "; the files, the tokenizer and the options must be those it was made with",
        "documents": f" for process {request.process} of {request.processes}",
    }
    return f"{name}: {error.reason}{more.get(error.argument, '')}"


# ---- feeding -----------------------------------------------------------------------------------


def _run(request: Request, pipeline: Pipeline, to: Console) -> float:
    """Feed, leave the state of where it ended, however it did; return how long it took."""
    try:
        return _fed(request, pipeline, to)
    except KeyboardInterrupt:
        if request.state is None:
            raise
        raise UsageError(
            f"interrupted: the state was saved, --state {request.state} goes on from there"
        ) from None
    finally:
        _write_state(request.state, pipeline)
        pipeline.close()


def _fed(request: Request, pipeline: Pipeline, to: Console) -> float:
    """Feed until the tokens are reached; return how long it took.

    The state is written every second: who is stopped goes on from there.
    """
    columns = (TextColumn("feeding"), BarColumn(), TextColumn("{task.fields[rate]}"))
    start = written = time.perf_counter()
    with Progress(
        *columns, TimeRemainingColumn(), console=to, transient=True, disable=not to.is_terminal
    ) as bar:
        task = bar.add_task("feeding", total=request.tokens, rate="")
        while pipeline.statistics.tokens < request.tokens:
            next(pipeline)
            now = time.perf_counter()
            if now - written > 1:
                _write_state(request.state, pipeline)
                written = now
            rate = f"{pipeline.statistics.tokens / (now - start):,.0f} tokens/s"
            bar.update(task, completed=pipeline.statistics.tokens, rate=rate)
    return time.perf_counter() - start
