"""The reference's losses, Adafactor and decoding equal the naive ones, written from the text."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import naive_decoding
import naive_model
import naive_training
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy import ndarray

from openmoe_conformance import model_cases
from openmoe_reference import (
    cross_entropy,
    decoding,
    model,
    model_gradients,
    optimizer,
    part_gradients,
    sampling,
)
from openmoe_spec.config import Configuration
from openmoe_spec.records import LOSSES, Cache

often = settings(derandomize=True, deadline=None, database=None, max_examples=100)
sometimes = settings(often, max_examples=25)

seeds = st.integers(0, 2**16)
KINDS = st.sampled_from([np.float64, np.float32])
BOUNDS = {np.float64: 1e-11, np.float32: 5e-6}


def assert_near(got: Any, wanted: Any, relative: float, absolute: float | None = None) -> None:
    """Require agreement within a relative and an absolute bound (the same unless it is given)."""
    np.testing.assert_allclose(
        np.asarray(got, np.float64),
        np.asarray(wanted, np.float64),
        rtol=relative,
        atol=relative if absolute is None else absolute,
    )


# ---------------------------------------------------------------------------- cross entropy


@st.composite
def texts(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the arguments of `cross_entropy`."""
    batch, length, vocabulary = draw(st.tuples(*[st.integers(1, 4)] * 2, st.integers(2, 7)))
    generator = np.random.default_rng(draw(seeds))
    size = draw(st.sampled_from([1, 30, 200]))
    weights = draw(
        st.none()
        | hnp.arrays(np.float32, (batch, length), elements=st.sampled_from([0.0, 0.25, 1.0, 3.0]))
        | hnp.arrays(np.int32, (batch, length), elements=st.integers(0, 1))
    )
    return {
        "logits": generator.normal(size=(batch, length, vocabulary)) * size,
        "targets": generator.integers(0, vocabulary, (batch, length)).astype(np.int32),
        "weights": weights,
        "normalizing_factor": draw(st.none() | st.sampled_from([0.5, 7.0])),
        "z_loss": draw(st.sampled_from([0.0, 1e-4, 0.01, 0.5])),
        "label_smoothing": draw(st.sampled_from([0.0, 0.001, 0.1, 0.9])),
    }


@often
@given(texts(), KINDS)
def test_cross_entropy_is_the_naive_one(case, kind):
    case["logits"] = case["logits"].astype(kind)
    wanted = naive_training.cross_entropy(**case)
    got = cross_entropy.cross_entropy(**case)._asdict()
    assert set(got) == set(wanted)
    # Every term's size, to which each rounding is relative: smoothing makes terms cancel.
    terms = case | {"label_smoothing": 0.0, "logits": abs(case["logits"])}
    size = 1 + abs(naive_training.cross_entropy(**terms)["loss"]) + abs(wanted["loss"])
    for name, value in wanted.items():
        assert_near(got[name], value, BOUNDS[kind], BOUNDS[kind] * size)


@often
@given(texts(), KINDS)
def test_the_gradient_of_cross_entropy_is_the_naive_one(case, kind):
    case["logits"] = case["logits"].astype(kind)
    got = part_gradients.cross_entropy_gradient(**case)
    assert_near(got, naive_training.cross_entropy_gradient(**case), 1e-11)


@st.composite
def batches(draw: st.DrawFn) -> dict[str, ndarray]:
    """Draw a batch of any kind, with or without weights, whose every segment weighs something."""
    case = draw(model_cases.models())
    batch = model_cases.batch(case)
    if draw(st.booleans()):
        batch.pop("decoder_loss_weights", None)
    elif draw(st.booleans()):
        share = np.random.default_rng(draw(seeds)).uniform(0.1, 2, (case["rows"], case["length"]))
        batch["decoder_loss_weights"] = (share * (batch["decoder_target_tokens"] > 0)).astype(
            np.float32
        )
    return batch


@often
@given(batches(), st.sampled_from(cross_entropy.NORMALIZERS))
def test_normalisers_are_the_naive_ones(batch, name):
    factor, weights = naive_training.normalizer(name, batch)
    got, got_weights = cross_entropy.normalizer(name, batch)
    assert_near(got, factor, 1e-6)
    assert_near(got_weights, weights, 1e-6)


