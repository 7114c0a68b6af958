"""No planted bug survives: each is caught by the clause it breaks, and the reference is not."""

from __future__ import annotations

import pytest

from openmoe_conformance import kill_matrix
from openmoe_conformance.checks import all_checks
from openmoe_conformance.mutants import all_mutants
from openmoe_conformance.outcome import Outcome
from openmoe_conformance.profile import PROFILES
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.running import Settings, run_check
from openmoe_conformance.subject import Subject

SETTINGS = Settings(PROFILES["quick"], shrink=False)
MUTANTS = all_mutants()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_is_caught_by_the_clause_it_breaks(mutant):
    row = kill_matrix.run_mutant(mutant.name, SETTINGS, own_clause_only=True)
    assert row.killed, f"{mutant.name} survives: {mutant.bug}"


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_mutant_says_what_is_wrong(mutant):
    assert mutant.bug.endswith(".")
    assert mutant.implementation.count(":") == 1


@pytest.mark.parametrize("check", all_checks(), ids=lambda check: check.name)
def test_check_passes_on_the_reference(check):
    result = run_check(check, Subject(ReferenceAdapter()), SETTINGS)
    if check.needs[0].startswith("operations"):
        assert result.outcome is Outcome.SKIPPED
    else:
        assert result.outcome is Outcome.PASS, result.message
        assert result.examples > 0


def test_a_survivor_is_printed_and_fails():
    from rich.console import Console

    row = kill_matrix.Row("routing.Ghost", "ROUTE-04", "Nothing is wrong.", {"ROUTE-05": 3})
    console = Console(record=True, width=120)
    kill_matrix.render([row], console)
    text = console.export_text()
    assert "SURVIVES" in text
    assert "SURVIVING: routing.Ghost" in text
    assert not row.killed
