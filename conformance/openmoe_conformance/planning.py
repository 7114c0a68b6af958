"""What a run is to do, and how many results it owes, counted apart from the doing.

`plan` walks the registry and the opened vectors. `owed` counts decorators in the source text of the
checks and comparisons in the index files: two counts that share no code (invariant 2).
"""

from __future__ import annotations

import ast
import json
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path

from openmoe_conformance import vector_sets
from openmoe_conformance.checks import CHAPTERS, all_checks
from openmoe_conformance.profile import Profile
from openmoe_conformance.vector_cases import SCHEMA, VectorCase

HEAVY = ("gradients", "route", "forward", "loss", "decode", "generate", "train")
"""Comparisons (by first word) of which the quick profile runs every sixth case: those that take a
gradient or run a whole model, and routes from hidden states."""


@dataclass(frozen=True)
class Unit:
    """Work done in one go: checks that call the same function, or one vector case."""

    checks: tuple[str, ...] = ()
    case: VectorCase | None = None
    comparisons: tuple[str, ...] = ()

    @property
    def size(self) -> int:
        """Return how many results it owes."""
        return len(self.checks) + len(self.comparisons)


class Everything(Container[str]):
    """The clause filter that lets all pass."""

    def __contains__(self, _: object) -> bool:
        return True


def plan(
    profile: Profile, clauses: Container[str], folder: Path | None, *, checks: bool
) -> list[Unit]:
    """Return the units of a run over the checks and one folder of vectors."""
    by_function: dict[str, list[str]] = {}
    for check in all_checks() if checks else []:
        if check.clause in clauses:
            function = next(n for n in check.needs if n != "rejects_invalid_input")
            by_function.setdefault(function.partition("(")[0], []).append(check.name)
    units = [Unit(checks=tuple(names)) for names in by_function.values()]
    number_in: dict[str, int] = {}
    for case in vector_sets.open_set(folder) if folder is not None else []:
        number = number_in[case.set_name] = number_in.get(case.set_name, -1) + 1
        wanted = tuple(
            name
            for name, clause in case.comparisons.items()
            if (clause in clauses or not clause) and not _left_out(name, number, profile)
        )
        if wanted:
            units.append(Unit(case=case, comparisons=wanted))
    return units


def _left_out(comparison: str, number: int, profile: Profile) -> bool:
    heavy = comparison.partition("_")[0] in HEAVY
    return heavy and number % profile.heavy_stride != 0


# ---- the independent count ---------------------------------------------------------------------


def owed(
    profile: Profile, clauses: Container[str], folder: Path | None, *, checks: bool
) -> int | None:
    """Return the number of results a run owes; None when the folder is of a foreign layout."""
    total = _decorators(clauses) if checks else 0
    if folder is None:
        return total
    indexes = sorted(folder.glob("index.json")) or sorted(folder.glob("*/index.json"))
    for index in indexes:
        try:
            content = json.loads(index.read_text(encoding="utf-8"))
            if content["schema"] != SCHEMA:
                return None
            rows = content["cases"]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        for number, row in enumerate(rows):
            for name, clause in row.get("comparisons", {}).items():
                thinned = name.split("_")[0] in HEAVY and number % profile.heavy_stride
                total += clause in clauses and not thinned
    return total


def _decorators(clauses: Container[str]) -> int:
    total = 0
    for chapter in CHAPTERS:
        source = Path(__file__).parent / "checks" / f"{chapter}.py"
        for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
            for decorator in getattr(node, "decorator_list", []):
                if isinstance(decorator, ast.Call) and getattr(decorator.func, "id", "") == "check":
                    clause = decorator.args[0]
                    assert isinstance(clause, ast.Constant)
                    total += clause.value in clauses
    return total
