"""A worked example, the numbers that examples are made of, and the form that one is stored in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

FOLDER = Path(__file__).parents[2] / "conformance/openmoe_conformance/vectors/worked_examples"
SOFTMAX_BOUND = {"relative": 2e-6, "of_largest": 1e-7}
LAYER_BOUND = {"relative": 1e-5, "absolute": 1e-5}


@dataclass(frozen=True)
class Example:
    """One call: its clause, arguments and answer (None: the call must be rejected)."""

    id: str
    clause: str
    exercises: str
    function: str
    arguments: dict[str, Any]
    answer: Any = None
    bounds: dict[str, float] = field(default_factory=dict)


def grid(seed: int, *shape: int) -> ndarray:
    """Return multiples of 1/8 in [-1, 1]: products and sums of few of them are exact."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32) / 8


# ---- the stored form ----------------------------------------------------------------------


Models = Mapping[str, Mapping[str, ndarray]]
"""Parameters by the id of the case that lends them."""


def stored(example: Example, lent: Models) -> tuple[dict[str, Any], dict[str, ndarray]]:
    """Return an example's row of the index and its arrays; a lent model is not stored again."""
    arguments, arrays = dict(example.arguments), dict[str, ndarray]()
    lender = _lender(arguments.get("parameters"), lent)
    if lender:
        own = arguments["parameters"]
        new = {n: v for n, v in own.items() if not _equal(v, lent[lender].get(n, np.zeros(0)))}
        _split("arguments/parameters", new, arrays)
        arguments["parameters"] = "borrowed"
    plain = _split("arguments", arguments, arrays) or {}
    config: dict[str, Any] = {"function": example.function, "arguments": plain}
    if example.answer is None:
        config["rejected"] = True
    elif (left := _split("expected", example.answer, arrays)) is not None:
        config["expected"] = left
    if "decision" in example.arguments:
        config["capacity"] = _capacity(example)
    if example.bounds:
        config["bounds"] = example.bounds
    row: dict[str, Any] = {
        "id": example.id,
        "kind": "call",
        "exercises": example.exercises,
        "config": config,
        "comparisons": {"answer": example.clause},
        "file": f"{FOLDER.name}.npz" if arrays else None,
        "arrays": sorted(arrays),
    }
    if lender:
        row["borrows"] = lender
    return row, {f"{example.id}/{name}": value for name, value in arrays.items()}


def lending(
    name: str, parameters: Mapping[str, ndarray]
) -> tuple[dict[str, Any], dict[str, ndarray]]:
    """Return the row and the arrays of a case that lends a model and compares nothing."""
    arrays: dict[str, ndarray] = {}
    _split("arguments/parameters", parameters, arrays)
    row = {
        "id": name,
        "kind": "parameters",
        "exercises": "a model that other cases borrow",
        "config": {},
        "comparisons": {},
        "file": f"{FOLDER.name}.npz",
        "arrays": sorted(arrays),
    }
    return row, {f"{name}/{key}": value for key, value in arrays.items()}


def _lender(parameters: Any, lent: Models) -> str:
    """Return the id of the model that shares most of these parameters, empty when none does."""
    shared = {
        name: sum(_equal(parameters[key], value) for key, value in model.items())
        for name, model in lent.items()
        if isinstance(parameters, dict) and parameters.keys() >= model.keys()
    }
    best = max(shared, key=lambda name: shared[name], default="")
    return best if best and 2 * shared[best] > len(lent[best]) else ""


def _equal(one: ndarray, other: ndarray) -> bool:
    return one.dtype == other.dtype and np.array_equal(one, other)


def _split(prefix: str, value: Any, arrays: dict[str, ndarray]) -> Any:
    """Move arrays out of `value`; return what is left of it, None when nothing is."""
    if isinstance(value, np.ndarray | np.generic):
        arrays[prefix] = np.asarray(value)
        return None
    if isinstance(value, Mapping):
        left = {name: _split(f"{prefix}/{name}", inner, arrays) for name, inner in value.items()}
        return {name: inner for name, inner in left.items() if inner is not None} or None
    return value


def _capacity(example: Example) -> int:
    """Return C of an example that hands over a decision."""
    outputs = example.arguments.get("expert_outputs", example.answer)
    return int(outputs.shape[2])
