"""The NNX module is a face: the same results as the pure functions, under nnx.jit and nnx.grad."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from openmoe_conformance import model_cases
from openmoe_production import calling, model, stacking
from openmoe_production.initialisation import initialise
from openmoe_production.modules import OpenMoE
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError

FIELDS, WEIGHTS, BATCH = jax.tree.map(
    lambda value: jnp.asarray(value) if isinstance(value, np.ndarray) else value,
    model_cases.build(model_cases.fixed(interval=1)),
)
CONFIGURATION = Configuration(**FIELDS)


def in_layout(*, stacked):
    return model.stack(WEIGHTS, CONFIGURATION) if stacked else WEIGHTS


@pytest.mark.parametrize("stacked", [False, True])
def test_a_module_holds_the_tensors_by_their_names(stacked):
    tensors = in_layout(stacked=stacked)
    module = OpenMoE.from_parameters(tensors, CONFIGURATION)
    held = module.parameters()
    assert held.keys() == tensors.keys()
    assert all(np.array_equal(held[name], tensors[name]) for name in tensors)
    assert np.array_equal(
        module.token_embedder.embedding.get_value(), WEIGHTS["token_embedder/embedding"]
    )


def test_a_new_module_is_drawn_from_its_stream():
    held = OpenMoE(CONFIGURATION, rngs=nnx.Rngs(params=7), stacked=True).parameters()
    assert {name: value.shape for name, value in held.items()} == {
        name: one.shape
        for name, one in stacking.held(CONFIGURATION, stacking.Form(stacked=True)).items()
    }
    drawn = initialise(CONFIGURATION, nnx.Rngs(params=7).params())
    flat = model.unstack(held, CONFIGURATION)
    assert all(np.array_equal(flat[name], drawn[name]) for name in drawn)


def test_a_call_is_a_forward_pass():
    module = OpenMoE.from_parameters(WEIGHTS, CONFIGURATION)
    got = nnx.jit(lambda m, batch: m(batch, training=True, trace=True))(module, BATCH)
    wanted = jax.jit(
        lambda p, batch: model.forward(p, batch, CONFIGURATION, training=True, trace=True)
    )(WEIGHTS, BATCH)
    assert jax.tree.structure(got) == jax.tree.structure(wanted)
    assert all(map(np.array_equal, jax.tree.leaves(got), jax.tree.leaves(wanted)))


@pytest.mark.parametrize(("stacked", "remat"), [(False, False), (True, True)])
def test_gradients_are_those_of_the_loss(stacked, remat):
    tensors = in_layout(stacked=stacked)
    module = OpenMoE.from_parameters(tensors, CONFIGURATION, remat=remat)
    differentiate = nnx.jit(
        nnx.value_and_grad(lambda m, batch: m.loss(batch, training=True), has_aux=True)
    )
    (total, parts), gradients = differentiate(module, BATCH)
    wanted, wanted_parts = jax.jit(
        jax.grad(lambda p: model.loss_fn(p, BATCH, CONFIGURATION, training=True), has_aux=True),
        compiler_options=calling.options(plain=True),
    )(WEIGHTS)
    assert float(total) == pytest.approx(float(wanted_parts["total"]), rel=1e-6)
    assert parts.keys() == wanted_parts.keys()
    found = {
        "/".join(path): variable.get_value() for path, variable in nnx.to_flat_state(gradients)
    }
    flat = model.unstack(found, CONFIGURATION) if stacked else found
    assert flat.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(
            flat[name], value, rtol=0, atol=1e-5 * float(jnp.abs(value).max()), err_msg=name
        )
    state = nnx.state(module, nnx.Param)
    nnx.update(module, jax.tree.map(lambda p, g: p - 0.05 * g, state, gradients))
    (lower, _), _ = differentiate(module, BATCH)
    assert float(lower) < float(total)


def test_other_tensors_are_rejected():
    with pytest.raises(RejectedError, match="MODEL-09"):
        OpenMoE.from_parameters({**WEIGHTS, "bias": jnp.ones(1)}, CONFIGURATION)
