"""The reference equals `naive.py`, the same rules written as plain loops over exact fractions.

Values lie on a dyadic grid of few steps: ties are frequent and exact, and every product and sum of
the router is exact in float32, so most comparisons need no tolerance.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import ml_dtypes
import naive
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy import ndarray

from openmoe_reference import dtypes, feed_forward, grouping, losses, moe, routing
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import ROUTERS, Decision, ExpertsChoice

often = settings(derandomize=True, deadline=None, database=None, max_examples=200)
sometimes = settings(often, max_examples=80)

WIDTH = 3  # D of hidden states
HIDDEN = 2  # F of their experts

# ---------------------------------------------------------------------------- values

sizes = st.fixed_dictionaries(
    {"G": st.integers(1, 3), "T": st.integers(1, 7), "E": st.integers(1, 5)}
)
booleans = st.booleans()


def grid(shape: tuple[int, ...], least: int, most: int) -> st.SearchStrategy[ndarray]:
    """Draw float32 eighths of the whole numbers `least` ... `most`."""
    whole = hnp.arrays(np.int8, shape, elements=st.integers(least, most))
    return whole.map(lambda drawn: drawn.astype(np.float32) / 8)


def masks(size: dict[str, int]) -> st.SearchStrategy[ndarray | None]:
    """Draw no mask or one [G, T]."""
    return st.none() | hnp.arrays(bool, (size["G"], size["T"]))


@st.composite
def decisions_to_take(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the arguments of `decide`; probabilities need not add up to 1."""
    size = draw(sizes)
    return {
        "probabilities": draw(grid((size["G"], size["T"], size["E"]), 0, 8)),
        "k": draw(st.integers(1, size["E"])),
        "capacity": draw(st.integers(1, 5)),
        "padding_mask": draw(masks(size)),
        "batch_prioritized": draw(booleans),
    }


@st.composite
def choices_of_experts(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the arguments of `experts_choose`."""
    size = draw(sizes)
    return {
        "probabilities": draw(grid((size["G"], size["T"], size["E"]), 0, 8)),
        "capacity": draw(st.integers(1, size["T"])),
        "padding_mask": draw(masks(size)),
    }


@st.composite
def decided(draw: st.DrawFn) -> tuple[Decision | ExpertsChoice, dict[str, Any]]:
    """Draw a record of one of the three routers and the arguments that it was decided from."""
    router = draw(st.sampled_from(ROUTERS))
    if router == "experts_choose":
        case = draw(choices_of_experts())
        return naive.experts_choose(**case), case | {"router": router}
    case = draw(decisions_to_take())
    rule = naive.decide if router == "masked" else naive.decide_scatter
    return rule(**case), case | {"router": router}


@st.composite
def hidden_states(draw: st.DrawFn, size: dict[str, int]) -> ndarray:
    """Draw inputs [G, T, D]; some rows are padding."""
    inputs = draw(grid((size["G"], size["T"], WIDTH), -8, 8))
    real = draw(hnp.arrays(bool, (size["G"], size["T"]), fill=st.just(True)))
    return inputs * real[..., None]


@st.composite
def weights(draw: st.DrawFn, experts: int) -> dict[str, ndarray]:
    """Draw the parameters of a layer."""
    return {
        "router": draw(grid((WIDTH, experts), -8, 8)),
        "wi_0": draw(grid((experts, WIDTH, 2 * HIDDEN), -8, 8)),
        "wi_1": draw(grid((experts, WIDTH, HIDDEN), -8, 8)),
        "wo": draw(grid((experts, HIDDEN, WIDTH), -8, 8)),
    }


@st.composite
def layers_to_run(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the arguments of `moe`, any router and any options."""
    size = draw(sizes)
    router = draw(st.sampled_from(ROUTERS))
    shape = size["G"], size["T"], WIDTH
    return {
        "inputs": draw(hidden_states(size)),
        "parameters": draw(weights(size["E"])),
        "k": draw(st.integers(1, size["E"])),
        "capacity": draw(st.integers(1, size["T"])),
        "router": router,
        "ignore_padding": draw(booleans),
        "batch_prioritized": draw(booleans),
        "noise": draw(st.none() | grid(shape, 6, 10)),
    }


def assert_same_record(got: Any, wanted: Any) -> None:
    """Require equal fields, bit for bit, of the same dtypes."""
    assert type(got) is type(wanted)
    for field in dataclasses.fields(wanted):
        ours, theirs = getattr(got, field.name), getattr(wanted, field.name)
        assert np.asarray(ours).dtype == np.asarray(theirs).dtype, field.name
        np.testing.assert_array_equal(ours, theirs, err_msg=field.name)


def assert_near(got: Any, wanted: Any, bound: float = 1e-6) -> None:
    """Require agreement within `bound`, relative and absolute; not-a-number equals itself."""
    np.testing.assert_allclose(
        np.asarray(got, np.float64), wanted, rtol=bound, atol=bound, equal_nan=True
    )


# ---------------------------------------------------------------------------- groups and capacity


@often
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 24))
def test_padded_shape_is_the_naive_one(batch, length, multiple):
    wanted = naive.padded_shape(batch, length, multiple=multiple)
    assert grouping.padded_shape(batch, length, multiple=multiple) == wanted


