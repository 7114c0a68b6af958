"""`openmoe vectors import`: a folder in an upstream layout becomes one in the project's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_conformance.upstream_layouts import upstream_cases
from openmoe_conformance.vector_cases import SCHEMA, Arrays, VectorCase, VectorError


def import_set(source: Path, target: Path) -> dict[str, int]:
    """Write the cases of an upstream folder under `target`, a folder a chapter; return counts.

    Errors: UsageError when the source is not of the layout or one of its cases cannot be read.
    """
    try:
        index = json.loads((source / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is no JSON"
        raise UsageError(f"{source}/index.json: {reason}") from error
    cases = upstream_cases(source, index) if isinstance(index, dict) else None
    if cases is None:
        raise UsageError(
            f"{source}/index.json: is of no upstream layout; a set in the project's own layout "
            "needs no import"
        )
    chapters: dict[str, list[VectorCase]] = {}
    for case in cases:
        if case.faults:
            raise UsageError(case.faults[0])
        if case.chapter:
            chapters.setdefault(case.chapter, []).append(case)
    given = index.get("versions")
    versions = given if isinstance(given, dict) else {}
    provenance = {
        "program": index.get("oracle", index.get("source", versions.get("t5_fork"))),
        "python": index.get("python", versions.get("python")),
        "versions": given,
        "layout": index.get("format", index.get("conventions")),
    }
    try:
        return {
            chapter: _write_chapter(target / chapter, chapter, found, provenance)
            for chapter, found in chapters.items()
        }
    except VectorError as error:
        raise UsageError(str(error)) from error


def _write_chapter(
    folder: Path, chapter: str, cases: list[VectorCase], provenance: Mapping[str, Any]
) -> int:
    """Write one folder, lenders of its cases included; return how many cases it has."""
    folder.mkdir(parents=True, exist_ok=True)
    lenders = [case.lender for case in cases if case.lender]
    every = {case.id: case for case in [*cases, *lenders]}
    archives: dict[str, dict[str, ndarray]] = {}
    stored = {name: case.own() for name, case in every.items()}
    rows: list[dict[str, Any]] = []
    # What is compared with nothing, and only lends its arrays, stands at the end.
    for case in sorted(every.values(), key=lambda case: not case.comparisons):
        lender = case.lender.id if case.lender else _alike(case, rows, stored)
        lent = stored[lender] if lender else {}
        arrays = {n: a for n, a in stored[case.id].items() if not _equal(a, lent.get(n))}
        file = f"{case.file.stem}.npz" if case.file and arrays else None
        if file:
            archives.setdefault(file, {}).update({f"{case.id}/{n}": a for n, a in arrays.items()})
        row = {
            "id": case.id,
            "kind": case.kind,
            "exercises": case.exercises,
            "config": case.config,
            "comparisons": case.comparisons,
            "file": file,
            "arrays": list(arrays),
        }
        row |= {"borrows": lender} if lender else {}
        rows.append(row | ({"model": case.model.name} if case.model else {}))
    for name, content in archives.items():
        np.savez_compressed(folder / name, **content)  # type: ignore[arg-type]
    models = {case.model.name: case.model for case in every.values() if case.model}
    for name, model in models.items():
        (folder / name).write_bytes(model.read_bytes())
    files = {}
    for name in (*archives, *models):
        data = (folder / name).read_bytes()
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    index = {"schema": SCHEMA, "chapter": chapter, "provenance": provenance, "files": files}
    (folder / "index.json").write_text(_text(index, rows), encoding="utf-8")
    return len(rows)


def _alike(
    case: VectorCase, rows: list[dict[str, Any]], stored: Mapping[str, Arrays]
) -> str | None:
    """Return an earlier case of the same arrays, nearly all of them equal: they are borrowed.

    A call borrows nothing: its arguments and its answer are known by the arrays of its own.
    """
    mine = stored[case.id] if case.kind != "call" else {}
    for row in rows:
        theirs = stored[row["id"]]
        if row["kind"] == case.kind and "borrows" not in row and theirs.keys() == mine.keys():
            same = sum(array.nbytes for n, array in mine.items() if _equal(array, theirs[n]))
            if same > 0.9 * sum(array.nbytes for array in mine.values()):
                return str(row["id"])
    return None


def _equal(one: ndarray, other: ndarray | None) -> bool:
    return other is not None and one.dtype == other.dtype and np.array_equal(one, other)


def _text(index: Mapping[str, Any], rows: list[dict[str, Any]]) -> str:
    """Return an index file: a case a line."""
    head = json.dumps(index, indent=1, ensure_ascii=False).removesuffix("\n}")
    lines = ",\n".join("  " + json.dumps(row, ensure_ascii=False) for row in rows)
    return f'{head},\n "cases": [\n{lines}\n ]\n}}\n'
