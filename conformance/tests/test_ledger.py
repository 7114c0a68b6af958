"""A green report means executed checks: the ledger, exit codes, and adapters that offer little."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from openmoe_conformance import adapter, planning, runner, vector_sets
from openmoe_conformance.checks import all_checks
from openmoe_conformance.outcome import Outcome, Result, Source, UsageError, exit_code, ledger
from openmoe_conformance.profile import PROFILES
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.subject import Subject
from openmoe_reference import routing

QUICK = PROFILES["quick"]


def result(outcome: Outcome, **more: object) -> Result:
    return Result("check:x", "ROUTE-04", outcome, Source.CHECK, **more)


@pytest.mark.parametrize("profile", PROFILES.values(), ids=lambda profile: profile.name)
def test_plan_and_independent_count_agree(profile):
    everything = planning.Everything()
    folder = vector_sets.built_in()
    units = planning.plan(profile, everything, folder, checks=True)
    counted = planning.owed(profile, everything, folder, checks=True)
    assert counted == sum(unit.size for unit in units) > 1000


def test_count_notices_a_check_that_is_lost():
    lost = all_checks()[0].clause
    wanted = frozenset({lost})
    assert planning.owed(QUICK, wanted, None, checks=True) >= 1
    units = planning.plan(QUICK, wanted, None, checks=True)
    assert ledger(planning.owed(QUICK, wanted, None, checks=True) + 1, []).balanced is False
    assert {name for unit in units for name in unit.checks}


@pytest.mark.parametrize(
    ("outcomes", "planned", "code"),
    [
        ([Outcome.PASS], 1, 0),
        ([Outcome.PASS, Outcome.SKIPPED], 2, 0),
        ([Outcome.PASS, Outcome.XFAIL], 2, 0),
        ([Outcome.XFAIL], 1, 0),
        ([Outcome.PASS, Outcome.FAIL], 2, 1),
        ([Outcome.PASS, Outcome.ERROR], 2, 1),
        ([Outcome.PASS, Outcome.XPASS], 2, 1),
        ([Outcome.PASS, Outcome.INCONCLUSIVE], 2, 2),
        ([Outcome.FAIL, Outcome.INCONCLUSIVE], 2, 1),
        ([Outcome.SKIPPED], 1, 2),
        ([], 0, 2),
        ([Outcome.PASS], 2, 2),
        ([Outcome.PASS, Outcome.PASS], 1, 2),
    ],
)
def test_exit_codes(outcomes, planned, code):
    assert exit_code([result(outcome) for outcome in outcomes], planned) == code


def test_an_unusable_vector_is_incomplete_and_not_the_implementations_fault():
    found = [result(Outcome.PASS), result(Outcome.ERROR, fault="kit")]
    assert exit_code(found, 2) == 2


class OnlyDecides:
    """A dispatch-only implementation."""

    def decide(self, probabilities, *, k, capacity):
        return routing.decide(probabilities, k=k, capacity=capacity)


class Raises:
    def decide(self, probabilities, *, k, capacity):
        raise RuntimeError("no device")


class WrongShapes:
    def decide(self, probabilities, *, k, capacity):
        found = routing.decide(probabilities, k=k, capacity=capacity)
        return {
            "expert_index": found.expert_index[0],
            "gate": found.gate,
            "position": found.position,
        }


class ReturnsNothing:
    def decide(self, probabilities, *, k, capacity):
        return None

    def probabilities(self, inputs, kernel):
        return None

    def moe(self, inputs, parameters, *, k, capacity):
        return None


def run(implementation, **options):
    subject = Subject(implementation)
    made = runner.Options("", profile=QUICK, **options)
    return runner.run(made, subject)


def test_a_partial_implementation_is_skipped_and_never_passed_where_it_offers_nothing():
    results, planned = run(OnlyDecides(), vectors=vector_sets.built_in())
    balance = ledger(planned, results)
    assert balance.balanced
    assert exit_code(results, planned) == 0
    assert balance.counts[Outcome.PASS] > 50
    assert balance.counts[Outcome.SKIPPED] > 500
    assert balance.counts[Outcome.PASS] + balance.counts[Outcome.SKIPPED] == planned
    executed = {row.clause for row in results if row.outcome is Outcome.PASS}
    assert "ROUTE-04" in executed
    assert not executed & {"ROUTE-02", "MOE-07", "ROUTE-12", "ROUTE-14"}


@pytest.mark.parametrize(
    ("implementation", "outcome"),
    [(Raises, Outcome.ERROR), (WrongShapes, Outcome.FAIL), (ReturnsNothing, Outcome.FAIL)],
)
def test_an_adapter_that_misbehaves_never_passes_and_never_ends_the_run(implementation, outcome):
    results, planned = run(implementation())
    assert ledger(planned, results).balanced
    assert exit_code(results, planned) == 1
    assert {row.outcome for row in results} == {outcome, Outcome.SKIPPED}
    assert all(row.message for row in results)


def test_results_do_not_depend_on_the_number_of_processes():
    name = "openmoe_conformance.mutants.routing:TokenMajorQueue"
    clauses = frozenset({"ROUTE-04", "ROUTE-07", "ROUTE-09", "GROUP-06"})
    subject = Subject(adapter.load(name))
    outcomes = []
    for jobs in (1, 2):
        options = runner.Options(name, profile=QUICK, clauses=clauses, jobs=jobs)
        results, _ = runner.run(options, subject)
        outcomes.append([(r.item, r.outcome, r.examples, r.message) for r in results])
    assert outcomes[0] == outcomes[1]
    assert any(outcome is Outcome.FAIL for _, outcome, *_ in outcomes[0])


class Exits:
    def decide(self, probabilities, *, k, capacity):
        sys.exit(0)


def test_an_adapter_that_calls_exit_is_an_error_and_not_the_end_of_the_run():
    results, planned = run(Exits())
    assert ledger(planned, results).balanced
    assert exit_code(results, planned) == 1
    errors = {r.message for r in results if r.outcome is Outcome.ERROR}
    assert all(message.startswith("ExitedError: decide() called sys.exit(0)") for message in errors)
    assert len(errors) == 1


class WritesIntoItsArguments(ReferenceAdapter):
    def decide(self, probabilities, **options):
        found = super().decide(probabilities, **options)
        probabilities[...] = 0
        return found


def test_what_an_implementation_does_to_its_arguments_does_not_reach_the_comparison():
    results, planned = run(WritesIntoItsArguments(), clauses=frozenset({"ROUTE-04", "ROUTE-10"}))
    assert exit_code(results, planned) == 0


class WithoutKept:
    """A decision may leave `kept` out."""

    def decide(self, probabilities, *, k, capacity):
        found = routing.decide(probabilities, k=k, capacity=capacity)
        position = np.where(found.kept, found.position, -1)
        return {"expert_index": found.expert_index, "gate": found.gate, "position": position}


def test_kept_may_be_left_out_everywhere():
    results, planned = run(WithoutKept(), vectors=vector_sets.built_in())
    assert exit_code(results, planned) == 0
    assert sum(r.outcome is Outcome.PASS for r in results) > 50


class CombinesAlone:
    """combine() may do without num_experts: the outputs show it."""

    def combine(self, expert_outputs, decision):
        return ReferenceAdapter().combine(
            expert_outputs, decision, num_experts=expert_outputs.shape[1]
        )


def test_combine_may_do_without_the_number_of_experts():
    results, planned = run(CombinesAlone())
    assert exit_code(results, planned) == 0
    executed = {r.clause for r in results if r.outcome is Outcome.PASS}
    assert executed == {"MOE-04", "MOE-05"}


class Misspelt:
    def probabilties(self, inputs, kernel):
        return None

    def decide(self, probabilities, *, k, capacity, batch_prioritised=False, extra=1):
        return routing.decide(probabilities, k=k, capacity=capacity)


def test_what_looks_misspelt_is_noted():
    assert Subject(Misspelt()).notes == [
        "decide() takes batch_prioritised; did you mean batch_prioritized?",
        "probabilties() is no function of the protocol; did you mean probabilities()?",
    ]


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, "must return an object or a mapping with expert_index, gate, position; lacks"),
        ((1, 2), "got tuple"),
        ({"expert": 1}, "got dict with expert"),
    ],
)
def test_a_malformed_record_says_what_came_instead(answer, message):
    class Odd:
        def decide(self, probabilities, *, k, capacity):
            return answer

    results, _ = run(Odd(), clauses=frozenset({"ROUTE-07"}))
    assert message in results[0].message


def test_an_index_that_is_no_expert_is_a_failure_that_says_so():
    class Beyond:
        def decide(self, probabilities, *, k, capacity):
            found = routing.decide(probabilities, k=k, capacity=capacity)
            return {**vars(found), "expert_index": found.expert_index + 100}

    results, _ = run(Beyond(), clauses=frozenset({"ROUTE-04"}))
    (failed,) = [r for r in results if r.outcome is Outcome.FAIL][:1]
    assert "must be below" in failed.message


@pytest.mark.parametrize("declared", ["float8", 3, {"accum": 1e-8}, {"logits": "x"}, {"logits": 2}])
def test_an_unknown_arithmetic_is_bad_usage(declared):
    class Odd(ReferenceAdapter):
        arithmetic = declared

    with pytest.raises(UsageError, match=r"adapter\.arithmetic"):
        Subject(Odd())


def test_an_arithmetic_may_name_some_roundoffs_alone():
    coarse = ReferenceAdapter()
    coarse.arithmetic = {"logits": 2.0**-11}
    assert Subject(coarse).arithmetic.logits == 2.0**-11


def test_rejecting_must_be_declared_by_a_boolean():
    class Odd(ReferenceAdapter):
        rejects_invalid_input = "yes"

    with pytest.raises(UsageError, match="rejects_invalid_input"):
        Subject(Odd())


ENDS_ITS_PROCESS = """
import os
from openmoe_conformance.reference_adapter import ReferenceAdapter

