"""Adafactor, microbatches, a whole step of training, and what training begins with."""

from __future__ import annotations

import math
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from openmoe_conformance import model_cases
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_production import initialisation, optimizer, sharding, training
from openmoe_production.calling import call, options
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


# ---- gates in halves, blocks, tensors over devices ----------------------------------------------

GATE = ("mlp_embed", None, "mlp")
GATES = ("expert", "mlp_embed", None, "expert_mlp")
SPLIT = {
    "gate": ((128, 2, 72), GATE),
    "gate whose halves are narrow": ((160, 2, 72), GATE),
    "gate that is deeper than wide": ((300, 2, 64), GATE),
    "square gate": ((128, 2, 64), GATE),
    "small gate": ((100, 2, 64), GATE),
    "gate with one short axis": ((300, 2, 60), GATE),
    "gates of experts": ((4, 24, 2, 16), GATES),
    "gates of narrow experts": ((4, 40, 2, 8), GATES),
    "down": ((144, 132), ("mlp", "mlp_embed")),
    "small down": ((16, 24), ("mlp", "mlp_embed")),
    "down of experts": ((4, 16, 24), ("expert", "expert_mlp", "mlp_embed")),
    "norm": ((24,), ("embed",)),
}
SPLIT_AXES = {name: axes for name, (_, axes) in SPLIT.items()}


BLOCKS = ("gate", "small gate", "gates of experts", "down of experts", "norm")


def split_tensors(seed, blocks=0):
    generator = np.random.default_rng(seed)
    made = {}
    for name in BLOCKS if blocks else SPLIT:
        shape, axes = SPLIT[name]
        drawn = generator.normal(size=(*[blocks] * bool(blocks), *shape))
        apart = drawn.shape[: bool(blocks) + ("expert" in axes)]
        sizes = 4.0 ** np.arange(math.prod(apart)).reshape(*apart, *[1] * (drawn.ndim - len(apart)))
        made[name] = jnp.asarray((drawn * sizes).astype(np.float32))
    return made


def joined(values):
    """Return tensors, or their moments, with both halves of a gate as one axis."""
    return {
        name: value.reshape(*value.shape[:-2], -1) if value.shape[-2:-1] == (2,) else value
        for name, value in values.items()
    }


def quick(function):
    return jax.jit(function, compiler_options=options(plain=True))


def run(axes, values, gradients):
    """Return the changes of every update, and the state after them."""
    rule = optimizer.adafactor(axes)
    update, state, every = quick(rule.update), rule.init(values), []
    for one in gradients:
        changes, state = update(one, state, values)
        values = optax.apply_updates(values, changes)
        every.append(changes)
    return every, state


def test_a_gate_in_halves_is_updated_as_the_joined_one():
    axes = {name: tuple(axis for axis in named if axis) for name, named in SPLIT_AXES.items()}
    values, gradients = split_tensors(0), [split_tensors(seed) for seed in (1, 2, 3)]
    wanted, after = run(axes, joined(values), [joined(one) for one in gradients])
    found, state = run(SPLIT_AXES, values, gradients)
    close([joined(one) for one in found], wanted, 1e-6)
    shapes = {}
    for name, moments in state.slots.items():
        shapes[name] = {slot: value.shape for slot, value in moments.items() if value.size > 1}
        close(joined(moments), after.slots[name], 1e-6)
    assert shapes == {
        "gate": {"v_row": (128,), "v_col": (2, 72)},
        "gate whose halves are narrow": {"v_row": (2, 72), "v_col": (160,)},
        "gate that is deeper than wide": {"v_row": (2, 64), "v_col": (300,)},
        "square gate": {"v_row": (128,), "v_col": (2, 64)},
        "small gate": {"v": (100, 2, 64)},
        "gate with one short axis": {"v": (300, 2, 60)},
        "gates of experts": {"v_row": (4, 24), "v_col": (4, 2, 16)},
        "gates of narrow experts": {"v_row": (4, 40), "v_col": (4, 2, 8)},
        "down": {"v_row": (132,), "v_col": (144,)},
        "small down": {"v": (16, 24)},
        "down of experts": {"v_row": (4, 24), "v_col": (4, 16)},
        "norm": {"v": (24,)},
    }


