"""`openmoe conform` and `openmoe replay`: from options to a report and an exit code."""

from __future__ import annotations

import importlib.util
import json as json_module
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from openmoe_conformance import (
    adapter,
    expected_failures,
    kill_matrix,
    planning,
    real_input,
    report,
    report_html,
    report_junit,
    report_terminal,
    runner,
    running,
    vector_sets,
)
from openmoe_conformance.checks import all_checks
from openmoe_conformance.outcome import Outcome, Result, Source, UsageError, exit_code
from openmoe_conformance.profile import PROFILES, Profile
from openmoe_conformance.subject import Subject
from openmoe_spec import clauses
from openmoe_tools import files, identifying, terminal
from openmoe_tools.data import tokenizer
from openmoe_tools.data.corpus import CorpusError

ALIASES = {
    "production": "openmoe_production.adapter:Adapter",
    "reference": "openmoe_conformance.reference_adapter:ReferenceAdapter",
}
"""Short names of the project's own implementations."""


def named(implementation: str) -> str:
    """Return the full name of an implementation; what stands behind an @ stays."""
    short, at, text = implementation.partition("@")
    return ALIASES.get(short, short) + at + text


@dataclass(frozen=True)
class Request:
    """The options of `openmoe conform`."""

    implementation: str
    profile: str
    vectors: Path | None
    clauses: tuple[str, ...]
    real_input: bool
    expected_failures: Path | None
    failures: Path | None
    json: Path | None
    junit: Path | None
    html: Path | None
    seed: int
    jobs: int


