"""`openmoe convert`: one container to another. The report's schema is `convert.schema.json`."""

from __future__ import annotations

import json as json_module
import re
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from openmoe_conformance.outcome import UsageError
from openmoe_spec import SPEC_VERSION, __version__, places
from openmoe_spec.config import PUBLISHED
from openmoe_spec.parameters import parameters
from openmoe_tools import files
from openmoe_tools.checkpoints import working
from openmoe_tools.checkpoints.containers.opening import Checkpoint, open_checkpoint
from openmoe_tools.checkpoints.containers.stored import Stored
from openmoe_tools.checkpoints.conversion import converting, planning
from openmoe_tools.checkpoints.conversion.converting import Converted
from openmoe_tools.checkpoints.conversion.planning import Plan
from openmoe_tools.checkpoints.verification import certificate
from openmoe_tools.checkpoints.verification.findings import listed
from openmoe_tools.checkpoints.working import Budget
from openmoe_tools.models import CONFIG
from openmoe_tools.terminal import console, say

SCHEMA = "openmoe-conversion/1"


@dataclass(frozen=True)
class Request:
    """The options of `openmoe convert`; `source` is a path, or with `dry_run` a published name."""

    source: str
    target: Path
    to: str
    step: int | None
    cast: str | None
    layout: str
    config: str | None
    shard_size: str
    memory: str
    jobs: int
    force: bool
    dry_run: bool
    json: Path | None


def convert(request: Request) -> int:
    """Carry out a conversion, or print its plan; return 0. Errors: UsageError."""
    if request.to not in planning.CONTAINERS:
        raise UsageError(f"--to {request.to}: must be one of {', '.join(planning.CONTAINERS)}")
    if request.layout not in planning.LAYOUTS:
        raise UsageError(f"--layout {request.layout}: must be one of {', '.join(planning.LAYOUTS)}")
    if request.layout != "port" and request.to != "hf":
        raise UsageError("--layout: is of a Hugging Face folder, and goes with --to hf alone")
    files.writable(request.json, read=(Path(request.source),))
    if not request.dry_run:
        converting.require_new(request.target)
    budget = Budget.of(working.memory(request.memory), request.jobs)
    to, begun = console(), time.monotonic()
    source = _source(request)
    plan = planning.plan(
        source,
        request.to,
        config=request.config,
        cast=request.cast,
        names=request.layout,
        shard_size=_size(request.shard_size),
        force=request.force,
    )
    _introduce(plan, request, to)
    if request.dry_run:
        _tensors(plan, to)
        say(
            to,
            f"\ndry run: {len(plan.tensors)} tensors, {plan.size / 1e9:.2f} GB; nothing was written",
        )
        made = None
    else:
        made = _carried_out(plan, request, budget, to)
    report = _report(plan, request, made, time.monotonic() - begun)
    files.write(request.json, lambda: json_module.dumps(report, indent=1, allow_nan=False) + "\n")
    return 0


def _size(text: str) -> int:
    try:
        found = working.size_of(text)
    except ValueError as error:
        raise UsageError(f"--shard-size {text}: is no size; write it as 5GB") from error
    if not found:
        raise UsageError(f"--shard-size {text}: must be more than nothing")
    return found


def _source(request: Request) -> Checkpoint:
    if request.source in PUBLISHED and not Path(request.source).exists():
        if not request.dry_run:
            raise UsageError(
                f"{request.source}: is a published configuration, of which only the plan can be shown: "
                "add --dry-run, or name a checkpoint"
            )
        return abstract(request.source)
    return open_checkpoint(Path(request.source), request.step)


class _Shapes:
    """The tensors of a published configuration, of which nothing is at hand."""

    kind = "abstract"

    def __init__(self, name: str) -> None:
        self.path = Path(name)
        self.notes: list[str] = []
        self.tensors = {
            one.name: Stored(one.name, one.shape, "float32", "nowhere")
            for one in parameters(PUBLISHED[name])
        }

    def read(self, name: str, region: places.Region) -> Any:
        raise UsageError(f"{self.path}: {name} {region}: no weights are at hand")

    def stream(self, name: str) -> None:
        del name


def abstract(name: str) -> Checkpoint:
    """Return a published configuration as a checkpoint without values, float32."""
    shapes = _Shapes(name)
    found = places.recognise({key: one.shape for key, one in shapes.tensors.items()})
    return Checkpoint(shapes.path, shapes, found)


