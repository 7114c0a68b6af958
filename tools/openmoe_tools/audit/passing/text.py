"""Text of several slices, cut into rows, and rows put into calls of the model. Spec: AUDIT-01.

A row is the start token and tokens of one document; a call holds rows of one slice, in the text's order, so
that what shares a group follows from the text and the recipe alone, not from who works on what.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_spec.data import END

if TYPE_CHECKING:  # an optional extra
    from openmoe_production.sources import Documents
    from openmoe_production.vocabulary import Vocabulary

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Call:
    """Rows that the model is given at once.

    ids, targets  int32 [B, L]; targets are the next tokens, and behind a document's last one its end
    slice         number of the slice that all rows are of
    documents     names of the rows' documents
    row           int64 [B] numbers of the rows; -1 for one that fills up the call and is not counted
    begun         names of documents whose first row is here
    """

    number: int
    ids: ndarray
    targets: ndarray
    slice: int
    documents: tuple[str, ...]
    row: ndarray
    begun: tuple[str, ...]


@dataclass
class Slice:
    """A part of the text, and what was read of it so far.

    limit  tokens that are read of it at most, the last document whole; None: all
    """

    name: str
    texts: Documents
    names: Documents | None
    limit: int | None
    documents: int = 0
    tokens: int = 0
    size: int = 0

    def text(self, number: int) -> str:
        """Return a document. Errors: UsageError."""
        from openmoe_production.sources import SourceError  # noqa: PLC0415

        try:
            return str(self.texts[number])
        except SourceError as error:
            raise UsageError(f"--text {self.name}: {error}") from error

    def digest(self) -> str:
        """Return the SHA256 of all its documents, each behind its length in bytes. Errors: UsageError."""
        found = hashlib.sha256()
        for number in np.flatnonzero(self.texts.sizes).tolist():
            encoded = self.text(number).encode()
            found.update(f"{len(encoded)}\n".encode() + encoded)
        return found.hexdigest()

    def read(self, pieces: Vocabulary) -> Iterator[tuple[str, ndarray]]:
        """Yield names and ids of its documents. Errors: UsageError."""
        for number in np.flatnonzero(self.texts.sizes).tolist():
            if self.limit is not None and self.tokens >= self.limit:
                return
            text = self.text(number)
            ids = pieces.encode(text)
            if not len(ids):
                continue
            self.documents += 1
            self.tokens += len(ids)
            encoded = text.encode()
            self.size += len(encoded)
            # By its content, a document has the same fold wherever it stands, and as a copy of another.
            named = hashlib.sha256(encoded).hexdigest()[:16]
            yield f"{self.name}/{named if self.names is None else self.names[number]}", ids
        if not self.tokens:
            raise UsageError(f"--text {self.name}: has no text; name other files, or leave it out")

    def manifest(self) -> dict[str, Any]:
        """Return what was read of it: documents are counted as they lie in files, parts or whole."""
        read = ("name", "documents", "tokens")
        return {name: getattr(self, name) for name in read} | {"bytes": self.size}


def slices(
    given: Sequence[str], corpus: Path | None, *, text_field: str, limit: int | None
) -> list[Slice]:
    """Return the slices of `NAME=PATH` texts and of a corpus's folder. Errors: UsageError."""
    pairs = [*_corpus(corpus), *map(_pair, given)]
    names = [name for name, _ in pairs]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"--text {name}: is named twice; give all its files as one folder")
    if not pairs:
        raise UsageError("no text: give --text SLICE=PATH (may be repeated), or --corpus FOLDER")
    return [_slice(name, path, text_field, limit) for name, path in pairs]


def _pair(given: str) -> tuple[str, Path]:
    name, _, path = given.partition("=")
    if not name or not path or "/" in name:
        raise UsageError(
            f"--text {given}: must be SLICE=PATH, as german=german.jsonl, without / in the slice's name"
        )
    return name, Path(path)


def _corpus(folder: Path | None) -> list[tuple[str, Path]]:
    if folder is None:
        return []
    if not folder.is_dir():
        raise UsageError(f"--corpus {folder}: is no folder; `openmoe data corpus` makes one")
    found = [(one.stem, one) for one in sorted(folder.glob("*.jsonl"))]
    if not found:
        raise UsageError(
            f"--corpus {folder}: holds no SLICE.jsonl; `openmoe data corpus` makes them"
        )
    return found


def _slice(name: str, path: Path, text_field: str, limit: int | None) -> Slice:
    from openmoe_production import sources  # noqa: PLC0415 - needs an extra

    if not path.exists():
        raise UsageError(f"--text {name}={path}: {path} does not exist")
    try:
        texts = sources.open_documents([path], field=text_field)
    except sources.EmptyError as error:
        raise UsageError(f"--text {name}: has no text ({error})") from error
    except sources.SourceError as error:
        raise UsageError(f"--text {name}: {error}") from error
    try:  # parts of one document are of one name: they are not independent
        names = sources.open_documents([path], field="name") if _has_names(path) else None
    except sources.SourceError:
        names = None
    return Slice(name, texts, names, limit)


def _has_names(path: Path) -> bool:
    """Return whether a file's first line of JSON has a name beside its text."""
    if path.suffix.lower() not in {".jsonl", ".ndjson"}:
        return False
    with path.open("rb") as lines:
        try:
            return "name" in json.loads(next(iter(lines), b"{}"))
        except (ValueError, TypeError):
            return False


def calls(given: Sequence[Slice], pieces: Vocabulary, *, rows: int, length: int) -> Iterator[Call]:
    """Yield the calls of all slices, each document once.

    A slice's last call is filled up with its rows again, which take slots of experts as others do, and
    are not counted. Errors: UsageError.
    """
    number, first = 0, 0
    for place, one in enumerate(given):
        waiting: list[_Row] = []
        last = None
        for name, ids in one.read(pieces):
            made = [_Row(name, *row, begins=False) for row in _rows(ids, length)]
            waiting += [made[0]._replace(begins=name != last), *made[1:]]
            last = name  # parts of a document follow each other
            while len(waiting) >= rows:
                yield _call(number, waiting[:rows], place, first, rows)
                number, first, waiting = number + 1, first + rows, waiting[rows:]
        if waiting:
            yield _call(number, waiting, place, first, rows)
            number, first = number + 1, first + len(waiting)


class _Row(NamedTuple):
    document: str
    ids: ndarray
    targets: ndarray
    begins: bool


def _rows(ids: ndarray, length: int) -> Iterator[tuple[ndarray, ndarray]]:
    """Yield inputs and targets [L] of a document: the start token before each part of it."""
    whole = np.append(ids, END).astype(np.int32)
    for begin in range(0, len(ids), length - 1):
        part = whole[begin : begin + length]
        inputs, targets = np.zeros(length, np.int32), np.zeros(length, np.int32)
        targets[: len(part)] = part
        inputs[1 : len(part)] = part[:-1]
        yield inputs, targets


def _call(number: int, found: list[_Row], place: int, first: int, rows: int) -> Call:
    filled = [found[i % len(found)] for i in range(rows)]
    return Call(
        number,
        np.stack([one.ids for one in filled]),
        np.stack([one.targets for one in filled]),
        place,
        tuple(one.document for one in filled),
        np.where(np.arange(rows) < len(found), first + np.arange(rows), -1),
        tuple(one.document for one in found if one.begins),
    )