@often
@given(st.integers(1, 300), st.integers(1, 9), st.integers(1, 9))
def test_num_expert_replicas_is_the_naive_one(devices, experts, models):
    counts = {"num_expert_partitions": experts, "num_model_partitions": models}
    wanted = naive.num_expert_replicas(devices, **counts)
    assert grouping.num_expert_replicas(devices, **counts) == wanted


@often
@given(st.integers(1, 60), st.integers(1, 200), st.integers(1, 8), st.integers(1, 3))
def test_num_groups_is_the_naive_one(quotient, most, experts, replicas):
    tokens = quotient * experts * replicas
    counts = {
        "max_group_size": most,
        "num_experts": experts,
        "num_expert_replicas": replicas,
    }
    assert grouping.num_groups(tokens, **counts) == naive.num_groups(tokens, **counts)


@often
@given(st.integers(1, 300), st.integers(1, 200), st.integers(2, 8), st.integers(1, 3))
def test_num_groups_refuses_exactly_where_the_naive_search_finds_none(
    tokens, most, experts, replicas
):
    counts = {
        "max_group_size": most,
        "num_experts": experts,
        "num_expert_replicas": replicas,
    }
    try:
        wanted = naive.num_groups(tokens, **counts)
    except ValueError:
        with pytest.raises(RejectedError, match="num_tokens"):
            grouping.num_groups(tokens, **counts)
    else:
        assert grouping.num_groups(tokens, **counts) == wanted


@often
@given(
    st.integers(1, 5000),
    st.integers(1, 64),
    st.floats(0.01, 8) | st.sampled_from([1.0, 1.1, 1.25, 1.3, 2.0]),
    st.integers(1, 6),
)
def test_expert_capacity_is_the_naive_one(tokens, experts, factor, least):
    numbers = {
        "num_experts": experts,
        "capacity_factor": factor,
        "min_expert_capacity": least,
    }
    wanted = naive.expert_capacity(tokens, **numbers)
    got = grouping.expert_capacity(tokens, **numbers)
    assert (got, type(got)) == (wanted, int)


@often
@given(st.integers(0, 60), st.integers(0, 12), st.integers(1, 32))
def test_halves_of_a_slot_are_rounded_to_even(whole, exponent, experts):
    tokens = 2**exponent
    factor = (whole + 0.5) * experts / tokens  # exact: the divisor is a power of two
    assert factor * tokens / experts == whole + 0.5
    numbers = {"num_experts": experts, "capacity_factor": factor, "min_expert_capacity": 1}
    got = grouping.expert_capacity(tokens, **numbers)
    assert got == naive.expert_capacity(tokens, **numbers)
    assert got == max(whole + whole % 2, 1)


