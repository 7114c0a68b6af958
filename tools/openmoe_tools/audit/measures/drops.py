"""Section 4: choices that found no slot. Spec: AUDIT-16 to AUDIT-20.

A row's parts are those of POSITION_BINS, because the bootstrap knows no others; where a row has no
more positions than that, each position is a part.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_tools.audit.counting.layout import DROP_COLUMNS, GROUP_BINS, POSITION_BINS
from openmoe_tools.audit.measures import chance, figures
from openmoe_tools.audit.measures.figures import Made
from openmoe_tools.audit.measures.intervals import bootstrapped, ratios
from openmoe_tools.audit.measures.replays import replays
from openmoe_tools.audit.measures.view import View

ALL = "all"
ANY = DROP_COLUMNS.index("any")
NAMES = {
    "first": "first choice",
    "second": "second choice",
    "any": "any choice",
    "all": "every choice",
}
TEXT = (
    "A choice is dropped where its expert has no slot left in the token's capacity group. First choices stand "
    "before second ones, so these are dropped first; the paper's single ratio says of neither which it is. What "
    "shares a group decides as much as the model: `t5x` cuts a batch into groups as the training code does, "
    "`torch_port` takes a whole call as one, as the published port that the paper's figure 12 was recorded with. "
    "The strip below the lines has the tokens: later positions have fewer, of the longer documents only. A slice's last call is filled up with its rows again, which take slots and "
    "are not counted."
)


class Even(NamedTuple):
    """Drop ratios of the first and the last quarter, of routing by chance; and their difference's error."""

    first: float
    last: float
    error: float

    @property
    def difference(self) -> float:
        """Return how much more queues alone drop at the end."""
        return self.last - self.first


class Ends(NamedTuple):
    """Drop ratios (any choice) of the first and the last quarter of rows.

    first, last, tokens    ratios, and the tokens that they are of
    replicates  float64 [B] differences, last less first
    chance      of routing by chance under the same rule; None: not known
    """

    first: float
    last: float
    tokens: tuple[int, int]
    replicates: ndarray
    chance: Even | None

    @property
    def difference(self) -> float:
        """Return how much more is dropped at the end."""
        return self.last - self.first


def ends(view: View, rule: int, layer: int) -> Ends:
    """Return how the ends of rows differ under a rule, all slices together. Spec: AUDIT-16, AUDIT-26."""
    quarter = POSITION_BINS // 4
    parts = (slice(0, quarter), slice(POSITION_BINS - quarter, POSITION_BINS))
    table = view.binned(view.arrays["drop"][rule, :, :, layer].sum(axis=0))  # [bins, 5]
    weighed = view.arrays["replicate_drop"][:, rule, :, :, layer].sum(axis=1)  # [B, bins, 5]
    found = [table[part].sum(axis=0) for part in parts]
    again = [weighed[:, part].sum(axis=1) for part in parts]
    first, last = (float(ratios(one[ANY], one[0])) for one in found)
    replicates = ratios(again[1][:, ANY], again[1][:, 0]) - ratios(again[0][:, ANY], again[0][:, 0])
    drawn = chance.drops(view, rule)
    even = None
    if drawn is not None and all(drawn[part, 0].sum() for part in parts):
        sums = [drawn[part].sum(axis=0) for part in parts]
        shares = [float(one[ANY] / one[0]) for one in sums]
        errors = [p * (1 - p) / int(one[0]) for p, one in zip(shares, sums, strict=True)]
        even = Even(shares[0], shares[1], math.sqrt(sum(errors)))
    return Ends(first, last, (int(found[0][0]), int(found[1][0])), replicates, even)


def section(view: View) -> Made:
    """Return the section."""
    if not view.sizes.rules or not view.has("drops"):
        told = "The source does not tell which choices were dropped, nor in which groups: not recorded."
        return figures.section("drops", "Dropped choices", told, replays(view))
    return figures.section(
        "drops",
        "Dropped choices",
        TEXT,
        [
            _by_position(view),
            _in_group(view),
            _statistics(view),
            *replays(view),
            *([_lost(view)] if view.has("gates") else []),
            *([_first(view)] if view.has("groups") else []),
        ],
    )


def by_rule(view: View) -> Iterator[tuple[int, str, int, str]]:
    """Yield rules and layers, by place and by name."""
    for rule, name in enumerate(view.sizes.rules):
        for layer, label in enumerate(view.layers):
            yield rule, name, layer, label


def _by_position(view: View) -> Made:
    def panels() -> Iterator[Made]:
        for rule, name, layer, label in by_rule(view):
            table = view.binned(view.arrays["drop"][rule, :, :, layer], axis=1)  # [D, bins, 5]
            drawn = view.arrays["replicate_drop"][:, rule, :, :, layer]  # [B, D, bins, 5]
            chosen = [(ALL, table.sum(axis=0), drawn.sum(axis=1))] + [
                (one, table[d], drawn[:, d]) for d, one in enumerate(view.slices)
            ]
            for slice_name, counts, replicates in chosen:
                data = _drop_lines(view, counts, replicates, chance.drops(view, rule))
                yield figures.panel(data, rule=name, layer=label, slice=slice_name)

    exact = (
        "Each position is by itself."
        if view.sizes.length <= POSITION_BINS
        else (f"Each point is a {POSITION_BINS}th of a row, placed at its first position.")
    )
    return figures.figure(
        view,
        "drop_by_position",
        "Dropped by position in the row",
        "lines",
        f"{exact} Bands are 95 % intervals of the document bootstrap; none where documents are few. "
        "The floor is what the rule drops where every expert is as likely: who stands later in a queue loses more.",
        panels=panels(),
        formula="tokens at p of which the choice (first, second, any, every) has no slot / tokens at p",
        clauses=["AUDIT-16", "AUDIT-19", "AUDIT-26"],
        paper="Figure 12",
    )


