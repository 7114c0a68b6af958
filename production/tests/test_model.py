"""The whole model: layouts and options that change no result, gradients, programs, rejections."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from openmoe_conformance import model_cases
from openmoe_production import (
    attention,
    calling,
    cross_entropy,
    layers,
    model,
    programs,
    stacking,
)
from openmoe_production.adapter import Adapter
from openmoe_reference import model as reference
from openmoe_reference import model_gradients as reference_gradients
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Cache


def built(**changes):
    fields, parameters, batch = model_cases.build(model_cases.fixed(**changes))
    on_device = jax.tree.map(jnp.asarray, (parameters, batch))
    return Configuration(**fields), *on_device


def jitted(function, configuration, **options):
    """Return a function of a model compiled as the adapter compiles small ones."""
    fixed = partial(function, configuration=configuration, **options)
    return jax.jit(fixed, compiler_options=calling.options(plain=True))


def close(got, wanted, bound):
    largest = float(jnp.abs(wanted).max())
    np.testing.assert_allclose(got, wanted, rtol=0, atol=bound * max(largest, 1e-30))


def same_decisions(one, other):
    assert one.keys() == other.keys()
    for layer, decision in one.items():
        for name in ("expert_index", "position", "kept", "capacity"):
            assert np.array_equal(getattr(decision, name), getattr(other[layer], name)), name


def loss_gradients(parameters, batch, configuration, **options):
    return jax.grad(model.loss_fn, has_aux=True)(parameters, batch, configuration, **options)


# ---- against the reference -----------------------------------------------------------------


@pytest.mark.parametrize("kind", ["padded", "prefix_packed"])
def test_logits_and_gradients_are_those_of_the_float64_reference(kind):
    configuration, parameters, batch = built(kind=kind, seed=1)
    configuration = replace(configuration, num_kv_heads=1, ignore_padding_tokens=True)
    parameters = model_cases.weights(vars(configuration), 1)
    arrays = {name: np.asarray(value) for name, value in batch.items()}
    passed = jitted(model.forward, configuration, training=True)(parameters, batch)
    gradients, parts = jitted(loss_gradients, configuration, training=True)(parameters, batch)
    decisions = jax.tree.map(np.asarray, passed.decisions)
    call = reference.Call(training=True, dtype="float64", decisions=decisions)
    wanted = reference.forward(parameters, arrays, configuration, call=call)
    close(passed.logits, wanted.logits, 1e-5)
    losses, wanted = reference_gradients.model_gradients(
        parameters, arrays, configuration, call=call
    )
    assert gradients.keys() == wanted.keys()
    for name, value in wanted.items():
        close(gradients[name], value, 1e-5)
    for name, value in losses.items():
        assert float(parts[name]) == pytest.approx(value, rel=1e-5, abs=1e-6), name


# ---- stacked layers ------------------------------------------------------------------------

BLOCKS = {"blocks": 3, "interval": 2}


def test_parameters_are_stacked_and_unstacked_again():
    configuration, parameters, _ = built(**BLOCKS)
    stacked = model.stack(parameters, configuration)
    assert {name: value.shape for name, value in stacked.items()} == {
        name: one.shape
        for name, one in stacking.held(configuration, stacking.Form(stacked=True)).items()
    }
    assert stacked["decoder/blocks/layers_1/mlp/expert/wo/kernel"].shape[0] == 2
    back = model.unstack(stacked, configuration)
    assert back.keys() == parameters.keys()
    assert all(np.array_equal(back[name], parameters[name]) for name in parameters)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_scan_computes_what_single_layers_compute(dtype):
    configuration, parameters, batch = built(**BLOCKS, seed=3)
    run = jitted(model.forward, configuration, training=True, dtype=dtype, trace=True)
    plain, scanned = run(parameters, batch), run(model.stack(parameters, configuration), batch)
    same_decisions(scanned.decisions, plain.decisions)
    close(scanned.logits, plain.logits, 1e-6)
    assert scanned.activations.keys() == plain.activations.keys()
    for name, value in plain.activations.items():
        assert scanned.activations[name].dtype == value.dtype, name
        close(scanned.activations[name], value, 1e-6)
    for layer, metrics in plain.metrics.items():
        for name, value in metrics.items():
            assert float(scanned.metrics[layer][name]) == pytest.approx(float(value), rel=1e-6)


def test_decisions_are_forced_in_both_layouts():
    configuration, parameters, batch = built(**BLOCKS)
    run = jitted(model.forward, configuration, training=True)
    decisions = run(parameters, batch).decisions
    turned = {  # two experts exchanged: another choice than the layer's own
        layer: replace(one, expert_index=one.expert_index ^ 1) for layer, one in decisions.items()
    }
    stacked = model.stack(parameters, configuration)
    plain, scanned = (run(p, batch, decisions=turned) for p in (parameters, stacked))
    same_decisions(plain.decisions, turned)
    same_decisions(scanned.decisions, turned)
    close(scanned.logits, plain.logits, 1e-6)
    assert not np.allclose(plain.logits, run(parameters, batch).logits, atol=1e-3)
    arrays = jax.tree.map(np.asarray, (parameters, batch, turned))
    call = reference.Call(training=True, dtype="float64", decisions=arrays[2])
    close(plain.logits, reference.forward(*arrays[:2], configuration, call=call).logits, 1e-5)


# ---- options that change no result ---------------------------------------------------------


@pytest.mark.parametrize(("stacked", "remat"), [(False, True), (True, False), (True, True)])
def test_gradients_do_not_depend_on_layout_nor_on_computing_layers_again(stacked, remat):
    configuration, parameters, batch = built(blocks=3, interval=1, kind="packed")
    wanted, _ = jitted(loss_gradients, configuration, training=True)(parameters, batch)
    if stacked:
        parameters = model.stack(parameters, configuration)
    got, _ = jitted(loss_gradients, configuration, training=True, remat=remat)(parameters, batch)
    assert got.keys() == parameters.keys()
    for name, value in (model.unstack(got, configuration) if stacked else got).items():
        close(value, wanted[name], 1e-5)


def test_layers_computed_again_are_not_kept():
    configuration, parameters, batch = built(
        blocks=1, interval=6, width=16, length=16, hidden=64, kind="full"
    )

    def saved(**options):
        program = jax.make_jaxpr(
            lambda p: jax.vjp(lambda q: model.loss_fn(q, batch, configuration, **options)[0], p)[1]
        )(parameters)
        inputs = {id(variable) for variable in program.jaxpr.invars}
        kept = [one for one in program.jaxpr.outvars if id(one) not in inputs]
        return sum(one.aval.size for one in kept)

    assert saved(remat=True) < saved(remat=False) / 3


def test_a_program_gives_the_same_bits_twice():
    configuration, parameters, batch = built(kind="padded")
    differentiate = jitted(loss_gradients, configuration, training=True)
    first, second = (jax.tree.leaves(differentiate(parameters, batch)) for _ in range(2))
    assert all(one.tobytes() == two.tobytes() for one, two in zip(first, second, strict=True))


def test_activations_are_returned_when_asked_for():
    configuration, parameters, batch = built()
    forward = partial(model.forward, configuration=configuration)
    assert jax.eval_shape(forward, parameters, batch).activations is None


# ---- bfloat16 ------------------------------------------------------------------------------


def test_the_residual_stream_widens_at_the_first_experts():
    configuration, parameters, batch = built()  # layers 1 and 3 are sparse
    passed = jitted(model.forward, configuration, dtype="bfloat16", trace=True)(parameters, batch)
    kinds = {name: str(value.dtype) for name, value in passed.activations.items()}
    stream = [kinds["token_embedder"], *(kinds[f"decoder/layers_{i}"] for i in range(4))]
    assert stream == ["bfloat16", "bfloat16", "float32", "float32", "float32"]
    read = ("self_attention", "extra_mlp")
    assert all(kind == "bfloat16" for name, kind in kinds.items() if name.endswith(read))
    assert kinds["decoder/decoder_norm"] == "bfloat16"
    assert kinds["decoder/layers_2/mlp"] == "bfloat16"
    assert kinds["decoder/layers_1/mlp"] == kinds["decoder/layers_3/mlp"] == "float32"
    assert passed.logits.dtype == jnp.float32


def test_roundings_to_bfloat16_are_those_of_the_reference():
    fields, parameters, batch = model_cases.build(model_cases.fixed(seed=5))
    got = Adapter().forward(parameters, batch, configuration=fields, dtype="bfloat16")
    call = reference.Call(dtype="bfloat16", decisions=got.decisions)
    wanted = reference.forward(parameters, batch, Configuration(**fields), call=call).logits
    exact = reference.forward(
        parameters, batch, Configuration(**fields), call=replace(call, dtype="float64")
    ).logits
    assert np.abs(got.logits - wanted).max() < 0.2 * np.abs(exact - wanted).max()


# ---- a cache -------------------------------------------------------------------------------


def test_tokens_of_two_calls_see_one_another():
    # One expert of ample capacity: the groups of a call make no difference.
    configuration, parameters, batch = built(experts=2, k=1, kind="full", rows=2, length=8)
    configuration = replace(configuration, eval_capacity_factor=8.0)
    ids = batch["decoder_input_tokens"]
    visible = jnp.tril(jnp.ones((2, 8, 8), bool))
    run = jitted(model.run, configuration)
    whole = run(parameters, ids, visible)
    shape = (configuration.num_layers, 2, 8, configuration.num_heads, configuration.head_dim)
    cache = Cache(jnp.zeros(shape), jnp.zeros(shape), jnp.zeros(2, jnp.int32))
    logits = []
    for first, last in ((0, 5), (5, 8)):
        passed = run(
            parameters,
            ids[:, first:last],
            visible[:, first:last],
            positions=jnp.arange(first, last),
            cache=cache,
        )
        logits.append(passed.result.logits)
        cache = Cache(passed.keys, passed.values, jnp.full(2, last, jnp.int32))
    # An id of 0 is looked at together with the next one, which another call may hold.
    masked = layers.token_mask(ids) & (ids > 0)
    got = jnp.where(masked[..., None], jnp.concatenate(logits, axis=1), 0)
    close(got, jnp.where(masked[..., None], whole.result.logits, 0), 1e-5)
    close(cache.keys, whole.keys, 1e-5)


@pytest.mark.parametrize("stacked", [False, True])
def test_each_row_writes_at_its_own_slot_and_nothing_behind_the_last(stacked):
    configuration, parameters, _ = built(**BLOCKS, rows=3)
    if stacked:
        parameters = model.stack(parameters, configuration)
    shape = (configuration.num_layers, 3, 4, configuration.num_heads, configuration.head_dim)
    old = jnp.full(shape, 7.0)
    passed = jitted(model.run, configuration)(
        parameters,
        jnp.full((3, 1), 5),
        jnp.ones((3, 1, 4), bool),
        positions=jnp.asarray([[0], [2], [3]]),
        cache=Cache(old, old, jnp.asarray([0, 2, 4])),
    )
    for found in (passed.keys, passed.values):
        written = (found != 7).all(axis=(0, 3, 4))
        assert np.array_equal(written, [[1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 0]])
        assert np.array_equal((found != 7).any(axis=(0, 3, 4)), written)


# ---- programs ------------------------------------------------------------------------------


@pytest.mark.parametrize("stacked", [False, True])
def test_no_floats_are_scattered_and_the_router_is_exact(stacked):
    configuration, parameters, batch = built(**BLOCKS, width=16)
    if stacked:
        parameters = model.stack(parameters, configuration)
    found = programs.operations(
        lambda p: loss_gradients(p, batch, configuration, training=True), parameters
    )
    scattered = [one for one in found if "scatter" in one["name"]]
    assert scattered
    assert {one["outputs"][0]["dtype"] for one in scattered} == {"int32"}
    exact = {tuple(size) for one in found if one["precision"] == "highest" for size in _shapes(one)}
    kernels = {(16, configuration.num_experts), (16, configuration.vocabulary_size)}
    assert kernels <= exact
    rounded = [one for one in found if one["name"] == "dot_general" and one["precision"] is None]
    assert rounded
    assert not kernels & {tuple(size) for one in rounded for size in _shapes(one)}


def _shapes(operation):
    return [array["shape"] for array in operation["inputs"] + operation["outputs"]]


def test_equal_ids_add_up_in_the_embedding_gradient():
    generator = np.random.default_rng(0)
    ids = generator.integers(-2, 9, (3, 17))
    cotangent = generator.normal(size=(3, 17, 4)).astype(np.float32)

    @jax.jit
    def gradient(cotangent):
        return jax.vjp(lambda table: layers.embed(table, ids), jnp.ones((7, 4)))[1](cotangent)[0]

    wanted = np.zeros((7, 4))
    known = (ids >= 0) & (ids < 7)
    np.add.at(wanted, ids[known], cotangent[known].astype(np.float64))
    np.testing.assert_allclose(gradient(cotangent), wanted, rtol=1e-6, atol=1e-6)


def test_the_loss_keeps_one_array_of_the_vocabulary():
    logits = jnp.ones((2, 3, 1000))
    targets = jnp.zeros((2, 3), jnp.int32)
    program = jax.make_jaxpr(
        lambda x: jax.vjp(lambda y: cross_entropy.cross_entropy(y, targets, z_loss=0.1).loss, x)[1]
    )(logits)
    inputs = {id(variable) for variable in program.jaxpr.invars}
    kept = [one for one in program.jaxpr.outvars if id(one) not in inputs]
    assert all(one.aval.size < logits.size for one in kept)


# ---- rejections ----------------------------------------------------------------------------

CONFIGURATION, PARAMETERS, BATCH = built()
KERNEL = "decoder/layers_0/mlp/wi_0/kernel"
IDS = BATCH["decoder_input_tokens"]
LOGITS = jnp.zeros((1, 2, 5))
TARGETS = jnp.ones((1, 2), jnp.int32)
HEADS = jnp.ones((1, 2, 1, 4))
SQUARE = {name: jnp.ones((4, 4)) for name in attention.KERNELS}


def forward(parameters=PARAMETERS, **batch):
    return model.forward(parameters, {**BATCH, **batch}, CONFIGURATION)


def attend(inputs=HEADS[:, :, 0], kernels=SQUARE, visible=None, num_heads=2):
    return attention.attention(inputs, kernels, visible, num_heads=num_heads)


CASES = {
    "a missing leaf": (
        lambda: forward({n: v for n, v in PARAMETERS.items() if n != KERNEL}),
        KERNEL,
        "MODEL-09",
    ),
    "an extra leaf": (lambda: forward({**PARAMETERS, "bias": IDS}), "bias", "MODEL-09"),
    "a turned leaf": (
        lambda: forward({**PARAMETERS, KERNEL: PARAMETERS[KERNEL].T}),
        KERNEL,
        "MODEL-09",
    ),
    "a half leaf": (
        lambda: forward({**PARAMETERS, KERNEL: PARAMETERS[KERNEL].astype(jnp.bfloat16)}),
        KERNEL,
        "MODEL-09",
    ),
    "a stacked leaf too few": (
        lambda: forward(
            {
                **model.stack(PARAMETERS, CONFIGURATION),
                "decoder/blocks/layers_0/mlp/wo/kernel": jnp.ones((2, 12, 8)),
            }
        ),
        "blocks/layers_0/mlp/wo",
        "MODEL-09",
    ),
    "no mapping": (lambda: forward([IDS]), "parameters", "MODEL-09"),
    "an empty batch": (lambda: forward(decoder_input_tokens=IDS[:0]), "batch", "MODEL-10"),
    "rows too long": (
        lambda: forward(**{name: jnp.tile(value, (1, 5)) for name, value in BATCH.items()}),
        "decoder_input_tokens",
        "MODEL-10",
    ),
    "an unknown id": (
        lambda: forward(decoder_input_tokens=IDS.at[0, 3].set(model_cases.VOCABULARY)),
        "decoder_input_tokens",
        "MODEL-10",
    ),
    "ids that are no integers": (
        lambda: forward(decoder_input_tokens=IDS.astype(jnp.float32)),
        "decoder_input_tokens",
        "MODEL-10",
    ),
    "a row of padding": (
        lambda: forward(decoder_target_tokens=BATCH["decoder_target_tokens"].at[1].set(0)),
        "decoder_target_tokens",
        "MODEL-10",
    ),
    "segments that interleave": (
        lambda: forward(decoder_segment_ids=jnp.tile(jnp.asarray([1, 2]), (2, 8))),
        "decoder_segment_ids",
        "MODEL-10",
    ),
    "features of another length": (
        lambda: forward(decoder_positions=IDS[:, 1:]),
        "decoder_positions",
        "MODEL-10",
    ),
    "a feature of no name": (lambda: forward(inputs=IDS), "batch", "MODEL-10"),
    "no targets": (
        lambda: model.forward(PARAMETERS, {"decoder_input_tokens": IDS}, CONFIGURATION),
        "batch",
        "ATTN-12",
    ),
    "an unknown dtype": (
        lambda: model.forward(PARAMETERS, BATCH, CONFIGURATION, dtype="float16"),
        "dtype",
        "LAYER-08",
    ),
    "a decision of a dense layer": (
        lambda: model.forward(PARAMETERS, BATCH, CONFIGURATION, decisions={0: None}),
        "decisions",
        "MOE-11",
    ),
    "a table without width": (lambda: layers.embed(jnp.ones(3), IDS), "table", "LAYER-08"),
    "an infinite table": (
        lambda: layers.embed(jnp.full((3, 2), jnp.inf), IDS),
        "table",
        "LAYER-08",
    ),
    "a scale of another width": (
        lambda: layers.rms_norm(HEADS, jnp.ones(3)),
        "scale",
        "LAYER-08",
    ),
    "a mask of numbers": (
        lambda: layers.output_logits(HEADS[:, :, 0], jnp.ones((4, 3)), mask=jnp.ones((1, 2))),
        "mask",
        "LAYER-08",
    ),
    "ids in a row": (lambda: layers.token_mask(IDS[0]), "input_ids", "LAYER-08"),
    "heads that do not divide": (lambda: attend(num_heads=3), "num_heads", "ATTN-12"),
    "an odd head": (lambda: attend(num_heads=4), "head_dim", "ATTN-12"),
    "no output kernel": (
        lambda: attend(kernels={n: k for n, k in SQUARE.items() if n != "out"}),
        "kernels",
        "ATTN-12",
    ),
    "a key of another width": (
        lambda: attend(kernels={**SQUARE, "key": jnp.ones((3, 4))}),
        "key",
        "ATTN-12",
    ),
    "a mask of another size": (
        lambda: attend(visible=jnp.ones((1, 2, 3), bool)),
        "visible",
        "ATTN-12",
    ),
    "a position below 0": (
        lambda: attention.rotate(HEADS, jnp.asarray([-1, 0])),
        "positions",
        "ATTN-12",
    ),
    "an unknown target": (
        lambda: cross_entropy.cross_entropy(LOGITS, TARGETS * 5),
        "targets",
        "LOSS-25",
    ),
    "negative weights": (
        lambda: cross_entropy.cross_entropy(LOGITS, TARGETS, weights=-jnp.ones((1, 2))),
        "weights",
        "LOSS-25",
    ),
    "a factor of 0": (
        lambda: cross_entropy.cross_entropy(LOGITS, TARGETS, normalizing_factor=0.0),
        "normalizing_factor",
        "LOSS-25",
    ),
    "smoothing of 1": (
        lambda: cross_entropy.cross_entropy(LOGITS, TARGETS, label_smoothing=1.0),
        "label_smoothing",
        "LOSS-25",
    ),
    "an infinite z-loss": (
        lambda: cross_entropy.cross_entropy(LOGITS, TARGETS, z_loss=float("inf")),
        "z_loss",
        "LOSS-25",
    ),
    "targets of another length": (
        lambda: cross_entropy.cross_entropy(LOGITS, TARGETS[:, :1]),
        "targets",
        "LOSS-25",
    ),
    "an unknown factor": (
        lambda: cross_entropy.normalizer("MEAN", {"decoder_target_tokens": TARGETS}),
        "name",
        "LOSS-25",
    ),
    "weights of nothing": (
        lambda: cross_entropy.normalizer(
            "NUM_REAL_TARGET_TOKENS",
            {"decoder_target_tokens": TARGETS, "decoder_loss_weights": TARGETS * 0},
        ),
        "decoder_loss_weights",
        "LOSS-25",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_illegal_argument_is_named_with_its_clause(name):
    action, argument, clause = CASES[name]
    with pytest.raises(RejectedError) as found:
        action()
    assert argument in found.value.argument
    assert found.value.clause == clause


def test_a_misshaped_leaf_is_named_with_both_shapes():
    with pytest.raises(RejectedError) as found:
        forward({**PARAMETERS, KERNEL: PARAMETERS[KERNEL].T})
    assert KERNEL in str(found.value)
    assert "(8, 24)" in str(found.value)
    assert "(24, 8)" in str(found.value)


def test_stacked_layers_are_forced_all_or_none():
    configuration, parameters, batch = built(**BLOCKS)
    forward = partial(model.forward, configuration=configuration)
    decisions = jax.eval_shape(forward, parameters, batch).decisions
    stacked = model.stack(parameters, configuration)
    some = {layer: decisions[layer] for layer in (1, 3)}
    with pytest.raises(RejectedError, match="every stacked layer"):
        jax.eval_shape(lambda *given: forward(*given[:2], decisions=given[2]), stacked, batch, some)


def test_values_are_looked_at_before_a_jitted_call():
    fields, parameters, batch = model_cases.build(model_cases.fixed())
    adapter = Adapter()
    illegal = {
        "LAYER-08": {KERNEL: np.full_like(parameters[KERNEL], np.nan)},
        "MODEL-09": {KERNEL: parameters[KERNEL].astype(np.float64)},
    }
    for clause, leaves in illegal.items():
        with pytest.raises(RejectedError, match=clause):
            adapter.forward({**parameters, **leaves}, batch, configuration=fields)
    weights = np.zeros_like(batch["decoder_input_tokens"])
    for action in (adapter.loss, adapter.model_gradients):
        with pytest.raises(RejectedError, match="LOSS-25"):
            action(parameters, {**batch, "decoder_loss_weights": weights}, configuration=fields)
    decisions = adapter.forward(parameters, batch, configuration=fields).decisions
    lost = {1: replace(decisions[1], position=decisions[1].position - 9)}
    with pytest.raises(RejectedError, match="MOE-11"):
        adapter.forward(parameters, batch, configuration=fields, decisions=lost)
