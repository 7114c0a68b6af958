"""The clauses of SPEC.md: a parser of its text, and the committed result `clauses.json`."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from importlib import resources

CLASSES = {
    "E": "exact",
    "T": "tolerance",
    "D": "decision under the interval rule",
    "P": "distribution",
    "S": "structure of a program or stream",
    "R": "must reject",
    "I": "informative",
}
"""Clause classes by letter (CONF-03)."""

_HEAD = re.compile(r"\*\*\[([A-Z]+-\d\d)\] \(([A-Z])\)\*\* ")
_BOLD_ID = re.compile(r"\*\*\[([A-Z]+[-\d]*)")
_CHAPTER = re.compile(r"## \d+ (.+)")


class SpecTextError(ValueError):
    """SPEC.md breaks the form that the parser relies on; the message names the clause."""


@dataclass(frozen=True)
class Clause:
    """One numbered statement: `kind` is a key of CLASSES, `source` a reason for class I."""

    id: str
    kind: str
    chapter: str
    text: str
    source: str

    @property
    def normative(self) -> bool:
        """Whether an implementation can break it."""
        return self.kind != "I"


def parse(text: str) -> list[Clause]:
    """Return the clauses of a SPEC.md in order.

    Errors: SpecTextError on a repeated id, an unknown class, a normative clause without a MUST or
    source, an informative one without a reason, or a bold id in the wrong form.
    """
    clauses: list[Clause] = []
    chapter = ""
    for block in re.split(r"\n\s*\n", text):
        flat = " ".join(block.split())
        inside = _BOLD_ID.search(flat, 1)
        if inside:
            raise SpecTextError(f"{inside.group(1)} must begin its own paragraph: {flat[:60]!r}")
        if match := _CHAPTER.fullmatch(flat):
            chapter = match.group(1)
        elif match := _HEAD.match(flat):
            clauses.append(_clause(match.group(1), match.group(2), chapter, flat[match.end() :]))
        elif _BOLD_ID.match(flat):
            raise SpecTextError(f"a clause must begin **[AREA-01] (E)**: {flat[:60]!r}")
    seen: set[str] = set()
    for clause in clauses:
        if clause.id in seen:
            raise SpecTextError(f"{clause.id} stands twice")
        seen.add(clause.id)
    return clauses


def _clause(identifier: str, kind: str, chapter: str, body: str) -> Clause:
    if kind not in CLASSES:
        raise SpecTextError(f"{identifier} has unknown class {kind!r}")
    mark = " Reason: " if kind == "I" else " — "
    text, found, source = body.rpartition(mark)
    if not found or not source:
        raise SpecTextError(f"{identifier} needs {mark.strip()!r} and what follows it")
    if kind != "I" and "MUST" not in text:
        raise SpecTextError(f"{identifier} is normative and says no MUST")
    return Clause(identifier, kind, chapter, text, source)


def dump(clauses: list[Clause]) -> str:
    """Return the text of `clauses.json`."""
    return json.dumps([asdict(clause) for clause in clauses], indent=1, ensure_ascii=False) + "\n"


def load() -> dict[str, Clause]:
    """Return the committed clauses by id, in the order of SPEC.md."""
    text = resources.files("openmoe_spec").joinpath("clauses.json").read_text(encoding="utf-8")
    return {row["id"]: Clause(**row) for row in json.loads(text)}