def _drop_lines(view: View, counts: ndarray, replicates: ndarray, even: ndarray | None) -> Made:
    """Return lines of the kinds of drops, by parts of a row: counts [bins, 5], replicates [B, bins, 5]."""
    places, starts = np.unique(view.bins(), return_index=True)
    counts, replicates = counts[places], replicates[:, places]
    found = ratios(counts[:, 1:], counts[:, :1])
    low, high = bootstrapped(found, ratios(replicates[..., 1:], replicates[..., :1]), most=1.0)
    drawn = [
        figures.series(NAMES[name], found[:, i], low=low[:, i], high=high[:, i])
        for i, name in enumerate(DROP_COLUMNS[1:])
        if not (name == "second" and view.sizes.choices < 2)
    ]
    if even is not None:
        by_chance = ratios(even[places, ANY], even[places, 0])
        drawn.append(figures.series("any choice, routing by chance", by_chance, style="floor"))
    return figures.lines(starts, drawn, ("position", "share of tokens"), tokens=counts[:, 0])


def _in_group(view: View) -> Made:
    def panels() -> Iterator[Made]:
        for rule, name, layer, label in by_rule(view):
            counts = view.arrays["drop_in_group"][rule, :, layer]
            found = ratios(counts[:, 1:], counts[:, :1])
            data = figures.lines(
                np.arange(GROUP_BINS) / GROUP_BINS,
                [
                    figures.series(NAMES[one], found[:, i])
                    for i, one in enumerate(DROP_COLUMNS[1:])
                    if not (one == "second" and view.sizes.choices < 2)
                ],
                ("place in the group, as a part of it", "share of tokens"),
                tokens=counts[:, 0],
            )
            yield figures.panel(data, rule=name, layer=label)

    return figures.figure(
        view,
        "drop_in_group",
        "Dropped by place in the group",
        "lines",
        "The queue is the group, not the row: where groups are shorter than rows, drops rise towards the end of "
        "each group, and a curve by position shows what is left of that.",
        panels=panels(),
        formula="as above, by index in the group",
        clauses=["AUDIT-16", "AUDIT-19"],
    )


def _statistics(view: View) -> Made:
    columns = (
        *("tokens", "first choice", "second choice", "any choice", "every choice"),
        *("any, first quarter of rows", "any, last quarter", "difference", "low", "high"),
    )

    def panels() -> Iterator[Made]:
        for rule, name in enumerate(view.sizes.rules):
            rows = []
            for layer, label in enumerate(view.layers):
                counts = view.arrays["drop"][rule, :, :, layer].sum(axis=(0, 1))
                one = ends(view, rule, layer)
                low, high = bootstrapped(np.array(one.difference), one.replicates, least=-1.0)
                parts = ratios(counts[1:], counts[0])
                rows.append(
                    [label, counts[0], *parts, one.first, one.last, one.difference, low, high]
                )
            yield figures.panel(figures.table(("layer", *columns), rows), rule=name)

    described = "; ".join(
        f"{name}: {', '.join(f'{k} {v}' for k, v in view.rule(name).items() if k != 'name')}"
        for name in view.sizes.rules
    )
    return figures.figure(
        view,
        "drop_statistics",
        "Dropped choices in numbers",
        "table",
        f"All slices. Rules: {described}.",
        panels=panels(),
        formula="any(last quarter of positions) - any(first quarter)",
        clauses=["AUDIT-16", "AUDIT-26"],
    )


def _lost(view: View) -> Made:
    def panels() -> Iterator[Made]:
        for rule, name, layer, label in by_rule(view):
            sums = view.arrays["lost_gate"][rule, :, layer]  # [D, 2]
            sums = np.concatenate([sums.sum(axis=0, keepdims=True), sums])
            data = figures.bars(
                [ALL, *view.slices],
                ratios(sums[:, 0], sums[:, 1]),
                ("slice", "part of all gates that dropped choices had"),
            )
            yield figures.panel(data, rule=name, layer=label)

    return figures.figure(
        view,
        "lost_gate",
        "Lost gate mass",
        "bars",
        "How much of the mixture is missing from the layer's output.",
        panels=panels(),
        formula="sum of gates of dropped choices / sum of gates of all choices",
        clauses=["AUDIT-17"],
    )


def _first(view: View) -> Made:
    labels = [f"{100 * one / GROUP_BINS:.0f} %" for one in range(GROUP_BINS)] + ["none"]

    def panels() -> Iterator[Made]:
        for rule, name, layer, label in by_rule(view):
            counts = view.arrays["first_drop"][rule, layer]
            data = figures.bars(labels, counts, ("place of the first drop in the group", "groups"))
            yield figures.panel(data, rule=name, layer=label)

    return figures.figure(
        view,
        "first_drop",
        "Where groups begin to overflow",
        "bars",
        "Groups by the place of the first token with a dropped choice, as a part of the group.",
        panels=panels(),
        formula="groups by min over t of t / T where a choice of t has no slot",
        clauses=["AUDIT-16"],
    )
