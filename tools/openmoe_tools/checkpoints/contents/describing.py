"""`openmoe inspect` of a checkpoint: what it is, what its shapes say of the model, what is odd.

The report's schema is `contents.schema.json`, beside this file. Nothing but names, shapes and indices
is read, unless statistics are asked for. Spec: PARAM-01..PARAM-03, CKPT-04.
"""

from __future__ import annotations

import json as json_module
import math
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from openmoe_conformance.outcome import UsageError
from openmoe_spec import SPEC_VERSION, __version__
from openmoe_spec.config import PUBLISHED, Configuration
from openmoe_spec.parameters import parameters
from openmoe_tools import files, models
from openmoe_tools.checkpoints import settings, working
from openmoe_tools.checkpoints.containers import orbax, safetensors_files, t5x, torch_files
from openmoe_tools.checkpoints.containers.opening import RUN_STEPS, Checkpoint, open_checkpoint
from openmoe_tools.checkpoints.containers.stored import DTYPES, WEIGHTS, Incomplete, Unreadable
from openmoe_tools.checkpoints.contents import statistics
from openmoe_tools.checkpoints.contents.anomalies import anomalies
from openmoe_tools.checkpoints.contents.inferring import Model, infer
from openmoe_tools.checkpoints.contents.tables import plain, render
from openmoe_tools.checkpoints.verification.findings import folded, listed
from openmoe_tools.checkpoints.verification.structure import HEAD, PADDED, USED
from openmoe_tools.terminal import console

SCHEMA = "openmoe-contents/1"

_INDICES = (safetensors_files.INDEX, torch_files.INDEX)
_WHOLE = (t5x.INDEX, safetensors_files.WEIGHTS, torch_files.WEIGHTS, *_INDICES)
_ENDINGS = (".safetensors", ".bin", ".pt", ".pth")
_STEP = re.compile(r"(checkpoint_|step_)?\d+")
_OPTIMIZER = "optimizer"
_CONFIGURATIONS = (models.OWN_CONFIG, models.CONFIG)


@dataclass(frozen=True)
class Request:
    """The options of `openmoe inspect` for a checkpoint; jobs 0: one a core."""

    source: str
    every_layer: bool
    statistics: bool
    jobs: int
    json: Path | None


def is_checkpoint(source: str) -> bool:
    """Return whether a name is that of tensors, and not of a configuration."""
    path = Path(source)
    if source in PUBLISHED:
        return False
    if path.is_dir():
        return not any((path / one).is_file() for one in _CONFIGURATIONS) or _holds_tensors(path)
    return path.is_file() and (path.name in _WHOLE or path.suffix in _ENDINGS)


def _holds_tensors(folder: Path) -> bool:
    """Return whether a folder has what a checkpoint has, whole or not."""
    own = any((folder / name).is_file() for name in _WHOLE)
    if own or orbax.is_tree(folder) or orbax.item_of(folder) is not None:
        return True
    return any(
        orbax.ASIDE in one.name
        or (one.is_dir() and (one.name == RUN_STEPS or _STEP.fullmatch(one.name)))
        or (one.is_file() and one.suffix in _ENDINGS)
        for one in folder.iterdir()
    )


def inspect(request: Request) -> int:
    """Print the report and write it as JSON; return 0. Errors: UsageError."""
    path = Path(request.source)
    files.writable(request.json, read=(path,))
    try:
        made = build(request, _opened(path))
    except UsageError as error:
        error.args = (plain(str(error)),)  # a path need not be text that can be printed
        raise
    render(made, _page(), every_layer=request.every_layer)
    files.write(request.json, lambda: json_module.dumps(made, indent=1, allow_nan=False) + "\n")
    return 0


def _page() -> Console:
    """Return the terminal, or a page wide enough for two names a line."""
    found = console()
    return found if found.is_terminal else Console(width=200)


def _opened(path: Path) -> Checkpoint:
    try:
        return open_checkpoint(path)
    except Incomplete:
        raise
    except Unreadable as error:
        said = f"{path}: holds no checkpoint"
        if not str(error).startswith(said):
            raise
        told = str(error).replace(said, f"{path}: holds no {models.CONFIG} and no checkpoint")
        if (path / models.CONFIG).is_file():
            told = f"{error}; its configuration is {path / models.CONFIG}"
        near = sorted(one.name for one in path.iterdir() if one.suffix in _ENDINGS)
        raise UsageError(f"{told}; name {near[0]} itself" if near else told) from error


# ---- the report --------------------------------------------------------------------------------


def build(request: Request, opened: Checkpoint) -> dict[str, Any]:
    """Return the report as data. Errors: UsageError."""
    tensors = [_tensor(opened, name) for name in opened.tensors]
    model = infer({name: one.shape for name, one in opened.tensors.items()})
    order = {name: i for i, name in enumerate(model.shapes)}
    tensors.sort(key=lambda one: order.get(one["name"], len(order)))
    notes, problems = list(opened.notes), [*opened.found.problems, *model.problems]
    problems += _dtype_problems(opened)
    known, beside = _configuration(opened, model, problems)
    state = [opened.reader.tensors[name].size for name in opened.state]
    state += _optimizer(opened, notes)
    counted = Counter(one["dtype"] for one in tensors)
    size = model.sizes["vocabulary_size"]
    report = {
        "schema": SCHEMA,
        "spec_version": SPEC_VERSION,
        "version": __version__,
        "source": plain(request.source),
        "path": plain(str(opened.path)),
        "container": opened.reader.kind,
        "layout": {"name": opened.found.layout.name, "title": opened.found.layout.title},
        "step": opened.step,
        "files": _files(opened),
        "configuration": beside,
        "model": {
            "tensors": len(tensors),
            "parameters": sum(one["size"] for one in tensors),
            "bytes": sum(one["bytes"] for one in tensors),
            "dtypes": dict(counted),
        },
        "shape": {
            "num_layers": model.num_layers,
            "sparse_layers": list(model.sparse_layers),
            **model.sizes,
            "vocabulary_padding": PADDED - USED if size == PADDED else None,
            "output_head": HEAD in opened.tensors,
        },
        "published": model.published,
        "tensors": tensors,
        "unknown": [_unknown(opened, name) for name in opened.found.unknown],
        "lacking": [name for name in model.shapes if name not in opened.tensors],
        "optimizer_state": {"tensors": len(state), "bytes": sum(state)},
        "notes": [plain(one) for one in notes],
        "problems": [plain(one) for one in problems],
        "anomalies": None,
    }
    if request.statistics:
        head_dims = [] if known is None else [known.head_dim]
        _add_statistics(report, opened, request.jobs, head_dims)
    return report


