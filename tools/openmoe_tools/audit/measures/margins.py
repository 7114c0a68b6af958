"""Section 8: how sure routers are. Spec: AUDIT-14; M of the losses as LOSS-01 and LOSS-05 have them."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy import ndarray

from openmoe_reference import audit_measures
from openmoe_tools.audit.counting.layout import ENTROPY_BINS, FIXED_POINT, GATE_BINS, SQUARES_POINT
from openmoe_tools.audit.counting.routed import ORDER, SELECTION
from openmoe_tools.audit.measures import figures
from openmoe_tools.audit.measures.drops import ALL
from openmoe_tools.audit.measures.figures import Made
from openmoe_tools.audit.measures.intervals import ratios
from openmoe_tools.audit.measures.view import View

ORDINALS = ("first", "second", "third", "fourth", "fifth", "sixth", "seventh", "eighth")
LEAST = 2.0**-25
"""Where code 0, margins below 2^-24, is drawn."""


def section(view: View) -> Made:
    """Return the section."""
    text = (
        "A margin is the distance between two router logits: of the last choice and the best expert that was not "
        "chosen, which decides who is chosen, and of the first two, which decides their order. Where it is below the "
        "step of bfloat16, another arithmetic may choose otherwise. Not in the paper."
    )
    shown = []
    if view.has("margins"):
        shown += [_margins(view), _ties(view)]
    if view.has("gates"):
        shown.append(_gates(view))
    if view.arrays["entropy"].any():
        shown.append(_entropy(view))
    if view.has("probabilities"):
        shown.append(_losses(view))
    if not shown:
        text = "The source tells experts alone: margins, gates and probabilities are not recorded."
    return figures.section("margins", "Margins, gates, losses", text, shown)


def kinds(view: View) -> dict[int, str]:
    """Return the margins that there are, by their place in the table."""
    k = view.sizes.choices
    told = {} if view.fixed else {SELECTION: f"choice {k} and the next"}
    if view.sizes.experts > 1 and not (k == 1 and told):
        told[ORDER] = "first and second"
    return told


def near_ties(view: View, kind: int, layer: int) -> float | None:
    """Return the part of tokens with a margin below the step; none where no margin is known."""
    histogram = view.arrays["margin"][kind, :, layer].sum(axis=0)
    return audit_measures.near_tie_share(histogram) if histogram.any() else None


def _margins(view: View) -> Made:
    edges = np.append(LEAST, audit_measures.MARGIN_THRESHOLDS.astype(np.float64))

    def panels() -> Iterator[Made]:
        for kind, title in kinds(view).items():
            for layer, label in enumerate(view.layers):
                histogram = view.arrays["margin"][kind, :, layer].sum(axis=0)
                yield figures.panel(_histogram(edges, histogram), layer=label, margin=title)

    step = audit_measures.NEAR_TIE
    return figures.figure(
        view,
        "margins",
        "Margins of router logits",
        "points",
        f"Tokens by margin, eight bins to an octave; below 2^-24 at the left. The line is the step of bfloat16 at 1, "
        f"2^-7 = {step:.4g}.",
        panels=panels(),
        formula="z(K) - z(K + 1), and z(1) - z(2), of logits z in descending order",
        clauses=["AUDIT-14"],
    )


def _histogram(edges: ndarray, histogram: ndarray) -> Made:
    there = np.flatnonzero(histogram)
    codes = np.arange(there[0], there[-1] + 1) if len(there) else np.arange(0)
    shares = ratios(histogram, np.asarray(histogram.sum()))[codes]
    labels = [f"from {edges[code]:.3g}: {histogram[code]:,} tokens" for code in codes]
    labels = [
        f"below 2^-24: {histogram[0]:,} tokens" if code == 0 else label
        for code, label in zip(codes, labels, strict=True)
    ]
    step, most = audit_measures.NEAR_TIE, float(shares.max(initial=0.0))
    return figures.points(
        edges[codes],
        shares,
        labels,
        ("margin", "share of tokens"),
        [
            figures.curve("tokens", "data", edges[codes], shares),
            figures.curve("step of bfloat16, 2^-7", "bound", [step, step], [0.0, most]),
        ],
        log_x=True,
    )


def _ties(view: View) -> Made:
    def made(layer: int) -> Made:
        told = kinds(view)
        rows = []
        table = view.arrays["margin"][:, :, layer]
        for name, one in [
            (ALL, table.sum(axis=1)),
            *zip(view.slices, table.swapaxes(0, 1), strict=True),
        ]:
            cells: list[object] = [name, int(one[min(told, default=0)].sum())]
            for kind in told:
                known = one[kind].any()
                cells.append(audit_measures.near_tie_share(one[kind]) if known else None)
            rows.append(cells)
        return figures.table(("slice", "tokens", *told.values()), rows)

    return figures.figure(
        view,
        "near_ties",
        "Near-ties",
        "table",
        "Part of tokens whose margin is below 2^-7: what another arithmetic may choose otherwise.",
        panels=figures.by_layer(view, made),
        formula="margins below 2^-7 / margins",
        clauses=["AUDIT-14"],
    )


def _gates(view: View) -> Made:
    centres = (np.arange(GATE_BINS) + 0.5) / GATE_BINS

    def made(layer: int) -> Made:
        counts = view.arrays["gate"][:, layer].sum(axis=0)  # [K, bins]
        drawn = [
            figures.series(
                f"{ORDINALS[rank] if rank < len(ORDINALS) else f'{rank + 1}th'} choice",
                ratios(one, np.asarray(one.sum())),
            )
            for rank, one in enumerate(counts)
        ]
        return figures.lines(centres, drawn, ("gate", "share of tokens"))

    return figures.figure(
        view,
        "gates",
        "Gates",
        "lines",
        f"Probabilities of the chosen experts, {GATE_BINS} bins.",
        panels=figures.by_layer(view, made),
        formula="softmax(z) at the chosen experts",
        clauses=["AUDIT-17"],
    )


def _entropy(view: View) -> Made:
    def made(layer: int) -> Made:
        counts = view.arrays["entropy"][layer]
        shares = ratios(counts, np.asarray(counts.sum()))
        last = ENTROPY_BINS - 1
        return figures.lines(
            np.arange(ENTROPY_BINS) / last,
            [figures.series("tokens", shares)],
            ("entropy over ln E", "share of tokens"),
        )

    return figures.figure(
        view,
        "entropy",
        "Entropy of the router's probabilities",
        "lines",
        "0: all on one expert; 1: even over all.",
        panels=figures.by_layer(view, made),
        formula="H(softmax(z)) / ln E",
        clauses=["AUDIT-14"],
    )


def _losses(view: View) -> Made:
    experts, one = view.sizes.experts, float(1 << FIXED_POINT)

    def rows() -> Iterator[list[object]]:
        for layer, label in enumerate(view.layers):
            tokens, squares = view.arrays["log_sum"][layer].tolist()
            if not tokens:
                continue
            mean = view.arrays["probability"][layer] / one / tokens  # P
            counts = view.whole(layer)
            shares = (
                ratios(part, np.asarray(tokens)) for part in (counts[:, 0], counts.sum(axis=1))
            )
            first, every = (float((share * mean).sum() * experts) for share in shares)
            yield [
                label,
                first,
                every,
                every / view.sizes.choices,
                squares / (1 << SQUARES_POINT) / tokens,
            ]

    columns = (
        "layer",
        "of first choices",
        "of all choices",
        "of all choices, over K",
        "router z-loss",
    )
    return figures.figure(
        view,
        "router_losses",
        "Losses of the router on this text",
        "table",
        "The text as one group, padding left out; in training each group has its own, and these are averaged. Of all "
        "choices a perfect balance gives K, of first choices 1.",
        panels=[figures.panel(figures.table(columns, rows()))],
        formula="E sum over e of f(e) P(e), f the part of tokens that choose e; mean of logsumexp(z)^2",
        clauses=["AUDIT-13"],
    )
