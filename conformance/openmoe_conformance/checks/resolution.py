"""Check of the routing-resolution ladder."""

from __future__ import annotations

from collections.abc import Iterator

from openmoe_conformance import ladder
from openmoe_conformance.checks import Case, check
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject


def _rows(profile: Profile) -> Iterator[Case]:
    yield {"rows": profile.ladder_rows}


@check("ROUTE-18", "route", cases=_rows)
def routing_resolution(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Every exact tie and every certified margin the declared arithmetic resolves is right."""
    right: dict[int | str, float] = {}
    wrong = []
    for name, rung in ladder.all_rungs(case["rows"]).items():
        got = subject.route(rung.inputs, rung.kernel, k=ladder.K, capacity=case["rows"])
        hits = (got.expert_index == rung.expected).all(axis=-1)
        right[name] = float(hits.mean())
        evidence.examples += hits.size
        must = name == ladder.TIE or (
            int(name) <= ladder.FINEST_CERTIFIED
            and 2.0 ** -int(name) > subject.arithmetic.resolution
        )
        if must and not hits.all():
            wrong.append(f"{rung.label}: {hits.mean():.1%} right")
    evidence.details["ladder"] = {
        ("exact tie" if name == ladder.TIE else f"2^-{name}"): share
        for name, share in right.items()
    }
    evidence.details["resolution"] = ladder.resolution(right)
    if wrong:
        raise Disagreement(f"resolution {ladder.resolution(right)}; wrong at {'; '.join(wrong)}")