def _introduce(plan: Plan, request: Request, to: Console) -> None:
    source = plan.source
    say(to, f"openmoe convert: {source.path} to {request.target}", "bold")
    step = "" if source.step is None else f", step {source.step}"
    say(to, f"source: {source.reader.kind}, {source.found.layout.title}{step}")
    what = {"hf": f"Hugging Face safetensors, {request.layout}", "t5x": "T5X", "orbax": "Orbax"}[
        plan.to
    ]
    shards = getattr(plan.writer, "headers", {})
    number = f", {len(shards)} files" if len(shards) > 1 else ""
    how = f", cast to {plan.cast}, to nearest, ties to even" if plan.cast else ""
    say(to, f"target: {what}{number}; {len(plan.tensors)} tensors, {plan.size / 1e9:.3f} GB{how}")
    for note in source.notes:
        say(to, f"note: {note}", "yellow")
    state = [name for name in plan.left_out if source.reader.tensors[name].of_state]
    others = [name for name in plan.left_out if name not in state]
    if state:
        say(to, f"left out: {len(state)} tensors of the optimizer", "yellow")
    if others:
        say(to, f"left out, since --force was given: {listed(others)}", "yellow")
    if CONFIG not in plan.files:
        say(
            to,
            f"note: no configuration is known, and no {CONFIG} is written; name one with --config",
            "yellow",
        )
    if plan.files:
        say(to, f"goes along: {', '.join(sorted(plan.files))}")


def _tensors(plan: Plan, to: Console) -> None:
    """Print what becomes of each kind of tensor."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("tensor", "layers", "there", "what is done", "shape there", "dtype", "MB"):
        table.add_column(
            name, justify="right" if name in {"layers", "MB"} else "left", no_wrap=True
        )
    kinds: dict[tuple[str, ...], list[str]] = {}
    for name, placed in plan.places.items():
        part = placed.parts[0]
        there, done = _kind(part.theirs), ", ".join(part.operations) or "as it is"
        out = plan.tensors[part.theirs]
        key = (
            _kind(name).removeprefix("decoder/"),
            there,
            done,
            " x ".join(map(str, out.shape)),
            out.dtype,
        )
        kinds.setdefault(key, []).append(name)
    for (name, there, done, shape, dtype), names in kinds.items():
        parts = [part.theirs for one in names for part in plan.places[one].parts]
        size = sum(plan.tensors[one].size for one in parts) / 1e6
        number = str(len(names)) if "layers_i" in name else ""
        cells = (name, number, there.removeprefix("model."), done, shape, dtype, f"{size:,.1f}")
        table.add_row(*map(Text, cells))
    to.print(table)


def _kind(name: str) -> str:
    """Return a name with i for its layer and e for its expert."""
    name = re.sub(r"layers([._])\d+", r"layers\g<1>i", name)
    return re.sub(r"experts\.\d+", "experts.e", name)


def _carried_out(plan: Plan, request: Request, budget: Budget, to: Console) -> Converted:
    total = sum(plan.source.size(name) for name in plan.places)
    try:
        with (
            working.bar(to, "writing", total) as written,
            working.bar(to, "reading again", plan.size) as reread,
        ):
            made = converting.convert(plan, request.target, budget, written=written, reread=reread)
    except KeyboardInterrupt as error:
        raise UsageError(
            f"{request.target}: interrupted; the same command goes on where it was, and nothing has the "
            "final name yet"
        ) from error
    again = f"; {made.resumed} of them were done before" if made.resumed else ""
    say(to, f"written and read again: {len(made.digests)} tensors{again}", "green")
    say(to, f"model digest {made.model_digest}")
    say(
        to,
        f"now: openmoe verify {request.source} {request.target}"
        + (f" --cast {plan.cast}" if plan.cast else ""),
    )
    return made


def _report(plan: Plan, request: Request, made: Converted | None, seconds: float) -> dict[str, Any]:
    return {
        "schema": SCHEMA,
        "spec_version": SPEC_VERSION,
        "version": __version__,
        "source": str(plan.source.path),
        "container": plan.source.reader.kind,
        "layout": plan.source.found.layout.name,
        "step": plan.source.step,
        "target": str(request.target),
        "to": plan.to,
        "target_layout": plan.writer.layout,
        "cast": plan.cast,
        "mapping_digest": certificate.mapping_digest(),
        "tensors": [
            {
                "name": name,
                "shape": list(placed.shape),
                "stored": [part.theirs for part in placed.parts],
                "operations": list(placed.parts[0].operations),
                "dtype": plan.dtype(name),
                "sha256": None if made is None else made.digests[name],
            }
            for name, placed in plan.places.items()
        ],
        "bytes": plan.size,
        "files": sorted(plan.files),
        "left_out": list(plan.left_out),
        "dry_run": made is None,
        "model_digest": None if made is None else made.model_digest,
        "resumed": 0 if made is None else made.resumed,
        "seconds": round(seconds, 3),
    }
