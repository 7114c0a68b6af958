"""The diagnosis of `openmoe verify`: each planted corruption by its name and place, and no false alarm."""

from __future__ import annotations

from dataclasses import replace

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


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_noise_is_no_factor(dtype):
    weights, draws = WEIGHTS["square"], np.random.default_rng(5)
    noisy = {
        name: (one * (1 + 0.003 * draws.standard_normal(one.shape))).astype(stored.DTYPES[dtype])
        for name, one in weights.items()
    }
    found = compared(SQUARE, weights, noisy, None if dtype == "float32" else dtype).findings
    assert {one.cause for one in found} <= {"another model", "stale", "sparse corruption"}
    assert not any(one.exact for one in found)


def test_a_shape_that_nothing_explains_ends_in_a_finding():
    weights = WEIGHTS["distinct"]
    for name, change in (
        (corruptions.DENSE_GATE, lambda x: x[:, :-1]),
        (corruptions.HEAD, lambda x: x[:, :0]),
        (corruptions.NORM, lambda x: x[:0]),
    ):
        target = {**weights, name: np.ascontiguousarray(change(weights[name]))}
        found = compared(DISTINCT, weights, target).findings
        assert {name for one in found for name in one.tensors} == {name}


def test_heads_of_keys_are_fewer():
    model = replace(DISTINCT, num_kv_heads=2)
    weights = trained(model)
    keys = weights[corruptions.KEY]
    turned = keys.reshape(len(keys), 2, 2, -1).swapaxes(2, 3).reshape(keys.shape)
    (found,) = compared(model, weights, {**weights, corruptions.KEY: turned}).findings
    assert found.cause == "rotary interleaved"
    assert "(the model has" not in found.text


def test_a_cast_that_was_not_declared_is_a_difference():
    weights = WEIGHTS["distinct"]
    narrow = {name: one.astype(stored.DTYPES["bfloat16"]) for name, one in weights.items()}
    found = compared(DISTINCT, weights, narrow)
    assert [one.verdict for one in found.verdicts] == ["differs"] * 3
    assert {one.cause for one in found.findings} == {"dtype", "rounded to bfloat16"}


def test_values_that_come_twice_do_not_deceive():
    weights = dict(WEIGHTS["distinct"])
    weights[corruptions.EMBEDDING][40:60] = 0  # rows that no sum tells apart
    target = {**weights, corruptions.EMBEDDING: np.roll(weights[corruptions.EMBEDDING], 1, 0)}
    (finding,) = compared(DISTINCT, weights, target).findings
    assert (finding.cause, finding.exact) == ("rows rolled", True)
