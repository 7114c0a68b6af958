"""Section 11: text coloured by the first choice of its tokens. Source of the form: Mixtral, figure 8."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from openmoe_tools.audit.measures import figures
from openmoe_tools.audit.measures.figures import Made
from openmoe_tools.audit.measures.view import View

SPACE = "\u2581"
"""What SentencePiece writes for a space."""


def section(view: View) -> Made | None:
    """Return the section; none where no text was kept."""
    if not view.sample:
        return None
    text = "The beginning of a row of each slice, each token in the colour of its first choice."
    shown = figures.figure(
        view,
        "sample_text",
        "Text by first choice",
        "text",
        "Point at a token for all its choices.",
        panels=_panels(view),
        formula="the expert of rank 1",
        clauses=["AUDIT-02"],
    )
    return figures.section("sample", "A sample of the text", text, [shown])


def _panels(view: View) -> Iterator[Made]:
    names = [f"{one['slice']}: {one['document']}" for one in view.sample]
    groups = [f"expert {one}" for one in view.experts]
    for layer, label in enumerate(view.layers):
        for name, one in zip(names, view.sample, strict=True):
            pieces = [_piece(view, one, layer, place) for place in range(len(one["token"]))]
            yield figures.panel({"pieces": pieces, "groups": groups}, layer=label, text=name)


def _piece(view: View, row: Mapping[str, Any], layer: int, place: int) -> Made:
    identifier = int(row["token"][place])
    chosen = row["expert"][layer][place]
    told = [f"{view.label(identifier)} (id {identifier})", f"experts {', '.join(map(str, chosen))}"]
    if row.get("gate"):
        gates = (f"{figures.number(one):.3g}" for one in row["gate"][layer][place])
        told.append(f"gates {', '.join(gates)}")
    for rule, dropped in (row.get("dropped") or {}).items():
        lost = [str(e) for e, out in zip(chosen, dropped[layer][place], strict=True) if out]
        if lost:
            told.append(f"no slot under {rule}: {', '.join(lost)}")
    shown = view.label(identifier).replace(SPACE, " ")
    return {"text": shown, "group": int(chosen[0]), "note": "; ".join(told)}
