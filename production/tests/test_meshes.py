"""Layouts of a mesh, what they refuse, and models on them beside one device.

The clauses themselves are judged by the kit (`openmoe conform -i production@2x2x2`), here for what
it does not see: where tensors lie, parameters over data, forms of tensors, generation.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec

from openmoe_conformance import adapter as loading
from openmoe_conformance import model_cases
from openmoe_conformance.outcome import UsageError
from openmoe_production import (
    calling,
    decoding,
    grouping,
    mesh_layer,
    model,
    sampling,
    stacking,
    training,
)
from openmoe_production.adapter import Adapter
from openmoe_production.sharding import PARAMETERS_OVER_DATA, RULES, Layout, make_mesh
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError

CASE = model_cases.in_eighths(length=16)
FIELDS, PARAMETERS, BATCH = model_cases.build(CASE)
CONFIGURATION = Configuration(**FIELDS)


def compiled(function, **options):
    """Return a function jitted without the optimisation that takes most of a short run."""
    return jax.jit(function, compiler_options=calling.options(plain=True), **options)


def layout_of(*shape, rules=RULES):
    return Layout(make_mesh(*shape), rules)


def of_largest(got, wanted):
    got, wanted = np.asarray(got), np.asarray(wanted)
    return float(np.abs(got - wanted).max() / np.abs(wanted).max())


# ---- layouts -------------------------------------------------------------------------------


def test_one_table_says_where_every_tensor_lies():
    layout = layout_of(2, 2, 2)
    specs = layout.of_tensors(stacking.split_gates(PARAMETERS), CONFIGURATION)
    assert specs["token_embedder/embedding"] == PartitionSpec(("model",), None)
    assert specs["decoder/layers_0/self_attention/out/kernel"] == PartitionSpec(("model",), None)
    assert specs["decoder/layers_0/mlp/wi_0/kernel"] == PartitionSpec(None, None, ("model",))
    assert specs["decoder/layers_1/mlp/expert/wi_0/kernel"] == PartitionSpec(
        ("expert",), None, None, ("model",)
    )
    assert specs["decoder/layers_1/mlp/router/router_weights/w/kernel"] == PartitionSpec(None, None)
    assert specs["decoder/decoder_norm/scale"] == PartitionSpec(None)
    assert layout.spec("batch") == PartitionSpec(("data", "expert"))


def test_an_axis_of_one_device_splits_nothing():
    layout = layout_of(1, 8, 1)
    assert layout.spec("batch") == PartitionSpec(("expert",))
    assert layout.spec("vocab", "embed") == PartitionSpec(None, None)
    assert (layout.size("expert"), layout.size("mlp")) == (8, 1)


@pytest.mark.parametrize(
    ("rules", "parts"), [(RULES, (4, 2, 1)), (PARAMETERS_OVER_DATA, (8, 4, 2))]
)
def test_placed_tensors_take_their_part_of_memory(rules, parts):
    placed = layout_of(2, 2, 2, rules=rules).place(PARAMETERS, CONFIGURATION)
    names = ("layers_1/mlp/expert/wi_1/kernel", "layers_0/mlp/wi_1/kernel", "decoder_norm/scale")
    for name, count in zip(names, parts, strict=True):
        tensor = placed[f"decoder/{name}"]
        assert {shard.data.size * count for shard in tensor.addressable_shards} == {tensor.size}


def test_parts_of_a_gate_are_of_both_halves():
    name = "decoder/layers_0/mlp/wi_0/kernel"
    layout = layout_of(1, 1, 4)
    placed = layout.place(PARAMETERS, CONFIGURATION)[name]
    value, gate = np.split(PARAMETERS[name], 2, axis=-1)
    for shard in placed.addressable_shards:
        columns = shard.index[-1]
        assert np.array_equal(shard.data[:, 0], value[:, columns])
        assert np.array_equal(shard.data[:, 1], gate[:, columns])
    back = stacking.join_gates({name: placed})[name]
    assert np.array_equal(back, PARAMETERS[name])


# ---- what is refused -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_mesh(3, 3), "mesh: of 3 x 3 x 1 needs 9 devices, 8 are at hand"),
        (lambda: make_mesh(0), "data: must be a whole number, 1 or more, got 0"),
        (lambda: make_mesh(2, model=True), "model: must be a whole number, 1 or more, got True"),
        (
            lambda: layout_of(1, 1, 8).require_divisible("num_heads", 12, "joined_kv"),
            "num_heads: 12 cannot be split into 8 parts over model; 6 or 12 parts would do",
        ),
        (
            lambda: layout_of(2, 4).require_divisible("batch", 12, "batch"),
            "batch: 12 cannot be split into 8 parts over data x expert; 6 or 12 parts would do",
        ),
    ],
)
def test_a_mesh_that_does_not_fit_is_refused_by_name(make, message):
    with pytest.raises(RejectedError) as caught:
        make()
    assert str(caught.value).startswith(message)
    assert caught.value.clause == "MESH-06"


@pytest.mark.parametrize(
    ("change", "shape", "name"),
    [
        ({"num_experts": 6, "num_selected_experts": 2}, (1, 4, 1), "num_experts"),
        ({"num_heads": 3}, (1, 1, 2), "num_heads"),
        ({"num_kv_heads": 1}, (1, 1, 2), "num_kv_heads"),
        ({"mlp_dim": 9}, (1, 1, 2), "mlp_dim"),
        ({"expert_mlp_dim": 7}, (1, 1, 2), "expert_mlp_dim"),
        ({"vocabulary_size": 31}, (1, 1, 2), "vocabulary_size"),
        ({"embed_dim": 10}, (1, 1, 4), "embed_dim"),
    ],
)
def test_a_model_that_has_no_equal_parts_is_refused_by_field(change, shape, name):
    configuration = Configuration(**FIELDS | change)
    with pytest.raises(RejectedError, match=rf"^{name}: .* would do \[MESH-06\]"):
        layout_of(*shape).require(configuration)


def test_parameters_over_data_ask_for_a_width_that_data_divides():
    configuration = Configuration(**FIELDS | {"embed_dim": 9, "num_heads": 1, "head_dim": 2})
    layout_of(2).require(configuration)
    with pytest.raises(RejectedError, match="embed_dim: 9 cannot be split into 2 parts over data"):
        layout_of(2, rules=PARAMETERS_OVER_DATA).require(configuration)


@pytest.mark.parametrize(
    ("rows", "length", "shares", "experts", "message"),
    [
        (16, 4, 16, 8, "16 rows of 4 tokens make 8 groups, .*; 8 shares would do, or .* 2 "),
        (12, 2, 4, 32, "12 rows of 2 tokens get 4 rows of padding, .*; 16 rows would do"),
    ],
)
def test_shares_without_whole_groups_are_refused(rows, length, shares, experts, message):
    sizes = {"max_group_size": 4096, "num_experts": experts, "num_expert_replicas": 1}
    with pytest.raises(RejectedError, match=message):
        grouping.share_of_groups(rows // shares, length, shares=shares, **sizes)


# ---- numbers -------------------------------------------------------------------------------

SOME = [
    pytest.param((2, 2, 2), RULES, id="2x2x2"),
    pytest.param((2, 2, 2), PARAMETERS_OVER_DATA, id="2x2x2 over data"),
    pytest.param((8, 1, 1), PARAMETERS_OVER_DATA, id="8x1x1 over data"),
]


def stepped(parameters, layout=None):
    rule = training.adafactor(CONFIGURATION, form=stacking.form(parameters))
    state = jax.jit(rule.init)(parameters)
    step = partial(training.train_step, configuration=CONFIGURATION, layout=layout)
    jitted = compiled(partial(step, num_microbatches=2), donate_argnums=(0, 1))
    return jitted(parameters, state, BATCH)


@pytest.fixture(scope="module")
def alone():
    return stepped({name: jnp.array(value) for name, value in PARAMETERS.items()})


@pytest.mark.parametrize(("shape", "rules"), SOME)
def test_a_step_leaves_tensors_where_they_lay(alone, shape, rules):
    layout = layout_of(*shape, rules=rules)
    placed = layout.place(PARAMETERS, CONFIGURATION)
    lying = {name: value.sharding for name, value in placed.items()}
    found = stepped(placed, layout)
    for name, value in found.parameters.items():
        assert value.sharding.is_equivalent_to(lying[name], value.ndim), name
    joined = stacking.join_gates(found.parameters)
    for name, value in alone.parameters.items():
        assert of_largest(joined[name], value) < 1e-5, name
    for name, value in alone.shown.losses.items():
        np.testing.assert_allclose(found.shown.losses[name], value, rtol=5e-6)
    for part, norm in alone.gradient_norms.items():
        np.testing.assert_allclose(found.gradient_norms[part], norm, rtol=2e-5)
    for i, loads in alone.shown.loads.items():
        for name, counts in loads.items():
            assert np.array_equal(found.shown.loads[i][name], counts)


@pytest.mark.parametrize("options", [{}, {"remat": True}], ids=str)
@pytest.mark.parametrize("stacked", [False, True])
def test_every_form_of_tensors_gives_the_logits_of_one_device(stacked, options):
    wanted = compiled(partial(model.forward, configuration=CONFIGURATION))(PARAMETERS, BATCH)
    layout = layout_of(2, 2, 2, rules=PARAMETERS_OVER_DATA)
    tensors = stacking.stack(PARAMETERS, CONFIGURATION) if stacked else PARAMETERS
    placed = layout.place(tensors, CONFIGURATION)
    run = partial(model.forward, configuration=CONFIGURATION, layout=layout, **options)
    got = compiled(run)(placed, BATCH)
    assert of_largest(got.logits, wanted.logits) < 3e-6
    for i, decision in wanted.decisions.items():
        assert np.array_equal(got.decisions[i].expert_index, decision.expert_index)
        assert np.array_equal(got.decisions[i].kept, decision.kept)


def test_bfloat16_logits_lie_as_near_as_rounding():
    run = partial(model.forward, configuration=CONFIGURATION, dtype="bfloat16")
    wanted = compiled(run)(PARAMETERS, BATCH)
    layout = layout_of(2, 2, 2)
    forced = compiled(partial(run, layout=layout))(
        layout.place(PARAMETERS, CONFIGURATION), BATCH, decisions=wanted.decisions
    )
    assert forced.logits.dtype == jnp.float32
    assert of_largest(forced.logits, wanted.logits) < 5e-2


def test_forced_decisions_are_split_with_the_rows_of_a_loss():
    """As stored losses are judged; a share that was given the decisions of all rows was refused."""
    run = partial(model.forward, configuration=CONFIGURATION)
    forced = compiled(run)(PARAMETERS, BATCH).decisions
    other = {
        i: replace(one, expert_index=(one.expert_index + 1) % CONFIGURATION.num_experts)
        for i, one in forced.items()
    }
    layout = layout_of(2, 2, 2)
    placed = layout.place(PARAMETERS, CONFIGURATION)
    for decisions in (forced, other):
        loss = compiled(partial(model.loss_fn, configuration=CONFIGURATION))
        wanted, _ = loss(PARAMETERS, BATCH, decisions=decisions)
        spread = compiled(partial(model.loss_fn, configuration=CONFIGURATION, layout=layout))
        got, _ = spread(placed, BATCH, decisions=decisions)
        np.testing.assert_allclose(got, wanted, rtol=1e-6)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_generation_is_that_of_one_device(temperature):
    rows, length = 8, 12
    generator = np.random.default_rng(3)
    ids = generator.integers(2, 32, (rows, length)).astype(np.int32)
    ids[:, 0] = 0
    prompt = np.arange(length) <= generator.integers(1, 6, rows)[:, None]
    batch = {"decoder_input_tokens": ids, "decoder_causal_attention": prompt.astype(np.int32)}
    noise = jnp.asarray(generator.gumbel(size=(rows, length, 32)).astype(np.float32))

    def choose(logits, number):
        return sampling.sample(logits, noise=noise[:, number], temperature=temperature)

    def generated(parameters, layout=None):
        run = partial(decoding.generate, configuration=CONFIGURATION, choose=choose, layout=layout)
        return np.asarray(compiled(run)(parameters, batch))

    wanted = generated(PARAMETERS)
    assert (wanted != 0).sum() > rows
    for layout in (layout_of(2, 2, 2), layout_of(1, 1, 8)):
        assert np.array_equal(generated(layout.place(PARAMETERS, CONFIGURATION), layout), wanted)


def test_the_layer_takes_noise_and_forced_decisions_of_all_groups():
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(8, 12, 8)).astype(np.float32)
    noise = generator.uniform(0.5, 1.5, inputs.shape).astype(np.float32)
    names = ("wi_0", "wi_1", "wo")
    layer = {n: PARAMETERS[f"decoder/layers_1/mlp/expert/{n}/kernel"] for n in names}
    layer["router"] = PARAMETERS["decoder/layers_1/mlp/router/router_weights/w/kernel"]
    one = Adapter()
    wanted = one.moe(inputs, layer, k=2, capacity=2, noise=noise)
    run = partial(mesh_layer.layer, layout=layout_of(2, 2, 2), k=2, capacity=2)
    for given in ({"noise": noise}, {"noise": noise, "decision": wanted.decision}):
        got = compiled(run)(inputs, layer, **jax.tree.map(jnp.asarray, given))
        assert np.array_equal(got.decision.kept, wanted.decision.kept)
        assert of_largest(got.output, wanted.output) < 1e-5


# ---- the adapter ---------------------------------------------------------------------------


def test_an_adapter_of_a_mesh_runs_on_all_of_it():
    adapter, plain = Adapter("2x2x2"), Adapter()
    assert adapter.name == "openmoe_production on a mesh of 2x2x2"
    got = adapter.forward(PARAMETERS, BATCH, configuration=FIELDS)
    wanted = plain.forward(PARAMETERS, BATCH, configuration=FIELDS)
    assert of_largest(got.logits, wanted.logits) < 3e-6
    assert adapter.used == {(2, 2, 2): 1}
    assert plain.used == {(1, 1, 1): 1}


@pytest.mark.parametrize(
    ("changes", "mesh"),
    [
        ({"rows": 2}, (1, 2, 2)),
        ({"heads": 3}, (2, 2, 1)),
        ({"rows": 3}, (1, 1, 2)),
        ({"rows": 3, "heads": 3}, (1, 1, 1)),
        ({"experts": 5, "rows": 10}, (2, 1, 2)),
    ],
)
def test_what_does_not_fit_runs_on_the_largest_mesh_that_it_fits(changes, mesh):
    fields, parameters, batch = model_cases.build(CASE | {"vocabulary": 32} | changes)
    adapter = Adapter("2x2x2")
    adapter.forward(parameters, batch, configuration=fields)
    assert adapter.used == {mesh: 1}


def test_a_mesh_that_is_asked_for_is_used_or_refused():
    adapter = Adapter()
    assert len(adapter.meshes()) == 20
    adapter.forward(PARAMETERS, BATCH, configuration=FIELDS, mesh=(1, 4, 2))
    assert adapter.used == {(1, 4, 2): 1}
    fields, parameters, batch = model_cases.build(CASE | {"vocabulary": 32, "rows": 3})
    with pytest.raises(RejectedError, match="batch: 3 cannot be split into 4 parts"):
        adapter.forward(parameters, batch, configuration=fields, mesh=(1, 4, 2))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("@2x2", "write it as 2x2x2, data x expert x model, got '2x2'"),
        ("@two", "write it as 2x2x2"),
        ("@0x1x1", "data: must be a whole number, 1 or more, got 0"),
        ("@4x4x4", "of 4 x 4 x 4 needs 64 devices, 8 are at hand"),
    ],
)
def test_a_text_that_is_no_mesh_is_one_line(name, message):
    with pytest.raises(UsageError) as caught:
        loading.load(f"openmoe_production.adapter:Adapter{name}")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_the_text_behind_the_name_is_the_mesh():
    adapter = loading.load("openmoe_production.adapter:Adapter@1x2x1")
    assert adapter.name.endswith("1x2x1")
    with pytest.raises(UsageError, match="sub is no class that takes 'x'"):
        loading.load("operator:sub@x")


def test_joined_gates_are_refused_where_widths_are_split():
    with pytest.raises(RejectedError, match="split_gates"):
        model.forward(PARAMETERS, BATCH, CONFIGURATION, layout=layout_of(1, 1, 2))
