"""The layer by indices equals the layer by one-hot masks, values and gradients."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openmoe_production import moe, one_hot, routing

# groups, tokens, width, experts, hidden, k, capacity: every one of them drops choices.
SHAPES = [
    (1, 32, 8, 4, 16, 2, 10),
    (3, 40, 12, 8, 10, 2, 6),
    (2, 24, 6, 3, 7, 1, 7),
    (2, 16, 8, 4, 5, 4, 9),
    (4, 9, 5, 2, 3, 2, 1),
]


def operands(groups, tokens, width, experts, hidden):
    random = np.random.default_rng(20240129)
    shapes = {
        "router": (width, experts),
        "wi_0": (experts, width, 2 * hidden),
        "wi_1": (experts, width, hidden),
        "wo": (experts, hidden, width),
    }
    parameters = {
        name: jnp.asarray(random.normal(size=shape) / shape[-2] ** 0.5, jnp.float32)
        for name, shape in shapes.items()
    }
    inputs, cotangent = random.normal(size=(2, groups, tokens, width)).astype(np.float32)
    return jnp.asarray(inputs), parameters, jnp.asarray(cotangent)


def assert_close(actual, wanted):
    largest = np.abs(wanted).max()
    assert largest > 0
    np.testing.assert_allclose(actual, wanted, rtol=0, atol=1e-5 * largest)


@pytest.mark.parametrize("shape", SHAPES)
def test_the_layer_equals_its_one_hot_form(shape):
    *sizes, k, capacity = shape
    inputs, parameters, cotangent = operands(*sizes)

    def by_indices(x, weights):
        result = moe.moe(x, weights, k=k, capacity=capacity)
        return (result.output * cotangent).sum(), result

    def by_masks(x, weights):
        output = one_hot.moe(x, weights, k=k, capacity=capacity)
        return (output * cotangent).sum(), output

    def gradients(function):
        return jax.jit(jax.grad(function, argnums=(0, 1), has_aux=True))(inputs, parameters)

    (d_inputs, d_parameters), result = gradients(by_indices)
    (wanted_d_inputs, wanted_d_parameters), wanted = gradients(by_masks)
    assert not result.decision.kept.all()
    assert_close(result.output, wanted)
    assert_close(d_inputs, wanted_d_inputs)
    assert set(d_parameters) == set(wanted_d_parameters)
    for name, gradient in d_parameters.items():
        assert_close(gradient, wanted_d_parameters[name])


def test_the_mask_holds_every_kept_choice_once():
    inputs, parameters, _ = operands(2, 24, 6, 4, 7)
    _, probabilities = routing.logits_and_probabilities(inputs, parameters["router"])
    decision = routing.decide(probabilities, k=2, capacity=8)
    mask = np.asarray(one_hot.dispatch_mask(decision, 4))
    assert mask.shape == (2, 24, 4, 8)
    assert mask.sum() == decision.kept.sum() < decision.kept.size
    assert mask.sum(axis=1).max() == 1  # no two tokens in a slot
    for group, token, choice in np.argwhere(np.asarray(decision.kept)):
        expert = decision.expert_index[group, token, choice]
        assert mask[group, token, expert, decision.position[group, token, choice]]


def test_a_token_without_a_slot_gets_exact_zeros():
    inputs, parameters, _ = operands(1, 32, 8, 2, 4)
    result = jax.jit(partial(moe.moe, k=1, capacity=4))(inputs, parameters)
    left_behind = ~np.asarray(result.decision.kept).any(axis=-1)
    assert left_behind.any()
    output = jax.jit(partial(one_hot.moe, k=1, capacity=4))(inputs, parameters)
    assert output.any()
    assert not np.asarray(output)[left_behind].any()
