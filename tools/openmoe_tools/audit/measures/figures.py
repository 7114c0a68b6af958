"""What the parts of a report are made of: figures, panels, and data of each kind, ready for JSON.

`report.schema.json` describes them. Numbers are rounded to six digits; what is not known is null.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_tools.audit.measures.view import View

Made = dict[str, Any]
DIGITS = 6


def number(value: Any) -> int | float | None:
    """Return a number as JSON has it, or null where it is not finite or none."""
    if value is None:
        return None
    if isinstance(value, (int, np.integer)):
        return int(value)
    exact = float(value)
    return float(f"{exact:.{DIGITS}g}") if math.isfinite(exact) else None


def numbers(values: Any) -> Any:
    """Return numbers in lists, however deep."""
    if isinstance(values, ndarray):
        return numbers(values.tolist())
    if isinstance(values, (list, tuple)):
        return [numbers(one) for one in values]
    return number(values)


def percent(value: Any, digits: int = 1) -> str:
    """Return a share as text."""
    found = number(value)
    return "unknown" if found is None else f"{100 * found:.{digits}f} %"


def figure(
    view: View,
    identifier: str,
    title: str,
    kind: str,
    caption: str,
    *,
    panels: Iterable[Made],
    formula: str,
    clauses: Sequence[str],
    paper: str | None = None,
) -> Made:
    """Return a figure; its SQL is of the layer that the verdict is about."""
    return {
        "id": identifier,
        "title": title,
        "kind": kind,
        "caption": caption,
        "formula": formula,
        "clauses": list(clauses),
        "paper": paper,
        "query": view.query(identifier),
        "panels": list(panels),
    }


def section(identifier: str, title: str, text: str, figures: Iterable[Made]) -> Made:
    """Return a section."""
    return {"id": identifier, "title": title, "text": text, "figures": list(figures)}


def panel(data: Made, **keys: str) -> Made:
    """Return a panel; keys, as `layer`, become selectors."""
    return {"keys": {name: str(one) for name, one in keys.items()}, "data": data}


def by_layer(view: View, made: Callable[[int], Made]) -> list[Made]:
    """Return a panel for each layer, of what `made` makes of the layer's place."""
    return [panel(made(layer), layer=name) for layer, name in enumerate(view.layers)]


def heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    values: ndarray,
    titles: tuple[str, str, str],
    *,
    centre: float | None = None,
    row_tokens: ndarray | None = None,
    most: float | None = None,
) -> Made:
    """Return a heatmap, values [rows, columns]; its colours go from 0 to `most`, or the largest."""
    known = values[np.isfinite(values)]
    largest = float(known.max()) if known.size else 1.0
    return {
        "rows": list(rows),
        "columns": list(columns),
        "values": numbers(values),
        "low": 0.0,
        "high": number(most if most is not None else max(largest, centre or 0.0) or 1.0),
        "centre": number(centre),
        "row_tokens": None if row_tokens is None else numbers(row_tokens),
        "row_title": titles[0],
        "column_title": titles[1],
        "value_title": titles[2],
    }


def series(
    name: str,
    y: Any,
    style: str = "data",
    *,
    low: Any = None,
    high: Any = None,
) -> Made:
    """Return a line; style: data, floor, bound, mean."""
    return {
        "name": name,
        "style": style,
        "y": numbers(y),
        "low": None if low is None else numbers(low),
        "high": None if high is None else numbers(high),
    }


def level(name: str, value: float, length: int, style: str = "bound") -> Made:
    """Return a line that has one value throughout."""
    return series(name, [value] * length, style)


def lines(
    x: Any,
    drawn: Iterable[Made],
    titles: tuple[str, str],
    *,
    log_x: bool = False,
    tokens: ndarray | None = None,
) -> Made:
    """Return lines over one x, with a strip of bars of tokens below where these are given."""
    return {
        "x": numbers(x),
        "x_title": titles[0],
        "y_title": titles[1],
        "log_x": log_x,
        "series": list(drawn),
        "tokens": None if tokens is None else numbers(tokens),
    }


def curve(name: str, style: str, x: Any, y: Any) -> Made:
    """Return a curve of a figure of points."""
    return {"name": name, "style": style, "x": numbers(x), "y": numbers(y)}


def points(
    x: Any,
    y: Any,
    labels: Sequence[str],
    titles: tuple[str, str],
    curves: Iterable[Made],
    *,
    log_x: bool = False,
    twin: tuple[Sequence[str], Sequence[Sequence[Any]]] | None = None,
) -> Made:
    """Return points with curves, and a fuller table beside them."""
    return {
        "x": numbers(x),
        "y": numbers(y),
        "labels": list(labels),
        "x_title": titles[0],
        "y_title": titles[1],
        "log_x": log_x,
        "curves": list(curves),
        "columns": None if twin is None else list(twin[0]),
        "rows": None if twin is None else [list(row) for row in twin[1]],
    }


def bars(
    labels: Sequence[str],
    values: Any,
    titles: tuple[str, str],
    *,
    low: Any = None,
    high: Any = None,
    reference: tuple[str, float] | None = None,
) -> Made:
    """Return bars, with the ends of intervals and a line to compare with where these are given."""
    return {
        "labels": list(labels),
        "values": numbers(values),
        "low": None if low is None else numbers(low),
        "high": None if high is None else numbers(high),
        "reference": (
            None if reference is None else {"name": reference[0], "value": number(reference[1])}
        ),
        "x_title": titles[0],
        "y_title": titles[1],
    }


def radar(axes: Sequence[str], rows: Mapping[str, ndarray], reference: float) -> Made:
    """Return a radar: values by axis for each name."""
    return {
        "axes": list(axes),
        "series": [{"name": name, "values": numbers(values)} for name, values in rows.items()],
        "reference": number(reference),
    }


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]]) -> Made:
    """Return a table; cells are text, numbers, or null."""
    return {"columns": list(columns), "rows": [[cell(one) for one in row] for row in rows]}


def cell(value: Any) -> str | int | float | None:
    """Return what stands in a cell."""
    return value if isinstance(value, str) else number(value)
