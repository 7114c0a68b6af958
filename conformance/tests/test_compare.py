"""The near-tie rule: bands, admissible choices, exact ties."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

from openmoe_conformance import ladder
from openmoe_conformance.compare import (
    NAMED_ARITHMETIC,
    Arithmetic,
    close,
    judge_choices,
    logit_band,
    same,
)
from openmoe_conformance.outcome import Disagreement, Evidence


def judge(choices, logits, half, wanted=None):
    logits = np.asarray([[logits]], float)
    half = np.broadcast_to(np.asarray(half, float), logits.shape)
    choices = np.asarray([[choices]])
    if wanted is None:
        wanted = np.argsort(-logits, axis=-1, kind="stable")[..., : choices.shape[-1]]
    else:
        wanted = np.asarray([[wanted]])
    return bool(judge_choices(choices, logits, half, wanted)[0, 0])


def test_a_clear_choice_is_decided():
    assert judge([2, 0], [1, 0, 2], 0.1)


@pytest.mark.parametrize("choices", [[0, 2], [2, 1], [0, 1]])
def test_a_wrong_clear_choice_disagrees(choices):
    with pytest.raises(Disagreement, match="not admissible"):
        judge(choices, [1, 0, 2], 0.1)


def test_either_of_two_near_logits_is_admissible_and_undecided():
    assert not judge([0, 1], [2, 1, 1.05], 0.1)
    assert not judge([0, 2], [2, 1, 1.05], 0.1)


def test_a_third_far_below_is_not_admissible_beside_a_near_tie():
    with pytest.raises(Disagreement):
        judge([0, 3], [2, 1, 1.05, 0.5], 0.1)


def test_the_order_of_the_choices_is_judged_too():
    assert not judge([1, 0], [1, 1.05, -3], 0.1)
    with pytest.raises(Disagreement):
        judge([1, 0], [2, 1, -3], 0.1)


def test_without_a_band_a_tie_has_one_answer():
    assert judge([0, 2], [1, 0, 1], 0.0)
    with pytest.raises(Disagreement):
        judge([2, 0], [1, 0, 1], 0.0)


@pytest.mark.parametrize("choices", [[0, 0], [0, 3], [-1, 0]])
def test_impossible_choices_disagree(choices):
    with pytest.raises(Disagreement):
        judge(choices, [1, 0, 2], 0.1)


def test_underflowed_experts_are_ranked_by_index():
    assert judge([0, 1], [110, 0, 1, -1, 2], 0.0, wanted=[0, 1])
    with pytest.raises(Disagreement):
        judge([0, 4], [110, 0, 1, -1, 2], 0.0, wanted=[0, 1])


def test_the_band_is_zero_on_the_dyadic_grid_and_positive_elsewhere():
    generator = np.random.default_rng(0)
    inputs = generator.integers(-4, 5, (1, 8, 6)).astype(np.float32) / 8
    kernel = generator.integers(-8, 9, (6, 4)).astype(np.float32) / 16
    assert (logit_band(inputs, kernel, Arithmetic())[1] == 0).all()
    assert (logit_band(inputs, kernel, NAMED_ARITHMETIC["bfloat16"])[1] > 0).all()
    assert (logit_band(inputs + np.float32(1e-5), kernel, Arithmetic())[1] > 0).all()


@pytest.mark.parametrize("width", [16, 512, 2048])
def test_no_order_of_summation_leaves_the_band(width):
    generator = np.random.default_rng(width)
    inputs = generator.normal(size=(1, 64, width)).astype(np.float32)
    kernel = generator.normal(scale=0.02, size=(width, 8)).astype(np.float32)
    logits, half = logit_band(inputs, kernel, Arithmetic())
    for _ in range(5):
        order = generator.permutation(width)
        total = np.zeros((1, 64, 8), np.float32)
        for i in order:  # one term at a time: the worst order there is
            total += inputs[..., i, None] * kernel[i]
        assert (np.abs(total - logits) <= half).all()


def test_the_band_is_not_so_wide_that_bfloat16_hides_in_it():
    generator = np.random.default_rng(1)
    inputs = generator.normal(size=(1, 256, 512)).astype(np.float32)
    kernel = generator.normal(scale=0.02, size=(512, 8)).astype(np.float32)
    logits, half = logit_band(inputs, kernel, Arithmetic())
    narrow = inputs.astype(ml_dtypes.bfloat16).astype(np.float64) @ kernel.astype(np.float64)
    assert (np.abs(narrow - logits) > half).mean() > 0.9


def test_every_rung_has_the_margin_it_says():
    for exponent in ladder.RUNGS:
        rung = ladder.rung(exponent, 64)
        logits = rung.inputs.astype(np.float64)[0] @ rung.kernel.astype(np.float64)
        ranked = -np.sort(-logits, axis=-1)
        gaps = np.minimum(ranked[:, 0] - ranked[:, 1], ranked[:, 1] - ranked[:, 2])
        assert (gaps == 2.0**-exponent).all()
        exact = np.argsort(-logits, axis=-1, kind="stable")[:, :2]
        assert (exact == rung.expected[0]).all()


def test_the_ladder_is_exact_in_bfloat16_and_float32():
    for rung in ladder.all_rungs(64).values():
        for array in (rung.inputs, rung.kernel):
            assert (array.astype(ml_dtypes.bfloat16).astype(np.float32) == array).all()
        narrow = rung.inputs[0] @ rung.kernel
        assert (narrow == rung.inputs[0].astype(np.float64) @ rung.kernel).all()


@pytest.mark.parametrize(
    ("right", "line"),
    [
        ({}, "2^-20 in logits, all exact ties right"),
        ({14: 0.97}, "2^-12 in logits, all exact ties right"),
        ({4: 0.5}, "coarser than 2^-4 in logits, all exact ties right"),
        ({ladder.TIE: 0.25}, "2^-20 in logits, 75.0% of exact ties wrong"),
        ({22: 0.5}, "2^-20 in logits, all exact ties right"),
    ],
)
def test_the_headline_is_the_finest_margin_with_nothing_wrong_above(right, line):
    full = dict.fromkeys((ladder.TIE, *ladder.RUNGS), 1.0)
    assert ladder.resolution(full | right) == line


def test_close_refuses_what_lies_outside_and_measures_in_limits():
    evidence = Evidence()
    close("x", [1.0, 2.0], [1.0, 2.0 + 1e-6], evidence, relative=1e-6)
    assert 0.4 < evidence.error < 0.6
    with pytest.raises(Disagreement, match=r"x at \[1\]"):
        close("x", [1.0, 2.0], [1.0, 2.1], Evidence(), relative=1e-6)


@pytest.mark.parametrize("got", [[np.nan, 1.0], [np.inf, 1.0], [1.0]])
def test_close_refuses_not_a_number_infinities_and_other_shapes(got):
    with pytest.raises(Disagreement):
        close("x", got, [1.0, 1.0], Evidence(), relative=1e6, absolute=1e6)


def test_close_accepts_the_same_not_a_number():
    close("x", [np.nan, np.inf], [np.nan, np.inf], Evidence(), relative=0.0)


def test_same_shows_the_first_difference():
    with pytest.raises(Disagreement, match=r"x at \[1\]: got 3, expected 2 \(1 of 2 differ\)"):
        same("x", [1, 3], [1, 2])
