"""What became of one matrix: the named cause of every difference between it and the source's.

A fingerprint proposes, an exact second read confirms: what is returned explains each value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from openmoe_tools.checkpoints import fingerprints, rearrangements
from openmoe_tools.checkpoints.digests import cast
from openmoe_tools.checkpoints.findings import ranges
from openmoe_tools.checkpoints.fingerprints import Fingerprint, Matrix, is_rearranged, permutation
from openmoe_tools.checkpoints.numeric import bits
from openmoe_tools.checkpoints.rearrangements import described, named

_WHOLE = 256 << 20
"""Bytes of a matrix that may be held to look for a reshape."""


@dataclass(frozen=True)
class Cause:
    """What became of a matrix: a name, a sentence behind "the matrix", and what to do."""

    cause: str
    text: str
    fix: str = ""
    where: str = ""


def kind_of(name: str) -> tuple[str, str]:
    """Return what the rows and the columns of a tensor are, as `rearrangements.named` has it."""
    if name.endswith("wi_0/kernel"):
        return "", "gate"
    if name.endswith(("query/kernel", "key/kernel")):
        return "", "rotary"
    if name.endswith("value/kernel"):
        return "", "heads"
    if name.endswith("self_attention/out/kernel"):
        return "heads", ""
    if name.endswith("router_weights/w/kernel"):
        return "", "experts"
    return "", ""


def same(expected: Callable[[int, int], ndarray], found: Matrix) -> bool:
    """Return whether rows of a matrix are those expected, bit for bit."""
    return all((bits(expected(*rows)) == bits(found.rows(*rows))).all() for rows in found.ranges())


def equal(a: Matrix, b: Matrix) -> bool:
    """Return whether two matrices are the same, bit for bit."""
    return a.shape == b.shape and same(a.rows, b)


# ---- the same values in other places -------------------------------------------------------------


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
        for one in _orders(of_rows, fa.rows, fb.rows, heads, "rows"):
            if same(lambda start, stop, p=one.order: _gathered(a, p[start:stop]), b):  # type: ignore[misc]
                return Cause(one.cause, f"has rows that {one.text}", one.fix)
    if is_rearranged(fa.rows, fb.rows) and is_rearranged(fa.columns, fb.columns):
        rows, columns = permutation(fa.rows, fb.rows), permutation(fa.columns, fb.columns)
        if same(lambda start, stop: _gathered(a, rows[start:stop])[:, columns], b):
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


# ---- other values --------------------------------------------------------------------------------


def altered(a: Matrix, b: Matrix) -> Cause | None:
    """Return what was done to the values of a that stand at their places in b."""
    return _rounded(a, b) or _spoilt(a, b) or _scaled(a, b)


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


_CONSTANTS = "divide it out again, or fold it where the forward pass leaves it out"


def _scaled(a: Matrix, b: Matrix) -> Cause | None:
    """Return a factor or a term that all values, each row or each column have in common."""
    start, stop = next(a.ranges())
    one, other = (m.rows(start, stop).astype(np.float64) for m in (a, b))
    with np.errstate(all="ignore"):
        ratio = np.where(one != 0, other / one, np.nan)
    known = np.isfinite(ratio)
    if known.sum() < 2:  # noqa: PLR2004
        return None
    factor = float(np.median(ratio[known]))
    if factor not in {0.0, 1.0} and _is(a, b, lambda rows, _: rows * factor):
        return Cause("constant factor", f"is the source's times {_number(factor)}", _CONSTANTS)
    term = float(np.median(other - one))
    if term and _is(a, b, lambda rows, _: rows + term):
        return Cause(
            "constant term", f"is the source's plus {_number(term)}",
            "an OpenMoE norm multiplies by its scale, and not by 1 + scale (LAYER chapter)",
        )  # fmt: skip
    if 1 in a.shape:
        return None
    by_row = _medians(a, b, 1)
    if by_row is not None and _is(a, b, lambda rows, at: rows * by_row[at[0] : at[1], None]):
        norm = _norm_of(a, by_row)
        if norm is not None:
            return Cause(
                "norm folded in", f"is the source's with each row times {norm}",
                "leave the norm's scale where it is: the forward pass multiplies by it again",
            )  # fmt: skip
        return Cause(
            "factor by row",
            _spread("row", by_row),
            "undo it: a norm's scale is a tensor of its own",
        )
    by_column = _medians(a, b, 0)
    if by_column is not None and _is(a, b, lambda rows, _: rows * by_column):
        return Cause("factor by column", _spread("column", by_column), "undo it")
    return None


def _norm_of(a: Matrix, factors: ndarray) -> str | None:
    """Return the norm of the same layer whose scale the factors of the rows are."""
    layer = a.name.split("/")[1]
    for name, placed in a.checkpoint.tensors.items():
        near = name.split("/")[1] == layer or layer == "logits_dense"
        if near and name.endswith("/scale") and placed.shape == factors.shape:
            scale = a.checkpoint.read(name).astype(np.float64)
            if (np.abs(scale - factors) <= 1e-2 * np.abs(scale)).all():  # noqa: PLR2004
                return name
    return None


def _number(value: float) -> str:
    exact = {0.5: "1/2", 2.0: "2", -1.0: "-1", 0.25: "1/4", 4.0: "4"}
    if value in exact:
        return exact[value]
    square = value * value
    for number, text in (
        (square, f"sqrt({round(square)})"),
        (1 / square, f"1/sqrt({round(1 / square)})"),
    ):
        if number > 1 and abs(number - round(number)) < 1e-5 * number:
            return f"{value:.6g} ({'-' if value < 0 else ''}{text})"
    return f"{value:.6g}"


def _spread(what: str, factors: ndarray) -> str:
    return (
        f"is the source's with each {what} times a factor of its own, "
        f"{factors.min():.4g} to {factors.max():.4g}"
    )


def _medians(a: Matrix, b: Matrix, axis: int) -> ndarray | None:
    """Return the median ratio of each row (axis 1) or, by the first rows, of each column (axis 0)."""
    found = []
    for start, stop in a.ranges():
        one, other = (m.rows(start, stop).astype(np.float64) for m in (a, b))
        with np.errstate(all="ignore"):
            ratio = np.where(one != 0, other / one, 1.0)
        if not np.isfinite(ratio).all():
            return None
        found.append(np.median(ratio, axis=axis))
        if axis == 0:
            return found[0]
    return np.concatenate(found)


def _is(a: Matrix, b: Matrix, made: Callable[[ndarray, tuple[int, int]], ndarray]) -> bool:
    """Return whether b is what is made of a, up to what rounding in b's dtype leaves open."""
    precision = {"bfloat16": 2.0**-8, "float16": 2.0**-11, "float32": 2.0**-24}.get(
        b.dtype, 2.0**-53
    )
    for rows in a.ranges():
        one = a.rows(*rows).astype(np.float64)
        other = b.rows(*rows).astype(np.float64)
        with np.errstate(all="ignore"):
            expected = made(one, rows)
            # The factor itself was taken from rounded values: twice the rounding, and once more.
            room = 4 * precision * np.maximum(np.abs(expected), np.abs(one))
            if not (np.abs(expected - other) <= room).all():
                return False
    return True


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
    if box == count > 1 and box < size and _follows(rows) and _follows(touched):
        return Cause(
            "stale shard",
            "has a block of other values, as one device or one chunk holds",
            "take that part from the same step as the others",
            where,
        )
    if count <= size // 20 or box <= size // 2:
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
        told.append(f"rows {listed}{', ...' if len(rows) > 64 else ''}")  # noqa: PLR2004
    if len(columns) < shape[1]:
        listed = ranges(int(c) for c in columns[:64])
        told.append(f"columns {listed}{', ...' if len(columns) > 64 else ''}")  # noqa: PLR2004
    return ", ".join(told)


