"""Run every mutant against the kit: which clause catches it, after how many examples."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from typing import Any

from rich.console import Console
from rich.table import Table

from openmoe_conformance import vector_sets
from openmoe_conformance.mutants import Mutant, all_mutants
from openmoe_conformance.outcome import Outcome
from openmoe_conformance.planning import plan
from openmoe_conformance.profile import PROFILES, Profile
from openmoe_conformance.runner import run_unit
from openmoe_conformance.running import Settings
from openmoe_conformance.subject import Subject
from openmoe_spec import clauses


@dataclass(frozen=True)
class Row:
    """What became of one mutant.

    catches  clause -> fewest examples that any of its failing items needed
    examples of the clause the mutant breaks, None when that clause did not catch it
    """

    name: str
    clause: str
    bug: str
    catches: dict[str, int]

    @property
    def examples(self) -> int | None:
        """Return the examples its own clause needed."""
        return self.catches.get(self.clause)

    @property
    def killed(self) -> bool:
        """Whether the clause it breaks catches it."""
        return self.clause in self.catches


def run(
    profile: Profile = PROFILES["quick"],
    *,
    seed: int = 20240202,
    jobs: int = 1,
    progress: Callable[[int, int], None] = lambda *_: None,
) -> list[Row]:
    """Return a row per mutant, in order: the clauses of its chapter run, without shrinking."""
    names = [mutant.name for mutant in all_mutants()]
    settings = Settings(profile, seed, shrink=False)
    rows: dict[str, Row] = {}
    if jobs <= 1:
        for name in names:
            rows[name] = run_mutant(name, settings)
            progress(len(rows), len(names))
        return [rows[name] for name in names]
    with ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn")) as pool:
        running = {pool.submit(run_mutant, name, settings): name for name in names}
        for future in as_completed(running):
            rows[running[future]] = future.result()
            progress(len(rows), len(names))
    return [rows[name] for name in names]


def run_mutant(name: str, settings: Settings, *, own_clause_only: bool = False) -> Row:
    """Return the row of one mutant tried on the clauses of its chapter, or on its own alone."""
    mutant: Mutant = next(m for m in all_mutants() if m.name == name)
    area = mutant.clause.partition("-")[0]
    chapter = frozenset(one for one in clauses.load() if one.partition("-")[0] == area)
    tried = frozenset({mutant.clause}) if own_clause_only else chapter
    subject = Subject(mutant.adapter())
    catches: dict[str, int] = {}
    for unit in plan(settings.profile, tried, vector_sets.built_in(), checks=True):
        for result in run_unit(unit, subject, settings):
            if result.outcome in (Outcome.FAIL, Outcome.ERROR):
                needed = catches.get(result.clause, 10**9)
                catches[result.clause] = min(needed, max(result.examples, 1))
    return Row(mutant.name, mutant.clause, mutant.bug, catches)


def as_json(rows: list[Row]) -> list[dict[str, Any]]:
    """Return the matrix as plain data: name, clause, bug, killed, catches."""
    return [asdict(row) | {"killed": row.killed} for row in rows]


def render(rows: list[Row], console: Console) -> None:
    """Print the matrix and one line of verdict."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for heading in ("mutant", "breaks", "caught", "examples", "also caught by"):
        table.add_column(heading, overflow="fold")
    for row in rows:
        others = [clause for clause in sorted(row.catches) if clause != row.clause]
        table.add_row(
            f"{row.name.partition('.')[2]}: {row.bug}",
            row.clause,
            "[green]yes[/]" if row.killed else "[bold red]SURVIVES[/]",
            str(row.examples or ""),
            " ".join(f"{clause}({row.catches[clause]})" for clause in others),
        )
    console.print(table)
    survivors = [row.name for row in rows if not row.killed]
    console.print(
        f"{len(rows)} mutants, {len(rows) - len(survivors)} caught by the clause they break"
        + (f"; SURVIVING: {', '.join(survivors)}" if survivors else ", none survive"),
        style="bold red" if survivors else "bold green",
    )