@st.composite
def whole_models(draw: st.DrawFn, **more: Any) -> tuple[Configuration, Any, Any, bool]:
    """Draw configuration, parameters, batch and whether it is trained on; with other factors."""
    case = draw(model_cases.models(**more))
    fields, tensors, batch = model_cases.build(
        case,
        auxiliary_loss_factor=draw(st.sampled_from([0.0, 0.01, 0.5])),
        router_z_loss_factor=draw(st.sampled_from([0.0, 1e-3, 0.25])),
        z_loss_factor=draw(st.sampled_from([0.0, 1e-4, 0.05])),
        label_smoothing=draw(st.sampled_from([0.0, 0.1])),
        train_capacity_factor=draw(st.sampled_from([0.5, 1.25])),
        min_expert_capacity=draw(st.sampled_from([1, 4])),
        num_kv_heads=draw(st.sampled_from([None, 1])),
    )
    return Configuration(**fields), tensors, batch, case["training"]


@sometimes
@given(whole_models())
def test_the_loss_of_a_batch_is_the_naive_one(drawn):
    c, tensors, batch, training = drawn
    naive = naive_model.Model(tensors, c)
    wanted = naive_training.total_loss(
        naive, batch, naive_model.forward(naive, batch, training=training)
    )
    call = model.Call(training=training, dtype="float64")
    passed = model.forward(tensors, batch, c, call=call)
    got = cross_entropy.total_loss(passed.logits, batch, passed.metrics, c)
    assert tuple(got) == tuple(wanted) == LOSSES
    for name, value in wanted.items():
        assert_near(got[name], value, 1e-9)
    parts, _ = model_gradients.model_gradients(tensors, batch, c, call=call)
    for name, value in wanted.items():
        assert_near(parts[name], value, 1e-9)


@sometimes
@given(whole_models())
def test_the_float32_loss_is_within_2e_6_of_that_of_its_own_logits(drawn):
    c, tensors, batch, training = drawn
    passed = model.forward(tensors, batch, c, call=model.Call(training=training))
    got = cross_entropy.total_loss(passed.logits, batch, passed.metrics, c)
    sown = {
        i: {name: float(value) for name, value in one.items()} for i, one in passed.metrics.items()
    }
    seen = naive_model.Pass(logits=passed.logits.astype(np.float64), metrics=sown)
    wanted = naive_training.total_loss(naive_model.Model(tensors, c), batch, seen)
    for name, value in wanted.items():
        assert_near(got[name], value, 2e-6)


# ---------------------------------------------------------------------------- Adafactor


@often
@given(st.integers(0, 10**6) | st.sampled_from([0, 1, 9_999, 10_000, 10_001, 10**18]))
def test_learning_rates_are_the_naive_ones(step):
    assert_near(optimizer.learning_rate(step), naive_training.learning_rate(step), 1e-7, 0)
    wanted = naive_training.learning_rate(step, warmup="linear")
    assert_near(optimizer.learning_rate_with_linear_warmup(step), wanted, 2e-7, 0)


DENSE = ("embed", "joined_kv")
EXPERT = ("expert", "mlp_embed", "expert_mlp")

shapes_and_axes = st.one_of(
    st.tuples(st.tuples(st.sampled_from([1, 5, 200])), st.just(("embed",))),
    st.tuples(st.tuples(*[st.sampled_from([1, 127, 128, 129, 140])] * 2), st.just(DENSE)),
    st.tuples(
        st.tuples(*[st.sampled_from([1, 2, 5])] * 3),
        st.sampled_from([EXPERT, ("expert", "expert_mlp", "mlp_embed")]),
    ),
)


@often
@given(shapes_and_axes)
def test_slots_of_a_tensor_are_the_naive_ones(drawn):
    shape, axes = drawn
    wanted = naive_training.initial_state(shape, axes)
    got = optimizer.initial_state(shape, optimizer.factoring(shape, axes))
    assert set(got) == set(wanted) == set(optimizer.SLOTS)
    for name, value in wanted.items():
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], value, name)


@settings(often, max_examples=40)
@given(shapes_and_axes, seeds, st.sampled_from([0.0, 1e-5, 1]), st.sampled_from([1e-20, 1e-6, 10]))
def test_updates_are_the_naive_ones_over_several_steps(drawn, seed, size, gradient_size):
    shape, axes = drawn
    generator = np.random.default_rng(seed)
    value = (generator.normal(size=shape) * size).astype(np.float32)
    how = optimizer.factoring(shape, axes)
    state = optimizer.initial_state(shape, how)
    first = int(generator.integers(0, 3))  # counted from here, with zeros as what was before
    for step in range(first, first + 2):
        gradient = (generator.normal(size=shape) * gradient_size).astype(np.float32)
        gradient[generator.random(shape) < 0.2] = 0
        rate = 0.01
        wanted = naive_training.adafactor(value, gradient, state, axes=axes, step=step, rate=rate)
        value, state = optimizer.update(value, gradient, state, how, step=step, rate=rate)
        assert value.dtype == np.float32
        assert_near(value, wanted["parameter"], 2e-6, 1e-7)
        for name, moment in wanted["state"].items():
            assert state[name].dtype == np.float32
            assert_near(state[name], moment, 2e-6, 0)


