"""Production refuses what the specification refuses, and names argument and clause."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

from openmoe_production import grouping, layers, losses, moe, routing
from openmoe_production.adapter import Adapter
from openmoe_spec.errors import RejectedError

UNIFORM = jnp.full((1, 3, 4), 0.25, jnp.float32)
ROWS = jnp.ones((1, 4, 3), jnp.float32)
WEIGHTS = {
    "router": jnp.ones((3, 2)),
    "wi_0": jnp.ones((2, 3, 10)),
    "wi_1": jnp.ones((2, 3, 5)),
    "wo": jnp.ones((2, 5, 3)),
}


def decide(**options):
    return routing.decide(**{"probabilities": UNIFORM, "k": 2, "capacity": 2} | options)


def layer(**options):
    return moe.moe(**{"inputs": ROWS, "parameters": WEIGHTS, "k": 1, "capacity": 2} | options)


CASES = {
    "k above E": (lambda: decide(k=5), "k", "ROUTE-20"),
    "k of 0": (lambda: decide(k=0), "k", "ROUTE-20"),
    "k a fraction": (lambda: decide(k=2.0), "k", "ROUTE-20"),
    "k a boolean": (lambda: decide(k=True), "k", "ROUTE-20"),
    "capacity of 0": (lambda: decide(capacity=0), "capacity", "ROUTE-20"),
    "capacity a fraction": (lambda: decide(capacity=1.5), "capacity", "ROUTE-20"),
    "not a number": (
        lambda: decide(probabilities=UNIFORM.at[0, 1, 2].set(jnp.nan)),
        "probabilities",
        "ROUTE-20",
    ),
    "negative": (lambda: decide(probabilities=-UNIFORM), "probabilities", "ROUTE-20"),
    "two axes": (lambda: decide(probabilities=UNIFORM[0]), "probabilities", "ROUTE-20"),
    "half precision": (
        lambda: decide(probabilities=UNIFORM.astype(jnp.float16)),
        "probabilities",
        "ROUTE-20",
    ),
    "mask of numbers": (
        lambda: decide(padding_mask=jnp.ones((1, 3))),
        "padding_mask",
        "ROUTE-20",
    ),
    "mask of another size": (
        lambda: decide(padding_mask=jnp.ones((1, 4), bool)),
        "padding_mask",
        "ROUTE-20",
    ),
    "more slots than tokens": (
        lambda: routing.experts_choose(UNIFORM, capacity=4),
        "capacity",
        "ROUTE-25",
    ),
    "kernel of another width": (
        lambda: routing.logits_and_probabilities(ROWS, jnp.ones((5, 2))),
        "kernel",
        "ROUTE-20",
    ),
    "infinite inputs": (
        lambda: routing.logits_and_probabilities(ROWS * jnp.inf, jnp.ones((3, 2))),
        "inputs",
        "ROUTE-20",
    ),
    "noise of another shape": (
        lambda: routing.logits_and_probabilities(ROWS, WEIGHTS["router"], noise=ROWS[:, :2]),
        "noise",
        "ROUTE-20",
    ),
    "unknown router": (lambda: layer(router="random"), "router", "MOE-11"),
    "unknown dtype": (lambda: layer(expert_dtype="float8"), "expert_dtype", "MOE-11"),
    "missing weights": (
        lambda: layer(parameters={n: w for n, w in WEIGHTS.items() if n != "wo"}),
        "parameters",
        "MOE-11",
    ),
    "extra weights": (lambda: layer(parameters={**WEIGHTS, "bias": ROWS}), "parameters", "MOE-11"),
    "single gate": (
        lambda: layer(parameters={**WEIGHTS, "wi_0": WEIGHTS["wi_1"]}),
        "wi_0",
        "MOE-11",
    ),
    "turned weights": (
        lambda: layer(parameters={**WEIGHTS, "wo": WEIGHTS["wo"].swapaxes(1, 2)}),
        "wo",
        "MOE-11",
    ),
    "infinite weights": (
        lambda: layer(parameters={**WEIGHTS, "wi_1": WEIGHTS["wi_1"] * jnp.inf}),
        "wi_1",
        "MOE-11",
    ),
    "a batch without axes": (
        lambda: moe.moe_layer(ROWS[0], WEIGHTS, training=True),
        "inputs",
        "MOE-11",
    ),
    "a largest group of 0": (
        lambda: moe.moe_layer(ROWS, WEIGHTS, training=True, max_group_size=0),
        "max_group_size",
        "GROUP-09",
    ),
    "a factor of 0": (
        lambda: moe.moe_layer(ROWS, WEIGHTS, training=True, train_capacity_factor=0.0),
        "capacity_factor",
        "GROUP-09",
    ),
    "no multiple": (
        lambda: grouping.num_groups(63, max_group_size=16, num_experts=4),
        "num_tokens",
        "GROUP-09",
    ),
    "no divisor": (
        lambda: grouping.to_groups(jnp.ones((2, 6, 1)), padded=(2, 6), group_size=5),
        "group_size",
        "GROUP-09",
    ),
    "no devices": (
        lambda: grouping.num_expert_replicas(0, num_expert_partitions=1, num_model_partitions=1),
        "device_count",
        "GROUP-09",
    ),
    "a choice that is no expert": (
        lambda: losses.balance_loss(UNIFORM, jnp.full((1, 3, 2), 4, jnp.int32)),
        "expert_index",
        "LOSS-13",
    ),
    "an expert of another width": (
        lambda: layers.gated_mlp(
            jnp.ones((2, 4, 5)), *(WEIGHTS[n] for n in ("wi_0", "wi_1", "wo"))
        ),
        "wi_1",
        "MOE-11",
    ),
    "padding that shrinks": (
        lambda: grouping.to_groups(jnp.ones((2, 6, 1)), padded=(2, 5), group_size=5),
        "padded",
        "GROUP-09",
    ),
    "groups of other tokens": (
        lambda: grouping.from_groups(jnp.ones((2, 6, 1)), padded=(2, 5), shape=(2, 5)),
        "padded",
        "GROUP-09",
    ),
    "a cut that is larger": (
        lambda: grouping.from_groups(jnp.ones((2, 6, 1)), padded=(2, 6), shape=(2, 7)),
        "shape",
        "GROUP-09",
    ),
    "infinite logits": (lambda: losses.router_z_loss(ROWS * jnp.inf), "logits", "LOSS-13"),
    "choices of another size": (
        lambda: losses.balance_loss(UNIFORM, jnp.zeros((1, 2, 2), jnp.int32)),
        "expert_index",
        "LOSS-13",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_an_illegal_argument_is_named_with_its_clause(name):
    action, argument, clause = CASES[name]
    with pytest.raises(RejectedError) as found:
        action()
    assert argument in found.value.argument
    assert found.value.clause == clause
    assert str(found.value).endswith(f"[{clause}]")


def test_values_are_looked_at_before_a_jitted_call():
    adapter = Adapter()
    with pytest.raises(RejectedError, match="probabilities"):
        adapter.decide(np.full((1, 3, 4), np.nan, np.float32), k=1, capacity=1)
    with pytest.raises(RejectedError, match="float32"):
        adapter.decide(np.full((1, 3, 4), 0.25), k=1, capacity=1)
    with pytest.raises(RejectedError, match="inputs"):
        adapter.probabilities(np.full((1, 3, 4), np.inf, np.float32), np.ones((4, 2), np.float32))
