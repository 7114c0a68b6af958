"""The report of `openmoe inspect` of a checkpoint, on a terminal or as plain lines."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from openmoe_spec.config import PUBLISHED
from openmoe_tools.checkpoints.contents.statistics import Moments
from openmoe_tools.checkpoints.verification.findings import folded, ranges
from openmoe_tools.terminal import say


def plain(text: str) -> str:
    """Return a text that any terminal prints as it is: what is not printable is escaped."""
    return "".join(
        one if one.isprintable() else one.encode("unicode_escape").decode("ascii") for one in text
    )


def render(report: Mapping[str, Any], to: Console, *, every_layer: bool) -> None:
    """Print the whole report."""
    say(to, f"openmoe inspect: {report['source']}", "bold")
    to.print(_facts(report))
    say(to)
    to.print(_tensors(report, to.width, every_layer=every_layer))
    if report["anomalies"] is not None:
        say(to)
        to.print(_statistics(report["tensors"], every_layer=every_layer))
    unknown = [f"{one['name']} {one['shape']} {one['dtype']}" for one in report["unknown"]]
    _lines(to, "Tensors of no OpenMoE model", unknown, every_layer)
    lacking = report["lacking"] if every_layer else list(folded(report["lacking"]))
    _lines(to, "Lacking, by the names of PARAM-01", lacking, every_layer)
    _lines(to, "Problems", report["problems"], every_layer)
    if report["anomalies"] is not None:
        told = [one["text"] for one in report["anomalies"]]
        _lines(to, "Odd values", told or ["none"], every_layer)
    path = (report["configuration"] or {}).get("path")
    if path is not None:
        say(to, f"\nFor the configuration: openmoe inspect {path}", "dim")


_SHOWN = 20
_WIDE = 130
"""Columns of a terminal on which two names stand beside each other."""


def _lines(to: Console, title: str, lines: Sequence[str], every_line: bool) -> None:
    if not lines:
        return
    say(to, f"\n{title}", "bold")
    shown = lines if every_line else lines[:_SHOWN]
    for one in shown:
        say(to, f"  {one}")
    if len(lines) > len(shown):
        say(to, f"  and {len(lines) - len(shown):,} more (--all)")


def _facts(report: Mapping[str, Any]) -> Table:
    model, shape, state = report["model"], report["shape"], report["optimizer_state"]
    shown = Table(box=None, pad_edge=False, show_header=False)
    shown.add_column(no_wrap=True)
    shown.add_column(overflow="fold")

    def add(name: str, text: str) -> None:
        shown.add_row(name, Text(text))

    def size(name: str) -> str:
        return "unknown" if shape[name] is None else f"{shape[name]:,}"

    number, files_bytes = report["files"]["number"], _bytes(report["files"]["bytes"])
    add("container", f"{report['container']}, {number:,} file{'s'[: number != 1]}, {files_bytes}")
    if report["path"] != report["source"]:
        add("read", report["path"])
    add("layout", f"{report['layout']['name']}: {report['layout']['title']}")
    if report["step"] is not None:
        add("step", f"{report['step']:,}")
    dtypes = ", ".join(f"{name} ({n})" for name, n in model["dtypes"].items())
    add("tensors", f"{model['tensors']:,} of the model, {model['parameters']:,} parameters")
    add("weights", f"{_bytes(model['bytes'])}: {dtypes}")
    held = f"{state['tensors']:,} tensors, {_bytes(state['bytes'])}"
    add("optimizer state", held if state["tensors"] else "none")
    add("published size", report["published"] or "none of " + ", ".join(PUBLISHED))
    padding = shape["vocabulary_padding"]
    rows = f", of which the last {padding} are padding" if padding else ""
    add("vocabulary", size("vocabulary_size") + rows)
    head = "there, not tied to the embedding"
    add(
        "output head", head if shape["output_head"] else "lacking; OpenMoE's is not tied (PARAM-01)"
    )
    sparse = shape["sparse_layers"]
    told = f"{len(sparse)} sparse: {ranges(sparse)}" if sparse else "none sparse"
    add("layers", f"{shape['num_layers']}, {told}")
    widths = f"D {size('embed_dim')}, F {size('mlp_dim')}, heads x width {size('query_width')}"
    if shape["key_value_width"] != shape["query_width"]:
        widths += f", of keys and values {size('key_value_width')}"
    if sparse:
        widths += f"; {size('num_experts')} experts, F {size('expert_mlp_dim')}"
    add("widths", widths)
    for note in report["notes"]:
        add("note", note)
    return shown


def _tensors(report: Mapping[str, Any], width: int, *, every_layer: bool) -> Table:
    groups = _groups(report["tensors"], every_layer=every_layer)
    pairs = {key: _stored(ones, every_layer=every_layer) for key, ones in groups.items()}
    named = any(key[0] != stored for key, stored in pairs.items())
    named = named and (every_layer or width >= _WIDE)
    shown = _table("tensor", "shape", "dtype", "layers", "bytes")
    if named:
        shown.add_column("stored as", overflow="fold")
    several = every_layer and report["container"] in {"safetensors", "torch"}
    several = several and report["files"]["number"] > 1
    if several:
        shown.add_column("in", overflow="fold")
    for key, ones in groups.items():
        name, shape, dtype = key
        cells = [name, shape, dtype, str(len(ones)), f"{sum(one['bytes'] for one in ones):,}"]
        cells += [pairs[key]] if named else []
        cells += [", ".join(ones[0]["places"])] if several else []
        shown.add_row(*map(Text, cells))
    model = report["model"]
    shown.add_row("total", "", "", str(model["tensors"]), f"{model['bytes']:,}", style="bold")
    return shown


def _groups(
    tensors: Iterable[dict[str, Any]], *, every_layer: bool
) -> dict[tuple[str, str, str], list[dict[str, Any]]]:
    """Return tensors by name, shape and dtype, those of several layers under one name."""
    groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
    for one in tensors:
        name = one["name"] if every_layer else _folded(one["name"])
        groups.setdefault((name, str(one["shape"]), one["dtype"]), []).append(one)
    return groups


def _folded(name: str) -> str:
    return re.sub(r"layers([_.])\d+", r"layers\1i", name)


def _stored(ones: Sequence[dict[str, Any]], *, every_layer: bool) -> str:
    """Return the stored names of tensors as one, with {e} for experts that lie apart."""
    first = ones[0]["stored"]
    name: str = first[0] if len(first) == 1 else re.sub(r"experts\.\d+", "experts.{e}", first[0])
    return name if every_layer else _folded(name)


def _statistics(tensors: Sequence[dict[str, Any]], *, every_layer: bool) -> Table:
    shown = _table("tensor", "minimum", "maximum", "mean", "deviation", "zeros", "not finite")
    for (name, *_), ones in _groups(tensors, every_layer=every_layer).items():
        moments = Moments()
        for one in ones:
            moments.merge(Moments.of(one["statistics"], one["size"]))
        numbers = (moments.minimum, moments.maximum, moments.mean, moments.deviation)
        told = [f"{x:.4g}" if moments.finite else "-" for x in numbers]
        counts = (moments.zeros, moments.nan + moments.infinite)
        shown.add_row(*map(Text, [name, *told, *(f"{n:,}" for n in counts)]))
    return shown


def _table(first: str, *right: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (first, *right):
        table.add_column(name, justify="left" if name == first else "right", no_wrap=True)
    return table


def _bytes(number: int) -> str:
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if number >= size:
            return f"{number / size:,.2f} {unit}"
    return f"{number} bytes"
