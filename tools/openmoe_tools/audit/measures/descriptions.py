"""Lines of the verdict that describe: how early, how balanced, how far by slice, what is odd.

Spec: AUDIT-09, AUDIT-13, AUDIT-14, AUDIT-15, AUDIT-24, AUDIT-28.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from openmoe_reference import audit, audit_inference
from openmoe_tools.audit.counting.routed import SELECTION
from openmoe_tools.audit.measures import load, margins, pairs
from openmoe_tools.audit.measures.claims import HOLDS, NOT, PART, UNDECIDED, UNTOLD, level
from openmoe_tools.audit.measures.figures import Made, percent
from openmoe_tools.audit.measures.intervals import bootstrapped
from openmoe_tools.audit.measures.lines import Found, line, value
from openmoe_tools.audit.measures.slices import shifts
from openmoe_tools.audit.measures.view import View

EARLY, LEARNED, PARTLY = 0.2, 0.8, 0.4
"""Part of the training by which routing is looked at, and what of the way from chance it then has gone."""
LARGEST_LOAD = 2.0
"""Times the mean load, up to which load is balanced: the slots of the published evaluation factor."""
APART = 0.05
"""Specialisation of a slice below which it is routed as the whole text."""
MOSTLY, SOMEWHAT = 0.5, 0.25
"""Parts of a slice's distance that token ids do not explain."""
NEAR_TIES = 0.01


def early(view: View) -> Made:
    """Return the line about early routing learning."""
    rule = (
        f"(saturation - K/E) / (1 - K/E) at the last step checkpoint by which at most {EARLY:.0%} of the audited one's "
        f"steps have passed. holds: {LEARNED} or more; in part: {PARTLY} or more; does not hold: less."
    )
    clauses = ("AUDIT-09", "AUDIT-28")
    return line(
        "early_learning", "Routing is learned early", _early(view), rule=rule, clauses=clauses
    )


def _early(view: View) -> Found:
    known = [
        (one["step"], c)
        for c, one in enumerate(view.checkpoints)
        if one["kind"] == pairs.STEP and one["step"] is not None
    ]
    if not known:
        return UNTOLD, "No earlier steps of the run were compared.", {}
    last, chance = view.checkpoints[-1]["step"], view.sizes.choices / view.sizes.experts
    if last is None or view.fixed:
        return UNDECIDED, "The audited checkpoint has no step, or takes all experts.", {}
    way = (pairs.saturations(view)[:, view.asked] - chance) / (1 - chance)
    first = min((step for step, c in known if way[c] >= LEARNED), default=None)
    reached = (
        f"{percent(LEARNED, 0)} of the way from chance is first reached at step {first:,}"
        if first is not None
        else f"{percent(LEARNED, 0)} of the way from chance is reached at none of the {len(known)} earlier steps"
    )
    numbers = {"first step of 0.8": value(first)}
    within = [(step, c) for step, c in known if step <= EARLY * last]
    if not within:
        said = f"No checkpoint is of the first {EARLY:.0%} of {last:,} steps; {reached}."
        return UNDECIDED, said, numbers
    step, c = max(within)
    again = (pairs.replicated(view)[:, c, view.asked] - chance) / (1 - chance)
    low, high = bootstrapped(np.asarray(way[c]), again, least=-1.0, most=1.0)
    numbers = {"way from chance": value(way[c], low, high, chance=0.0), **numbers}
    share = pairs.saturations(view)[c, view.asked]
    numbers["saturation"] = value(share, chance=chance)
    said = (
        f"At step {step:,} of {last:,} a token has {percent(share)} of its final experts in layer "
        f"{view.layers[view.asked]} (by chance {percent(chance)}), {percent(way[c])} of the way; {reached}."
    )
    return (HOLDS if way[c] >= LEARNED else PART if way[c] >= PARTLY else NOT), said, numbers


def balance(view: View) -> Made:
    """Return the line about load balance, over all layers."""
    rule = (
        f"holds: no layer has a dead expert, nor one with more than {LARGEST_LOAD:g} times the mean load; in part: no "
        "dead expert; does not hold: a dead expert."
    )
    return line("load_balance", "Load is balanced", _balance(view), rule=rule, clauses=["AUDIT-13"])


def _balance(view: View) -> Found:
    found = {name: load.statistics(view, layer) for layer, name in enumerate(view.layers)}
    dead = sum(round(one["dead_fraction"] * view.sizes.experts) for one in found.values())
    worst = max(found, key=lambda name: found[name]["cv"])
    largest = max(one["max_over_mean"] for one in found.values())
    numbers = {
        "largest CV": value(found[worst]["cv"]),
        "largest max / mean": value(largest),
        "dead experts": value(dead),
    }
    said = (
        f"The most uneven layer, {worst}, has CV {found[worst]['cv']:.2f} and {found[worst]['effective_experts']:.1f} "
        f"effective of {view.sizes.experts} experts; the largest load of any layer is {largest:.2f} times the mean; "
        f"{dead} dead {'expert' if dead == 1 else 'experts'}."
    )
    return (NOT if dead else HOLDS if largest <= LARGEST_LOAD else PART), said, numbers


