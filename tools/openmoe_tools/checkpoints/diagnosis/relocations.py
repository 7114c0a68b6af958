"""The values of a matrix in other places of it: transposed, permuted, reshaped."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np
from numpy import ndarray

from openmoe_tools.checkpoints.diagnosis import rearrangements
from openmoe_tools.checkpoints.diagnosis.causes import Cause, equal, kind_of, same
from openmoe_tools.checkpoints.diagnosis.fingerprints import (
    Fingerprint,
    Matrix,
    is_rearranged,
    permutation,
)
from openmoe_tools.checkpoints.diagnosis.rearrangements import described, named
from openmoe_tools.checkpoints.verification.numeric import bits

_WHOLE = 256 << 20
"""Bytes of a matrix that may be held to look for a reshape."""


def rearranged(
    a: Matrix, b: Matrix, fa: Fingerprint, fb: Fingerprint, heads: int | None
) -> Cause | None:
    """Return how the values of a were rearranged in b; None: they were not, or are others."""
    if fa.total != fb.total:
        return None
    return (
        _transposed(a, b, fa, fb)
        or _permuted(a, b, fa, fb, heads)
        or _reshaped(a, b, heads)
        or Cause("rearranged", "holds the same values in an arrangement that has no name here")
    )


def _transposed(a: Matrix, b: Matrix, fa: Fingerprint, fb: Fingerprint) -> Cause | None:
    if b.shape != a.shape[::-1] or 1 in a.shape:
        return None
    if not ((fa.rows == fb.columns).all() and (fa.columns == fb.rows).all()):
        return None
    if a.shape[0] == a.shape[1] and equal(a, b):
        return None
    if not same(lambda start, stop: a.columns(start, stop).T, b):
        return None
    square = "; it is square, so its shape does not tell" if a.shape[0] == a.shape[1] else ""
    return Cause(
        "transposed", f"is transposed{square}", "transpose it once, where the mapping says so"
    )


def _permuted(
    a: Matrix, b: Matrix, fa: Fingerprint, fb: Fingerprint, heads: int | None
) -> Cause | None:
    if a.shape != b.shape:
        return None
    of_rows, of_columns = kind_of(a.name)
    rows_stay, columns_stay = (fa.rows == fb.rows).all(), (fa.columns == fb.columns).all()
    if rows_stay and is_rearranged(fa.columns, fb.columns):
        for one in _orders(of_columns, fa.columns, fb.columns, heads, "columns"):
            if same(lambda start, stop, p=one.order: a.rows(start, stop)[:, p], b):  # type: ignore[misc]
                units = "experts, its columns," if of_columns == "experts" else "columns"
                return Cause(one.cause, f"has {units} that {one.text}", one.fix)
    if columns_stay and is_rearranged(fa.rows, fb.rows):
        rows_of = _gatherer(a)
        for one in _orders(of_rows, fa.rows, fb.rows, heads, "rows"):
            if same(lambda start, stop, p=one.order: rows_of(p[start:stop]), b):  # type: ignore[misc]
                return Cause(one.cause, f"has rows that {one.text}", one.fix)
    if is_rearranged(fa.rows, fb.rows) and is_rearranged(fa.columns, fb.columns):
        rows, columns = permutation(fa.rows, fb.rows), permutation(fa.columns, fb.columns)
        if same(lambda start, stop: _gatherer(a)(rows[start:stop])[:, columns], b):
            return Cause(
                "rows and columns permuted",
                f"has rows that {described(rows, 'rows')[1]}, and columns that "
                f"{described(columns, 'columns')[1]}",
                "put both in the source's order",
            )
    return None


def _orders(
    kind: str, one: ndarray, other: ndarray, heads: int | None, unit: str
) -> Iterator[rearrangements.Rearrangement]:
    """Yield the rearrangements that the sums speak for, those with a name first."""
    for candidate in named(kind, len(one), heads):
        if (one[candidate.order] == other).all():
            yield candidate
    order = permutation(one, other)
    cause, text, fix = described(order, "experts" if kind == "experts" else unit, heads)
    yield rearrangements.Rearrangement(cause, text, fix, order)


def _gatherer(a: Matrix) -> Callable[[ndarray], ndarray]:
    """Return a function of an order: a matrix's rows in it. One of moderate size is read once."""
    if a.shape[0] * a.shape[1] * 8 <= _WHOLE:
        held = a.rows(0, a.shape[0])
        return lambda order: held[order]
    return lambda order: _gathered(a, order)


def _gathered(a: Matrix, order: ndarray) -> ndarray:
    """Return rows of a matrix in an order, read by runs that follow each other."""
    breaks = np.flatnonzero(np.diff(order) != 1) + 1
    runs = np.split(order, breaks)
    return np.concatenate([a.rows(int(run[0]), int(run[-1]) + 1) for run in runs])


def _reshaped(a: Matrix, b: Matrix, heads: int | None) -> Cause | None:
    """Return a reshape that took the place of a transposition; matrices of moderate size alone."""
    if a.shape[0] * a.shape[1] * 8 > _WHOLE:
        return None
    one, other = a.rows(0, a.shape[0]), b.rows(0, b.shape[0])
    if a.shape != b.shape and (bits(one).reshape(-1) == bits(other).reshape(-1)).all():
        return Cause(
            "reshaped", "was reshaped and not transposed: its values follow each other as before",
            "transpose it",
        )  # fmt: skip
    if (bits(one.T.reshape(b.shape)) == bits(other)).all():
        return Cause(
            "reshaped", "was transposed and then reshaped back to its shape",
            "transpose it back before anything else is done to it",
        )  # fmt: skip
    of_rows, of_columns = kind_of(a.name)
    for axis, kind in enumerate((of_rows, of_columns)):
        if kind not in {"rotary", "heads"}:
            continue
        size, rest = a.shape[axis], a.shape[1 - axis]
        known = [heads] if heads and size % heads == 0 else []
        for number in (*known, *rearrangements.divisors(size)):
            grid = (rest, number, size // number) if axis else (number, size // number, rest)
            for order in ((1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0), (0, 2, 1)):
                moved = one.reshape(grid).transpose(order).reshape(b.shape)
                if (bits(moved) == bits(other)).all():
                    return Cause(
                        "heads and dimensions exchanged",
                        f"was laid out as {list(grid)} with its axes in the order {list(order)}",
                        "keep the order [width, heads, dimensions] before it is made a matrix",
                    )
    return None