@sometimes
@given(whole_models(), st.integers(1, 64))
def test_gradients_of_experts_alone_are_scaled(drawn, partitions):
    _, tensors, _, _ = drawn
    got = optimizer.scaled_gradients(tensors, num_expert_partitions=partitions)
    for name, value in tensors.items():
        factor = partitions if "/expert/" in name else 1
        np.testing.assert_array_equal(got[name], value * np.float32(factor))


@pytest.mark.parametrize(("rows", "count"), [(2, 1), (4, 2), (3, 3)])
@pytest.mark.parametrize("training", [True, False])
def test_losses_and_gradients_of_microbatches_are_added_up(rows, count, training):
    case = model_cases.fixed(rows=rows, kind="padded", seed=rows, blocks=1, length=9)
    fields, tensors, batch = model_cases.build(case)
    c = Configuration(**fields)
    call = model.Call(training=training, dtype="float64")

    def of_batch(part):
        return model_gradients.model_gradients(tensors, part, c, call=call)

    losses, gradients = optimizer.accumulated(of_batch, batch, num_microbatches=count)
    naive = naive_model.Model(tensors, c)
    parts = naive_training.microbatches(batch, count)
    for name in LOSSES:
        wanted = sum(
            naive_training.total_loss(
                naive, part, naive_model.forward(naive, part, training=training)
            )[name]
            for part in parts
        )
        assert_near(losses[name], wanted, 1e-9)
    one_by_one = [of_batch(part)[1] for part in parts]
    for name, gradient in gradients.items():
        assert_near(gradient, sum(one[name] for one in one_by_one), 1e-12)


# ---------------------------------------------------------------------------- choosing a token


@st.composite
def draws(draw: st.DrawFn) -> dict[str, Any]:
    """Draw the arguments of `sample`: logits in eighths, so that ties are frequent and exact."""
    rows, vocabulary = draw(st.integers(1, 3)), draw(st.integers(1, 9))
    whole = hnp.arrays(np.int8, (rows, vocabulary), elements=st.integers(-16, 16))
    generator = np.random.default_rng(draw(seeds))
    cut = draw(st.sampled_from(["none", "top_k", "top_p"]))
    case = {
        "logits": draw(whole).astype(np.float32) / 8,
        "noise": generator.gumbel(size=(rows, vocabulary)).astype(np.float32),
        "temperature": draw(st.sampled_from([0.0, 1e-4, 2e-4, 0.5, 1.0, 2.0])),
    }
    if cut == "top_k":
        case["top_k"] = draw(st.integers(1, vocabulary))
    if cut == "top_p":
        case["top_p"] = draw(st.sampled_from([0.01, 0.1, 0.37, 0.5, 0.77, 0.9, 1.0]))
    return case


@settings(often, max_examples=400)
@given(draws())
def test_sampled_tokens_are_the_naive_ones(case):
    got = sampling.sample(**case)
    rows = zip(case.pop("logits").tolist(), case.pop("noise").tolist(), strict=True)
    assert got.tolist() == [naive_decoding.sample(row, noise=noise, **case) for row, noise in rows]


# ---------------------------------------------------------------------------- decoding

prompted = whole_models(kinds=("prefix",))


def with_holes(batch: dict[str, ndarray], seed: int) -> dict[str, ndarray]:
    """Return a batch with ids 0 inside its prompts, which are not counted."""
    keep = np.random.default_rng(seed).random(batch["decoder_input_tokens"].shape) < 0.8
    return {**batch, "decoder_input_tokens": batch["decoder_input_tokens"] * keep}


def assert_same_cache(got: Cache, wanted: Cache, bound: float) -> None:
    """Require equal indices, and keys and values within `bound`."""
    np.testing.assert_array_equal(got.index, wanted.index)
    assert_near(got.keys, wanted.keys, bound)
    assert_near(got.values, wanted.values, bound)


@often
@given(batches())
def test_prompts_are_the_naive_ones(batch):
    assume("decoder_causal_attention" in batch)
    rows, lengths = naive_decoding.prompt(batch)
    inputs, index = decoding.prompt(batch)
    np.testing.assert_array_equal(inputs, rows)
    np.testing.assert_array_equal(index, lengths)


