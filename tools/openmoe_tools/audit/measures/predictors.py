"""Section 9: what a token's id, position and slice tell of its first choice. Spec: AUDIT-22, AUDIT-23."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from openmoe_reference import audit_inference
from openmoe_tools.audit.measures import figures
from openmoe_tools.audit.measures.figures import Made
from openmoe_tools.audit.measures.view import KEYS, View

TEXT = (
    "What a key tells of the first choice, in two ways that chance does not inflate: its information, with the bias "
    "of few tokens taken off, and how well it guesses the choice in documents that the guess was not made from. An "
    "id that occurs once tells nothing here. The paper calls routing context-independent by its pictures; this is "
    "that claim as a number."
)


def section(view: View) -> Made:
    """Return the section."""
    return figures.section(
        "predictors", "What tells the choice", TEXT, [_information(view), _gain(view), _table(view)]
    )


def information(view: View, key: str, layer: int) -> float:
    """Return the part of the first choice's entropy that a key tells. Spec: AUDIT-22."""
    if view.untold(key):
        return np.nan
    found = audit_inference.information(view.counts(key, layer)[..., 0])
    return found.information / found.entropy if found.entropy > 0 else np.nan


def _information(view: View) -> Made:
    def made(layer: int) -> Made:
        return figures.bars(
            KEYS,
            [information(view, key, layer) for key in KEYS],
            ("key", "information over the choice's entropy"),
            reference=("the key tells all", 1.0),
        )

    return figures.figure(
        view,
        "information",
        "Information about the first choice",
        "bars",
        "Near 1 for token ids is what context-independent means. The correction of Miller and Madow takes off what "
        "few tokens add; where most ids are rare it is not enough, and the figure below is the one to trust.",
        panels=figures.by_layer(view, made),
        formula="I(e; key) / H(e), with (cells that occur - 1) / (2 tokens) added to each entropy",
        clauses=["AUDIT-22"],
    )


def _gain(view: View) -> Made:
    def made(layer: int) -> Made:
        found = [view.gain(key, layer) for key in KEYS]
        return figures.bars(
            KEYS,
            [one and one.gain for one in found],
            ("key", "part of the misses that the key removes"),
            low=[one and one.low for one in found],
            high=[one and one.high for one in found],
            reference=("what `holds` asks of the lower end", 0.5),
        )

    return figures.figure(
        view,
        "held_out_gain",
        "Held-out predictors",
        "bars",
        "Each fold of documents is guessed from the others: the expert that the key has most often there, against the "
        "one that is most often chosen of all. Intervals (95 %) are of the jackknife over folds.",
        panels=figures.by_layer(view, made),
        formula="(accuracy - baseline) / (1 - baseline)",
        clauses=["AUDIT-23", "AUDIT-25", "AUDIT-26"],
    )


def _table(view: View) -> Made:
    def rows() -> Iterator[list[object]]:
        for layer, name in enumerate(view.layers):
            for key in KEYS:
                told = information(view, key, layer)
                found = view.gain(key, layer)
                numbers = tuple(found) if found else (None,) * 5
                yield [name, key, told, *numbers]

    columns = (
        "layer",
        "key",
        "information / entropy",
        "accuracy",
        "baseline",
        "gain",
        "low",
        "high",
    )
    return figures.figure(
        view,
        "predictor_table",
        "Predictors in numbers",
        "table",
        "Accuracy and baseline: parts of held-out tokens whose first choice is guessed with the key, and without.",
        panels=[figures.panel(figures.table(columns, rows()))],
        formula="as above",
        clauses=["AUDIT-22", "AUDIT-23", "AUDIT-26"],
    )
