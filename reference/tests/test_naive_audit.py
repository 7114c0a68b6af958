"""The reference's routing audits equal `naive_audit.py`, the same rules as loops over lists.

Whole numbers are equal; real ones within 1e-12, relative. What a number is said to mean, as the floor,
the debiased spread and the weights of documents, is held against simulated text besides.
"""

from __future__ import annotations

import itertools
import math
from typing import Any

import naive_audit
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_reference import audit, audit_drops, audit_inference, audit_measures, routing
from openmoe_spec.errors import RejectedError

often = settings(derandomize=True, deadline=None, database=None, max_examples=200)
sometimes = settings(often, max_examples=60)

RELATIVE = 1e-12
ROUNDING = 1e-15
"""What is left of numbers near 1 that cancel."""


def near(got: Any, wanted: Any, *, absolute: float = ROUNDING) -> None:
    """Require agreement within 1e-12, relative; where there is no number there is none."""
    wanted = np.asarray(wanted, np.float64)
    assert np.shape(got) == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=RELATIVE, atol=absolute, equal_nan=True)


def whole(got: Any, wanted: Any, dtype: type = np.int64) -> None:
    """Require equal whole numbers of a dtype."""
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, np.asarray(wanted, dtype), strict=True)


# ---------------------------------------------------------------------------- values

kinds = st.sampled_from([np.int64, np.int32, np.uint16])
seeds = st.integers(0, 2**32 - 1)


def tokens(experts: int, k: int) -> st.SearchStrategy[list[int]]:
    """Draw the experts of one token, best first."""
    if experts <= 8:
        return st.permutations(range(experts)).map(lambda order: order[:k])
    one = st.integers(0, experts - 1)
    return st.lists(one, min_size=k, max_size=k, unique=True)


@st.composite
def sizes(draw: st.DrawFn) -> tuple[int, int]:
    """Draw E, now and then beyond a byte, and K: often 2, all experts among them."""
    experts = draw(st.sampled_from([2, 3, 4, 5, 8, 1, 300]))
    k = draw(st.sampled_from([2, 1, 3, experts]).filter(lambda k: k <= min(experts, 8)))
    return experts, k


@st.composite
def traces(draw: st.DrawFn, *, most: int = 12, times: tuple[int, ...] = (1,)) -> dict[str, Any]:
    """Draw the arguments of `count_choices` as lists; some keys are empty, some tokens not counted."""
    experts, k = draw(sizes())
    num_keys = draw(st.integers(1, 4))
    token = st.tuples(st.integers(-1, num_keys - 1), tokens(experts, k), st.sampled_from(times))
    drawn = draw(st.lists(token, min_size=1, max_size=most))
    told = [(key, chosen) for key, chosen, number in drawn for _ in range(number)]
    return {
        "keys": [key for key, _ in told],
        "expert_index": [chosen for _, chosen in told],
        "num_keys": num_keys,
        "num_experts": experts,
    }


def arrays(trace: dict[str, Any]) -> dict[str, Any]:
    """Return a trace as the reference takes it."""
    return trace | {name: np.array(trace[name]) for name in ("keys", "expert_index")}


@st.composite
def counts(draw: st.DrawFn) -> list[list[list[int]]]:
    """Draw counts [keys, E, K] of few or many tokens."""
    return naive_audit.count_choices(**draw(traces(times=(1, 1, 2, 7, 65))))


@st.composite
def shares_of(draw: st.DrawFn, experts: int, k: int) -> list[float]:
    """Draw shares of a whole text: none is above 1 / K."""
    text = draw(st.lists(tokens(experts, k), min_size=1, max_size=8))
    told = naive_audit.count_choices([0] * len(text), text, num_keys=1, num_experts=experts)
    return naive_audit.choice_shares(told)[0]


def tables(most: int, *, keys: int = 4, experts: int = 5) -> st.SearchStrategy[list[list[int]]]:
    """Draw whole numbers [keys, E] with many zeros and ties."""
    number = st.sampled_from([0, 0, 1, 2]) | st.integers(0, most)
    return st.tuples(st.integers(1, keys), st.integers(1, experts)).flatmap(
        lambda shape: st.lists(
            st.lists(number, min_size=shape[1], max_size=shape[1]),
            min_size=shape[0],
            max_size=shape[0],
        )
    )


# ---------------------------------------------------------------------------- counting


