"""Section 12: every measure with its formula and clause, the recipe, the digests, the command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from openmoe_tools.audit.measures import figures
from openmoe_tools.audit.measures.figures import Made
from openmoe_tools.audit.measures.view import View

TEXT = (
    "Every number follows from whole numbers of tokens, which add up over parts of a text in any order. The clauses "
    "are those of SPEC.md, chapter 22. The page has all data of its figures as JSON, under the names in the table; "
    "`openmoe audit report --json` writes the same, by report.schema.json."
)


def section(view: View, others: Sequence[Made], verdict: Mapping[str, Any]) -> Made:
    """Return the section: of the figures of all other sections, and of the verdict."""
    return figures.section(
        "methods",
        "Methods",
        TEXT,
        [_measures(view, others), _rules(view, verdict), _recipe(view), _corpus(view)],
    )


def _table(
    view: View, identifier: str, title: str, columns: Sequence[str], rows: Iterator[Sequence[Any]]
) -> Made:
    return figures.figure(
        view,
        identifier,
        title,
        "table",
        "",
        panels=[figures.panel(figures.table(columns, rows))],
        formula="",
        clauses=[],
    )


def _measures(view: View, others: Sequence[Made]) -> Made:
    rows = (
        [one["title"], one["formula"], ", ".join(one["clauses"]), f"{part['id']}/{one['id']}"]
        for part in others
        for one in part["figures"]
    )
    return _table(view, "measures", "Measures", ("measure", "formula", "clauses", "JSON"), rows)


def _rules(view: View, verdict: Mapping[str, Any]) -> Made:
    rows = ([one["finding"], one["rule"], ", ".join(one["clauses"])] for one in verdict["lines"])
    return _table(view, "decision_rules", "Decision rules", ("finding", "rule", "clauses"), rows)


def _recipe(view: View) -> Made:
    """Return the manifest's facts: model, tokeniser, recipe, totals."""
    manifest = view.manifest
    parts = {name: manifest.get(name) or {} for name in ("model", "tokenizer", "recipe", "totals")}
    plain = ("source", "spec_version", "version", "command")

    def rows() -> Iterator[Sequence[Any]]:
        for name in plain:
            yield [name, _told(manifest.get(name))]
        yield ["recorded", ", ".join(map(str, manifest["recorded"]))]
        for part, facts in parts.items():
            for name, value in facts.items():
                if name == "what_if":
                    yield [
                        f"{part}: {name}",
                        f"{len(value)} rules, as the figures of replays have them",
                    ]
                elif isinstance(value, list) and value and isinstance(value[0], dict):
                    for one in value:
                        yield [f"{part}: {name}", _told(one)]
                else:
                    yield [f"{part}: {name}", _told(value)]
        for one in manifest.get("checkpoints") or []:
            yield ["checkpoint", _told(one)]

    return _table(view, "recipe", "What was run", ("what", "value"), rows())


def _told(value: Any) -> str:
    """Return a value of the manifest as text."""
    if value is None:
        return "not known"
    if isinstance(value, dict):
        return ", ".join(f"{name} {_told(one)}" for name, one in value.items())
    if isinstance(value, list):
        return ", ".join(map(_told, value))
    return str(value)


def _corpus(view: View) -> Made:
    columns = ("slice", "documents", "tokens", "bytes", "digest")
    rows = (
        [one["name"], *(one.get(name) for name in columns[1:])]
        for one in view.manifest["corpus"]["slices"]
    )
    return _table(view, "corpus", "The text", columns, rows)