@st.composite
def batches(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a batch, its padded shape and a number of groups that divides it."""
    batch, length = draw(st.integers(1, 5)), draw(st.integers(1, 6))
    padded = naive.padded_shape(batch, length, multiple=draw(st.integers(1, 6)))
    tokens = padded[0] * padded[1]
    divisors = [divisor for divisor in range(1, tokens + 1) if tokens % divisor == 0]
    return {
        "inputs": draw(grid((batch, length, 2), -8, 8)),
        "padded": padded,
        "num_groups": draw(st.sampled_from(divisors)),
    }


@often
@given(batches())
def test_groups_are_the_naive_ones_and_come_back(case):
    grouped = grouping.to_groups(**case)
    np.testing.assert_array_equal(grouped, naive.to_groups(**case))
    places = {"padded": case["padded"], "shape": case["inputs"].shape[:2]}
    numbered = np.arange(grouped.size, dtype=np.float32).reshape(grouped.shape)
    for outputs in (grouped, numbered):
        np.testing.assert_array_equal(
            grouping.from_groups(outputs, **places), naive.from_groups(outputs, **places)
        )
    np.testing.assert_array_equal(grouping.from_groups(grouped, **places), case["inputs"])


# ---------------------------------------------------------------------------- probabilities


@st.composite
def router_inputs(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the arguments of `router_logits`."""
    size = draw(sizes)
    shape = size["G"], size["T"], WIDTH
    return {
        "inputs": draw(hidden_states(size)),
        "kernel": draw(grid((WIDTH, size["E"]), -8, 8)),
        "noise": draw(st.none() | grid(shape, 6, 10)),
    }


@often
@given(router_inputs(), st.sampled_from([np.float32, ml_dtypes.bfloat16, np.float64]))
def test_logits_on_the_grid_are_exactly_the_naive_ones(case, dtype):
    got = routing.router_logits(**case | {"inputs": case["inputs"].astype(dtype)})
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got, naive.router_logits(**case))


@sometimes
@given(st.integers(0, 2**16), sizes, st.integers(1, 24))
def test_logits_and_probabilities_of_normal_numbers_are_the_naive_ones(seed, size, width):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(size["G"], size["T"], width)).astype(np.float32)
    kernel = (generator.normal(size=(width, size["E"])) / width**0.5).astype(np.float32)
    noise = generator.uniform(0.9, 1.1, size=inputs.shape).astype(np.float32)
    for jitter in (None, noise):
        wanted = naive.router_logits(inputs, kernel, noise=jitter)
        logits = routing.router_logits(inputs, kernel, noise=jitter)
        assert_near(logits, wanted, 2e-6)
        assert_near(routing.softmax(logits), naive.softmax(logits))
        got = routing.probabilities(inputs, kernel, noise=jitter)
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, routing.softmax(logits))


@often
@given(st.data())
def test_softmax_is_the_naive_one(data):
    size = data.draw(sizes)
    shape = size["G"], size["T"], size["E"]
    logits = data.draw(grid(shape, -16, 16) | grid(shape, -100, 100).map(lambda x: x * 64))
    got = routing.softmax(logits)
    assert got.dtype == np.float32
    assert_near(got, naive.softmax(logits))
    wide = routing.softmax(logits.astype(np.float64))
    assert_near(wide, naive.softmax(logits), 1e-14)


@often
@given(st.data())
def test_padding_mask_is_the_naive_one(data):
    inputs = data.draw(hidden_states(data.draw(sizes)))
    sign = data.draw(st.sampled_from([1.0, -1.0]))  # a row of negative zeros is padding too
    inputs *= np.float32(sign)
    np.testing.assert_array_equal(routing.padding_mask(inputs), naive.padding_mask(inputs))