# ---- values of another kind ----------------------------------------------------------------------


def emptied(b: Matrix) -> Cause | None:
    """Return that a matrix holds nothing: zeros, one value everywhere, or what is not finite."""
    low, high, finite = np.inf, -np.inf, True
    for rows in b.ranges():
        values = b.rows(*rows).astype(np.float32)
        finite = finite and bool(np.isfinite(values).all())
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    if not finite:
        return Cause("not finite", "holds NaN or infinite values", "convert it again")
    if low == high == 0.0:
        return Cause("dropped", "is all zero: it was never written", "write it from the source")
    if low == high:
        return Cause(
            "left at initialisation",
            f"holds {low:.6g} everywhere: it was never written",
            "write it from the source",
        )
    return None


def replaced(a: Matrix, b: Matrix) -> Cause:
    """Return what values that have nothing to do with the source's look like."""
    one, other = (m.rows(*next(m.ranges())).astype(np.float64).reshape(-1) for m in (a, b))
    size = min(len(one), len(other))
    centre = 1.0 if a.name.endswith("/scale") else 0.0  # scales of norms are all near 1
    one, other = one[:size] - centre, other[:size] - centre
    scale = float(np.linalg.norm(one) * np.linalg.norm(other))
    alike = float(one @ other) / scale if scale else 0.0
    if alike > 0.9:  # noqa: PLR2004 - two steps of one run are that near, two models never
        return Cause(
            "stale",
            "holds values near the source's: those of another step",
            "take it from the same step as the others",
        )
    if _looks_fresh(b):
        return Cause(
            "left at initialisation",
            "holds values that look freshly drawn, and not the source's",
            "write it from the source: the target's program kept its own",
        )
    return Cause(
        "other values", "holds values that have nothing to do with the source's",
        "find out where they come from: no tensor of the source has them",
    )  # fmt: skip


def _looks_fresh(b: Matrix) -> bool:
    """Return whether values have mean 0 and no heavy tails, as drawn ones do and trained ones do not."""
    values = b.rows(*next(b.ranges())).astype(np.float64).reshape(-1)
    spread = float(values.std())
    if len(values) < 64 or not spread:  # noqa: PLR2004 - too few to say
        return False
    normal = (values - values.mean()) / spread
    tails = float((normal**4).mean())
    centred = abs(float(values.mean())) < 4 * spread / np.sqrt(len(values))
    # Kurtosis: uniform 1.8, normal cut at two deviations 2.4, normal 3.
    return centred and tails < 3.0 + 10 / np.sqrt(len(values))  # noqa: PLR2004
