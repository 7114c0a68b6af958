"""Dropout: where values are dropped, what they share, and that no mesh changes which. Spec: MODEL-12..MODEL-14."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openmoe_production import dropout, model, optimizer, stacking, training
from openmoe_production.collectives import ALONE
from openmoe_production.dropout import Dropout
from openmoe_production.initialisation import initialise
from openmoe_production.sharding import PARAMETERS_OVER_DATA, RULES, Layout, make_mesh
from openmoe_spec.config import Configuration

ROWS, LENGTH = 16, 32
TINY = Configuration(
    name="tiny",
    num_layers=2,
    num_moe_layers=1,
    embed_dim=16,
    num_heads=4,
    head_dim=8,
    mlp_dim=24,
    num_experts=8,
    vocabulary_size=64,
    max_length=64,
)
DRAWN = Dropout(jax.random.key(5), 0.3)


@pytest.fixture(scope="module")
def batch():
    targets = np.random.default_rng(0).integers(1, 64, (ROWS, LENGTH)).astype(np.int32)
    inputs = np.roll(targets, 1, axis=1)
    return {
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": targets,
        "decoder_loss_weights": np.ones((ROWS, LENGTH), np.float32),
    }


@pytest.fixture(scope="module")
def parameters():
    return initialise(TINY, jax.random.key(0))


def found(parameters, batch, **options):
    options = {"num_microbatches": 2, "dropout": DRAWN} | options
    drops = options.pop("dropout")
    step = jax.jit(partial(training.accumulated, configuration=TINY, **options))
    return step(parameters, batch, dropout=drops)


def alike(one, other, within=5e-6):
    np.testing.assert_allclose(one.shown.losses["total"], other.shown.losses["total"], rtol=1e-6)
    for name, gradient in one.gradients.items():
        largest = float(jnp.abs(gradient).max())
        np.testing.assert_allclose(
            gradient, other.gradients[name], rtol=0, atol=within * largest, err_msg=name
        )


@pytest.fixture(scope="module")
def alone(parameters, batch):
    return found(stacking.split_gates(parameters), batch)


MESHES = [((1, 8, 1), RULES), ((2, 2, 2), PARAMETERS_OVER_DATA), ((2, 1, 4), RULES)]


@pytest.mark.parametrize(("sizes", "rules"), MESHES, ids=["1x8x1", "over data", "2x1x4"])
def test_no_mesh_changes_what_is_dropped(alone, parameters, batch, sizes, rules):
    layout = Layout(make_mesh(*sizes), rules)
    alike(alone, found(stacking.split_gates(parameters), batch, layout=layout))


def test_neither_stacked_layers_nor_computing_them_again_changes_what_is_dropped(batch):
    deep = replace(TINY, num_layers=4, num_moe_layers=2)
    fresh = initialise(deep, jax.random.key(0))

    def loss(tensors, **options):
        taken = partial(model.loss_fn, configuration=deep, training=True, **options)
        return float(jax.jit(taken)(tensors, batch, dropout=DRAWN)[0])

    apart = loss(fresh)
    assert loss(stacking.stack(fresh, deep)) == pytest.approx(apart, rel=1e-6)
    assert loss(fresh, remat=True) == pytest.approx(apart, rel=1e-6)


def test_steps_and_microbatches_have_draws_of_their_own(parameters, batch):
    rule = training.adafactor(TINY)
    state = rule.init(parameters)

    update = jax.jit(partial(training.train_step, configuration=TINY))

    def loss(step):
        at = optimizer.State(jnp.int32(step), state.slots)
        made = update(parameters, at, batch, dropout=DRAWN)
        return float(made.shown.losses["total"])

    assert loss(3) == loss(3)
    assert loss(3) != loss(4)
    twice = {name: np.concatenate([value[:4]] * 2) for name, value in batch.items()}
    both = found(parameters, twice).shown.losses["total"]
    half = {name: value[:4] for name, value in batch.items()}
    first = found(parameters, half, num_microbatches=1).shown.losses["total"]
    assert float(both) != pytest.approx(2 * float(first), rel=1e-5)
    both, first = (
        found(parameters, rows, num_microbatches=number, dropout=None).shown.losses["total"]
        for rows, number in ((twice, 2), (half, 1))
    )
    assert float(both) == pytest.approx(2 * float(first), rel=1e-5)


def test_every_place_is_dropped_at_with_what_it_shares(parameters, batch, monkeypatch):
    places, applied = [], Dropout._applied

    def noted(self, values, kept):
        places.append((values.shape, kept.shape))
        return applied(self, values, kept)

    monkeypatch.setattr(Dropout, "_applied", noted)
    jax.make_jaxpr(partial(training.share_of_accumulated, configuration=TINY))(
        parameters, {name: value[None] for name, value in batch.items()}, DRAWN
    )
    del places[: len(places) // 2]  # shapes are asked for first
    row = ((ROWS, LENGTH, 16), (ROWS, 1, 16))
    hidden = ((ROWS, LENGTH, 24), (ROWS, 1, 24))
    weights = ((ROWS, 4, 1, LENGTH, LENGTH), (ROWS, 4, 1, 1, LENGTH))
    slots = ROWS * LENGTH * 5 // 4 // 8  # of an expert: 1.25 times an eighth of the tokens
    experts = ((8, slots, 24), (8, 1, 24))
    dense = [weights, row, hidden, row]
    sparse = [weights, row, experts, row, hidden, row]
    assert places == [row, *dense, *sparse, row]


@pytest.mark.parametrize("rate", [0.05, 0.5])
def test_what_is_kept_is_scaled_and_the_rate_is_the_rate(rate):
    one = Dropout(jax.random.key(1), rate)
    rows = np.asarray(one.of_rows(jnp.ones((64, 3, 128)), ALONE))
    kept = np.float32(1) / np.float32(1 - rate)
    assert set(np.unique(rows)) == {np.float32(0), kept}
    assert (rows == rows[:, :1]).all()
    assert not (rows == rows[:1]).all()
    size = 64 * 128
    assert abs((rows[:, 0] == 0).sum() - rate * size) < 5 * np.sqrt(size * rate * (1 - rate))
    experts = np.asarray(one.of_experts(jnp.ones((8, 5, 64)), ALONE))
    assert (experts == experts[:, :1]).all()
    assert not (experts == experts[:1]).all()
    of_queries = np.asarray(one.of_weights(jnp.ones((4, 2, 3, 5, 64)), ALONE))
    assert (of_queries == of_queries[..., :1, :]).all()
    assert not (of_queries == of_queries[:, :, :1]).all()
    assert one.of_rows(jnp.ones((2, 2, 2), jnp.bfloat16), ALONE).dtype == jnp.bfloat16


def test_places_have_draws_of_their_own():
    numbers = [dropout.EMBEDDED, dropout.NORMED, dropout.LAYERS]
    within = [dropout.WEIGHTS, dropout.ATTENDED, dropout.HIDDEN, dropout.FED]
    within += [dropout.EXTRA_HIDDEN, dropout.EXTRA_FED]
    keys = [DRAWN.at(one) for one in numbers[:2]]
    keys += [DRAWN.at(dropout.LAYERS + layer, one) for layer in range(4) for one in within]
    drawn = {np.asarray(jax.random.key_data(one.key)).tobytes() for one in keys}
    assert len(drawn) == 2 + 4 * 6
