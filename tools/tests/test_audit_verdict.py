"""The verdict: what chance is not called, what was planted is recognised, and intervals cover. Spec: AUDIT-28.

Routing is drawn with NumPy, so that what is true of it is known. OPENMOE_EXHAUSTIVE draws ten times as many.
"""

from __future__ import annotations

import os
from math import exp, lgamma, log, log1p

import drawn_audits as drawn_of
import numpy as np
import pytest

from openmoe_reference.audit_inference import held_out_gain, jackknife_interval, student_quantile
from openmoe_tools.audit.measures import claims, intervals, verdict
from openmoe_tools.audit.measures.drops import ends
from openmoe_tools.audit.measures.view import KEYS, View

MANY = 200 if os.environ.get("OPENMOE_EXHAUSTIVE") else 20
COVERED = 2000 if os.environ.get("OPENMOE_EXHAUSTIVE") else 300
SURE = 0.999


def most(number, chance):
    """Return the least count that so many trials have at most, with the probability SURE."""
    below = 0.0
    for count in range(number + 1):
        ways = lgamma(number + 1) - lgamma(count + 1) - lgamma(number - count + 1)
        below += exp(ways + count * log(chance) + (number - count) * log1p(-chance))
        if below >= SURE:
            return count
    return number


def decided(made):
    found = verdict.decide(View(made))
    return {one["id"]: one for one in found["lines"]}, found


def answers(made):
    lines, found = decided(made)
    return {name: one["answer"] for name, one in lines.items()}, found["driver"]


# ---- what chance is called, and what is planted ------------------------------------------------


def test_routing_by_chance_is_not_called_anything():
    wrong, tested = [], 0
    for seed in range(MANY):
        view = View(drawn_of.audit(drawn_of.draw(seed, layers=2, documents=48)))
        tested = claims.number(view)
        made = [claims.of_key(view, key, layer) for key in KEYS for layer in range(2)]
        made += [claims.of_drops(view, rule, 1) for rule in range(2)]
        lines = {one["id"]: one for one in verdict.decide(view)["lines"]}
        said = [
            one["answer"] in {"holds", "in part"}
            for name, one in lines.items()
            if name not in {"load_balance", "nothing_odd"}
        ]
        wrong.append(any(one is not None and one.made for one in made) or any(said))
    assert tested == 2 * len(KEYS) + 2
    assert sum(wrong) <= (0 if MANY == 20 else most(MANY, claims.RATE))


@pytest.mark.parametrize("router", KEYS)
def test_what_decides_the_expert_is_recognised(router):
    found, driver = answers(drawn_of.audit(drawn_of.draw(7, router, layers=3)))
    assert driver == router
    assert found[router.replace(" ", "_")] == "holds"
    others = [key.replace(" ", "_") for key in KEYS if key != router]
    assert all(found[one] != "holds" for one in others)
    assert (found["context_independent"] == "holds") == (router == "token id")
    assert (found["slices_apart"] == "holds") == (router == "slice")


def test_a_weaker_preference_holds_in_part():
    found, driver = answers(drawn_of.audit(drawn_of.draw(7, "token id", strength=0.4)))
    assert (found["token_id"], found["context_independent"]) == ("in part", "in part")
    assert driver == "token id"


