"""What recorded choices would lose under other capacities and groups. Spec: AUDIT-18, AUDIT-20."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from openmoe_tools.audit.counting.layout import DROP_COLUMNS, POSITION_BINS, WhatIf
from openmoe_tools.audit.measures import figures
from openmoe_tools.audit.measures.figures import Made
from openmoe_tools.audit.measures.intervals import ratios
from openmoe_tools.audit.measures.view import View

FIRST, ANY = DROP_COLUMNS.index("first"), DROP_COLUMNS.index("any")
LIMIT = (
    "A replay keeps the choices that were recorded: under another capacity other tokens would pass an expert, and "
    "every deeper layer would see other inputs. Only the first sparse layer's replay is what a run would show."
)


def replays(view: View) -> list[Made]:
    """Return the figures of replays; none where nothing was replayed."""
    if not view.sizes.what_if or not view.arrays["what_if"].any():
        return []
    return [_by_factor(view), _by_position(view)]


def _by_factor(view: View) -> Made:
    what = view.sizes.what_if
    factors = sorted({one.factor for one in what})
    kinds = list(dict.fromkeys((one.priority, one.group_size) for one in what))

    def made(layer: int) -> Made:
        counts = view.arrays["what_if"][:, :, layer].sum(axis=1)  # [W, 5]
        found = dict(zip(what, ratios(counts[:, ANY], counts[:, 0]), strict=True))
        drawn = [
            figures.series(
                f"{priority}, groups of {size:,}",
                [_of(found, priority, size, one) for one in factors],
            )
            for priority, size in kinds
        ]
        return figures.lines(factors, drawn, ("capacity factor", "tokens with a dropped choice"))

    return figures.figure(
        view,
        "what_if",
        "Dropped under other capacities",
        "lines",
        "Capacities follow the training code's rule, max(round(factor T / E), least), with no factor K. Priorities: "
        "`choices`: all first choices before all second ones, as in training; `tokens`: token by token; `gates`: as "
        f"`choices`, the largest first gate first. {LIMIT}",
        panels=figures.by_layer(view, made),
        formula="replay of recorded choices: a choice with C of its expert before it in its group is dropped",
        clauses=["AUDIT-18", "AUDIT-20"],
    )


def _of(found: dict[WhatIf, float], priority: str, size: int, factor: float) -> float | None:
    chosen = (
        ratio
        for one, ratio in found.items()
        if (one.priority, one.group_size, one.factor) == (priority, size, factor)
    )
    return next(chosen, None)


def _by_position(view: View) -> Made:
    places, starts = np.unique(view.bins(), return_index=True)

    def panels() -> Iterator[Made]:
        for number, one in enumerate(view.sizes.what_if):
            for layer, label in enumerate(view.layers):
                counts = view.arrays["what_if"][number, places, layer]
                drawn = [
                    figures.series(name, ratios(counts[:, column], counts[:, 0]))
                    for name, column in (("first choice", FIRST), ("any choice", ANY))
                ]
                data = figures.lines(
                    starts,
                    drawn,
                    (f"position; capacity {one.capacity}", "share of tokens"),
                    tokens=counts[:, 0],
                )
                yield figures.panel(
                    data,
                    layer=label,
                    priority=one.priority,
                    groups_of=str(one.group_size),
                    factor=f"{one.factor:g}",
                )

    return figures.figure(
        view,
        "what_if_by_position",
        "The same by position in the row",
        "lines",
        f"By {POSITION_BINS}ths of a row. {LIMIT}",
        panels=panels(),
        formula="as above, by position",
        clauses=["AUDIT-18", "AUDIT-20"],
    )
