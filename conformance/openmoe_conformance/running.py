"""Run one check: draw or enumerate its cases, shrink what fails, save it for replay."""

from __future__ import annotations

import hashlib
import io
import json
import time
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky
from hypothesis.strategies import SearchStrategy

from openmoe_conformance.adapter import describe
from openmoe_conformance.checks import Case, Check
from openmoe_conformance.outcome import (
    UNDECIDED_BUDGET,
    Disagreement,
    Evidence,
    Outcome,
    Result,
    Source,
    UsageError,
)
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject, UnsupportedError


@dataclass(frozen=True)
class Settings:
    """How checks are run: seed, where failing inputs are saved (None: nowhere), shrinking."""

    profile: Profile
    seed: int = 20240202
    failures: Path | None = None
    shrink: bool = True


def run_check(check: Check, subject: Subject, settings_: Settings) -> Result:
    """Return the result of one check. Never raises for what the implementation does."""
    item = f"check:{check.name}"
    if reason := subject.foreign(check.clause) or subject.lacks(check.needs):
        return Result(item, check.clause, Outcome.SKIPPED, Source.CHECK, message=reason)
    if isinstance(check.cases, SearchStrategy):
        drive = _draw(check, check.cases, subject, settings_)
    else:
        drive = _enumerate(check, check.cases, subject, settings_)
    return judge(
        item, check.clause, Source.CHECK, drive, settings_=settings_, check_name=check.name
    )


Drive = Callable[[Evidence, dict[str, Any]], None]


def judge(
    item: str,
    clause: str,
    source: Source,
    drive: Drive,
    *,
    settings_: Settings | None = None,
    check_name: str = "",
) -> Result:
    """Run `drive` and turn what it raises and gathers into a result."""
    evidence, last = Evidence(), dict[str, Any]()
    started = time.perf_counter()
    outcome, message = Outcome.PASS, ""
    try:
        drive(evidence, last)
    except UnsupportedError as reason:
        outcome, message = Outcome.SKIPPED, str(reason)
    except Disagreement as finding:
        outcome, message = Outcome.FAIL, str(finding)
    except Flaky:
        outcome, message = Outcome.FAIL, "the same input gave another answer the second time"
    except Exception as error:  # noqa: BLE001 - an adapter may raise anything
        outcome, message = Outcome.ERROR, describe(error)
    if outcome is Outcome.PASS and evidence.tokens:
        share = evidence.undecided / evidence.tokens
        if share > UNDECIDED_BUDGET:
            outcome = Outcome.INCONCLUSIVE
            message = f"{share:.2%} of {evidence.tokens} tokens undecided, budget 1 %"
    replay = ""
    folder = settings_.failures if settings_ is not None else None
    if outcome in (Outcome.FAIL, Outcome.ERROR) and "case" in last and folder is not None:
        replay = str(save_case(folder, check_name, clause, last["case"]))
    return Result(
        item,
        clause,
        outcome,
        source,
        examples=last.get("first_failure", evidence.examples),
        error=evidence.error,
        tokens=evidence.tokens,
        undecided=evidence.undecided,
        seconds=time.perf_counter() - started,
        message=message,
        replay=replay,
        details=evidence.details,
    )


def _draw(
    check: Check, strategy: SearchStrategy[Case], subject: Subject, settings_: Settings
) -> Drive:
    phases = (Phase.generate, Phase.shrink) if settings_.shrink else (Phase.generate,)
    profile = settings_.profile

    def drive(evidence: Evidence, last: dict[str, Any]) -> None:
        @seed(settings_.seed)
        @settings(
            max_examples=profile.models if check.whole_model else profile.examples,
            deadline=None,
            database=None,
            phases=phases,
            print_blob=False,
            report_multiple_bugs=False,
            suppress_health_check=list(HealthCheck),
        )
        @given(strategy)
        def run(case: Case) -> None:
            evidence.examples += 1
            try:
                check.body(subject, case, evidence)
            except UnsupportedError as reason:
                last["unsupported"] = reason
            except Exception:
                last.setdefault("first_failure", evidence.examples)
                last["case"] = case
                raise

        run()
        if "unsupported" in last:
            raise last["unsupported"]

    return drive


def _enumerate(
    check: Check,
    cases: Callable[[Profile], Iterator[Case]],
    subject: Subject,
    settings_: Settings,
) -> Drive:
    def drive(evidence: Evidence, last: dict[str, Any]) -> None:
        for case in cases(settings_.profile):
            last["case"] = case
            before = evidence.examples
            try:
                check.body(subject, case, evidence)
            finally:
                evidence.examples = max(evidence.examples, before + 1)

    return drive


# ---- saved cases ---------------------------------------------------------------------------


def save_case(folder: Path, check_name: str, clause: str, case: Case) -> Path:
    """Write a failing case so that `openmoe replay` can run it again; return the file."""
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {name: value for name, value in case.items() if isinstance(value, np.ndarray)}
    plain = {name: _plain(value) for name, value in case.items() if name not in arrays}
    note = json.dumps({"check": check_name, "clause": clause, "values": plain}, sort_keys=True)
    digest = hashlib.sha256(note.encode())
    for name in sorted(arrays):
        digest.update(arrays[name].tobytes())
    path = folder / f"{clause}-{check_name.replace('.', '-')}-{digest.hexdigest()[:8]}.npz"
    np.savez(path, __case__=np.array(note), **arrays)  # type: ignore[arg-type]
    return path


def _plain(value: Any) -> Any:
    return value.item() if isinstance(value, np.generic) else value


def load_case(path: Path) -> tuple[str, Case]:
    """Return the check's name and the case of a saved file. Errors: UsageError."""
    try:
        with np.load(io.BytesIO(path.read_bytes()), allow_pickle=False) as file:
            note = json.loads(str(file["__case__"]))
            case: Case = {name: file[name] for name in file.files if name != "__case__"}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        reason = getattr(error, "strerror", None) or "not a saved failure of this kit"
        raise UsageError(f"{path}: {reason}") from error
    return note["check"], case | note["values"]


def replay(path: Path, checks: list[Check], subject: Subject) -> Result:
    """Run the one check of a saved case on that case alone. Errors: UsageError."""
    name, case = load_case(path)
    found = [check for check in checks if check.name == name]
    if not found:
        raise UsageError(f"{path}: this version has no check {name}")

    def drive(evidence: Evidence, _: dict[str, Any]) -> None:
        found[0].body(subject, case, evidence)
        evidence.examples = max(evidence.examples, 1)

    item = f"replay:{name}"
    if reason := subject.lacks(found[0].needs):
        return Result(item, found[0].clause, Outcome.SKIPPED, Source.CHECK, message=reason)
    return judge(item, found[0].clause, Source.CHECK, drive)