class Adapter(ReferenceAdapter):
    def decide_scatter(self, probabilities, **options):
        os._exit(7)
"""


def test_an_implementation_that_ends_its_process_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "ends_its_process.py").write_text(ENDS_ITS_PROCESS, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    name = "ends_its_process:Adapter"
    wanted = frozenset({"ROUTE-21", "ROUTE-22", "GROUP-06"})
    options = runner.Options(name, profile=QUICK, clauses=wanted, jobs=2)
    results, planned = runner.run(options, Subject(adapter.load(name)))
    assert ledger(planned, results).balanced
    ended = {row.clause for row in results if row.outcome is Outcome.ERROR}
    assert ended == {"ROUTE-21", "ROUTE-22"}
    assert {r.message for r in results if r.outcome is Outcome.ERROR} == {
        "the implementation ended its process"
    }
    assert exit_code(results, planned) == 1


@pytest.mark.parametrize(
    "name",
    [
        "no_such_module:Adapter",
        "openmoe_conformance.reference_adapter:Nothing",
        "openmoe_conformance.reference_adapter",
        "openmoe_spec.records:ROUTERS",
    ],
)
def test_an_adapter_that_cannot_be_loaded_is_one_line(name):
    with pytest.raises(UsageError) as found:
        adapter.load(name)
    assert name in str(found.value)
    assert "\n" not in str(found.value)


def test_undecided_tokens_beyond_the_budget_are_inconclusive():
    class Coarse(ReferenceAdapter):
        arithmetic = "bfloat16"  # its band leaves many random tokens open

    checks = [
        check for check in all_checks() if check.name == "invariance.choices_from_random_tokens"
    ]
    from openmoe_conformance.running import Settings, run_check

    found = run_check(checks[0], Subject(Coarse()), Settings(QUICK))
    assert found.outcome is Outcome.INCONCLUSIVE
    assert "undecided" in found.message
    assert np.isclose(found.tokens, QUICK.random_tokens)
