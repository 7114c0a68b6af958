"""The expected-failures file: known defects of an implementation, each with its issue.

One line each: `ROUTE-09  https://tracker.example/12  # reason`. The first word is a clause id or an
item as the report prints it. A line that matches nothing is an error.
"""

from __future__ import annotations

import re
from collections.abc import Container
from dataclasses import dataclass, replace
from pathlib import Path

from openmoe_conformance.outcome import Outcome, Result, UsageError
from openmoe_spec import clauses

_LINE = re.compile(r"(?P<id>\S.*?)\s+(?P<url>https?://\S+)\s*(?:#.*)?")


@dataclass(frozen=True)
class Expectation:
    """One line of the file."""

    line: int
    id: str
    url: str

    def covers(self, result: Result) -> bool:
        """Whether the line speaks of this result."""
        return self.id in (result.clause, result.item)


def read(path: Path) -> list[Expectation]:
    """Return the file's lines. Errors: UsageError naming file and line."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UsageError(f"--expected-failures {path}: {reason}") from error
    expected: list[Expectation] = []
    known = clauses.load()
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = _LINE.fullmatch(line.strip())
        if match is None:
            raise UsageError(f"{path}:{number}: write it as `CLAUSE  https://issue  # reason`")
        if ":" not in match["id"] and match["id"] not in known:
            raise UsageError(f"{path}:{number}: there is no clause {match['id']}")
        if match["id"] in {line.id for line in expected}:
            raise UsageError(f"{path}:{number}: {match['id']} stands there twice")
        expected.append(Expectation(number, match["id"], match["url"]))
    return expected


def apply(
    expected: list[Expectation], results: list[Result], path: Path, *, selected: Container[str]
) -> tuple[list[Result], list[str]]:
    """Return the results with expected failures marked, and complaints of lines that match nothing.

    A line whose failures all pass makes an unexpected pass. Lines of clauses that were not
    `selected` for this run say nothing about it.
    """
    changed, complaints = list(results), []
    for expectation in expected:
        covered = [i for i, result in enumerate(changed) if expectation.covers(result)]
        executed = [i for i in covered if changed[i].outcome is not Outcome.SKIPPED]
        if not executed:
            asked = expectation.id in selected or ":" in expectation.id
            if asked:
                why = "every such item was skipped" if covered else "nothing of that name was run"
                where = f"{path}:{expectation.line}"
                complaints.append(f"{where}: {expectation.id} matches nothing: {why}")
            continue
        failed = [
            i
            for i in executed
            if changed[i].outcome in (Outcome.FAIL, Outcome.ERROR, Outcome.XFAIL)
        ]
        for i in failed:
            changed[i] = replace(changed[i], outcome=Outcome.XFAIL, url=expectation.url)
        if not failed:
            first = executed[0]
            message = f"{path.name}:{expectation.line} expects a failure, and everything passed"
            changed[first] = replace(
                changed[first], outcome=Outcome.XPASS, message=message, url=expectation.url
            )
    return changed, complaints
