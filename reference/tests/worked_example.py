"""A worked example, the numbers that examples are made of, and the form that one is stored in."""

from __future__ import annotations

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


def stored(example: Example) -> tuple[dict[str, Any], dict[str, ndarray]]:
    """Return an example's row of the index and its arrays."""
    arrays: dict[str, ndarray] = {}
    plain = _split("arguments", example.arguments, arrays) or {}
    config: dict[str, Any] = {"function": example.function, "arguments": plain}
    if example.answer is None:
        config["rejected"] = True
    elif (left := _split("expected", example.answer, arrays)) is not None:
        config["expected"] = left
    if "decision" in example.arguments:
        config["capacity"] = _capacity(example)
    if example.bounds:
        config["bounds"] = example.bounds
    row = {
        "id": example.id,
        "kind": "call",
        "exercises": example.exercises,
        "config": config,
        "comparisons": {"answer": example.clause},
        "file": f"{FOLDER.name}.npz" if arrays else None,
        "arrays": sorted(arrays),
    }
    return row, {f"{example.id}/{name}": value for name, value in arrays.items()}


def _split(prefix: str, value: Any, arrays: dict[str, ndarray]) -> Any:
    """Move arrays out of `value`; return what is left of it, None when nothing is."""
    if isinstance(value, np.ndarray | np.generic):
        arrays[prefix] = np.asarray(value)
        return None
    if isinstance(value, dict):
        left = {name: _split(f"{prefix}/{name}", inner, arrays) for name, inner in value.items()}
        return {name: inner for name, inner in left.items() if inner is not None} or None
    return value


def _capacity(example: Example) -> int:
    """Return C of an example that hands over a decision."""
    outputs = example.arguments.get("expert_outputs", example.answer)
    return int(outputs.shape[2])
