"""Section 7: experts of one token, of one token in two layers, and of neighbours.

Spec: AUDIT-10, AUDIT-12.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import combinations

import numpy as np
from numpy import ndarray

from openmoe_reference import audit_measures
from openmoe_tools.audit.counting.layout import REPETITION_COLUMNS
from openmoe_tools.audit.measures import figures
from openmoe_tools.audit.measures.drops import ALL
from openmoe_tools.audit.measures.figures import Made
from openmoe_tools.audit.measures.intervals import bootstrapped, ratios
from openmoe_tools.audit.measures.view import View

TEXT = (
    "Which experts a token takes together, which it takes in the next sparse layer, and whether the next token of the "
    "row takes the same. Not in the paper; co-activation is OLMoE's, repetition Mixtral's."
)


def section(view: View) -> Made:
    """Return the section."""
    shown = [_coactivation(view), _cross(view)]
    if view.has("positions"):  # without them nothing is known to be next to another
        shown += [_transition(view), _repetition(view)]
    return figures.section("neighbours", "Neighbours", TEXT, [one for one in shown if one])


def companions(view: View, layer: int) -> ndarray:
    """Return of each expert's tokens the part that takes another too, [E, E]. Spec: AUDIT-10."""
    tokens = view.whole(layer).sum(axis=-1)
    return audit_measures.coactivation_shares(view.arrays["coactivation"][layer], tokens)


def _coactivation(view: View) -> Made | None:
    k, experts = view.sizes.choices, view.sizes.experts
    if k < 2:
        return None

    def made(layer: int) -> Made:
        return figures.heatmap(
            view.experts,
            view.experts,
            companions(view, layer),
            ("expert", "with", "part of the expert's tokens"),
            centre=(k - 1) / (experts - 1),
            row_tokens=view.whole(layer).sum(axis=-1),
        )

    return figures.figure(
        view,
        "coactivation",
        "Experts taken together",
        "heatmap",
        f"Rows make K - 1 = {k - 1}. All pairs are counted: pairs of neighbours in rank alone would lose most of "
        "them where K is large.",
        panels=figures.by_layer(view, made),
        formula="N(i, j) / N(i)",
        clauses=["AUDIT-10"],
    )


def _shared_out(counts: ndarray) -> ndarray:
    """Return rows [E, E] as parts of their sums."""
    return ratios(counts, counts.sum(axis=1, keepdims=True))


def _cross(view: View) -> Made | None:
    pairs = list(combinations(range(view.sizes.layers), 2))
    if not pairs:
        return None

    def panels() -> Iterator[Made]:
        for number, (above, below) in enumerate(pairs):
            counts = view.arrays["cross_layer"][number]
            data = figures.heatmap(
                view.experts,
                view.experts,
                _shared_out(counts),
                (
                    f"expert in layer {view.layers[above]}",
                    f"expert in layer {view.layers[below]}",
                    "part of the row's pairs",
                ),
                centre=1 / view.sizes.experts,
                row_tokens=counts.sum(axis=1),
            )
            yield figures.panel(data, layers=f"{view.layers[above]} and {view.layers[below]}")

    return figures.figure(
        view,
        "cross_layer",
        "Experts of one token in two layers",
        "heatmap",
        "All K x K pairs of choices of a token. Rows make 1; the middle is 1/E.",
        panels=panels(),
        formula="N(i in l, j in m) / sum over j of N(i, j)",
        clauses=["AUDIT-10"],
    )


def _transition(view: View) -> Made:
    def made(layer: int) -> Made:
        counts = view.arrays["transition"][layer]
        return figures.heatmap(
            view.experts,
            view.experts,
            _shared_out(counts),
            ("first choice", "first choice of the next token", "part of the row"),
            centre=1 / view.sizes.experts,
            row_tokens=counts.sum(axis=1),
        )

    return figures.figure(
        view,
        "transition",
        "From one token to the next",
        "heatmap",
        "Neighbours in one row. Rows make 1; a bright diagonal is repetition, a bright column a loaded expert.",
        panels=figures.by_layer(view, made),
        formula="n(first choice i, then j) / n(i)",
        clauses=["AUDIT-12"],
    )


def _repetition(view: View) -> Made:
    chances = audit_measures.repetition_by_chance(view.sizes.choices, view.sizes.experts)
    measures = (("first", "same first choice"), ("meeting", "an expert in common"))

    def panels() -> Iterator[Made]:
        for (name, title), chance in zip(measures, chances, strict=True):
            column = REPETITION_COLUMNS.index(name)
            for layer, label in enumerate(view.layers):
                counts = view.arrays["repetition"][:, layer]
                drawn = view.arrays["replicate_repetition"][:, layer]
                whole = counts.sum(axis=0)
                ends = bootstrapped(
                    ratios(whole[column], whole[0]), ratios(drawn[:, column], drawn[:, 0]), most=1.0
                )
                unknown = np.full(view.sizes.slices, np.nan)
                data = figures.bars(
                    [ALL, *view.slices],
                    ratios(
                        np.append(whole[column], counts[:, column]),
                        np.append(whole[0], counts[:, 0]),
                    ),
                    ("slice", "part of neighbours"),
                    low=np.append(ends[0], unknown),
                    high=np.append(ends[1], unknown),
                    reference=("by chance, even loads", chance),
                )
                yield figures.panel(data, layer=label, measure=title)

    return figures.figure(
        view,
        "repetition",
        "Whether neighbours are routed alike",
        "bars",
        "Neighbours in one row, which are of one document. The interval (95 %) of all slices together is of the "
        "document bootstrap, which is not kept by slice. Uneven loads repeat themselves more than even ones do.",
        panels=panels(),
        formula="neighbours with the same first choice / neighbours; by chance 1/E, and 1 - C(E - K, K)/C(E, K)",
        clauses=["AUDIT-12", "AUDIT-26"],
    )