def _add_statistics(
    report: dict[str, Any], opened: Checkpoint, jobs: int, head_dims: Sequence[int]
) -> None:
    total = report["model"]["bytes"]
    with working.bar(console(), "reading", total) as done:
        found = statistics.summaries(opened, jobs, done)
    for one in report["tensors"]:
        one["statistics"] = found[one["name"]].total.as_dict()
    report["anomalies"] = [
        asdict(one) | {"tensors": list(one.tensors)} for one in anomalies(found, head_dims)
    ]


def _tensor(opened: Checkpoint, name: str) -> dict[str, Any]:
    placed = opened.tensors[name]
    stored = [opened.reader.tensors[part.theirs] for part in placed.parts]
    size = math.prod(placed.shape)
    each = size // max(1, placed.shape[0]) if placed.parts[0].matrix is not None else size
    return {
        "name": name,
        "shape": list(placed.shape),
        "dtype": " and ".join(sorted({one.dtype for one in stored})),
        "size": size,
        "bytes": sum(each * DTYPES[one.dtype].itemsize for one in stored),
        "stored": [plain(one.name) for one in stored],
        "places": [plain(one) for one in opened.places(name)],
        "statistics": None,
    }


def _unknown(opened: Checkpoint, name: str) -> dict[str, Any]:
    one = opened.reader.tensors[name]
    return {
        "name": plain(name),
        "shape": list(one.shape),
        "dtype": one.dtype,
        "bytes": one.size,
        "place": plain(one.place),
    }


def _dtype_problems(opened: Checkpoint) -> Iterator[str]:
    """Yield tensors of dtypes that weights do not have, or of several."""
    for name, placed in opened.tensors.items():
        dtypes = sorted({opened.reader.tensors[part.theirs].dtype for part in placed.parts})
        if len(dtypes) > 1:
            yield f"{name}: its experts have dtypes {' and '.join(dtypes)}"
        for one in dtypes:
            if one not in WEIGHTS:
                yield f"{name}: is {one}, and weights are {', '.join(WEIGHTS)}"


def _optimizer(opened: Checkpoint, notes: list[str]) -> list[int]:
    """Return the bytes of each tensor of the optimizer's state that a step has beside the model's."""
    beside = opened.path.parent / _OPTIMIZER
    if opened.reader.kind != "orbax" or opened.path == beside or not orbax.is_tree(beside):
        return []
    try:
        return [one.size for one in orbax.Orbax(beside).tensors.values()]
    except Unreadable as error:
        notes.append(f"the optimizer's state is not read: {error}")
        return []


def _files(opened: Checkpoint) -> dict[str, int]:
    """Return how many files hold the checkpoint, and their bytes."""
    path, places = opened.path, {one.place for one in opened.reader.tensors.values()}
    if path.is_file():
        found = [path]
    elif opened.reader.kind in {"safetensors", "torch"}:
        found = [path / one for one in places]
    else:
        found = [one for one in path.rglob("*") if one.is_file()]
    return {"number": len(found), "bytes": sum(one.stat().st_size for one in found)}


def _configuration(
    opened: Checkpoint, model: Model, problems: list[str]
) -> tuple[Configuration | None, dict[str, Any] | None]:
    """Return the configuration that lies with the tensors, and whether it gives their shapes."""
    folder = opened.path.parent if opened.path.is_file() else opened.path
    beside = [folder / one for one in _CONFIGURATIONS if (folder / one).is_file()]
    try:
        known = settings.configuration(opened)
        wrong = [] if known is None else list(_mismatches(known, model))
    except UsageError as error:
        known, wrong = None, [str(error)]
    problems += wrong
    if known is None and not wrong:
        return None, None
    path = plain(str(beside[0])) if beside else None
    return known, {"path": path, "agrees": not wrong}


def _mismatches(known: Configuration, model: Model) -> Iterator[str]:
    wanted = {one.name: one.shape for one in parameters(known)}
    shapes: dict[tuple[str, str], list[str]] = {}
    for name, shape in wanted.items():
        ours = model.shapes.get(name, shape)
        if ours != shape:
            shapes.setdefault((str(list(shape)), str(list(ours))), []).append(name)
    for (theirs, ours_), names in shapes.items():
        yield f"the configuration gives {listed(folded(names))} shape {theirs}, the tensors {ours_}"
    absent = [name for name in wanted if name not in model.shapes]
    others = [name for name in model.shapes if name not in wanted]
    for names, verb in ((absent, "has"), (others, "does not have")):
        if names:
            yield f"the configuration {verb} {listed(folded(names))}, unlike the tensors"
