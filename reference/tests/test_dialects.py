"""The examples of SPEC.md chapter 23, executed: at each point what every option gives.

A test is named after its point and runs the rules that an option exchanges.
"""

from __future__ import annotations

import math
from dataclasses import asdict
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy import ndarray

from openmoe_conformance import model_cases
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import (
    attention,
    decoding,
    dialects,
    model,
    objectives,
    port_decoding,
    routing,
)
from openmoe_spec.config import Configuration
from openmoe_spec.dialects import DIALECTS, POINTS
from openmoe_spec.errors import RejectedError

bfloat16 = ml_dtypes.bfloat16


def options(**of_option: Any) -> pytest.MarkDecorator:
    """Run a test once an option with what it must give."""
    return pytest.mark.parametrize(("option", "wanted"), list(of_option.items()))


def test_every_option_of_every_point_has_an_example():
    for name, point in POINTS.items():
        (mark,) = globals()[f"test_{name}"].pytestmark
        assert [option for option, _ in mark.args[1]] == list(point.options), name


# ---------------------------------------------------------------------------- a sparse layer


@options(half_even=(16, 16, 4, 7), even_slots=(32, 32, 10, 7))
def test_capacity(option, wanted):
    rule = dialects.steps({"capacity": option}).capacity
    cases = ((64, 2.0, 4), (100, 1.25, 4), (36, 1.0, 4), (5, 0.1, 7))
    found = tuple(
        rule(tokens, num_experts=8, k=2, capacity_factor=factor, min_expert_capacity=least)
        for tokens, factor, least in cases
    )
    assert found == wanted


@options(
    by_experts=[((1, 2048), 32), ((1, 6), 6)],
    whole_call=[((1, 2048), 1), ((1, 5), 1)],
)
def test_groups(option, wanted):
    rule = dialects.steps({"groups": option}).groups
    row = rule(1, 2048, max_group_size=4096, num_experts=32)
    few = rule(1, 5, max_group_size=4096, num_experts=3, num_expert_replicas=2)
    assert [row, few] == wanted


@options(probabilities=0, logits=1)
def test_one_choice(option, wanted):
    logits = np.array([[[0, 2.0**-26]]], np.float32)  # equal after a float32 softmax
    decision = dialects.steps({"one_choice": option}).decide(
        routing.softmax(logits), k=1, capacity=1, logits=logits
    )
    assert decision.expert_index.tolist() == [[[wanted]]]
    assert decision.gate.tolist() == [[[0.5]]]


@options(float32=(1.001, 1), activation=(1, 0))
def test_router_kernel(option, wanted):
    inputs, kernel = np.ones((1, 1, 1), bfloat16), np.array([[1, 1.001]], np.float32)
    logits = dialects.steps({"router_kernel": option}).router_logits(inputs, kernel)
    assert logits[0, 0].tolist() == [1, float(np.float32(wanted[0]))]
    decision = routing.decide(routing.softmax(logits), k=1, capacity=1)
    assert decision.expert_index.item() == wanted[1]


@options(float32=(0.3337, "float32"), activation=(0.333984375, "bfloat16"))
def test_combine(option, wanted):
    value, dtype = wanted
    outputs = np.ones((1, 1, 1, 1), bfloat16)
    token, weight = np.zeros((1, 1, 1), np.int32), np.full((1, 1, 1), 0.3337, np.float32)
    got = dialects.steps({"combine": option}).combine(outputs, token, weight, tokens=1)
    assert (got.dtype, got.item()) == (dtype, float(np.float32(value)))


@options(group=4, batch=2)
def test_balance(option, wanted):
    # Two groups, each of them all on another one of four experts.
    probabilities = np.zeros((2, 3, 4), np.float32)
    probabilities[0, :, 0] = probabilities[1, :, 3] = 1
    chosen = np.array([[[0]] * 3, [[3]] * 3], np.int32)
    assert dialects.steps({"balance": option}).balance_loss(probabilities, chosen) == wanted


# ---------------------------------------------------------------------------- around the layers


@options(by_ids=[True, True, False, True, True], none=[True] * 5)
def test_token_mask(option, wanted):
    ids = np.array([[0, 5, 0, 0, 7]], np.int32)
    assert dialects.rules({"token_mask": option}).token_mask(ids).tolist() == [wanted]
    batch = {"decoder_input_tokens": ids, "decoder_target_tokens": np.where(ids == 0, 9, ids)}
    fields, tensors, _ = model_cases.build(model_cases.fixed())
    rules = dialects.rules({"token_mask": option})
    logits = model.forward(tensors, batch, Configuration(**fields), rules=rules).logits[0]
    assert [bool(row.any()) for row in logits] == wanted