@often
@given(st.integers(1, 4), st.integers(1, 7), st.data())
def test_counted_tokens_are_the_naive_ones(rows, length, data):
    row = st.lists(st.sampled_from([0, 0, 5, 60000]), min_size=length, max_size=length)
    ids = data.draw(st.lists(row, min_size=rows, max_size=rows))
    got = audit.counted_tokens(np.array(ids, np.int32))
    whole(got, naive_audit.counted_tokens(ids), np.bool_)


@often
@given(traces(), kinds)
def test_counted_choices_are_the_naive_ones(trace, kind):
    given_arrays = arrays(trace)
    given_arrays["expert_index"] = given_arrays["expert_index"].astype(kind)
    whole(audit.count_choices(**given_arrays), naive_audit.count_choices(**trace))


@sometimes
@given(traces(most=20), st.data())
def test_counts_of_the_parts_of_a_text_add_up_to_those_of_the_text(trace, data):
    text = arrays(trace)
    n = len(trace["keys"])
    part = np.array(data.draw(st.lists(st.integers(0, 3), min_size=n, max_size=n)))
    order = np.array(data.draw(st.permutations(range(n))))
    in_parts = np.zeros_like(audit.count_choices(**text))
    for number in data.draw(st.permutations(range(4))):
        own = order[part[order] == number]
        if len(own):
            one = text | {name: text[name][own] for name in ("keys", "expert_index")}
            in_parts += audit.count_choices(**one)
    whole(in_parts, audit.count_choices(**text))


# ---------------------------------------------------------------------------- shares and spreads


@often
@given(counts(), kinds)
def test_shares_and_spreads_are_the_naive_ones(told, kind):
    table = np.array(told, kind)
    near(audit.choice_shares(table), naive_audit.choice_shares(told))
    near(audit.share_spread(table), naive_audit.share_spread(told))
    np.testing.assert_array_equal(
        audit.tokens_of(table), [naive_audit.tokens_of(key) for key in told]
    )
    layers = np.stack([table, table], axis=1)  # [keys, L, E, K]: any axes may stand before
    near(audit.share_spread(layers)[:, 1], naive_audit.share_spread(told))


@often
@given(counts(), st.sampled_from([None, 0, 1, 2, 64, 65, 66]))
def test_the_mean_spread_is_the_naive_one(told, least):
    options = {} if least is None else {"least": least}
    near(audit.mean_spread(np.array(told), **options), naive_audit.mean_spread(told, **options))


@often
@given(st.integers(1, 400), st.data())
def test_the_largest_spread_is_the_naive_one_and_that_of_fixed_experts(experts, data):
    k = data.draw(st.integers(1, experts))
    largest = audit.largest_spread(k, experts)
    near(largest, naive_audit.largest_spread(k, experts))
    fixed = np.zeros((experts, k), np.int64)
    fixed[np.arange(k), np.arange(k)] = 9
    near(audit.share_spread(fixed), largest)


@often
@given(sizes(), st.lists(st.integers(0, 300), min_size=1, max_size=5), st.data())
def test_the_floor_is_the_naive_one(size, numbers, data):
    experts, k = size
    shares = data.draw(st.none() | shares_of(experts, k))
    options = {"k": k, "num_experts": experts}
    got = audit.spread_floor(
        np.array(numbers), **options, shares=None if shares is None else np.array(shares)
    )
    # K / E of K = E, and K times a share of 1 / K, may miss 1 by a rounding
    near(got**2, np.square(naive_audit.spread_floor(numbers, **options, shares=shares)))


@often
@given(counts(), st.data())
def test_the_debiased_spread_and_the_specialisation_are_the_naive_ones(told, data):
    experts, k = len(told[0]), len(told[0][0])
    shares = data.draw(st.none() | shares_of(experts, k))
    around = {} if shares is None else {"shares": np.array(shares)}
    got = audit.debiased_spread(np.array(told), **around)
    wanted = naive_audit.debiased_spread(told, shares=shares)
    # Two means that may be equal are subtracted: the square is right, its root less so near 0.
    near(got**2, np.square(wanted))
    if k < experts:
        part = audit.specialisation(np.array(told), **around)
        near(part * naive_audit.largest_spread(k, experts), got)
        assert np.nanmax(part, initial=0) <= 1 + RELATIVE or shares is not None
    else:
        with pytest.raises(RejectedError, match="AUDIT-27"):
            audit.specialisation(np.array(told), **around)


# ---------------------------------------------------------------------------- tokens and experts


