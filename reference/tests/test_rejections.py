"""What the reference refuses: every public function, with the argument and the clause in the message.

The tables stand in the modules `rejections_*`: arguments that each function accepts, and one change
of them a row that it must refuse with RejectedError. Tests at the end hold the tables complete.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import fields
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import rejections_audit
import rejections_checkpoints
import rejections_data
import rejections_decoding
import rejections_grouping
import rejections_layers
import rejections_losses
import rejections_meshes
import rejections_model
import rejections_moe
import rejections_routing
import rejections_training
from rejections import LEGAL, call, changed_record
from rejections_routing import (
    CHANCES,
    CHOICE,
    DECISION,
    DROPPED,
    IGNORING,
    INPUTS,
    MASK,
    E,
    G,
    K,
    T,
)

import openmoe_reference
from openmoe_reference import routing
from openmoe_spec.errors import RejectedError

ILLEGAL = [
    row
    for table in (
        rejections_grouping,
        rejections_routing,
        rejections_moe,
        rejections_losses,
        rejections_layers,
        rejections_model,
        rejections_training,
        rejections_decoding,
        rejections_data,
        rejections_meshes,
        rejections_checkpoints,
        rejections_audit,
    )
    for row in table.ROWS
]


FLAGS = {
    *("training", "batch_prioritized", "ignore_padding", "scatter", "bidirectional", "by_row"),
    *("use_cache", "positions_from_mask", "feed_again", "doubled_gate"),
    *("reverse", "pack", "loss_on_targets_only", "weighted"),
}
"""Arguments whose values SPEC.md does not limit."""

OWN = {
    *("call", "rules", "steps", "how", "choose", "of_batch", "of_embedding", "generator"),
    "collectives",
    *("configuration", "kind", "sizes"),
}
"""Arguments that hold what the reference made, or a function: nothing that a user writes down."""

UNREAD = {
    "audit.check_choices": {"name"},
    "audit.check_counts": {"name"},
    "attention.attention": {"cache"},
    "cross_entropy.smoothing": {"vocabulary"},
    "cross_entropy.total_loss": {"metrics"},
    "decoding.prefill": {"end"},
    "grouping.expert_capacity": {"k"},
    "losses.metrics": {"balance"},
    "mesh_models.accumulated": {"batch"},
    "mesh_models.total_loss": {"metrics"},
    "moe.check_layer": {"activations"},
    "optimizer.accumulated": {"batch"},
    "port_decoding.greedy": {"end", "padding"},
    "routing.decide": {"logits"},
}
"""Arguments that a function hands on, or takes to be called like its neighbours."""

INNER = {
    *("batching.packed", "batching.shifted", "documents.split_tokens", "draws.permutations"),
    *("masks.visible_by_user", "masks.finite_bias", "masks.first_key_open_bias"),
    *("cross_entropy.logsumexp", "cross_entropy.router_losses", "dtypes.matmul"),
    *("feed_forward.projections", "feed_forward.silu", "grouping.one_group"),
    *("meshes.add", "meshes.exchange", "meshes.part_of_hidden", "meshes.parts_of"),
    *("meshes.joined", "meshes.tally", "meshes.metrics", "mesh_layers.feed_forward"),
    *("mesh_models.rules", "mesh_models.shares_stand_alone"),
    *("initialisation.deviation", "initialisation.initialise", "optimizer.initial_state"),
    *("model.run", "model.sequential_block", "model.parallel_block"),
    *("port_decoding.empty_cache", "port_decoding.counted"),
    *("sampling.among_largest", "sampling.among_mass"),
}
"""Functions that see nothing but what another one has checked before."""


@pytest.fixture(autouse=True)
def shape_checks() -> None:
    """Leave the annotations of the reference unchecked: here it must refuse by itself."""


def test_the_shape_checks_of_the_other_tests_are_off():
    values, order = routing._largest(np.zeros((2, 3), np.float64), 1)
    assert (values.dtype, order.tolist()) == (np.float64, [[0], [0]])


def assert_named(
    error: RejectedError, arguments: tuple[str, ...], clauses: tuple[str, ...]
) -> None:
    """Require a message of the form `argument: reason [clause]`, also in parts.

    A part of an argument may be named too: `decision.kept`, `parameters['wi_0']`.
    """
    assert str(error) == f"{error.argument}: {error.reason} [{error.clause}]"
    assert re.split(r"[.\[]", error.argument)[0] in arguments, str(error)
    assert error.clause in clauses, str(error)


@pytest.mark.parametrize("row", ILLEGAL, ids=str)
def test_an_illegal_call_is_rejected_by_argument_and_clause(row):
    with pytest.raises(RejectedError) as caught:
        call(row.function, **row.changes)
    assert_named(caught.value, row.arguments, row.clauses)


# ---------------------------------------------------------------------------- lists for arrays

ARRAYS = [
    (function, argument)
    for function, arguments in LEGAL.items()
    for argument, value in arguments.items()
    if isinstance(value, np.ndarray) and function not in INNER
]


def flat(result: Any) -> Iterator[np.ndarray]:
    """Yield the numbers of any result."""
    if isinstance(result, dict):
        result = tuple(result.values())
    elif hasattr(result, "__dataclass_fields__"):
        result = tuple(getattr(result, field.name) for field in fields(result))
    if isinstance(result, tuple):
        for part in result:
            yield from flat(part)
    else:
        yield np.asarray(result)


@pytest.mark.parametrize(("function", "argument"), ARRAYS)
def test_nested_lists_are_read_as_arrays_or_rejected(function, argument):
    nested = LEGAL[function][argument].tolist()
    try:
        result = call(function, **{argument: nested})
    except RejectedError as error:
        assert_named(error, (argument,), (error.clause,))
    else:
        for got, wanted in zip(flat(result), flat(call(function)), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------- what is legal


@pytest.mark.parametrize("function", LEGAL)
def test_the_legal_arguments_are_accepted(function):
    call(function)


EDGES = {
    "one token": ("grouping.padded_shape", {"batch": 1, "length": 1, "multiple": 1}),
    "a whole number as factor": ("grouping.expert_capacity", {"capacity_factor": 2}),
    "a tiny factor": ("grouping.expert_capacity", {"capacity_factor": 5e-324}),
    "a single group": ("grouping.to_groups", {"num_groups": 1}),
    "a token a group": ("grouping.to_groups", {"num_groups": 12}),
    "no padding": ("grouping.to_groups", {"padded": (2, 5), "num_groups": 1}),
    "k equal to E": ("routing.decide", {"k": E}),
    "a single choice": ("routing.decide_scatter", {"k": 1}),
    "a single slot": ("routing.decide", {"capacity": 1}),
    "more slots than tokens": ("routing.decide", {"capacity": 10 * T}),
    "as many slots as tokens": ("routing.experts_choose", {"capacity": T}),
    "only padding": ("routing.decide", {"padding_mask": np.zeros((G, T), bool)}),
    "probabilities of zero": ("routing.decide", {"probabilities": np.zeros_like(CHANCES)}),
    "no mask": ("routing.experts_choose", {"padding_mask": None}),
    "no noise": ("routing.router_logits", {"noise": None}),
    "bfloat16 inputs": ("moe.moe", {"inputs": INPUTS.astype(ml_dtypes.bfloat16)}),
    "a forced decision": ("moe.moe", {"decision": DECISION}),
    "a forced decision without padding": ("moe.moe", {"decision": IGNORING}),
    "a forced experts' choice": ("moe.moe", {"decision": CHOICE, "router": "experts_choose"}),
    "metrics of ignored padding": (
        "losses.metrics",
        {"decision": IGNORING, "padding_mask": MASK},
    ),
    "metrics of an experts' choice": ("losses.metrics", {"decision": CHOICE}),
    "a loss of no choices": (
        "losses.balance_loss",
        {"expert_index": np.full((G, T, K), -1, np.int32)},
    ),
}


@pytest.mark.parametrize("edge", EDGES)
def test_the_edge_of_the_legal_is_accepted(edge):
    function, changes = EDGES[edge]
    call(function, **changes)


def test_the_gate_of_a_dropped_choice_does_not_matter():
    record = changed_record(DECISION, gate=(DROPPED, math.nan))
    assert routing.combine_weights(record)[DROPPED] == 0
    for function in ("losses.metrics", "moe.slots", "moe.moe", "routing.combine_weights"):
        with_it, without = call(function, decision=record), call(function, decision=DECISION)
        for got, wanted in zip(flat(with_it), flat(without), strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.int64])
def test_whole_numbers_of_numpy_give_the_results_of_pythons(kind):
    for function, changes in (
        ("grouping.num_expert_replicas", {"device_count": 100}),
        ("grouping.padded_shape", {"batch": 99, "length": 101, "multiple": 16}),
        ("grouping.num_groups", {"num_tokens": 120, "num_experts": 20, "num_expert_replicas": 2}),
        ("grouping.num_groups", {"num_tokens": 4 * 100, "max_group_size": 1}),
        ("grouping.expert_capacity", {"tokens_per_group": 100}),
        ("routing.decide", {"k": 2, "capacity": 3}),
        ("moe.moe_layer", {"num_expert_replicas": 40, "k": 1}),
    ):
        whole = {
            name: kind(value)
            for name, value in changes.items()
            if np.iinfo(kind).min <= value <= np.iinfo(kind).max
        }
        assert whole
        for got, wanted in zip(
            flat(call(function, **changes | whole)), flat(call(function, **changes)), strict=True
        ):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_the_capacity_is_computed_in_float64_whatever_the_type_of_the_factor(kind):
    for factor in (0.1, 1.1, 1.25, 1.3, 2.0):
        for tokens, experts in ((1, 1), (36, 8), (4095, 7), (65536, 16), (131071, 3)):
            numbers = {"tokens_per_group": tokens, "num_experts": experts}
            wanted = call(
                "grouping.expert_capacity", **numbers, capacity_factor=float(kind(factor))
            )
            got = call("grouping.expert_capacity", **numbers, capacity_factor=kind(factor))
            assert (got, type(got)) == (wanted, int)


# ---------------------------------------------------------------------------- the tables are whole


def test_the_table_has_every_public_function_of_the_reference():
    public = set()
    for found in pkgutil.iter_modules(openmoe_reference.__path__):
        module = importlib.import_module(f"openmoe_reference.{found.name}")
        for name, function in vars(module).items():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                public.add(f"{found.name}.{name}")
    public = {name for name in public if "._" not in name and not name.startswith("arguments.")}
    assert set(LEGAL) == public


@pytest.mark.parametrize("function", sorted(set(LEGAL) - INNER))
def test_the_table_breaks_every_argument_that_is_limited(function):
    module, name = function.split(".")
    signature = inspect.signature(
        getattr(importlib.import_module(f"openmoe_reference.{module}"), name)
    )
    named = {p.name for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD}
    assert set(LEGAL[function]) == named
    broken = {argument for row in ILLEGAL if row.function == function for argument in row.changes}
    trusted = UNREAD.get(function, set()) | FLAGS | OWN
    assert named - broken <= trusted
    assert not broken & UNREAD.get(function, set())