@options(targets=[[1, 0, 0], [0, 0, 0], [1, 0, 1]], user=[[1, 0, 0], [1, 1, 0], [1, 1, 0]])
def test_attention_mask(option, wanted):
    batch = {
        "decoder_input_tokens": np.array([[0, 7, 3]], np.int32),
        "decoder_target_tokens": np.array([[7, 0, 9]], np.int32),
        "attention_mask": np.array([[1, 1, 0]], np.int32),
    }
    reasons = dialects.rules({"attention_mask": option}).visible(batch)
    assert np.logical_and.reduce(reasons).astype(int).tolist() == [wanted]


def weights_of(rules: model.Rules, bias: ndarray, logits: ndarray, kind: Any) -> ndarray:
    """Return the weights that one query of one head of width L gives to keys of these logits."""
    count = len(logits)
    # q = (1, 0, ...), k = (logit, 0, ...), and values that are the unit vectors.
    queries = np.zeros((1, 1, 1, count), kind)
    queries[..., 0] = 1
    keys = np.zeros((1, count, 1, queries.shape[-1]), kind)
    keys[0, :, 0, 0] = logits
    values = np.zeros_like(keys)
    values[0, np.arange(count), 0, np.arange(count)] = 1
    keywords = {name: rules.attention.keywords[name] for name in ("scale", "softmax_dtype")}
    return attention.attend(queries, keys, values, bias, **keywords)[0, 0, 0, :count]


@options(minus_1e10=[0.25] * 4, first_key_open=[1, 0, 0, 0])
def test_masked_keys(option, wanted):
    causal, padding = np.array([1, 1, 0, 0], bool), np.array([0, 0, 1, 1], bool)
    rules = dialects.rules({"masked_keys": option})
    bias = rules.bias((causal[None, None], padding[None, None]))  # of row 1 of four
    logits = np.array([0.5, -1, 2, 0], np.float32)
    assert weights_of(rules, bias, logits, np.float32).tolist() == wanted


@options(one=4, head_dim=1)
def test_attention_scale(option, wanted):
    logits, bias = np.zeros(16), np.zeros((1, 1, 16))  # heads of width 16
    logits[0] = 4
    bias[0, 0, 2:] = -1e10
    got = weights_of(dialects.rules({"attention_scale": option}), bias, logits, np.float64)
    assert got[0] / got[1] == pytest.approx(math.exp(wanted), rel=1e-12)


@options(activation=0.041504, float32=0.041260)
def test_softmax(option, wanted):
    bias, logits = np.zeros((1, 1, 64)), np.full(64, -1)
    logits[0] = 0
    got = weights_of(dialects.rules({"softmax": option}), bias, logits, bfloat16)
    assert got.dtype == bfloat16
    assert round(float(got[0]), 6) == wanted


@options(sequential=(12, 93), parallel=(6, 6))
def test_extra_mlp(option, wanted):
    for by, end in zip((1, 10), wanted, strict=True):
        after, found = dialects.rules({"extra_mlp": option}).sparse_block(
            np.ones((1, 1, 1)),
            mlp_norm=lambda x: x,
            experts=lambda x: 2 * x,
            extra_norm=lambda x, by=by: by * x,  # which is read in sequence alone
            extra_mlp=lambda x: 3 * x,
        )
        assert (after.item(), found.item()) == (3, end)


@options(cubic=(4, 3, [1.4621172, -0.8068243]), swiglu=(3, 2, [1.7615942, 2.8577224]))
def test_feed_forward(option, wanted):
    matrices, degree, values = wanted
    rules, steps = (make({"feed_forward": option}) for make in (dialects.rules, dialects.steps))
    assert rules.activations == steps.activations
    gate = [[2, 3, 1, -1], [0] * 4] if option == "cubic" else [[2, 3], [0] * 2]
    kernels = {"wi_0": gate, "wi_1": [[1, 1], [0, 0]], "wo": [[1, 0], [0, 1]]}
    kernels = {name: np.array([value], np.float64) for name, value in kernels.items()}
    assert sum(kernel.size for kernel in kernels.values()) == matrices * 2 * 2
    keywords = {"activations": rules.activations, "dtype": "float64"}
    inputs = np.array([[[1, 0]]], np.float64)
    output = rules.feed_forward(inputs, kernels, **keywords)[0, 0]
    np.testing.assert_allclose(output, values, rtol=1e-6)
    # Where silu is its argument, twice the input gives 2^degree times the output.
    far, farther = (rules.feed_forward(inputs * n, kernels, **keywords)[0, 0, 0] for n in (64, 128))
    assert farther / far == 2**degree