def test_token_ids_do_not_make_slices_routed_apart():
    drawn = drawn_of.draw(7, "token id", documents=96, strength=1.0)
    # Each slice has ids of its own half, so that it is far from the whole, and ids tell why.
    half = 2 * drawn.slices[:, None] % 4
    token = 4 * (drawn.token // 4) + half + drawn.token % 2
    token[:, 0] = 0
    expert = drawn.expert.copy()
    expert[..., 0] = (token % 8)[..., None]
    expert[..., 1] = (expert[..., 0] + 1) % 8
    drawn = drawn_of.Drawn(**(vars(drawn) | {"token": token, "expert": expert}))
    lines, _ = decided(drawn_of.audit(drawn))
    line = lines["slices_apart"]
    assert line["answer"] == "does not hold"
    assert line["numbers"]["distance"]["low"] > 0.2
    assert line["numbers"]["share not explained"]["value"] < 0.05


@pytest.mark.parametrize(
    ("late", "expected"), [(0.5, "holds"), (0.0, "not decided"), (-0.1, "not decided")]
)
def test_late_drops_are_recognised_under_both_rules(late, expected):
    drawn = drawn_of.audit(drawn_of.draw(5, late=late, whole_rows=False))
    lines, _ = decided(drawn)
    line = lines["drop_towards_the_end"]
    if late < 0:  # fewer at the end: the upper end says so
        expected = "does not hold"
    assert line["answer"] == expected
    assert "under t5x: " in line["statement"]
    assert "under torch_port: " in line["statement"]
    difference = line["numbers"]["t5x"]
    assert difference["low"] < difference["value"] < difference["high"]
    first, last = (line["numbers"][f"t5x, {one} quarter"]["value"] for one in ("first", "last"))
    even = ends(View(drawn), 0, 0).chance
    assert difference["value"] == pytest.approx(last - first - even.difference, abs=1e-5)


def test_few_more_drops_at_the_end_hold_in_part():
    drawn = drawn_of.draw(5, documents=400)
    rng = np.random.default_rng(1)
    position = np.arange(32)[:, None, None]
    made = rng.random(drawn.dropped.shape) < 0.5 + 0.05 * (position >= 24)
    drawn = drawn_of.Drawn(**(vars(drawn) | {"dropped": made}))
    assert answers(drawn_of.audit(drawn))[0]["drop_towards_the_end"] == "in part"


def test_nothing_dropped_is_not_towards_the_end():
    drawn = drawn_of.draw(5)
    drawn = drawn_of.Drawn(**(vars(drawn) | {"dropped": np.zeros_like(drawn.dropped)}))
    assert answers(drawn_of.audit(drawn))[0]["drop_towards_the_end"] == "does not hold"


# ---- the rules' edges --------------------------------------------------------------------------


def claim(low, value, high):
    return claims.Claim(value, low, high)


def test_answers_follow_from_the_ends():
    assert claims.answer(claim(0.51, 0.6, 0.7)) == "holds"
    assert claims.answer(claim(0.5, 0.6, 0.7)) == "in part"
    assert claims.answer(claim(0.001, 0.6, 0.7)) == "in part"
    assert claims.answer(claim(0.0, 0.02, 0.04)) == "does not hold"
    assert claims.answer(claim(-0.1, 0.02, 0.05)) == "not decided"
    assert claims.answer(None) == "not decided"


def test_a_report_divides_its_rate_among_its_claims():
    view = View(drawn_of.audit(drawn_of.draw(1, "token id", layers=3)))
    assert claims.number(view) == 11
    assert claims.level(view) == 1 - 0.01 / 11
    one = View(drawn_of.audit(drawn_of.draw(1, slices=1, layers=3)))
    assert claims.number(one) == 8  # a single slice is no key
    untold = View(drawn_of.audit(drawn_of.draw(1, layers=3), recorded=("tokens", "documents")))
    assert claims.number(untold) == 6


def test_intervals_at_another_level_are_those_of_the_reference():
    view = View(drawn_of.audit(drawn_of.draw(3, "token id")))
    gain, by_fold = view.gain("token id", 0), view.by_fold("token id", 0)
    left_out = [held_out_gain(by_fold[np.arange(8) != fold]).gain for fold in range(8)]
    for level in (0.5, 0.95, 0.999, claims.level(view)):
        direct = jackknife_interval(gain.gain, np.array(left_out), level=level)
        assert intervals.at_level(gain, level) == pytest.approx(tuple(direct), abs=1e-9)
    # Tables of Student's distribution, seven degrees of freedom: one-sided 0.975, 0.999, 0.9995.
    for chance, quantile in ((0.975, 2.3646), (0.999, 4.7853), (0.9995, 5.4079)):
        assert student_quantile(chance, 7) == pytest.approx(quantile, abs=1e-4)
        low, _ = intervals.at_level(gain, 2 * chance - 1)
        assert (gain.gain - low) / (gain.gain - gain.low) == pytest.approx(
            quantile / 2.3646, abs=1e-4
        )


def test_too_few_documents_decide_nothing():
    drawn = drawn_of.draw(3, "token id", documents=4)
    lines, found = decided(drawn_of.audit(drawn))
    assert found["driver"] == "not decided"
    for name in ("token_id", "position", "slice", "context_independent"):
        assert lines[name]["answer"] == "not decided"
    assert "folds" in lines["token_id"]["statement"]
    assert any("Audit more documents" in note for note in found["notes"])


def test_one_expert_for_all_leaves_nothing_to_tell():
    drawn = drawn_of.draw(3)
    expert = np.broadcast_to(np.array([2, 5]), drawn.expert.shape)
    drawn = drawn_of.Drawn(**(vars(drawn) | {"expert": expert}))
    lines, found = decided(drawn_of.audit(drawn))
    assert "one expert has every first choice" in lines["token_id"]["statement"]
    assert found["driver"] == "not decided"
    assert lines["load_balance"]["answer"] == "does not hold"
    assert "6 dead experts (0, 1, 3, 4, 6, 7)" in lines["nothing_odd"]["statement"]


def test_the_verdict_is_about_the_third_layer_or_the_last_of_fewer():
    for layers, asked in ((1, "1"), (2, "3"), (3, "5"), (5, "5")):
        drawn = drawn_of.draw(3, "token id", layers=layers)
        # Only the layer asked about is decided by token ids.
        other = drawn_of.draw(4, layers=layers)
        expert = other.expert.copy()
        expert[:, :, min(2, layers - 1)] = drawn.expert[:, :, min(2, layers - 1)]
        drawn = drawn_of.Drawn(**(vars(drawn) | {"expert": expert}))
        lines, _ = decided(drawn_of.audit(drawn))
        assert lines["token_id"]["answer"] == "holds"
        assert f"In layer {asked} " in lines["token_id"]["statement"]
        assert f"claimed in 1 of {layers} layers" in lines["token_id"]["statement"]


# ---- lines that describe -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shares", "expected", "reached"),
    [
        ({10: 0.3, 200: 0.9}, "holds", 200),
        ({10: 0.3, 150: 0.6, 201: 0.9}, "in part", 201),
        ({10: 0.1, 200: 0.2, 900: 0.7}, "does not hold", None),
        ({201: 0.9}, "not decided", 201),
        ({}, "not recorded", None),
    ],
)
def test_early_learning_is_looked_at_by_a_fifth_of_the_steps(shares, expected, reached):
    drawn = drawn_of.draw(3, "token id")
    series = [(f"step {n}", "step", n, drawn_of.mixed(drawn, share)) for n, share in shares.items()]
    made = drawn_of.with_pairs(drawn_of.audit(drawn), drawn, series)
    line = decided(made)[0]["early_learning"]
    assert line["answer"] == expected
    if reached:
        assert line["numbers"]["first step of 0.8"]["value"] == reached
    if expected in {"holds", "in part", "does not hold"}:
        way = line["numbers"]["way from chance"]
        assert way["low"] < way["value"] < way["high"]
        step = max(n for n in shares if n <= 200)
        assert way["value"] == pytest.approx(shares[step], abs=0.05)


