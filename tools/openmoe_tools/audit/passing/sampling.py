"""Rows of the text, to be shown with the experts of their tokens."""

from __future__ import annotations

from typing import Any

from openmoe_tools.audit.counting.routed import Routed

TOKENS = 160
"""Tokens of a slice that are shown."""


def sample(routed: Routed, slice_name: str, rules: tuple[str, ...]) -> dict[str, Any]:
    """Return the beginning of a call's first row, as `sample.json` has it."""
    first = routed.row == routed.row[0]
    shown = slice(0, min(TOKENS, int(first.sum())))
    by_layer = routed.expert[shown].swapaxes(0, 1)  # [n, tokens, K]
    dropped = {} if routed.dropped is None else dict(zip(rules, routed.dropped, strict=True))
    return {
        "slice": slice_name,
        "document": routed.documents[int(routed.document[0])],
        "token": routed.token[shown].tolist(),
        "expert": by_layer.tolist(),
        "gate": None
        if routed.gate is None
        else routed.gate[shown].swapaxes(0, 1).astype(float).round(4).tolist(),
        "dropped": {name: one[shown].swapaxes(0, 1).tolist() for name, one in dropped.items()},
    }
