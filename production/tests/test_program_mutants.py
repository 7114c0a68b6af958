"""Every planted bug that needs JAX is caught by the clause it breaks."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest

from openmoe_conformance import mutants
from openmoe_conformance.checks import all_checks
from openmoe_conformance.outcome import Outcome
from openmoe_conformance.profile import PROFILES
from openmoe_conformance.running import Settings, run_check
from openmoe_conformance.subject import Subject
from openmoe_production.adapter import Adapter


def _planted() -> list[mutants.Mutant]:
    before = {mutant.name for mutant in mutants.all_mutants()}
    for name in ("program_mutants", "mesh_mutants"):
        path = Path(__file__).with_name(f"{name}.py")
        specification = importlib.util.spec_from_file_location(name, path)
        module = importlib.util.module_from_spec(specification)
        sys.modules[name] = module
        specification.loader.exec_module(module)
    found = [mutant for mutant in mutants.all_mutants() if mutant.name not in before]
    for mutant in found:
        del mutants._REGISTRY[mutant.name]  # the kit's own list stays the kit's
    return found


PLANTED = _planted()


def _outcomes(adapter: object, clause: str) -> set[Outcome]:
    subject = Subject(adapter)
    settings = Settings(PROFILES["quick"], shrink=False)
    checks = [check for check in all_checks() if check.clause == clause]
    return {run_check(check, subject, settings).outcome for check in checks}


@pytest.mark.parametrize("planted", PLANTED, ids=lambda mutant: mutant.name)
def test_planted_bug_is_caught(planted: mutants.Mutant) -> None:
    assert Outcome.FAIL in _outcomes(planted.adapter(), planted.clause)


@pytest.mark.parametrize("clause", sorted({mutant.clause for mutant in PLANTED}))
def test_production_itself_passes(clause: str) -> None:
    assert _outcomes(Adapter(), clause) == {Outcome.PASS}
