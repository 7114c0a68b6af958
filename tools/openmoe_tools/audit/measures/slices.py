"""Section 1: how far the routing of slices of the text differs. Spec: AUDIT-03, AUDIT-07, AUDIT-24."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_reference import audit, audit_inference
from openmoe_tools.audit.measures import figures
from openmoe_tools.audit.measures.figures import Made
from openmoe_tools.audit.measures.intervals import bootstrapped, total_variation
from openmoe_tools.audit.measures.view import View

TEXT = (
    "Each row is a slice of the text, each column an expert: the share of the slice's choices, by all "
    "ranks, before capacity. Even routing is 1/E everywhere. The paper drew these as radars for its third "
    "sparse layer and saw little by domain and more by natural language. How far a slice is from the whole "
    "text is told as total variation; the part of it that token ids do not explain is what is left when "
    "each id is given the shares it has in the whole text. An id that only one slice has is explained by "
    "construction."
)


class Shift(NamedTuple):
    """How far each slice [D] of a layer is from the whole: not-a-number where it has no token."""

    distance: ndarray
    low: ndarray
    high: ndarray
    unexplained: ndarray
    share: ndarray
    specialisation: ndarray


def shifts(view: View, layer: int) -> Shift:
    """Return the shifts of the slices in a layer. Spec: AUDIT-07, AUDIT-24, AUDIT-26."""
    counts = view.counts("slice", layer)
    explained = np.full((3, view.sizes.slices), np.nan)
    ids = view.arrays["slice_token"][:, view.seen]
    for number in np.flatnonzero(ids.sum(axis=1)):
        explained[:, number] = audit_inference.explained_by_tokens(
            ids[number], view.counts("token id", layer), counts[number]
        )
    drawn = view.arrays["replicate_slice"][:, :, layer]
    shares = audit.choice_shares(drawn)
    whole = audit.choice_shares(drawn.sum(axis=1))
    low, high = bootstrapped(explained[0], total_variation(shares, whole[:, None]), most=1.0)
    distance, unexplained, share = explained
    specialised = view.specialisation(counts, layer)
    return Shift(distance, low, high, unexplained, share, specialised)


def section(view: View) -> Made:
    """Return the section."""
    moved = [shifts(view, layer) for layer in range(view.sizes.layers)]
    return figures.section(
        "slices",
        "Slices of the text",
        TEXT,
        [
            _shares(view),
            _radar(view),
            _distance(view, moved),
            _unexplained(view, moved),
            _specialisation(view, moved),
            _table(view, moved),
        ],
    )


def _shares(view: View) -> Made:
    def made(layer: int) -> Made:
        return figures.heatmap(
            view.slices,
            view.experts,
            audit.choice_shares(view.counts("slice", layer)),
            ("slice", "expert", "share of choices"),
            centre=1 / view.sizes.experts,
            row_tokens=view.tokens(),
        )

    return figures.figure(
        view,
        "slice_shares",
        "Share of choices by slice and expert",
        "heatmap",
        "Rows make 1. The middle of the colours is even routing, 1/E.",
        panels=figures.by_layer(view, made),
        formula="R(s, e) = sum over ranks of n(s, e, r) / (K n(s))",
        clauses=["AUDIT-02", "AUDIT-03"],
        paper="Figures 5 to 8",
    )


def _radar(view: View) -> Made:
    def made(layer: int) -> Made:
        return figures.radar(
            view.experts,
            dict(
                zip(
                    view.slices,
                    audit.choice_shares(view.counts("slice", layer)),
                    strict=True,
                )
            ),
            1 / view.sizes.experts,
        )

    return figures.figure(
        view,
        "slice_radar",
        "The same in the paper's style",
        "radar",
        "The order of experts around the circle means nothing, and areas mislead: read the map above.",
        panels=figures.by_layer(view, made),
        formula="R(s, e) as above",
        clauses=["AUDIT-03"],
        paper="Figures 5 to 8",
    )


def _distance(view: View, moved: list[Shift]) -> Made:
    def made(layer: int) -> Made:
        one = moved[layer]
        return figures.bars(
            view.slices,
            one.distance,
            ("slice", "total variation"),
            low=one.low,
            high=one.high,
        )

    return figures.figure(
        view,
        "slice_distance",
        "Distance of each slice from the whole text",
        "bars",
        "0: routed as the whole text; 1: by other experts altogether. Intervals (95 %) are of the document "
        "bootstrap; none where a slice has few documents. Small slices are some way off by chance alone.",
        panels=figures.by_layer(view, made),
        formula="TV(s) = sum over e of |R(s, e) - R(e)| / 2",
        clauses=["AUDIT-24", "AUDIT-25", "AUDIT-26"],
    )


def _unexplained(view: View, moved: list[Shift]) -> Made:
    def made(layer: int) -> Made:
        one = moved[layer]
        return figures.bars(
            view.slices,
            one.share,
            ("slice", "part of the distance that token ids do not explain"),
            reference=("nothing explained", 1.0),
        )

    return figures.figure(
        view,
        "slice_unexplained",
        "How much of the distance token ids do not explain",
        "bars",
        "Near 0: the slice is routed as its token ids are everywhere. Of a small distance this is a quotient of "
        "two small numbers, and tells little.",
        panels=figures.by_layer(view, made),
        formula="TV(R(s), sum over v of p(v | s) R(v)) / TV(R(s), R)",
        clauses=["AUDIT-24"],
    )


def _specialisation(view: View, moved: list[Shift]) -> Made:
    def made(layer: int) -> Made:
        one = moved[layer]
        return figures.bars(view.slices, one.specialisation, ("slice", "specialisation"))

    return figures.figure(
        view,
        "slice_specialisation",
        "Specialisation of slices",
        "bars",
        "Spread of a slice's shares around those of the whole text, without what a finite number of tokens adds, "
        "as a part of the largest there is: 0 none, 1 one fixed set of experts.",
        panels=figures.by_layer(view, made),
        formula="sqrt(max(0, mean over e of (R(s, e) - R(e))^2 - noise)) / sqrt(1/(K E) - 1/E^2)",
        clauses=["AUDIT-07"],
    )


def _table(view: View, moved: list[Shift]) -> Made:
    columns = (
        "slice",
        "documents",
        "tokens",
        "distance",
        "low",
        "high",
        "not explained",
        "share not explained",
        "spread",
        "floor",
        "specialisation",
        "top expert",
        "its share",
    )
    documents = view.arrays["documents"].sum(axis=0)

    def rows(layer: int, one: Shift) -> list[list[object]]:
        counts = view.counts("slice", layer)
        shares, spread = audit.choice_shares(counts), audit.share_spread(counts)
        floor = audit.spread_floor(
            view.tokens(), k=view.sizes.choices, num_experts=view.sizes.experts
        )
        return [
            [
                name,
                documents[d],
                view.tokens()[d],
                one.distance[d],
                one.low[d],
                one.high[d],
                one.unexplained[d],
                one.share[d],
                spread[d],
                floor[d],
                one.specialisation[d],
                view.experts[int(shares[d].argmax())] if view.tokens()[d] else None,
                shares[d].max(),
            ]
            for d, name in enumerate(view.slices)
        ]

    def made(layer: int) -> Made:
        return figures.table(columns, rows(layer, moved[layer]))

    return figures.figure(
        view,
        "slice_table",
        "Slices in numbers",
        "table",
        "Spread is around 1/E; the floor is what chance alone gives so many tokens.",
        panels=figures.by_layer(view, made),
        formula="as above; spread = sqrt(mean over e of (R(s, e) - 1/E)^2)",
        clauses=["AUDIT-03", "AUDIT-04", "AUDIT-06", "AUDIT-07", "AUDIT-24", "AUDIT-26"],
    )
