"""`openmoe inspect`: what a configuration amounts to, computed from numbers; nothing is allocated.

The report's schema is `inspect.schema.json`, beside this file.
Spec: CFG-01, CFG-04, PARAM-01..PARAM-04, GROUP-01..GROUP-11, OPT-02..OPT-04, DIAL-04.
"""

from __future__ import annotations

import json as json_module
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from openmoe_conformance.outcome import UsageError
from openmoe_reference import dialects as reference_dialects
from openmoe_reference import optimizer
from openmoe_reference.grouping import capacity_factor
from openmoe_spec import SPEC_VERSION, __version__, dialects
from openmoe_spec.config import PUBLISHED, Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.parameters import Counts, Parameter, count, parameters, sparse_layers
from openmoe_tools import files, models
from openmoe_tools.terminal import console, say

SCHEMA = "openmoe-inspection/1"

PRINTED: Mapping[str, tuple[str, str, str]] = {
    "base": ("650M", "339M", "142M"),
    "8b": ("8.7B", "2.6B", "2.1B"),
    "34b": ("34B", "6.8B", "6.0B"),
}
"""Table 11 of arXiv 2402.01739: parameters, activated with the embedding, activated."""

TRAINING_ROWS: Mapping[str, int] = {"base": 128, "8b": 128, "34b": 64}
"""Rows of one microbatch of the training runs (GROUP-11); of other configurations 1 is taken."""

MOST_LAYERS = 10_000
MOST_TOKENS = 2**26
"""Bounds of what is listed, and of the batch whose groups are searched for."""


@dataclass(frozen=True)
class Request:
    """The options of `openmoe inspect`; a batch size or length of None is the training run's."""

    source: str
    dialect: str
    batch: int | None
    length: int | None
    replicas: int
    every_layer: bool
    json: Path | None


def inspect(request: Request) -> int:
    """Print the report and write it as JSON; return 0. Errors: UsageError."""
    files.writable(request.json)
    made = build(request)
    render(made, console(), every_layer=request.every_layer)
    files.write(request.json, lambda: json_module.dumps(made, indent=1, allow_nan=False) + "\n")
    return 0


def build(request: Request) -> dict[str, Any]:
    """Return the report as data. Errors: UsageError."""
    try:
        choices = dialects.choices(request.dialect)
        model = models.configuration(request.source, request.dialect)
    except RejectedError as error:
        raise UsageError(f"--{error}") from error
    if model.num_layers > MOST_LAYERS:
        raise UsageError(
            f"{request.source}: has {model.num_layers:,} layers, and tables of at most "
            f"{MOST_LAYERS:,} are made"
        )
    doubled = choices["feed_forward"] == "cubic"
    tensors = parameters(model, doubled_gate=doubled)
    return {
        "schema": SCHEMA,
        "spec_version": SPEC_VERSION,
        "version": __version__,
        "source": request.source,
        "dialect": request.dialect,
        "configuration": asdict(model),
        "sparse_layers": list(sparse_layers(model.num_layers, model.num_moe_layers)),
        "parameters": [
            {"name": one.name, "shape": list(one.shape), "axes": list(one.axes), "size": one.size}
            for one in tensors
        ],
        "counts": _counts(request.source, model),
        "memory": _memory(tensors),
        "passes": _passes(request, model),
    }


def _counts(source: str, model: Configuration) -> dict[str, dict[str, Any]]:
    """Return the sizes as the code's tensors have them, as the paper counts, and as it prints."""
    published = source in PUBLISHED
    ours = count(PUBLISHED[source] if published else model)
    theirs = count(
        dialects.configuration("paper", source) if published else model, doubled_gate=False
    )
    printed: tuple[str | None, ...] = PRINTED.get(source, (None, None, None))
    names = ("total", "activated_with_vocabulary", "activated")
    return {
        "code": dict(zip(names, _three(ours, matrices=2), strict=True)),
        "paper": dict(zip(names, _three(theirs, matrices=1), strict=True)),
        "printed": dict(zip(names, printed, strict=True)),
    }


def _three(sizes: Counts, *, matrices: int) -> tuple[int, int, int]:
    """Return the three numbers of the paper's table with one or two vocabulary matrices."""
    without = sizes.total - (2 - matrices) * sizes.vocabulary
    return without, sizes.activated + matrices * sizes.vocabulary, sizes.activated


def _memory(tensors: Iterable[Parameter]) -> list[dict[str, Any]]:
    """Return bytes of weights in a dtype, of the optimizer's state, float32 always, and of both."""
    elements = sum(one.size for one in tensors)
    state = 4 * sum(_state_size(one) for one in tensors)
    return [
        {"dtype": name, "weights": width * elements, "optimizer_state": state}
        | {"both": width * elements + state}
        for name, width in (("float32", 4), ("bfloat16", 2))
    ]


def _state_size(tensor: Parameter) -> int:
    """Return the elements of a tensor's optimizer state, unused slots of one included (OPT-04)."""
    how = optimizer.factoring(tensor.shape, tensor.axes)
    if how.row is None or how.column is None:
        return tensor.size + 3
    return tensor.size // tensor.shape[how.row] + tensor.size // tensor.shape[how.column] + 2


