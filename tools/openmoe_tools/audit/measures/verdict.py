"""The verdict: a line a finding, each decided by a stated rule from numbers with intervals. Spec: AUDIT-28.

Lines about keys and about drops are claims with a false-positive rate; the others are descriptions, and
their rules are thresholds on what was counted.
"""

from __future__ import annotations

from typing import Any

from openmoe_tools.audit.counting.layout import FOLDS
from openmoe_tools.audit.measures import claims
from openmoe_tools.audit.measures.claims import HOLDS, NOT, PART, UNDECIDED, UNTOLD, Claim
from openmoe_tools.audit.measures.descriptions import anomalies, balance, early, slices
from openmoe_tools.audit.measures.drops import ends
from openmoe_tools.audit.measures.figures import Made, percent
from openmoe_tools.audit.measures.lines import line, value
from openmoe_tools.audit.measures.view import KEYS, View

TITLES = {
    "token id": "The token id decides the expert",
    "position": "The position decides the expert",
    "slice": "The slice of the text decides the expert",
}
CERTIFICATES = {
    "holds": "The weights are those of a conversion that was verified ({file}).",
    "does not hold": "The conversion certificate says that the conversion does NOT hold ({file}).",
    "none": "No conversion certificate: nothing proves that these weights are those that were trained.",
}


def decide(view: View) -> dict[str, Any]:
    """Return the verdict of an audit. Spec: AUDIT-28."""
    keys = {key: claims.of_key(view, key, view.asked) for key in KEYS}
    return {
        "lines": [
            _context(view, keys),
            *(_key(view, key, keys[key]) for key in KEYS),
            early(view),
            _ending(view),
            balance(view),
            slices(view),
            anomalies(view),
        ],
        "driver": _driver(keys),
        "certificate": _certificate(view),
        "notes": _notes(view),
    }


def _told(view: View, key: str, claim: Claim | None) -> str:
    reason = view.untold(key)
    if reason is not None:
        return UNTOLD if reason.endswith("not recorded") else UNDECIDED
    return claims.answer(claim)


def _driver(keys: dict[str, Claim | None]) -> str:
    """Return the key with the largest gain among those that are claimed."""
    known = {key: one for key, one in keys.items() if one is not None}
    claimed = {key: one for key, one in known.items() if one.made}
    if claimed:
        return max(claimed, key=lambda key: claimed[key].value)
    return "none" if known else UNDECIDED


def _context(view: View, keys: dict[str, Claim | None]) -> Made:
    own = keys["token id"]
    answer = _told(view, "token id", own)
    others = [one.value for key, one in keys.items() if key != "token id" and one is not None]
    if own is not None and own.made:
        first = all(one <= own.value for one in others)
        answer = HOLDS if answer == HOLDS and first else PART
    layer = view.layers[view.asked]
    told = {
        key: value(one.value, one.low, one.high, chance=0.0)
        for key, one in keys.items()
        if one is not None
    }
    gains = ", ".join(f"{key} {percent(one['value'])}" for key, one in told.items())
    statement = f"Misses removed by the key in layer {layer}: {gains}; driver: {_driver(keys)}."
    if not told:
        statement = f"What keys tell of the choice cannot be said: {_reason(view, 'token id')}."
    return line(
        "context_independent",
        "Specialisation is context-independent",
        (answer, statement, told),
        rule="holds: the answer for token ids is `holds` and no other key has a larger gain; in part: token ids are "
        "claimed; otherwise the answer for token ids.",
        clauses=["AUDIT-23", "AUDIT-28"],
    )


def _key(view: View, key: str, claim: Claim | None) -> Made:
    numbers, layer = {}, view.layers[view.asked]
    if claim is None:
        statement = f"Not judged: {_reason(view, key)}."
    else:
        found = [claims.of_key(view, key, one) for one in range(view.sizes.layers)]
        claimed = sum(one is not None and one.made for one in found)
        statement = (
            f"In layer {layer} it removes {percent(claim.value)} ({percent(claim.low)} to {percent(claim.high)}) of the "
            f"misses of the best guess without it; claimed in {claimed} of {len(found)} layers."
        )
        numbers = {
            "gain": value(claim.value, claim.low, claim.high, chance=0.0),
            "layers claimed": value(claimed),
        }
    return line(
        key.replace(" ", "_"),
        TITLES[key],
        (_told(view, key, claim), statement, numbers),
        rule=f"Held-out gain in layer {layer}, its interval at the level 1 - {claims.RATE}/m. holds: lower end above "
        f"{claims.CLEAR}; in part: above 0; does not hold: not claimed and upper end below {claims.NOTHING}.",
        clauses=["AUDIT-23", "AUDIT-26", "AUDIT-28"],
    )


