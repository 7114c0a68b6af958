"""Documents in files, by number: text files, JSON lines, Parquet; and lists of ids.

The order is that of the files, and in a folder that of the names. Files are read when a document is
asked for; what an index needs is read once. Objects can be pickled, and shared by threads.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy import ndarray

from openmoe_production import data_arguments


class SourceError(Exception):
    """A file that holds no documents; the message says which one, where in it, and why."""


class EmptyError(SourceError):
    """Files that are right and hold no document, or only empty ones."""


Document = str | ndarray | Mapping[str, Any]
"""A text, ids, or the fields of a record."""


class Documents(Protocol):
    """Documents by number: texts, ids int32 [n], or records of named texts.

    sizes  int64 [count]: 0 where a document is empty, else anything above
    """

    @property
    def sizes(self) -> ndarray: ...

    def __getitem__(self, number: int, /) -> Document: ...


@dataclass(frozen=True)
class Task:
    """Documents of one kind, and their share of the examples: any number above 0.

    name  of fine-tuning alone: what the fields of a record are (DATA-10)
    Spec: DATA-09.
    """

    documents: Documents
    rate: float = 1.0
    name: str = ""


class IdDocuments:
    """Documents that are ids already. Errors: RejectedError DATA-11. Spec: DATA-03."""

    def __init__(self, documents: Sequence[ndarray]) -> None:
        given = data_arguments.sequence("documents", documents, "DATA-11")
        self._documents = [
            data_arguments.ids(f"documents[{i}]", one, "DATA-11") for i, one in enumerate(given)
        ]
        self.sizes = np.array([np.count_nonzero(one) for one in self._documents], np.int64)

    def __getitem__(self, number: int) -> ndarray:
        return self._documents[number]


class Texts:
    """Texts that are in memory."""

    def __init__(self, texts: Sequence[str]) -> None:
        self._texts = tuple(texts)
        self.sizes = np.array([len(one) for one in texts], np.int64)

    def __getitem__(self, number: int) -> str:
        return self._texts[number]


class TextFiles:
    """One document a file. Errors: SourceError, OSError."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self._paths = tuple(paths)
        self.sizes = np.array([path.stat().st_size for path in paths], np.int64)

    def __getitem__(self, number: int) -> str:
        path = self._paths[number]
        try:
            return path.read_bytes().decode("utf-8")
        except UnicodeDecodeError as error:
            raise SourceError(f"{path}: byte {error.start} is no UTF-8") from error


class JsonLines:
    """One document a line of JSON, in one of its fields, or all of them as a record; empty lines are none.

    Every line is read once to know where it begins, and that it is right.
    Errors: SourceError, which names the line; OSError.
    """

    def __init__(self, path: Path, *, field: str | None = "text") -> None:
        self._path, self._field = path, field
        begins: list[tuple[int, int, int]] = []
        with path.open("rb") as file:
            place = 0
            for line, content in enumerate(file, start=1):
                if content.strip():
                    begins.append((place, line, len(self._parsed(content, line, place))))
                place += len(content)
        self._places, self._lines, self.sizes = np.array(begins, np.int64).reshape(-1, 3).T

    def __getitem__(self, number: int) -> str | dict[str, Any]:
        place, line = int(self._places[number]), int(self._lines[number])
        with self._path.open("rb") as file:
            file.seek(place)
            return self._parsed(file.readline(), line, place)

    def _parsed(self, content: bytes, line: int, place: int) -> str | dict[str, Any]:
        where = f"{self._path}: line {line}"
        try:
            found = json.loads(content.decode("utf-8"))
        except UnicodeDecodeError as error:
            at = place + error.start
            raise SourceError(f"{where}: byte {at} of the file is no UTF-8") from error
        except json.JSONDecodeError as error:
            raise SourceError(f"{where}: is no JSON ({error.msg}, column {error.colno})") from error
        if isinstance(found, dict) and self._field is None:
            _encodable(where, *(one for one in found.values() if isinstance(one, str)))
            return found
        if not isinstance(found, dict) or not isinstance(found.get(self._field), str):
            raise SourceError(f"{where}: holds no text {self._field or 'of any name'!r}")
        _encodable(where, found[self._field])
        return str(found[self._field])


