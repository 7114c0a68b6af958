"""A trace as views of DuckDB, which reads nothing else and writes nothing.

trace      a row a token, with the columns of the files (`columns`)
choices    a row for each token, layer and rank: document, row, position, token, slice, layer, rank, expert,
           dropped_{rule}, margin
decisions  a row for each token and layer: the same with `experts` and `dropped_{rule}` as lists by rank
documents  document, name, slice, tokens
pieces     token, piece; where the audit has a tokeniser's
sizes      one row: layers, experts, choices, length, vocabulary_size
layers     layer, model_layer: numbers of sparse layers, and of these among all of the model's
"""
# ruff: noqa: S608 - names of checked rules, whole numbers and quoted paths alone go into the text

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.trace import reading
from openmoe_tools.audit.trace.columns import BITS, DOCUMENTS
from openmoe_tools.audit.trace.reading import Trace
from openmoe_tools.data import opening

COMMAND = "openmoe audit query"
NAMES = ("trace", "choices", "decisions", "documents", "pieces", "sizes", "layers")
_TRACE = "trace"
_KEYS = (
    'document, "row"::INTEGER AS "row", position::INTEGER AS position, token::INTEGER AS token, '
    "slice::VARCHAR AS slice"
)


@contextmanager
def connected(folder: Path) -> Iterator[tuple[Any, Trace]]:
    """Open an audit's trace: a connection with the views, and what the trace says of itself.

    Errors: UsageError, also where there is no trace.
    """
    opening.require(COMMAND, "duckdb", "pyarrow", extra="audit")
    if not folder.is_dir():
        raise UsageError(f"{folder}: is no folder of an audit; `openmoe audit run` makes one")
    if not (folder / _TRACE).is_dir():
        raise UsageError(
            f"{folder}: has no trace; make one with `openmoe audit run CHECKPOINT ... --trace`"
        )
    import duckdb  # noqa: PLC0415

    if int(duckdb.__version__.partition(".")[0]) < 2:
        raise UsageError(
            f"{COMMAND} needs duckdb 2 or newer, which reads a trace's encoding; this is {duckdb.__version__}"
        )
    trace = reading.open_trace(folder / _TRACE)
    reading.documents(trace)
    connection = duckdb.connect(":memory:")
    try:
        try:
            _make(connection, trace)
        except duckdb.Error as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(f"{trace.folder}: cannot be read ({reason})") from error
        _pieces(connection, folder / "pieces.json")
        _lock(connection, trace)
        yield connection, trace
    finally:
        connection.close()


def _make(connection: Any, trace: Trace) -> None:
    head = trace.head
    files = ", ".join(map(_quoted, trace.files))
    connection.execute(f"CREATE VIEW trace AS SELECT * FROM read_parquet([{files}])")
    documents = _quoted(trace.folder / DOCUMENTS)
    connection.execute(
        "CREATE VIEW documents AS SELECT document, name, slice::VARCHAR AS slice, tokens "
        f"FROM read_parquet({documents})"
    )
    for name, parts in (("choices", _choices(trace)), ("decisions", _decisions(trace))):
        connection.execute(f"CREATE VIEW {name} AS " + "\nUNION ALL\n".join(parts))
    connection.execute(
        f"CREATE VIEW sizes AS SELECT {len(head.layers)} AS layers, {head.experts} AS experts, "
        f"{head.choices} AS choices, {head.length} AS length, "
        f"{head.vocabulary_size} AS vocabulary_size"
    )
    numbers = ", ".join(f"({m}, {int(number)})" for m, number in enumerate(head.layers))
    connection.execute(f"CREATE VIEW layers AS FROM (VALUES {numbers}) AS t(layer, model_layer)")


_BRANCHES = 64
"""Of a union, which binds every column of the trace in each branch: more take seconds to begin."""


def _choices(trace: Trace) -> Iterator[str]:
    head = trace.head
    if len(head.layers) * head.choices > _BRANCHES:
        yield from _unnested(trace)
        return
    for m in range(len(head.layers)):
        for r in range(head.choices):
            dropped = "".join(
                f", {_bit(rule, m * head.choices + r)} AS dropped_{rule}" for rule in _rules(trace)
            )
            yield (
                f"SELECT {_KEYS}, {m} AS layer, {r} AS rank, l{m}_e{r}::INTEGER AS expert"
                f"{dropped}{_margin(trace, m)} FROM trace"
            )


def _unnested(trace: Trace) -> Iterator[str]:
    """Yield the same rows a layer at a time: slower to run, and begun at once."""
    ranks = ", ".join(map(str, range(trace.head.choices)))
    for m, (experts, dropped) in enumerate(_lists(trace)):
        lists = "".join(f", unnest({one}) AS dropped_{rule}" for rule, one in dropped.items())
        yield (
            f"SELECT {_KEYS}, {m} AS layer, unnest([{ranks}]) AS rank, unnest({experts}) AS expert"
            f"{lists}{_margin(trace, m)} FROM trace"
        )


def _decisions(trace: Trace) -> Iterator[str]:
    for m, (experts, dropped) in enumerate(_lists(trace)):
        lists = "".join(f", {one} AS dropped_{rule}" for rule, one in dropped.items())
        yield (
            f"SELECT {_KEYS}, {m} AS layer, {experts} AS experts{lists}{_margin(trace, m)} "
            "FROM trace"
        )


def _lists(trace: Trace) -> Iterator[tuple[str, dict[str, str]]]:
    """Yield for each layer its experts and, by rule, what was dropped of them, as lists by rank."""
    choices = trace.head.choices
    for m in range(len(trace.head.layers)):
        experts = ", ".join(f"l{m}_e{r}::INTEGER" for r in range(choices))
        yield (
            f"[{experts}]",
            {
                rule: f"[{', '.join(_bit(rule, m * choices + r) for r in range(choices))}]"
                for rule in _rules(trace)
            },
        )


def _rules(trace: Trace) -> tuple[str, ...]:
    return trace.head.rules if trace.kinds.dropped else ()


def _bit(rule: str, bit: int) -> str:
    name = f"dropped_{rule}" + (f"__{bit // BITS}" if bit >= BITS else "")
    return f"((({name} >> {bit % BITS}) & 1) = 1)"


def _margin(trace: Trace, m: int) -> str:
    return f", l{m}_margin::INTEGER AS margin" if trace.kinds.margin else ""


def _pieces(connection: Any, path: Path) -> None:
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415

    if not path.is_file():
        return
    try:
        pieces = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    if not isinstance(pieces, list) or not all(isinstance(one, str) for one in pieces):
        raise UsageError(f"{path}: is no list of pieces, which are texts")
    numbers = pa.array(range(len(pieces)), pa.int32())
    found = pa.table({"token": numbers, "piece": pa.array(pieces, pa.string())})
    connection.register("given", found)
    connection.execute("CREATE TABLE pieces AS SELECT * FROM given")
    connection.unregister("given")


def _lock(connection: Any, trace: Trace) -> None:
    """Leave the connection the trace's own files, and no way to be given more."""
    files = ", ".join(map(_quoted, (*trace.files, trace.folder / DOCUMENTS)))
    for setting in (
        f"allowed_paths = [{files}]",
        "python_enable_replacements = false",  # no variables of this program as tables
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "temp_directory = ''",  # nothing beside the user's files
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")


def _quoted(path: Path) -> str:
    return "'" + str(path.absolute()).replace("'", "''") + "'"
