"""Comparisons of stored parameter trees: names, shapes, axes, and the same tensors in the port."""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import fields_of, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.subject import Subject, UnsupportedError
from openmoe_conformance.vector_cases import Arrays, Comparison, Kind, Run, VectorCase, below
from openmoe_reference.optimizer import SLOTS
from openmoe_spec.layouts import PORT_FIELDS, port_name

# ---- trees -------------------------------------------------------------------------------------


def _tree(s: Subject, case: VectorCase) -> dict[str, dict[str, Any]]:
    """Return shape and axes of each tensor that the implementation's model has."""
    answer = s.call("parameters", case.config["configuration"])
    if not isinstance(answer, Mapping):
        raise Disagreement(f"parameters: must return a mapping, got {type(answer).__name__}")
    return {name: fields_of(one, ("shape", "axes")) for name, one in answer.items()}


def _same_names(what: str, got: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    lacking, extra = sorted(set(wanted) - set(got)), sorted(set(got) - set(wanted))
    if lacking or extra:
        first = f"lacks {lacking[0]}" if lacking else f"has {extra[0]}"
        raise Disagreement(f"{what}: {first} ({len(lacking)} lacking, {len(extra)} too many)")


def _tensors(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    wanted, got = case.config["tensors"], _tree(s, case)
    _same_names("parameters", got, wanted)
    for name, one in wanted.items():
        same(f"shape of {name}", got[name]["shape"], one["shape"])
        same(f"axes of {name}", got[name]["axes"], one["axes"])


def _count(field: str) -> Run:
    def run(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
        answer = s.call("count_parameters", case.config["configuration"])
        got = answers.named("count_parameters", answer, {field: ()})[field]
        same(field, got, case.config[field])

    return run


def _factoring(*, experts: bool) -> Run:
    """Return the comparison of state shapes; tensors of one shape and axes share a call."""

    def run(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
        states: dict[Any, dict[str, Any]] = {}
        for name, one in case.config["tensors"].items():
            key = tuple(one["shape"]), tuple(one["axes"])
            if ("expert" in one["axes"]) == experts:
                if key not in states:
                    states[key] = fields_of(s.call("optimizer_state", *key), SLOTS)
                for slot, wanted in one["state"].items():
                    same(f"shape of {slot} of {name}", np.shape(states[key][slot]), wanted)

    return run


# ---- the published port ------------------------------------------------------------------------


def _names(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    """Every tensor under its name there, as it is or transposed."""
    given = below(arrays, "params/")
    wanted = {
        name: given[ours].T if operation == "transpose" else given[ours]
        for name, (ours, operation) in case.config["mapping"].items()
    }
    _compare_port(s, case, given, wanted)


def _state_dict(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    _compare_port(s, case, below(arrays, "params/"), below(arrays, "state_dict/"))


def _compare_port(
    s: Subject, case: VectorCase, given: dict[str, ndarray], wanted: dict[str, ndarray]
) -> None:
    known = {name: array for name, array in given.items() if name not in case.config["unused"]}
    answer = s.call("port_parameters", known)
    shapes = {name: array.shape for name, array in wanted.items()}
    for name, array in answers.named("port_parameters", answer, shapes).items():
        same(name, array, wanted[name])
    _same_names("port_parameters", answer, wanted)


def _unused(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    """What the original ignores without a word must be reported."""
    _must_declare_rejection(s)
    given, unused = below(arrays, "params/"), case.config["unused"]
    known = {key: array for key, array in given.items() if key not in unused}
    for name in unused:
        tree = known | {name: given[name]}
        must_reject(f"a tree with {name}", partial(s.call, "port_parameters", tree))


def _rejected(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    """A tree that the original cannot convert or load is no tree of this model."""
    _must_declare_rejection(s)
    tree, fields = below(arrays, "params/"), case.config["configuration"]
    batch = {"decoder_input_tokens": np.array([[0, 1]], np.int32)}
    batch["decoder_target_tokens"] = np.array([[1, 1]], np.int32)
    must_reject(case.config["error"], lambda: s.call("forward", tree, batch, configuration=fields))


def _must_declare_rejection(s: Subject) -> None:
    if not s.rejects_invalid_input:
        raise UnsupportedError("does not declare rejects_invalid_input")


def _shapes(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    """The implementation's tensors by the names and shapes that they have there."""
    wanted, got = case.config["shapes"], {}
    for name, one in _tree(s, case).items():
        there, transposed = port_name(name) or (name, False)
        got[there] = tuple(one["shape"])[::-1] if transposed else tuple(one["shape"])
    _same_names("parameters", got, wanted)
    for name, shape in wanted.items():
        same(f"shape of {name}", got[name], shape)
    same("number of tensors", len(got), case.config["n_tensors"])
    same("elements", sum(math.prod(shape) for shape in got.values()), case.config["n_params"])


def _published(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    answer = s.call("configuration", case.config["name"], dialect="torch_port")
    fields = [name for name in PORT_FIELDS.values() if name in case.config["published"]]
    got = fields_of(answer, tuple(fields))
    for name in fields:
        value = got[name]
        if name == "num_kv_heads" and value is None:
            value = fields_of(answer, ("num_heads",))["num_heads"]
        same(name, value, case.config["published"][name])


KINDS: Mapping[str, Kind] = {
    "parameter_tree": Kind(
        {
            "tensors": Comparison(_tensors),
            "total": Comparison(_count("total")),
            "activated": Comparison(_count("activated")),
            "factoring": Comparison(_factoring(experts=False)),
            "factoring_of_experts": Comparison(_factoring(experts=True)),
        },
        (),
        ("configuration", "tensors", "total", "activated"),
    ),
    "port_names": Kind(
        {
            "names": Comparison(_names),
            "unused": Comparison(_unused),
            "rejected": Comparison(_rejected),
        },
        (),
        ("mapping", "unused", "error"),
    ),
    "port_state_dict": Kind(
        {"state_dict": Comparison(_state_dict, (r"state_dict/.+",))}, (), ("unused",)
    ),
    "port_shapes": Kind(
        {"shapes": Comparison(_shapes), "configuration": Comparison(_published)},
        (),
        ("configuration", "name", "published", "shapes", "n_tensors", "n_params"),
    ),
}
"""Kinds of parameter trees by name."""