@often
@given(
    counts(),
    st.sampled_from(["count", "precision", "lift"]),
    st.sampled_from([{}, {"number": 1}, {"number": 2}, {"number": 7}]),
)
def test_top_tokens_are_the_naive_ones(told, by, options):
    got = audit_measures.top_tokens(np.array(told), by=by, **options)
    whole(got, naive_audit.top_tokens(told, by=by, **options))


@often
@given(counts(), st.integers(0, 70))
def test_top_tokens_by_precision_have_a_least_number(told, least):
    options = {"by": "precision", "least": least, "number": 3}
    got = audit_measures.top_tokens(np.array(told), **options)
    whole(got, naive_audit.top_tokens(told, **options))


@often
@given(st.integers(1, 9), st.integers(1, 19), st.integers(1, 3), st.data())
def test_top_tokens_with_the_same_lift_stand_by_id(load, rest, times, data):
    # Of load/(load + rest) for an expert: ids that choose it as the text does have a lift of 1.
    same = [
        [[times * load * n], [times * rest * n]] for n in data.draw(st.permutations(range(1, 7)))
    ]
    got = audit_measures.top_tokens(np.array(same), by="lift")
    whole(got, [[*range(6), -1, -1, -1, -1]] * 2)


@often
@given(counts(), st.integers(0, 70), st.booleans())
def test_vocabulary_specialisation_is_the_naive_one(told, least, weighted):
    options = {"least": least, "weighted": weighted}
    got = audit_measures.vocabulary_specialisation(np.array(told), **options)
    near(got, naive_audit.vocabulary_specialisation(told, **options))


# ---------------------------------------------------------------------------- choices side by side


@often
@given(traces(), st.data())
def test_saturation_is_the_naive_one(trace, data):
    first, experts = trace["expert_index"], trace["num_experts"]
    token = tokens(experts, len(first[0]))
    second = data.draw(st.lists(token, min_size=len(first), max_size=len(first)))
    got = audit_measures.saturation(np.array(first), np.array(second))
    near(got, naive_audit.saturation(first, second))
    near(audit_measures.saturation(np.array(first), np.array(first)[:, ::-1]), 1.0)


@often
@given(traces())
def test_coactivation_is_the_naive_one(trace):
    chosen, experts = trace["expert_index"], trace["num_experts"]
    got = audit_measures.coactivation(np.array(chosen), num_experts=experts)
    wanted = naive_audit.coactivation(chosen, num_experts=experts)
    whole(got, wanted)
    n = [sum(expert in one for one in chosen) for expert in range(experts)]
    shares = audit_measures.coactivation_shares(got, np.array(n))
    near(shares, naive_audit.coactivation_shares(wanted, n))
    near(shares.sum(axis=1)[np.array(n) > 0], np.full(np.count_nonzero(n), len(chosen[0]) - 1.0))


@often
@given(traces(most=20), st.data())
def test_repetition_is_the_naive_one(trace, data):
    chosen = trace["expert_index"]
    row = data.draw(st.lists(st.integers(0, 2), min_size=len(chosen), max_size=len(chosen)))
    for rows in (row, sorted(row)):
        got = audit_measures.repetition(np.array(chosen), np.array(rows))
        whole(got, naive_audit.repetition(chosen, rows))


@often
@given(st.integers(1, 400), st.data())
def test_repetition_by_chance_is_the_naive_one(experts, data):
    k = data.draw(st.integers(1, min(experts, 12)) | st.integers(1, experts))
    got = audit_measures.repetition_by_chance(k, experts)
    near(got, naive_audit.repetition_by_chance(k, experts))


