"""Dialects as tables: their choices, values and refusals, and that a mixture of choices is honoured."""

from __future__ import annotations

from dataclasses import asdict, fields
from typing import Any

import naive_model
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from openmoe_conformance import model_cases
from openmoe_reference import cross_entropy, dialects, masks, model, moe
from openmoe_spec.config import PUBLISHED, Configuration
from openmoe_spec.dialects import DIALECTS, POINTS, T5X, choices, configuration
from openmoe_spec.errors import RejectedError

# ---------------------------------------------------------------------------- tables


def test_the_normative_dialect_is_the_first_option_of_every_point():
    assert {name: next(iter(point.options)) for name, point in POINTS.items()} == T5X
    assert DIALECTS["t5x"] == choices("t5x") == choices({}) == T5X


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_dialect_chooses_at_every_point(dialect):
    chosen = choices(dialect)
    assert list(chosen) == list(POINTS)
    for name, option in chosen.items():
        assert option in POINTS[name].options


def test_the_other_dialects_part_from_t5x_where_their_sources_do():
    apart = {
        dialect: {name for name, option in table.items() if option != T5X[name]}
        for dialect, table in DIALECTS.items()
    }
    paper = {"attention_scale", "extra_mlp", "feed_forward", "balance", "warmup"}
    paper |= {"mode_tokens", "prefix_split"}
    assert apart == {"t5x": set(), "paper": paper, "torch_port": set(POINTS) - paper}


def test_single_choices_stand_over_those_of_t5x():
    assert choices({"warmup": "linear"}) == {**T5X, "warmup": "linear"}


@pytest.mark.parametrize(
    ("dialect", "argument"),
    [
        ("flaxformer", "dialect"),
        ("", "dialect"),
        ("T5X", "dialect"),
        (None, "dialect"),
        (1, "dialect"),
        (["t5x"], "dialect"),
        ({"capacities": "half_even"}, "dialect"),
        ({1: "half_even"}, "dialect"),
        ({"capacity": "half_up"}, "dialect['capacity']"),
        ({"capacity": "targets"}, "dialect['capacity']"),
        ({"capacity": None}, "dialect['capacity']"),
        ({"warmup": "linear", "capacity": "t5x"}, "dialect['capacity']"),
    ],
    ids=str,
)
def test_an_unknown_dialect_point_or_option_is_rejected(dialect, argument):
    with pytest.raises(RejectedError) as caught:
        choices(dialect)
    assert (caught.value.argument, caught.value.clause) == (argument, "DIAL-01")


# ---------------------------------------------------------------------------- configurations

# Copied by hand from the published config.json files and the paper's tables 11 and 12.
CHANGED: dict[tuple[str, str], dict[str, Any]] = {
    ("torch_port", "base"): {"z_loss_factor": 0.01, "label_smoothing": 0.001},
    ("torch_port", "8b"): {"z_loss_factor": 0.01, "label_smoothing": 0.001},
    ("torch_port", "34b"): {
        "z_loss_factor": 0.01,
        "label_smoothing": 0.001,
        "router_z_loss_factor": 0.0001,
    },
    ("paper", "base"): {"z_loss_factor": 0.001, "mlp_dim": 3072},
    ("paper", "8b"): {"z_loss_factor": 0.001},
    ("paper", "34b"): {"z_loss_factor": 0.001, "router_z_loss_factor": 0.0001},
}


@pytest.mark.parametrize("dialect", DIALECTS)
@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_configuration_is_that_of_the_dialect(dialect, name):
    wanted = asdict(PUBLISHED[name]) | CHANGED.get((dialect, name), {})
    assert asdict(configuration(dialect, name)) == wanted


def test_what_the_z_losses_of_the_dialects_weigh():
    # log Z = 10 over the vocabulary; log Z = 2 over the experts of 34b.
    text = {d: 100 * configuration(d, "8b").z_loss_factor for d in DIALECTS}
    assert text == pytest.approx({"t5x": 0.01, "torch_port": 1.0, "paper": 0.1})
    router = {d: 4 * configuration(d, "34b").router_z_loss_factor for d in DIALECTS}
    assert router == pytest.approx({"t5x": 0.004, "torch_port": 0.0004, "paper": 0.0004})


@pytest.mark.parametrize(
    ("dialect", "name", "clause"),
    [("flaxformer", "base", "DIAL-01"), ("paper", "7b", "CFG-01"), ("t5x", "", "CFG-01")],
)
def test_an_unknown_published_configuration_is_rejected(dialect, name, clause):
    with pytest.raises(RejectedError, match=clause):
        configuration(dialect, name)


# ---------------------------------------------------------------------------- mixtures


