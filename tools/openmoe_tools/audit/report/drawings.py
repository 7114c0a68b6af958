"""Plots of a report by matplotlib, in the looks of the page: marks and dashes tell what colours do."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter
from numpy import ndarray

from openmoe_tools.audit.report.markup import UNKNOWN, number, spelt

Data = Mapping[str, Any]

_COLOURS = (
    *("#0b62c4", "#b84a00", "#00775a", "#a8328f"),
    *("#7a6200", "#007d9e", "#c2185b", "#4d4d4d"),
)
_MARKS = "os^DvX+"
_DASHES = ("-", "--", ":", "-.", (0, (8, 2)), (0, (4, 1, 1, 1)), (0, (1, 2)))
_GREY: Mapping[str, Any] = {"floor": "--", "bound": ":", "mean": "-."}
_BELOW, _LEVEL, _ABOVE, _SOFT = "#8a3a00", "#f1f3f5", "#083c94", "#59636e"
_MOST_LABELS, _LONGEST = 40, 28


def _short(value: object) -> str:
    shown = spelt(str(value))
    return shown if len(shown) <= _LONGEST else f"{shown[: _LONGEST - 1]}…"


def _known(values: Sequence[float | None] | None) -> ndarray:
    """Return numbers, not-a-number for what is not known."""
    return np.array([np.nan if one is None else one for one in values or ()], dtype=np.float64)


def _plain(axes: Axes, data: Data) -> None:
    """Set titles and grid, and log numbers as such: powers would need the markup of formulas."""
    axes.set_xlabel(_short(data["x_title"]))
    axes.set_ylabel(_short(data["y_title"]))
    axes.grid(visible=True)
    if data.get("log_x"):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value)))
        axes.xaxis.set_minor_formatter(NullFormatter())


def _few(axes: Axes, labels: Sequence[str], *, upright: bool) -> None:
    """Name places along an axis, every second or so where there are many."""
    every = -(-len(labels) // _MOST_LABELS) or 1
    places, names = range(0, len(labels), every), [_short(one) for one in labels[::every]]
    if upright:
        axes.set_yticks(places, names)
    else:
        slanted = max(map(len, names), default=0) > 4
        axes.set_xticks(
            places, names, rotation=60 if slanted else 0, ha="right" if slanted else "center"
        )


def _legend(axes: Axes) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1.0), fontsize=7)


def heatmap(figure: Figure, data: Data) -> None:
    """Draw a heatmap; what is not known is hatched."""
    rows, columns = len(data["rows"]), len(data["columns"])
    figure.set_size_inches(min(2.4 + 0.26 * columns, 12), min(1.3 + 0.24 * rows, 14))
    axes = figure.subplots()
    values = np.array([_known(row) for row in data["values"]]).reshape(rows, columns)
    if not values.size:
        axes.text(0.5, 0.5, "Nothing is known here.", ha="center", color=_SOFT)
        return
    low, high, centre = data["low"], data["high"], data["centre"]
    if centre is None:
        scale, colours = Normalize(low, high), [_LEVEL, _ABOVE]
    else:  # as strong is as far from the middle, on either side
        room = max(high - centre, centre - low) or 1.0
        scale, colours = Normalize(centre - room, centre + room), [_BELOW, _LEVEL, _ABOVE]
    axes.patch.set(hatch="////", facecolor="white", edgecolor="#b0b7be")
    shown = axes.imshow(
        np.ma.masked_invalid(values),
        cmap=LinearSegmentedColormap.from_list("page", colours),
        norm=scale,
        aspect="auto",
        interpolation="nearest",
    )
    _few(axes, data["rows"], upright=True)
    _few(axes, data["columns"], upright=False)
    axes.set_xlabel(_short(data["column_title"]))
    axes.set_ylabel(_short(data["row_title"]))
    bar = figure.colorbar(shown, ax=axes, label=spelt(data["value_title"]))
    bar.ax.set_ylim(low, high)


def lines(figure: Figure, data: Data) -> None:
    """Draw lines with bands, and a strip of tokens below where these are known."""
    x = _known(data["x"])
    if data["tokens"] is None:
        axes = figure.subplots()
    else:
        axes, strip = figure.subplots(
            2, sharex=True, gridspec_kw={"height_ratios": (5, 1), "hspace": 0.12}
        )
    colours = cycle(zip(range(56), _COLOURS * 7, strict=True))
    for one in data["series"]:
        _line(axes, x, one, colours)
    _plain(axes, data)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    _legend(axes)
    if data["tokens"] is not None:
        axes.set_xlabel("")
        tokens = _known(data["tokens"])
        strip.fill_between(x, 0, tokens, step="mid", color=_COLOURS[0], alpha=0.5, linewidth=0)
        strip.set(ylabel="tokens", xlabel=_short(data["x_title"]), ylim=(0, None))
        strip.yaxis.set_major_locator(MaxNLocator(2))


def _line(axes: Axes, x: ndarray, one: Mapping[str, Any], colours: Any) -> None:
    y, name = _known(one["y"]), _short(one["name"])
    if one["style"] != "data":
        axes.plot(x, y, color=_SOFT, linestyle=_GREY[one["style"]], label=name)
        return
    place, colour = next(colours)
    axes.plot(
        x,
        y,
        color=colour,
        linestyle=_DASHES[place % len(_DASHES)],
        marker=_MARKS[place % len(_MARKS)],
        markevery=max(1, len(x) // 24),
        label=name,
    )
    if one["low"] is not None and one["high"] is not None:
        low, high = _known(one["low"]), _known(one["high"])
        axes.fill_between(x, low, high, color=colour, alpha=0.16, linewidth=0)


def points(figure: Figure, data: Data) -> None:
    """Draw points and curves."""
    axes = figure.subplots()
    x, y = _known(data["x"]), _known(data["y"])
    size = 4 if len(x) > 400 else 10
    # Thousands of points are one picture in a PDF; lines and letters stay what they are.
    axes.scatter(x, y, s=size, color=_COLOURS[0], alpha=0.5, linewidths=0, rasterized=len(x) > 400)
    for one in data["curves"]:
        colour = _COLOURS[0] if one["style"] == "data" else "#1c2128"
        style, name = _GREY.get(one["style"], "-"), _short(one["name"])
        axes.plot(_known(one["x"]), _known(one["y"]), linestyle=style, label=name, color=colour)
    _plain(axes, data)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    _legend(axes)


def bars(figure: Figure, data: Data) -> None:
    """Draw bars with intervals; long names stand beside bars that lie."""
    labels, values = data["labels"], _known(data["values"])
    lying = len(labels) <= _MOST_LABELS and any(len(one) > 5 for one in labels)
    width = 6.4 if lying else min(max(6.4, 0.24 * len(labels)), 12)
    figure.set_size_inches(width, 1.1 + 0.2 * len(labels) if lying else 2.8)
    axes, places = figure.subplots(), np.arange(len(labels))
    spread = None
    if data["low"] is not None and data["high"] is not None:
        # An end that is not known, or beyond the value, has no whisker.
        ends = np.stack([values - _known(data["low"]), _known(data["high"]) - values])
        spread = np.where(np.isfinite(ends), np.maximum(ends, 0), 0)
    look: dict[str, Any] = {"color": _COLOURS[0], "alpha": 0.75, "ecolor": "#1c2128", "capsize": 2}
    filled = np.nan_to_num(values)
    if lying:
        axes.barh(places, filled, xerr=spread, **look)
        axes.invert_yaxis()
        axes.set(xlabel=_short(data["y_title"]))
    else:
        axes.bar(places, filled, yerr=spread, **look)
        axes.set(xlabel=_short(data["x_title"]), ylabel=_short(data["y_title"]))
    _few(axes, labels, upright=lying)
    axes.grid(visible=True, axis="x" if lying else "y")
    for place in np.flatnonzero(np.isnan(values)).tolist():
        told = {"va": "center"} if lying else {"ha": "center", "rotation": 90}
        axes.text(
            *((0, place) if lying else (place, 0)), f" {UNKNOWN}", fontsize=6, color=_SOFT, **told
        )
    reference = data["reference"]
    if reference is not None and reference["value"] is not None:
        line = axes.axvline if lying else axes.axhline
        line(reference["value"], color="#1c2128", linestyle="--", label=_short(reference["name"]))
        _legend(axes)


def radar(figure: Figure, data: Data) -> None:
    """Draw a radar, as the paper has them, without its filled areas."""
    figure.set_size_inches(5.2, 4.2)
    axes = figure.add_subplot(projection="polar")
    number_of = len(data["axes"])
    turns = np.linspace(0, 2 * np.pi, number_of, endpoint=False)
    closed = np.append(turns, turns[:1])
    for place, one in enumerate(data["series"]):
        values = _known(one["values"])
        axes.plot(
            closed,
            np.append(values, values[:1]),
            color=_COLOURS[place % len(_COLOURS)],
            linestyle=_DASHES[place % len(_DASHES)],
            marker=_MARKS[place % len(_MARKS)],
            markersize=2.5,
            linewidth=1,
            label=_short(one["name"]),
        )
    if data["reference"] is not None:
        around = np.full(len(closed), data["reference"])
        axes.plot(closed, around, color="#1c2128", linestyle="--", linewidth=1, label="even")
    every = -(-number_of // _MOST_LABELS) or 1
    axes.set_xticks(turns[::every], [_short(one) for one in data["axes"][::every]])
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.tick_params(labelsize=6)
    axes.set(theta_zero_location="N", theta_direction=-1)
    axes.legend(loc="upper left", bbox_to_anchor=(1.1, 1.0), fontsize=7)


KINDS: Mapping[str, Callable[[Figure, Data], None]] = {
    "heatmap": heatmap,
    "lines": lines,
    "points": points,
    "bars": bars,
    "radar": radar,
}