def _reason(view: View, key: str) -> str:
    """Return why a key has no claim."""
    if view.untold(key):
        return str(view.untold(key))
    if view.folds() < FOLDS:
        return f"documents are in {view.folds()} of {FOLDS} folds only; audit more documents"
    return "one expert has every first choice"


def _ending(view: View) -> Made:
    identifier, finding = (
        "drop_towards_the_end",
        "Tokens are dropped towards the end, more than by chance",
    )
    rule = (
        "Any-drop ratio of the last quarter of positions less that of the first, less the same of routing by chance in the "
        f"same queues, under the first rule, its interval at the level 1 - {claims.RATE}/m. holds: lower "
        f"end above 0, and {claims.MORE} times as many drops at the end, or so many times fewer tokens that lose none; in part: lower end above 0; does not "
        f"hold: upper end below {claims.NO_MORE}."
    )
    clauses = ("AUDIT-16", "AUDIT-19", "AUDIT-26", "AUDIT-28")
    if not (view.sizes.rules and view.has("drops") and view.has("positions")):
        said = "The source does not tell which choices were dropped, or where."
        return line(identifier, finding, (UNTOLD, said, {}), rule=rule, clauses=clauses)
    numbers, told, answers = {}, [], []
    for number, name in enumerate(view.sizes.rules):
        apart, claim = ends(view, number, view.asked), claims.of_drops(view, number, view.asked)
        answers.append(_dropped(claim, apart.first, apart.last))
        told.append(
            f"{name}: {percent(apart.first)} of the first quarter's {apart.tokens[0]:,} tokens lose a choice, "
            f"{percent(apart.last)} of the last's {apart.tokens[1]:,} ({answers[-1]})"
        )
        if apart.chance is not None:
            told[-1] += (
                f"; routing by chance {percent(apart.chance.first)} and {percent(apart.chance.last)}"
            )
        if claim is not None:
            numbers[name] = value(claim.value, claim.low, claim.high, chance=0.0)
        numbers[f"{name}, first quarter"] = value(apart.first)
        numbers[f"{name}, last quarter"] = value(apart.last)
    statement = f"In layer {view.layers[view.asked]}, under {'; under '.join(told)}."
    found = (answers[0], statement, numbers)
    return line(identifier, finding, found, rule=rule, clauses=clauses)


def _dropped(claim: Claim | None, first: float, last: float) -> str:
    if claim is None:
        return UNDECIDED
    if claim.made:
        # Near 100 % there is no room for more drops: what is left untouched tells.
        more = last >= claims.MORE * first or 1 - first >= claims.MORE * (1 - last)
        return HOLDS if more else PART
    return NOT if claim.high < claims.NO_MORE else UNDECIDED


def _certificate(view: View) -> str:
    given = view.manifest["model"].get("certificate") or {"status": "none"}
    file = given.get("file") or "no file"
    text = CERTIFICATES.get(given["status"], "The conversion certificate is {status} ({file}).")
    return text.format(file=file, status=given["status"])


def _notes(view: View) -> list[str]:
    number = claims.number(view)
    notes = [
        f"The verdict is about layer {view.layers[view.asked]}, as the paper's figures are about its third sparse layer.",
        (
            f"m = {number} claims: the verdict's intervals are at the level 1 - {claims.RATE}/{number}, so that routing "
            "by chance is called something in one report of a hundred at most."
        ),
    ]
    if view.folds() < FOLDS:
        notes.append(
            f"Documents are in {view.folds()} of {FOLDS} folds: what keys tell is not judged. Audit more documents."
        )
    if view.sizes.rules and view.has("positions"):
        notes.append(
            "Later positions have fewer tokens, and those of long documents alone: a rise or fall along the row is "
            "also one of who is left."
        )
    missing = [
        name
        for name in ("documents", "positions", "drops", "margins", "gates")
        if not view.has(name)
    ]
    if missing:
        notes.append(f"Not recorded: {', '.join(missing)}.")
    return notes
