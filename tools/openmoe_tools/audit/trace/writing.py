"""Write a trace: parts that are complete when they have their names. Spec: AUDIT-02."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.counting.routed import ORDER, SELECTION, Routed
from openmoe_tools.audit.trace import reading
from openmoe_tools.audit.trace.columns import (
    DOCUMENTS,
    PART,
    Head,
    Kinds,
    asked,
    columns,
    dropped_columns,
    part_name,
)

ROWS = 1 << 20
"""Rows of a row group."""


class TraceWriter:
    """Parts of a trace in a folder, which is made; and its table of documents.

    manifest  an audit's, of which model, tokenizer, corpus and recipe are looked at
    after     None: the folder must hold no trace. A number: the run goes on behind so many parts, which
              `flush` had promised; what was written later is removed
    more      of `columns.MORE`, what is written besides
    Errors: UsageError. Spec: AUDIT-02.
    """

    def __init__(
        self,
        folder: Path,
        manifest: Mapping[str, Any],
        *,
        after: int | None = None,
        more: Sequence[str] = (),
    ) -> None:
        self.head = Head.of(manifest)
        self._folder, self._more = folder, asked(more)
        self._waiting: list[Any] = []
        self._rows = 0
        self._file: Any = None
        self._schema: Any = None
        self._numbers: dict[str, int] = {}
        self._slices: list[int] = []
        self._tokens: list[int] = []
        self._parts = 0
        with _explained(folder):
            folder.mkdir(parents=True, exist_ok=True)
        if after is None:
            if any(PART.fullmatch(one.name) for one in folder.iterdir()):
                raise UsageError(f"{folder}: holds a trace; remove it, or name another folder")
        else:
            self._go_on(after)

    def _go_on(self, after: int) -> None:
        """Take up the parts that are promised; remove those that are not, and parts of parts."""
        if after:
            trace = reading.open_parts(self._folder, after)
            difference = trace.head.differs(self.head)
            if difference:
                raise UsageError(f"{trace.files[0]}: was written for {difference}; start anew")
            self._schema = trace.schema
            self._tokens = reading.tokens_of_documents(trace).tolist()
            known = reading.documents(trace, whole=False)
            names = known.names[: len(self._tokens)]
            self._numbers = {name: number for number, name in enumerate(names)}
            self._slices = [self.head.slices.index(one) for one in known.slices[: len(names)]]
            self._parts = after
        kept = {part_name(number) for number in range(after)}
        for one in self._folder.iterdir():
            whole = one.name.removesuffix(".part")
            if one.name not in kept and (PART.fullmatch(whole) or one.name == f"{DOCUMENTS}.part"):
                with _explained(one):
                    one.unlink()

    # ---- rows ------------------------------------------------------------------------------------

    def add(self, routed: Routed) -> None:
        """Take in whole rows. Errors: UsageError where they cannot be written."""
        if not len(routed.token):
            return
        table = self._table(routed)
        self._waiting.append(table)
        self._rows += table.num_rows
        if self._rows >= ROWS:
            self._write(all_of_them=False)

    def _table(self, routed: Routed) -> Any:
        import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415

        kinds = _kinds(routed, self._more)
        found = self._values(routed)
        arrays, fields = [], []
        for column in columns(self.head, kinds):
            values = found[column.name]
            _fits(values, column.dtype, column.name)
            arrays.append(pa.array(values.astype(column.dtype, copy=False)))
            fields.append(pa.field(column.name, arrays[-1].type, nullable=False))
        names = pa.array(self.head.slices, pa.string())
        slices = pa.DictionaryArray.from_arrays(pa.array(routed.slice.astype(np.int16)), names)
        arrays.insert(4, slices)
        fields.insert(4, pa.field("slice", slices.type, nullable=False))
        schema = pa.schema(fields, metadata=self.head.metadata())
        if self._schema is None:
            self._schema = schema
        if not schema.equals(self._schema):
            raise UsageError(f"{self._folder}: its parts record other columns; start anew")
        return pa.Table.from_arrays(arrays, schema=schema)

    def _values(self, routed: Routed) -> dict[str, ndarray]:
        """Return what there is by the names of columns."""
        found = {
            "document": self._documents(routed),
            "row": routed.row,
            "position": routed.position,
            "token": routed.token,
        }
        layers, choices = len(self.head.layers), self.head.choices
        for m in range(layers):
            for r in range(choices):
                found[f"l{m}_e{r}"] = routed.expert[:, m, r]
                if routed.gate is not None:
                    found[f"l{m}_g{r}"] = routed.gate[:, m, r]
            if routed.margin is not None:
                found[f"l{m}_margin"] = routed.margin[SELECTION, :, m]
                found[f"l{m}_order"] = routed.margin[ORDER, :, m]
            if routed.entropy is not None:
                found[f"l{m}_entropy"] = routed.entropy[:, m]
        for i, rule in enumerate(self.head.rules):
            if routed.dropped is not None:
                flat = routed.dropped[i].reshape(-1, layers * choices)
                for name, bits in dropped_columns(self.head, rule):
                    found[name] = packed(flat[:, bits.start : bits.stop])
            if routed.place is not None:
                found[f"place_{rule}"] = routed.place[i]
        return found

    def _documents(self, routed: Routed) -> ndarray:
        """Return documents by their numbers in the trace, which are in the order of being seen."""
        here, first, places, tokens = np.unique(
            routed.document, return_index=True, return_inverse=True, return_counts=True
        )
        numbers = np.zeros(len(here), np.int64)
        for i in np.argsort(first):
            name = routed.documents[int(here[i])]
            numbers[i] = number = self._numbers.setdefault(name, len(self._numbers))
            if number == len(self._slices):
                self._slices.append(int(routed.slice[first[i]]))
                self._tokens.append(0)
            self._tokens[number] += int(tokens[i])
        return numbers[places]

    # ---- files -----------------------------------------------------------------------------------

    def _write(self, *, all_of_them: bool) -> None:
        """Write row groups of what waits; a remainder only if all is asked for."""
        import pyarrow as pa  # noqa: PLC0415

        table = pa.concat_tables(self._waiting)
        number = table.num_rows if all_of_them else table.num_rows // ROWS * ROWS
        with _explained(self._path):
            if self._file is None:
                self._file = self._opened()
            self._file.write_table(table.slice(0, number), row_group_size=ROWS)
        rest = table.slice(number)
        self._waiting, self._rows = ([rest] if rest.num_rows else []), rest.num_rows

    def _opened(self) -> Any:
        from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415

        kinds = reading.kinds(self._schema, self.head)
        known = list(columns(self.head, kinds))
        return parquet.ParquetWriter(
            self._part,
            self._schema,
            compression="zstd",
            compression_level={one.name: one.level for one in known},
            use_dictionary=["slice"],
            write_page_checksum=True,
            column_encoding={one.name: one.encoding for one in known},
        )

    @property
    def _path(self) -> Path:
        return self._folder / part_name(self._parts)

    @property
    def _part(self) -> Path:
        return self._path.with_name(self._path.name + ".part")

    def flush(self) -> int:
        """Make what was added a complete part; return how many parts are promised from now on.

        Errors: UsageError.
        """
        if self._waiting:
            self._write(all_of_them=True)
        if self._file is not None:
            self._parts += 1
            self._write_documents()  # first: no part is without the names of its documents
            self._parts -= 1
            with _explained(self._path):
                self._file.close()
                self._file = None
                self._part.replace(self._path)
            self._parts += 1
        return self._parts

    def close(self) -> None:
        """Write what waits. Errors: UsageError, also for a trace without a token."""
        if not self.flush():
            raise UsageError(f"{self._folder}: no token was counted, so there is no trace")
        self._write_documents()

    def _write_documents(self) -> None:
        import pyarrow as pa  # noqa: PLC0415
        from pyarrow import parquet  # noqa: PLC0415

        names = list(self._numbers)
        slices = pa.array(np.array(self._slices, np.int16))
        table = pa.table(
            {
                "document": np.arange(len(names), dtype=np.int32),
                "name": pa.array(names, pa.string()),
                "slice": pa.DictionaryArray.from_arrays(slices, pa.array(self.head.slices)),
                "tokens": pa.array(self._tokens, pa.int64()),
            }
        )
        more = {"parts": str(self._parts), "tokens": str(sum(self._tokens))}
        table = table.replace_schema_metadata(self.head.metadata() | more)
        path = self._folder / DOCUMENTS
        part = path.with_name(path.name + ".part")
        with _explained(path):
            parquet.write_table(
                table, part, compression="zstd", use_dictionary=["slice"], write_page_checksum=True
            )
            part.replace(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Close; after an error leave only what is promised."""
        if kind is None:
            self.close()
        elif self._file is not None:
            self._file.close()
            self._part.unlink(missing_ok=True)


