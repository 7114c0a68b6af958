"""Vectors of kind `call`: one call of one function of the adapter, and its answer.

The case names the function and holds its arguments, plain ones in `config` and arrays under
`arguments/`; the answer stands under `expected`, or `config.rejected` says that the call must
raise. So a vector for any clause of arithmetic needs no code. `vectors/README.md` has the form.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import close, fields_of, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.protocol import FUNCTIONS
from openmoe_conformance.subject import Subject, UnsupportedError
from openmoe_conformance.vector_cases import Comparison, Kind, VectorCase, below
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Decision


def malformed(case: VectorCase) -> str:
    """Return what is wrong with a case of this kind, empty when nothing is."""
    function = str(case.config.get("function"))
    if function not in FUNCTIONS:
        return f"there is no function {function!r}"
    protocol = FUNCTIONS[function]
    stored = {name.split("/")[1] for name in case.arrays if name.startswith("arguments/")}
    given = stored | set(case.config.get("arguments", {}))
    known = {*protocol.arguments, *protocol.required, *protocol.optional}
    if "model" in given:
        return "a model is no plain argument: the case names its file"
    given |= {"model"} if case.model is not None else set()
    if unknown := sorted(given - known):
        return f"{function} has no argument {', '.join(unknown)}"
    needed = (*protocol.arguments, *(name for name in protocol.required if name == "model"))
    if lacking := [name for name in needed if name not in given]:
        return f"{function} needs the argument {', '.join(lacking)}"
    answered = "expected" in case.config or any(a.startswith("expected") for a in case.arrays)
    if answered == bool(case.config.get("rejected")):
        return "must have either an expected answer or rejected"
    return ""


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
    expected = _nested(arrays, "expected", flat=function in _ANSWER_TREES)
    if expected is None:
        expected = case.config["expected"]
    answer = _answer(subject, function, positional, arguments)
    bounds = {name: float(value) for name, value in case.config.get("bounds", {}).items()}
    _compare(function, answer, expected, bounds, evidence)


def _answer(
    subject: Subject, function: str, positional: list[Any], arguments: dict[str, Any]
) -> Any:
    """Return the answer; records come from the subject in their one form."""
    if function in ("decide", "decide_scatter"):
        return subject.decide(*positional, function=function, **arguments)
    if function in ("route", "experts_choose", "moe", "forward"):
        return getattr(subject, function)(*positional, **arguments)
    answer = subject.call(function, *positional, **arguments)
    if function == "moe_layer" and fields_of(answer, ("output",))["output"] is None:
        return {"output": answer}
    return answer


# ---- what is stored ----------------------------------------------------------------------------

_TREES = ("parameters", "gradients", "batch", "activations")
"""Mappings whose names have slashes in them: below these nothing is nested."""
_ANSWER_TREES = ("model_gradients", "scaled_gradients", "port_parameters")
"""Functions whose answer is such a mapping."""


def _arguments(case: VectorCase, arrays: Mapping[str, ndarray]) -> dict[str, Any]:
    stored = _nested(arrays, "arguments") or {}
    arguments = {**case.config.get("arguments", {}), **stored}
    if case.model is not None:
        arguments["model"] = str(case.model)
    if isinstance(record := arguments.get("decision"), dict):
        arguments["decision"] = _decision(record, case)
    if isinstance(records := arguments.get("decisions"), dict):
        arguments["decisions"] = {layer: _decision(one, case) for layer, one in records.items()}
    if isinstance(fields := arguments.get("configuration"), dict):
        arguments["configuration"] = _complete(fields)
    for name in ("mask", "padding_mask"):
        if arguments.get(name) is not None:
            arguments[name] = arguments[name].astype(bool)
    return {name: _lists(name, value) for name, value in arguments.items()}


_LISTS = ("documents", "prompts", "examples")
_IDS = (
    *("tokens", "segment", "ids", "inputs", "targets", "prompt", "choices"),
    *("noise_permutation", "nonnoise_permutation", *_LISTS),
)
"""Arguments of the data side whose lists are ids, or lists or mappings of such."""


def _lists(name: str, value: Any) -> Any:
    """Return an argument of the data side, stored as plain lists, in arrays."""
    if name == "noise_mask":
        return np.asarray(value, bool)
    if name not in _IDS:
        return value
    if name in _LISTS and isinstance(value, list):
        return [_lists("ids", one) for one in value]
    if isinstance(value, Mapping):
        return {key: _lists("ids", one) for key, one in value.items()}
    whole = isinstance(value, list) and all(isinstance(one, int) for one in value)
    return np.asarray(value, np.int32) if whole else value


def _complete(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return all fields of a configuration of which a case stores some; an illegal one as it is."""
    try:
        return asdict(Configuration(**fields))
    except (RejectedError, TypeError):
        return dict(fields)