@often
@given(st.lists(st.sampled_from([0, 1]) | st.integers(0, 10**6), min_size=2, max_size=40), kinds)
def test_load_statistics_are_the_naive_ones(loads, kind):
    loads = [load % (np.iinfo(kind).max // 40) for load in loads]
    assume(sum(loads) > 0)
    got = audit_measures.load_statistics(np.array(loads, kind))
    wanted = naive_audit.load_statistics(loads)
    assert list(got) == list(wanted)
    for name, number in wanted.items():
        near(got[name], number)


@pytest.mark.parametrize("experts", [1, 2, 32])
def test_even_loads_and_a_single_used_expert_are_the_ends_of_every_statistic(experts):
    even = audit_measures.load_statistics(np.full(experts, 7))
    one = audit_measures.load_statistics(np.eye(experts, dtype=np.int64)[-1])
    near(list(even.values()), [0, 1, 1, 1, experts, 0, 0])
    left = experts - 1
    worst = [
        math.sqrt(left),
        experts,
        experts == 1,
        experts == 1,
        1,
        left / experts,
        left / experts,
    ]
    near(list(one.values()), worst)


# ---------------------------------------------------------------------------- margins


def test_the_thresholds_of_margins_are_the_naive_ones():
    wanted = [float(one) for one in naive_audit.margin_thresholds()]
    np.testing.assert_array_equal(audit_measures.MARGIN_THRESHOLDS, np.array(wanted, np.float32))


@often
@given(st.lists(st.integers(0, 254), min_size=1, max_size=9), st.integers(-2, 2), st.data())
def test_codes_of_margins_are_the_naive_ones(places, steps, data):
    at = [float(naive_audit.margin_thresholds()[place]) for place in places]
    margins = np.array(at, np.float32)
    for _ in range(abs(steps)):
        margins = np.nextafter(margins, np.float32(math.copysign(math.inf, steps)))
    free = data.draw(st.lists(st.floats(0, width=32, allow_infinity=False), max_size=3))
    margins = np.concatenate([margins, np.array(free, np.float32)])
    whole(
        audit_measures.margin_codes(margins),
        naive_audit.margin_codes(margins.tolist()),
        np.uint8,
    )


@often
@given(st.dictionaries(st.integers(0, 255), st.integers(1, 10**6), min_size=1), st.data())
def test_the_share_of_near_ties_is_the_naive_one(cells, data):
    histogram = [cells.get(code, 0) for code in range(256)]
    got = audit_measures.near_tie_share(np.array(histogram))
    near(got, naive_audit.near_tie_share(histogram))
    at = data.draw(st.integers(0, 254))
    tolerance = float(naive_audit.margin_thresholds()[at])
    got = audit_measures.near_tie_share(np.array(histogram), tolerance=tolerance)
    near(got, naive_audit.near_tie_share(histogram, tolerance=tolerance))


@sometimes
@given(seeds)
def test_the_share_of_near_ties_is_that_of_the_margins_below_the_tolerance(seed):
    exponents = np.random.default_rng(seed).uniform(-20, 4, 500)
    margins = np.append(np.exp2(exponents), [2.0**-7, 0]).astype(np.float32)
    codes = np.bincount(audit_measures.margin_codes(margins), minlength=256)
    near(audit_measures.near_tie_share(codes), (margins < 2**-7).mean())


# ---------------------------------------------------------------------------- pairs of checkpoints


@often
@given(counts(), st.data())
def test_the_divergence_of_tables_is_the_naive_one(first, data):
    experts, k = len(first[0]), len(first[0][0])
    token = st.tuples(st.integers(0, len(first) - 1), tokens(experts, k))
    drawn = data.draw(st.lists(token, min_size=1, max_size=10))
    second = naive_audit.count_choices(
        [key for key, _ in drawn],
        [chosen for _, chosen in drawn],
        num_keys=len(first),
        num_experts=experts,
    )
    both = [
        naive_audit.tokens_of(a) * naive_audit.tokens_of(b)
        for a, b in zip(first, second, strict=True)
    ]
    assume(any(both))
    got = audit_measures.table_divergence(np.array(first), np.array(second))
    near(got, naive_audit.table_divergence(first, second), absolute=1e-14)
    back = audit_measures.table_divergence(np.array(second), np.array(first))
    near(back, got, absolute=1e-14)


@sometimes
@given(counts(), st.integers(1, 5))
def test_equal_tables_do_not_diverge_and_disjoint_ones_by_a_bit(told, times):
    table = np.array(told)
    assume(table.any())
    near(audit_measures.table_divergence(table, times * table), 0.0)
    nothing = np.zeros_like(table)
    first = np.concatenate([table, nothing], axis=1)  # twice as many experts
    second = np.concatenate([nothing, times * table], axis=1)
    near(audit_measures.table_divergence(first, second), 1.0)


@st.composite
def pairs_of_tables(draw: st.DrawFn) -> tuple[list[list[int]], list[list[int]]]:
    """Draw two tables [V, E]: often one is the other in another order, somewhat changed."""
    first = draw(tables(5, experts=6))
    experts = len(first[0])
    order = draw(st.permutations(range(experts)))
    second = [[row[place] for place in order] for row in first]
    changed = st.tuples(
        st.integers(0, len(first) - 1), st.integers(0, experts - 1), st.integers(0, 5)
    )
    for row, column, number in draw(st.lists(changed, max_size=4)):
        second[row][column] = number
    return first, second


@sometimes
@given(pairs_of_tables())
def test_the_relabelling_is_the_best_of_all(pair):
    first, second = pair
    experts = len(first[0])
    table = audit_measures.overlap(np.array(first), np.array(second))
    whole(table, naive_audit.overlap(first, second))
    got = audit_measures.relabelling(np.array(first), np.array(second))
    assert got.dtype == np.int64
    best = naive_audit.largest_overlaps(first, second)
    assert got.tolist() in best
    if list(range(experts)) in best:
        assert got.tolist() == list(range(experts))


def test_a_relabelling_of_many_experts_is_found():
    generator = np.random.default_rng(7)
    first = generator.integers(0, 1000, (40, 16))
    order = generator.permutation(16)
    np.testing.assert_array_equal(
        audit_measures.relabelling(first, first[:, order])[order], range(16)
    )


# ---------------------------------------------------------------------------- drops


@often
@given(st.integers(1, 4), st.integers(1, 20), st.integers(1, 3), seeds)
def test_counts_of_drops_are_the_naive_ones(k, n, num_keys, seed):
    generator = np.random.default_rng(seed)
    dropped = generator.random((n, k)) < generator.random()
    keys = generator.integers(-1, num_keys, n)
    got = audit_drops.drop_counts(dropped, keys, num_keys=num_keys)
    whole(got, naive_audit.drop_counts(dropped.tolist(), keys.tolist(), num_keys=num_keys))


@often
@given(st.integers(1, 3), st.integers(1, 20), st.sampled_from([np.float32, np.float64]), seeds)
def test_the_lost_share_of_the_gates_is_the_naive_one(k, n, kind, seed):
    generator = np.random.default_rng(seed)
    gate = generator.random((n, k)).astype(kind)
    dropped = generator.random((n, k)) < 0.5
    got = audit_drops.lost_gate_share(gate, dropped)
    near(got, naive_audit.lost_gate_share(gate.tolist(), dropped.tolist()))


@st.composite
def replays(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the arguments of `replay`: equal gates, and tokens that have no choice, among them."""
    experts, k = draw(sizes())
    groups, length = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    token = tokens(experts, k) if draw(st.booleans()) else tokens(experts, k) | st.just([-1] * k)
    group = st.lists(token, min_size=length, max_size=length)
    priority = draw(st.sampled_from(["choices", "tokens", "gates"]))
    gates = st.lists(st.sampled_from([0.25, 0.5, 0.75, 1.0]), min_size=k, max_size=k)
    gates_of_group = st.lists(gates, min_size=length, max_size=length)
    return {
        "expert_index": draw(st.lists(group, min_size=groups, max_size=groups)),
        "num_experts": experts,
        "capacity": draw(st.integers(1, 4)),
        "priority": priority,
        "gate": draw(st.lists(gates_of_group, min_size=groups, max_size=groups))
        if priority == "gates"
        else None,
    }


@often
@given(replays(), st.sampled_from([np.float32, np.float64]))
def test_a_replay_is_the_naive_one(case, kind):
    gate = None if case["gate"] is None else np.array(case["gate"], kind)
    got = audit_drops.replay(
        **case | {"expert_index": np.array(case["expert_index"]), "gate": gate}
    )
    whole(got, naive_audit.replay(**case), np.bool_)


def test_a_replay_orders_gates_that_only_float64_tells_apart():
    gate = np.array([[[0.5], [0.5 + 2**-40], [0.5]]])
    one = {"num_experts": 1, "capacity": 1, "priority": "gates", "gate": gate}
    got = audit_drops.replay(np.zeros((1, 3, 1), np.int32), **one)
    assert got.reshape(-1).tolist() == [True, False, True]


@sometimes
@given(st.integers(1, 4), st.integers(1, 12), st.booleans(), seeds)
def test_a_replay_under_the_own_capacity_drops_what_the_router_dropped(k, capacity, gates, seed):
    chances = np.random.default_rng(seed).random((2, 16, 4), np.float32)
    decision = routing.decide(chances, k=k, capacity=capacity, batch_prioritized=gates)
    got = audit_drops.replay(
        decision.expert_index,
        num_experts=4,
        capacity=capacity,
        priority="gates" if gates else "choices",
        gate=decision.gate if gates else None,
    )
    np.testing.assert_array_equal(got, ~decision.kept)


# ---------------------------------------------------------------------------- predictors


@often
@given(tables(1000))
def test_information_is_the_naive_one(told):
    assume(any(map(sum, told)))
    got = audit_inference.information(np.array(told))
    near(got, naive_audit.information(told), absolute=1e-13)


@often
@given(tables(9), st.data())
def test_held_out_hits_are_the_naive_ones(train, data):
    shape = (len(train), len(train[0]))
    test = data.draw(tables(9).filter(lambda t: (len(t), len(t[0])) == shape) | st.just(train))
    got = audit_inference.held_out_hits(np.array(train), np.array(test))
    whole(got, naive_audit.held_out_hits(train, test))


@often
@given(st.integers(3, 8), st.integers(1, 5), st.integers(2, 5), seeds)
def test_the_held_out_gain_is_the_naive_one(folds, keys, experts, seed):
    generator = np.random.default_rng(seed)
    chances = generator.dirichlet([0.5] * experts, keys)
    told = [
        [generator.multinomial(generator.integers(0, 9), one).tolist() for one in chances]
        for _ in range(folds)
    ]
    for rest in (told, *(told[:place] + told[place + 1 :] for place in range(folds))):
        hits = np.array(naive_audit.hits_by_fold(rest)).sum(axis=0)
        if hits[0] == hits[2]:  # the baseline is never wrong
            with pytest.raises(RejectedError, match="by_fold"):
                audit_inference.held_out_gain(np.array(told))
            return
    got = audit_inference.held_out_gain(np.array(told))
    # A jackknife's error is a difference of numbers near 1.
    near(got, naive_audit.held_out_gain(told), absolute=1e-13)
    level = generator.uniform(0.5, 0.999)
    got = audit_inference.held_out_gain(np.array(told), level=level)
    near(got, naive_audit.held_out_gain(told, level=level), absolute=1e-12)


@often
@given(traces(most=20), st.data())
def test_what_tokens_explain_is_the_naive_one(trace, data):
    n = len(trace["keys"])
    trace["keys"] = [max(key, 0) for key in trace["keys"]]
    inside = data.draw(st.lists(st.booleans(), min_size=n, max_size=n).filter(any))
    text = naive_audit.count_choices(**trace)
    part = {
        name: list(itertools.compress(trace[name], inside)) for name in ("keys", "expert_index")
    }
    own = naive_audit.count_choices(**trace | part)
    arguments = ([naive_audit.tokens_of(key) for key in own], text, naive_audit.together(own))
    got = audit_inference.explained_by_tokens(*map(np.array, arguments))
    near(got, naive_audit.explained_by_tokens(*arguments))


# ---------------------------------------------------------------------------- documents


@often
@given(
    st.text(st.characters(codec="utf-8"), min_size=1),
    st.integers(2, 20),
    st.integers(1, 40),
    st.integers(0, 2**40),
)
def test_folds_and_weights_of_documents_are_the_naive_ones(name, folds, replicates, seed):
    assert audit_inference.document_fold(name) == naive_audit.document_fold(name)
    got = audit_inference.document_fold(name, folds=folds)
    assert (got, type(got)) == (naive_audit.document_fold(name, folds=folds), int)
    options = {"replicates": replicates, "seed": seed}
    got = audit_inference.document_weights(name, **options)
    whole(got, naive_audit.document_weights(name, **options))


def test_the_thresholds_of_weights_are_the_naive_ones():
    assert audit_inference._POISSON.tolist() == naive_audit.poisson_thresholds()


NAMES = [f"slice/{number}" for number in range(3000)]


@pytest.fixture(scope="module")
def drawn() -> ndarray:
    """Return the weights of many documents [documents, replicates]."""
    return np.stack([audit_inference.document_weights(name) for name in NAMES])


def test_weights_are_poisson_with_mean_and_variance_1(drawn):
    n = drawn.size
    assert abs(drawn.mean() - 1) < 5 / math.sqrt(n)
    # The variance of (w - 1)^2 of a Poisson number is 3.
    assert abs(((drawn - 1) ** 2).mean() - 1) < 5 * math.sqrt(3 / n)
    shares = np.bincount(drawn.reshape(-1), minlength=13)[:5] / n
    wanted = np.array([math.exp(-1) / math.factorial(count) for count in range(5)])
    assert (np.abs(shares - wanted) < 5 * np.sqrt(wanted / n)).all()


def test_weights_are_independent_between_replicates_documents_and_seeds(drawn):
    n, replicates = drawn.shape
    products = np.abs(np.corrcoef(drawn, rowvar=False) * math.sqrt(n))[
        np.triu_indices(replicates, 1)
    ]
    # Standard normal each: the mean square is 1, and the largest of 4950 is below 5.5.
    assert abs((products**2).mean() - 1) < 5 * math.sqrt(2 / len(products))
    assert products.max() < 5.5
    neighbours = np.corrcoef(drawn[:-1].reshape(-1), drawn[1:].reshape(-1))[0, 1]
    assert abs(neighbours) < 5 / math.sqrt(drawn.size)
    other = np.stack([audit_inference.document_weights(name, seed=1) for name in NAMES])
    assert abs(np.corrcoef(drawn.reshape(-1), other.reshape(-1))[0, 1]) < 5 / math.sqrt(drawn.size)


def test_fewer_replicates_are_the_first_of_more(drawn):
    for number in (1, 7, 8, 9):
        got = audit_inference.document_weights(NAMES[5], replicates=number)
        np.testing.assert_array_equal(got, drawn[5, :number])


@pytest.mark.parametrize("folds", [2, 7, 8])
def test_folds_are_even_and_independent_of_weights(drawn, folds):
    found = np.array([audit_inference.document_fold(name, folds=folds) for name in NAMES])
    counted = np.bincount(found, minlength=folds)
    assert len(counted) == folds
    expected = len(NAMES) / folds
    squares = ((counted - expected) ** 2 / expected).sum()
    assert squares < folds - 1 + 5 * math.sqrt(2 * (folds - 1))
    deviation = drawn[found == 0].mean() - 1
    assert abs(deviation) < 5 / math.sqrt(counted[0] * drawn.shape[1])


# ---------------------------------------------------------------------------- intervals


@often
@given(
    st.lists(st.floats(-4, 4), min_size=2, max_size=12), st.floats(-4, 4), st.floats(0.01, 0.9999)
)
def test_intervals_are_the_naive_ones(values, estimate, level):
    replicates = np.array(values)
    for ours, theirs in (
        (audit_inference.bootstrap_interval, naive_audit.bootstrap_interval),
        (audit_inference.jackknife_interval, naive_audit.jackknife_interval),
    ):
        low, high = ours(estimate, replicates, level=level)
        wanted = theirs(estimate, values, level=level)
        # (1 + level) / 2 is rounded: of Student's distribution with one degree that is 1e-12.
        scale = max(1.0, abs(wanted[1] - wanted[0]))
        np.testing.assert_allclose([low, high], wanted, rtol=0, atol=2e-12 * scale)
        assert ours(estimate, replicates) == ours(estimate, replicates, level=0.95)


@pytest.mark.parametrize("degrees", [1, 2, 3, 4, 7, 8, 30, 99])
def test_quantiles_of_student_are_the_naive_ones(degrees):
    for level in (0.01, 0.5, 0.9, 0.95, 0.99, 0.9995):
        wanted = naive_audit.student_quantile(level, degrees)
        got = audit_inference.student_quantile((1 + level) / 2, degrees)
        np.testing.assert_allclose(got, wanted, rtol=1e-11)
        below = audit_inference.student_quantile((1 - level) / 2, degrees)
        np.testing.assert_allclose(below, -wanted, rtol=1e-11)


def test_quantiles_of_student_are_those_of_printed_tables():
    printed = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 30: 2.042}
    for degrees, quantile in printed.items():
        assert round(audit_inference.student_quantile(0.975, degrees), 3) == quantile
    assert abs(audit_inference.student_quantile(0.5, 3)) < 1e-12


@sometimes
@given(st.lists(st.floats(-1, 1), min_size=2, max_size=10))
def test_the_jackknife_of_a_mean_has_the_interval_of_a_mean(values):
    array, n = np.array(values), len(values)
    left_out = (array.sum() - array) / (n - 1)
    half = naive_audit.student_quantile(0.95, n - 1) * array.std(ddof=1) / math.sqrt(n)
    got = audit_inference.jackknife_interval(float(array.mean()), left_out)
    near(got, [array.mean() - half, array.mean() + half], absolute=1e-13)


# ---------------------------------------------------------------------------- what is meant


def routed_by(chances: ndarray, shape: tuple[int, ...], generator: np.random.Generator) -> ndarray:
    """Return counts [*shape[:-1], E, K] of shape[-1] tokens that take e with chances[e], which make K.

    Systematic sampling: K points, one apart, on the experts' chances laid end to end.
    """
    k = round(chances.sum())
    ends = np.cumsum(chances)
    points = generator.random((*shape, 1)) + np.arange(k)
    experts = np.minimum(np.searchsorted(ends, points, side="right"), len(chances) - 1)
    taken = experts[..., None, :] == np.arange(len(chances))[:, None]
    return taken.sum(axis=-3)


EVEN = np.full(8, 2 / 8)
UNEVEN = np.array([0.9, 0.4, 0.3, 0.2, 0.1, 0.05, 0.05, 0.0])


@pytest.mark.parametrize("chances", [EVEN, UNEVEN, np.array([0.7, 0.2, 0.1])], ids=str)
def test_the_floor_is_the_spread_of_text_that_is_routed_by_chance(chances):
    generator = np.random.default_rng(22)
    k, experts = round(chances.sum()), len(chances)
    shares = chances / k
    for n in (1, 3, 40):
        table = routed_by(chances, (8000, n), generator)
        squares = ((audit.choice_shares(table) - shares) ** 2).mean(axis=-1)
        floor = audit.spread_floor(np.array([n]), k=k, num_experts=experts, shares=shares)[0]
        error = squares.std() / math.sqrt(len(squares))
        assert abs(squares.mean() - floor**2) < 5 * error + 1e-15
        if chances is EVEN:
            even = audit.spread_floor(np.array([n]), k=k, num_experts=experts)[0]
            near(even, floor)
            assert abs((audit.share_spread(table) ** 2).mean() - even**2) < 5 * error + 1e-15


@pytest.mark.parametrize("n", [2, 5, 60])
@pytest.mark.parametrize("centre", [None, EVEN / 2, UNEVEN / 2], ids=["1/E", "even", "uneven"])
def test_the_debiased_spread_is_unbiased_in_its_square(n, centre):
    generator = np.random.default_rng(7)
    # Far from the centre: nothing is cut at 0 but of the fewest tokens, where the square is asked.
    chances = np.array([0.0, 0.0, 0.0, 0.0, 0.02, 0.08, 0.9, 1.0])
    table = routed_by(chances, (4000, n), generator)
    true = ((chances / 2 - (1 / 8 if centre is None else centre)) ** 2).mean()
    squares = audit.debiased_spread(table, shares=centre) ** 2
    assert (squares > 0).all()
    assert abs(squares.mean() - true) < 5 * squares.std() / math.sqrt(len(squares))
    biased = ((audit.choice_shares(table) - (1 / 8 if centre is None else centre)) ** 2).mean()
    assert biased > true + (0 if n == 60 else 5 * squares.std() / math.sqrt(len(squares)))


def test_the_square_is_unbiased_before_it_is_cut():
    table = routed_by(EVEN, (3000, 10), np.random.default_rng(1))
    squares = np.array([float(naive_audit.debiased_square(key.tolist())) for key in table])
    assert abs(squares.mean()) < 5 * squares.std() / math.sqrt(len(squares))
    got = audit.debiased_spread(table)
    assert (squares < 0).any()
    assert not got[squares < 0].any()
    near(got[squares > 0] ** 2, squares[squares > 0])


def test_an_interval_of_the_gain_covers_the_gain_of_a_text_without_end():
    generator = np.random.default_rng(3)
    # A key that tells much: 6 keys, each with an expert that 0.6 of its tokens take.
    chances = np.full((6, 4), 0.4 / 3)
    chances[np.arange(6), np.arange(6) % 4] = 0.6
    overall = chances.mean(axis=0).max()
    true = (0.6 - overall) / (1 - overall)
    covered = 0
    for _ in range(300):
        told = np.stack([[generator.multinomial(60, one) for one in chances] for _ in range(8)])
        _, _, _, low, high = audit_inference.held_out_gain(told)
        covered += low <= true <= high
    assert 0.9 < covered / 300 < 0.99


def test_a_key_that_tells_nothing_has_no_gain():
    generator = np.random.default_rng(4)
    claimed = 0
    for _ in range(200):
        told = np.stack([generator.multinomial(20, [0.4, 0.3, 0.2, 0.1], 30) for _ in range(8)])
        claimed += audit_inference.held_out_gain(told, level=0.98).low > 0
    assert claimed <= 2  # one side of 0.98: 1 in 100


def test_information_of_independent_choices_is_nothing_and_of_the_key_itself_everything():
    generator = np.random.default_rng(5)
    told = np.stack([generator.multinomial(400, [[0.4, 0.3, 0.2, 0.1]] * 10) for _ in range(300)])
    found = np.array([audit_inference.information(one).information for one in told])
    assert abs(found.mean()) < 5 * found.std() / math.sqrt(len(found))
    same = audit_inference.information(np.diag([3, 4, 5]))
    near(same.information, same.entropy)