def test_the_rules_of_t5x_are_the_default_rules():
    for named in (dialects.rules("t5x"), dialects.rules()):
        for field in fields(model.Rules):
            found = getattr(named, field.name)
            if field.name in ("attention", "moe"):
                found = found.func
            assert found is getattr(model.Rules(), field.name), field.name
        assert named.attention.keywords == {"scale": "one", "softmax_dtype": "activation"}
        assert named.moe.keywords == {"steps": moe.STEPS}
    configuration_, tensors, batch = model_cases.build(model_cases.fixed(seed=5))
    c = Configuration(**configuration_)
    default = model.forward(tensors, batch, c)
    named = model.forward(tensors, batch, c, rules=dialects.rules("t5x"))
    np.testing.assert_array_equal(named.logits, default.logits)


mixtures = st.fixed_dictionaries(
    {name: st.sampled_from(list(point.options)) for name, point in POINTS.items()}
)
whole = st.sampled_from(list(DIALECTS.values()))


@settings(derandomize=True, deadline=None, database=None, max_examples=60)
@given(model_cases.models(), mixtures | whole, st.integers(0, 2**16))
def test_a_mixture_of_choices_is_honoured_at_every_point(case, chosen, seed):
    cubic = chosen["feed_forward"] == "cubic"
    given_, _, batch = model_cases.build(
        case, train_capacity_factor=0.75, eval_capacity_factor=0.5, min_expert_capacity=1
    )
    tensors = model_cases.weights(given_, case["seed"], doubled_gate=cubic)
    mask = np.random.default_rng(seed).integers(0, 2, batch["decoder_input_tokens"].shape)
    mask[:, -1] = 1
    batch["attention_mask"] = mask.astype(np.int32)
    c = Configuration(**given_)
    naive = naive_model.forward(
        naive_model.Model(tensors, c, choices=chosen), batch, training=case["training"]
    )
    call = model.Call(training=case["training"], dtype="float64")
    got = model.forward(tensors, batch, c, call=call, rules=dialects.rules(chosen))
    np.testing.assert_allclose(got.logits, naive.logits, rtol=1e-9, atol=1e-9)
    for i, decision in naive.decisions.items():
        assert got.decisions[i].capacity == decision.capacity
        np.testing.assert_array_equal(got.decisions[i].kept, decision.kept)
        for name, value in naive.metrics[i].items():
            assert got.metrics[i][name] == pytest.approx(value, rel=1e-9, abs=1e-12, nan_ok=True)


# ---------------------------------------------------------------------------- consequences


@pytest.mark.parametrize(("dialect", "dropped"), [("t5x", 0), ("torch_port", 56), ("paper", 0)])
def test_choices_that_a_step_of_32_equal_tokens_drops(dialect, dropped):
    experts = 32
    generator = np.random.default_rng(0)
    gate = 2 if choices(dialect)["feed_forward"] == "cubic" else 1
    parameters = {
        "router": generator.normal(size=(4, experts)),
        "wi_0": generator.normal(size=(experts, 4, gate * 3)),
        "wi_1": generator.normal(size=(experts, 4, 3)),
        "wo": generator.normal(size=(experts, 3, 4)),
    }
    parameters = {name: value.astype(np.float32) for name, value in parameters.items()}
    token = np.tile(generator.normal(size=4).astype(np.float32), (32, 1, 1))
    layer = dialects.rules(dialect).moe(token, parameters, training=False, k=2)
    assert layer.decision.capacity == 4
    assert (~layer.decision.kept).sum() == dropped
    assert (layer.output == 0).all(axis=-1).sum() == dropped // 2


def test_padding_chooses_the_first_experts_with_equal_gates_where_the_mask_zeroes_it():
    ids = np.array([[0, 5, 0, 0, 7, 3]], np.int32)
    batch = {"decoder_input_tokens": ids, "decoder_target_tokens": np.full_like(ids, 9)}
    given_, tensors, _ = model_cases.build(model_cases.fixed(blocks=1, interval=1))
    for dialect, equal in (("t5x", True), ("torch_port", False)):
        rules = dialects.rules(dialect)
        decision = model.forward(tensors, batch, Configuration(**given_), rules=rules).decisions[0]
        padding = decision.expert_index.reshape(-1, 2)[2], decision.gate.reshape(-1, 2)[2]
        assert (padding[0].tolist() == [0, 1] and padding[1].tolist() == [0.25, 0.25]) == equal


def test_the_loss_of_the_port_ignores_its_labels():
    generator = np.random.default_rng(0)
    logits = generator.normal(size=(2, 5, 7)).astype(np.float32)
    losses = [
        cross_entropy.all_ones_loss(
            logits,
            generator.integers(0, 7, (2, 5)),
            z_loss=0.01,
            label_smoothing=0.001,
            by_row=by_row,
        )
        for by_row in (False, False, True)
    ]
    assert losses[0] == losses[1]
    assert losses[2] == pytest.approx(losses[0] / 2)


def test_key_0_is_visible_under_any_mask_of_the_port():
    mask = np.zeros((1, 3, 3), bool)
    bias = dialects.rules("torch_port").bias((mask, mask))
    assert bias[0, :, 0].tolist() == [0] * 3
    assert (bias[0, :, 1:] == -np.inf).all()  # two reasons, each the least float32
    assert (dialects.rules("t5x").bias((mask, mask)) == masks.MASKED).all()
