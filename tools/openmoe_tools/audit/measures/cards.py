"""Section 10: a card for each expert. Spec: AUDIT-08, AUDIT-10, AUDIT-11, AUDIT-13."""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from openmoe_reference import audit, audit_measures
from openmoe_tools.audit.measures import figures, load
from openmoe_tools.audit.measures.figures import Made, percent
from openmoe_tools.audit.measures.neighbours import companions
from openmoe_tools.audit.measures.view import View

NUMBER, OTHERS = 10, 5
"""Tokens of each ranking; slices and companions."""
RANKINGS = {
    "count": "by count",
    "precision": "by precision (10 tokens or more)",
    "lift": "by lift",
}


def section(view: View) -> Made:
    """Return the section."""
    text = (
        "Which ids choose an expert most. By count, as in the paper, frequent ids lead for most experts; by precision "
        "those that hardly choose another; by lift those that choose it more than the text as a whole does."
    )

    def made(layer: int) -> Made:
        return {"cards": _cards(view, layer)}

    cards = figures.figure(
        view,
        "top_tokens",
        "Experts one by one",
        "cards",
        "Share: of the id's choices; lift: that over the expert's share of all choices.",
        panels=figures.by_layer(view, made),
        formula="count n(v, e); precision n(v, e) / (K n(v)); lift (n(v, e) + 10 K R(e)) / (K (n(v) + 10)) / R(e)",
        clauses=["AUDIT-08", "AUDIT-10", "AUDIT-11"],
        paper="Tables 9 and 15",
    )
    return figures.section("experts", "Experts", text, [cards])


def _cards(view: View, layer: int) -> list[Made]:
    counts = view.counts("token id", layer)
    tops = {by: audit_measures.top_tokens(counts, by=by, number=NUMBER) for by in RANKINGS}
    shares, ids = view.shares(layer), audit.choice_shares(counts)
    by_slice = audit.choice_shares(view.counts("slice", layer))
    words = audit_measures.vocabulary_specialisation(
        counts, least=audit.NUM_TOKENS_FILTER + 1, weighted=True
    )
    beside = companions(view, layer)
    slots = load.used(view, 0, layer) if view.sizes.rules and view.has("groups") else None
    return [
        {
            "title": f"Expert {name}",
            "facts": _facts(view, e, shares, words, slots),
            "tables": [
                *(
                    _tokens(view, title, tops[by][e], counts[:, e].sum(axis=-1), ids[:, e])
                    for by, title in RANKINGS.items()
                ),
                _ranked("slices", "share", view.slices, by_slice[:, e]),
                *(
                    [_ranked("taken together with", "part of its tokens", view.experts, beside[e])]
                    if view.sizes.choices > 1
                    else []
                ),
            ],
        }
        for e, name in enumerate(view.experts)
    ]


def _facts(
    view: View, e: int, shares: ndarray, words: ndarray, slots: ndarray | None
) -> list[list[str]]:
    """Return what a card says before its tables."""
    facts = [
        ["share of all choices", percent(shares[e], 2)],
        ["load over the mean", f"{shares[e] * view.sizes.experts:.3f}"],
        ["vocabulary specialisation", percent(words[e])],
    ]
    if slots is not None:
        facts.append([f"slots used under {view.sizes.rules[0]}", percent(slots[e])])
    return facts


def _tokens(view: View, title: str, top: ndarray, chosen: ndarray, shares: ndarray) -> Made:
    """Return the table of a ranking.

    top     int64 [number] places among the seen ids, -1 for none
    chosen, shares   int64 [n], float64 [n]: choices of the expert by seen ids, and their shares
    """
    whole = chosen.sum() / (view.seen_tokens.sum() * view.sizes.choices)
    rows = [
        [
            int(view.seen[place]),
            view.label(int(view.seen[place])),
            int(chosen[place]),
            figures.number(shares[place]),
            figures.number(shares[place] / whole),
        ]
        for place in top.tolist()
        if place >= 0
    ]
    return {"title": title, "columns": ["id", "piece", "choices", "share", "lift"], "rows": rows}


def _ranked(title: str, value: str, names: list[str], values: ndarray) -> Made:
    """Return the largest of some values with their names."""
    known = np.where(np.isnan(values), -np.inf, values)
    order = [int(i) for i in np.argsort(-known, kind="stable")[:OTHERS] if known[i] > 0]
    rows = [[names[i], figures.number(values[i])] for i in order]
    return {"title": title, "columns": [title, value], "rows": rows}
