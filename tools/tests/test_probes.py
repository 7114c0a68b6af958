"""Rows of ids that models are compared with, and what they exercise."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from tiny_models import ONE_CHOICE, TINY

from openmoe_spec.config import BASE, LARGE, PUBLISHED
from openmoe_spec.parameters import sparse_layers
from openmoe_spec.records import Decision
from openmoe_tools.checkpoints.function import probes


def test_drawn_rows_go_on_until_experts_are_reached_or_the_budget_is_spent():
    layers = sparse_layers(TINY.num_layers, TINY.num_moe_layers)
    numbers, calls = iter(range(100)), []

    def decide(ids):
        calls.append(ids)
        one, groups = next(numbers), 8
        shape = (groups, ids.size // groups, 1)
        expert = np.full(shape, one // 2 % 8, np.int32)  # every second batch has nothing new
        decision = Decision(expert, expert * 0.5, expert * 0, expert >= 0, 4)
        return dict.fromkeys(layers, decision)

    given = probes.probes(TINY)
    made = probes.extend(given, decide, TINY, budget=10**6)
    assert len(calls) == 15  # the eighth expert comes with the fifteenth batch
    assert len(made) == 3 + 6
    assert made[:3] == given
    numbers, calls = iter(range(100)), []
    spent = sum(one.ids.size for one in given)
    assert len(probes.extend(given, decide, TINY, budget=spent + 3 * 256 + 255)) == 3 + 1
    assert len(calls) == 3 + 3


@pytest.mark.parametrize("configuration", [TINY, ONE_CHOICE, BASE, replace(TINY, max_length=9)])
def test_rows_begin_with_the_start_token_and_hold_it_nowhere_else(configuration):
    made, again = probes.probes(configuration), probes.probes(configuration)
    assert len(made) == 3
    for one, other in zip(made, again, strict=True):
        assert np.array_equal(one.ids, other.ids)
        assert one.ids.dtype == np.int32
        assert (one.ids[:, 0] == 0).all()
        assert (one.ids[:, 1:] > 0).all()
        assert one.ids.max() < configuration.vocabulary_size
    assert made[0].ids.shape == (1, min(configuration.max_length, 2048))
    coverage = probes.cover([(one.ids, {}) for one in made], configuration)
    assert all(used >= min(size, 63) for used, size in coverage.regions.values())


def test_released_sizes_have_umt5s_regions_and_large_models_no_long_row():
    for one in PUBLISHED.values():
        regions = probes.regions(one.vocabulary_size)
        assert regions["extra ids"] == (256_000, 256_300)
        assert regions["padding rows"] == (256_300, 256_384)
        assert sum(stop - start for start, stop in regions.values()) == 256_383
    made = probes.probes(LARGE)
    assert max(one.ids.shape[1] for one in made) == 64
    lacking = probes.cover([(one.ids, {}) for one in made], LARGE).lacking()
    assert "the longest row has 64 positions, the model takes 2048" in lacking