def slices(view: View) -> Made:
    """Return the line about slices of the text: the one that is furthest from the whole."""
    finding = "Slices are routed apart beyond what their token ids explain"
    rule = (
        f"Of the slices with more than {audit.NUM_TOKENS_FILTER} tokens, the one furthest from the whole text. does not "
        f"hold: the lower end of its specialisation is not above {APART} (an interval of level {level(view):.4g} by the "
        f"bootstrap), or token ids leave less than {SOMEWHAT} of the distance; in part: less than {MOSTLY}; holds: more."
    )
    clauses = ("AUDIT-07", "AUDIT-24", "AUDIT-28")
    return line("slices_apart", finding, _slices(view), rule=rule, clauses=clauses)


def _slices(view: View) -> Found:
    reason = view.untold("slice")
    if reason:
        return UNTOLD, f"Not judged: {reason}.", {}
    found = shifts(view, view.asked)
    enough = (view.tokens() > audit.NUM_TOKENS_FILTER) & np.isfinite(found.specialisation)
    if not enough.any():
        return UNDECIDED, "No slice has tokens enough.", {}
    furthest = int(np.where(enough, found.distance, -1).argmax())
    own = float(found.specialisation[furthest])
    drawn = view.arrays["replicate_slice"][:, furthest, view.asked]
    again = view.specialisation(drawn, view.asked)
    if not np.isfinite(again).all():
        return UNDECIDED, f"{view.slices[furthest]} has too few documents for an interval.", {}
    interval = audit_inference.bootstrap_interval(own, again, level=level(view))
    numbers = {
        "distance": value(found.distance[furthest], found.low[furthest], found.high[furthest]),
        "share not explained": value(found.share[furthest]),
        "specialisation": value(own, *interval, chance=0.0),
    }
    said = (
        f"Furthest from the whole text in layer {view.layers[view.asked]} is {view.slices[furthest]}, by "
        f"{percent(found.distance[furthest])} of its choices; token ids do not explain {percent(found.share[furthest])} "
        f"of that; its specialisation is {percent(own)}."
    )
    left = found.share[furthest]
    if interval.low <= APART or not left >= SOMEWHAT:
        return NOT, said, numbers
    return (HOLDS if left >= MOSTLY else PART), said, numbers


def anomalies(view: View) -> Made:
    """Return the line about what is odd."""
    found = list(_odd(view))
    statement = f"{'; '.join(found)}." if found else "Nothing odd was found."
    rule = (
        "holds: experts keep their numbers in every checkpoint, none is dead, near-ties are at most "
        f"{NEAR_TIES:.0%} of tokens in each layer, a certificate proves the conversion."
    )
    answer = NOT if found else HOLDS
    numbers: dict[str, Any] = {"oddities": value(len(found), chance=0)}
    ties = [margins.near_ties(view, SELECTION, layer) for layer in range(view.sizes.layers)]
    known = [one for one in ties if one is not None]
    if known:
        numbers["largest near-tie rate"] = value(max(known))
    clauses = ("AUDIT-13", "AUDIT-14", "AUDIT-15")
    return line(
        "nothing_odd", "Nothing is odd", (answer, statement, numbers), rule=rule, clauses=clauses
    )


def _odd(view: View) -> Iterator[str]:
    """Yield what is odd, each in a few words."""
    for c, one in enumerate(view.checkpoints):
        lost = [
            name
            for layer, name in enumerate(view.layers)
            if not pairs.relabelled(view, c, layer).wins
        ]
        if lost:
            yield f"experts of {one['label']} match better under other numbers (layers {', '.join(lost)})"
    for layer, name in enumerate(view.layers):
        dead = np.flatnonzero(view.whole(layer).sum(axis=-1) == 0)
        if len(dead):
            shown = ", ".join(map(str, dead[:8])) + (", ..." if len(dead) > 8 else "")
            yield f"layer {name}: {len(dead)} dead experts ({shown})"
        ties = margins.near_ties(view, SELECTION, layer)
        if ties is not None and ties > NEAR_TIES:
            yield f"layer {name}: {percent(ties)} of tokens are near-ties"
    given: Mapping[str, Any] = view.manifest["model"].get("certificate") or {}
    if given.get("status") != "holds":
        yield "no certificate proves the conversion of the weights"