SMALLEST = {
    "name": "smallest",
    "num_layers": 1,
    "num_moe_layers": 1,
    "embed_dim": 1,
    "num_heads": 1,
    "head_dim": 2,
    "mlp_dim": 1,
    "num_experts": 1,
    "num_selected_experts": 1,
    "vocabulary_size": 4,
}


def constant_model(logit: float, **changes: Any) -> tuple[dict[str, Any], dict[str, ndarray]]:
    """Return a model whose every logit is the same: the norm of its stream is 1."""
    fields = asdict(Configuration(**SMALLEST | changes))
    tensors = {n: np.zeros_like(v) for n, v in model_cases.weights(fields, 0).items()}
    tensors["token_embedder/embedding"][:] = 2
    tensors["decoder/decoder_norm/scale"][:] = 1
    tensors["decoder/logits_dense/kernel"][:] = logit
    return fields, tensors


@options(float32=12.34, activation=12.3125)
def test_logits(option, wanted):
    fields, tensors = constant_model(12.34)
    rules, ids = dialects.rules({"logits": option}), np.array([[0, 3]], np.int32)
    batch = {"decoder_input_tokens": ids, "decoder_target_tokens": ids + 1 - (ids > 0)}
    call = model.Call(dtype="bfloat16")
    logits = model.forward(tensors, batch, Configuration(**fields), call=call, rules=rules).logits
    assert logits.dtype == np.float32
    assert (logits == np.float32(wanted)).all()


# ---------------------------------------------------------------------------- training


@options(weighted_mean=1.38649, all_ones=6 * 5.55539, all_ones_by_row=2 * 5.55539)
def test_cross_entropy(option, wanted):
    values = {"z_loss_factor": 1e-4}
    if option != "weighted_mean":
        values = {"z_loss_factor": 0.01, "label_smoothing": 0.001}
    fields, tensors = constant_model(0, auxiliary_loss_factor=0, router_z_loss_factor=0, **values)
    # Three rows of three tokens; the port's last one predicts nothing.
    for targets in (np.full((3, 3), 2, np.int32), np.array([[1, 2, 3]] * 3, np.int32)):
        batch = {"decoder_input_tokens": targets, "decoder_target_tokens": targets}
        found = ReferenceAdapter().loss(
            tensors, batch, configuration=fields, dialect={"cross_entropy": option}
        )
        assert found["total"] == pytest.approx(wanted, abs=1e-5)


@options(trained=True, frozen=False)
def test_start_embedding(option, wanted):
    fields, tensors, batch = model_cases.build(model_cases.fixed(blocks=1))
    found = ReferenceAdapter().model_gradients(
        tensors, batch, configuration=fields, dialect={"start_embedding": option}
    )["token_embedder/embedding"]
    assert found[0].any() == wanted
    assert found[1:].any()


@options(flat=[0.01] * 4 + [0.0031622777], linear=[0, 0.0001, 0.005, 0.01, 0.0031622777])
def test_warmup(option, wanted):
    rates = [
        ReferenceAdapter().learning_rate(step, dialect={"warmup": option})
        for step in (0, 100, 5000, 10_000, 100_000)
    ]
    np.testing.assert_allclose(rates, wanted, rtol=1e-6)


# ---------------------------------------------------------------------------- decoding


def last_logits(rule: str, place: int | None = None) -> ndarray:
    """Return the logits of slot 5 behind four slots of padding, decoded alone by a rule.

    `place` is its position id; by default the number of visible tokens before it.
    """
    fields, tensors, _ = model_cases.build(model_cases.fixed(blocks=1))
    c, keywords = Configuration(**fields), {"rules": dialects.rules("torch_port")}
    ids, mask = np.array([[0, 0, 0, 0, 7, 9]], np.int32), np.array([[0, 0, 0, 0, 1, 1]], np.int32)
    counted = port_decoding.counted(mask)[:, 5:]
    cache = port_decoding.empty_cache(c, 1, 6)
    cache, _ = port_decoding.cached_call(
        tensors, ids[:, :5], cache, c, attention_mask=mask[:, :5], **keywords
    )
    _, result = port_decoding.cached_call(
        tensors,
        ids[:, 5:],
        cache,
        c,
        attention_mask=mask,
        position_ids=counted if place is None else np.full((1, 1), place),
        decode_position=rule,
        **keywords,
    )
    return result.logits[0, 0]


