"""Checks of SPEC.md "Parameters": computed from configurations, nothing is allocated."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from hypothesis import strategies as st

from openmoe_conformance import model_cases
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import fields_of, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_spec import layouts
from openmoe_spec import parameters as specified
from openmoe_spec.config import PUBLISHED, Configuration

ELEMENTS = {"base": 799_663_104, "8b": 11_855_046_656, "34b": 46_270_737_408}
"""All elements of the published models, as PARAM-01 has them."""

ACTIVATED = {"base": 141_616_128, "8b": 2_751_834_112, "34b": 8_456_727_552}
"""What a token uses of them, as PARAM-03 has it."""

Shapes = dict[str, dict[str, tuple[Any, ...]]]


def _tensors(subject: Subject, fields: Mapping[str, Any]) -> Shapes:
    answer = subject.call("parameters", fields)
    if not isinstance(answer, Mapping):
        raise Disagreement(f"parameters: must return a mapping, got {type(answer).__name__}")
    found = {}
    for name, one in answer.items():
        shown = fields_of(one, ("shape", "axes"))
        if any(value is None for value in shown.values()):
            raise Disagreement(f"parameters[{name}]: must have shape and axes, got {one!r}")
        found[name] = {field: tuple(value) for field, value in shown.items()}
    return found


def _compare_tensors(got: Shapes, wanted: Shapes) -> None:
    missing, extra = sorted(set(wanted) - set(got)), sorted(set(got) - set(wanted))
    if missing or extra:
        raise Disagreement(f"parameters: missing {missing}, not known {extra}")
    for name, one in wanted.items():
        for field, value in one.items():
            if got[name][field] != value:
                raise Disagreement(
                    f"parameters[{name}]: {field} {got[name][field]}, expected {value}"
                )


def _specified(fields: Mapping[str, Any]) -> Shapes:
    tensors = specified.parameters(Configuration(**fields))
    return {one.name: {"shape": one.shape, "axes": one.axes} for one in tensors}


def _names(_: Profile) -> Iterator[Case]:
    yield from ({"name": name} for name in PUBLISHED)


@check("PARAM-01", "parameters", cases=_names)
def published_tensors(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The tensors of a published model have the table's names, shapes and axes, and its total."""
    fields = asdict(PUBLISHED[case["name"]])
    got = _tensors(subject, fields)
    _compare_tensors(got, _specified(fields))
    total = sum(int(np.prod(one["shape"], dtype=np.int64)) for one in got.values())
    same(f"elements of {case['name']}", total, ELEMENTS[case["name"]])
    evidence.examples += 1


@st.composite
def _models(draw: st.DrawFn) -> Case:
    """Draw a model with heads and widths of its own."""
    case = draw(model_cases.models())
    return case | {"kv_heads": draw(st.sampled_from([n for n in (1, 3) if case["heads"] % n == 0]))}


def _fields(case: Case) -> dict[str, Any]:
    return model_cases.configuration(case, num_kv_heads=case["kv_heads"])


@check("PARAM-01", "parameters", cases=_models())
def tensors_follow_from_the_configuration(subject: Subject, case: Case, _: Evidence) -> None:
    """Those of any model do, with experts of another width and fewer heads of keys too."""
    _compare_tensors(_tensors(subject, _fields(case)), _specified(_fields(case)))


@check("CFG-04", "parameters", cases=_names)
def sizes_that_are_none_are_others(subject: Subject, case: Case, evidence: Evidence) -> None:
    """None means mlp_dim in expert_mlp_dim, and num_heads in num_kv_heads."""
    absent = asdict(PUBLISHED[case["name"]])
    given = absent | {"expert_mlp_dim": absent["mlp_dim"], "num_kv_heads": absent["num_heads"]}
    _compare_tensors(_tensors(subject, absent), _tensors(subject, given))
    evidence.examples += 1


def _depths(_: Profile) -> Iterator[Case]:
    for layers in (1, 2, 3, 4, 6, 12, 24, 32):
        for sparse in range(1, layers + 1):
            yield {"layers": layers, "sparse": sparse}


def _even_depths(profile: Profile) -> Iterator[Case]:
    yield from (case for case in _depths(profile) if case["layers"] % case["sparse"] == 0)