def _encodable(where: str, *texts: str) -> None:
    r"""Refuse half of a pair of surrogates, which an escape as \ud800 makes of right JSON."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            half = ord(text[error.start])
            raise SourceError(f"{where}: holds \\u{half:04x}, half of a character") from error


class Parquet:
    """One document a row, in one column of texts; a null is an error.

    Row groups are read one at a time, first to know which rows are empty; the last few are kept, so
    documents in turn are read once. Errors: SourceError, OSError.
    """

    def __init__(self, path: Path, *, column: str = "text") -> None:
        self._path, self._column = path, column
        file = _parquet(path)
        kinds = {one.name: str(one.type) for one in file.schema_arrow}
        if kinds.get(column) not in ("string", "large_string", "string_view"):
            known = ", ".join(f"{name} ({kind})" for name, kind in kinds.items())
            raise SourceError(f"{path}: has no column of texts {column!r}; there are: {known}")
        groups = range(file.metadata.num_row_groups)
        counts = [file.metadata.row_group(i).num_rows for i in groups]
        self._firsts = np.cumsum([0, *counts])
        self.sizes = np.concatenate([np.zeros(0, np.int64), *map(self._sizes, groups)])

    def __getitem__(self, number: int) -> str:
        group = bisect_right(self._firsts, number) - 1
        cell = _row_group(self._path, group, self._column)[number - int(self._firsts[group])]
        try:
            return str(cell.as_py())
        except UnicodeDecodeError as error:
            raise SourceError(
                f"{self._path}: row {number}, byte {error.start} of its text is no UTF-8"
            ) from error

    def _sizes(self, group: int) -> ndarray:
        from pyarrow import compute  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415

        texts = _row_group(self._path, group, self._column)
        if texts.null_count:
            row = int(self._firsts[group]) + compute.index(texts.is_null(), True).as_py()
            raise SourceError(f"{self._path}: row {row} holds no text {self._column!r}")
        return np.asarray(compute.binary_length(texts).to_numpy(), np.int64)


class Joined:
    """Documents of several sources one after another."""

    def __init__(self, parts: Sequence[Documents]) -> None:
        self._parts = tuple(parts)
        self._firsts = np.cumsum([0, *(len(one.sizes) for one in parts)]).tolist()
        self.sizes = np.concatenate([np.zeros(0, np.int64), *(one.sizes for one in parts)])

    def __getitem__(self, number: int) -> Document:
        part = bisect_right(self._firsts, number) - 1
        return self._parts[part][number - self._firsts[part]]


def open_documents(paths: Sequence[Path], *, field: str | None = "text") -> Documents:
    """Return the documents of files and folders, whose kind their names say.

    `.jsonl` and `.ndjson` are JSON lines, `.parquet` is Parquet, everything else one text a file;
    `field` is the field or the column of the text; None takes records whole, which only JSON lines
    have. Names that begin with a dot are passed over in folders.
    Errors: SourceError, EmptyError when there is no document that is not empty; OSError.
    """
    parts: list[Documents] = []
    for kind, grouped in groupby(_files(paths), key=_kind):
        files = list(grouped)
        if field is None and kind != "json":
            raise SourceError(f"{files[0]}: holds no records of fields; give JSON lines")
        match kind:
            case "json":
                parts += [JsonLines(path, field=field) for path in files]
            case "parquet":
                parts += [Parquet(path, column=field or "text") for path in files]
            case _:
                parts.append(TextFiles(files))
    found = parts[0] if len(parts) == 1 else Joined(parts)
    if not found.sizes.any():
        why = "no document that is not empty" if parts else "holds no file"
        raise EmptyError(f"{', '.join(map(str, paths))}: {why}")
    return found


def _files(paths: Sequence[Path]) -> Iterator[Path]:
    for path in paths:
        if path.is_dir():
            inside = (one for one in path.rglob("*") if one.is_file())
            shown = (
                one
                for one in inside
                if not any(name.startswith(".") for name in one.relative_to(path).parts)
            )
            yield from sorted(shown)
        else:
            yield path


def _kind(path: Path) -> str:
    kinds = {".jsonl": "json", ".ndjson": "json", ".parquet": "parquet"}
    return kinds.get(path.suffix.lower(), "text")


def _parquet(path: Path) -> Any:
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415
    from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415

    path.stat()  # an absent file is an OSError of its own
    try:
        return parquet.ParquetFile(path)
    except (pa.ArrowInvalid, OSError) as error:
        raise SourceError(f"{path}: is no whole Parquet file") from error


@lru_cache(maxsize=4)
def _row_group(path: Path, group: int, column: str) -> Any:
    """Return the texts of a row group; the last few are kept."""
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415

    try:
        return _parquet(path).read_row_group(group, columns=[column]).column(0)
    except (pa.ArrowException, OSError) as error:
        raise SourceError(f"{path}: row group {group} cannot be read") from error
