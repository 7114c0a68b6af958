"""What every public function of the reference refuses, with the argument and the clause named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Decision, ExpertsChoice


def check_integer(
    name: str, value: object, clause: str, *, least: int, most: float = math.inf
) -> int:
    """Return a whole number in `least`..`most` as Python's, or refuse it; True and 2.0 are none."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise RejectedError(name, clause, f"must be a whole number, got {value!r}")
    if not least <= value <= most:
        limits = f"at least {least}" if most == math.inf else f"in {least}..{most}"
        raise RejectedError(name, clause, f"must be {limits}, got {value}")
    return int(value)


def check_finite(name: str, value: object, clause: str) -> float:
    """Return a finite number as a float64, or refuse it."""
    if isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool):
        try:
            number = float(value)
        except OverflowError:
            number = math.inf
        if math.isfinite(number):
            return number
    raise RejectedError(name, clause, f"must be a finite number, got {value!r}")


def check_positive(name: str, value: object, clause: str) -> float:
    """Return a finite number above 0 as a float64, or refuse it."""
    number = check_finite(name, value, clause)
    if number <= 0:
        raise RejectedError(name, clause, f"must be a finite number above 0, got {value!r}")
    return number


def check_array(
    name: str,
    value: object,
    shape: str,
    sizes: dict[str, int],
    clause: str,
    *,
    kind: str = "f",
) -> np.ndarray:
    """Return `value` as an array of the wanted shape, or refuse it.

    `shape` is a string of letters such as "G T D"; a letter already in `sizes` must have that
    size, a new one is recorded there. `kind` is "f" for finite real numbers, "i" for integers,
    "b" for booleans, "any" for whatever the array holds.
    """
    if not isinstance(value, np.ndarray):
        raise RejectedError(name, clause, f"must be a NumPy array, got {type(value).__name__}")
    array = value
    letters = shape.split()
    if array.ndim != len(letters):
        raise RejectedError(name, clause, f"must have shape [{shape}], got {array.shape}")
    for letter, size in zip(letters, array.shape, strict=True):
        if sizes.setdefault(letter, size) != size:
            raise RejectedError(
                name,
                clause,
                f"must have shape [{shape}] with {letter} = {sizes[letter]}, got {array.shape}",
            )
        if size == 0:
            raise RejectedError(name, clause, f"must not be empty, got shape {array.shape}")
    _check_kind(name, array, clause, kind)
    return array


def _check_kind(name: str, array: np.ndarray, clause: str, kind: str) -> None:
    if kind == "i":
        if array.dtype.kind not in "iu":
            raise RejectedError(name, clause, f"must hold integers, got {array.dtype}")
    elif kind == "b":
        if array.dtype.kind != "b":
            raise RejectedError(name, clause, f"must hold booleans, got {array.dtype}")
    elif kind == "f":
        # bfloat16 of ml_dtypes has kind "V", so the name decides.
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise RejectedError(
                name, clause, f"must hold floating-point numbers, got {array.dtype}"
            )
        if not _all_finite(array):
            raise RejectedError(name, clause, "must be finite, got infinity or not-a-number")


def _all_finite(array: np.ndarray) -> bool:
    if array.dtype.kind != "f":  # bfloat16, whose minimum loses not-a-number
        return bool(np.isfinite(array).all())
    # Both ends carry not-a-number along, and nothing of the size of a layer is allocated.
    return bool(np.isfinite(array.min()) and np.isfinite(array.max()))


def rows_of(value: object) -> str:
    """Return letters for the axes of `value` but its last, for `check_array`; any rank is legal."""
    return "".join(f"row{i} " for i in range(getattr(value, "ndim", 1) - 1))


def check_choice(name: str, value: object, legal: tuple[str, ...], clause: str) -> None:
    """Refuse a word that is not among the legal ones."""
    if not isinstance(value, str) or value not in legal:
        raise RejectedError(name, clause, f"must be one of {', '.join(legal)}, got {value!r}")


