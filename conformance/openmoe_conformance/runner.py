"""Run a plan against an implementation, in this process or in several, and keep the ledger."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Container, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openmoe_conformance import adapter, vector_kinds
from openmoe_conformance.checks import all_checks
from openmoe_conformance.outcome import Evidence, Outcome, Result, Source
from openmoe_conformance.planning import Everything, Unit, owed, plan
from openmoe_conformance.profile import PROFILES, Profile
from openmoe_conformance.running import Settings, judge, run_check
from openmoe_conformance.subject import Subject
from openmoe_conformance.vector_cases import VectorError

Progress = Callable[[int, int, Result], None]
"""Called with results so far, results planned and the newest result."""


@dataclass(frozen=True)
class Options:
    """What to run. An `implementation` that has a name is loaded in `jobs` other processes."""

    implementation: str
    profile: Profile = field(default=PROFILES["quick"])
    seed: int = 20240202
    clauses: Container[str] = field(default_factory=Everything)
    vectors: Path | None = None
    checks: bool = True
    failures: Path | None = None
    jobs: int = 1

    @property
    def settings(self) -> Settings:
        """Return how each check is run."""
        return Settings(self.profile, self.seed, self.failures)


def run(
    options: Options, subject: Subject, progress: Progress = lambda *_: None
) -> tuple[list[Result], int]:
    """Return the results in the plan's order and the number owed by the independent count."""
    units = plan(options.profile, options.clauses, options.vectors, checks=options.checks)
    counted = owed(options.profile, options.clauses, options.vectors, checks=options.checks)
    planned = sum(unit.size for unit in units) if counted is None else counted
    results: dict[int, list[Result]] = {}
    done = 0
    for number, found in _execute(options, subject, units):
        results[number] = found
        for result in found:
            done += 1
            progress(done, planned, result)
    return [result for number in sorted(results) for result in results[number]], planned


def _execute(
    options: Options, subject: Subject, units: list[Unit]
) -> Iterator[tuple[int, list[Result]]]:
    """Yield each unit's number and results; an implementation that can be named runs elsewhere."""
    if not options.implementation:
        for number, unit in enumerate(units):
            yield number, run_unit(unit, subject, options.settings)
        return
    left = dict(enumerate(units))
    with _pool(options, min(options.jobs, len(units)) or 1) as pool:
        running = {pool.submit(_run_in_worker, unit): number for number, unit in left.items()}
        for future in as_completed(running):
            try:
                found = future.result()
            except BrokenProcessPool:
                break
            del left[running[future]]
            yield running[future], found
    # The implementation ended a process. Each unit that is left has one of its own, so that the
    # one at fault, and no other, is an error.
    for number, unit in left.items():
        with _pool(options, 1) as pool:
            try:
                yield number, pool.submit(_run_in_worker, unit).result()
            except BrokenProcessPool:
                yield number, _lost(unit, subject)


def _pool(options: Options, jobs: int) -> ProcessPoolExecutor:
    # Spawned, not forked: an implementation may have started threads that a fork would lose.
    context = multiprocessing.get_context("spawn")
    arguments = (options.implementation, options.settings)
    return ProcessPoolExecutor(jobs, context, _start_worker, arguments)


def _lost(unit: Unit, subject: Subject) -> list[Result]:
    message = "the implementation ended its process"
    found = []
    for check in all_checks() if unit.checks else []:
        if check.name in unit.checks:
            lacking = subject.lacks(check.needs)
            outcome = Outcome.SKIPPED if lacking else Outcome.ERROR
            text = lacking or message
            item = f"check:{check.name}"
            found.append(Result(item, check.clause, outcome, Source.CHECK, message=text))
    if unit.case is not None:
        found += [
            Result(item, clause, Outcome.ERROR, Source.VECTOR, message=message)
            for item, clause in _vector_items(unit)
        ]
    return found


_worker: dict[str, Any] = {}


def _start_worker(implementation: str, settings: Settings) -> None:
    _worker["subject"] = Subject(adapter.load(implementation))
    _worker["settings"] = settings


def _run_in_worker(unit: Unit) -> list[Result]:
    return run_unit(unit, _worker["subject"], _worker["settings"])


def run_unit(unit: Unit, subject: Subject, settings: Settings) -> list[Result]:
    """Return the results of one unit of work."""
    checks = {check.name: check for check in all_checks()} if unit.checks else {}
    found = [run_check(checks[name], subject, settings) for name in unit.checks]
    return found + (_run_case(unit, subject) if unit.case is not None else [])


def _vector_items(unit: Unit) -> list[tuple[str, str]]:
    case = unit.case
    assert case is not None
    return [
        (f"vector:{case.set_name}/{case.id}/{name}", case.comparisons[name])
        for name in unit.comparisons
    ]


def _run_case(unit: Unit, subject: Subject) -> list[Result]:
    case = unit.case
    assert case is not None
    try:
        arrays = case.load()
    except VectorError as error:
        return [
            Result(i, clause, Outcome.ERROR, Source.VECTOR, message=str(error), fault="kit")
            for i, clause in _vector_items(unit)
        ]
    if case.skip:
        return [
            Result(i, clause, Outcome.SKIPPED, Source.VECTOR, message=case.skip)
            for i, clause in _vector_items(unit)
        ]
    if missing := vector_kinds.missing(case):
        return [
            Result(i, clause, Outcome.ERROR, Source.VECTOR, message=missing, fault="kit")
            for i, clause in _vector_items(unit)
        ]
    found = []
    for (item, clause), name in zip(_vector_items(unit), unit.comparisons, strict=True):
        if reason := subject.foreign(clause):
            found.append(Result(item, clause, Outcome.SKIPPED, Source.VECTOR, message=reason))
            continue

        def drive(evidence: Evidence, _: dict[str, Any], name: str = name) -> None:
            vector_kinds.compare(subject, case, name, arrays, evidence)

        found.append(judge(item, clause, Source.VECTOR, drive))
    return found
