"""Vectors of kind `call`: one call of one function of the adapter, and its answer.

The case names the function and holds its arguments, plain ones in `config` and arrays under
`arguments/`; the answer stands under `expected`, or `config.rejected` says that the call must
raise. So a vector for any clause of arithmetic needs no code. `vectors/README.md` has the form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.adapter import FUNCTIONS
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import close, fields_of, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.subject import Subject, UnsupportedError
from openmoe_conformance.vector_cases import VectorCase
from openmoe_spec.records import Decision

DECISION_FIELDS = ("expert_index", "gate", "position", "kept")


def compare_call(
    subject: Subject, case: VectorCase, arrays: Mapping[str, ndarray], evidence: Evidence
) -> None:
    """Make the call and compare its answer; raise Disagreement where it differs."""
    function = case.config["function"]
    arguments = _arguments(case, arrays)
    positional = [arguments.pop(name) for name in FUNCTIONS[function].arguments]
    if case.config.get("rejected"):
        if not subject.rejects_invalid_input:
            raise UnsupportedError("does not declare rejects_invalid_input")
        what = f"{function}: {case.exercises}"
        must_reject(what, lambda: subject.call(function, *positional, **arguments))
        return
    if function == "route":  # may be put together from its parts
        answer: Any = subject.route(*positional, **arguments)
    else:
        answer = subject.call(function, *positional, **arguments)
    if function in ("moe", "moe_layer") and fields_of(answer, ("output",))["output"] is None:
        answer = {"output": answer}
    expected = _nested(arrays, "expected")
    if expected is None:
        expected = case.config["expected"]
    bounds = {name: float(value) for name, value in case.config.get("bounds", {}).items()}
    _compare(function, answer, expected, bounds, evidence)


def _arguments(case: VectorCase, arrays: Mapping[str, ndarray]) -> dict[str, Any]:
    stored = _nested(arrays, "arguments") or {}
    arguments = {**case.config.get("arguments", {}), **stored}
    if isinstance(record := arguments.get("decision"), dict):
        record["kept"] = record["kept"].astype(bool)
        arguments["decision"] = Decision(**record, capacity=case.config["capacity"])
    if "padding_mask" in arguments:
        arguments["padding_mask"] = arguments["padding_mask"].astype(bool)
    return arguments


def _nested(arrays: Mapping[str, ndarray], prefix: str) -> Any:
    """Return what is stored under `prefix`: an array, a mapping of such, or None."""
    if prefix in arrays:
        value = arrays[prefix]
        return value[()] if value.ndim == 0 else value
    start = prefix + "/"
    names = {key[len(start) :].partition("/")[0] for key in arrays if key.startswith(start)}
    return {name: _nested(arrays, start + name) for name in sorted(names)} or None


def _compare(
    name: str, answer: Any, expected: Any, bounds: dict[str, float], evidence: Evidence
) -> None:
    if isinstance(expected, Mapping):
        found = fields_of(answer, tuple(expected))
        missing = [field for field in expected if found[field] is None]
        if missing == ["metrics"] or (missing and name.endswith(".metrics")):
            raise UnsupportedError(f"{name} shows no {', '.join(missing)}")
        if missing:
            raise Disagreement(f"{name}: lacks {', '.join(missing)}")
        if set(expected) == set(DECISION_FIELDS):
            _compare_decision(name, found, expected, bounds, evidence)
            return
        for field, value in expected.items():
            _compare(f"{name}.{field}", found[field], value, bounds, evidence)
    elif np.asarray(expected).dtype.kind == "f" and bounds:
        close(name, answer, expected, evidence, **{"relative": 0.0} | bounds)
    else:
        same(name, answer, expected)


def _compare_decision(
    name: str,
    found: Mapping[str, Any],
    expected: Mapping[str, Any],
    bounds: dict[str, float],
    evidence: Evidence,
) -> None:
    """Compare a record: a dropped choice may show its running count or -1 (ROUTE-01)."""
    kept = np.asarray(expected["kept"]).astype(bool)
    same(f"{name}.kept", np.asarray(found["kept"]).astype(bool), kept)
    wanted_index, index = np.asarray(expected["expert_index"]), np.asarray(found["expert_index"])
    same(f"{name}.expert_index", np.where(index < 0, -1, index), wanted_index)
    position = np.asarray(found["position"])
    shown = kept | (position != -1)
    same(f"{name}.position", position[shown], np.asarray(expected["position"])[shown])
    gate, wanted_gate = np.asarray(found["gate"]), np.asarray(expected["gate"])
    _compare(f"{name}.gate", gate[kept], wanted_gate[kept], bounds, evidence)
