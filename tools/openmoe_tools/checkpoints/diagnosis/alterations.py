"""What was done to the values of a matrix at their own places: rounded, scaled, or a few of them spoilt."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy import ndarray

from openmoe_tools.checkpoints.diagnosis.causes import Cause, same
from openmoe_tools.checkpoints.diagnosis.fingerprints import Matrix
from openmoe_tools.checkpoints.digests import cast
from openmoe_tools.checkpoints.verification.findings import ranges
from openmoe_tools.checkpoints.verification.numeric import bits, ordered


def altered(a: Matrix, b: Matrix) -> Cause | None:
    """Return what was done to the values of a that stand at their places in b."""
    return _rounded(a, b) or _spoilt(a, b) or _scaled(a, b) or _scaled_by_line(a, b)


def _own(a: Matrix, dtype: str) -> Callable[[int, int], ndarray]:
    return lambda start, stop: cast(cast(a.own_rows(start, stop), dtype), a.dtype)


def _truncated(values: ndarray) -> ndarray:
    wide = values.astype(np.float32)
    return (bits(wide) & np.uint32(0xFFFF0000)).view(np.float32)


def _rounded(a: Matrix, b: Matrix) -> Cause | None:
    """Return a cast that was not declared, or not done as it must be."""
    own = a.checkpoint.dtype(a.name)
    if own in {"bfloat16", "float16"}:
        return None
    again = "convert again with rounding to nearest, ties to even (CKPT-03)"
    if same(lambda start, stop: cast(_truncated(a.own_rows(start, stop)), a.dtype), b):
        what = "was cut off to bfloat16, its last bits dropped"
        if b.dtype == "float32":
            return Cause("bfloat16 by truncation", f"{what}, and widened again", again)
        return Cause("bfloat16 by truncation", what, again)
    for narrow in ("bfloat16", "float16"):
        if narrow != b.dtype and same(_own(a, narrow), b):
            fix = f"convert from the source's own {own}, or declare --cast {narrow}"
            return Cause(f"rounded to {narrow}", f"went through {narrow} on its way", fix)
    return None


_TELLING = 8.0
"""How many times a dtype's precision a factor must be from 1 to be one."""

_CONSTANTS = "divide it out again, or fold it where the forward pass leaves it out"


def _scaled(a: Matrix, b: Matrix) -> Cause | None:
    """Return a factor or a term that all values have in common."""
    start, stop = next(a.ranges())
    one, other = (m.rows(start, stop).astype(np.float64) for m in (a, b))
    if one.size < 2 or not (np.isfinite(one).all() and np.isfinite(other).all()):
        return None
    square = float((one * one).sum())
    factor = float((one * other).sum()) / square if square else 1.0
    if abs(factor - 1) > _TELLING * _precision(b.dtype) and factor:
        exact = _fit(a, b, lambda rows, _: rows * factor)
        if exact is not None:
            text = f"is the source's times {_number(factor, b.dtype)}"
            return Cause("constant factor", text, _CONSTANTS, exact=exact)
    term = float((other - one).mean())
    if abs(term) > _TELLING * _precision(b.dtype) * float(np.abs(one).max()):
        exact = _fit(a, b, lambda rows, _: rows + term)
        if exact is not None:
            fix = "an OpenMoE norm multiplies by its scale, and not by 1 + scale (LAYER-03)"
            text = f"is the source's plus {_number(term, b.dtype)}"
            return Cause("constant term", text, fix, exact=exact)
    return None


def _scaled_by_line(a: Matrix, b: Matrix) -> Cause | None:
    """Return a factor that each row, or each column, has in common."""
    if 1 in a.shape:
        return None
    rows = _factors(a, b, 1)
    if rows is not None:
        exact = _fit(a, b, lambda values, at: values * rows[at[0] : at[1], None])
        norm = _norm_of(a, rows) if exact is not None else None
        if norm is not None:
            fix = "leave the norm's scale where it is: the forward pass multiplies by it again"
            text = f"is the source's with each row times {norm}"
            return Cause("norm folded in", text, fix, exact=bool(exact))
        if exact is not None:
            fix = "undo it: a norm's scale is a tensor of its own"
            return Cause("factor by row", _spread("row", rows), fix, exact=exact)
    columns = _factors(a, b, 0)
    if columns is not None:
        exact = _fit(a, b, lambda values, _: values * columns)
        if exact is not None:
            return Cause("factor by column", _spread("column", columns), "undo it", exact=exact)
    return None


def _norm_of(a: Matrix, factors: ndarray) -> str | None:
    """Return the norm of the same layer whose scale the factors of the rows are."""
    layer = a.name.split("/")[1]
    for name, placed in a.checkpoint.tensors.items():
        near = name.split("/")[1] == layer or layer == "logits_dense"
        if near and name.endswith("/scale") and placed.shape == factors.shape:
            scale = a.checkpoint.read(name).astype(np.float64)
            if (np.abs(scale - factors) <= 1e-2 * np.abs(scale)).all():
                return name
    return None