@pytest.mark.parametrize(
    ("smallest", "real"),
    [(2.0**-126, True), (-(2.0**-126), True), (1e-45, False), (-(2.0**-127), False)],
)
def test_the_smallest_normal_number_makes_a_token_real(smallest, real):
    inputs = np.zeros((1, 2, 3), np.float32)
    inputs[0, 1, 2] = smallest
    assert routing.padding_mask(inputs).tolist() == [[False, real]]
    np.testing.assert_array_equal(routing.padding_mask(inputs), naive.padding_mask(inputs))


def test_subnormal_probabilities_count_as_zero():
    probabilities = np.array([[[1, 1e-40, 2e-40, 0]]], np.float32)
    for rule in (routing.decide, naive.decide):
        assert rule(probabilities, k=2, capacity=2).expert_index.tolist() == [[[0, 1]]]
    assert routing.softmax(np.array([[[0, -90, -89, -80]]], np.float32))[0, 0, 1:3].tolist() == [
        0,
        0,
    ]


# ---------------------------------------------------------------------------- decisions


@often
@given(decisions_to_take())
def test_decide_is_the_naive_one(case):
    assert_same_record(routing.decide(**case), naive.decide(**case))


@often
@given(decisions_to_take())
def test_decide_scatter_is_the_naive_one(case):
    assert_same_record(routing.decide_scatter(**case), naive.decide_scatter(**case))


@often
@given(choices_of_experts())
def test_experts_choose_is_the_naive_one(case):
    assert_same_record(routing.experts_choose(**case), naive.experts_choose(**case))


@sometimes
@given(decisions_to_take())
def test_decisions_on_a_softmax_of_tied_logits_are_the_naive_ones(case):
    case["probabilities"] = routing.softmax(np.round(case["probabilities"] * 4))
    assert_same_record(routing.decide(**case), naive.decide(**case))
    assert_same_record(routing.decide_scatter(**case), naive.decide_scatter(**case))


@sometimes
@given(decisions_to_take())
def test_combine_weights_are_gates_of_kept_choices_and_zeros(case):
    decision = naive.decide(**case)
    weight = routing.combine_weights(decision)
    assert weight.dtype == np.float32
    for place, kept in np.ndenumerate(decision.kept):
        assert weight[place] == (decision.gate[place] if kept else 0)


# ---------------------------------------------------------------------------- the layer


@often
@given(decided(), st.sampled_from([np.float32, ml_dtypes.bfloat16]), st.data())
def test_dispatched_slots_are_the_naive_ones(record, dtype, data):
    decision, case = record
    groups, tokens, experts = case["probabilities"].shape
    inputs = data.draw(grid((groups, tokens, 2), -8, 8)).astype(dtype)
    token, _ = moe.slots(decision, num_experts=experts)
    got = moe.dispatch(inputs, token)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got, naive.dispatch(inputs, decision, num_experts=experts))


@often
@given(decided(), st.data())
def test_combined_outputs_are_the_naive_ones(record, data):
    decision, case = record
    groups, tokens, experts = case["probabilities"].shape
    outputs = data.draw(grid((groups, experts, case["capacity"], 2), -8, 8))
    token, weight = moe.slots(decision, num_experts=experts)
    got = moe.combine(outputs, token, weight, tokens=tokens)
    assert got.dtype == np.float32
    # Gates and outputs are eighths: each product and sum is exact.
    np.testing.assert_array_equal(
        got, naive.combine(outputs, decision, tokens_per_group=tokens).astype(np.float32)
    )


@sometimes
@given(st.data())
def test_gated_mlp_is_the_naive_expert(data):
    size = data.draw(sizes)
    inputs = data.draw(grid((size["E"], size["T"], WIDTH), -8, 8))
    expert = data.draw(weights(size["E"]))
    del expert["router"]
    wanted = naive.expert(inputs, **expert)
    # Every term's size, to which each rounding of the way is relative.
    scale = naive.expert(abs(inputs), **{name: abs(value) for name, value in expert.items()})
    for dtype, bound in (("float64", 1e-14), ("float32", 2e-6), ("bfloat16", 5e-2)):
        got = feed_forward.gated_mlp(inputs, **expert, dtype=dtype)
        assert got.dtype == dtypes.DTYPES[dtype]
        assert (abs(got.astype(np.float64) - wanted) <= bound * scale + 1e-30).all(), dtype


