"""Plain columns by the names of our own traces, in npz or Parquet. Spec: AUDIT-27.

npz: `expert` [N, L, K]; where known `token`, `position`, `row`, `document`, `slice` [N] (the last two as
numbers or texts), `dropped_{rule}` bool [N, L, K], `gate` [N, L, K], `margin` uint8 [2, N, L] (codes).
Parquet: a file of a row a token, with `l0_e0`, `l0_e1`, ..., the same keys, `dropped_{rule}` as numbers whose
bit m K + r is of choice r of layer m, and gates `l0_g0`, ...; a folder is a trace (`traces`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.importing import stores
from openmoe_tools.audit.importing.recordings import Options, Recording
from openmoe_tools.audit.trace.columns import BITS, RULE

_EXPERT = re.compile(r"l(\d+)_e(\d+)", re.ASCII)
_PREFIX = "dropped_"
_NUMBERS = ("token", "position", "row")


def read_npz(paths: Sequence[Path], options: Options) -> Iterator[Recording]:
    """Yield what each npz file tells. Errors: UsageError."""
    for path in paths:
        with stores.opened(path) as store:
            if "expert" not in store:
                raise UsageError(f"{path}: has no array `expert` [tokens, layers, choices]")
            found = {name: np.asarray(store[name]) for name in store.names}
        dropped = {
            name.removeprefix(_PREFIX): values
            for name, values in found.items()
            if name.startswith(_PREFIX)
        }
        gate = found.get("gate")
        margin = found.get("margin")
        if margin is not None and margin.dtype != np.uint8:
            raise UsageError(f"{path}: margin is {margin.dtype}, not codes uint8")
        yield _recording(
            path,
            found["expert"],
            options,
            found,
            dropped=dropped,
            gate=None if gate is None else _gates(gate, path),
            margin=margin,
        )


def read_parquet(paths: Sequence[Path], options: Options) -> Iterator[Recording]:
    """Yield what each Parquet file tells. Errors: UsageError."""
    import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415
    from pyarrow import parquet  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415

    for path in paths:
        try:
            with parquet.ParquetFile(path) as file:
                table = file.read()
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            raise UsageError(f"{path}: is no complete Parquet file ({reason})") from error
        yield _of_table(path, table, options)


def _of_table(path: Path, table: Any, options: Options) -> Recording:
    names = table.column_names
    if len(set(names)) < len(names):
        raise UsageError(f"{path}: has two columns of one name")
    places = [(int(one[1]), int(one[2])) for name in names if (one := _EXPERT.fullmatch(name))]
    if not places:
        raise UsageError(f"{path}: has no columns l0_e0, l0_e1, ... of experts")
    layers, choices = (max(one) + 1 for one in zip(*places, strict=True))

    def column(name: str) -> ndarray:
        if name not in names:
            raise UsageError(f"{path}: has no column {name}")
        values = table.column(name)
        if values.null_count:
            raise UsageError(f"{path}: column {name} has gaps")
        found = values.to_numpy()
        return found.astype(str) if found.dtype == object else found

    def by_choice(letter: str) -> ndarray:
        rows = [
            np.stack([column(f"l{m}_{letter}{r}") for r in range(choices)], axis=-1)
            for m in range(layers)
        ]
        return np.stack(rows, axis=1)

    keys = {one: column(one) for one in (*_NUMBERS, "document", "slice") if one in names}
    rules = [
        name.removeprefix(_PREFIX)
        for name in names
        if name.startswith(_PREFIX) and "__" not in name
    ]
    dropped = {rule: _flags(column, rule, layers, choices, path) for rule in rules}
    gate = _gates(by_choice("g"), path) if "l0_g0" in names else None
    return _recording(path, by_choice("e"), options, keys, dropped=dropped, gate=gate, margin=None)


def _flags(
    column: Callable[[str], ndarray], rule: str, layers: int, choices: int, path: Path
) -> ndarray:
    """Return bits of a rule's columns, bool [N, L, K]."""
    bits = []
    for bit in range(layers * choices):
        name = _PREFIX + rule + (f"__{bit // BITS}" if bit >= BITS else "")
        values = column(name)
        if values.dtype.kind not in "iu" or (values.dtype.kind == "i" and (values < 0).any()):
            raise UsageError(f"{path}: column {name} is {values.dtype}, not bits of whole numbers")
        bits.append((values.astype(np.uint64) >> np.uint64(bit % BITS)) & np.uint64(1))
    return np.stack(bits, axis=-1).astype(bool).reshape(-1, layers, choices)


def _recording(
    path: Path,
    expert: ndarray,
    options: Options,
    keys: Mapping[str, ndarray],
    *,
    dropped: Mapping[str, ndarray],
    gate: ndarray | None,
    margin: ndarray | None,
) -> Recording:
    if options.experts is None:
        raise UsageError(
            f"{path}: does not tell how many experts there are, dead ones among them: give --experts E"
        )
    for rule, flags in dropped.items():
        if not RULE.fullmatch(rule):
            raise UsageError(f"{path}: {_PREFIX}{rule}: {rule!r} is no name of a capacity rule")
        if flags.dtype != bool or flags.shape != expert.shape:
            raise UsageError(
                f"{path}: {_PREFIX}{rule} is {flags.dtype} {list(flags.shape)}, not bool "
                f"{list(expert.shape)}"
            )
    for name in _NUMBERS:
        if name in keys and (keys[name].dtype.kind not in "iu" or (keys[name] < 0).any()):
            raise UsageError(f"{path}: {name} must be whole numbers, none below 0")
    documents, document = _named(keys.get("document"), "document", options, path)
    slices, slice_of = _named(keys.get("slice"), "slice", options, path)
    return Recording(
        str(path),
        expert,
        options.experts,
        rules=tuple(dropped),
        dropped=np.stack(list(dropped.values())) if dropped else None,
        gate=gate,
        margin=margin,
        token=keys.get("token"),
        position=keys.get("position"),
        row=keys.get("row"),
        document=document,
        documents=documents,
        slice=slice_of,
        slices=slices,
    )


def _named(
    values: ndarray | None, what: str, options: Options, path: Path
) -> tuple[tuple[str, ...], ndarray | None]:
    """Return names in the order of being seen, and which of them each token has."""
    if values is None:
        return (), None
    if values.ndim != 1 or values.dtype.kind not in "iuUS":
        raise UsageError(f"{path}: {what} must be numbers or texts [N]")
    if values.dtype.kind == "S":
        values = np.char.decode(values, "utf-8", "replace")
    there, first, places = np.unique(values, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    numbered = values.dtype.kind in "iu"
    prefix = f"{options.slice}/" if what == "document" else f"{options.slice}-"
    names = tuple(f"{prefix}{one}" if numbered else str(one) for one in there[order])
    return names, rank[places]


def _gates(gate: ndarray, path: Path) -> ndarray:
    if gate.dtype.kind != "f" or not np.isfinite(gate).all() or (gate < 0).any():
        raise UsageError(f"{path}: gates must be probabilities: finite, none below 0")
    return gate.astype(np.float32)