def test_load_is_balanced_up_to_twice_the_mean_without_a_dead_expert():
    assert answers(drawn_of.audit(drawn_of.draw(1)))[0]["load_balance"] == "holds"
    drawn = drawn_of.draw(1)
    expert = drawn.expert.copy()
    half = np.random.default_rng(0).random(expert.shape[:-1]) < 0.9
    expert[half & (expert[..., 1] != 3), 0] = 3
    drawn = drawn_of.Drawn(**(vars(drawn) | {"expert": expert}))
    assert answers(drawn_of.audit(drawn))[0]["load_balance"] == "in part"


def test_what_is_odd_is_listed():
    drawn = drawn_of.draw(1)
    made = drawn_of.audit(drawn)
    assert answers(made)[0]["nothing_odd"] == "holds"
    made.tables.arrays["margin"][0, 0, 0, 10] = 3
    made.tables.arrays["margin"][0, 0, 0, 200] = 97
    made.manifest["model"]["certificate"] = {"status": "none", "file": None}
    lines, found = decided(made)
    assert lines["nothing_odd"]["answer"] == "does not hold"
    assert lines["nothing_odd"]["statement"] == (
        "layer 1: 3.0 % of tokens are near-ties; no certificate proves the conversion of the weights."
    )
    assert found["certificate"].startswith("No conversion certificate")
    made.manifest["model"]["certificate"] = {"status": "of another model", "file": "x.json"}
    assert (
        decided(made)[1]["certificate"]
        == "The conversion certificate is of another model (x.json)."
    )


