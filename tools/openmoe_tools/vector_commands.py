"""`openmoe vectors`: list, import and export."""

from __future__ import annotations

import json as json_module
import shutil
import tempfile
from collections import Counter
from pathlib import Path

from openmoe_conformance import importing, vector_sets
from openmoe_conformance.outcome import UsageError
from openmoe_tools import files


def list_cases(folder: Path | None, json: Path | None) -> int:
    """Print the cases, a line each; return 2 when one of them cannot be used."""
    files.writable(json)
    cases = vector_sets.open_set(folder or vector_sets.built_in())
    rows = []
    for case in cases:
        clauses = sorted({clause for clause in case.comparisons.values() if clause})
        fault = case.faults[0] if case.faults else ""
        rows.append(
            {
                "set": case.set_name,
                "id": case.id,
                "kind": case.kind,
                "clauses": clauses,
                "exercises": case.exercises,
                "fault": fault,
            }
        )
        print(
            f"{case.set_name}/{case.id}  {case.kind or '(later chapter)'}  "
            f"{' '.join(clauses)}  {fault or case.exercises}"
        )
    kinds = Counter(case.kind or "(later chapter)" for case in cases)
    print(f"{len(cases)} cases: " + ", ".join(f"{n} {kind}" for kind, n in sorted(kinds.items())))
    files.write(json, lambda: json_module.dumps(rows, indent=1) + "\n")
    return 2 if any(case.faults for case in cases) else 0


def import_folder(source: Path, target: Path) -> int:
    """Write `source` in the own layout as the new folder `target`. Errors: UsageError."""
    _must_be_new(target)
    with tempfile.TemporaryDirectory(dir=_parent(target)) as work:
        counts = importing.import_set(source, Path(work) / "set")
        (Path(work) / "set").replace(target)
    print(f"{target}: " + ", ".join(f"{count} cases in {name}" for name, count in counts.items()))
    return 0


def export(target: Path) -> int:
    """Copy the shipped vectors to the new folder `target`. Errors: UsageError."""
    _must_be_new(target)
    with tempfile.TemporaryDirectory(dir=_parent(target)) as work:
        shutil.copytree(vector_sets.built_in(), Path(work) / "set")
        (Path(work) / "set").replace(target)
    print(f"{target}: written")
    return 0


def _must_be_new(target: Path) -> None:
    if target.exists():
        raise UsageError(f"{target}: exists already; name a new folder")


def _parent(target: Path) -> Path:
    parent = target.absolute().parent
    if not parent.is_dir():
        raise UsageError(f"{parent}: no such folder")
    return parent
