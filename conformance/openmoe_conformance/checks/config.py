"""Checks of SPEC.md "Configuration"."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict

from openmoe_conformance.checks import Case, check
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
        if field not in answer:
            raise Disagreement(f"configuration({case['name']}): lacks {field}")
        same(f"configuration({case['name']})[{field}]", answer[field], value)
    evidence.examples += 1
