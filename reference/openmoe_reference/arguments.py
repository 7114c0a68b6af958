"""What every public function of the reference refuses, with the argument and the clause named."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from openmoe_spec.errors import RejectedError


def check_integer(
    name: str, value: object, clause: str, *, least: int, most: float = math.inf
) -> None:
    """Refuse anything but a whole number in `least`..`most`; booleans and floats are not whole."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise RejectedError(name, clause, f"must be a whole number, got {value!r}")
    if not least <= value <= most:
        limits = f"at least {least}" if most == math.inf else f"in {least}..{most}"
        raise RejectedError(name, clause, f"must be {limits}, got {value}")


def check_positive(name: str, value: object, clause: str) -> None:
    """Refuse anything but a finite number above 0."""
    number = isinstance(value, int | float | np.integer | np.floating)
    if not number or isinstance(value, bool) or not math.isfinite(value) or value <= 0:  # type: ignore[arg-type, operator]
        raise RejectedError(name, clause, f"must be a finite number above 0, got {value!r}")


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
    "b" for booleans.
    """
    array = np.asarray(value)
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
    else:
        # bfloat16 of ml_dtypes has kind "V", so the name decides.
        if array.dtype.kind != "f" and array.dtype.name != "bfloat16":
            raise RejectedError(
                name, clause, f"must hold floating-point numbers, got {array.dtype}"
            )
        if not np.isfinite(array).all():
            raise RejectedError(name, clause, "must be finite, got infinity or not-a-number")


def check_choice(name: str, value: object, legal: tuple[str, ...], clause: str) -> None:
    """Refuse a word that is not among the legal ones."""
    if value not in legal:
        raise RejectedError(name, clause, f"must be one of {', '.join(legal)}, got {value!r}")


def check_names(name: str, value: Mapping[str, Any], wanted: tuple[str, ...], clause: str) -> None:
    """Refuse a mapping that lacks a wanted name or holds another."""
    missing = sorted(set(wanted) - set(value))
    extra = sorted(set(value) - set(wanted))
    if missing or extra:
        raise RejectedError(
            name, clause, f"must hold {', '.join(wanted)}; missing {missing}, not known {extra}"
        )
