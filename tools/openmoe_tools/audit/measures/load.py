"""Section 6: how evenly experts are loaded. Spec: AUDIT-13."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy import ndarray

from openmoe_reference import audit_measures
from openmoe_tools.audit.counting.layout import GROUP_COLUMNS
from openmoe_tools.audit.measures import figures
from openmoe_tools.audit.measures.drops import ALL, by_rule
from openmoe_tools.audit.measures.figures import Made
from openmoe_tools.audit.measures.intervals import ratios
from openmoe_tools.audit.measures.view import View

STATISTICS = {
    "cv": "CV",
    "max_over_mean": "max / mean",
    "min_over_mean": "min / mean",
    "entropy": "entropy / ln E",
    "effective_experts": "effective experts",
    "gini": "Gini",
    "dead_fraction": "dead part",
}


def section(view: View) -> Made:
    """Return the section."""
    text = (
        "Shares of all choices, before capacity. A balance over the whole text says little of the groups that share "
        "slots: these overflow where the whole does not, so both are here. The paper trains with a balance loss and "
        "shows no load."
    )
    shown = [_shares(view), _statistics(view)]
    if view.sizes.rules and view.has("groups"):
        shown += [_groups(view), _use(view)]
    return figures.section("load", "Load of the experts", text, shown)


def statistics(view: View, layer: int) -> dict[str, float]:
    """Return the statistics of a layer's load. Spec: AUDIT-13."""
    return audit_measures.load_statistics(view.whole(layer).sum(axis=-1))


def _shares(view: View) -> Made:
    def made(layer: int) -> Made:
        return figures.bars(
            view.experts,
            view.shares(layer),
            ("expert", "share of choices"),
            reference=("even, 1/E", 1 / view.sizes.experts),
        )

    return figures.figure(
        view,
        "load",
        "Share of all choices by expert",
        "bars",
        "All slices, all ranks.",
        panels=figures.by_layer(view, made),
        formula="R(e) = sum over ranks of n(e, r) / (K n)",
        clauses=["AUDIT-02", "AUDIT-13"],
    )


def _statistics(view: View) -> Made:
    def made(layer: int) -> Made:
        by_slice = view.counts("slice", layer)
        rows = []
        for name, counts in [(ALL, by_slice.sum(axis=0)), *zip(view.slices, by_slice, strict=True)]:
            loads = counts.sum(axis=-1)
            found = audit_measures.load_statistics(loads) if loads.any() else {}
            rows.append([name, int(counts[:, 0].sum()), *(found.get(one) for one in STATISTICS)])
        return figures.table(("slice", "tokens", *STATISTICS.values()), rows)

    return figures.figure(
        view,
        "load_statistics",
        "Balance in numbers",
        "table",
        "Even load has CV 0, max / mean and min / mean 1, entropy 1, E effective experts, Gini 0. A slice with few "
        "tokens is uneven by chance alone.",
        panels=figures.by_layer(view, made),
        formula="CV = std(R) / mean(R); effective experts = exp(H); Gini = mean |difference| / (2 mean)",
        clauses=["AUDIT-13"],
    )


def _groups(view: View) -> Made:
    def panels() -> Iterator[Made]:
        for rule, name, layer, label in by_rule(view):
            counts = view.arrays["group_load"][rule, layer]
            there = np.flatnonzero(counts)
            part = counts[: there[-1] + 1] if len(there) else counts[:1]
            labels = [f"{2 ** (one / 8):.2f}" for one in range(len(part))]
            data = figures.bars(labels, part, ("largest over mean load of the group", "groups"))
            yield figures.panel(data, rule=name, layer=label)

    return figures.figure(
        view,
        "group_load",
        "Balance within capacity groups",
        "bars",
        "Each bar is an eighth of an octave and has its lower end below it. 1: every expert has as many choices of "
        "the group as any other. With as many slots as factor times the mean, groups right of the factor overflow.",
        panels=panels(),
        formula="groups by floor(8 log2(max over e of n(g, e) / mean over e of n(g, e)))",
        clauses=["AUDIT-13", "AUDIT-19"],
    )


def used(view: View, rule: int, layer: int) -> ndarray:
    """Return the used part of each expert's slots, float64 [E]; not-a-number where it is not known."""
    use = view.arrays["group_use"][rule, layer]
    capacity = int(view.rule(view.sizes.rules[rule]).get("capacity") or 0)
    return ratios(use[:, GROUP_COLUMNS.index("used")], use[:, 0] * capacity)


def _use(view: View) -> Made:
    columns = (
        "expert",
        "groups",
        "used slots",
        "part of all slots",
        "choices beyond",
        "part beyond",
    )

    def panels() -> Iterator[Made]:
        for rule, name, layer, label in by_rule(view):
            use = view.arrays["group_use"][rule, layer]
            groups, taken, beyond, over = (use[:, i] for i in range(len(GROUP_COLUMNS)))
            data = figures.table(
                (*columns, "groups that overflow"),
                zip(
                    *(view.experts, groups, taken, used(view, rule, layer)),
                    *(beyond, ratios(beyond, taken + beyond), over),
                    strict=True,
                ),
            )
            yield figures.panel(data, rule=name, layer=label)

    return figures.figure(
        view,
        "capacity_use",
        "Used capacity",
        "table",
        "Whole groups, padding among them.",
        panels=panels(),
        formula="sum over g of min(n(g, e), C) / (groups C)",
        clauses=["AUDIT-13", "AUDIT-16"],
    )
