"""How a section of a settings file is read into a dataclass: each field knows what it takes.

Spec: RUN-01.
"""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, field, fields
from functools import partial
from pathlib import Path
from typing import Any

from openmoe_production import data_arguments
from openmoe_spec.errors import RejectedError

CLAUSE = "RUN-01"

Read = Callable[[str, Any, Path | None], Any]
"""From a place in the file, what stands there, and the file's folder, to what a field holds."""


def setting(read: Read, **default: Any) -> Any:
    """Return a dataclass's field, which knows how it is read."""
    return field(metadata={"read": read}, **default)


def whole(*, least: int = 1, most: int = 2**31 - 1, **default: Any) -> Any:
    """Return a field of whole numbers. Errors: RejectedError RUN-01, when it is read, as all below."""
    whole = partial(data_arguments.whole, clause=CLAUSE, least=least, most=most)
    return setting(lambda place, value, _: whole(place, value), **default)


def finite(*, least: float, most: float = sys.float_info.max, **default: Any) -> Any:
    """Return a field of finite numbers."""
    finite = partial(data_arguments.finite, clause=CLAUSE, least=least, most=most)
    return setting(lambda place, value, _: finite(place, value), **default)


def one_of(legal: tuple[str, ...], **default: Any) -> Any:
    """Return a field of one of several texts."""
    one_of = partial(data_arguments.one_of, legal=legal, clause=CLAUSE)
    return setting(lambda place, value, _: one_of(place, value), **default)


def of_kind(kind: type, wanted: str, place: str, value: Any, _: Path | None) -> Any:
    """Return a value as it is, or refuse one of another kind."""
    if not isinstance(value, kind):
        raise RejectedError(place, CLAUSE, f"must be {wanted}, got {value!r}")
    return value


flag = partial(of_kind, bool, "true or false")
text = partial(of_kind, str, "a text")
table = partial(of_kind, Mapping, "a table of fields")
listed = partial(of_kind, list, "a list")


def path(place: str, value: Any, folder: Path | None) -> Path:
    """Return a path; from a file's folder on, where it must exist."""
    path = (Path() if folder is None else folder) / text(place, value, folder)
    if not value or "\0" in value or not (folder is None or path.exists()):
        raise RejectedError(place, CLAUSE, f"there is no {str(path)!r}; name a file or a folder")
    return path.absolute()


def each(read: Read, place: str, value: Any, folder: Path | None) -> tuple[Any, ...]:
    """Return what `read` makes of each member of a list."""
    found = listed(place, value, folder)
    return tuple(read(f"{place}[{i}]", one, folder) for i, one in enumerate(found))


def some(read: Read, place: str, value: Any, folder: Path | None) -> tuple[Any, ...]:
    """Return what `read` makes of each member of a list that is not empty."""
    if value == []:
        raise RejectedError(place, CLAUSE, "must hold at least one, is empty")
    return each(read, place, value, folder)


def steps(place: str, value: Any, folder: Path | None) -> tuple[int, ...]:
    """Return a list of steps in their order, each once."""
    whole = partial(data_arguments.whole, clause=CLAUSE, least=1)
    return tuple(sorted(set(each(lambda at, one, _: whole(at, one), place, value, folder))))


def values(kind: type, place: str, value: Any, folder: Path | None) -> dict[str, Any]:
    """Return the fields of a table that are given; null, which TOML does not know, gives none."""
    given = table(place, value, folder)
    known = {one.name: one.metadata["read"] for one in fields(kind)}
    require_known(place, given, known)
    return {
        name: known[name](at(place, name), one, folder)
        for name, one in given.items()
        if one is not None
    }


def made(kind: type, place: str, values: Mapping[str, Any], hint: str = "") -> Any:
    """Return a section of values that are read; `hint` says where a missing one may stand."""
    for one in fields(kind):
        if one.default is MISSING and one.name not in values:
            raise RejectedError(at(place, one.name), CLAUSE, f"must be given{hint}")
    return kind(**values)


def section(kind: type, place: str, value: Any, folder: Path | None) -> Any:
    """Return a section of the table that stands at a place."""
    return made(kind, place, values(kind, place, value, folder))


def at(place: str, name: str) -> str:
    """Return the place of a name in a place."""
    shown = name if str(name).isidentifier() else repr(name)
    return f"{place}.{shown}" if place else shown


def require_known(place: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuse a name that is not known, with the one that may be meant."""
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(str(name), known, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(known)}"
            what = f"field of {place}" if place else "section"
            raise RejectedError(at(place, name), CLAUSE, f"is no {what}; {hint}")