def _decision(record: Mapping[str, ndarray], case: VectorCase) -> Decision:
    fields: dict[str, Any] = {"capacity": case.config.get("capacity"), **record}
    return Decision(
        **fields | {"kept": fields["kept"].astype(bool), "capacity": int(fields["capacity"])}
    )


def _nested(arrays: Mapping[str, ndarray], prefix: str, *, flat: bool = False) -> Any:
    """Return what is stored under `prefix`: an array, a mapping of such, or None.

    Names of trees keep their slashes; the state of a tree is a mapping of slots for each of them.
    Layers are whole numbers.
    """
    if prefix in arrays:
        return _value(arrays[prefix])
    stored, last = below(arrays, f"{prefix}/"), prefix.rpartition("/")[2]
    if not stored:
        return None
    if flat or last in _TREES:
        return {name: _value(array) for name, array in stored.items()}
    if last == "state" and all("/" in name for name in stored):
        heads = dict.fromkeys(name.rpartition("/")[0] for name in stored)
    else:
        heads = dict.fromkeys(name.partition("/")[0] for name in stored)
    return {
        int(head) if head.isdigit() else head: _nested(arrays, f"{prefix}/{head}") for head in heads
    }


def _value(array: ndarray) -> Any:
    return array[()] if array.ndim == 0 else array


# ---- comparing ---------------------------------------------------------------------------------

_SHOWN = ("metrics", "decision", "decisions", "activations")
"""What an answer may leave out: the vector is then SKIPPED."""


def _compare(
    name: str, answer: Any, expected: Any, bounds: dict[str, float], evidence: Evidence
) -> None:
    if isinstance(expected, Mapping):
        _compare_fields(name, answer, expected, bounds, evidence)
    elif isinstance(expected, str) or expected is None:  # in an array a text may lose its end
        if answer != expected:
            raise Disagreement(f"{name}: got {answer!r}, expected {expected!r}")
    elif isinstance(expected, list) and any(isinstance(one, list | Mapping) for one in expected):
        if not isinstance(answer, Sequence | ndarray) or len(answer) != len(expected):
            raise Disagreement(f"{name}: must be a sequence of {len(expected)}")
        for place, (one, wanted) in enumerate(zip(answer, expected, strict=True)):
            _compare(f"{name}[{place}]", one, wanted, bounds, evidence)
    elif np.asarray(expected).dtype.kind == "f" and bounds:
        close(name, answers.array(name, answer), expected, evidence, **{"relative": 0.0} | bounds)
    else:
        same(name, answer, expected)


def _compare_fields(
    name: str,
    answer: Any,
    expected: Mapping[str, Any],
    bounds: dict[str, float],
    evidence: Evidence,
) -> None:
    if isinstance(answer, list | tuple):
        answer = dict(enumerate(answer))
    found = fields_of(answer, tuple(expected))
    hidden = [field for field in expected if field in _SHOWN and not found[field]]
    lacking = [str(f) for f in expected if found[f] is None and expected[f] is not None]
    if hidden or (lacking and name.endswith(".metrics")):
        raise UnsupportedError(f"{name.removesuffix('.metrics')} shows no {(hidden or lacking)[0]}")
    if lacking:
        raise Disagreement(f"{name}: lacks {', '.join(lacking)}")
    if isinstance(answer, Decision):
        found = _as_stored(answer, found, expected)
    for field, value in expected.items():
        _compare(f"{name}.{field}", found[field], value, bounds, evidence)


def _as_stored(
    decision: Decision, found: Mapping[str, Any], expected: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a decision's fields with what has no meaning (ROUTE-01) as the vector stores it."""
    fields = dict(found)
    if "expert_index" in expected:
        fields["expert_index"] = np.maximum(decision.expert_index, -1)
    if "position" in expected:
        hidden = ~decision.kept & (decision.position == -1)
        fields["position"] = np.where(hidden, expected["position"], decision.position)
    if "gate" in expected:
        fields["gate"] = np.where(decision.kept, decision.gate, expected["gate"])
    return fields


KINDS: Mapping[str, Kind] = {"call": Kind({"answer": Comparison(compare_call)})}
"""The one kind."""
