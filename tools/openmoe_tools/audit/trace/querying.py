"""`openmoe audit query`: SQL over an audit's trace, or a named query that derives a figure again.

The JSON's schema is `query.schema.json`, beside this file..
"""

from __future__ import annotations

import csv as csv_module
import inspect
import json as json_module
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console
from rich.table import Table
from rich.text import Text

from openmoe_conformance.outcome import UsageError
from openmoe_tools import files
from openmoe_tools.audit.trace import views
from openmoe_tools.audit.trace.columns import Head
from openmoe_tools.audit.trace.queries import QUERIES
from openmoe_tools.checkpoints.containers.stored import printable
from openmoe_tools.terminal import console, say

SCHEMA = "openmoe-audit-query/1"
SHOWN = 40
"""Rows that a terminal is shown."""
_ROWS = 10_000


@dataclass(frozen=True)
class Request:
    """The options of `openmoe audit query`.

    sql     a SELECT; None with `figure`, or to be told what there is to ask
    figure  a name of `queries.QUERIES`, or of the figures that the caller knows
    layer   of a named query, by its number among the sparse ones; None: the third, or the last
    rule    of a named query; None: the first
    expert  of a named query that takes one; token: likewise, None: the most frequent id
    """

    folder: Path
    sql: str | None = None
    figure: str | None = None
    json: Path | None = None
    csv: Path | None = None
    layer: int | None = None
    rule: str | None = None
    expert: int = 0
    token: int | None = None


def query(request: Request, figures: Mapping[str, str] | None = None) -> int:
    """Answer, print, and write what was asked; return 0.

    figures  SQL by a figure's name, besides the named queries
    Errors: UsageError, of SQL too.
    """
    files.writable(request.json, request.csv, read=[request.folder / "trace"])
    if request.sql is not None and request.figure is not None:
        raise UsageError("SQL and --figure: one of them, not both")
    with views.connected(request.folder) as (connection, trace):
        sql = request.sql
        if request.figure is not None:
            sql = _of_figure(request, connection, trace.head, figures or {})
        if sql is None:
            if request.json or request.csv:
                raise UsageError("--json, --csv: need SQL or --figure, of which they are the rows")
            _told(connection, figures or {}, console())
            return 0
        _answer(connection, sql, request)
    return 0


# ---- what is asked -------------------------------------------------------------------------------


def _of_figure(request: Request, connection: Any, head: Head, figures: Mapping[str, str]) -> str:
    """Return the SQL of a figure, or of a named query with its arguments. Errors: UsageError."""
    name = str(request.figure)
    if name in figures:
        return figures[name]
    if name not in QUERIES:
        known = ", ".join([*QUERIES, *figures])
        raise UsageError(f"--figure {name}: is none of {known}")
    layer = min(2, len(head.layers) - 1) if request.layer is None else request.layer
    if not 0 <= layer < len(head.layers):
        raise UsageError(
            f"--layer {layer}: the trace has sparse layers 0 to {len(head.layers) - 1}"
        )
    if request.expert >= head.experts:
        raise UsageError(f"--expert {request.expert}: there are {head.experts}, from 0")
    if request.token is not None and request.token >= head.vocabulary_size:
        raise UsageError(f"--token {request.token}: there are {head.vocabulary_size} ids, from 0")
    given: dict[str, Any] = {"layer": layer, "expert": request.expert}
    taken = inspect.signature(QUERIES[name]).parameters
    if "token" in taken:
        given["token"] = _frequent(connection) if request.token is None else request.token
    if "rule" in taken:
        given["rule"] = _rule(request.rule, head)
    return QUERIES[name](**{one: given[one] for one in taken if one in given})


def _frequent(connection: Any) -> int:
    """Return the id that most tokens have; among equals the lower."""
    counted = "SELECT token FROM trace GROUP BY token ORDER BY count(*) DESC, token LIMIT 1"
    with _explained():
        return int(connection.execute(counted).fetchall()[0][0])


def _rule(rule: str | None, head: Head) -> str:
    if not head.rules:
        raise UsageError("--figure: the trace records no dropped choices")
    if rule is not None and rule not in head.rules:
        raise UsageError(f"--rule {rule}: the trace has {', '.join(head.rules)}")
    return rule or head.rules[0]


def _told(connection: Any, figures: Mapping[str, str], to: Console) -> None:
    """Print what there is to ask."""
    table = Table("view", "columns", title="Views", title_justify="left")
    for name in views.NAMES:
        found = connection.execute(
            "SELECT column_name, data_type FROM duckdb_columns() WHERE table_name = ? "
            "ORDER BY column_index",
            [name],
        ).fetchall()
        if found:
            table.add_row(name, Text(", ".join(f"{one} {kind}" for one, kind in found)))
    to.print(table)
    named = Table("--figure", "what", title="Named queries", title_justify="left")
    for name, made in QUERIES.items():
        named.add_row(name, Text(str(made.__doc__).partition(" for ")[2].rstrip(".")))
    for name in figures:
        named.add_row(Text(printable(name)), "of the report")
    to.print(named)
    say(to, 'Ask with `openmoe audit query DIR "SELECT ..."` or --figure NAME.', "dim")


