"""Section 2: token ids. Spec: AUDIT-04 to AUDIT-07, AUDIT-11."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from openmoe_reference import audit, audit_measures
from openmoe_tools.audit.measures import figures
from openmoe_tools.audit.measures.figures import Made
from openmoe_tools.audit.measures.intervals import ratios
from openmoe_tools.audit.measures.view import View

MOST_POINTS, MOST_ROWS, CURVE, MAP_ROWS = 5000, 2000, 60, 12
"""Ids that are drawn, and that the table has, the most frequent first; points of a curve; rows of the map."""


def section(view: View) -> Made:
    """Return the section."""
    kept = len(_kept(view))
    text = (
        f"The text has {len(view.seen):,} different ids; {kept:,} of them have more than "
        f"{audit.NUM_TOKENS_FILTER} tokens, the paper's filter, and are shown. The paper compares their spread with "
        "a line at 0, which no finite number of tokens can reach even when routing is by chance: the floor is "
        "what chance alone gives so many tokens, and the debiased spread has it taken off."
    )
    return figures.section(
        "tokens", "Token ids", text, [_spread(view), _map(view), _vocabulary(view)]
    )


def _kept(view: View) -> ndarray:
    """Return the places, among the seen ids, of those with tokens enough, the most frequent first."""
    order = view.most(len(view.seen))
    return order[view.seen_tokens[order] > audit.NUM_TOKENS_FILTER]


def _spread(view: View) -> Made:
    kept = _kept(view)
    caption = f"Ids with more than {audit.NUM_TOKENS_FILTER} tokens, by how many they have. Mean: each id counts once."
    if not len(kept):
        caption = (
            f"No id has more than {audit.NUM_TOKENS_FILTER} tokens in this text: there is nothing to show. "
            "Audit more text."
        )
    if len(kept) > MOST_POINTS:
        caption += (
            f" Drawn are the {MOST_POINTS:,} most frequent of {len(kept):,}; means are of all."
        )
    if len(kept) > MOST_ROWS:
        caption += f" The table has the {MOST_ROWS:,} most frequent."
    return figures.figure(
        view,
        "token_spread",
        "Spread of the experts' shares by token id",
        "points",
        caption,
        panels=figures.by_layer(view, lambda layer: _points(view, layer, kept))
        if len(kept)
        else [],
        formula="std(v) = sqrt(mean over e of (R(v, e) - 1/E)^2); floor(n) = sqrt((K/E)(1 - K/E)/n)/K",
        clauses=["AUDIT-04", "AUDIT-05", "AUDIT-06", "AUDIT-07"],
        paper="Figure 14",
    )


def _points(view: View, layer: int, kept: ndarray) -> Made:
    counts = view.counts("token id", layer)[kept]
    tokens, spread = audit.tokens_of(counts), audit.share_spread(counts)
    debiased = audit.debiased_spread(counts)
    k, experts = view.sizes.choices, view.sizes.experts
    ends = [int(tokens.min()), int(tokens.max())]
    grid = np.unique(np.geomspace(ends[0], ends[1], CURVE).round().astype(np.int64))
    labels = [view.label(int(one)) for one in view.seen[kept]]
    columns = ("id", "piece", "tokens", "top expert", "its share", "spread", "debiased", "lift")
    shares, whole = audit.choice_shares(counts), view.shares(layer)
    top = shares.argmax(axis=1)
    rows = [
        [
            int(view.seen[place]),
            labels[i],
            int(tokens[i]),
            view.experts[top[i]],
            figures.number(shares[i, top[i]]),
            figures.number(spread[i]),
            figures.number(debiased[i]),
            figures.number(shares[i, top[i]] / whole[top[i]]),
        ]
        for i, place in enumerate(kept[:MOST_ROWS])
    ]

    def flat(name: str, style: str, value: float) -> Made:
        return figures.curve(name, style, ends, [value, value])

    return figures.points(
        tokens[:MOST_POINTS],
        spread[:MOST_POINTS],
        labels[:MOST_POINTS],
        ("tokens of the id", "spread of shares"),
        [
            figures.curve(
                "floor: chance alone",
                "floor",
                grid,
                audit.spread_floor(grid, k=k, num_experts=experts),
            ),
            flat("largest possible", "bound", audit.largest_spread(k, experts)),
            flat("uniform (the paper's line)", "bound", 0.0),
            flat("mean", "mean", audit.mean_spread(counts)),
            flat("mean of debiased", "mean", float(debiased.mean())),
        ],
        log_x=True,
        twin=(columns, rows),
    )


def _map(view: View) -> Made:
    most = view.most(MAP_ROWS)

    def made(layer: int) -> Made:
        return figures.heatmap(
            [view.label(int(one)) for one in view.seen[most]],
            view.experts,
            audit.choice_shares(view.counts("token id", layer)[most]),
            ("token id", "expert", "share of choices"),
            centre=1 / view.sizes.experts,
            row_tokens=view.seen_tokens[most],
        )

    return figures.figure(
        view,
        "token_shares",
        "Share of choices of the most frequent ids",
        "heatmap",
        f"The {len(most)} ids with most tokens; the paper shows some of its choice.",
        panels=figures.by_layer(view, made),
        formula="R(v, e) = sum over ranks of n(v, e, r) / (K n(v))",
        clauses=["AUDIT-03"],
        paper="Figure 10",
    )


def _vocabulary(view: View) -> Made:
    least = audit.NUM_TOKENS_FILTER + 1

    def made(layer: int) -> Made:
        counts = view.counts("token id", layer)
        tokens = audit.tokens_of(counts)
        preferred = counts.sum(axis=-1).argmax(axis=1)
        ids = [
            np.bincount(preferred[tokens >= n], minlength=view.sizes.experts) for n in (1, least)
        ]
        columns = [
            audit_measures.vocabulary_specialisation(counts),
            audit_measures.vocabulary_specialisation(counts, least=least, weighted=True),
            ratios(counts.sum(axis=(0, -1)), np.asarray(tokens.sum())),
        ]
        return figures.table(
            (
                "expert",
                "all ids, each once (as published)",
                "ids over the filter, by tokens",
                "part of all tokens",
                "ids that prefer it",
                "of these over the filter",
            ),
            [
                [name, *(one[e] for one in columns), ids[0][e], ids[1][e]]
                for e, name in enumerate(view.experts)
            ],
        )

    return figures.figure(
        view,
        "vocabulary_specialisation",
        "Vocabulary specialisation",
        "table",
        "Mean part of the tokens of an id that choose the expert, of ids that prefer it. The published form counts "
        "ids that occur once, whose part is 1 by itself, so that routing by chance looks specialised.",
        panels=figures.by_layer(view, made),
        formula="mean over v that prefer e of n(v, e) / n(v)",
        clauses=["AUDIT-11"],
    )
