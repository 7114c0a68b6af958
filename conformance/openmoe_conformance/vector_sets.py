"""Stored vectors: the project's own layout, and the layout they came in.

A set is a folder. Own layout: a folder a chapter, each with `index.json` (schema, provenance,
files with sha256, cases with a clause id for each comparison) and npz files with keys
`<id>/<array>`. The upstream layouts `t5x`, `torch_port` and `ul2` have no hashes or clause ids;
`importing` supplies those. Whatever is wrong with a file becomes a fault of its cases, never a
crash. The layouts are described in `vectors/README.md`.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_spec import clauses

SCHEMA = 1
"""Version of the own layout."""


class VectorError(Exception):
    """A vector file or case that cannot be used; the message names file and case."""


@dataclass(frozen=True)
class VectorCase:
    """One stored case. `comparisons` maps what is compared to the clause it decides.

    `skip` says why no version of this kit, or only a later one, can run it; `faults` why it is
    unusable.
    """

    set_name: str
    id: str
    kind: str
    exercises: str
    config: Mapping[str, Any]
    comparisons: Mapping[str, str]
    arrays: tuple[str, ...]
    file: Path | None
    sha256: str | None = None
    faults: tuple[str, ...] = field(default=())
    skip: str = ""

    def load(self) -> dict[str, ndarray]:
        """Return the arrays. Errors: VectorError naming the file and the case."""
        if self.faults:
            raise VectorError(self.faults[0])
        if self.file is None:
            return {}
        where = f"{self.file.name}, case {self.id}"
        try:
            content = _archive(str(self.file), self.sha256)
        except VectorError as error:
            raise VectorError(f"{where}: {error}") from error
        found = {}
        for name in self.arrays:
            try:
                found[name] = content[f"{self.id}/{name}"]
            except KeyError:
                raise VectorError(f"{where}: array {name} is missing") from None
            except Exception as error:
                raise VectorError(f"{where}: array {name} cannot be read ({error})") from error
        return found


_OPEN: dict[tuple[str, str | None], Any] = {}


def _archive(path: str, sha256: str | None) -> Any:
    key = (path, sha256)
    if key not in _OPEN:
        try:
            content = Path(path).read_bytes()
        except OSError as error:
            raise VectorError(f"cannot be read ({error.strerror})") from error
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise VectorError("its sha256 is not the one in index.json: truncated or changed")
        try:
            _OPEN[key] = np.load(io.BytesIO(content), allow_pickle=False)
        except Exception as error:
            raise VectorError(f"is no whole npz archive ({error})") from error
    return _OPEN[key]


def built_in() -> Path:
    """Return the folder of the vectors that the kit ships."""
    return Path(str(resources.files("openmoe_conformance").joinpath("vectors")))


def open_set(folder: Path) -> list[VectorCase]:
    """Return the cases of a folder in any documented layout, ordered as its indexes are.

    Errors: UsageError when it is no folder of vectors at all.
    """
    if not folder.is_dir():
        raise UsageError(f"--vectors {folder}: no such folder")
    indexes = [folder / "index.json"] if (folder / "index.json").exists() else []
    indexes = indexes or sorted(folder.glob("*/index.json"))
    if not indexes:
        raise UsageError(f"--vectors {folder}: holds no index.json, nor do its folders")
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
    # Imported here because the upstream layouts need the kinds' clause ids.
    from openmoe_conformance.importing import upstream_cases  # noqa: PLC0415

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
    seen: set[str] = set()
    for position, row in enumerate(content.get("cases", [])):
        try:
            case = VectorCase(
                name,
                row["id"],
                row["kind"],
                row.get("exercises", ""),
                row["config"],
                row["comparisons"],
                tuple(row.get("arrays", ())),
                index.parent / row["file"] if row.get("file") else None,
                files.get(row.get("file"), {}).get("sha256"),
            )
        except (KeyError, TypeError, AttributeError) as error:
            yield _broken(index, f"{name}/index.json, case number {position}: lacks {error}")
            continue
        faults = []
        if case.id in seen:
            faults.append(f"{name}/index.json, case {case.id}: stands twice")
        seen.add(case.id)
        faults += [
            f"{name}/index.json, case {case.id}: names unknown clause {clause!r}"
            for clause in case.comparisons.values()
            if clause not in known
        ]
        if case.file is not None:
            if case.file.resolve().parent != index.parent.resolve():
                faults.append(f"{name}/index.json, case {case.id}: file leaves its folder")
            elif case.sha256 is None:
                faults.append(f"{name}/index.json, case {case.id}: {row['file']} has no sha256")
        yield replace(case, faults=tuple(faults))