def packed(flags: ndarray) -> ndarray:
    """Return bits [N, B <= 64], the first the lowest, as numbers uint64 [N]."""
    found = np.zeros(len(flags), np.uint64)
    for bit in range(flags.shape[1]):
        found |= flags[:, bit].astype(np.uint64) << np.uint64(bit)
    return found


def _kinds(routed: Routed, more: frozenset[str]) -> Kinds:
    def there(name: str, value: ndarray | None) -> bool:
        if name in more and value is None:
            raise UsageError(f"trace: {name} are to be written, and are not recorded")
        return name in more

    dropped = routed.dropped is not None and len(routed.dropped) > 0
    return Kinds(
        dropped=dropped,
        margin=routed.margin is not None,
        order=there("order", routed.margin),
        entropy=there("entropy", routed.entropy),
        places=there("places", routed.place),
        gates=there("gates", routed.gate),
    )


def _fits(values: ndarray, dtype: np.dtype[Any], name: str) -> None:
    if dtype.kind == "f":
        return
    kept = np.iinfo(dtype)
    if values.min() < kept.min or values.max() > kept.max:
        raise UsageError(f"trace: {name} does not fit {dtype} ({values.min()} to {values.max()})")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error).partition("\n")[0]
        raise UsageError(f"{path}: cannot be written ({reason})") from error
