"""The reference's layers and model equal the naive ones, written from the text in plain loops.

Discrete results must be equal. The float64 reference agrees within 1e-9, float32 within the bounds
of SPEC.md; decisions of a rounded pass are forced on the naive one, so that no near-tie hides or
fakes an error.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import naive_layers
import naive_model
import naive_parameters
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy import ndarray

from openmoe_conformance import model_cases
from openmoe_reference import attention, feed_forward, layers, masks, model
from openmoe_spec import layouts, parameters
from openmoe_spec.config import PUBLISHED, Configuration

often = settings(derandomize=True, deadline=None, database=None, max_examples=100)
sometimes = settings(often, max_examples=25)

DTYPES = st.sampled_from(["float64", "float32", "bfloat16"])
seeds = st.integers(0, 2**16)


def normal(seed: int, *shape: int) -> ndarray:
    """Return float32 numbers of size 1."""
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def assert_near(got: Any, wanted: Any, relative: float, absolute: float | None = None) -> None:
    """Require agreement within a relative and an absolute bound (the same unless it is given)."""
    np.testing.assert_allclose(
        np.asarray(got, np.float64),
        np.asarray(wanted, np.float64),
        rtol=relative,
        atol=relative if absolute is None else absolute,
        equal_nan=True,
    )


# ---------------------------------------------------------------------------- parameters


@often
@given(st.integers(1, 12), st.integers(1, 12), st.sampled_from(parameters.LAYOUTS))
def test_sparse_layers_are_the_naive_ones(interval, sparse, layout):
    layers_ = interval * sparse
    wanted = tuple(naive_parameters.sparse_layers(layers_, sparse, layout))
    assert parameters.sparse_layers(layers_, sparse, layout) == wanted


@often
@given(model_cases.models(), st.booleans(), st.booleans())
def test_the_tensors_of_a_model_are_the_naive_ones(case, grouped, doubled_gate):
    changes = {"num_kv_heads": 1} if grouped else {}
    c = Configuration(**model_cases.configuration(case, **changes))
    found = parameters.parameters(c, doubled_gate=doubled_gate)
    wanted = naive_parameters.tensors(c, doubled_gate=doubled_gate)
    assert [(one.name, one.shape, one.axes) for one in found] == wanted
    counts = parameters.count(c, doubled_gate=doubled_gate)
    naive_counts = naive_parameters.counts(c, doubled_gate=doubled_gate)
    assert (counts.total, counts.activated) == tuple(naive_counts.values())


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_tensors_of_a_published_model_are_the_naive_ones(name):
    found = parameters.parameters(PUBLISHED[name])
    assert [(one.name, one.shape, one.axes) for one in found] == naive_parameters.tensors(
        PUBLISHED[name]
    )


@sometimes
@given(model_cases.models())
def test_names_and_orientation_in_the_port_are_the_naive_ones(case):
    _, tensors, _ = model_cases.build(case)
    wanted = naive_parameters.port_tensors(tensors)
    assert len(wanted) == len(tensors)
    for name, value in tensors.items():
        there, turned = layouts.port_name(name)
        np.testing.assert_array_equal(value.T if turned else value, wanted[there])
        assert layouts.name_from_port(there) == (name, turned)


# ---------------------------------------------------------------------------- layers


@often
@given(seeds, hnp.arrays(np.int32, (2, 5), elements=st.integers(-3, 9)), DTYPES)
def test_embeddings_are_the_naive_rows(seed, ids, dtype):
    table = normal(seed, 7, 4)
    rounding = "bfloat16" if dtype == "bfloat16" else "float64"
    wanted = [[naive_layers.embed(table.tolist(), i, rounding) for i in row] for row in ids]
    got = layers.embed(table, ids, dtype=dtype)
    assert got.dtype == dtype
    np.testing.assert_array_equal(got.astype(np.float64), wanted)


@often
@given(seeds, st.integers(1, 9), DTYPES, st.sampled_from([1e-4, 1.0, 1e4]))
def test_norms_are_the_naive_ones(seed, width, dtype, size):
    inputs, scale = normal(seed, 2, 3, width) * np.float32(size), normal(seed + 1, width)
    inputs[0, 0] = 0
    if dtype == "bfloat16":
        inputs = inputs.astype(ml_dtypes.bfloat16)
    rounding = "bfloat16" if dtype == "bfloat16" else "float64"
    wanted = [[naive_layers.norm(x, scale.tolist(), rounding) for x in b] for b in inputs.tolist()]
    got = layers.rms_norm(inputs, scale, dtype=dtype)
    assert got.dtype == dtype
    # A quotient next to the middle of two bfloat16 numbers may round to the other one.
    bound = {"float64": 1e-14, "float32": 5e-7, "bfloat16": 2**-7}[dtype]
    assert_near(got, wanted, bound, 1e-30)


@often
@given(hnp.arrays(np.int32, (3, 6), elements=st.integers(0, 2)))
def test_token_masks_are_the_naive_ones(ids):
    wanted = [naive_layers.token_mask(row) for row in ids.tolist()]
    np.testing.assert_array_equal(layers.token_mask(ids), np.array(wanted, bool))


@sometimes
@given(seeds, hnp.arrays(bool, (2, 3)), st.sampled_from([np.float32, ml_dtypes.bfloat16]))
def test_output_logits_are_the_naive_products_whatever_the_inputs_dtype(seed, mask, kind):
    inputs, kernel = normal(seed, 2, 3, 6).astype(kind), normal(seed + 1, 6, 11)
    wanted = np.array(
        [
            [naive_layers.project(x, kernel.tolist()) if keep else [0.0] * 11 for x, keep in row]
            for row in (zip(*pair, strict=True) for pair in zip(inputs.tolist(), mask, strict=True))
        ]
    )
    got = layers.output_logits(inputs, kernel, mask=mask)
    assert got.dtype == np.float32
    assert_near(got, wanted, 2e-6)
    assert (got[~mask] == 0).all()


@sometimes
@given(seeds, DTYPES, st.sampled_from([("swiglu", "linear"), ("swish", "linear")]))
def test_feed_forwards_are_the_naive_ones(seed, dtype, activations):
    width, hidden = 5, 3
    gate = 2 * hidden if activations[0] == "swiglu" else hidden
    kernels = {
        "wi_0": normal(seed, 2, width, gate),
        "wi_1": normal(seed + 1, 2, width, hidden),
        "wo": normal(seed + 2, 2, hidden, width),
    }
    inputs = normal(seed + 3, 2, 4, width)
    got = feed_forward.feed_forward(inputs, kernels, activations=activations, dtype=dtype)
    assert got.dtype == dtype
    wanted = [
        [
            naive_layers.feed_forward(x, **{name: one[e].tolist() for name, one in kernels.items()})
            for x in inputs[e].tolist()
        ]
        for e in range(2)
    ]
    bound = {"float64": 1e-13, "float32": 2e-5, "bfloat16": 0.2}[dtype]
    assert_near(got, wanted, bound)


# ---------------------------------------------------------------------------- attention


@st.composite
def rows_to_see(draw: st.DrawFn) -> dict[str, ndarray]:
    """Draw the arguments of `decoder_mask`: ids with padding anywhere, segments, prefixes."""
    shape = draw(st.integers(1, 3)), draw(st.integers(1, 7))
    found = {"target_ids": draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 2)))}
    if draw(st.booleans()):
        steps = draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 1)))
        found["segment_ids"] = steps.cumsum(axis=1).astype(np.int32)
    if draw(st.booleans()):
        found["causal_attention"] = draw(hnp.arrays(np.int32, shape, elements=st.integers(0, 1)))
    return found


@often
@given(rows_to_see())
def test_who_sees_whom_is_the_naive_answer(case):
    wanted = [
        naive_layers.visible_by_targets(
            row.tolist(),
            case["segment_ids"][b].tolist() if "segment_ids" in case else None,
            case["causal_attention"][b].tolist() if "causal_attention" in case else None,
        )
        for b, row in enumerate(case["target_ids"])
    ]
    np.testing.assert_array_equal(masks.decoder_mask(**case), wanted)


@sometimes
@given(seeds, st.sampled_from([2, 4, 8, 64, 128]), st.integers(0, 2047), DTYPES)
def test_rotations_and_their_tables_are_the_naive_ones(seed, head_dim, first, dtype):
    positions = np.arange(first, first + 3)
    sine, cosine = attention.rotary_tables(positions, head_dim)
    half = head_dim // 2
    for row, position in enumerate(positions.tolist()):
        for j in range(head_dim):
            wanted = naive_layers.sine_and_cosine(position, j % half, head_dim)
            assert (sine[row, j], cosine[row, j]) == wanted
    heads = normal(seed, 2, 3, 2, head_dim).astype(dtype)
    got = attention.rotate(heads, positions)
    assert got.dtype == dtype
    rounding = "bfloat16" if dtype == "bfloat16" else "float64"
    wanted_heads = np.zeros(heads.shape)
    for b, i, h in np.ndindex(heads.shape[:3]):
        vector = heads[b, i, h].astype(np.float64).tolist()
        wanted_heads[b, i, h] = naive_layers.rotate(vector, int(positions[i]), rounding)
    bound = {"float64": 1e-14, "float32": 5e-7, "bfloat16": 2**-6}[dtype]
    assert_near(got, wanted_heads, bound)


@st.composite
def attentions(draw: st.DrawFn) -> dict[str, Any]:
    """Draw an attention and a mask in which whole rows may be hidden."""
    seed = draw(seeds)
    heads, repeats, head_dim = draw(st.sampled_from([(1, 1, 2), (2, 1, 4), (4, 2, 2), (3, 3, 2)]))
    batch, length, width = draw(st.integers(1, 2)), draw(st.integers(1, 6)), 5
    sizes = {"query": heads, "key": heads // repeats, "value": heads // repeats}
    kernels = {
        name: normal(seed + i, width, count * head_dim) / 2
        for i, (name, count) in enumerate(sizes.items())
    }
    kernels["out"] = normal(seed + 3, heads * head_dim, width) / 2
    return {
        "inputs": normal(seed + 4, batch, length, width),
        "kernels": kernels,
        "mask": draw(hnp.arrays(bool, (batch, length, length))),
        "num_heads": heads,
        "scale": draw(st.sampled_from(["one", "head_dim"])),
    }


@often
@given(attentions(), DTYPES)
def test_attention_is_the_naive_one_rows_without_a_visible_key_included(case, dtype):
    mask, kernels = case.pop("mask"), case["kernels"]
    inputs = case["inputs"]
    rounding = "bfloat16" if dtype == "bfloat16" else "float64"
    head_dim = kernels["query"].shape[1] // case["num_heads"]
    given_kernels = {
        name: [[naive_layers.rounded(v, rounding) for v in row] for row in value.tolist()]
        for name, value in kernels.items()
    }
    wanted = [
        naive_layers.attention(
            [[naive_layers.rounded(v, rounding) for v in x] for x in inputs[b].tolist()],
            given_kernels,
            mask[b].tolist(),
            num_heads=case["num_heads"],
            dtype=rounding,
            scale=head_dim**-0.5 if case["scale"] == "head_dim" else 1.0,
        )
        for b in range(len(inputs))
    ]
    bias = masks.finite_bias((mask,))
    got, keys, values = attention.attention(**case, bias=bias, dtype=dtype)
    assert got.dtype == keys.dtype == values.dtype == dtype
    bound = {"float64": 1e-12, "float32": 1e-5, "bfloat16": 5e-2}[dtype]
    assert_near(got, [one.output for one in wanted], bound)
    assert_near(keys, [one.keys for one in wanted], bound)
    assert_near(values, [one.values for one in wanted], bound)


# ---------------------------------------------------------------------------- the model


@st.composite
def whole_models(draw: st.DrawFn, **fixed: Any) -> tuple[Configuration, Any, Any, dict[str, Any]]:
    """Draw configuration, parameters, batch and how the pass is run; any option of a layer."""
    case = draw(model_cases.models())
    changes = {
        "inputs_bidirectional_attention": draw(st.booleans()),
        "ignore_padding_tokens": draw(st.booleans()),
        "batch_prioritized_routing": draw(st.booleans()),
        "train_capacity_factor": draw(st.sampled_from([0.5, 1.25])),
        "min_expert_capacity": draw(st.sampled_from([1, 4])),
        "num_kv_heads": draw(st.sampled_from([None, 1])),
    }
    fields, tensors, batch = model_cases.build(case, **changes | fixed)
    replicas = draw(st.sampled_from([1, 1, 2]))
    call = {"training": case["training"], "num_expert_replicas": replicas}
    return Configuration(**fields), tensors, batch, call


def assert_same_decisions(got: dict[int, Any], wanted: dict[int, Any]) -> None:
    """Require the same choices, queues and drops in every sparse layer."""
    assert set(got) == set(wanted)
    for i, decision in wanted.items():
        for name in ("expert_index", "position", "kept"):
            np.testing.assert_array_equal(getattr(got[i], name), getattr(decision, name))
        assert got[i].capacity == decision.capacity


def assert_same_pass(result: Any, wanted: naive_model.Pass, bound: float) -> None:
    """Require everything that a pass shows to agree within `bound`."""
    assert_near(result.logits, wanted.logits, bound)
    for name, value in wanted.activations.items():
        assert_near(result.activations[name], value, bound)
    for i, decision in wanted.decisions.items():
        assert_near(result.decisions[i].gate, decision.gate, bound)
        assert set(result.metrics[i]) == set(wanted.metrics[i])
        for name, value in wanted.metrics[i].items():
            assert_near(result.metrics[i][name], value, bound)


@settings(sometimes, max_examples=60)
@given(whole_models())
def test_the_float64_model_is_the_naive_one(drawn):
    c, tensors, batch, options = drawn
    naive = naive_model.Model(tensors, c, replicas=options["num_expert_replicas"])
    wanted = naive_model.forward(naive, batch, training=options["training"])
    call = model.Call(**options, dtype="float64")
    result = model.forward(tensors, batch, c, call=call)
    assert_same_decisions(result.decisions, wanted.decisions)
    assert_same_pass(result, wanted, 1e-9)
    shown = {"decoder/decoder_norm", *wanted.activations}
    assert set(result.activations) == shown


@sometimes
@given(whole_models())
def test_the_float32_model_is_the_naive_one_with_its_own_decisions(drawn):
    c, tensors, batch, options = drawn
    result = model.forward(tensors, batch, c, call=model.Call(**options))
    assert result.logits.dtype == np.float32
    naive = naive_model.Model(tensors, c, replicas=options["num_expert_replicas"])
    wanted = naive_model.forward(naive, batch, decisions=result.decisions)
    assert_same_pass(result, wanted, 2e-5)


@sometimes
@given(whole_models())
def test_logits_are_exactly_zero_where_the_token_mask_is(drawn):
    c, tensors, batch, options = drawn
    for dtype in ("float32", "bfloat16"):
        result = model.forward(tensors, batch, c, call=model.Call(**options, dtype=dtype))
        for b, row in enumerate(batch["decoder_input_tokens"].tolist()):
            hidden = [not keep for keep in naive_layers.token_mask(row)]
            assert (result.logits[b][hidden] == 0).all()
            assert (result.logits[b][np.logical_not(hidden)] != 0).any(axis=-1).all()


@sometimes
@given(whole_models(), st.data())
def test_forced_decisions_are_taken_by_both(drawn, data):
    c, tensors, batch, options = drawn
    elsewhere = {**tensors}
    for name in tensors:
        if "router" in name:
            elsewhere[name] = normal(data.draw(seeds), *tensors[name].shape)
    call = model.Call(**options, dtype="float64")
    forced = model.forward(elsewhere, batch, c, call=call).decisions
    call = model.Call(**options, dtype="float64", decisions=forced)
    result = model.forward(tensors, batch, c, call=call)
    assert_same_decisions(result.decisions, forced)
    naive = naive_model.Model(tensors, c, replicas=options["num_expert_replicas"])
    assert_same_pass(result, naive_model.forward(naive, batch, decisions=forced), 1e-9)


# ---------------------------------------------------------------------------- bfloat16


@sometimes
@given(whole_models())
def test_the_stream_is_widened_by_the_first_experts_and_not_before(drawn):
    c, tensors, batch, options = drawn
    call = model.Call(**options, dtype="bfloat16")
    result = model.forward(tensors, batch, c, call=call)
    first = parameters.sparse_layers(c.num_layers, c.num_moe_layers)[0]
    for name, value in result.activations.items():
        sublayer = name.rpartition("/")[2]
        if sublayer.startswith("layers_"):
            wide = int(sublayer.removeprefix("layers_")) >= first
        else:
            layer = int(name.split("/")[1].removeprefix("layers_")) if "layers_" in name else -1
            of_experts = sublayer == "mlp" and layer in result.decisions
            wide = of_experts or sublayer == "router_weights"
        assert value.dtype == ("float32" if wide else "bfloat16"), name
    assert result.logits.dtype == np.float32


@sometimes
@given(whole_models())
def test_the_bfloat16_model_is_the_naive_one_within_what_rounding_does_to_that(drawn):
    c, tensors, batch, options = drawn
    call = model.Call(**options, dtype="bfloat16")
    result = model.forward(tensors, batch, c, call=call)
    common = {"replicas": options["num_expert_replicas"]}
    exact = naive_model.forward(
        naive_model.Model(tensors, c, **common), batch, decisions=result.decisions
    ).logits
    rounded = naive_model.forward(
        naive_model.Model(tensors, c, "bfloat16", **common), batch, decisions=result.decisions
    ).logits
    distance = np.sqrt(((result.logits - exact) ** 2).mean())
    own = np.sqrt(((rounded - exact) ** 2).mean())
    assert distance <= 2 * own
    assert np.sqrt(((result.logits - rounded) ** 2).mean()) <= 2 * own
