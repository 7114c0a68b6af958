"""Central differences of the float64 reference confirm its gradients, decisions held constant.

Each tensor is moved along a random direction by itself, so a gradient that is wrong in one tensor
cannot hide behind the others. One thing has a slope that differences cannot see: the sum in which
-1e10 swallows the logit of a query that may see no key. `SlopedAttention` shows it to them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy import ndarray

from openmoe_conformance import model_cases
from openmoe_reference import (
    attention,
    cross_entropy,
    feed_forward,
    layers,
    masks,
    model,
    model_gradients,
    part_gradients,
)
from openmoe_spec.config import Configuration

often = settings(derandomize=True, deadline=None, database=None, max_examples=60)
sometimes = settings(often, max_examples=20)

seeds = st.integers(0, 2**16)
Tensors = Mapping[str, ndarray]


def assert_gradients(
    function: Callable[[Tensors], float],
    tensors: Tensors,
    gradients: Tensors,
    generator: np.random.Generator,
) -> None:
    """Require every gradient to give the slope of `function` along a random direction."""
    assert set(gradients) == set(tensors)
    for name, value in tensors.items():
        assert gradients[name].shape == value.shape, name
        direction = generator.normal(size=value.shape)
        direction /= np.sqrt((direction * direction).sum())
        slope = float((gradients[name] * direction).sum())
        before, after = (function({**tensors, name: value + h * direction}) for h in (-1e-4, 1e-4))
        measured = (after - before) / 2e-4
        largest = float(np.sqrt((gradients[name] ** 2).sum()))
        assert measured == pytest.approx(slope, rel=1e-6, abs=1e-7 * largest + 1e-9), name


def normal(generator: np.random.Generator, *shape: int) -> ndarray:
    """Return float64 numbers of size 1."""
    return generator.normal(size=shape)


class SlopedAttention:
    """Attention in float64 whose swallowed logits count by how far they moved since a first pass.

    In that pass a query that may see no key gives every key the same weight, as in the reference;
    later the weights are the softmax around it, whose slope the training code differentiated.
    """

    def __init__(self) -> None:
        self.first: list[ndarray] = []
        self.calls = 0

    def again(self) -> None:
        """Begin another pass."""
        self.calls = 0

    def __call__(
        self, inputs: ndarray, kernels: Tensors, bias: ndarray, *, num_heads: int, **_: Any
    ) -> tuple[ndarray, ndarray, ndarray]:
        width = kernels["query"].shape[1] // num_heads
        q, k, v = (
            (inputs @ kernels[name]).reshape(*inputs.shape[:2], -1, width)
            for name in ("query", "key", "value")
        )
        places, shared = np.arange(inputs.shape[1]), num_heads // k.shape[2]
        turned = attention.rotate(k, places).repeat(shared, axis=2)
        logits = np.einsum("bqhn,blhn->bhql", attention.rotate(q, places), turned)
        if self.calls == len(self.first):
            self.first.append(logits)
        hidden = (bias < 0).all(axis=-1)[:, None, :, None]
        logits = logits + np.where(hidden, -self.first[self.calls], bias[:, None])
        self.calls += 1
        weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
        weights /= weights.sum(axis=-1, keepdims=True)
        mixed = np.einsum("bhql,blhn->bqhn", weights, v.repeat(shared, axis=2))
        return mixed.reshape(*inputs.shape[:2], -1) @ kernels["out"], k, v


# ---------------------------------------------------------------------------- parts


@sometimes
@given(seeds, st.integers(1, 5))
def test_the_gradients_of_a_norm_are_its_slopes(seed, width):
    generator = np.random.default_rng(seed)
    tensors = {"inputs": normal(generator, 2, 3, width), "scale": normal(generator, width)}
    cotangent = normal(generator, 2, 3, width)

    def function(given: Tensors) -> float:
        return float((layers.rms_norm(**given, dtype="float64") * cotangent).sum())

    gradients = part_gradients.norm_gradients(**tensors, cotangent=cotangent)
    assert_gradients(function, tensors, gradients, generator)


@sometimes
@given(seeds, hnp.arrays(np.int32, (2, 5), elements=st.integers(0, 3)))
def test_the_gradient_of_an_embedding_is_its_slope(seed, ids):
    generator = np.random.default_rng(seed)
    tensors, cotangent = {"table": normal(generator, 6, 3)}, normal(generator, 2, 5, 3)

    def function(given: Tensors) -> float:
        return float((layers.embed(given["table"], ids, dtype="float64") * cotangent).sum())

    gradient = part_gradients.embedding_gradient(ids, cotangent, vocabulary_size=6)
    assert_gradients(function, tensors, {"table": gradient}, generator)
    frozen = part_gradients.frozen_start_gradient(ids, cotangent, vocabulary_size=6)
    assert not frozen[0].any()
    np.testing.assert_array_equal(frozen[1:], gradient[1:])


ACTIVATIONS = st.lists(st.sampled_from(sorted(feed_forward.ACTIVATIONS)), min_size=1, max_size=3)


@often
@given(seeds, ACTIVATIONS.map(tuple))
def test_the_gradients_of_a_feed_forward_are_its_slopes(seed, activations):
    generator = np.random.default_rng(seed)
    experts, width, hidden = 2, 4, 3
    tensors = {"inputs": normal(generator, experts, 3, width)}
    for name, activation in zip(feed_forward.projections(activations), activations, strict=True):
        columns = 2 * hidden if activation == "swiglu" else hidden
        tensors[name] = normal(generator, experts, width, columns) / 2
    tensors["wo"] = normal(generator, experts, hidden, width) / 2
    cotangent = normal(generator, experts, 3, width)

    def function(given: Tensors) -> float:
        kernels = {name: value for name, value in given.items() if name != "inputs"}
        output = feed_forward.feed_forward(
            given["inputs"], kernels, activations=activations, dtype="float64"
        )
        return float((output * cotangent).sum())

    kernels = {name: value for name, value in tensors.items() if name != "inputs"}
    gradients = part_gradients.feed_forward_gradients(
        tensors["inputs"], kernels, cotangent, activations=activations
    )
    assert_gradients(function, tensors, gradients, generator)


@sometimes
@given(
    seeds,
    st.sampled_from([(1, 1, 2), (2, 2, 4), (4, 2, 2), (3, 1, 2)]),
    st.none() | hnp.arrays(bool, (2, 5, 5)),
)
def test_the_gradients_of_attention_are_its_slopes(seed, sizes, mask):
    generator = np.random.default_rng(seed)
    heads, of_keys, head_dim = sizes
    columns = {"query": heads, "key": of_keys, "value": of_keys}
    tensors = {"inputs": normal(generator, 2, 5, 4)}
    tensors |= {name: normal(generator, 4, n * head_dim) / 2 for name, n in columns.items()}
    tensors["out"] = normal(generator, heads * head_dim, 4)
    bias = np.zeros((2, 5, 5)) if mask is None else masks.finite_bias((mask,))
    cotangent = normal(generator, 2, 5, 4)
    sloped = SlopedAttention()

    def function(given: Tensors) -> float:
        kernels = {name: value for name, value in given.items() if name != "inputs"}
        sloped.again()
        output, _, _ = sloped(given["inputs"], kernels, bias, num_heads=heads)
        return float((output * cotangent).sum())

    kernels = {name: value for name, value in tensors.items() if name != "inputs"}
    output, _, _ = attention.attention(
        tensors["inputs"], kernels, bias, num_heads=heads, dtype="float64"
    )
    assert function(tensors) == pytest.approx(float((output * cotangent).sum()), rel=1e-12)
    gradients = part_gradients.attention_gradients(
        tensors["inputs"], kernels, bias, cotangent, num_heads=heads
    )
    assert_gradients(function, tensors, gradients, generator)


@often
@given(
    seeds,
    st.none() | hnp.arrays(np.float64, (2, 3), elements=st.sampled_from([0.0, 0.5, 1.0])),
    st.sampled_from([None, 4.0]),
    st.sampled_from([0.0, 1e-4, 0.1]),
    st.sampled_from([0.0, 0.001, 0.2]),
)
def test_the_gradient_of_cross_entropy_is_its_slope(seed, weights, factor, z_loss, smoothing):
    generator = np.random.default_rng(seed)
    targets = generator.integers(0, 5, (2, 3))
    options = {
        "weights": weights,
        "normalizing_factor": factor,
        "z_loss": z_loss,
        "label_smoothing": smoothing,
    }
    tensors = {"logits": normal(generator, 2, 3, 5) * 3}

    def function(given: Tensors) -> float:
        return float(cross_entropy.cross_entropy(given["logits"], targets, **options).loss)

    gradient = part_gradients.cross_entropy_gradient(tensors["logits"], targets, **options)
    assert_gradients(function, tensors, {"logits": gradient}, generator)


# ---------------------------------------------------------------------------- the whole model


@st.composite
def whole_models(draw: st.DrawFn) -> tuple[Configuration, Any, Any, model.Call]:
    """Draw a model whose every loss weighs something, and how its pass is run."""
    blocks, interval = draw(st.sampled_from([(1, 1), (1, 2), (2, 1)]))
    case = draw(model_cases.models()) | {"blocks": blocks, "interval": interval, "width": 6}
    case |= {"length": draw(st.sampled_from([4, 9]))}
    fields, tensors, batch = model_cases.build(
        case,
        auxiliary_loss_factor=0.5,
        router_z_loss_factor=0.1,
        z_loss_factor=0.02,
        label_smoothing=draw(st.sampled_from([0.0, 0.1])),
        train_capacity_factor=draw(st.sampled_from([0.5, 1.25])),
        min_expert_capacity=draw(st.sampled_from([1, 4])),
        inputs_bidirectional_attention=draw(st.booleans()),
        ignore_padding_tokens=draw(st.booleans()),
        num_kv_heads=draw(st.sampled_from([None, 1])),
    )
    replicas = draw(st.sampled_from([1, 2]))
    call = model.Call(training=case["training"], dtype="float64", num_expert_replicas=replicas)
    wide = {name: value.astype(np.float64) for name, value in tensors.items()}
    return Configuration(**fields), wide, batch, call


@settings(often, max_examples=6)
@given(whole_models(), seeds)
def test_the_gradients_of_a_model_are_the_slopes_of_its_total_loss(drawn, seed):
    c, tensors, batch, call = drawn
    decisions = model.forward(tensors, batch, c, call=call).decisions
    call = replace(call, decisions=decisions)
    sloped = SlopedAttention()
    rules = model.Rules(attention=sloped)

    def function(given: Tensors) -> float:
        sloped.again()
        passed = model.forward(given, batch, c, call=call, rules=rules)
        return float(cross_entropy.total_loss(passed.logits, batch, passed.metrics, c)["total"])

    parts, gradients = model_gradients.model_gradients(tensors, batch, c, call=call)
    assert parts["total"] == pytest.approx(function(tensors), rel=1e-12)
    assert_gradients(function, tensors, gradients, np.random.default_rng(seed))


def test_the_row_of_the_start_token_is_trained_unless_it_is_frozen():
    fields, tensors, batch = model_cases.build(model_cases.fixed(blocks=1))
    c = Configuration(**fields)
    _, trained = model_gradients.model_gradients(tensors, batch, c)
    _, frozen = model_gradients.model_gradients(
        tensors, batch, c, of_embedding=part_gradients.frozen_start_gradient
    )
    name = "token_embedder/embedding"
    assert trained[name][0].any()
    assert not frozen[name][0].any()
    for other, gradient in trained.items():
        rows = slice(1, None) if other == name else slice(None)
        np.testing.assert_array_equal(gradient[rows], frozen[other][rows])
