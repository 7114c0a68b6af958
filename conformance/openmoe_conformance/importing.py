"""`openmoe vectors import`: a folder in an upstream layout becomes one in the project's own."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from openmoe_conformance.outcome import UsageError
from openmoe_conformance.upstream_layouts import CHAPTER_OF_GROUP, upstream_cases
from openmoe_conformance.vector_cases import SCHEMA, VectorCase, VectorError


def import_set(source: Path, target: Path) -> dict[str, int]:
    """Write the cases of an upstream folder under `target`, a folder a chapter; return counts.

    Errors: UsageError when the source is not of the layout or one of its cases cannot be read.
    """
    try:
        index = json.loads((source / "index.json").read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "is no JSON"
        raise UsageError(f"{source}/index.json: {reason}") from error
    provenance = {
        "program": index.get("oracle"),
        "python": index.get("python"),
        "versions": index.get("versions"),
        "layout": index.get("format"),
    }
    chapters: dict[str, list[VectorCase]] = {}
    cases = upstream_cases(source, index) if isinstance(index, dict) else None
    if cases is None:
        raise UsageError(
            f"{source}/index.json: is of no upstream layout; a set in the project's own layout "
            "needs no import"
        )
    for case in cases:
        if case.faults:
            raise UsageError(case.faults[0])
        if case.kind in ("group_sizes", "replicas"):
            chapters.setdefault("grouping", []).append(case)
        elif case.kind:
            chapters.setdefault(CHAPTER_OF_GROUP[case.kind], []).append(case)
    for chapter, cases in chapters.items():
        _write_chapter(target / chapter, chapter, cases, provenance)
    return {chapter: len(cases) for chapter, cases in chapters.items()}


def _write_chapter(
    folder: Path, chapter: str, cases: list[VectorCase], provenance: Mapping[str, Any]
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    archives: dict[str, dict[str, np.ndarray]] = {}
    for case in cases:
        if case.file is not None:
            try:
                arrays = case.load()
            except VectorError as error:
                raise UsageError(str(error)) from error
            archives.setdefault(case.file.name, {}).update(
                {f"{case.id}/{name}": value for name, value in arrays.items()}
            )
    files = {}
    for name, content in archives.items():
        path = folder / name
        np.savez_compressed(path, **content)  # type: ignore[arg-type]
        data = path.read_bytes()
        files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}
    index = {
        "schema": SCHEMA,
        "chapter": chapter,
        "provenance": provenance,
        "files": files,
        "cases": [
            {
                "id": case.id,
                "kind": case.kind,
                "exercises": case.exercises,
                "config": case.config,
                "comparisons": case.comparisons,
                "file": case.file.name if case.file else None,
                "arrays": list(case.arrays),
            }
            for case in cases
        ],
    }
    text = json.dumps(index, indent=1, ensure_ascii=False) + "\n"
    (folder / "index.json").write_text(text, encoding="utf-8")