def naive_moe(
    probabilities: ndarray,
    logits: ndarray,
    *,
    inputs: ndarray,
    parameters: dict[str, ndarray],
    decision: Decision | ExpertsChoice,
    router: str,
    mask: ndarray | None,
) -> tuple[ndarray, dict[str, float]]:
    """Return the output and the metrics of a layer whose decision is taken, in naive parts."""
    tokens, experts = probabilities.shape[1:]
    slots = naive.dispatch(inputs, decision, num_experts=experts)
    expert = {name: parameters[name] for name in ("wi_0", "wi_1", "wo")}
    outputs = np.stack([naive.expert(group, **expert) for group in slots])
    sown = naive.metrics(
        decision,
        num_experts=experts,
        padding_mask=mask,
        scatter=router == "scatter",
        tokens_per_group=tokens,
    )
    sown["auxiliary_loss"] = 0.0
    if isinstance(decision, Decision):
        sown["auxiliary_loss"] = naive.balance_loss(
            probabilities, decision.expert_index, padding_mask=mask
        )
    sown["router_z_loss"] = naive.router_z_loss(logits, padding_mask=mask)
    return naive.combine(outputs, decision, tokens_per_group=tokens), sown


def naive_decision(
    probabilities: ndarray,
    *,
    router: str,
    k: int,
    capacity: int,
    mask: ndarray | None,
    batch_prioritized: bool,
) -> Decision | ExpertsChoice:
    """Return the naive decision of a router by its name."""
    if router == "experts_choose":
        return naive.experts_choose(probabilities, capacity=capacity, padding_mask=mask)
    rule = naive.decide if router == "masked" else naive.decide_scatter
    return rule(
        probabilities,
        k=k,
        capacity=capacity,
        padding_mask=mask,
        batch_prioritized=batch_prioritized,
    )


def assert_layer_is_naive(result: Any, case: dict[str, Any]) -> None:
    """Require the result of `moe(**case)`, in float32, to be the composition of naive parts."""
    inputs, kernel, noise = case["inputs"], case["parameters"]["router"], case["noise"]
    logits = naive.router_logits(inputs, kernel, noise=noise)
    # Decisions are a function of the float32 probabilities, compared within 1e-6 here: tokens whose
    # probabilities are equal as numbers may differ in the last bit, which orders them.
    probabilities = routing.probabilities(inputs, kernel, noise=noise)
    assert_near(probabilities, naive.softmax(logits))
    mask = naive.padding_mask(inputs) if case["ignore_padding"] else None
    options = {name: case[name] for name in ("k", "capacity", "router", "batch_prioritized")}
    decision = naive_decision(probabilities, mask=mask, **options)
    assert_same_record(result.decision, decision)
    output, sown = naive_moe(
        probabilities,
        logits,
        inputs=inputs,
        parameters=case["parameters"],
        decision=decision,
        router=case["router"],
        mask=mask,
    )
    assert result.output.dtype == np.float32
    assert_near(result.output, output, 1e-5)
    assert set(result.metrics) == set(sown)
    for name, value in sown.items():
        assert_near(result.metrics[name], value, 2e-6)


@often
@given(layers_to_run())
def test_the_layer_is_the_composition_of_naive_parts(case):
    assert_layer_is_naive(moe.moe(**case), case)


