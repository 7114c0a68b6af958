"""The report of a run as one dictionary, of which every rendering is made.

Its schema is `report.schema.json`, beside this file.
"""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from openmoe_conformance.outcome import Outcome, Result, exit_code, ledger
from openmoe_conformance.subject import Subject
from openmoe_spec import SPEC_VERSION, __version__, clauses

SCHEMA = "openmoe-conformance-report/1"

# The worst outcome of a clause's items is the clause's: from best to worst.
_SEVERITY = (
    Outcome.SKIPPED,
    Outcome.PASS,
    Outcome.XFAIL,
    Outcome.INCONCLUSIVE,
    Outcome.XPASS,
    Outcome.ERROR,
    Outcome.FAIL,
)


def build(
    subject: Subject,
    results: Sequence[Result],
    planned: int,
    *,
    implementation: str,
    profile: str,
    seed: int,
    seconds: float,
    real_input: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return the report; every clause of SPEC.md appears, run or not.

    `implementation` is the name that `--implementation` was given.
    """
    balance = ledger(planned, results)
    code = exit_code(list(results), planned)
    return {
        "schema": SCHEMA,
        "spec_version": SPEC_VERSION,
        "kit_version": __version__,
        "profile": profile,
        "seed": seed,
        "seconds": round(seconds, 2),
        "implementation": {
            "loaded": implementation,
            "name": subject.name,
            "version": subject.version,
            "url": subject.url,
            "arithmetic": asdict(subject.arithmetic),
            "functions": list(subject.functions),
            "notes": list(subject.notes),
        },
        "verdict": {"exit_code": code, "line": _verdict(subject, results, planned, code)},
        "ledger": {
            "planned": planned,
            "balanced": balance.balanced,
            **{outcome.value: count for outcome, count in balance.counts.items()},
        },
        "clauses": [_clause_row(clause, results) for clause in clauses.load().values()],
        "results": [_result_row(result) for result in results],
        "resolution": _resolution(results),
        "real_input": real_input,
    }


def replay_command(report: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """Return the command that runs a saved failure again."""
    loaded = report["implementation"]["loaded"]
    return shlex.join(["openmoe", "replay", result["replay"], "--implementation", loaded])


def _result_row(result: Result) -> dict[str, Any]:
    row = asdict(result)
    row["outcome"], row["source"] = result.outcome.value, result.source.value
    row["seconds"] = round(result.seconds, 4)
    return row


def _clause_row(clause: clauses.Clause, results: Iterable[Result]) -> dict[str, Any]:
    own = [result for result in results if result.clause == clause.id]
    executed = [result for result in own if result.outcome is not Outcome.SKIPPED]
    errors = [result.error for result in executed if result.error is not None]
    if own:
        outcome = max((r.outcome for r in own), key=_SEVERITY.index).value
    else:
        outcome = "not run" if clause.normative else "informative"
    return {
        "id": clause.id,
        "class": clause.kind,
        "chapter": clause.chapter,
        "text": clause.text,
        "source": clause.source,
        "outcome": outcome,
        "examples": sum(result.examples for result in executed),
        "error": max(errors) if errors else None,
        "items": len(own),
        "executed": len(executed),
    }


def _resolution(results: Iterable[Result]) -> dict[str, Any] | None:
    for result in results:
        if "ladder" in result.details:
            return {"line": result.details["resolution"], "rungs": result.details["ladder"]}
    return None


def _verdict(subject: Subject, results: Sequence[Result], planned: int, code: int) -> str:
    counts = ledger(planned, results).counts
    executed = len(results) - counts[Outcome.SKIPPED]
    tail = f", {counts[Outcome.SKIPPED]} skipped" if counts[Outcome.SKIPPED] else ""
    expected = counts[Outcome.XFAIL]
    unbalanced = f"{len(results)} results where {planned} are owed"
    if code == 0:
        clauses_run = {r.clause for r in results if r.outcome is not Outcome.SKIPPED and r.clause}
        but = f" but {expected} known to fail," if expected else ""
        return (
            f"HOLDS: {subject.name} conforms in all {executed} executed items{but} of "
            f"{len(clauses_run)} clause{'s' * (len(clauses_run) != 1)}{tail}"
        )
    tail += f", {expected} known to fail" if expected else ""
    if code == 1:
        bad = [
            r
            for r in results
            if r.outcome in (Outcome.FAIL, Outcome.XPASS)
            or (r.outcome is Outcome.ERROR and r.fault != "kit")
        ]
        ids = sorted({r.clause for r in bad if r.clause}) or ["unnamed"]
        tail += f"; {unbalanced}" if len(results) != planned else ""
        return (
            f"DOES NOT HOLD: {len(bad)} of {executed} executed items, "
            f"clauses {', '.join(ids)}{tail}"
        )
    reasons = []
    if not executed:
        reasons.append("nothing was executed")
    if counts[Outcome.ERROR]:
        reasons.append(f"{counts[Outcome.ERROR]} items whose vectors cannot be used")
    if counts[Outcome.INCONCLUSIVE]:
        reasons.append(f"{counts[Outcome.INCONCLUSIVE]} inconclusive")
    if len(results) != planned:
        reasons.append(unbalanced)
    return f"INCOMPLETE: {'; '.join(reasons)}{tail}"