def check_names(name: str, value: Mapping[str, Any], wanted: tuple[str, ...], clause: str) -> None:
    """Refuse a mapping that lacks a wanted name or holds another."""
    if not isinstance(value, Mapping):
        raise RejectedError(name, clause, f"must be a mapping, got {type(value).__name__}")
    missing = sorted(set(wanted) - set(value))
    extra = sorted(map(repr, set(value) - set(wanted)))
    if missing or extra:
        raise RejectedError(
            name, clause, f"must hold {', '.join(wanted)}; missing {missing}, not known {extra}"
        )


def check_pair(name: str, value: object, clause: str) -> tuple[int, int]:
    """Return two whole numbers of at least 1, or refuse them."""
    if not isinstance(value, tuple) or len(value) != 2:
        raise RejectedError(name, clause, f"must be a pair of whole numbers, got {value!r}")
    return check_integer(name, value[0], clause, least=1), check_integer(
        name, value[1], clause, least=1
    )


def check_within(name: str, array: np.ndarray, clause: str, least: int, most: float) -> None:
    """Refuse integers outside `least`..`most`."""
    if array.min() < least or array.max() > most:
        raise RejectedError(
            name, clause, f"must lie in {least}..{most}, got {array.min()}..{array.max()}"
        )


def check_record(decision: object, sizes: dict[str, int], clause: str) -> None:
    """Refuse a record whose fields do not belong together or to `sizes`, letters as in SPEC.md.

    A kept choice needs an expert and a slot of its own; the gate of a dropped one is not read.
    """
    if isinstance(decision, ExpertsChoice):
        token = check_array(
            "decision.token_index", decision.token_index, "G E C", sizes, clause, kind="i"
        )
        check_array("decision.gate", decision.gate, "G E C", sizes, clause)
        check_within("decision.token_index", token, clause, 0, sizes.get("T", math.inf) - 1)
        return
    if not isinstance(decision, Decision):
        raise RejectedError(
            "decision", clause, f"must be a record of a router, got {type(decision).__name__}"
        )
    capacity = check_integer("decision.capacity", decision.capacity, clause, least=1)
    fields = {}
    for field, kind in (("expert_index", "i"), ("position", "i"), ("kept", "b")):
        fields[field] = check_array(
            f"decision.{field}", getattr(decision, field), "G T K", sizes, clause, kind=kind
        )
    expert, position, kept = fields.values()
    gate = decision.gate
    if isinstance(gate, np.ndarray) and gate.shape == kept.shape and gate.dtype.kind in "fV":
        gate = np.where(kept, gate, np.zeros_like(gate))
    check_array("decision.gate", gate, "G T K", sizes, clause)
    check_within("decision.expert_index", expert, clause, -1, sizes.get("E", math.inf) - 1)
    if (kept & ((expert < 0) | (position < 0) | (position >= capacity))).any():
        raise RejectedError("decision.kept", clause, "must be false where there is no slot")
    place = np.argwhere(kept)[:, :1], expert[kept][:, None], position[kept][:, None]
    places = np.concatenate(place, axis=1)
    if len(np.unique(places, axis=0)) != len(places):
        raise RejectedError("decision.position", clause, "must not give one slot to two choices")


def check_ids(name: str, value: object, clause: str, *, below: int = 2**31) -> np.ndarray:
    """Return whole numbers int64 [n], n may be 0, none of them negative or `below` or more.

    Rows are int32, so no id is larger than that.
    """
    try:
        array = np.asarray(value) if isinstance(value, list | tuple) else value
    except ValueError as error:
        raise RejectedError(
            name, clause, "must be an array [n] of ids, got a ragged list"
        ) from error
    if not isinstance(array, np.ndarray) or array.ndim != 1:
        got = getattr(array, "shape", None) or type(value).__name__
        raise RejectedError(name, clause, f"must be an array [n] of ids, got {got}")
    if array.size == 0:
        return np.zeros(0, np.int64)
    if array.dtype.kind not in "iu":
        raise RejectedError(name, clause, f"must hold whole numbers, got {array.dtype}")
    check_within(name, array, clause, 0, below - 1)
    return array.astype(np.int64)


def check_permutation(name: str, value: object, size: int, clause: str) -> np.ndarray:
    """Return a permutation of 0 ... size - 1, or refuse it."""
    array = check_ids(name, value, clause)
    if len(array) != size or not np.array_equal(np.sort(array), np.arange(size)):
        raise RejectedError(name, clause, f"must be a permutation of {size} places")
    return array