def _number(value: float, dtype: str) -> str:
    """Return a factor as a reader knows it, where it is one within the dtype's precision."""
    room = 8 * _precision(dtype)
    for text, known in {"1/2": 0.5, "2": 2.0, "-1": -1.0, "1/4": 0.25, "4": 4.0, "1": 1.0}.items():
        if abs(value - known) <= room * known * (1 if known > 0 else -1):
            return text
    square = value * value
    for number, form in ((square, "sqrt({})"), (1 / square, "1/sqrt({})")):
        whole = round(number)
        if whole > 1 and abs(number - whole) <= max(1e-5, room) * number:
            return f"{value:.6g} ({'-' if value < 0 else ''}{form.format(whole)})"
    return f"{value:.6g}"


def _spread(what: str, factors: ndarray) -> str:
    return (
        f"is the source's with each {what} times a factor of its own, "
        f"{factors.min():.4g} to {factors.max():.4g}"
    )


def _precision(dtype: str) -> float:
    """Return the largest relative error of rounding to a dtype."""
    return {"bfloat16": 2.0**-9, "float16": 2.0**-11, "float32": 2.0**-24}.get(dtype, 2.0**-53)


def _factors(a: Matrix, b: Matrix, axis: int) -> ndarray | None:
    """Return the factor of each row (axis 1) or, by the first rows, of each column (axis 0).

    None: some value is not finite, or all factors are 1 as far as the dtype tells.
    """
    found = []
    for start, stop in a.ranges():
        one, other = (m.rows(start, stop).astype(np.float64) for m in (a, b))
        if not (np.isfinite(one).all() and np.isfinite(other).all()):
            return None
        square = (one * one).sum(axis=axis)
        product = (one * other).sum(axis=axis)
        found.append(np.divide(product, square, out=np.ones_like(square), where=square > 0))
        if axis == 0:
            break
    factors = np.concatenate(found)
    telling = np.abs(factors - 1).max() > _TELLING * _precision(b.dtype)
    return factors if telling else None


def _fit(a: Matrix, b: Matrix, made: Callable[[ndarray, tuple[int, int]], ndarray]) -> bool | None:
    """Return whether b is, bit for bit, what is made of a; None: it is further off than one place.

    A factor taken from rounded values leaves the last place open.
    """
    exact = True
    for rows in a.ranges():
        one, other = a.rows(*rows).astype(np.float64), b.rows(*rows)
        with np.errstate(all="ignore"):
            expected = cast(made(one, rows), b.dtype)
        apart = np.abs(ordered(expected) - ordered(other))
        if apart.max(initial=0) > 1 or not np.isfinite(expected.astype(np.float32)).all():
            return None
        exact = exact and not apart.any()
    return exact


def _spoilt(a: Matrix, b: Matrix) -> Cause | None:
    """Return where a few rows, or one box of the matrix, differ; None: most of it does."""
    count, flips, rows = 0, True, []
    columns = np.zeros(a.shape[1], bool)
    first: tuple[int, int] | None = None
    for start, stop in a.ranges():
        one, other = bits(a.rows(start, stop)), bits(b.rows(start, stop))
        unequal = one != other
        if not unequal.any():
            continue
        apart = (one ^ other)[unequal]
        flips = flips and bool((np.bitwise_count(apart) == 1).all())
        count += int(unequal.sum())
        rows += [int(start + i) for i in np.flatnonzero(unequal.any(axis=1))]
        columns |= unequal.any(axis=0)
        if first is None:
            place = np.argwhere(unequal)[0]
            first = (int(start + place[0]), int(place[1]))
    if not count or first is None:
        return None
    touched = np.flatnonzero(columns)
    size = a.shape[0] * a.shape[1]
    where = f"row {first[0]}, column {first[1]}" if count == 1 else _box(rows, touched, a.shape)
    if flips and count <= max(1, size // 100):
        each = "one bit of one value" if count == 1 else f"one bit of each of {count} values"
        return Cause("flipped bits", f"has {each} flipped", "copy it again from the source", where)
    box = len(rows) * len(touched)
    if box == count and size // 16 <= box < size and _follows(rows) and _follows(touched):
        return Cause(
            "stale shard",
            "has a block of other values, as one device or one chunk holds",
            "take that part from the same step as the others",
            where,
        )
    few = max(2, size // 8) if 1 in a.shape else size // 20
    if count <= few or (box <= size // 2 and 1 not in a.shape):
        return Cause(
            "sparse corruption",
            f"has {count} of {size} values that differ",
            "copy these again from the source",
            where,
        )
    return None


def _follows(numbers: list[int] | ndarray) -> bool:
    return len(numbers) == int(numbers[-1]) - int(numbers[0]) + 1


def _box(rows: list[int], columns: ndarray, shape: tuple[int, int]) -> str:
    told = []
    if shape[0] > 1:
        listed = ranges(rows[:64])
        told.append(f"rows {listed}{', ...' if len(rows) > 64 else ''}")
    if len(columns) < shape[1]:
        listed = ranges(int(c) for c in columns[:64])
        told.append(f"columns {listed}{', ...' if len(columns) > 64 else ''}")
    return ", ".join(told)
