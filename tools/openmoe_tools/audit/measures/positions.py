"""Section 3: positions. Spec: AUDIT-04 to AUDIT-07."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from openmoe_reference import audit
from openmoe_tools.audit.measures import figures
from openmoe_tools.audit.measures.figures import Made
from openmoe_tools.audit.measures.view import View

APART, TOGETHER = 8, 5
"""Parts of a row at whose ends positions are shown, and neighbours that are."""


def section(view: View) -> Made:
    """Return the section."""
    text = (
        "The same for positions in the row. Position 0 is the start token, whose one id is always routed alike, so "
        "that it has the largest spread there is. In the paper the other positions lie a little above a line at 0; "
        "with as many tokens as there are rows, chance alone gives the floor that is drawn here."
    )
    if not view.has("positions"):
        return figures.section(
            "positions", "Positions", "The source does not tell positions: not recorded.", []
        )
    return figures.section(
        "positions",
        "Positions",
        text,
        [_spread(view), _debiased(view), _map(view)],
    )


def _floor(view: View, tokens: ndarray) -> ndarray:
    return audit.spread_floor(tokens, k=view.sizes.choices, num_experts=view.sizes.experts)


def _spread(view: View) -> Made:
    def made(layer: int) -> Made:
        counts = view.counts("position", layer)
        tokens = audit.tokens_of(counts)
        mean = audit.mean_spread(counts)
        most = audit.largest_spread(view.sizes.choices, view.sizes.experts)
        return _lines(
            tokens,
            [
                figures.series("spread", audit.share_spread(counts)),
                figures.series("floor: chance alone", _floor(view, tokens), "floor"),
                figures.level("mean", mean, len(tokens), "mean"),
                figures.level("largest possible", most, len(tokens)),
            ],
        )

    return figures.figure(
        view,
        "position_spread",
        "Spread of the experts' shares by position",
        "lines",
        f"Mean: of positions with more than {audit.NUM_TOKENS_FILTER} tokens, each once.",
        panels=figures.by_layer(view, made),
        formula="std(p) = sqrt(mean over e of (R(p, e) - 1/E)^2); floor(n) = sqrt((K/E)(1 - K/E)/n)/K",
        clauses=["AUDIT-04", "AUDIT-05", "AUDIT-06"],
        paper="Figure 13",
    )


def _debiased(view: View) -> Made:
    def made(layer: int) -> Made:
        counts = view.counts("position", layer)
        tokens = audit.tokens_of(counts)
        around = audit.debiased_spread(counts, shares=view.shares(layer))
        even = audit.debiased_spread(counts)
        kept = tokens > audit.NUM_TOKENS_FILTER
        mean = float(even[kept].mean()) if kept.any() else np.nan
        return _lines(
            tokens,
            [
                figures.series("around 1/E", even),
                figures.series("around the shares of the whole text", around),
                figures.level("mean around 1/E", mean, len(tokens), "mean"),
            ],
        )

    return figures.figure(
        view,
        "position_debiased",
        "Spread by position without the floor",
        "lines",
        "Around 1/E the load of the whole text shows in every position; around its shares only what the position "
        "adds. 0: nothing but chance.",
        panels=figures.by_layer(view, made),
        formula="sqrt(max(0, std(p)^2 - sum over e of p (1 - p) / (E (n - 1) K^2))), p = K R(p, e)",
        clauses=["AUDIT-05", "AUDIT-07"],
    )


def _lines(tokens: ndarray, drawn: list[Made]) -> Made:
    return figures.lines(
        np.arange(len(tokens)), drawn, ("position", "spread of shares"), tokens=tokens
    )


def _map(view: View) -> Made:
    length = view.sizes.length
    step = max(length // APART, 1)
    shown = np.unique([*range(0, length, step), *range(step, min(step + TOGETHER, length))])

    def made(layer: int) -> Made:
        counts = view.counts("position", layer)[shown]
        return figures.heatmap(
            [str(one) for one in shown],
            view.experts,
            audit.choice_shares(counts),
            ("position", "expert", "share of choices"),
            centre=1 / view.sizes.experts,
            row_tokens=audit.tokens_of(counts),
        )

    return figures.figure(
        view,
        "position_shares",
        "Share of choices at some positions",
        "heatmap",
        "Positions an eighth of a row apart, and some that follow each other.",
        panels=figures.by_layer(view, made),
        formula="R(p, e) = sum over ranks of n(p, e, r) / (K n(p))",
        clauses=["AUDIT-03"],
        paper="Figure 9",
    )