def test_each_block_is_a_tensor_of_its_own():
    blocks = {name: ("block", *SPLIT_AXES[name]) for name in BLOCKS}
    values, gradients = split_tensors(0, blocks=3), [split_tensors(i, blocks=3) for i in (1, 2)]
    found, state = run(blocks, values, gradients)
    for block in range(3):
        one, *others = jax.tree.map(lambda value: value[block], [values, *gradients])  # noqa: B023
        wanted, after = run(SPLIT_AXES, one, others)
        found_here, slots = jax.tree.map(lambda value: value[block], (found, state.slots))  # noqa: B023
        close(found_here, wanted, 1e-6)
        close(slots, after.slots, 1e-6)
        assert jax.tree.map(jnp.shape, slots) == jax.tree.map(jnp.shape, after.slots)
    assert int(state.step) == 2


def placed(layout, axes, values):
    return {name: jax.device_put(one, layout.sharding(*axes[name])) for name, one in values.items()}


COLLECTIVE = re.compile(
    r"= (.*?) (?:all-(?:gather|reduce|to-all)|reduce-scatter|collective-permute)(?:-start)?\("
)


def travelling(program):
    """Return the sizes of the arrays that a compiled program sends between devices."""
    results = COLLECTIVE.findall(program.as_text())
    shapes = [shape for result in results for shape in re.findall(r"\[([\d,]*)\]", result)]
    return [math.prod(map(int, shape.split(","))) if shape else 1 for shape in shapes]


@pytest.fixture(scope="module")
def whole():
    """Return tensors, gradients, and what an update of them on one device gives."""
    values, gradients = split_tensors(0), split_tensors(1)
    rule = optimizer.adafactor(SPLIT_AXES)
    return values, gradients, quick(rule.update)(gradients, rule.init(values), values)


@pytest.mark.parametrize(
    ("mesh", "rules"),
    [
        ((1, 2, 4), sharding.RULES),
        ((2, 2, 2), sharding.RULES),
        ((2, 2, 2), sharding.PARAMETERS_OVER_DATA),
        ((4, 1, 2), sharding.PARAMETERS_OVER_DATA),
    ],
)
def test_what_is_split_over_devices_is_updated_where_it_lies(whole, mesh, rules):
    layout = sharding.Layout(sharding.make_mesh(*mesh), rules)
    values, gradients, wanted = whole
    rule = optimizer.adafactor(SPLIT_AXES)
    slots = optimizer.slot_axes(values, SPLIT_AXES)
    state = rule.init(values)
    state = optimizer.State(
        jax.device_put(state.step, layout.sharding()),
        {name: placed(layout, slots[name], moments) for name, moments in state.slots.items()},
    )
    given = (placed(layout, SPLIT_AXES, gradients), state, placed(layout, SPLIT_AXES, values))
    program = quick(rule.update).lower(*given).compile()
    largest = max(m[slot].size for m in state.slots.values() for slot in ("v_row", "v_col"))
    assert 0 < max(travelling(program)) <= largest  # means, and no part of a tensor
    changes, state = program(*given)
    close((changes, state), wanted, 2e-6)
    for name, change in changes.items():
        assert change.sharding.is_equivalent_to(given[2][name].sharding, change.ndim), name
        for slot, moment in state.slots[name].items():
            lies = layout.sharding(*slots[name][slot])
            assert moment.sharding.is_equivalent_to(lies, moment.ndim), (name, slot)


def test_a_gate_that_is_joined_first_is_gathered():
    """What the test before looks for is found where it happens."""
    layout = sharding.Layout(sharding.make_mesh(1, 2, 4))
    values = split_tensors(0)
    rule = optimizer.adafactor({"gate": ("mlp_embed", "mlp")})

    def update(gate):
        one = joined({"gate": gate})
        return rule.update(one, rule.init(one), one)[0]["gate"].reshape(gate.shape)

    gate = jax.device_put(values["gate"], layout.sharding(*GATE))
    assert max(travelling(quick(update).lower(gate).compile())) >= gate.size


# ---- rates, and Optax around it -----------------------------------------------------------------