@check("PARAM-02", "sparse_layers", cases=_even_depths)
def the_last_layer_of_each_interval_is_sparse(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """Layer i is sparse exactly when i mod (n / s) = n / s - 1."""
    layers, sparse = case["layers"], case["sparse"]
    interval = layers // sparse
    wanted = [i for i in range(layers) if i % interval == interval - 1]
    same("sparse_layers", subject.call("sparse_layers", layers, sparse), wanted)
    evidence.examples += 1


@check("PARAM-02", "sparse_layers(layout)", cases=_depths)
def the_other_layouts(subject: Subject, case: Case, evidence: Evidence) -> None:
    """TOP is the last s layers, BOTTOM the first s, MIDDLE those with n - s <= 2 i < n + s."""
    layers, sparse = case["layers"], case["sparse"]
    wanted = {
        "TOP": range(layers - sparse, layers),
        "BOTTOM": range(sparse),
        "MIDDLE": [i for i in range(layers) if layers - sparse <= 2 * i < layers + sparse],
    }
    for layout, indices in wanted.items():
        got = subject.call("sparse_layers", layers, sparse, layout=layout)
        same(f"sparse_layers({layout})", got, indices)
    evidence.examples += 1


def _count(subject: Subject, field: str, fields: Mapping[str, Any]) -> int:
    counts = subject.named("count_parameters", {field: ()}, fields)
    return int(counts[field])


@check("PARAM-01", "count_parameters", cases=_names)
def published_totals(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The totals that are reported are those of the tensors."""
    fields = asdict(PUBLISHED[case["name"]])
    same("total", _count(subject, "total", fields), ELEMENTS[case["name"]])
    evidence.examples += 1


@check("PARAM-03", "count_parameters", cases=_names)
def published_activated_elements(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A token of a published model uses as many elements as SPEC.md says."""
    fields = asdict(PUBLISHED[case["name"]])
    same("activated", _count(subject, "activated", fields), ACTIVATED[case["name"]])
    evidence.examples += 1


@check("PARAM-03", "count_parameters", cases=_models())
def a_token_uses_k_experts(subject: Subject, case: Case, _: Evidence) -> None:
    """K of the E experts of each sparse layer count, all else once, the two vocabularies never."""
    wanted = 0
    for one in specified.parameters(Configuration(**_fields(case))):
        if "vocab" not in one.axes:
            of_experts = "expert" in one.axes
            wanted += one.size // case["experts"] * case["k"] if of_experts else one.size
    same("activated", _count(subject, "activated", _fields(case)), wanted)


def _square(_: Profile) -> Iterator[Case]:
    yield model_cases.fixed()
    # D = H N = F = E: a matrix that is turned, or is not, keeps its shape.
    sizes = {"width": 8, "hidden": 8, "expert_hidden": 8, "experts": 8}
    yield model_cases.fixed(heads=2, head_dim=4, **sizes)


@check("PARAM-05", "port_parameters", cases=_square)
def tensors_of_the_port(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Every tensor has the port's name; kernels are transposed, those of experts are not."""
    ours = model_cases.weights(model_cases.configuration(case), case["seed"])
    wanted = {}
    for name, value in ours.items():
        there = layouts.port_name(name)
        assert there is not None
        wanted[there[0]] = value.T if there[1] else value
    answer = subject.call("port_parameters", ours)
    if not isinstance(answer, Mapping):
        raise Disagreement(f"port_parameters: must return a mapping, got {type(answer).__name__}")
    missing, extra = sorted(set(wanted) - set(answer)), sorted(set(answer) - set(wanted))
    if missing or extra:
        raise Disagreement(f"port_parameters: missing {missing}, not known {extra}")
    for name, value in wanted.items():
        same(f"port_parameters[{name}]", answer[name], value)
    evidence.examples += 1


def _unknown_names(_: Profile) -> Iterator[Case]:
    layer = "decoder/layers_0"
    for name in (
        f"{layer}/mlp/wi_2/kernel",
        f"{layer}/self_attention/query/bias",
        f"{layer}/pre_cross_attention_layer_norm/scale",
        "decoder/layers_x/pre_mlp_layer_norm/scale",
        "encoder/layers_0/pre_mlp_layer_norm/scale",
        "token_embedder/embedding/extra",
        "decoder/relpos_bias/rel_embedding",
    ):
        yield {"name": name}


@check("PARAM-05", "rejects_invalid_input", "port_parameters", cases=_unknown_names)
def unknown_tensors_are_reported(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A tensor that has no counterpart raises instead of being left out."""
    known = model_cases.fixed()
    ours = model_cases.weights(model_cases.configuration(known), known["seed"])
    extra = ours | {case["name"]: np.ones((2, 2), np.float32)}
    must_reject(
        f"port_parameters with {case['name']}", lambda: subject.call("port_parameters", extra)
    )
    evidence.examples += 1
