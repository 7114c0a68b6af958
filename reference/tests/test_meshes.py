"""A simulated mesh gives the numbers of one device: on every mesh, of layers and of whole models."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from openmoe_conformance import model_cases
from openmoe_conformance.protocol import MESHES
from openmoe_reference import (
    cross_entropy,
    decoding,
    gradients,
    mesh_layers,
    mesh_models,
    meshes,
    model,
    model_gradients,
    moe,
    optimizer,
    routing,
)
from openmoe_reference.meshes import Mesh
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError

RECORD = ("expert_index", "gate", "position", "kept")
ON_EVERY_MESH = pytest.mark.parametrize("mesh", [Mesh(*one) for one in MESHES], ids=str)


def normal(*shape, seed=0):
    return np.random.default_rng((seed, *shape)).normal(size=shape).astype(np.float32)


INPUTS = normal(8, 16, 8)
INPUTS[:, 3::4], INPUTS[2:4, -4:] = INPUTS[:, 2::4], 0
LAYER = {
    "router": normal(8, 8),
    "wi_0": normal(8, 8, 16),
    "wi_1": normal(8, 8, 8),
    "wo": normal(8, 8, 8, seed=1),
}
LAYER["router"][:, 5] = LAYER["router"][:, 2]
SIZES = {"k": 2, "capacity": 3}


def same_record(got, wanted):
    for name in RECORD:
        assert np.array_equal(getattr(got, name), getattr(wanted, name)), name


@ON_EVERY_MESH
@pytest.mark.parametrize("ignored", [False, True])
def test_a_layer_is_that_of_one_device(mesh, ignored):
    wanted = moe.moe(INPUTS, LAYER, ignore_padding=ignored, **SIZES)
    got = mesh_layers.moe(INPUTS, LAYER, mesh, ignore_padding=ignored, **SIZES)
    same_record(got.decision, wanted.decision)
    np.testing.assert_allclose(got.output, wanted.output, rtol=1e-5, atol=1e-4)
    for name, value in wanted.metrics.items():
        np.testing.assert_allclose(got.metrics[name], value, rtol=2e-6)


@ON_EVERY_MESH
@pytest.mark.parametrize("ignored", [False, True])
def test_its_gradients_are_those_of_one_device(mesh, ignored):
    decision = moe.moe(INPUTS, LAYER, ignore_padding=ignored, **SIZES).decision
    options = {
        "balance": 0.5,
        "z": 0.25,
        "padding_mask": routing.padding_mask(INPUTS) if ignored else None,
    }
    arrays = INPUTS, LAYER, normal(*INPUTS.shape, seed=2), decision
    wanted = gradients.layer_gradients(*arrays, **options)
    got = mesh_layers.layer_gradients(*arrays, mesh, **options)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_allclose(got[name], value, rtol=1e-10, atol=1e-10)


def test_a_forced_decision_is_used():
    decision = moe.moe(INPUTS[::-1].copy(), LAYER, **SIZES).decision
    wanted = moe.moe(INPUTS, LAYER, decision=decision, **SIZES)
    got = mesh_layers.moe(INPUTS, LAYER, Mesh(2, 2, 2), decision=decision, **SIZES)
    same_record(got.decision, wanted.decision)
    np.testing.assert_allclose(got.output, wanted.output, rtol=1e-5, atol=1e-4)


def test_confidence_is_no_mean_of_quotients():
    each = [moe.moe(part, LAYER, **SIZES).metrics for part in np.split(INPUTS, 4)]
    averaged = np.mean([one["router_confidence"] for one in each])
    got = mesh_layers.moe(INPUTS, LAYER, Mesh(4), **SIZES).metrics["router_confidence"]
    assert abs(got - averaged) > 1e-4


# ---- whole models --------------------------------------------------------------------------

SEVERAL = [Mesh(2), Mesh(1, 2, 1), Mesh(1, 1, 4), Mesh(2, 2, 2), Mesh(8), Mesh(1, 8, 1)]
ON_SEVERAL_MESHES = pytest.mark.parametrize("mesh", SEVERAL, ids=str)

CASE = model_cases.in_eighths(seed=1)
FIELDS, PARAMETERS, BATCH = model_cases.build(CASE)
CONFIGURATION = Configuration(**FIELDS)
CALL = model.Call(training=True)
ALONE = model.forward(PARAMETERS, BATCH, CONFIGURATION, call=CALL)


def of_largest(got, wanted):
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


@ON_SEVERAL_MESHES
def test_a_pass_and_its_loss_are_those_of_one_device(mesh):
    rules = mesh_models.rules(mesh)
    got = model.forward(PARAMETERS, BATCH, CONFIGURATION, call=CALL, rules=rules)
    for i, wanted in ALONE.decisions.items():
        assert np.array_equal(got.decisions[i].expert_index, wanted.expert_index)
        assert np.array_equal(got.decisions[i].kept, wanted.kept)
    assert of_largest(got.logits, ALONE.logits) < 2e-6
    one = cross_entropy.total_loss(ALONE.logits, BATCH, ALONE.metrics, CONFIGURATION)
    parts = mesh_models.total_loss(got.logits, BATCH, got.metrics, CONFIGURATION, mesh)
    assert parts.keys() == one.keys()
    for name, value in one.items():
        np.testing.assert_allclose(parts[name], value, rtol=3e-6)


@ON_SEVERAL_MESHES
def test_gradients_of_a_model_are_those_of_one_device(mesh):
    assert mesh_models.shares_stand_alone(16, 32, mesh, max_group_size=8, num_experts=8)
    call = replace(CALL, dtype="float64", decisions=ALONE.decisions)
    _, wanted = model_gradients.model_gradients(PARAMETERS, BATCH, CONFIGURATION, call=call)
    got = mesh_models.tensor_gradients(PARAMETERS, BATCH, CONFIGURATION, mesh, call=call)
    assert got.keys() == wanted.keys()
    for name, value in wanted.items():
        assert of_largest(got[name], value) < 1e-6, name  # divisors are float32


@pytest.mark.parametrize("mesh", [Mesh(2, 2, 2), Mesh(1, 1, 4)], ids=str)
def test_steps_are_those_of_one_device(mesh):
    case = CASE | {"rows": 8, "kind": "prefix"}
    _, _, batch = model_cases.build(case | {"vocabulary": 32})
    first = batch["decoder_causal_attention"].sum(axis=1).max()
    steps = {"steps": min(3, int(batch["decoder_input_tokens"].shape[1] - first))}
    arguments = PARAMETERS, batch, CONFIGURATION
    wanted, _, last = decoding.forced_steps(*arguments, **steps)
    got, _, cache = decoding.forced_steps(*arguments, rules=mesh_models.rules(mesh), **steps)
    assert of_largest(got, wanted) < 2e-6
    assert of_largest(cache.keys, last.keys) < 2e-6


def test_microbatches_are_slices_of_the_whole_batch():
    seen = []

    def of_batch(part):
        seen.append(part["decoder_input_tokens"][:, 1].tolist())
        return {"total": 1.0}, {"a": np.ones(1)}

    losses, _ = mesh_models.accumulated(of_batch, BATCH, Mesh(2, 2, 1), num_microbatches=2)
    ids = BATCH["decoder_input_tokens"][:, 1].tolist()
    assert seen == [ids[:8], ids[8:]]
    assert losses == {"total": 2.0}
    wanted, _ = optimizer.accumulated(of_batch, BATCH, num_microbatches=2)
    assert losses == wanted


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, -1])
def test_an_axis_is_a_number_of_devices(size):
    with pytest.raises(RejectedError, match=r"mesh\.expert: .* \[MESH-06\]"):
        Mesh(expert=size)


def test_what_has_no_equal_parts_is_refused_with_a_number_that_would_do():
    meshes.check_parts(groups=(6, 3), experts=(8, 1))
    with pytest.raises(RejectedError, match="experts: 6 have no 4 equal parts; 2 parts would do"):
        meshes.check_parts(groups=(6, 3), experts=(6, 4))


def test_rows_of_padding_are_refused_with_the_rows_that_would_do():
    layer = {"parameters": LAYER, "training": True, "k": 2, "num_expert_replicas": 1}
    sizes = {"train_capacity_factor": 1.25, "eval_capacity_factor": 2.0, "min_expert_capacity": 4}
    with pytest.raises(RejectedError, match="6 get 2 of padding, which no share has; 8 would do"):
        mesh_layers.moe_layer(normal(6, 2, 8), mesh=Mesh(2), max_group_size=64, **layer, **sizes)
