"""The chi-squared test: its tail is that of the tables, and it finds what it should and no more."""

from __future__ import annotations

import numpy as np
import pytest

from openmoe_conformance import chances
from openmoe_conformance.outcome import Disagreement, Evidence


@pytest.mark.parametrize(
    ("statistic", "degrees", "chance"),
    [
        (3.841458821, 1, 0.05),
        (5.991464547, 2, 0.05),
        (11.34486673, 3, 0.01),
        (18.30703805, 10, 0.05),
        (23.92812698, 1, 1e-6),
        (27.63102112, 2, 1e-6),
        (124.3421134, 100, 0.05),
    ],
)
def test_the_tail_is_that_of_the_tables(statistic, degrees, chance):
    assert chances.tail(statistic, degrees) == pytest.approx(chance, rel=2e-2)


@pytest.mark.parametrize("degrees", [1, 2, 7, 24, 35])
def test_the_tail_is_the_share_of_larger_sums_of_squares(degrees):
    drawn = (np.random.default_rng(degrees).normal(size=(200_000, degrees)) ** 2).sum(axis=1)
    for statistic in (0.5 * degrees, degrees, 1.5 * degrees):
        share = float((drawn > statistic).mean())
        assert chances.tail(float(statistic), degrees) == pytest.approx(share, abs=0.006)


@pytest.mark.parametrize("degrees", [1, 2, 9])
def test_no_statistic_is_certain(degrees):
    assert chances.tail(0.0, degrees) == 1.0


def test_fair_draws_are_judged_fair():
    generator = np.random.default_rng(3)
    for _ in range(300):
        counts = np.bincount(generator.integers(25, size=2000), minlength=25)
        chances.judge("draws", counts, [1.0] * 25, Evidence())


@pytest.mark.parametrize("share", [0.9, 1.15])
def test_a_share_that_is_off_is_found(share):
    wanted = np.full(25, 0.04)
    real = wanted * np.where(np.arange(25) == 7, share, 1)
    counts = np.random.default_rng(4).multinomial(400_000, real / real.sum())
    with pytest.raises(Disagreement, match="outcome 7"):
        chances.judge("draws", counts, wanted.tolist(), Evidence())


def test_shares_need_not_add_up_to_one():
    evidence = Evidence()
    chances.judge("draws", [10, 20, 30], [1.0, 2.0, 3.0], evidence)
    assert evidence.examples == 60
