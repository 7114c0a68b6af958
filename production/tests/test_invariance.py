"""Bits do not depend on how a batch is split into calls, and all of it jits and differentiates."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openmoe_production import losses, moe, routing
from openmoe_production.adapter import Adapter
from openmoe_reference import moe as reference


def router(seed, groups, tokens, width, experts):
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(groups, tokens, width)).astype(np.float32)
    return inputs, generator.normal(scale=0.05, size=(width, experts)).astype(np.float32)


SHAPES = [
    (groups, tokens, width, experts)
    for groups in (2, 8)
    for tokens, width in ((1, 16), (7, 64), (64, 33), (64, 100), (100, 512), (256, 128))
    for experts in (4, 32)
]


@pytest.mark.parametrize(("groups", "tokens", "width", "experts"), SHAPES)
def test_probabilities_and_decisions_are_bit_identical_in_any_split(groups, tokens, width, experts):
    inputs, kernel = router(groups, groups, tokens, width, experts)
    adapter, sizes = Adapter(), {"k": 2, "capacity": max(4, tokens // 8)}
    whole = adapter.probabilities(inputs, kernel)
    decision = adapter.route(inputs, kernel, **sizes)
    for cut in (list(range(1, groups)), [groups // 2]):
        parts = [np.ascontiguousarray(part) for part in np.split(inputs, cut)]
        joined = np.concatenate([adapter.probabilities(part, kernel) for part in parts])
        assert joined.tobytes() == whole.tobytes()
        decided = [adapter.route(part, kernel, **sizes) for part in parts]
        for name in ("expert_index", "gate", "position", "kept"):
            together = np.concatenate([getattr(one, name) for one in decided])
            assert together.tobytes() == getattr(decision, name).tobytes(), name


def test_a_decision_is_the_same_in_and_outside_jit():
    inputs, kernel = router(3, 2, 64, 32, 8)
    _, probabilities = routing.logits_and_probabilities(jnp.asarray(inputs), jnp.asarray(kernel))
    plain = routing.decide(probabilities, k=2, capacity=10)
    jitted = jax.jit(routing.decide, static_argnames=("k", "capacity"))
    traced = jitted(probabilities, k=2, capacity=10)
    for name in ("expert_index", "gate", "position", "kept"):
        assert np.array_equal(getattr(plain, name), getattr(traced, name)), name


def test_a_decision_depends_on_its_own_group_alone():
    inputs, kernel = router(4, 3, 32, 16, 8)
    other = inputs.copy()
    other[1] = -other[1]
    adapter, sizes = Adapter(), {"k": 2, "capacity": 6}
    first, second = (adapter.route(x, kernel, **sizes) for x in (inputs, other))
    for name in ("expert_index", "gate", "position", "kept"):
        one, two = getattr(first, name), getattr(second, name)
        assert one[[0, 2]].tobytes() == two[[0, 2]].tobytes(), name
        assert one[1].tobytes() != two[1].tobytes() or name == "kept"


def layer(seed, *, groups=2, tokens=24, width=8, hidden=6, experts=4):
    generator = np.random.default_rng(seed)

    def normal(*shape):
        return generator.normal(size=shape).astype(np.float32)

    parameters = {
        "router": normal(width, experts),
        "wi_0": normal(experts, width, 2 * hidden),
        "wi_1": normal(experts, width, hidden),
        "wo": normal(experts, hidden, width),
    }
    return normal(groups, tokens, width), parameters


@pytest.mark.parametrize("router_name", ["masked", "scatter", "experts_choose"])
@pytest.mark.parametrize("ignore_padding", [False, True])
def test_derivatives_along_a_direction_are_those_of_the_float64_reference(
    router_name, ignore_padding
):
    inputs, parameters = layer(0)
    inputs[:, ::5] = 0
    options = {"k": 2, "capacity": 7, "router": router_name, "ignore_padding": ignore_padding}
    generator = np.random.default_rng(1)
    cotangent = generator.normal(size=inputs.shape)
    decision = reference.moe(inputs, parameters, **options).decision
    step = 1e-5
    for name, value in parameters.items():
        direction = generator.normal(size=value.shape)
        direction /= np.linalg.norm(direction)

        def output(weights, name=name):
            moved = {**parameters, name: weights}
            return moe.moe(jnp.asarray(inputs), jax.tree.map(jnp.asarray, moved), **options).output

        _, pulled_back = jax.vjp(output, jnp.asarray(value))
        (gradient,) = pulled_back(jnp.asarray(cotangent, jnp.float32))

        def total(sign, name=name, value=value, direction=direction):
            moved = {n: v.astype(np.float64) for n, v in parameters.items()}
            moved[name] = value + sign * step * direction
            result = reference.moe(
                inputs.astype(np.float64),
                moved,
                expert_dtype="float64",
                decision=decision,
                **options,
            )
            return (result.output * cotangent).sum()

        wanted = (total(1) - total(-1)) / (2 * step)
        got = float((np.asarray(gradient, np.float64) * direction).sum())
        assert got == pytest.approx(wanted, rel=2e-5, abs=2e-4), name


def test_the_layer_differentiates_under_jit_and_vmap():
    inputs, parameters = layer(2)
    weights = jax.tree.map(jnp.asarray, parameters)

    def loss(x):
        result = moe.moe(x, weights, k=2, capacity=7)
        return result.output.sum() + result.metrics["auxiliary_loss"]

    plain = jax.grad(loss)(jnp.asarray(inputs))
    jitted = jax.jit(jax.grad(loss))(jnp.asarray(inputs))
    np.testing.assert_allclose(jitted, plain, rtol=1e-5, atol=1e-5)
    stacked = jax.vmap(jax.grad(loss))(jnp.stack([jnp.asarray(inputs)] * 2))
    np.testing.assert_allclose(stacked[1], plain, rtol=1e-5, atol=1e-5)


def test_bfloat16_inputs_give_float32_outputs_and_gradients_of_their_own_dtypes():
    inputs, parameters = layer(3)
    narrow = jnp.asarray(inputs, jnp.bfloat16)
    weights = jax.tree.map(jnp.asarray, parameters)
    options = {"k": 2, "capacity": 12, "expert_dtype": "bfloat16"}
    result = moe.moe(narrow, weights, **options)
    assert result.output.dtype == jnp.float32
    gradients = jax.grad(lambda x: moe.moe(x, weights, **options).output.sum())(narrow)
    assert gradients.dtype == jnp.bfloat16
    wide = moe.moe(narrow, weights, k=2, capacity=12).output
    scale = float(jnp.abs(wide).max())
    np.testing.assert_allclose(result.output, wide, atol=3e-2 * scale)


def test_one_program_serves_all_values_of_a_shape():
    traces = []

    def counted(x, kernel):
        traces.append(x.shape)
        logits, probabilities = routing.logits_and_probabilities(x, kernel)
        decision = routing.decide(probabilities, k=2, capacity=6)
        balance = losses.balance_loss(probabilities, decision.expert_index)
        return decision.expert_index, balance + losses.router_z_loss(logits)

    jitted = jax.jit(counted)
    for seed in range(3):
        jitted(*router(seed, 2, 32, 16, 8))
    assert traces == [(2, 32, 16)]


@pytest.mark.parametrize("which", ["forward", "backward"])
def test_temporary_memory_is_linear_in_tokens(which):
    def planned(tokens):
        shapes = jax.eval_shape(
            lambda: jax.tree.map(jnp.asarray, layer(0, tokens=8, width=64, hidden=64, experts=8))
        )
        x = jax.ShapeDtypeStruct((1, tokens, 64), jnp.float32)

        def output(x, weights):
            return moe.moe(x, weights, k=2, capacity=tokens // 8).output.sum()

        function = output if which == "forward" else jax.grad(output, argnums=(0, 1))
        analysis = jax.jit(function).lower(x, shapes[1]).compile().memory_analysis()
        return analysis.temp_size_in_bytes

    small, large = planned(2048), planned(8192)
    assert large <= 4.3 * small  # a mask of T x E x C elements would grow 16 times
