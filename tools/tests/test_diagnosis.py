"""The diagnosis of `openmoe verify`: each planted corruption by its name and place, and no false alarm."""

from __future__ import annotations

import corruptions
import numpy as np
import pytest
from corruptions import ALL, DISTINCT, SQUARE, trained

from openmoe_tools.checkpoints import working
from openmoe_tools.checkpoints.containers import opening, stored
from openmoe_tools.checkpoints.verification import comparing

BUDGET = working.Budget.of(10**9, 2)
WEIGHTS = {model.name: trained(model) for model in (DISTINCT, SQUARE)}


def compared(model, source, target, cast=None):
    a, b = (opening.of(stored.Memory(one)) for one in (source, target))
    return comparing.compare(a, b, BUDGET, cast=cast, models=(model, None))


@pytest.mark.parametrize("model", [DISTINCT, SQUARE], ids=lambda one: one.name)
@pytest.mark.parametrize("corruption", ALL, ids=lambda one: one.name)
def test_a_corruption_gets_its_name_and_place(corruption, model):
    weights = WEIGHTS[model.name]
    target = corruption.make(dict(weights), model)
    found = compared(model, weights, target, corruption.cast)
    said = {name: one for one in found.findings for name in one.tensors}
    for name, cause in corruption.causes.items():
        assert name in said, found.findings
        assert said[name].cause == cause, said[name]
        assert corruption.where in said[name].where
    assert any(one.verdict == "differs" for one in found.verdicts)
    changed = {
        name
        for name in {*weights, *target}
        if name not in target
        or name not in weights
        or target[name].tobytes() != weights[name].tobytes()
    }
    assert set(said) <= changed  # nothing is accused that is as it was


def test_there_are_enough_of_them():
    assert len(ALL) >= 30
    assert len({one.name for one in ALL}) == len(ALL)
    assert corruptions.DISTINCT.num_heads == 4


def test_a_corruption_is_not_seen_where_there_is_none():
    for model in (DISTINCT, SQUARE):
        weights = WEIGHTS[model.name]
        found = compared(model, weights, dict(weights))
        assert not found.findings
        assert [one.verdict for one in found.verdicts] == ["holds"] * 3


def test_two_bugs_in_one_tensor_are_both_named():
    weights = WEIGHTS["distinct"]
    corruption = next(one for one in ALL if one.name.startswith("experts_permuted_and"))
    found = compared(DISTINCT, weights, corruption.make(dict(weights), DISTINCT)).findings
    assert [one.cause for one in found] == ["experts permuted", "gate halves swapped"]
    assert [one.where for one in found] == ["experts 1, 3", ""]


def test_values_that_come_twice_do_not_deceive():
    weights = dict(WEIGHTS["distinct"])
    weights[corruptions.EMBEDDING][40:60] = 0  # rows that no sum tells apart
    target = {**weights, corruptions.EMBEDDING: np.roll(weights[corruptions.EMBEDDING], 1, 0)}
    (finding,) = compared(DISTINCT, weights, target).findings
    assert (finding.cause, finding.exact) == ("rows rolled", True)