def _passes(request: Request, model: Configuration) -> list[dict[str, Any]]:
    """Return groups and capacity of a training batch, an evaluation batch, and a decoding step."""
    length = model.max_length if request.length is None else request.length
    if length > model.max_length:
        raise UsageError(
            f"--length {length}: rows of {request.source} have at most {model.max_length} tokens "
            "(max_length)"
        )
    given = request.batch
    rows = TRAINING_ROWS.get(request.source, 1) if given is None else given
    shapes = (
        ("training", rows, length),
        ("evaluation", given or 1, length),
        ("decoding step", given or 1, 1),
    )
    return [_pass(request, model, *shape) for shape in shapes]


def _pass(
    request: Request, model: Configuration, name: str, rows: int, length: int
) -> dict[str, Any]:
    largest = max(rows * length, model.num_experts * request.replicas)
    if largest > MOST_TOKENS:
        raise UsageError(
            f"--batch, --length, --replicas: {largest:,} tokens, and groups of at most "
            f"{MOST_TOKENS:,} are computed; --batch is the rows of one microbatch"
        )
    steps = reference_dialects.steps(request.dialect)
    padded, groups = steps.groups(
        rows,
        length,
        max_group_size=model.max_group_size,
        num_experts=model.num_experts,
        num_expert_replicas=request.replicas,
    )
    tokens = math.prod(padded) // groups
    capacity = steps.capacity(
        tokens,
        num_experts=model.num_experts,
        capacity_factor=capacity_factor(
            training=name == "training",
            train_capacity_factor=model.train_capacity_factor,
            eval_capacity_factor=model.eval_capacity_factor,
        ),
        min_expert_capacity=model.min_expert_capacity,
        k=model.num_selected_experts,
    )
    choices = model.num_selected_experts * tokens
    return {
        "pass": name,
        "batch": [rows, length],
        "replicas": request.replicas,
        "padded": list(padded),
        "groups": groups,
        "tokens_per_group": tokens,
        "capacity": capacity,
        "most_kept": min(1.0, model.num_experts * min(capacity, tokens) / choices),
    }


# ---- printing ----------------------------------------------------------------------------------


def render(report: Mapping[str, Any], to: Console, *, every_layer: bool) -> None:
    """Print the whole report."""
    fields = report["configuration"]
    say(to, f"openmoe inspect: {fields['name']}, dialect {report['dialect']}", "bold")
    shown = _table("field", "value")
    for name, value in fields.items():
        shown.add_row(name, "none" if value is None else str(value))
    to.print(shown)
    say(to)
    to.print(_tensors(report, every_layer=every_layer))
    layers = report["sparse_layers"]
    say(to, f"\nMixture-of-experts layers, from 0: {', '.join(map(str, layers))}\n")
    _print_counts(report["counts"], to)
    shown = _table("memory in MB (10^6)", "float32", "bfloat16")
    for name in ("weights", "optimizer_state", "both"):
        shown.add_row(
            {"optimizer_state": "Adafactor state, float32"}.get(name, name),
            *(f"{row[name] / 1e6:,.2f}" for row in report["memory"]),
        )
    to.print(shown)
    say(to)
    heads = ("pass", "B x L", "R", "padded", "groups", "tokens a group", "capacity", "kept at most")
    shown = _table(*heads)
    for row in report["passes"]:
        batch, padded = (" x ".join(map(str, row[name])) for name in ("batch", "padded"))
        cells = (batch, row["replicas"], padded, row["groups"], row["tokens_per_group"])
        kept = f"{100 * row['most_kept']:.1f} % of choices"
        shown.add_row(row["pass"], *map(str, cells), str(row["capacity"]), kept)
    to.print(shown)


def _print_counts(counts: Mapping[str, Mapping[str, Any]], to: Console) -> None:
    shown = _table("elements", "as the code counts", "as the paper counts", "the paper prints")
    for name in counts["code"]:
        shown.add_row(
            name.replace("_", " "),
            f"{counts['code'][name]:,}",
            f"{counts['paper'][name]:,}",
            counts["printed"][name] or "-",
        )
    to.print(shown)
    say(
        to,
        "The code has two vocabulary matrices and gates of width 2F; the paper counts one and F "
        "(PARAM-04).\n",
        "dim",
    )


def _tensors(report: Mapping[str, Any], *, every_layer: bool) -> Table:
    shown = _table("tensor", "shape", "layers", "elements", left=("logical axes",))
    rows: dict[tuple[str, ...], list[int]] = {}
    for one in report["parameters"]:
        name = one["name"]
        if not every_layer:
            name = re.sub(r"layers_\d+", "layers_i", name)
        key = (name, str(one["shape"]), ", ".join(one["axes"]))
        rows.setdefault(key, []).append(one["size"])
    for (name, shape, axes), sizes in rows.items():
        shown.add_row(name, shape, str(len(sizes)), f"{sum(sizes):,}", axes)
    total = sum(one["size"] for one in report["parameters"])
    shown.add_row("total", "", str(len(report["parameters"])), f"{total:,}", "", style="bold")
    return shown


def _table(first: str, *right: str, left: tuple[str, ...] = ()) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (first, *right, *left):
        table.add_column(name, justify="right" if name in right else "left", no_wrap=True)
    return table
