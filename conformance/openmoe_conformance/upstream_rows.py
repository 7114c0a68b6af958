"""What the readers of the upstream layouts share: faulty, skipped and plain cases.

Cases and files are taken from the indexes, never from lists; what one of them lacks becomes its
fault, and the others still run.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from openmoe_conformance.vector_cases import VectorCase, VectorError

_UNREADABLE = (OSError, KeyError, TypeError, AttributeError, ValueError, VectorError)
_NAMES = ("id", "name", "case", "model")


def guarded(
    folder: Path, file: str, rows: Iterable[Any], make: Callable[[Any], Iterable[VectorCase]]
) -> list[VectorCase]:
    """Return the cases that `make` makes of each row; one that cannot be read is a faulty case."""
    found: list[VectorCase] = []
    for row in rows:
        try:
            found.extend(make(row))  # what comes before an error stays
        except _UNREADABLE as error:
            given = row if isinstance(row, dict) else {}
            name = next((str(given[key]) for key in _NAMES if key in given), "?")
            lacks = f"lacks {error}" if isinstance(error, KeyError) else str(error)
            found.append(_faulty(folder, name, f"{folder.name}/{file}, case {name}: {lacks}"))
    return found


def table(folder: Path, file: str, make: Callable[[Any], Iterable[VectorCase]]) -> list[VectorCase]:
    """Return the cases of a JSON file beside the index; none where there is no such file."""
    try:
        return list(make(read_json(folder, file))) if (folder / file).exists() else []
    except _UNREADABLE as error:
        return [_faulty(folder, file, f"{folder.name}/{file} cannot be read: {error!r}")]


def read_json(folder: Path, file: str) -> Any:
    """Return the content of a file of a set. Errors: VectorError naming it."""
    try:
        return json.loads(inside(folder, file).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise VectorError(f"{file}: {error}") from error


def _faulty(folder: Path, name: str, fault: str) -> VectorCase:
    return VectorCase(folder.name, name, "", "", {}, {"index": ""}, (), None, None, (fault,))


def later(folder: Path, name: str, chapter: str) -> VectorCase:
    """Return what stands for vectors of a chapter that this version lacks."""
    return skipped(folder, name, f"{chapter}: not in this version")


def failed(folder: Path, name: str, error: Any) -> VectorCase:
    """Return what stands for a case without outputs: the original raised."""
    return skipped(folder, name, f"the original failed on it: {error}")


def skipped(folder: Path, name: str, reason: str) -> VectorCase:
    """Return a case that is listed, SKIPPED with a reason."""
    identifier = identifier_of(name)
    return VectorCase(folder.name, identifier, "", "", {}, {"all": ""}, (), None, skip=reason)


def plain(
    folder: Path,
    name: str,
    kind: str,
    *,
    config: Mapping[str, Any],
    clauses: Mapping[str, str],
    chapter: str,
    exercises: str = "",
) -> VectorCase:
    """Return a case without arrays, which an import writes to the folder `chapter`."""
    identifier, no_arrays = identifier_of(name), ((), None)
    return VectorCase(
        folder.name, identifier, kind, exercises, config, clauses, *no_arrays, chapter=chapter
    )


def identifier_of(name: str) -> str:
    """Return a name in the letters that ids have."""
    return re.sub(r"[^\w.-]+", "_", name).strip("_")


def inside(folder: Path, file: str) -> Path:
    """Return a file of a set. Errors: VectorError when it leaves its folder."""
    path = folder / file
    if not path.resolve().is_relative_to(folder.resolve()):
        raise VectorError("file leaves its folder")
    return path
