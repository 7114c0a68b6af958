"""Answers of the data side in one form; what is malformed is a Disagreement."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.answers import array
from openmoe_conformance.compare import fields_of, same
from openmoe_conformance.outcome import Disagreement

FEATURES = ("inputs", "targets")
"""What an example holds."""


def ids(name: str, answer: Any) -> ndarray:
    """Return whole numbers int64 [n]; n may be 0."""
    found = array(name, answer)
    if found.ndim != 1:
        raise Disagreement(f"{name}: shape {list(found.shape)}, expected [n]")
    if found.size and found.dtype.kind not in "iu":
        raise Disagreement(f"{name}: must hold whole numbers, got {found.dtype}")
    return found.astype(np.int64)


def fields(name: str, answer: Any, names: Sequence[str]) -> dict[str, Any]:
    """Return the named fields of a mapping or an object."""
    found = fields_of(answer, tuple(names))
    lacking = [field for field in names if found[field] is None]
    if lacking:
        raise Disagreement(f"{name}: lacks {', '.join(lacking)}")
    return found


def numbers(name: str, answer: Any, names: Sequence[str]) -> dict[str, int]:
    """Return the named whole numbers of a mapping or an object."""
    found = fields(name, answer, names)
    made = {}
    for field, value in found.items():
        number = array(f"{name}.{field}", value)
        if number.ndim or number.dtype.kind not in "iu":
            raise Disagreement(f"{name}.{field}: must be a whole number, got {value!r}")
        made[field] = int(number)
    return made


def same_numbers(name: str, answer: Any, wanted: Mapping[str, int]) -> None:
    """Require the named whole numbers."""
    for field, number in numbers(name, answer, tuple(wanted)).items():
        same(f"{name}.{field}", number, wanted[field])


def same_ids(name: str, answer: Any, wanted: Any) -> None:
    """Require the ids, one by one."""
    same(name, ids(name, answer), ids(name, wanted))


def same_example(name: str, answer: Any, wanted: Mapping[str, ndarray]) -> None:
    """Require the ids of inputs and targets."""
    found = fields(name, answer, FEATURES)
    for feature in FEATURES:
        same_ids(f"{name}.{feature}", found[feature], wanted[feature])


def same_lists(name: str, answer: Any, wanted: Sequence[ndarray]) -> None:
    """Require a sequence of arrays of ids."""
    try:
        found = list(answer)
    except TypeError as error:
        raise Disagreement(f"{name}: must be a sequence of arrays") from error
    if len(found) != len(wanted):
        raise Disagreement(f"{name}: {len(found)} arrays, expected {len(wanted)}")
    for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
        same_ids(f"{name}[{place}]", one, other)


def rows(name: str, answer: Any, features: Sequence[str]) -> dict[str, ndarray]:
    """Return the named features, whole numbers int64 [B, L] all of one shape."""
    found = fields(name, answer, features)
    made = {}
    for feature, value in found.items():
        row = array(f"{name}.{feature}", value)
        if row.ndim != 2 or row.dtype.kind not in "iub":
            raise Disagreement(
                f"{name}.{feature}: must be whole numbers [B, L], got {row.dtype} {row.shape}"
            )
        made[feature] = row.astype(np.int64)
    shapes = {row.shape for row in made.values()}
    if len(shapes) > 1:
        raise Disagreement(f"{name}: features are of shapes {sorted(shapes)}")
    return made