@sometimes
@given(prompted, st.sampled_from([1, 2]), seeds)
def test_the_prefill_and_every_step_are_the_naive_ones(drawn, replicas, seed):
    c, tensors, batch, _ = drawn
    batch = with_holes(batch, seed)
    c = replace(c, eval_capacity_factor=0.5)  # so that the prefill drops tokens
    naive = naive_model.Model(tensors, c, replicas=replicas)
    call = model.Call(dtype="float64", num_expert_replicas=replicas)
    fed = batch["decoder_input_tokens"]
    cached = naive_decoding.prefill(naive, batch)
    cache, _ = decoding.prefill(tensors, batch, c, call=call)
    assert_same_cache(cache, naive_decoding.as_cache(naive, cached, fed.shape[1]), 1e-9)
    rows = np.arange(len(fed))
    for _ in range(min(3, int((fed.shape[1] - cache.index).min()))):
        tokens = fed[rows, cache.index]
        wanted, cached = naive_decoding.step(naive, cached, tokens.tolist())
        cache, result = decoding.step(tensors, tokens, cache, c, call=call)
        assert result.logits.shape == (len(fed), 1, c.vocabulary_size)
        assert_near(result.logits[:, 0], wanted, 1e-9)
        assert_same_cache(cache, naive_decoding.as_cache(naive, cached, fed.shape[1]), 1e-9)


@st.composite
def ways_to_choose(draw: st.DrawFn) -> dict[str, Any]:
    """Draw a temperature and one cut at most."""
    if draw(st.booleans()):
        return {"temperature": 0.0}
    cut = draw(st.sampled_from([{}, {"top_k": 3}, {"top_p": 0.6}]))
    return {"temperature": draw(st.sampled_from([0.3, 1.0])), **cut}


def both_generations(c, tensors, batch, how, seed):
    """Return the ids that the naive form and the reference generate from the same noise."""
    rows, length = batch["decoder_input_tokens"].shape
    noise = np.random.default_rng(seed).gumbel(size=(rows, length, c.vocabulary_size))
    # Id 1 ends a row: make it likely, so that rows end at different times.
    tensors["decoder/logits_dense/kernel"][:, 1] *= np.float32(4)
    wanted = naive_decoding.generate(naive_model.Model(tensors, c), batch, noise=noise, **how)

    def choose(logits, number):
        return sampling.sample(logits, noise=noise[:, number], **how)

    call = model.Call(dtype="float64")
    return wanted, decoding.generate(tensors, batch, c, choose, call=call)


@sometimes
@given(prompted, ways_to_choose(), seeds)
def test_generated_ids_are_the_naive_ones(drawn, how, seed):
    c, tensors, batch, _ = drawn
    wanted, got = both_generations(c, tensors, batch, how, seed)
    np.testing.assert_array_equal(got, wanted)


@sometimes
@given(prompted, ways_to_choose(), seeds)
def test_ids_behind_a_hole_of_the_prompt_are_kept_and_fed(drawn, how, seed):
    c, tensors, batch, _ = drawn
    wanted, got = both_generations(c, tensors, with_holes(batch, seed), how, seed)
    for ours, theirs in zip(got.tolist(), wanted, strict=True):
        # What stands behind the end was never reached.
        end = theirs.index(1) + 1 if 1 in theirs else len(theirs)
        assert ours[:end] == theirs[:end]


def test_generation_ends_rows_at_different_times():
    """Keep the test above worth something: some rows end early, others are filled to the end."""
    ends = []
    for seed in range(6):
        case = model_cases.fixed(kind="prefix", seed=seed, rows=3)
        fields, tensors, batch = model_cases.build(case)
        tensors["decoder/logits_dense/kernel"][:, 1] *= np.float32(4)
        naive = naive_model.Model(tensors, Configuration(**fields))
        lengths = naive_decoding.prompt(batch)[1]
        for row, length in zip(naive_decoding.generate(naive, batch), lengths, strict=True):
            made = row.index(1) + 1 if 1 in row else len(row) - length
            ends.append(made)
            assert row[made:] == [0] * (len(row) - made)
    assert len(set(ends)) > 3


@pytest.mark.parametrize(("factor", "equal"), [(8.0, True), (0.25, False)])
def test_steps_equal_the_full_pass_exactly_where_no_capacity_binds(factor, equal):
    fields, tensors, batch = model_cases.build(
        model_cases.fixed(kind="prefix", rows=1, seed=3),
        eval_capacity_factor=factor,
        min_expert_capacity=1,
    )
    c, call = Configuration(**fields), model.Call(dtype="float64")
    full = model.forward(tensors, batch, c, call=call).logits[0]
    cache, _ = decoding.prefill(tensors, batch, c, call=call)
    real = int((batch["decoder_target_tokens"] > 0).sum())
    assert cache.index[0] < real
    for place in range(int(cache.index[0]), real):
        tokens = batch["decoder_input_tokens"][:, place]
        cache, result = decoding.step(tensors, tokens, cache, c, call=call)
        assert np.allclose(result.logits[0, 0], full[place], atol=1e-9) == equal
