"""Worked examples of meshes: answers of one device, which a mesh may not change, by the naive form."""

from __future__ import annotations

from typing import Any

import naive
import naive_training
import numpy as np
from naive_model import Model
from worked_example import LAYER_BOUND, Example, grid
from worked_loss import FACTORS, GRADIENT_BOUND, LOSS_BOUND
from worked_model import LOGITS_BOUND, batch, fields, run, weights
from worked_moe import layer
from worked_moe import weights as layer_weights

from openmoe_spec.config import Configuration

EIGHT = [2, 2, 2]
FOUR = [1, 2, 2]


def layers() -> list[Example]:
    """Return a layer on groups, and layers that have no equal parts."""
    inputs = grid(200, 4, 6, 4)
    inputs[:, 3], inputs[1, 4:] = inputs[:, 2], 0  # equal tokens, padding rows
    parameters = layer_weights(201, 4, hidden=2)
    parameters["router"][:, 3] = parameters["router"][:, 1]  # exact ties
    probabilities = naive.softmax(naive.router_logits(inputs, parameters["router"]))
    decision = naive.decide(probabilities.astype(np.float32), k=2, capacity=2)
    names = ("expert_index", "gate", "position", "kept")
    record = {name: getattr(decision, name) for name in names}
    whole = layer(inputs, parameters, 2, 2)
    call: dict[str, Any] = {"parameters": parameters, "k": 2, "capacity": 2, "mesh": EIGHT}
    return [
        Example(
            *("record_on_a_mesh", "MESH-01", "ties, equal tokens, padding", "moe"),
            {"inputs": inputs, **call},
            {"decision": record},
            LAYER_BOUND,
        ),
        Example(
            *("layer_on_a_mesh", "MESH-02", "output and metrics of all groups", "moe"),
            {"inputs": inputs, **call},
            whole,
            LAYER_BOUND,
        ),
        Example(
            *("three_groups", "MESH-06", "three groups for four shares", "moe"),
            {"inputs": inputs[:3].copy(), **call},
        ),
        Example(
            *("four_experts", "MESH-06", "four experts for eight shares", "moe"),
            {"inputs": np.concatenate([inputs, inputs]), **call, "mesh": [1, 8, 1]},
        ),
    ]


MODEL = fields(
    num_layers=2,
    mlp_dim=4,
    vocabulary_size=8,
    max_group_size=2,
    min_expert_capacity=1,
    **FACTORS,
)
"""A model whose every size has two parts; four rows have four shares of whole groups."""


def models() -> dict[str, Any]:
    """Return the model that several examples run, by the id of the case that lends it."""
    return {"model_of_even_sizes": weights(MODEL, 1)}


def passes() -> list[Example]:
    """Return a model's pass, losses, gradients and microbatches."""
    configuration, parameters = MODEL, models()["model_of_even_sizes"]
    rows = batch(
        [[0, 3, 1, 4], [0, 2, 4, 2], [0, 1, 7, 3], [0, 4, 3, 2]],
        [[3, 1, 4, 2], [2, 4, 2, 1], [1, 7, 3, 3], [4, 3, 2, 2]],
        loss_weights=[[1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]],
    )
    call: dict[str, Any] = {"parameters": parameters, "batch": rows, "configuration": configuration}
    model = Model(parameters, Configuration(**configuration))
    passed = run(configuration, parameters, rows, training=True)
    routed = passed.decisions[1]
    assert not routed.kept.all()
    record = {name: getattr(routed, name) for name in ("expert_index", "position", "kept")}
    losses = naive_training.total_loss(model, rows, passed)
    router = "decoder/layers_1/mlp/router/router_weights/w/kernel"
    shown = (router, "decoder/layers_1/mlp/expert/wi_0/kernel", "decoder/decoder_norm/scale")
    slopes = naive_training.model_gradients(model, rows, shown)
    summed = dict.fromkeys(shown, 0.0)
    total = 0.0
    for part in naive_training.microbatches(rows, 2):
        found = run(configuration, parameters, part, training=True)
        total += naive_training.total_loss(model, part, found)["total"]
        for name, value in naive_training.model_gradients(model, part, shown).items():
            summed[name] = summed[name] + value
    trained = call | {"mesh": EIGHT, "training": True}
    experts = {name: slopes[name] for name in shown[:2]}
    return [
        Example(
            *("experts_on_a_mesh", "MESH-03", "router and experts in shares", "model_gradients"),
            trained,
            experts,
            GRADIENT_BOUND,
        ),
        Example(
            *("routing_on_a_mesh", "MESH-04", "clear choices, drops", "forward"),
            trained,
            {"decisions": {"1": record}},
        ),
        Example(
            *("logits_on_a_mesh", "MESH-05", "heads, widths, ids in parts", "forward"),
            trained,
            {"logits": passed.logits},
            LOGITS_BOUND,
        ),
        Example(
            *("losses_on_a_mesh", "MESH-05", "divided by all rows' weights", "loss"),
            trained,
            {name: np.float64(value) for name, value in losses.items()},
            LOSS_BOUND,
        ),
        Example(
            *("norm_on_a_mesh", "MESH-05", "what all shares hold", "model_gradients"),
            trained,
            {shown[2]: slopes[shown[2]]},
            GRADIENT_BOUND,
        ),
        Example(
            *("slices_on_a_mesh", "MESH-07", "four rows, two by two", "accumulated_gradients"),
            call | {"num_microbatches": 2, "mesh": FOUR},
            {"loss": {"total": np.float64(total)}, "gradients": summed},
            GRADIENT_BOUND,
        ),
    ]


def examples() -> list[Example]:
    """Return the examples of meshes, in the order of SPEC.md."""
    return [*layers(), *passes()]
