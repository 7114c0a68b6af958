"""Adafactor, microbatches, a whole step of training, and what training begins with."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from openmoe_conformance import model_cases
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_production import initialisation, optimizer, training
from openmoe_production.calling import call
from openmoe_production.training_adapter import TrainingAdapter
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.parameters import parameters as tree

REFERENCE = ReferenceAdapter()
UP = ("expert", "mlp_embed", "expert_mlp")
DOWN = ("expert", "expert_mlp", "mlp_embed")
TENSORS = {
    "vector": ((7,), ("embed",)),
    "small": ((6, 10), ("embed", "mlp")),
    "one short axis": ((127, 140), ("embed", "mlp")),
    "wide": ((128, 140), ("embed", "mlp")),
    "tall": ((140, 128), ("vocab", "embed")),
    "square": ((128, 128), ("embed", "joined_kv")),
    "router": ((130, 4), ("embed", "unmodeled")),
    "experts up": ((3, 4, 10), UP),
    "experts down": ((3, 10, 4), DOWN),
    "narrow experts up": ((3, 9, 4), UP),
    "narrow experts down": ((3, 4, 9), DOWN),
    "square experts up": ((2, 5, 5), UP),
    "square experts down": ((2, 5, 5), DOWN),
}
AXES = {name: axes for name, (_, axes) in TENSORS.items()}


def tensors(seed, scale=1.0):
    generator = np.random.default_rng(seed)
    made = {}
    for name, (shape, _) in TENSORS.items():
        drawn = generator.normal(size=shape) * scale
        if "experts" in name:  # experts of sizes of their own, so that one mean for all shows
            drawn *= 10.0 ** np.arange(shape[0])[:, None, None]
        made[name] = drawn.astype(np.float32)
    return made


def on_device(values):
    return jax.tree.map(jnp.asarray, values)


def close(got, wanted, bound=1e-5):
    for one, other in zip(jax.tree.leaves(got), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=bound, atol=bound * float(abs(other).max()))


def test_every_kind_of_tensor_is_updated_as_in_the_reference():
    one = optimizer.adafactor(AXES)
    update = jax.jit(one.update)
    wanted = tensors(0)
    wanted["small"][:] = 0  # moves all the same
    states = {name: REFERENCE.optimizer_state(*TENSORS[name]) for name in TENSORS}
    values = on_device(wanted)
    state = one.init(values)
    for step in range(4):
        gradients = tensors(step + 1, scale=10.0 ** (1 - step))
        gradients["router"][:5] = 0
        changes, state = update(on_device(gradients), state, values)
        values = optax.apply_updates(values, changes)
        rate = float(REFERENCE.learning_rate(step))
        for name, axes in AXES.items():
            found = REFERENCE.adafactor(
                wanted[name], gradients[name], states[name], axes=axes, step=step, rate=rate
            )
            wanted[name], states[name] = found["parameter"], found["state"]
            np.testing.assert_allclose(
                values[name], wanted[name], rtol=2e-6, atol=1e-7, err_msg=name
            )
            assert set(state.slots[name]) == set(optimizer.SLOTS)
            for slot, moment in states[name].items():
                got = state.slots[name][slot]
                assert got.dtype == jnp.float32
                assert got.shape == moment.shape, (name, slot)
                np.testing.assert_allclose(got, moment, rtol=2e-6, err_msg=f"{name} {slot}")
    assert int(state.step) == 4


def test_an_update_is_the_same_without_jit():
    names = ("vector", "wide", "narrow experts down")
    one = optimizer.adafactor(AXES)
    values, gradients = (on_device({name: tensors(i)[name] for name in names}) for i in (0, 1))
    state = one.init(values)
    plain, jitted = (run(gradients, state, values) for run in (one.update, jax.jit(one.update)))
    close(plain, jitted, 2e-6)


def test_moments_are_taken_as_a_checkpoint_has_them():
    """Rows and columns of any moments keep their names, also where experts are wider than long."""
    adapter, generator = TrainingAdapter(), np.random.default_rng(5)
    for name, (shape, axes) in TENSORS.items():
        state = {
            slot: generator.uniform(0.5, 2, moment.shape).astype(np.float32)
            for slot, moment in REFERENCE.optimizer_state(shape, axes).items()
        }
        state["m"][:] = 0
        parameter, gradient = generator.normal(size=(2, *shape)).astype(np.float32)
        options = {"axes": axes, "step": 3, "rate": 0.5}
        wanted = REFERENCE.adafactor(parameter, gradient, state, **options)
        found = adapter.adafactor(parameter, gradient, state, **options)
        np.testing.assert_allclose(
            found["parameter"], wanted["parameter"], rtol=2e-6, atol=1e-6, err_msg=name
        )
        used = [slot for slot in optimizer.SLOTS if wanted["state"][slot].size > 1]
        for slot in used:
            np.testing.assert_allclose(
                found["state"][slot], wanted["state"][slot], rtol=2e-6, err_msg=f"{name} {slot}"
            )


def test_narrow_gradients_are_widened_first():
    gradient = jnp.asarray(tensors(0)["vector"], jnp.bfloat16)
    one = optimizer.adafactor({"vector": ("embed",)})
    values = on_device({"vector": tensors(1)["vector"]})
    changes, state = one.update({"vector": gradient}, one.init(values), values)
    assert changes["vector"].dtype == jnp.float32
    square = np.asarray(gradient.astype(jnp.float32)) ** 2
    np.testing.assert_allclose(state.slots["vector"]["v"], square, rtol=1e-6)


@pytest.mark.parametrize(
    ("step", "rate"),
    [(0, 0.01), (9999, 0.01), (10_000, 0.01), (10_001, 0.00999950), (500_000, 0.001414214)],
)
def test_the_learning_rate_is_flat_until_step_ten_thousand(step, rate):
    assert float(optimizer.learning_rate(step)) == pytest.approx(rate, rel=1e-6)
    assert float(jax.jit(optimizer.learning_rate)(step)) == pytest.approx(rate, rel=1e-6)


def test_an_update_has_the_rate_of_the_step_before_it():
    values = {"vector": jnp.ones(3)}
    one = optimizer.adafactor(AXES, rate=lambda step: step.astype(jnp.float32))
    state = one.init(values)
    for step in range(3):
        changes, state = one.update({"vector": jnp.full(3, 2.0)}, state, values)
        np.testing.assert_allclose(changes["vector"], -np.full(3, step), rtol=1e-6)


def test_gradients_of_experts_alone_are_scaled():
    gradients = on_device(
        {
            "decoder/layers_1/mlp/expert/wo/kernel": np.ones(3, np.float32),
            "decoder/layers_1/mlp/router/router_weights/w/kernel": np.ones(3, np.float32),
        }
    )
    scaled = optimizer.scaled_gradients(gradients, num_expert_partitions=16)
    assert [float(value[0]) for value in scaled.values()] == [16, 1]


# ---- microbatches and whole steps ---------------------------------------------------------------

CASE = model_cases.fixed(rows=4, blocks=1, interval=1, kind="prefix", max_group_size=8)


@pytest.fixture(scope="module")
def built():
    fields, parameters, batch = model_cases.build(CASE)
    return Configuration(**fields), on_device(parameters), on_device(batch)


def jitted(function, built, batch, **options):
    configuration, parameters, _ = built
    arrays = {"parameters": parameters, "batch": batch}
    arrays |= {"state": options.pop("state")} if "state" in options else {}
    return call(
        function, "OPT-12", arrays, sized_by="parameters", configuration=configuration, **options
    )


def test_microbatches_are_slices_of_rows_whose_gradients_are_added_up(built):
    batch = built[2]
    halves = [
        jitted(training.accumulated, built, {name: value[rows] for name, value in batch.items()})
        for rows in (slice(0, 2), slice(2, 4))
    ]
    total = jax.tree.map(lambda a, b: a + b, *halves)
    mean = jax.tree.map(lambda a: a / 2, total)
    found = jitted(training.accumulated, built, batch, num_microbatches=2)
    close(found, total._replace(metrics=mean.metrics))
    averaged = jitted(training.accumulated, built, batch, num_microbatches=2, averaged=True)
    close(averaged, mean)


def test_a_step_is_that_of_the_reference():
    fields, values, batch = model_cases.build(CASE | {"interval": 2}, min_expert_capacity=1)
    states = {
        one.name: REFERENCE.optimizer_state(one.shape, one.axes)
        for one in tree(Configuration(**fields))
    }
    adapter, options = TrainingAdapter(), {"num_microbatches": 2, "num_expert_partitions": 4}
    for step in range(2):
        given = {"configuration": fields, "step": step, **options}
        wanted = REFERENCE.train_step(values, states, batch, **given)
        found = adapter.train_step(values, states, batch, **given)
        for name, part in wanted["loss"].items():
            assert found["loss"][name] == pytest.approx(float(part), rel=1e-5), name
        for name, value in wanted["parameters"].items():
            np.testing.assert_allclose(
                found["parameters"][name], value, rtol=1e-4, atol=1e-6, err_msg=name
            )
            for slot, moment in wanted["state"][name].items():
                np.testing.assert_allclose(
                    found["state"][name][slot],
                    moment,
                    rtol=2e-4,
                    atol=2e-5 * float(moment.max()),
                    err_msg=f"{name} {slot}",
                )
        values, states = wanted["parameters"], wanted["state"]


def test_steps_are_pure_the_same_under_jit_and_make_losses_fall(built):
    configuration, parameters, batch = built
    state = training.adafactor(configuration).init(parameters)
    plain = training.train_step(parameters, state, batch, configuration)
    losses = []
    for _ in range(8):
        one = (configuration, parameters, batch)
        parameters, state, parts, metrics = jitted(training.train_step, one, batch, state=state)
        if not losses:
            close((parameters, parts), (plain.parameters, plain.losses))
        losses.append(float(parts["cross_entropy"]))
    assert int(state.step) == 8
    assert losses[-1] < 0.9 * losses[0]
    assert set(metrics) == {0}
    assert {"fraction_tokens_left_behind", "router_confidence", "expert_usage"} < set(metrics[0])


# ---- initialisation -----------------------------------------------------------------------------


def test_fresh_tensors_have_the_deviations_they_were_drawn_with():
    configuration = Configuration(
        name="drawn",
        num_layers=2,
        num_moe_layers=1,
        embed_dim=256,
        num_heads=6,
        head_dim=64,
        mlp_dim=192,
        num_experts=4,
        expert_mlp_dim=160,
        vocabulary_size=640,
    )
    key = {"key": jax.random.key(3)}
    drawn = call(initialisation.initialise, "INIT-01", key, configuration=configuration)
    assert {name: value.shape for name, value in drawn.items()} == {
        one.name: one.shape for one in tree(configuration)
    }
    wanted = {
        "token_embedder/embedding": (1, False),
        "decoder/layers_0/self_attention/query/kernel": ((0.1 / 256 / 64) ** 0.5, False),
        "decoder/layers_0/self_attention/key/kernel": ((0.1 / 256) ** 0.5, False),
        "decoder/layers_0/self_attention/out/kernel": ((0.1 / 384) ** 0.5, False),
        "decoder/layers_0/mlp/wi_0/kernel": ((0.1 / 256) ** 0.5, True),
        "decoder/layers_0/mlp/wo/kernel": ((0.1 / 192) ** 0.5, True),
        "decoder/layers_1/mlp/router/router_weights/w/kernel": (0.02, False),
        "decoder/layers_1/mlp/expert/wi_0/kernel": ((0.1 / 256) ** 0.5, False),
        "decoder/layers_1/mlp/expert/wo/kernel": ((0.1 / 160) ** 0.5, False),
        "decoder/layers_1/extra_mlp/wi_1/kernel": ((0.1 / 256) ** 0.5, True),
        "decoder/logits_dense/kernel": ((0.1 / 256) ** 0.5, True),
    }
    for name, (deviation, cut) in wanted.items():
        unit = np.asarray(drawn[name], np.float64) / deviation
        error = unit.size**-0.5
        assert abs(unit.mean()) < 6 * error, name
        assert abs((unit**2).mean() - 1) < 6 * 2**0.5 * error, name
        most = 2 / initialisation.TRUNCATED  # the parent is wider, so that the variance holds
        assert (abs(unit).max() <= most * (1 + 1e-6)) == cut, name
    experts = np.asarray(drawn["decoder/layers_1/mlp/expert/wi_1/kernel"]).reshape(4, -1)
    correlations = np.corrcoef(experts)[np.triu_indices(4, 1)]
    assert abs(correlations).max() < 6 * experts.shape[1] ** -0.5
    first, second = (drawn[f"decoder/layers_{i}/self_attention/key/kernel"] for i in (0, 1))
    assert not np.array_equal(first, second)
    assert np.array_equal(drawn["decoder/decoder_norm/scale"], np.ones(256))


# ---- refusals -----------------------------------------------------------------------------------


def update(gradient=None, axes=("embed",), shape=(3,)):
    values = {"one": jnp.ones(shape)}
    one = optimizer.adafactor({"one": axes})
    gradient = jnp.ones(shape) if gradient is None else gradient
    return one.update({"one": gradient}, one.init(values), values)


def slices(count, rows=4):
    batch = {"decoder_input_tokens": np.zeros((rows, 2), np.int32)}
    training.require_microbatches(batch, count)


ADAPTER = TrainingAdapter()
ONES = np.ones(3, np.float32)
STATE = {"v_row": np.zeros(1), "v_col": np.zeros(1), "v": np.zeros(3), "m": np.zeros(1)}


def adapted(**changes):
    given = {"parameter": ONES, "gradient": ONES, "state": STATE, "axes": ("embed",)}
    return ADAPTER.adafactor(**given | {"step": 0, "rate": 0.1} | changes)


CASES = {
    "a step below 0": (lambda: optimizer.learning_rate(-1), "step"),
    "half a step": (lambda: ADAPTER.learning_rate(0.5), "step"),
    "too few axes": (lambda: update(axes=()), "axes"),
    "an axis of its own": (lambda: optimizer.adafactor({}).init({"one": ONES}), "axes"),
    "a rank of 3": (lambda: update(shape=(2, 2, 2), axes=("embed", "mlp", "heads")), "axes"),
    "experts by other axes": (
        lambda: ADAPTER.optimizer_state((2, 3, 4), ("expert", "embed", "mlp")),
        "axes",
    ),
    "a gradient of another shape": (lambda: update(jnp.ones(4)), "gradients"),
    "a gradient of integers": (lambda: update(jnp.ones(3, jnp.int32)), "gradients"),
    "an infinite gradient": (lambda: update(jnp.full(3, jnp.inf)), "gradients"),
    "an infinite gradient before jit": (lambda: adapted(gradient=ONES * np.nan), "gradient"),
    "an update below 0": (lambda: adapted(step=-1), "step"),
    "a rate of 0": (lambda: adapted(rate=0.0), "rate"),
    "no slices": (lambda: slices(0), "num_microbatches"),
    "slices that do not divide": (lambda: slices(3), "num_microbatches"),
    "more slices than rows": (lambda: slices(8), "num_microbatches"),
    "no partitions": (
        lambda: optimizer.scaled_gradients({}, num_expert_partitions=0),
        "num_expert_partitions",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_what_cannot_be_trained_with_is_refused(name):
    action, argument = CASES[name]
    with pytest.raises(RejectedError) as found:
        action()
    assert argument in found.value.argument
    assert found.value.clause == "OPT-12"
