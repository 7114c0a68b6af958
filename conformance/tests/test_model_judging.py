"""Whole models: the reference is forced, choices inside the band may differ, others may not."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from openmoe_conformance import model_cases
from openmoe_conformance.model_judging import answered, forced, given, judge_routing, settled
from openmoe_conformance.mutants.model import Steps
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.subject import Subject
from openmoe_reference import routing

CASE = model_cases.fixed(kind="full", training=False)


def _last_first(probabilities, **options):
    turned = routing.decide(np.ascontiguousarray(probabilities[..., ::-1]), **options)
    return replace(turned, expert_index=probabilities.shape[-1] - 1 - turned.expert_index)


def _least_first(probabilities, **options):
    return routing.decide(1 - probabilities, **options)


class TiesToHigherIndex(Steps, decide=_last_first):
    pass


class LeastProbableExperts(Steps, decide=_least_first):
    pass


class LogitsAlone(ReferenceAdapter):
    def forward(self, *arguments, **options):
        return super().forward(*arguments, **options).logits


def _tied():
    one = given(CASE)
    tied = {
        name: np.repeat(value[:, :1], value.shape[1], axis=1) if "router" in name else value
        for name, value in one.parameters.items()
    }
    return replace(one, parameters=tied)


def test_a_flip_inside_the_band_is_counted_and_not_punished():
    evidence = Evidence()
    decisions = judge_routing(Subject(TiesToHigherIndex()), _tied(), evidence)
    assert evidence.tokens == evidence.undecided == 64
    assert {decision.expert_index[0, 0, 0] for decision in decisions.values()} == {3}


def test_what_follows_a_flip_is_compared_with_the_reference_run_on_it():
    one, evidence = _tied(), Evidence()
    both = answered(Subject(TiesToHigherIndex()), one, evidence)
    assert both is not None
    got, wanted = both
    np.testing.assert_allclose(got.logits, wanted.result.logits, atol=1e-5)
    own = forced(one, {}).result.logits
    assert np.abs(own - wanted.result.logits).max() > 0.01


def test_a_choice_outside_the_band_is_wrong():
    with pytest.raises(Disagreement, match="not admissible"):
        judge_routing(Subject(LeastProbableExperts()), given(CASE), Evidence())


def test_without_decisions_only_clear_cases_are_compared():
    subject, evidence = Subject(LogitsAlone()), Evidence()
    assert answered(subject, given(CASE), evidence) is not None
    assert answered(subject, _tied(), evidence) is None
    assert evidence.undecided == 64


def test_losses_and_gradients_of_near_ties_are_left_out():
    subject, evidence = Subject(ReferenceAdapter()), Evidence()
    assert settled(subject, given(CASE), evidence) is not None
    assert settled(subject, _tied(), evidence) is None


def test_masked_positions_have_no_band():
    padded = given(model_cases.fixed(kind="padded", training=False))
    with pytest.raises(Disagreement, match="exceeds the band 0"):
        judge_routing(Subject(TiesToHigherIndex()), padded, Evidence())