# ---- the answer ----------------------------------------------------------------------------------


def _answer(connection: Any, sql: str, request: Request) -> None:
    """Run SQL once; its rows go to the terminal and to files as they come."""
    with ExitStack() as stack, _explained():
        reader = _run(connection, sql)
        stack.callback(reader.close)
        names = [str(one) for one in reader.schema.names]
        types = [str(one) for one in reader.schema.types]
        sinks: list[_Csv | _Json] = []
        if request.csv is not None:
            sinks.append(stack.enter_context(_csv(request.csv, names)))
        if request.json is not None:
            sinks.append(stack.enter_context(_json(request.json, names, types, sql)))
        shown: list[Sequence[Any]] = []
        number = 0
        for batch in reader:
            columns = [[_plain(one) for one in column.to_pylist()] for column in batch.columns]
            rows = list(zip(*columns, strict=True))
            shown += rows[: SHOWN - len(shown)]
            number += len(rows)
            for sink in sinks:
                sink.add(rows)
    _print(names, types, shown, number, request)


def _run(connection: Any, sql: str) -> Any:
    """Return a reader of the rows of one SELECT, or refuse whatever else it is."""
    statements = connection.extract_statements(sql)
    if len(statements) != 1:
        raise UsageError(f"SQL: must be one statement, got {len(statements)}")
    text = statements[0].query.strip().rstrip(";")
    if statements[0].type.name not in {"SELECT", "MULTI"}:  # PIVOT is several at once
        raise UsageError(
            f"SQL: a trace is only read, so it must be a SELECT, not {statements[0].type.name}"
        )
    # Within another statement nothing may write, not even a common table expression: what is bound here
    # and never run would be refused.
    connection.sql(f"SELECT * FROM (\n{text}\n)")  # noqa: S608 - nothing of it is run
    found = connection.sql(text)
    if found is None:
        raise UsageError("SQL: gives no rows")
    return found.to_arrow_reader(_ROWS)


@contextmanager
def _explained() -> Iterator[None]:
    import duckdb  # noqa: PLC0415
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415

    try:
        yield
    except (duckdb.Error, pa.ArrowException) as error:
        told = str(error).partition("\n\nLINE ")[0].split()
        raise UsageError(f"SQL: {printable(' '.join(told))}") from error


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: null where a number is not finite."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Decimal):
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if value is None or isinstance(value, str | int):
        return value
    return value.hex() if isinstance(value, bytes) else str(value)


def _print(
    names: Sequence[str],
    types: Sequence[str],
    rows: Sequence[Sequence[Any]],
    number: int,
    request: Request,
) -> None:
    to = console()
    table = Table()
    for name, kind in zip(names, types, strict=True):
        numeric = kind.startswith(("int", "uint", "double", "float", "decimal"))
        table.add_column(Text(printable(name)), justify="right" if numeric else "left")
    for row in rows:
        table.add_row(*(Text(_cell(one)) for one in row))
    to.print(table)
    written = [str(path) for path in (request.csv, request.json) if path is not None]
    more = f", of which the first {len(rows)} are shown" if number > len(rows) else ""
    where = f"; all are in {' and '.join(written)}" if written else ""
    if more and not written:
        where = "; --csv FILE or --json FILE writes all"
    say(to, f"{number:,} rows{more}{where}", "dim")


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.6g}"
    return printable(value if isinstance(value, str) else json_module.dumps(value))


# ---- files ---------------------------------------------------------------------------------------


class _Csv:
    """Rows as CSV; a list is a cell of JSON."""

    def __init__(self, file: TextIO, names: Sequence[str]) -> None:
        self._writer = csv_module.writer(file, lineterminator="\n")
        self._writer.writerow(names)

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        for row in rows:
            self._writer.writerow(
                json_module.dumps(one) if isinstance(one, list | dict) else one for one in row
            )


class _Json:
    """Rows as lists of a JSON object."""

    def __init__(self, file: TextIO) -> None:
        self._file, self.number = file, 0

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        for row in rows:
            self._file.write((",\n" if self.number else "\n") + json_module.dumps(row))
            self.number += 1


@contextmanager
def _csv(path: Path, names: Sequence[str]) -> Iterator[_Csv]:
    with _written(path) as file:
        yield _Csv(file, names)


@contextmanager
def _json(path: Path, names: Sequence[str], types: Sequence[str], sql: str) -> Iterator[_Json]:
    columns = [{"name": name, "type": kind} for name, kind in zip(names, types, strict=True)]
    told = {"schema": SCHEMA, "sql": sql, "columns": columns}
    with _written(path) as file:
        file.write(json_module.dumps(told)[:-1] + ', "rows": [')
        rows = _Json(file)
        yield rows
        file.write(f'\n], "count": {rows.number}}}\n')


@contextmanager
def _written(path: Path) -> Iterator[TextIO]:
    """Open a file that has its name only when it is complete."""
    part = path.with_name(path.name + ".part")
    try:
        with part.open("w", encoding="utf-8", newline="") as file:
            yield file
        part.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error
    finally:
        part.unlink(missing_ok=True)
