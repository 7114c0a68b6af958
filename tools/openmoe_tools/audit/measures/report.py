"""An audit's report: sections with the data of their figures, and a verdict.

Its schema is `report.schema.json`, beside the folder of this module. Everything in it is JSON; texts of
the corpus, the tokeniser and paths are a stranger's and stand as they are: who shows them escapes them.
"""

from __future__ import annotations

from typing import Any

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.measures import (
    cards,
    checkpoints,
    drops,
    load,
    margins,
    methods,
    neighbours,
    positions,
    predictors,
    sample,
    slices,
    tokens,
    verdict,
)
from openmoe_tools.audit.measures.view import View

SCHEMA = "openmoe-audit-report/1"
SECTIONS = (
    *(slices, tokens, positions, drops, checkpoints, load),
    *(neighbours, margins, predictors, cards, sample),
)


def make(audit: Any) -> dict[str, Any]:
    """Return the report of an audit, as `folder.read` gives it.

    Errors: UsageError where no token was counted. Spec: AUDIT-02 to AUDIT-28.
    """
    view = View(audit)
    if not len(view.seen):
        raise UsageError(f"{audit.path}: no token was counted; audit text that is not empty")
    made = [one.section(view) for one in SECTIONS]
    sections = [one for one in made if one is not None]
    decided = verdict.decide(view)
    model = view.manifest["model"]
    step = "" if model.get("step") is None else f", step {model['step']}"
    return {
        "schema": SCHEMA,
        "title": f"Routing of {model['name']}{step}{_part(view)}",
        "manifest": dict(view.manifest),
        "verdict": decided,
        "sections": [*sections, methods.section(view, sections, decided)],
    }


def _part(view: View) -> str:
    """Return which part of the text was audited, where it is not all."""
    share = view.manifest["recipe"].get("share")
    return f" (only the shares {share} of the text)" if share else ""
