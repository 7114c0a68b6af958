"""Models that were planted are recognised for what they are, and chance for chance. Spec: AUDIT-28."""

from __future__ import annotations

import math
import os

import numpy as np
import planted_routers as planted
import pytest

SEEDS = 200 if os.environ.get("OPENMOE_EXHAUSTIVE") else 20
RATE = 0.01
"""Reports of a hundred in which routing by chance may be called specialised."""


@pytest.mark.parametrize(
    ("model", "driver", "line"),
    [
        (planted.by_token, "token id", "token_id"),
        (planted.by_position, "position", "position"),
        (planted.by_slice, "slice", "slice"),
    ],
)
def test_a_router_that_goes_by_one_thing_is_recognised(model, driver, line):
    for seed in range(2):
        found, lines = planted.verdict(model(seed), seed)
        assert found["driver"] == driver
        assert lines[line]["answer"] == "holds", lines[line]
        others = {"token_id", "position", "slice"} - {line}
        assert all(lines[one]["answer"] != "holds" for one in others), lines
        context = "holds" if driver == "token id" else "in part does not hold not decided"
        assert lines["context_independent"]["answer"] in context


def test_the_planted_routers_choose_what_they_are_planted_for():
    for model, key in ((planted.by_position, "position"), (planted.by_slice, "slice")):
        tables = planted.audited(model(0), 0, 9).tables.arrays
        first = tables[key].sum(axis=0)[:, 0, :, 0]  # [keys, E]
        counted = first[first.sum(axis=1) > 0]
        assert (counted.max(axis=1) >= 0.9 * counted.sum(axis=1)).mean() > 0.9, counted
        assert (counted.argmax(axis=1) != counted.argmax(axis=1)[0]).any()


def test_drops_towards_the_end_are_recognised_and_others_are_none():
    _, lines = planted.verdict(planted.late_dropping(0), 0)
    line = lines["drop_towards_the_end"]
    assert line["answer"] == "holds", line
    assert line["numbers"]["t5x"]["low"] > 0, line


def test_what_queues_alone_drop_towards_the_end_is_no_finding():
    """Later tokens lose more of any routing: a model drops towards the end where it does more than that."""
    for seed in range(3):
        _, lines = planted.verdict(planted.ByChance(seed), seed, 12)
        line = lines["drop_towards_the_end"]
        assert line["answer"] in {"not decided", "does not hold"}, line
        shown = line["numbers"]
        assert shown["t5x, last quarter"]["value"] > 10 * shown["t5x, first quarter"]["value"]
        assert shown["t5x"]["low"] < 0 < shown["t5x"]["high"]


def test_routing_by_chance_is_called_nothing():
    """Over the seeds, false claims are as rare as is stated: a binomial's 99.9 % quantile at most."""
    wrong = []
    for seed in range(SEEDS):
        found, lines = planted.verdict(planted.ByChance(seed), seed, 12)
        claimed = [
            one
            for one in (
                "token_id",
                "position",
                "slice",
                "context_independent",
                "drop_towards_the_end",
            )
            if lines[one]["answer"] in {"holds", "in part"}
        ]
        if claimed or found["driver"] != "none":
            wrong.append((seed, claimed, found["driver"]))
    chances = [math.comb(SEEDS, n) * RATE**n * (1 - RATE) ** (SEEDS - n) for n in range(SEEDS + 1)]
    most = int(np.searchsorted(np.cumsum(chances), 0.999))
    assert len(wrong) <= most, wrong
