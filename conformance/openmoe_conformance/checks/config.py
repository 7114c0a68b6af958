"""Checks of SPEC.md "Configuration"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_spec.config import PUBLISHED


def _names(_: Profile) -> Iterator[Case]:
    yield from ({"name": name} for name in PUBLISHED)


@check("CFG-01", "configuration", cases=_names)
def published_values(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Every field of a published configuration has the value of SPEC.md's table."""
    answer = subject.call("configuration", case["name"])
    if not isinstance(answer, Mapping):
        raise Disagreement(f"configuration: must return a mapping, got {type(answer).__name__}")
    for field, value in asdict(PUBLISHED[case["name"]]).items():
        if field == "name":  # not a row of SPEC.md's table
            continue
        if field not in answer:
            raise Disagreement(f"configuration({case['name']}): lacks {field}")
        same(f"configuration({case['name']})[{field}]", answer[field], value)
    evidence.examples += 1


@check("CFG-02", "validate_configuration", cases=_names)
def published_configurations_are_legal(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The three published configurations are accepted."""
    fields = asdict(PUBLISHED[case["name"]])
    try:
        subject.call("validate_configuration", fields)
    except ValueError as error:
        raise Disagreement(f"validate_configuration({case['name']}): rejected ({error})") from error
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
    fields = asdict(PUBLISHED["base"]) | {case["field"]: case["value"]}
    must_reject(
        f"a configuration with {case['field']} = {case['value']!r}",
        lambda: subject.call("validate_configuration", fields),
    )
    evidence.examples += 1
