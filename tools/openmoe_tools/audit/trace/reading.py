"""Read a trace back, in whole rows and with bounded memory; refuse what is not one. Spec: AUDIT-02."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.counting.routed import Routed
from openmoe_tools.audit.trace import columns as names_of
from openmoe_tools.audit.trace.columns import DOCUMENTS, PART, Head, Kinds, part_name
from openmoe_tools.audit.trace.decoding import Decoder

BATCH = 1 << 17
"""Rows that are read at once."""


@dataclass(frozen=True)
class Trace:
    """A trace that is open: its parts, what they say of themselves, and the columns that they have."""

    folder: Path
    files: tuple[Path, ...]
    head: Head
    schema: Any
    tokens: int

    @property
    def kinds(self) -> Kinds:
        return kinds(self.schema, self.head)


class Documents(NamedTuple):
    """Documents by number: names, names of slices, counted tokens."""

    names: list[str]
    slices: list[str]
    tokens: list[int]


def kinds(schema: Any, head: Head) -> Kinds:
    """Return which optional columns a schema has."""
    return names_of.kinds_of(schema.names, head)


# ---- opening -------------------------------------------------------------------------------------


def open_trace(folder: Path) -> Trace:
    """Return a trace whose parts are all there, whole, and of one run.

    Errors: UsageError, which names the file. Spec: AUDIT-02.
    """
    there = sorted(
        int(found[1])
        for one in (folder.iterdir() if folder.is_dir() else ())
        if (found := PART.fullmatch(one.name))
    )
    if not there:
        raise UsageError(f"{folder}: holds no trace (no {part_name(0)})")
    promised = _promised(folder)
    for number in range(max(promised, there[-1] + 1)):
        if number not in there:
            raise UsageError(
                f"{folder / part_name(number)}: is missing; the run that wrote the trace is not "
                "finished, or the file was lost"
            )
    return open_parts(folder, len(there))


def open_parts(folder: Path, number: int) -> Trace:
    """Return a trace of the first so many parts. Errors: UsageError, which names the file."""
    files = tuple(folder / part_name(i) for i in range(number))
    heads, schemas, tokens = [], [], 0
    for path in files:
        with _whole(path) as file:
            heads.append(Head.read(file.metadata.metadata, path))
            schemas.append(file.schema_arrow)
            tokens += file.metadata.num_rows
        difference = heads[-1].differs(heads[0])
        if difference is None and not schemas[-1].equals(schemas[0], check_metadata=False):
            difference = "other columns"
        if difference:
            raise UsageError(f"{path}: is of {difference} than {files[0].name}")
    head, schema = heads[0], schemas[0]
    needed = [one.name for one in names_of.columns(head, kinds(schema, head))]
    for name in (*needed, "slice"):
        if schema.get_field_index(name) < 0:
            raise UsageError(f"{files[0]}: has no column {name}, or two of them")
    return Trace(folder, files, head, schema, tokens)


def _promised(folder: Path) -> int:
    path = folder / DOCUMENTS
    with _whole(path) as file:
        Head.read(file.metadata.metadata, path)
        found = (file.metadata.metadata or {}).get(b"parts", b"")
    if not found.isdigit():
        raise UsageError(f"{path}: does not say how many parts there are")
    return int(found)


@contextmanager
def _whole(path: Path) -> Iterator[Any]:
    """Open a Parquet file; what is wrong with it while it is open is said of it."""
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415
    from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415

    if not path.is_file():
        raise UsageError(f"{path}: is missing")
    try:
        with parquet.ParquetFile(path, page_checksum_verification=True) as file:
            yield file
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise UsageError(f"{path}: is no complete Parquet file ({reason})") from error


# ---- documents -----------------------------------------------------------------------------------


def documents(trace: Trace, *, whole: bool = True) -> Documents:
    """Return a trace's documents.

    whole  refuse a table that is of another trace
    Errors: UsageError.
    """
    path = trace.folder / DOCUMENTS
    with _whole(path) as file:
        difference = Head.read(file.metadata.metadata, path).differs(trace.head)
        found = file.read().to_pydict()
    if difference:
        raise UsageError(f"{path}: is of {difference} than {trace.files[0].name}")
    for name, of in {"name": str, "slice": str, "tokens": int}.items():
        if not all(type(one) is of for one in found.get(name, [None])):
            raise UsageError(f"{path}: column {name} is missing, or has gaps")
    if whole and sum(found["tokens"]) != trace.tokens:
        raise UsageError(
            f"{path}: counts {sum(found['tokens'])} tokens, and the parts have {trace.tokens}"
        )
    return Documents(found["name"], found["slice"], found["tokens"])


def tokens_of_documents(trace: Trace) -> ndarray:
    """Return the tokens of each document, int64, counted in the parts. Errors: UsageError."""
    found = np.zeros(0, np.int64)
    for path in trace.files:
        with _whole(path) as file:
            for batch in file.iter_batches(BATCH, columns=["document"]):
                counted = np.bincount(batch.column(0).to_numpy(), minlength=len(found))
                counted[: len(found)] += found
                found = counted
    return found


# ---- rows ----------------------------------------------------------------------------------------


def read(folder: Path, *, batch: int = BATCH) -> Iterator[Routed]:
    """Yield the tokens of a trace in order, whole rows of the text at a time, about `batch` tokens.

    Gates are float16's values; what the trace has not is None, and margins are where it has both.
    Errors: UsageError, which names the file, and the token where one is wrong. Spec: AUDIT-02.
    """
    trace = open_trace(folder)
    decoder = Decoder(trace.head, trace.kinds, documents(trace).names)
    for path in trace.files:
        start, rest = 0, None
        with _whole(path) as file:
            for found in file.iter_batches(batch):
                decoded = decoder.decode(found, path, start)
                start += found.num_rows
                whole, rest = _cut(joined(rest, decoded))
                if rest is not None and len(rest.row) > trace.head.length:
                    raise UsageError(
                        f"{path}: row {int(rest.row[0])} is longer than {trace.head.length} tokens"
                    )
                if whole is not None:
                    yield whole
        if rest is not None:
            yield rest


def _cut(routed: Routed) -> tuple[Routed | None, Routed | None]:
    """Return the rows that are over, and the one that may go on."""
    if not len(routed.row):
        return None, None
    at = int(np.flatnonzero(routed.row != routed.row[-1])[-1] + 1) if _several(routed.row) else 0
    return (part(routed, 0, at) if at else None), part(routed, at, len(routed.row))


def _several(row: ndarray) -> bool:
    return bool((row != row[-1]).any())


_AXES = {"dropped": 1, "place": 1, "margin": 1}
"""The axis of tokens, where it is not the first."""
FIELDS = tuple(name for name in Routed.__dataclass_fields__ if name != "documents")


def part(routed: Routed, start: int, stop: int) -> Routed:
    """Return some of the tokens."""

    def cut(name: str) -> Any:
        values: ndarray | None = getattr(routed, name)
        if values is None:
            return None
        return values[:, start:stop] if _AXES.get(name) else values[start:stop]

    return Routed(**{name: cut(name) for name in FIELDS}, documents=routed.documents)


def joined(first: Routed | None, second: Routed) -> Routed:
    """Return tokens of one trace one after the other."""
    if first is None:
        return second

    def both(name: str) -> Any:
        one, two = getattr(first, name), getattr(second, name)
        return None if one is None else np.concatenate([one, two], axis=_AXES.get(name, 0))

    return Routed(**{name: both(name) for name in FIELDS}, documents=second.documents)