@sometimes
@given(layers_to_run())
def test_the_layer_in_float64_is_the_same_within_its_arithmetic(case):
    case |= {"inputs": case["inputs"].astype(np.float64), "expert_dtype": "float64"}
    result = moe.moe(**case)
    inputs, kernel, noise = case["inputs"], case["parameters"]["router"], case["noise"]
    logits = naive.router_logits(inputs, kernel, noise=noise)
    probabilities = naive.softmax(logits)
    mask = naive.padding_mask(inputs) if case["ignore_padding"] else None
    output, sown = naive_moe(
        probabilities,
        logits,
        inputs=inputs,
        parameters=case["parameters"],
        decision=result.decision,
        router=case["router"],
        mask=mask,
    )
    assert result.output.dtype == np.float64
    assert_near(result.output, output, 1e-12)
    for name, value in sown.items():
        assert_near(result.metrics[name], value, 1e-12)


@sometimes
@given(layers_to_run())
def test_outputs_of_experts_are_rounded_to_bfloat16_inputs_and_combined_in_float32(case):
    # Every number of the grid is a bfloat16, so only the experts' outputs are rounded.
    case["inputs"] = case["inputs"].astype(ml_dtypes.bfloat16)
    result = moe.moe(**case)
    assert result.output.dtype == np.float32
    decision, experts = result.decision, case["parameters"]["router"].shape[1]
    slots = naive.dispatch(case["inputs"], decision, num_experts=experts)
    expert = {name: case["parameters"][name] for name in ("wi_0", "wi_1", "wo")}
    outputs = np.stack([naive.expert(group, **expert) for group in slots])
    tokens = case["inputs"].shape[1]
    rounded = outputs.astype(np.float32).astype(ml_dtypes.bfloat16)
    wanted = naive.combine(rounded, decision, tokens_per_group=tokens)
    # A float32 expert next to the middle of two bfloat16 numbers may round to the other one.
    sizes_of_terms = naive.combine(abs(outputs), decision, tokens_per_group=tokens)
    error = abs(result.output - wanted)
    assert (error <= 2**-7 * sizes_of_terms + 1e-6).all()
    assert np.count_nonzero(error > 1e-5 * sizes_of_terms + 1e-6) <= error.size // 20 + 1


@sometimes
@given(layers_to_run(), st.data())
def test_a_forced_decision_is_used_with_gates_of_the_layer(case, data):
    groups, tokens, _ = case["inputs"].shape
    experts = case["parameters"]["router"].shape[1]
    elsewhere = data.draw(grid((groups, tokens, experts), 0, 8))
    mask = naive.padding_mask(case["inputs"]) if case["ignore_padding"] else None
    options = {name: case[name] for name in ("k", "capacity", "router", "batch_prioritized")}
    forced = naive_decision(elsewhere, mask=mask, **options)
    result = moe.moe(**case, decision=forced)
    weight = routing.probabilities(
        case["inputs"], case["parameters"]["router"], noise=case["noise"]
    )
    gate = np.zeros(forced.gate.shape, np.float32)
    for g, first, second in np.ndindex(gate.shape):
        if isinstance(forced, ExpertsChoice):
            t, e = forced.token_index[g, first, second], first
        else:
            t, e = first, forced.expert_index[g, first, second]
        if e >= 0 and (mask is None or mask[g, t]):
            gate[g, first, second] = weight[g, t, e]
    wanted = dataclasses.replace(forced, gate=gate)
    assert_same_record(result.decision, wanted)
    output, sown = naive_moe(
        weight,
        naive.router_logits(case["inputs"], case["parameters"]["router"], noise=case["noise"]),
        inputs=case["inputs"],
        parameters=case["parameters"],
        decision=wanted,
        router=case["router"],
        mask=mask,
    )
    assert_near(result.output, output, 1e-5)
    for name, value in sown.items():
        assert_near(result.metrics[name], value, 2e-6)


