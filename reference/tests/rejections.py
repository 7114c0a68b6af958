"""What the tables of illegal calls are made of: values that are none, and rows that hold them.

A table module adds the arguments that each of its functions accepts to `LEGAL` and yields a `Row` for
every change of them that the function must refuse.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np

LEGAL: dict[str, dict[str, Any]] = {}
"""Legal arguments by function, `module.function`; filled by the table modules."""


def call(function: str, /, **changes: Any) -> Any:
    """Call a function of the reference with its legal arguments but for `changes`."""
    module, _, name = function.partition(".")
    found = getattr(importlib.import_module(f"openmoe_reference.{module}"), name)
    return found(**LEGAL[function] | changes)


def changed(array: np.ndarray, place: tuple[int, ...], value: Any) -> np.ndarray:
    """Return a copy of `array` with another value at one place."""
    copy = array.copy()
    copy[place] = value
    return copy


def changed_record(record: Any, **changes: Any) -> Any:
    """Return `record` with other fields; a pair (place, value) changes one entry of a field."""
    return replace(
        record,
        **{
            name: changed(getattr(record, name), *change) if isinstance(change, tuple) else change
            for name, change in changes.items()
        },
    )


# ---------------------------------------------------------------------------- illegal values

NOT_COUNTS = {
    "zero": 0,
    "a negative number": -1,
    "a whole float": 2.0,
    "a half": 2.5,
    "a NumPy float": np.float64(2),
    "true": True,
    "a NumPy boolean": np.True_,
    "infinity": math.inf,
    "not a number": math.nan,
    "a word": "two",
    "a numeral": "2",
    "a list": [2],
    "a complex number": 2j,
    "nothing": None,
}

NOT_FACTORS = {
    "zero": 0.0,
    "minus zero": -0.0,
    "a negative number": -1.25,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "not a number": math.nan,
    "not a number of NumPy": np.float32(math.nan),
    "true": True,
    "a numeral": "1.25",
    "a list": [1.25],
    "a complex number": 1.25j,
    "nothing": None,
    "a number beyond every float": 10**400,
}

NOT_WORDS = {
    "an unknown word": "nonsense",
    "an empty word": "",
    "a number": 1,
    "a list": ["masked", "float32"],
    "an array": np.array(["masked", "float32"]),
    "a dtype": np.dtype("float32"),
    "a type": np.float32,
    "nothing": None,
}


def misshaped(array: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yield what is no array of the rank of `array`."""
    yield "one axis less", array[0]
    yield "one axis more", array[None]
    yield "no element", array[:0]
    yield "a number", 1.5
    yield "a word", "nonsense"
    yield "a dictionary", {}
    yield "a ragged list", [[[1.0]], [[1.0, 2.0]]]


def not_real(array: np.ndarray, place: tuple[int, ...] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield arrays that are not finite floating-point numbers, wrong at one place."""
    place = place or tuple(size - 1 for size in array.shape)
    yield "not a number", changed(array, place, math.nan)
    yield "infinity", changed(array, place, math.inf)
    yield "minus infinity", changed(array, place, -math.inf)
    yield "not a number in bfloat16", changed(array.astype(ml_dtypes.bfloat16), place, math.nan)
    yield "whole numbers", array.astype(np.int32)
    yield "booleans", array > 0
    yield "complex numbers", array.astype(np.complex64)
    yield "words", array.astype(str)
    yield "objects", array.astype(object)


def not_whole(array: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yield arrays that are not integers."""
    yield "floats", array.astype(np.float32)
    yield "booleans", array > 0
    yield "words", array.astype(str)
    yield "objects", array.astype(object)


def not_boolean(array: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yield masks of the right shape that are not booleans."""
    yield "whole numbers", array.astype(np.int8)
    yield "floats", array.astype(np.float32)
    yield "words", array.astype(str)
    yield "objects", array.astype(object)


class Row(NamedTuple):
    """One illegal call: what must be named, the argument (or one of several) and the clause."""

    function: str
    what: str
    changes: dict[str, Any]
    arguments: tuple[str, ...]
    clauses: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.function}: {'/'.join(self.changes)}: {self.what}"


def rows_of_values(
    function: str, argument: str, values: dict[str, Any], *clauses: str
) -> Iterator[Row]:
    """Yield a row for each illegal value of an argument."""
    for what, value in values.items():
        yield Row(function, what, {argument: value}, (argument,), clauses)


def rows_of_arrays(
    function: str,
    arguments: tuple[str, ...],
    clauses: tuple[str, ...],
    *,
    place: tuple[int, ...] | None = None,
    any_values: bool = False,
    any_rank: bool = False,
    arrays: Mapping[str, Any] | None = None,
) -> Iterator[Row]:
    """Yield rows for array arguments: other ranks, no arrays, and values of another kind.

    `arrays` holds those that are wrong at one place; by default the legal ones.
    """
    for argument in arguments:
        array = (LEGAL[function] if arrays is None else arrays)[argument]
        values = dict(misshaped(array))
        if any_rank:
            values = {what: value for what, value in values.items() if "axis" not in what}
        if not any_values:
            kind = {"b": not_boolean, "i": not_whole}.get(array.dtype.kind)
            values |= kind(array) if kind else not_real(array, place)
        yield from rows_of_values(function, argument, values, *clauses)


def rows_of_sizes(
    function: str,
    axes: dict[str, tuple[int, ...]],
    clauses: tuple[str, ...],
    *,
    arrays: Mapping[str, Any] | None = None,
) -> Iterator[Row]:
    """Yield rows in which an axis of one argument disagrees with the other arguments.

    Whichever of the arguments may be named; `arrays` as in `rows_of_arrays`.
    """
    for argument, several in axes.items():
        for axis in several:
            array = (LEGAL[function] if arrays is None else arrays)[argument]
            what = f"axis {axis} twice as long"
            yield Row(function, what, {argument: array.repeat(2, axis)}, tuple(axes), clauses)


def rows_of_mapping(
    function: str,
    argument: str,
    clauses: tuple[str, ...],
    *,
    names: tuple[str, ...] = (),
) -> Iterator[Row]:
    """Yield rows for a mapping of arrays: no mapping, other names, and wrong arrays under a name.

    `names` are what may be named besides the argument itself.
    """
    legal = LEGAL[function][argument]
    spare = next(iter(legal.values()))
    values: dict[str, Any] = {
        "nothing": None,
        "a list of arrays": list(legal.values()),
        "a list of names": list(legal),
        "a word": next(iter(legal)),
        "no array": {},
        "an extra one": legal | {"bias": spare},
        "an extra number": legal | {1: spare},
        "extra names of two types": legal | {1: spare, "bias": spare},
    }
    for name, array in legal.items():
        values[f"without {name}"] = {key: legal[key] for key in legal if key != name}
        values[f"{name}: nothing"] = legal | {name: None}
        for axis in range(array.ndim):
            longer = array.repeat(2, axis)
            values[f"{name} twice as long on axis {axis}"] = legal | {name: longer}
        for what, value in (*misshaped(array), *not_real(array)):
            values[f"{name}: {what}"] = legal | {name: value}
    for what, value in values.items():
        yield Row(function, what, {argument: value}, (argument, *names), clauses)
