"""`openmoe prepare`: a folder with everything that a preset needs to be trained.

A preset is a settings file of this package; that of fine-tuning is filled in with the model that it
begins with. The folder can be read, changed and moved.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

from rich.console import Console

from openmoe_conformance.outcome import UsageError
from openmoe_tools import conforming, files
from openmoe_tools.data import gathering, opening, questions, tokenizer
from openmoe_tools.runs.training import CONFIG
from openmoe_tools.terminal import console, say

COMMAND = "openmoe prepare"
PRESETS = Path(__file__).parents[1] / "presets"
TOKENIZER = "tokenizer.model"
FROM_TEXT, FROM_RUN = "small", "questions"
PIECES = 8000


@dataclass(frozen=True)
class Request:
    """The options of `openmoe prepare`.

    text  files and folders of a corpus of one's own; () for what is on the machine
    start the folder of the run that fine-tuning begins with
    """

    preset: str
    folder: Path
    text: tuple[Path, ...]
    megabytes: float | None
    start: Path | None


def prepare(request: Request) -> int:
    """Write text, tokeniser and settings of a preset into a folder; return 0. Errors: UsageError."""
    if request.preset not in {FROM_TEXT, FROM_RUN}:
        raise UsageError(f"{request.preset}: must be one of the presets {FROM_TEXT}, {FROM_RUN}")
    opening.require(COMMAND, "grain", "sentencepiece")
    config = request.folder / CONFIG
    if config.exists():
        raise UsageError(
            f"{config}: is there already; `openmoe train {request.folder}` goes on with it"
        )
    to = console()
    made = _from_text(request) if request.preset == FROM_TEXT else _from_run(request)
    _conclude(request, made, to)
    return 0


def _from_text(request: Request) -> dict[str, Any]:
    if request.start is not None:
        raise UsageError(f"--start: {FROM_TEXT} begins with fresh weights; {FROM_RUN} takes it")
    manifest = gathering.gather(
        request.folder,
        paths=request.text,
        megabytes=16.0 if request.megabytes is None else request.megabytes,
    )
    texts = _texts(request.folder / gathering.TRAIN)
    try:
        model = tokenizer.train(texts, vocabulary_size=PIECES, blanks=True, exact=False)
    except tokenizer.TokenizerError as error:
        raise UsageError(f"{request.folder / gathering.TRAIN}: {error}") from error
    files.write(request.folder / TOKENIZER, lambda: model)
    _write_config(request.folder, FROM_TEXT)
    return manifest


def _from_run(request: Request) -> dict[str, Any]:
    start = request.start
    if request.text or request.megabytes is not None:
        raise UsageError(
            f"--text and --megabytes: {FROM_RUN} asks about Python's own library alone"
        )
    if start is None:
        raise UsageError(f"{FROM_RUN}: needs --start FOLDER, a run that was trained")
    pieces = start / TOKENIZER
    if not (start / "checkpoints").is_dir() or not pieces.is_file():
        raise UsageError(
            f"--start {start}: must be a run's folder, with checkpoints and {TOKENIZER}"
        )
    model = _model_of(start)
    manifest = questions.write(request.folder)
    shutil.copyfile(pieces, request.folder / TOKENIZER)
    where = os.path.relpath(start.resolve(), request.folder.resolve())
    fields = [f"{name} = {_toml(value)}" for name, value in model.items() if value is not None]
    _write_config(request.folder, FROM_RUN, MODEL="\n".join(fields), START=_toml(where))
    return manifest


def _model_of(start: Path) -> dict[str, Any]:
    """Return the fields of the model that a run has trained. Errors: UsageError."""
    conforming.require_jax(f"{start}: a run's checkpoint")
    opening.require(f"{start}: a run's checkpoint", "orbax.checkpoint")
    from openmoe_production import checkpoints  # noqa: PLC0415 - an optional extra

    try:
        return dict(checkpoints.read_settings(start)["model"])
    except checkpoints.CheckpointError as error:
        raise UsageError(str(error)) from error


def _toml(value: Any) -> str:
    """Return a text, number or truth value as TOML has it, which is as JSON has it."""
    return json.dumps(value, ensure_ascii=False)


def _texts(path: Path) -> Sequence[str]:
    with path.open(encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def _write_config(folder: Path, preset: str, **values: str) -> None:
    """Write the settings last: where they are, everything else is."""
    text = (PRESETS / f"{preset}.toml").read_text(encoding="utf-8")
    filled = Template(text).substitute(values)
    files.write(folder / CONFIG, lambda: filled)


def _conclude(request: Request, made: dict[str, Any], to: Console) -> None:
    say(to, f"{COMMAND}: {request.preset}, in {request.folder}", "bold")
    for name, counts in made["files"].items():
        unit = "pairs" if "pairs" in counts else "parts"
        say(to, f"{name}: {counts[unit]:,} {unit}, {counts['bytes']:,} bytes")
    say(to, f"now: openmoe train {request.folder}")
