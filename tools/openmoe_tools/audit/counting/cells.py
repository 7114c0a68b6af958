"""Cells of tables: counted by their numbers, and refused before they would be counted too often.

Spec: AUDIT-21.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError

EXACT = 1 << 53
"""Up to here every integer is a float64."""


def increase(table: ndarray, cells: ndarray) -> None:
    """Add 1 to a table's cells as often as each is given.

    table  integers, in C order
    cells  int64, numbers of cells
    """
    flat = table.reshape(-1)
    # A pass over a small table is cheaper than single cells; over a large one it is not.
    if flat.size <= 4 * cells.size:
        flat += np.bincount(cells, minlength=flat.size).astype(flat.dtype)
    else:
        np.add.at(flat, cells, flat.dtype.type(1))


def sums(keys: ndarray, values: ndarray, size: int) -> ndarray:
    """Return the sums of values by key, int64 [size], exact.

    keys    int64 [N]
    values  int64 [N], 0 to 2^52
    """
    # Sums are of float64: exact where all values together are below 2^53.
    if values.sum(dtype=np.float64) < EXACT / 2 or len(keys) < 2:
        return np.bincount(keys, weights=values, minlength=size).astype(np.int64)
    half = len(keys) // 2
    return sums(keys[:half], values[:half], size) + sums(keys[half:], values[half:], size)


class Marks(NamedTuple):
    """What was found of tokens in layers, in one of C columns; M findings.

    token  int64 [M]  places in the batch
    cell   int64 [M]  layer * C + column
    """

    token: ndarray
    cell: ndarray


def marks(columns: Sequence[ndarray]) -> Marks:
    """Return where columns, each bool [L, N], are true."""
    token, cell = [], []
    for number, column in enumerate(columns):
        for layer, one in enumerate(column):
            found = np.flatnonzero(one)
            token.append(found)
            cell.append(np.full(len(found), layer * len(columns) + number, np.int64))
    return Marks(np.concatenate(token), np.concatenate(cell))


def drop_marks(dropped: ndarray) -> Marks:
    """Return the DROP_COLUMNS of choices that got no slot or did, bool [L, K, N]. Spec: AUDIT-16."""
    first = dropped[:, 0]
    some, every = first.copy(), first.copy()
    for rank in range(1, dropped.shape[1]):
        some |= dropped[:, rank]
        every &= dropped[:, rank]
    second = dropped[:, 1] if dropped.shape[1] > 1 else np.zeros_like(first)
    return marks((np.ones_like(first), first, second, some, every))


def compressed(keys: ndarray, size: int) -> tuple[ndarray, ndarray]:
    """Return the keys that there are, ascending, and the place of each given key among them; int64.

    keys  integers from 0 to size - 1
    """
    there = np.zeros(size, bool)
    there[keys] = True
    found = np.flatnonzero(there)
    place = np.empty(size, np.int64)
    place[found] = np.arange(len(found))
    return found, place[keys]


# ---- room --------------------------------------------------------------------------------------


def check_room(name: str, table: ndarray, more: ndarray) -> None:
    """Refuse integers, none negative, that cells would not hold beside their own. Errors: UsageError."""
    if more.size and (more > np.iinfo(table.dtype).max - table).any():
        raise _overflow(name, table)


def check_room_for(name: str, table: ndarray, cells: ndarray, most: int) -> None:
    """Refuse to count cells more often than the table can. Errors: UsageError.

    cells  int64, numbers of cells, none of them given more often than `most`
    """
    flat, limit = table.reshape(-1), int(np.iinfo(table.dtype).max)
    if not cells.size or flat[cells].max() <= limit - most:
        return
    there, number = np.unique(cells, return_counts=True)
    if (number > limit - flat[there]).any():
        raise _overflow(name, table)


def _overflow(name: str, table: ndarray) -> UsageError:
    return UsageError(
        f"table {name}: a cell would exceed {np.iinfo(table.dtype).max}, the most that it can hold; "
        "audit the text in parts, and keep these apart"
    )
