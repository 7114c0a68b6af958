"""From logits to a token: ties, cuts, the draw, refusals."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_production import sampling
from openmoe_production.training_adapter import TrainingAdapter
from openmoe_spec.errors import RejectedError

ADAPTER, REFERENCE = TrainingAdapter(), ReferenceAdapter()


def drawn(seed, rows=64, vocabulary=23):
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=3, size=(rows, vocabulary)).astype(np.float32)
    return logits, generator.gumbel(size=logits.shape).astype(np.float32)


@pytest.mark.parametrize("temperature", [1e-4, 0.3, 0.7, 1.0, 2.5])
@pytest.mark.parametrize(
    "cuts", [{}, {"top_k": 1}, {"top_k": 5}, {"top_k": 23}, {"top_p": 0.3}, {"top_p": 1.0}]
)
def test_tokens_are_those_of_the_reference(temperature, cuts):
    logits, noise = drawn(0)
    options = {"noise": noise, "temperature": temperature, **cuts}
    found = ADAPTER.sample(logits, **options)
    assert found.dtype == np.int32
    assert np.array_equal(found, REFERENCE.sample(logits, **options))


def test_the_best_token_is_taken_without_a_temperature_and_the_lower_of_equals():
    logits = np.array([[1, 3, 3, 2], [0, 0, 0, 0], [-1, -2, -1, -0.5]], np.float32)
    noise = np.array([[9, 0, 5, 0]] * 3, np.float32)
    for given in (None, noise):
        for cuts in ({}, {"top_k": 2}, {"top_p": 0.1}):
            found = ADAPTER.sample(logits, noise=given, temperature=1e-4, **cuts)
            assert found.tolist() == [1, 0, 3]
    assert sampling.BEST(jnp.asarray(logits), jnp.int32(0)).tolist() == [1, 0, 3]


@pytest.mark.parametrize("temperature", [0.7, 1.3, 3.0])
def test_logits_are_divided_by_the_temperature_to_the_last_bit(temperature):
    logits, _ = drawn(1, rows=8, vocabulary=200)
    noise = -(logits / np.float32(temperature))
    # All sums are exactly 0, so the first token is taken; a reciprocal would not leave zeros.
    for found in (
        ADAPTER.sample(logits, noise=noise, temperature=temperature),
        jax.jit(lambda x, n: sampling.sample(x, noise=n, temperature=temperature))(logits, noise),
    ):
        assert not found.any()


def allowed(logits, **cuts):
    """Return which tokens can be drawn: noise that favours one is given to each in turn."""
    size = logits.shape[1]
    noise = np.zeros((size, size), np.float32)
    np.fill_diagonal(noise, 1e4)
    found = ADAPTER.sample(np.repeat(logits, size, axis=0), noise=noise, **cuts)
    return np.flatnonzero(found == np.arange(size)).tolist()


def test_equals_of_the_last_one_above_a_cut_stay():
    logits = np.log(np.array([[8, 4, 2, 2, 2, 1, 1]], np.float32) / 20)
    assert allowed(logits, top_k=1) == [0]
    assert allowed(logits, top_k=3) == [0, 1, 2, 3, 4]
    assert allowed(logits, top_p=0.3) == [0]
    assert allowed(logits, top_p=0.55) == [0, 1]
    assert allowed(logits, top_p=0.65) == [0, 1, 2, 3, 4]
    assert allowed(logits, top_p=0.95) == list(range(7))
    # The mass is of what is left after the temperature.
    assert allowed(logits, top_p=0.55, temperature=0.5) == [0]
    assert allowed(logits, top_p=1.0) == list(range(7))


def test_noise_from_a_key_draws_from_the_softmax_and_anew_in_each_step():
    logits, _ = drawn(2, rows=1, vocabulary=5)
    choose = sampling.chooser(jax.random.key(7), temperature=2.0)
    many = jnp.repeat(jnp.asarray(logits), 40_000, axis=0)
    first, second = choose(many, jnp.int32(0)), choose(many, jnp.int32(1))
    wanted = np.asarray(jax.nn.softmax(jnp.asarray(logits[0]) / 2))
    for tokens in (first, second):
        shares = np.bincount(tokens, minlength=5) / len(tokens)
        assert (abs(shares - wanted) < 6 * np.sqrt(wanted * (1 - wanted) / len(tokens))).all()
    assert not np.array_equal(first, second)
    assert np.array_equal(first, choose(many, jnp.int32(0)))


def test_a_compiled_program_answers_with_no_token_where_it_cannot_refuse():
    logits, noise = drawn(3, rows=3, vocabulary=4)
    logits[1, 2], logits[2, 0] = np.nan, np.inf
    for given in ({"temperature": 0.0}, {"noise": noise, "temperature": 1.0, "top_k": 2}):
        found = jax.jit(lambda x, given=given: sampling.sample(x, **given))(logits)
        assert found[1:].tolist() == [-1, -1]
        assert found[0] >= 0


LOGITS = np.zeros((2, 4), np.float32)
CASES = {
    "not a number": ({"logits": LOGITS * np.nan}, "logits"),
    "infinite": ({"logits": LOGITS - np.inf}, "logits"),
    "one axis": ({"logits": LOGITS[0]}, "logits"),
    "integers": ({"logits": LOGITS.astype(np.int32)}, "logits"),
    "a temperature below 0": ({"temperature": -0.5}, "temperature"),
    "an infinite temperature": ({"temperature": np.inf}, "temperature"),
    "no temperature": ({"temperature": np.nan}, "temperature"),
    "top_k below 0": ({"top_k": -1}, "top_k"),
    "top_k above V": ({"top_k": 5}, "top_k"),
    "a fraction of top_k": ({"top_k": 2.0}, "top_k"),
    "top_k a boolean": ({"top_k": True}, "top_k"),
    "top_p below 0": ({"top_p": -0.1}, "top_p"),
    "top_p above 1": ({"top_p": 1.1}, "top_p"),
    "no top_p": ({"top_p": np.nan}, "top_p"),
    "both cuts": ({"top_k": 1, "top_p": 0.5}, "top_p"),
    "a draw without noise": ({"noise": None}, "noise"),
    "noise of another shape": ({"noise": LOGITS[:, :3]}, "noise"),
    "infinite noise": ({"noise": LOGITS + np.inf}, "noise"),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_drawn_from_is_refused(name):
    changes, argument = CASES[name]
    given = {"logits": LOGITS, "noise": LOGITS} | changes
    moved = {n: jnp.asarray(v) if isinstance(v, np.ndarray) else v for n, v in given.items()}
    for action in (lambda: ADAPTER.sample(**given), lambda: sampling.sample(**moved)):
        with pytest.raises(RejectedError) as found:
            action()
        assert found.value.argument == argument
        assert found.value.clause == "DEC-10"