@st.composite
def batches_to_run(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the arguments of `moe_layer`."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 6))
    experts = draw(st.integers(1, 4))
    return {
        "inputs": draw(hidden_states({"G": batch, "T": length})),
        "parameters": draw(weights(experts)),
        "training": draw(booleans),
        "k": draw(st.integers(1, experts)),
        "train_capacity_factor": draw(st.sampled_from([0.5, 1.25, 1.5])),
        "eval_capacity_factor": draw(st.sampled_from([0.25, 2.0, 2.5])),
        "min_expert_capacity": draw(st.integers(1, 2)),
        "max_group_size": draw(st.integers(1, 12)),
        "num_expert_replicas": draw(st.integers(1, 2)),
        "router": draw(st.sampled_from(ROUTERS[:2])),
        "ignore_padding": draw(booleans),
        "batch_prioritized": draw(booleans),
    }


@sometimes
@given(batches_to_run())
def test_the_layer_of_a_batch_pads_groups_and_cuts_as_the_naive_one(case):
    batch, length, _ = case["inputs"].shape
    experts, replicas = case["parameters"]["router"].shape[1], case["num_expert_replicas"]
    padded = naive.padded_shape(batch, length, multiple=experts * replicas)
    groups = naive.num_groups(
        padded[0] * padded[1],
        max_group_size=case["max_group_size"],
        num_experts=experts,
        num_expert_replicas=replicas,
    )
    factor = case["train_capacity_factor"] if case["training"] else case["eval_capacity_factor"]
    capacity = naive.expert_capacity(
        padded[0] * padded[1] // groups,
        num_experts=experts,
        capacity_factor=factor,
        min_expert_capacity=case["min_expert_capacity"],
    )
    inner = {
        "inputs": naive.to_groups(case["inputs"], padded=padded, num_groups=groups),
        "capacity": capacity,
        "noise": None,
    }
    for name in ("parameters", "k", "router", "ignore_padding", "batch_prioritized"):
        inner[name] = case[name]
    result = moe.moe_layer(**case)
    grouped = moe.moe(**inner)
    assert_layer_is_naive(grouped, inner)
    np.testing.assert_array_equal(
        result.output, naive.from_groups(grouped.output, padded=padded, shape=(batch, length))
    )
    assert_same_record(result.decision, grouped.decision)
    np.testing.assert_equal(dict(result.metrics), dict(grouped.metrics))


# ---------------------------------------------------------------------------- losses and metrics


@often
@given(decisions_to_take())
def test_balance_loss_is_the_naive_one(case):
    probabilities, mask = case["probabilities"], case["padding_mask"]
    chosen = naive.decide(**case).expert_index
    for given_mask in (None, mask):
        got = losses.balance_loss(probabilities, chosen, padding_mask=given_mask)
        assert_near(got, naive.balance_loss(probabilities, chosen, padding_mask=given_mask), 2e-6)


@often
@given(st.data())
def test_router_z_loss_is_the_naive_one(data):
    size = data.draw(sizes)
    logits = data.draw(grid((size["G"], size["T"], size["E"]), -100, 100))
    mask = data.draw(masks(size))
    got = losses.router_z_loss(logits, padding_mask=mask)
    assert got.dtype == np.float32
    assert_near(got, naive.router_z_loss(logits, padding_mask=mask), 2e-6)


@often
@given(decided(), st.data())
def test_metrics_are_the_naive_ones(record, data):
    decision, case = record
    groups, tokens, experts = case["probabilities"].shape
    logits = data.draw(grid((groups, tokens, experts), -24, 24))
    scatter, mask = case["router"] == "scatter", case["padding_mask"]
    got = losses.metrics(
        logits, case["probabilities"], decision, padding_mask=mask, scatter=scatter
    )
    wanted = naive.metrics(
        decision,
        num_experts=experts,
        padding_mask=mask,
        scatter=scatter,
        tokens_per_group=tokens,
    )
    for name, value in wanted.items():
        assert_near(got[name], value)
    assert_near(got["router_z_loss"], naive.router_z_loss(logits, padding_mask=mask), 2e-6)
    balance = 0.0
    if isinstance(decision, Decision):
        balance = naive.balance_loss(
            case["probabilities"], decision.expert_index, padding_mask=mask
        )
    assert_near(got["auxiliary_loss"], balance, 2e-6)
