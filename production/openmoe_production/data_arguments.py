"""What the functions of the data side refuse. NumPy only: a process that feeds needs no JAX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from openmoe_spec.data import OVERFLOWS
from openmoe_spec.errors import RejectedError

MOST = 2**31 - 1
"""The largest id: ids are held in int32."""


def whole(name: str, value: Any, clause: str, *, least: int, most: int | None = None) -> int:
    """Return a whole number in `least`..`most` as Python's, or refuse it; True and 2.0 are none."""
    number = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not number or value < least or (most is not None and value > most):
        limit = f"{least} or more" if most is None else f"in {least}..{most}"
        raise RejectedError(name, clause, f"must be a whole number, {limit}, got {value!r}")
    return int(value)


def finite(name: str, value: Any, clause: str, *, least: float, most: float = math.inf) -> float:
    """Return a finite number in `least`..`most` as a float64, or refuse it."""
    number = math.nan
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
    if not math.isfinite(number) or not least <= number <= most:
        limit = f"{least:g} or more" if most == math.inf else f"in {least:g}..{most:g}"
        raise RejectedError(name, clause, f"must be a finite number, {limit}, got {value!r}")
    return number


def one_of(name: str, value: Any, legal: Sequence[str], clause: str) -> str:
    """Return a word that is among the legal ones, or refuse it."""
    if not isinstance(value, str) or value not in legal:
        raise RejectedError(name, clause, f"must be one of {', '.join(legal)}, got {value!r}")
    return value


def sequence(name: str, value: Any, clause: str) -> Sequence[Any]:
    """Return a sequence of things, or refuse what is none; a mapping or one array is none."""
    if not isinstance(value, Sequence) or isinstance(value, str | bytes):
        raise RejectedError(name, clause, f"must be a sequence, got {type(value).__name__}")
    return value


def integers(name: str, value: Any, clause: str) -> np.ndarray:
    """Return an array [n] of whole numbers of any sign, or refuse it; n may be 0."""
    array = value
    if isinstance(value, list | tuple):
        try:
            array = np.asarray(value)
        except ValueError:  # ragged
            array = None
    if not isinstance(array, np.ndarray) or array.ndim != 1:
        got = getattr(array, "shape", None) or type(value).__name__
        raise RejectedError(name, clause, f"must be an array [n], got {got}")
    if not array.size:
        return np.zeros(0, np.int32)
    if array.dtype.kind not in "iu":
        raise RejectedError(name, clause, f"must hold whole numbers, got {array.dtype}")
    return array


def ids(name: str, value: Any, clause: str, *, most: int = MOST) -> np.ndarray:
    """Return ids int32 [n], each in 0..`most`, or refuse them; int32 arrays are not copied."""
    array = integers(name, value, clause)
    if array.size and (array.min() < 0 or array.max() > most):
        got = f"{array.min()}..{array.max()}"
        raise RejectedError(name, clause, f"must lie in 0..{most}, got {got}")
    return array.astype(np.int32, copy=False)


def id_array(name: str, value: Any, clause: str) -> np.ndarray:
    """Return ids int32 [n] as `ids` does, but for negative numbers, which are left to `largest`.

    That looks at many arrays at no more cost than at one, when they are joined.
    """
    if isinstance(value, np.ndarray) and value.dtype == np.int32 and value.ndim == 1:
        return value
    return ids(name, value, clause)


def largest(name: str, array: np.ndarray, clause: str) -> int:
    """Return the largest of ids int32 of any shape, -1 of none; negative ones are refused."""
    if not array.size:
        return -1
    most = int(array.view(np.uint32).max())  # one pass: a negative number is seen as a large one
    if most > MOST:
        raise RejectedError(name, clause, f"must not be negative, got {array.min()}")
    return most


def permutations(name: str, given: Any, size: int, clause: str) -> np.ndarray:
    """Return [N, size], each row a permutation of 0 ... size - 1, or refuse it.

    Given is an array of that shape, or a sequence of arrays [size].
    """
    found = given
    if not isinstance(given, np.ndarray):
        rows = [integers(name, one, clause) for one in sequence(name, given, clause)]
        if rows and all(len(one) == size for one in rows):
            found = np.concatenate(rows, dtype=np.intp, casting="unsafe").reshape(len(rows), size)
    if not _are_permutations(found, size):
        raise RejectedError(name, clause, f"must be permutations of {size} places")
    return found


def _are_permutations(found: Any, size: int) -> bool:
    if not isinstance(found, np.ndarray) or found.ndim != 2 or found.shape[1] != size:
        return False
    if not found.size:
        return True
    if found.dtype.kind not in "iu" or found.min() < 0 or found.max() >= size:
        return False
    # As many numbers as places: when each place is taken, each is taken once.
    taken = np.zeros(found.size, bool)
    first = np.arange(0, found.size, size)[:, None]
    taken[found.astype(np.intp, copy=False) + first] = True
    return bool(taken.all())


def vocabulary(vocabulary_size: Any, num_sentinels: Any, overflow: Any) -> tuple[int, float]:
    """Return the size, and how many sentinels there may be: any number under `runs_on`.

    Errors: RejectedError OBJ-09.
    """
    one_of("overflow", overflow, OVERFLOWS, "OBJ-09")
    size = whole("vocabulary_size", vocabulary_size, "OBJ-09", least=1, most=MOST + 1)
    sentinels = whole("num_sentinels", num_sentinels, "OBJ-09", least=0, most=size)
    return size, math.inf if overflow == "runs_on" else sentinels


def require_sentinels(runs: int, sentinels: float) -> None:
    """Refuse more runs than sentinels. Errors: RejectedError OBJ-09."""
    if runs > sentinels:
        raise RejectedError("noise_mask", "OBJ-09", f"has {runs} runs for {sentinels} sentinels")