@options(cache_index=5, position_ids=1, position_ids_plus_one=2)
def test_decode_position(option, wanted):
    same = last_logits("position_ids", wanted)
    np.testing.assert_array_equal(last_logits(option), same)
    assert (last_logits("position_ids", wanted - 1) != same).any()


def test_a_position_id_beyond_the_slots_is_rejected():
    assert last_logits("position_ids", 5).any()
    for rule, place in (("position_ids", 6), ("position_ids_plus_one", 5)):
        with pytest.raises(RejectedError, match=r"position_ids: .*DEC-09"):
            last_logits(rule, place)


@pytest.mark.parametrize(("rule", "equal"), [("position_ids", False), ("cache_index", True)])
def test_several_tokens_of_the_port_are_rotated_from_0_again(rule, equal):
    fields, tensors, batch = model_cases.build(
        model_cases.fixed(blocks=1, kind="full", rows=1), eval_capacity_factor=8.0
    )
    chunks, whole = (
        ReferenceAdapter().cached_calls(
            tensors,
            batch,
            configuration=fields,
            prefill=prefill,
            chunk=3,
            dialect={**DIALECTS["torch_port"], "decode_position": rule},
        )["logits"]
        for prefill in (4, 16)
    )
    np.testing.assert_allclose(chunks[:, :4], whole[:, :4], atol=1e-5)
    assert np.allclose(chunks[:, 4:], whole[:, 4:], atol=1e-5) == equal


@options(fed_again=[9], cached=[])
def test_prompt_end(option, wanted, monkeypatch):
    fields, tensors, _ = model_cases.build(model_cases.fixed(blocks=1))
    batch = {
        "decoder_input_tokens": np.array([[0, 7, 9, 0]], np.int32),
        "decoder_causal_attention": np.array([[1, 1, 1, 0]], np.int32),
    }
    happened: list[str | int] = []
    step, sample = decoding.step, ReferenceAdapter.sample

    def fed(parameters: Any, tokens: ndarray, *arguments: Any, **keywords: Any) -> Any:
        happened.extend(tokens.tolist())
        return step(parameters, tokens, *arguments, **keywords)

    def chosen(self: ReferenceAdapter, logits: ndarray, **keywords: Any) -> Any:
        happened.append("chosen")
        return sample(self, logits, **keywords)

    monkeypatch.setattr(decoding, "step", fed)
    monkeypatch.setattr(ReferenceAdapter, "sample", chosen)
    ReferenceAdapter().generate(
        tensors, batch, configuration=fields, dialect={"prompt_end": option}
    )
    assert happened[: happened.index("chosen")] == wanted


# ---------------------------------------------------------------------------- data


def prefix_example(split: int | None, **chosen: str) -> dict[str, list[int]]:
    """Return a PrefixLM example of ten tokens, 11 to 20; the ids of its mode are 5 and 6."""
    made = objectives.ul2_example(
        np.arange(11, 21),
        5,
        inputs_length=16,
        targets_length=16,
        vocabulary_size=400,
        prompt=np.array([5, 6]),
        split=split,
        dialect=chosen,
    )
    return {name: ids.tolist() for name, ids in made.items()}


@options(prepended=("[S2S] ", [5, 6]), none=("", []))
def test_mode_tokens(option, wanted):
    mode, ids = wanted
    assert objectives.objectives({"mode_tokens": option})[5].mode == mode
    made = prefix_example(4, mode_tokens=option)
    assert made == {"inputs": [*ids, 11, 12, 13, 14, 1], "targets": [*range(15, 21), 1]}


@options(uniform=list(range(1, 10)), half=[5] * 9)
def test_prefix_split(option, wanted):
    made = [prefix_example(split, prefix_split=option) for split in range(1, 10)]
    assert [one["inputs"] for one in made] == [[5, 6, *range(11, 11 + n), 1] for n in wanted]
    assert [one["targets"] for one in made] == [[*range(11 + n, 21), 1] for n in wanted]


def test_half_of_a_text_needs_no_draw():
    assert prefix_example(None, prefix_split="half") == prefix_example(5)
    with pytest.raises(RejectedError, match=r"split: .*OBJ-15"):
        prefix_example(None)
