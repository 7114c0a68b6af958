"""Checks of SPEC.md "Configuration"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import Any

from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject, UnsupportedError
from openmoe_spec.config import MODEL_FIELDS, PUBLISHED


def _names(_: Profile) -> Iterator[Case]:
    yield from ({"name": name} for name in PUBLISHED)


def _fields_of_a_layer(name: str) -> dict[str, Any]:
    """Return the first table's fields: all that an implementation of layers knows."""
    fields = asdict(PUBLISHED[name])
    return {field: value for field, value in fields.items() if field not in MODEL_FIELDS}


def _shown(subject: Subject, name: str) -> Mapping[str, Any]:
    answer = subject.call("configuration", name)
    if not isinstance(answer, Mapping):
        raise Disagreement(f"configuration: must return a mapping, got {type(answer).__name__}")
    return answer


def _compare_fields(name: str, shown: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for field, value in wanted.items():
        if field not in shown:
            raise Disagreement(f"configuration({name}): lacks {field}")
        same(f"configuration({name})[{field}]", shown[field], value)


def _must_accept(subject: Subject, what: str, fields: Mapping[str, Any]) -> None:
    try:
        subject.call("validate_configuration", fields)
    except ValueError as error:
        raise Disagreement(f"validate_configuration({what}): rejected ({error})") from error


@check("CFG-01", "configuration", cases=_names)
def published_values(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Every field of a published configuration has the value of SPEC.md's table."""
    wanted = _fields_of_a_layer(case["name"])
    del wanted["name"]  # not a row of SPEC.md's table
    _compare_fields(case["name"], _shown(subject, case["name"]), wanted)
    evidence.examples += 1


@check("CFG-02", "validate_configuration", cases=_names)
def published_configurations_are_legal(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The three published configurations are accepted."""
    _must_accept(subject, case["name"], _fields_of_a_layer(case["name"]))
    evidence.examples += 1


_COUNTS = (
    "num_layers",
    "num_moe_layers",
    "embed_dim",
    "mlp_dim",
    "num_experts",
    "num_selected_experts",
    "max_group_size",
    "min_expert_capacity",
)


def _illegal_fields(_: Profile) -> Iterator[Case]:
    infinite, missing = float("inf"), float("nan")
    for field in _COUNTS:
        for value in (0, -1, 2.5):
            yield {"field": field, "value": value}
    for field in ("train_capacity_factor", "eval_capacity_factor"):
        for factor in (0.0, -1.25, infinite, missing):
            yield {"field": field, "value": factor}
    for field in ("auxiliary_loss_factor", "router_z_loss_factor"):
        for factor in (-0.01, infinite, missing):
            yield {"field": field, "value": factor}
    for noise in (-0.1, 1.0, missing):
        yield {"field": "jitter_noise", "value": noise}
    for field in ("batch_prioritized_routing", "ignore_padding_tokens"):
        yield {"field": field, "value": "no"}
    yield {"field": "num_selected_experts", "value": 17}  # of base's 16 experts
    yield {"field": "num_moe_layers", "value": 5}  # does not divide base's 12 layers
    yield {"field": "num_moe_layers", "value": 24}


@check("CFG-02", "rejects_invalid_input", "validate_configuration", cases=_illegal_fields)
def illegal_configurations_are_rejected(subject: Subject, case: Case, evidence: Evidence) -> None:
    """`base` with one field outside its range raises."""
    fields = _fields_of_a_layer("base") | {case["field"]: case["value"]}
    must_reject(
        f"a configuration with {case['field']} = {case['value']!r}",
        lambda: subject.call("validate_configuration", fields),
    )
    evidence.examples += 1


# ---- the fields of the whole model -----------------------------------------------------------


@check("CFG-04", "configuration", cases=_names)
def published_values_of_the_model(subject: Subject, case: Case, evidence: Evidence) -> None:
    """So has every field that only the whole model needs; a layer shows none of them."""
    shown = _shown(subject, case["name"])
    if not set(MODEL_FIELDS) & set(shown):
        raise UnsupportedError("configuration() shows no field of the whole model")
    fields = asdict(PUBLISHED[case["name"]])
    _compare_fields(case["name"], shown, {field: fields[field] for field in MODEL_FIELDS})
    evidence.examples += 1


def _legal_model_fields(_: Profile) -> Iterator[Case]:
    for field, values in {
        "expert_mlp_dim": (1, 3072),
        "num_kv_heads": (1, 4, 12),
        "head_dim": (2, 66),
        "max_length": (1,),
        "z_loss_factor": (0.0, 0.001),
        "label_smoothing": (0.001, 0.99),
        "inputs_bidirectional_attention": (True,),
    }.items():
        yield from ({"field": field, "value": value} for value in values)


@check("CFG-05", "validate_configuration", "forward", cases=_legal_model_fields)
def legal_fields_of_the_model(subject: Subject, case: Case, evidence: Evidence) -> None:
    """`base` with one such field elsewhere in its range is accepted."""
    fields = asdict(PUBLISHED["base"]) | {case["field"]: case["value"]}
    _must_accept(subject, f"{case['field']} = {case['value']!r}", fields)
    evidence.examples += 1


def _illegal_model_fields(_: Profile) -> Iterator[Case]:
    infinite, missing = float("inf"), float("nan")
    for field, values in {
        "expert_mlp_dim": (0, -1, 2.5),
        "num_kv_heads": (0, -1, 1.5, 5, 24),  # 5 and 24 do not divide base's 12 heads
        "head_dim": (63, 1),
        "max_length": (0, -1),
        "z_loss_factor": (-0.0001, infinite, missing),
        "label_smoothing": (-0.1, 1.0, missing),
        "inputs_bidirectional_attention": ("no", 1),
    }.items():
        yield from ({"field": field, "value": value} for value in values)


@check(
    "CFG-05",
    "rejects_invalid_input",
    "validate_configuration",
    "forward",
    cases=_illegal_model_fields,
)
def illegal_fields_of_the_model(subject: Subject, case: Case, evidence: Evidence) -> None:
    """`base` with one such field outside its range raises."""
    fields = asdict(PUBLISHED["base"]) | {case["field"]: case["value"]}
    must_reject(
        f"a configuration with {case['field']} = {case['value']!r}",
        lambda: subject.call("validate_configuration", fields),
    )
    evidence.examples += 1
