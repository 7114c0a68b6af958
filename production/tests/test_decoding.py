"""Prefill, cached steps and the loop that generates: as the reference, jitted or step by step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openmoe_conformance import model_cases
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_production import decoding, model, sampling
from openmoe_production.calling import call
from openmoe_production.training_adapter import TrainingAdapter
from openmoe_reference import decoding as reference
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Cache

ADAPTER, REFERENCE = TrainingAdapter(), ReferenceAdapter()


def case(**changes):
    return model_cases.fixed(**{"kind": "prefix", "blocks": 1} | changes)


def jitted(function, fields, parameters, **options):
    """Call a function of the port compiled as the adapter does it, which is fast for small models."""
    static = {name: options.pop(name) for name in ("choose", "steps") if name in options}
    return call(
        function,
        "LAYER-08",
        {"parameters": parameters, **options},
        sized_by="parameters",
        configuration=Configuration(**fields),
        **static,
    )


CASES = {
    "two layers": (case(), {}),
    "prefill drops": (case(rows=3, max_group_size=8), {"eval_capacity_factor": 0.5}),
    "steps compete for a slot": (
        case(rows=3, experts=2, interval=1),
        {"min_expert_capacity": 1, "eval_capacity_factor": 0.5},
    ),
    "shared keys, a prefix both ways": (
        case(rows=1),
        {"num_kv_heads": 1, "inputs_bidirectional_attention": True},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_steps_and_caches_are_those_of_the_reference(name):
    one, changes = CASES[name]
    fields, parameters, batch = model_cases.build(one, **changes)
    for replicas in (1, 2):
        given = {"configuration": fields, "steps": 6, "num_expert_replicas": replicas}
        wanted = REFERENCE.decode(parameters, batch, **given)
        found = ADAPTER.decode(parameters, batch, **given)
        np.testing.assert_allclose(found["logits"], wanted["logits"], rtol=3e-5, atol=3e-5)
        for cache in ("prefill", "cache"):
            assert np.array_equal(found[cache].index, wanted[cache].index)
            for kept in ("keys", "values"):
                got, expected = (getattr(one[cache], kept) for one in (found, wanted))
                np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-5)
                assert np.array_equal(got == 0, expected == 0)  # nothing stands in empty slots


def test_stacked_layers_decode_as_single_ones_do():
    fields, parameters, batch = model_cases.build(case(blocks=2, interval=1))
    stacked = model.stack(parameters, Configuration(**fields))
    (flat, _, _), (scanned, _, last) = (
        jitted(decoding.forced_steps, fields, weights, batch=batch, steps=2)
        for weights in (parameters, stacked)
    )
    np.testing.assert_allclose(scanned, flat, rtol=1e-5, atol=1e-5)
    assert last.keys.shape[0] == 2


def test_a_step_drops_what_the_experts_have_no_slot_for():
    one, changes = CASES["steps compete for a slot"]
    fields, parameters, batch = model_cases.build(one, **changes)
    cache, _ = jitted(decoding.prefill, fields, parameters, batch=batch)
    tokens = jnp.array([3, 3, 3])
    _, passed = jitted(decoding.step, fields, parameters, tokens=tokens, cache=cache)
    (decision,) = passed.decisions.values()
    assert not decision.kept.all()
    assert decision.capacity == 1


def test_steps_are_one_full_pass_where_no_capacity_binds():
    fields, parameters, batch = model_cases.build(case(rows=2), eval_capacity_factor=8.0)
    start = np.asarray(decoding.prompt(batch)[1])
    steps = int((batch["decoder_target_tokens"] > 0).sum(axis=1).min() - start.max())
    assert steps > 2
    found = ADAPTER.decode(parameters, batch, configuration=fields, steps=steps)["logits"]
    logits = np.asarray(jitted(model.forward, fields, parameters, batch=batch).logits)
    for row, first in enumerate(start):
        wanted = logits[row, first : first + steps]
        np.testing.assert_allclose(found[row], wanted, rtol=3e-5, atol=3e-5)


@pytest.mark.parametrize(
    "choice", [{}, {"temperature": 0.8, "top_k": 5}, {"temperature": 1.5, "top_p": 0.8}]
)
def test_generated_ids_are_those_of_the_reference_at_once_and_step_by_step(choice):
    fields, parameters, batch = model_cases.build(case(rows=3, interval=1, seed=4))
    shape = (3, 16, model_cases.VOCABULARY)
    noise = np.random.default_rng(1).gumbel(size=shape).astype(np.float32) if choice else None
    given = {"configuration": fields, "noise": noise, **choice}
    found = ADAPTER.generate(parameters, batch, **given)
    assert found.shape == (3, 16)
    assert np.array_equal(found, REFERENCE.generate(parameters, batch, **given))

    def choose(logits, number):
        drawn = None if noise is None else jnp.asarray(noise)[:, number]
        return sampling.sample(logits, noise=drawn, **({"temperature": 0.0} | choice))

    steps = list(decoding.stream(parameters, batch, Configuration(**fields), choose))
    made = np.stack(steps, axis=1)
    assert np.array_equal(made, found[:, : made.shape[1]])
    assert not found[:, made.shape[1] :].any()


def test_noise_of_the_port_itself_is_reproducible():
    fields, parameters, batch = model_cases.build(case(interval=1))
    choices = [sampling.chooser(jax.random.key(i), temperature=1.0) for i in (0, 0, 1)]
    draw = [
        jitted(decoding.generate, fields, parameters, batch=batch, choose=choose)
        for choose in choices
    ]
    assert np.array_equal(draw[0], draw[1])
    assert not np.array_equal(draw[0], draw[2])


def scripted(script):
    """Return what picks the tokens of a script [B, S], whatever the logits."""
    return lambda _, number: jnp.asarray(script)[:, number]


def test_rows_end_with_an_end_of_their_own_or_at_the_last_place():
    fields, parameters, _ = model_cases.build(case(rows=4, interval=1))
    length = 8
    tokens = np.array(
        [
            [0, 5, 6, 0, 0, 0, 0, 0],  # ends by an id 1
            [0, 1, 7, 1, 0, 0, 0, 0],  # has two of them in its prompt, which end nothing
            [0, 5, 0, 6, 1, 0, 0, 0],  # an id 0 in the prompt: its last id is kept, and fed
            [0, 5, 6, 7, 8, 9, 3, 2],  # has room for one
        ],
        np.int32,
    )
    seen = np.array([[1] * 3 + [0] * 5, [1] * 4 + [0] * 4, [1] * 5 + [0] * 3, [1] * 8])
    batch = {
        "decoder_input_tokens": tokens,
        "decoder_causal_attention": seen.astype(np.int32),
    }
    script = np.array(
        [[4, 1, 9, 9, 9, 9], [3, 4, 1, 9, 9, 9], [1, 4, 1, 4, 1, 9], [8, 4, 9, 9, 9, 9]], np.int32
    )
    wanted = reference.generate(
        parameters, batch, Configuration(**fields), lambda _, number: script[:, number]
    )
    choose = scripted(script)
    found = jitted(decoding.generate, fields, parameters, batch=batch, choose=choose)
    assert np.array_equal(found, wanted)
    assert found[0].tolist() == [4, 1, 0, 0, 0, 0, 0, 0]
    assert found[1].tolist() == [3, 4, 1, 0, 0, 0, 0, 0]
    assert found[2].tolist() == [1, 4, 1, 0, 0, 0, 0, 0]
    assert found[3].tolist() == [8, 0, 0, 0, 0, 0, 0, 0]
    assert found.shape[1] == length


def test_logits_that_are_not_finite_never_become_a_token():
    fields, parameters, batch = model_cases.build(case(interval=1))
    name = "decoder/logits_dense/kernel"
    large = parameters | {name: np.full_like(parameters[name], 3e38)}
    with pytest.raises(RejectedError, match="DEC-10"):
        ADAPTER.generate(large, batch, configuration=fields)
    with pytest.raises(RejectedError, match="DEC-10"):
        list(decoding.stream(large, batch, Configuration(**fields)))


def test_a_full_cache_keeps_nothing_more():
    fields, parameters, batch = model_cases.build(case(interval=1))
    cache, _ = jitted(decoding.prefill, fields, parameters, batch=batch)
    full = Cache(cache.keys, cache.values, jnp.full_like(cache.index, cache.keys.shape[2]))
    tokens = jnp.array([2, 3])
    after, passed = jitted(decoding.step, fields, parameters, tokens=tokens, cache=full)
    assert np.array_equal(after.keys, cache.keys)
    assert np.array_equal(after.values, cache.values)
    assert np.isfinite(passed.logits).all()


# ---- refusals -----------------------------------------------------------------------------------

FIELDS, PARAMETERS, BATCH = model_cases.build(case(interval=1))
INPUTS = BATCH["decoder_input_tokens"]
SEEN = BATCH["decoder_causal_attention"] > 0
EVERY = np.ones_like(INPUTS)
LONG = {"decoder_input_tokens": EVERY, "decoder_causal_attention": EVERY}


def generate(batch=BATCH, **options):
    return ADAPTER.generate(PARAMETERS, batch, configuration=FIELDS, **options)


def decode(batch=BATCH, **options):
    return ADAPTER.decode(PARAMETERS, batch, **{"configuration": FIELDS, "steps": 1} | options)


def step(tokens=(2, 3), **changes):
    sizes = dict.fromkeys(("keys", "values"), (1, 2, 16, 2, 4))
    made = {name: jnp.zeros(changes.get(name, size)) for name, size in sizes.items()}
    cache = Cache(**made, index=jnp.array(changes.get("index", (3, 4))))
    cache = changes.get("cache", cache)
    return decoding.step(PARAMETERS, jnp.array(tokens), cache, Configuration(**FIELDS))


def without(name):
    return {one: value for one, value in BATCH.items() if one != name}


REFUSED = {
    "no causal attention": (
        lambda: generate(without("decoder_causal_attention")),
        "batch",
        "DEC-09",
    ),
    "no inputs": (lambda: decode(without("decoder_input_tokens")), "batch", "DEC-09"),
    "causal attention of another shape": (
        lambda: decode(BATCH | {"decoder_causal_attention": EVERY[:, 1:]}),
        "decoder_causal_attention",
        "DEC-09",
    ),
    "a stream without causal attention": (
        lambda: next(decoding.stream(PARAMETERS, {}, Configuration(**FIELDS))),
        "batch",
        "DEC-09",
    ),
    "a prompt of unknown ids": (
        lambda: generate(BATCH | {"decoder_input_tokens": INPUTS + model_cases.VOCABULARY}),
        "decoder_input_tokens",
        "MODEL-10",
    ),
    "unknown ids behind the prompt": (
        lambda: decode(BATCH | {"decoder_input_tokens": np.where(SEEN, INPUTS, 99)}),
        "decoder_input_tokens",
        "DEC-09",
    ),
    "an empty prompt": (
        lambda: generate(BATCH | {"decoder_causal_attention": 0 * EVERY}),
        "decoder_target_tokens",
        "MODEL-10",
    ),
    "no steps": (lambda: decode(steps=0), "steps", "DEC-09"),
    "half a step": (lambda: decode(steps=1.5), "steps", "DEC-09"),
    "steps behind the last slot": (lambda: decode(LONG, steps=2), "steps", "DEC-09"),
    "an unknown dtype": (lambda: decode(dtype="float8"), "dtype", "LAYER-08"),
    "a missing leaf": (
        lambda: ADAPTER.decode({}, BATCH, configuration=FIELDS, steps=1),
        "parameters",
        "MODEL-09",
    ),
    "noise for too few steps": (
        lambda: generate(noise=np.zeros((2, 1, model_cases.VOCABULARY), np.float32), temperature=1),
        "noise",
        "DEC-10",
    ),
    "a negative temperature": (lambda: generate(temperature=-1.0), "temperature", "DEC-10"),
    "a draw without noise": (lambda: generate(temperature=1.0), "noise", "DEC-10"),
    "a token outside the vocabulary": (
        lambda: step((2, model_cases.VOCABULARY)),
        "tokens",
        "DEC-09",
    ),
    "a token below 0": (lambda: step((2, -1)), "tokens", "DEC-09"),
    "tokens of other rows": (lambda: step((2, 3, 4)), "tokens", "DEC-09"),
    "tokens that are no integers": (lambda: step((2.0, 3.0)), "tokens", "DEC-09"),
    "a cache of more layers": (lambda: step(keys=(2, 2, 16, 2, 4)), "cache.keys", "DEC-09"),
    "a cache of other heads": (lambda: step(keys=(1, 2, 16, 1, 4)), "cache.keys", "DEC-09"),
    "values of other slots": (lambda: step(values=(1, 2, 9, 2, 4)), "cache.values", "DEC-09"),
    "an index of another shape": (lambda: step(index=(3, 4, 5)), "cache.index", "DEC-09"),
    "an index below 0": (lambda: step(index=(-1, 2)), "cache.index", "DEC-09"),
    "no cache": (lambda: step(cache=None), "cache", "DEC-09"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_decoded_is_refused(name):
    action, argument, clause = REFUSED[name]
    with pytest.raises(RejectedError) as found:
        action()
    assert argument in found.value.argument
    assert found.value.clause == clause
