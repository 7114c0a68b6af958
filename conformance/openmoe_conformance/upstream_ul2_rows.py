"""What the readers of the data pipeline's files share: numbered rows, ids, calls, models."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from openmoe_conformance.upstream_rows import inside, plain
from openmoe_conformance.vector_cases import VectorCase, VectorError

_Content = TypeVar("_Content")


def reading(read: Callable[[Path], _Content], path: Path) -> _Content:
    """Return what `read` finds in a file beside the JSON. Errors: VectorError naming it."""
    try:
        return read(path)
    except VectorError as error:
        raise VectorError(f"{path.name}: {error}") from error


def numbered(prefix: str, rows: Iterable[Any]) -> list[Any]:
    """Return rows with ids that say where they stand; what is no row is left as it is."""
    return [
        {"id": f"{prefix}_{number:03d}", **row} if isinstance(row, dict) else row
        for number, row in enumerate(rows)
    ]


def ids(row: Mapping[str, Any], name: str) -> list[int]:
    """Return a list of int32 of a row. Errors: KeyError, VectorError naming it."""
    return id_list(name, row[name])


def id_list(name: str, value: Any) -> list[int]:
    """Return a list of int32. Errors: VectorError naming it."""
    whole = isinstance(value, list) and all(type(one) is int for one in value)
    if not whole or any(not -(2**31) <= one < 2**31 for one in value):
        raise VectorError(f"{name} must be a list of ids")
    return list(value)


def mask(row: Mapping[str, Any], name: str, length: int) -> list[int]:
    """Return a mask of a row, 0 and 1. Errors: KeyError, VectorError naming it."""
    value = id_list(name, row[name])
    if len(value) != length or not set(value) <= {0, 1}:
        raise VectorError(f"{name} must be 0 or 1 for each of {length} tokens")
    return value


def integer(row: Mapping[str, Any], name: str) -> int:
    """Return a whole number of a row. Errors: KeyError, VectorError naming it."""
    if type(row[name]) is not int or abs(row[name]) >= 2**31:
        raise VectorError(f"{name} must be a whole number, got {row[name]!r}")
    return int(row[name])


def number(row: Mapping[str, Any], name: str) -> float:
    """Return a number of a row. Errors: KeyError, VectorError naming it."""
    if type(row[name]) not in (int, float) or not abs(row[name]) < 1e300:
        raise VectorError(f"{name} must be a number, got {row[name]!r}")
    return float(row[name])


def text(row: Mapping[str, Any], name: str) -> str:
    """Return a text of a row. Errors: KeyError, VectorError naming it."""
    if not isinstance(row[name], str):
        raise VectorError(f"{name} must be a text, got {row[name]!r}")
    return str(row[name])


def call(
    folder: Path,
    name: str,
    function: str,
    arguments: Mapping[str, Any],
    clause: str,
    *,
    expected: Any = None,
    chapter: str,
    exercises: str = "",
) -> VectorCase:
    """Return a case of one call; without an answer it must be rejected."""
    config: dict[str, Any] = {"function": function, "arguments": dict(arguments)}
    config |= {"rejected": True} if expected is None else {"expected": expected}
    clauses = {"answer": clause}
    return plain(
        folder, name, "call", config=config, clauses=clauses, chapter=chapter, exercises=exercises
    )


def with_model(folder: Path, case: VectorCase, file: str) -> VectorCase:
    """Return a case whose call is given a SentencePiece file of the set. Errors: VectorError."""
    if not file.endswith(".model"):
        raise VectorError(f"{file}: must be the name of a .model file")
    return replace(case, model=inside(folder, file))
