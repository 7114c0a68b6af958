"""Published configurations, and what a configuration and a layout of layers refuse."""

from __future__ import annotations

from dataclasses import asdict, fields, replace
from typing import Any

import pytest
from rejections import NOT_COUNTS, NOT_FACTORS

from openmoe_spec import parameters
from openmoe_spec.config import BASE, MODEL_FIELDS, PUBLISHED, Configuration
from openmoe_spec.errors import RejectedError

COUNTS = (
    "num_layers",
    "num_moe_layers",
    "embed_dim",
    "num_heads",
    "head_dim",
    "mlp_dim",
    "num_experts",
    "num_selected_experts",
    "vocabulary_size",
    "max_group_size",
    "min_expert_capacity",
    "max_length",
)
NOT_FRACTIONS = {
    what: value for what, value in NOT_FACTORS.items() if not what.endswith("zero")
} | {"one": 1.0, "more than one": 1.5, "the smallest negative number": -5e-324}
NOT_FLAGS = {"a number": 1, "zero": 0, "a word": "false", "nothing": None}
NOT_WEIGHTS = {what: value for what, value in NOT_FACTORS.items() if not what.endswith("zero")} | {
    "the smallest negative number": -5e-324
}

NOT_OPTIONAL_COUNTS = {what: value for what, value in NOT_COUNTS.items() if what != "nothing"}

ILLEGAL_FIELDS: dict[str, dict[str, Any]] = {
    "name": {"an empty word": "", "a number": 1, "nothing": None, "bytes": b"base"},
    **dict.fromkeys(COUNTS, NOT_COUNTS),
    "train_capacity_factor": NOT_FACTORS,
    "eval_capacity_factor": NOT_FACTORS,
    "auxiliary_loss_factor": NOT_WEIGHTS,
    "router_z_loss_factor": NOT_WEIGHTS,
    "jitter_noise": NOT_FRACTIONS,
    "batch_prioritized_routing": NOT_FLAGS,
    "ignore_padding_tokens": NOT_FLAGS,
    "expert_mlp_dim": NOT_OPTIONAL_COUNTS,
    "num_kv_heads": NOT_OPTIONAL_COUNTS,
    "inputs_bidirectional_attention": NOT_FLAGS,
    "z_loss_factor": NOT_WEIGHTS,
    "label_smoothing": NOT_FRACTIONS,
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field}: {what}")
        for field, values in ILLEGAL_FIELDS.items()
        for what, value in values.items()
    ],
)
def test_an_illegal_field_of_a_configuration_is_rejected(field, value):
    with pytest.raises(RejectedError) as caught:
        replace(BASE, **{field: value})
    clause = "CFG-05" if field in MODEL_FIELDS else "CFG-02"
    assert (caught.value.argument, caught.value.clause) == (field, clause)


@pytest.mark.parametrize(
    ("field", "changes", "clause"),
    [
        ("num_selected_experts", {"num_selected_experts": 17}, "CFG-02"),
        ("num_selected_experts", {"num_experts": 1}, "CFG-02"),
        ("num_moe_layers", {"num_moe_layers": 13}, "CFG-02"),
        ("num_moe_layers", {"num_moe_layers": 5}, "CFG-02"),
        ("num_moe_layers", {"num_layers": 14}, "CFG-02"),
        ("num_kv_heads", {"num_kv_heads": 5}, "CFG-05"),
        ("num_kv_heads", {"num_kv_heads": 24}, "CFG-05"),
        ("num_kv_heads", {"num_kv_heads": 12, "num_heads": 16}, "CFG-05"),
        ("head_dim", {"head_dim": 63}, "CFG-05"),
        ("head_dim", {"head_dim": 1}, "CFG-05"),
    ],
)
def test_fields_of_a_configuration_that_do_not_fit_each_other_are_rejected(field, changes, clause):
    with pytest.raises(RejectedError) as caught:
        replace(BASE, **changes)
    assert (caught.value.argument, caught.value.clause) == (field, clause)


def test_every_field_of_a_configuration_has_illegal_values():
    assert set(ILLEGAL_FIELDS) == {field.name for field in fields(Configuration)}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_selected_experts": 16},
        {"num_experts": 1, "num_selected_experts": 1},
        {"num_moe_layers": 12},
        {"num_layers": 1, "num_moe_layers": 1},
        {"train_capacity_factor": 1, "eval_capacity_factor": 5e-324},
        {"auxiliary_loss_factor": 0.0, "router_z_loss_factor": 0},
        {"jitter_noise": 0.999},
        {"batch_prioritized_routing": True, "ignore_padding_tokens": True},
        {"max_group_size": 1, "min_expert_capacity": 1},
        {"expert_mlp_dim": None, "num_kv_heads": None},
        {"expert_mlp_dim": 1, "num_kv_heads": 1, "max_length": 1},
        {"num_kv_heads": 12, "head_dim": 2},
        {"inputs_bidirectional_attention": True, "z_loss_factor": 0, "label_smoothing": 0},
        {"label_smoothing": 0.999, "z_loss_factor": 1e308},
    ],
    ids=str,
)
def test_the_edge_of_the_legal_makes_a_configuration(changes):
    made = asdict(replace(BASE, **changes))
    assert made == asdict(BASE) | changes


# Copied by hand from the configuration files of the training code.
FIELDS_OF_THE_MODEL = {
    "expert_mlp_dim": None,
    "num_kv_heads": None,
    "max_length": 2048,
    "inputs_bidirectional_attention": False,
    "z_loss_factor": 1e-4,
    "label_smoothing": 0.0,
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_fields_of_the_whole_model_are_those_it_was_trained_with(name):
    c = PUBLISHED[name]
    assert {field: getattr(c, field) for field in MODEL_FIELDS} == FIELDS_OF_THE_MODEL
    assert (c.expert_width, c.key_value_heads) == (c.mlp_dim, c.num_heads)


def test_optional_widths_and_counts_stand_in_for_the_general_ones():
    c = replace(BASE, expert_mlp_dim=5, num_kv_heads=3)
    assert (c.expert_width, c.key_value_heads) == (5, 3)


@pytest.mark.parametrize(
    ("arguments", "argument"),
    [
        ((12, 5), "num_sparse"),
        ((12, 13), "num_sparse"),
        ((12, -1), "num_sparse"),
        ((12, 13, "TOP"), "num_sparse"),
        ((12, 3, "mixed"), "layout"),
        ((12, 3, None), "layout"),
        ((12, 3, ""), "layout"),
    ],
)
def test_sparse_layers_that_do_not_fit_are_rejected(arguments, argument):
    with pytest.raises(RejectedError) as caught:
        parameters.sparse_layers(*arguments)
    assert (caught.value.argument, caught.value.clause) == (argument, "PARAM-02")


@pytest.mark.parametrize("layout", parameters.LAYOUTS)
def test_a_model_may_have_no_sparse_layer(layout):
    assert parameters.sparse_layers(12, 0, layout) == ()


def test_a_rejected_error_is_a_value_error_that_names_argument_and_clause():
    error = RejectedError("k", "ROUTE-20", "must be in 1..8, got 9")
    assert isinstance(error, ValueError)
    assert str(error) == "k: must be in 1..8, got 9 [ROUTE-20]"
    assert (error.argument, error.clause) == ("k", "ROUTE-20")