def conform(request: Request) -> int:
    """Run the request, print and write the report, return the exit code. Errors: UsageError."""
    started = time.perf_counter()
    profile = _profile(request.profile)
    wanted = _clauses(request.clauses)
    expected = (
        expected_failures.read(request.expected_failures) if request.expected_failures else []
    )
    files.writable(request.json, request.junit, request.html)
    files.folder(request.failures)
    name = named(request.implementation)
    subject = Subject(_load(request.implementation, name))
    console = terminal.console()
    console.print(
        f"openmoe conform: {subject.name} {subject.version}, profile {profile.name}, "
        f"seed {request.seed}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    for note in subject.notes:
        console.print(f"note: {note}", highlight=False, markup=False, soft_wrap=True)
    options = runner.Options(
        implementation=name,
        profile=profile,
        seed=request.seed,
        clauses=wanted,
        vectors=request.vectors or vector_sets.built_in(),
        checks=request.vectors is None,
        failures=request.failures,
        jobs=request.jobs or min(os.cpu_count() or 1, 4),
    )
    with _progress(console, "checks and vectors") as step:
        results, planned = runner.run(options, subject, lambda done, all_, _: step(done, all_))
    figures = None
    with_text = request.real_input and request.vectors is None
    if with_text and any(clause in wanted for clause in real_input.ITEMS.values()):
        found, figures = _real_input(subject, profile, console)
        kept = [result for result in found if result.clause in wanted]
        results += kept
        planned += real_input.count_items() - (len(found) - len(kept))
    complaints: list[str] = []
    if request.expected_failures:
        results, complaints = expected_failures.apply(
            expected, results, request.expected_failures, selected=wanted
        )
    made = report.build(
        subject,
        results,
        planned,
        implementation=request.implementation,
        profile=profile.name,
        seed=request.seed,
        seconds=time.perf_counter() - started,
        real_input=figures,
    )
    report_terminal.render(made, console)
    files.write(request.json, lambda: json_module.dumps(made, indent=1, allow_nan=False) + "\n")
    files.write(request.junit, lambda: report_junit.render(made))
    files.write(request.html, lambda: report_html.render(made))
    if complaints:
        raise UsageError("; ".join(complaints))
    code: int = made["verdict"]["exit_code"]
    return code


def mutants(request: Request) -> int:
    """Run every mutant, print the kill matrix; 1 when one survives. Errors: UsageError."""
    profile = _profile(request.profile)
    files.writable(request.json)
    console = terminal.console()
    console.print(f"openmoe conform --mutants: profile {profile.name}", highlight=False)
    with _progress(console, "mutants") as step:
        rows = kill_matrix.run(
            profile,
            seed=request.seed,
            jobs=request.jobs or min(os.cpu_count() or 1, 4),
            progress=step,
        )
    kill_matrix.render(rows, console)
    files.write(request.json, lambda: json_module.dumps(kill_matrix.as_json(rows), indent=1) + "\n")
    return 0 if rows and all(row.killed for row in rows) else 1


def identify(request: Request) -> int:
    """Print choices and dialect: 0 one dialect, 1 a mixture, 2 undecided. Errors: UsageError."""
    name = named(request.implementation)
    subject = Subject(_load(request.implementation, name))
    return identifying.run(subject, terminal.console(), request.json)


def replay(file: Path, implementation: str, json: Path | None) -> int:
    """Run one saved case again; return the exit code. Errors: UsageError."""
    checks = all_checks()
    files.writable(json)
    running.load_case(file)  # complain of the file before loading an implementation
    name = named(implementation)
    subject = Subject(_load(implementation, name))
    result = running.replay(file, checks, subject)
    made = report.build(
        subject,
        [result],
        1,
        implementation=implementation,
        profile="replay",
        seed=0,
        seconds=result.seconds,
    )
    _, case = running.load_case(file)
    console = terminal.console()
    for key, value in case.items():
        console.print(f"{key} = {value}", highlight=False, markup=False)
    report_terminal.render(made, console)
    files.write(json, lambda: json_module.dumps(made, indent=1, allow_nan=False) + "\n")
    return exit_code([result], 1)


def _profile(name: str) -> Profile:
    if name not in PROFILES:
        raise UsageError(f"--profile {name}: must be one of {', '.join(PROFILES)}")
    return PROFILES[name]


def _clauses(names: tuple[str, ...]) -> Any:
    known = clauses.load()
    for name in names:
        if name not in known:
            raise UsageError(
                f"--clause {name}: SPEC.md has no such clause; write it as ROUTE-04, and repeat "
                "--clause for more than one"
            )
        if not known[name].normative:
            raise UsageError(f"--clause {name}: it is informative, so there is nothing to run")
    return frozenset(names) if names else planning.Everything()


def require_jax(what: str) -> None:
    """Refuse `what` where JAX is not installed. Errors: UsageError."""
    try:
        found = importlib.util.find_spec("jax") is not None
    except ValueError:  # a module that was put in its place
        found = False
    if not found:
        raise UsageError(f"{what} needs JAX: pip install 'openmoe-spec[production]'")


def _load(given: str, name: str) -> Any:
    if given.partition("@")[0] == "production":
        require_jax("--implementation production")
    # A stranger's adapter may lie in the folder the command is run from.
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    return adapter.load(name)


def _real_input(
    subject: Subject, profile: Profile, console: Console
) -> tuple[list[Result], dict[str, Any] | None]:
    lacking = subject.lacks(("moe",)) and subject.lacks(("route",))
    if lacking:
        return _skipped("offers neither moe() nor route()"), None
    try:
        console.print("training a tokeniser on the standard library's text ...", style="dim")
        text = tokenizer.real_token_ids(profile.real_tokens)
    except (CorpusError, tokenizer.MissingExtraError) as error:
        return _skipped(str(error)), None
    with _progress(console, "real input") as step:

        def progress(_: str, done: int, groups: int) -> None:
            step(done, groups)

        results, passes = real_input.run(subject, text.token_ids, text.vocabulary_size, progress)
    return results, {
        "tokens": len(text.token_ids),
        "documents": text.documents,
        "vocabulary_size": text.vocabulary_size,
        "text_sha256": text.text_sha256,
        "model_sha256": text.model_sha256,
        "passes": passes,
    }


def _skipped(reason: str) -> list[Result]:
    return [
        Result(
            f"real input:{name}, factor {factor}/{item}",
            clause,
            Outcome.SKIPPED,
            Source.REAL_INPUT,
            message=reason,
        )
        for name, factor in real_input.PASSES
        for item, clause in real_input.ITEMS.items()
    ]


@contextmanager
def _progress(console: Console, what: str) -> Iterator[Callable[[int, int], None]]:
    """Yield a function of (done, all): a bar on a terminal, plain lines elsewhere."""
    if not console.is_terminal:
        last = [0]

        def say(done: int, total: int) -> None:
            tenth = 10 * done // max(total, 1)
            if tenth > last[0]:
                last[0] = tenth
                print(f"{what}: {done} of {total}", flush=True)

        yield say
        return
    columns = (TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
