"""Failing inputs are shrunk, saved and replayed; known defects are listed with their issues."""

from __future__ import annotations

import numpy as np
import pytest

from openmoe_conformance import expected_failures, planning, running
from openmoe_conformance.checks import all_checks
from openmoe_conformance.mutants.routing import NeverDrops, TokenMajorQueue
from openmoe_conformance.outcome import Outcome, UsageError
from openmoe_conformance.profile import PROFILES
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.running import Settings, load_case, replay, run_check
from openmoe_conformance.subject import Subject

CHECKS = {check.name: check for check in all_checks()}
NAME = "routing.first_choices_queue_before_second"


@pytest.fixture
def failure(tmp_path):
    settings = Settings(PROFILES["quick"], failures=tmp_path)
    return run_check(CHECKS[NAME], Subject(TokenMajorQueue()), settings)


def test_a_failure_is_saved_small_and_says_how_many_examples_it_took(failure):
    assert failure.outcome is Outcome.FAIL
    assert failure.examples >= 1
    name, case = load_case(running.Path(failure.replay))
    assert name == NAME
    assert case["probabilities"].size <= 8  # shrunk: two tokens and two or four experts


def test_a_saved_failure_fails_again_and_passes_on_the_reference(failure):
    path = running.Path(failure.replay)
    again = replay(path, all_checks(), Subject(TokenMajorQueue()))
    assert again.outcome is Outcome.FAIL
    assert again.message == failure.message
    assert replay(path, all_checks(), Subject(ReferenceAdapter())).outcome is Outcome.PASS


def test_the_same_seed_finds_the_same_failure(failure, tmp_path):
    settings = Settings(PROFILES["quick"], failures=tmp_path / "again")
    second = run_check(CHECKS[NAME], Subject(TokenMajorQueue()), settings)
    first_case, second_case = (load_case(running.Path(f.replay))[1] for f in (failure, second))
    assert first_case.keys() == second_case.keys()
    assert all(np.array_equal(first_case[k], second_case[k]) for k in first_case)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04 nonsense", b"text"])
def test_a_file_that_is_no_saved_failure_is_bad_usage(tmp_path, content):
    path = tmp_path / "x.npz"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=r"x\.npz"):
        load_case(path)


def test_an_archive_of_something_else_is_bad_usage(tmp_path):
    np.savez(tmp_path / "x.npz", a=np.zeros(2))
    with pytest.raises(UsageError, match="not a saved failure"):
        load_case(tmp_path / "x.npz")


def test_a_failure_of_an_unknown_check_is_bad_usage(tmp_path):
    path = running.save_case(tmp_path, "routing.ghost", "ROUTE-04", {"k": 2})
    with pytest.raises(UsageError, match=r"no check routing\.ghost"):
        replay(path, all_checks(), Subject(ReferenceAdapter()))


# ---- expected failures -----------------------------------------------------------------------


def results(implementation, clause):
    settings = Settings(PROFILES["quick"], shrink=False)
    subject = Subject(implementation)
    return [run_check(c, subject, settings) for c in all_checks() if c.clause == clause]


def apply(expected, found, path, selected=None):
    everything = planning.Everything()
    return expected_failures.apply(expected, found, path, selected=selected or everything)


def listed(tmp_path, text):
    path = tmp_path / "known.txt"
    path.write_text(text, encoding="utf-8")
    return expected_failures.read(path), path


def test_a_listed_failure_is_expected_and_carries_its_issue(tmp_path):
    expected, path = listed(tmp_path, "# ours\n\nROUTE-09  https://issues.example/7  # drops\n")
    found, complaints = apply(expected, results(NeverDrops(), "ROUTE-09"), path)
    assert not complaints
    marked = [r for r in found if r.outcome is Outcome.XFAIL]
    assert marked
    assert {r.url for r in marked} == {"https://issues.example/7"}
    assert not [r for r in found if r.outcome is Outcome.FAIL]


def test_a_listed_failure_that_passes_is_an_unexpected_pass(tmp_path):
    expected, path = listed(tmp_path, "ROUTE-09  https://issues.example/7\n")
    found, _ = apply(expected, results(ReferenceAdapter(), "ROUTE-09"), path)
    assert [r.outcome for r in found].count(Outcome.XPASS) == 1


def test_a_line_that_matches_nothing_is_an_error(tmp_path):
    expected, path = listed(tmp_path, "MOE-07  https://issues.example/7\n")
    found = results(ReferenceAdapter(), "ROUTE-09")
    changed, complaints = apply(expected, found, path)
    assert changed == found
    assert len(complaints) == 1
    assert "known.txt:1: MOE-07 matches nothing" in complaints[0]


def test_a_line_of_a_clause_that_was_not_selected_says_nothing(tmp_path):
    expected, path = listed(tmp_path, "MOE-07  https://issues.example/7\n")
    found = results(ReferenceAdapter(), "ROUTE-09")
    assert apply(expected, found, path, selected={"ROUTE-09"}) == (found, [])


def test_a_clause_listed_twice_is_bad_usage(tmp_path):
    with pytest.raises(UsageError, match=r"known\.txt:2: ROUTE-09 stands there twice"):
        listed(tmp_path, "ROUTE-09 https://issues.example/7\nROUTE-09 https://issues.example/8\n")


@pytest.mark.parametrize(
    "line", ["ROUTE-09", "ROUTE-09 see the tracker", "ROUTE-99 https://issues.example/1"]
)
def test_a_malformed_line_is_bad_usage_and_names_its_place(tmp_path, line):
    with pytest.raises(UsageError, match=r"known\.txt:1"):
        listed(tmp_path, line + "\n")
