"""Section 5: how early the routing was what it became, and what fine-tuning changed.

Spec: AUDIT-09, AUDIT-15, AUDIT-23.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy import ndarray

from openmoe_reference import audit
from openmoe_tools.audit.counting.layout import DROP_COLUMNS
from openmoe_tools.audit.measures import figures, pairs
from openmoe_tools.audit.measures.figures import Made
from openmoe_tools.audit.measures.intervals import bootstrapped, ratios
from openmoe_tools.audit.measures.view import View

IDS = 4
"""Ids whose routing is shown over checkpoints: those with most tokens."""
ANY = DROP_COLUMNS.index("any")


def section(view: View) -> Made | None:
    """Return the section; none where one checkpoint was audited alone."""
    if view.pairs is None:
        return None
    kinds = {one["kind"] for one in view.checkpoints}
    text = (
        "Every checkpoint saw the same tokens as the audited one, which is last. The paper shows two ids whose routing "
        "hardly moves from its first checkpoint on, at a fifth of the training; here it is all tokens: the part of "
        "the audited checkpoint's choices that an earlier one makes too."
    )
    shown = [_saturation(view), _divergence(view), _relabelling(view)]
    if pairs.STEP in kinds:
        shown.append(_early(view))
    shown.append(_over_time(view))
    if pairs.OTHER in kinds:
        shown.append(_drift(view))
    if view.sizes.rules and tables_have_drops(view):
        shown.append(_drops(view))
    return figures.section("checkpoints", "Checkpoints", text, shown)


def tables_have_drops(view: View) -> bool:
    """Return whether drops of the checkpoints were counted."""
    return bool(pairs.tables(view)["checkpoint_drop"].any())


def _labels(view: View) -> list[str]:
    return [str(one["label"]) for one in view.checkpoints]


def _each(view: View, measure: Callable[[View, int, int], float]) -> ndarray:
    """Return a measure of a pair, by checkpoint and layer."""
    return np.array(
        [
            [measure(view, c, layer) for layer in range(view.sizes.layers)]
            for c in range(len(view.checkpoints))
        ]
    )


def _saturation(view: View) -> Made:
    k, experts = view.sizes.choices, view.sizes.experts
    tokens = pairs.tables(view)["agreement"][:, 0, pairs.TOKENS]

    def data(values: ndarray, chance: float, title: str) -> Made:
        return figures.heatmap(
            _labels(view),
            view.layers,
            values,
            ("checkpoint", "layer", f"{title}; by chance {figures.number(chance)}"),
            centre=chance,
            row_tokens=tokens,
            most=1.0,
        )

    panels = [
        figures.panel(
            data(pairs.saturations(view), k / experts, "shared choices"), agreement="choices"
        ),
        figures.panel(
            data(pairs.agreements(view), 1 / experts, "same first choice"),
            agreement="first choice",
        ),
    ]
    return figures.figure(
        view,
        "saturation",
        "Agreement with the audited checkpoint",
        "heatmap",
        f"Choices: experts that both choose, over K; by chance K/E = {k / experts:.4g}. First choice: by chance 1/E = "
        f"{1 / experts:.4g}, which is the middle of the colours.",
        panels=panels,
        formula="mean over tokens of |experts of c and experts of the audited one| / K",
        clauses=["AUDIT-09"],
    )


def _divergence(view: View) -> Made:
    values = _each(view, pairs.divergence)
    data = figures.heatmap(
        _labels(view), view.layers, values, ("checkpoint", "layer", "divergence in bits")
    )
    return figures.figure(
        view,
        "token_divergence",
        "Distance of the tables of ids",
        "heatmap",
        "0: each id is routed as in the audited checkpoint; 1 bit: to other experts. It needs no tokens in common.",
        panels=[figures.panel(data)],
        formula="sum over v of n(v) JS(R(v), R'(v)) / sum over v of n(v)",
        clauses=["AUDIT-15"],
    )


def _relabelling(view: View) -> Made:
    def rows() -> Iterator[list[object]]:
        for c, label in enumerate(_labels(view)):
            for layer, name in enumerate(view.layers):
                one = pairs.relabelled(view, c, layer)
                wins = "yes" if one.wins else "no"
                yield [label, name, wins, one.moved, one.kept, one.best]

    columns = ("checkpoint", "layer", "numbers win", "experts moved")
    data = figures.table((*columns, "overlap as numbered", "best overlap"), rows())
    return figures.figure(
        view,
        "relabelling",
        "Whether experts keep their numbers",
        "table",
        "Of two checkpoints of one run the unchanged numbers have to win. Where they do not, one of them has its "
        "experts in another order, or hardly any specialisation.",
        panels=[figures.panel(data)],
        formula="max over permutations of the sum over e, v of min(n(v, e), n'(v, pi(e)))",
        clauses=["AUDIT-15"],
    )


def _early(view: View) -> Made:
    chosen = [
        c
        for c, one in enumerate(view.checkpoints)
        if one["kind"] in {pairs.STEP, pairs.AUDITED} and one["step"] is not None
    ]
    chosen.sort(key=lambda c: view.checkpoints[c]["step"])
    steps = [view.checkpoints[c]["step"] for c in chosen]
    k, experts = view.sizes.choices, view.sizes.experts

    def made(layer: int) -> Made:
        shared = pairs.saturations(view)[chosen, layer]
        low, high = bootstrapped(shared, pairs.replicated(view)[:, chosen, layer], most=1.0)
        moved = [pairs.transfer(view, c, layer) for c in chosen]
        drawn = [
            figures.series("shared choices", shared, low=low, high=high),
            figures.series("same first choice", pairs.agreements(view)[chosen, layer]),
            figures.series("first choices told by the table of ids", [m.accuracy for m in moved]),
            figures.series("told without ids", [m.baseline for m in moved], "floor"),
            figures.level("shared by chance, K/E", k / experts, len(steps)),
            figures.level("first by chance, 1/E", 1 / experts, len(steps)),
        ]
        positive = all(one > 0 for one in steps)
        return figures.lines(steps, drawn, ("step", "share"), log_x=positive)

    return figures.figure(
        view,
        "early_learning",
        "How early routing is learned",
        "lines",
        "The table of ids of each checkpoint is of one half of the documents, and is asked about the audited "
        "checkpoint's first choices in the other half. The band is a 95 % interval of the document bootstrap.",
        panels=figures.by_layer(view, made),
        formula="saturation, first-choice agreement and held-out hits over steps",
        clauses=["AUDIT-09", "AUDIT-23", "AUDIT-26"],
        paper="Figure 11",
    )


def _over_time(view: View) -> Made:
    most = view.frequent(IDS).tolist()
    table = pairs.tables(view)["checkpoint_token"]

    def panels() -> Iterator[Made]:
        for layer, name in enumerate(view.layers):
            for identifier in most:
                counts = table[:, :, identifier, layer].sum(axis=1, dtype=np.int64)
                data = figures.heatmap(
                    _labels(view),
                    view.experts,
                    audit.choice_shares(counts),
                    ("checkpoint", "expert", "share of choices"),
                    centre=1 / view.sizes.experts,
                    row_tokens=audit.tokens_of(counts),
                )
                shown = f"{identifier}: {view.label(identifier)}"
                yield figures.panel(data, layer=name, token=shown)

    return figures.figure(
        view,
        "token_over_checkpoints",
        "The most frequent ids over checkpoints",
        "heatmap",
        f"The {len(most)} ids with most tokens.",
        panels=panels(),
        formula="R(v, e) of each checkpoint",
        clauses=["AUDIT-03"],
        paper="Figure 11",
    )


def _drift(view: View) -> Made:
    chosen = [c for c, one in enumerate(view.checkpoints) if one["kind"] == pairs.OTHER]

    def made(layer: int) -> Made:
        shared = pairs.saturations(view)[:, layer]
        low, high = bootstrapped(shared, pairs.replicated(view)[:, :, layer], most=1.0)
        rows = []
        for c in chosen:
            told = pairs.transfer(view, c, layer)
            apart = pairs.divergence(view, c, layer)
            first = pairs.agreements(view)[c, layer]
            rows.append(
                [
                    *(_labels(view)[c], shared[c], low[c], high[c], first, apart),
                    *(told.accuracy, told.baseline),
                ]
            )
        columns = ("checkpoint", "shared choices", "low", "high", "same first choice")
        more = ("divergence in bits", "told by its table of ids", "told without ids")
        return figures.table((*columns, *more), rows)

    return figures.figure(
        view,
        "drift",
        "What other training changed",
        "table",
        "Checkpoints that are not of the audited one's steps, as one before or after fine-tuning.",
        panels=figures.by_layer(view, made),
        formula="as above",
        clauses=["AUDIT-09", "AUDIT-15", "AUDIT-23"],
        paper="Figure 12b",
    )


def _drops(view: View) -> Made:
    places, starts = np.unique(view.bins(), return_index=True)
    table = pairs.tables(view)["checkpoint_drop"]  # [C, R, bins, L, 5]

    def panels() -> Iterator[Made]:
        for rule, name in enumerate(view.sizes.rules):
            for layer, label in enumerate(view.layers):
                counts = table[:, rule, places, layer]
                drawn = [
                    figures.series(one, ratios(counts[c, :, ANY], counts[c, :, 0]))
                    for c, one in enumerate(_labels(view))
                ]
                data = figures.lines(
                    starts,
                    drawn,
                    ("position", "tokens with a dropped choice"),
                    tokens=counts[-1, :, 0],
                )
                yield figures.panel(data, rule=name, layer=label)

    return figures.figure(
        view,
        "drop_by_checkpoint",
        "Dropped by position, by checkpoint",
        "lines",
        "Tokens of which any choice has no slot.",
        panels=panels(),
        formula="any(p) of each checkpoint",
        clauses=["AUDIT-16", "AUDIT-19"],
        paper="Figure 12b",
    )