@pytest.mark.parametrize("step", [0, 1, 999, 1000, 10**6])
def test_fine_tuning_has_one_rate_and_no_warm_up(step):
    assert float(optimizer.fine_tuning_rate(step)) == pytest.approx(1e-3, rel=1e-7)
    assert float(jax.jit(optimizer.fine_tuning_rate)(step)) == pytest.approx(1e-3, rel=1e-7)


def test_equal_rates_are_one_static_argument():
    one, same, other = map(optimizer.constant_rate, (0.25, 0.25, 0.5))
    assert one == same
    assert hash(one) == hash(same)
    assert one != other


@pytest.mark.parametrize(
    "rate",
    [optimizer.constant_rate(0.25), optimizer.fine_tuning_rate, optax.linear_schedule(1, 0, 4)],
)
def test_updates_are_proportional_to_any_schedule(rate):
    values, gradients = split_tensors(0), [split_tensors(seed) for seed in (1, 2, 3)]
    rule, scaled = (
        optimizer.adafactor(SPLIT_AXES, by) for by in (optimizer.constant_rate(1.0), rate)
    )
    state, plain, with_rate = rule.init(values), quick(rule.update), quick(scaled.update)
    for step, one in enumerate(gradients):
        units, after = plain(one, state, values)
        changes, state = with_rate(one, state, values)
        factor = float(rate(jnp.int32(step)))
        close(changes, jax.tree.map(lambda unit: factor * unit, units), 1e-6)  # noqa: B023
        close(state, after, 1e-6)


def test_it_is_one_of_the_links_of_a_chain_of_optax():
    values, gradients = split_tensors(0), split_tensors(1)
    rule = optimizer.adafactor(SPLIT_AXES)
    chain = optax.chain(optax.clip_by_global_norm(1.0), rule, optax.scale(0.5))
    changes, states = quick(chain.update)(gradients, chain.init(values), values)
    norm = sum(jnp.sum(one**2) for one in gradients.values()) ** 0.5
    small = jax.tree.map(lambda one: one / norm, gradients)
    wanted, state = quick(rule.update)(small, rule.init(values), values)
    close(changes, jax.tree.map(lambda one: 0.5 * one, wanted), 1e-5)
    close(states[1], state, 1e-5)


def test_it_runs_without_optax():
    program = (
        "import sys; sys.modules['optax'] = None\n"
        "import jax.numpy as jnp\n"
        "from openmoe_production import optimizer\n"
        "rule, one = optimizer.adafactor({'': ('embed',)}), {'': jnp.ones(3)}\n"
        "print(float(rule.update(one, rule.init(one), one)[0][''][0]))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert float(done.stdout) == pytest.approx(-0.01, rel=1e-6)


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
    close(found, total._replace(shown=total.shown._replace(metrics=mean.shown.metrics)))
    averaged = jitted(training.accumulated, built, batch, num_microbatches=2, averaged=True)
    close(averaged, mean._replace(shown=mean.shown._replace(loads=total.shown.loads)))


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
        trained = jitted(training.train_step, one, batch, state=state)
        parameters, state, shown = trained.parameters, trained.state, trained.shown
        if not losses:
            close((parameters, shown.losses), (plain.parameters, plain.shown.losses))
        losses.append(float(shown.losses["cross_entropy"]))
    assert int(state.step) == 8
    assert losses[-1] < 0.9 * losses[0]
    assert set(shown.metrics) == {0}
    assert {"fraction_tokens_left_behind", "router_confidence", "expert_usage"} < set(
        shown.metrics[0]
    )


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
    "experts of three axes": (lambda: update(shape=(2,) * 4, axes=(*UP, "mlp_embed")), "axes"),
    "experts within which blocks are": (
        lambda: update(shape=(2,) * 4, axes=("expert", "block", *UP[1:])),
        "axes",
    ),
    "a block within a tensor": (lambda: update(shape=(2, 2), axes=("embed", "block")), "axes"),
    "a last axis without a name": (lambda: update(shape=(2, 2), axes=("embed", None)), "axes"),
    "no parameters": (
        lambda: optimizer.adafactor(AXES).update({}, optimizer.adafactor(AXES).init({})),
        "parameters",
    ),
    "a constant rate of 0": (lambda: optimizer.constant_rate(0.0), "value"),
    "a rate of fine-tuning below step 0": (lambda: optimizer.fine_tuning_rate(-1), "step"),
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