# ---- coverage ----------------------------------------------------------------------------------


def within(covered, level=0.95):
    """Return whether so many of COVERED intervals is what the level promises, to chance."""
    missed = COVERED - covered
    return COVERED - most(COVERED, level) <= missed <= most(COVERED, 1 - level)


def test_intervals_of_the_gain_cover_the_truth():
    """Documents differ in how far their tokens obey the planted table; the mean of that is known."""
    vocabulary, experts, documents, each = 12, 4, 64, 40
    rng = np.random.default_rng(0)
    weight = 1 / np.arange(1, vocabulary + 1)
    weight /= weight.sum()
    planted = np.arange(vocabulary) % experts
    mean, even = 0.6, 1 / experts
    accuracy = mean + (1 - mean) * even
    baseline = mean * np.bincount(planted, weight).max() + (1 - mean) * even
    truth = (accuracy - baseline) / (1 - baseline)
    covered = 0
    for _ in range(COVERED):
        token = rng.choice(vocabulary, size=(documents, each), p=weight)
        obeys = rng.random(token.shape) < rng.uniform(0.4, 0.8, size=(documents, 1))
        expert = np.where(obeys, planted[token], rng.integers(experts, size=token.shape))
        fold = rng.integers(8, size=documents)[:, None]
        counts = np.zeros((8, vocabulary, experts), np.int64)
        np.add.at(counts, (fold, token, expert), 1)
        found = held_out_gain(counts)
        covered += found.low <= truth <= found.high
    assert within(covered), covered


def test_intervals_of_the_drops_cover_the_truth():
    """Documents differ in how many of their tokens are dropped; the mean difference is known."""
    documents, each = 96, 20
    drawn = drawn_of.draw(0, documents=documents, rules=("t5x",), slices=1)
    rng = np.random.default_rng(1)
    covered = 0
    view = View(drawn_of.audit(drawn))
    table, replicates = view.arrays["drop"], view.arrays["replicate_drop"]
    for _ in range(COVERED):
        table[...], replicates[...] = 0, 0
        lengths = rng.integers(each // 2, each + 1, size=documents)
        chance = rng.uniform(0, 0.4, size=documents)
        early = rng.binomial(lengths, chance)
        late = rng.binomial(each, chance + 0.3)
        weights = rng.poisson(1, size=(100, documents))
        for place, tokens, lost in ((0, lengths, early), (31, np.full(documents, each), late)):
            table[0, 0, place, 0, [0, 3]] = tokens.sum(), lost.sum()
            replicates[:, 0, 0, place, 0, 0] = weights @ tokens
            replicates[:, 0, 0, place, 0, 3] = weights @ lost
        found = ends(view, 0, 0)
        low, high = intervals.bootstrapped(np.array(found.difference), found.replicates, least=-1.0)
        covered += low <= 0.3 <= high
    assert within(covered), covered
