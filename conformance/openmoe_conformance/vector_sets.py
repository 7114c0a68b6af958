"""Stored vectors: the project's own layout, and the layout they came in.

A set is a folder. Own layout: a folder a chapter, each with `index.json` (schema, provenance,
files with sha256, cases with a clause id for each comparison), npz files with keys `<id>/<array>`
and SentencePiece models; a case may borrow the arrays of another. The upstream layouts `t5x`, `torch_port` and `ul2` have no hashes or clause ids;
`upstream_layouts` supplies those. Whatever is wrong with a file becomes a fault of its cases, never a
crash. The layouts are described in `vectors/README.md`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import Any

from openmoe_conformance.outcome import UsageError
from openmoe_conformance.upstream_layouts import upstream_cases
from openmoe_conformance.vector_cases import SCHEMA, VectorCase
from openmoe_spec import clauses


def built_in() -> Path:
    """Return the folder of the vectors that the kit ships."""
    return Path(str(resources.files("openmoe_conformance").joinpath("vectors")))


def open_set(folder: Path) -> list[VectorCase]:
    """Return the cases of a folder in any documented layout, ordered as its indexes are.

    Errors: UsageError when it is no folder of vectors at all.
    """
    if not folder.is_dir():
        raise UsageError(f"{folder}: no such folder of vectors")
    indexes = [folder / "index.json"] if (folder / "index.json").exists() else []
    indexes = indexes or sorted(folder.glob("*/index.json"))
    if not indexes:
        raise UsageError(f"{folder}: holds no index.json, nor do its folders")
    cases: list[VectorCase] = []
    for index in indexes:
        cases += _open_index(index)
    return cases


def _open_index(index: Path) -> list[VectorCase]:
    try:
        content = json.loads(index.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        return [_broken(index, f"{index.parent.name}/index.json cannot be read: {error}")]
    if not isinstance(content, dict):
        return [_broken(index, f"{index.parent.name}/index.json: must hold an object")]
    if "schema" in content:
        return list(_own(index, content))
    cases = upstream_cases(index.parent, content)
    if cases is None:
        return [_broken(index, f"{index.parent.name}/index.json: is of no documented layout")]
    return cases


def _broken(index: Path, message: str) -> VectorCase:
    name = index.parent.name
    return VectorCase(name, "index.json", "", "", {}, {"index": ""}, (), index, None, (message,))


def _own(index: Path, content: Mapping[str, Any]) -> Iterator[VectorCase]:
    name = index.parent.name
    if content["schema"] != SCHEMA:
        yield _broken(
            index, f"{name}/index.json: schema {content['schema']!r}, this version reads {SCHEMA}"
        )
        return
    known = clauses.load()
    files = content.get("files", {})
    rows = content.get("cases", [])
    lenders = {row["id"]: row for row in rows if isinstance(row, dict) and "id" in row}
    seen: set[str] = set()
    for position, row in enumerate(rows):
        try:
            case = _case(index, row, files)
            lender = row.get("borrows")
            if lender in lenders and "borrows" not in lenders[lender]:
                case = replace(case, lender=_case(index, lenders[lender], files))
        except (KeyError, TypeError, AttributeError) as error:
            yield _broken(index, f"{name}/index.json, case number {position}: lacks {error}")
            continue
        faults = [*_file_faults(index, case), *_file_faults(index, case.lender)]
        if case.id in seen:
            faults.append(f"{name}/index.json, case {case.id}: stands twice")
        seen.add(case.id)
        if lender is not None and case.lender is None:
            faults.append(f"{name}/index.json, case {case.id}: cannot borrow from {lender!r}")
        faults += [
            f"{name}/index.json, case {case.id}: names unknown clause {clause!r}"
            for clause in case.comparisons.values()
            if clause not in known
        ]
        yield replace(case, faults=tuple(faults))


def _case(index: Path, row: Mapping[str, Any], files: Mapping[str, Any]) -> VectorCase:
    model = row.get("model")
    return VectorCase(
        index.parent.name,
        row["id"],
        row["kind"],
        row.get("exercises", ""),
        row["config"],
        row["comparisons"],
        tuple(row.get("arrays", ())),
        index.parent / row["file"] if row.get("file") else None,
        files.get(str(row.get("file")), {}).get("sha256"),
        model=index.parent / model if model else None,
        model_sha256=files.get(str(model), {}).get("sha256"),
    )


def _file_faults(index: Path, case: VectorCase | None) -> list[str]:
    """Return what is wrong with the naming of a case's files: they must lie beside its index."""
    if case is None:
        return []
    where, faults = f"{case.set_name}/index.json, case {case.id}", []
    for file, sha256 in ((case.file, case.sha256), (case.model, case.model_sha256)):
        if file is not None and file.resolve().parent != index.parent.resolve():
            faults.append(f"{where}: file leaves its folder")
        elif file is not None and not sha256:
            faults.append(f"{where}: {file.name} has no sha256")
    return faults
