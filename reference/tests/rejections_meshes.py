"""What layers and models on a mesh refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from rejections import (
    LEGAL,
    NOT_COUNTS,
    NOT_FACTORS,
    NOT_WORDS,
    Row,
    rows_of_arrays,
    rows_of_sizes,
    rows_of_values,
)
from rejections_model import BATCH, CONFIGURATION, MODEL, batch_rows, checked_batch_rows, tree_rows
from rejections_moe import parameter_rows
from rejections_routing import (
    DECISION,
    INPUTS,
    LAYER,
    MASK,
    NOT_K,
    WEIGHTS,
    C,
    D,
    E,
    G,
    K,
    T,
    normal,
    record_rows,
)
from rejections_training import LOGITS, METRICS

from openmoe_reference import meshes, model
from openmoe_reference.meshes import COLLECTIVES, Mesh

ROUTED = meshes.Routed(
    INPUTS, None, normal(G, T, E), np.full((G, T, E), 1 / E, np.float32), DECISION
)
DECIDED = model.forward(**MODEL).decisions
SHARED: dict[str, Any] = {"mesh": Mesh(1, 2, 1), "collectives": COLLECTIVES}
_LAYER: dict[str, Any] = {"inputs": INPUTS, "parameters": LAYER, "k": K, **SHARED}

LEGAL.update(
    {
        "meshes.check_parts": {},
        "meshes.add": {"parts": [INPUTS, INPUTS]},
        "meshes.exchange": {"pieces": [INPUTS], "split": 1, "concat": 0},
        "meshes.part_of_hidden": {"kernels": WEIGHTS, "number": 1, "parts": 2},
        "meshes.parts_of": {"decision": DECISION, "parts": 2},
        "meshes.joined": {"decisions": [DECISION, DECISION]},
        "meshes.tally": {"share": ROUTED},
        "meshes.metrics": {"shares": [ROUTED, ROUTED]},
        "mesh_layers.moe": _LAYER
        | {
            "capacity": C,
            "ignore_padding": False,
            "batch_prioritized": False,
            "expert_dtype": "float32",
            "decision": None,
        },
        "mesh_layers.feed_forward": {"inputs": normal(E, C, D), "kernels": WEIGHTS, **SHARED},
        "mesh_layers.moe_layer": _LAYER
        | {
            "training": False,
            "train_capacity_factor": 1.25,
            "eval_capacity_factor": 2.0,
            "min_expert_capacity": 4,
            "max_group_size": 8,
            "num_expert_replicas": 1,
        },
        "mesh_layers.layer_gradients": {
            "inputs": INPUTS,
            "parameters": LAYER,
            "cotangent": normal(G, T, D),
            "decision": DECISION,
            "balance": 0.5,
            "z": 0.25,
            "padding_mask": MASK,
            **SHARED,
        },
        "mesh_models.rules": SHARED,
        "mesh_models.total_loss": {
            "logits": LOGITS,
            "batch": BATCH,
            "metrics": METRICS,
            "configuration": CONFIGURATION,
            **SHARED,
        },
        "mesh_models.tensor_gradients": MODEL
        | SHARED
        | {"mesh": Mesh(), "call": model.Call(dtype="float64", decisions=DECIDED)},
        "mesh_models.shares_stand_alone": {
            "batch": 2,
            "length": 3,
            "mesh": Mesh(1, 2, 1),
            "max_group_size": 8,
            "num_experts": 2,
        },
        "mesh_models.accumulated": {
            "of_batch": lambda batch: ({"total": 1.0}, {"a": batch["decoder_input_tokens"]}),
            "batch": {"decoder_input_tokens": BATCH["decoder_input_tokens"].repeat(2, axis=0)},
            "mesh": Mesh(1, 2, 1),
            "num_microbatches": 2,
        },
        "mesh_models.check_model": {
            "configuration": CONFIGURATION,
            "mesh": Mesh(1, 2, 1),
            "rows": 2,
        },
    }
)


NOT_NUMBERS = {
    what: value
    for what, value in NOT_FACTORS.items()
    if "zero" not in what and "negative" not in what
}


def mesh_rows(function: str, **unequal: Mesh) -> Iterator[Row]:
    """Yield rows, by the name of what is cut, for meshes that have no equal parts of it."""
    for name, mesh in unequal.items():
        yield Row(function, f"{mesh} cuts {name}", {"mesh": mesh}, (name,), ("MESH-06",))


def layer_rows() -> Iterator[Row]:
    """Yield the illegal calls of a layer."""
    function, clauses = "mesh_layers.moe", ("MOE-11", "ROUTE-20")
    yield from mesh_rows(function, groups=Mesh(4), F=Mesh(1, 1, 4), D=Mesh(1, 1, 2))
    yield from parameter_rows(function)
    yield from rows_of_arrays(function, ("inputs",), clauses)
    yield from rows_of_values(function, "expert_dtype", NOT_WORDS, "MOE-11")
    yield from rows_of_values(function, "k", NOT_K, "ROUTE-20")
    yield from rows_of_values(function, "capacity", NOT_COUNTS, "ROUTE-20")
    for row in record_rows(function, ("expert_index", "position", "kept"), clauses):
        if row.what != "nothing":  # then the layer decides
            yield row
    function = "mesh_layers.moe_layer"
    yield from mesh_rows(function, rows=Mesh(4))
    yield from parameter_rows(function)
    yield from rows_of_arrays(function, ("inputs",), clauses)
    yield from rows_of_values(function, "k", NOT_K, "ROUTE-20")
    for argument in ("min_expert_capacity", "max_group_size", "num_expert_replicas"):
        yield from rows_of_values(function, argument, NOT_COUNTS, "GROUP-09")
    for argument in ("train_capacity_factor", "eval_capacity_factor"):
        yield from rows_of_values(function, argument, NOT_FACTORS, "GROUP-09")
    function, clauses = "mesh_layers.layer_gradients", ("MOE-11", "LOSS-13")
    yield from mesh_rows(function, groups=Mesh(4))
    axes = {"inputs": (0, 1), "cotangent": (0, 1, 2), "padding_mask": (0, 1)}
    yield from rows_of_arrays(function, tuple(axes), clauses)
    for row in rows_of_sizes(function, axes, clauses):
        yield row._replace(arguments=(*row.arguments, "parameters", "decision"))
    yield from parameter_rows(function)
    yield from record_rows(function, ("expert_index", "gate", "position", "kept"), clauses)
    for argument in ("balance", "z"):
        yield from rows_of_values(function, argument, NOT_NUMBERS, *clauses)


def model_rows() -> Iterator[Row]:
    """Yield the illegal calls of whole models."""
    function = "mesh_models.total_loss"
    yield from mesh_rows(function, rows=Mesh(3))
    yield from rows_of_arrays(function, ("logits",), ("LOSS-25",))
    yield from batch_rows(function, ("decoder_target_tokens", "decoder_loss_weights"), "LOSS-25")
    function = "mesh_models.tensor_gradients"
    yield from mesh_rows(function, rows=Mesh(3), num_heads=Mesh(1, 1, 3))
    yield from tree_rows(function)
    yield from checked_batch_rows(function)
    function = "mesh_models.accumulated"
    yield from mesh_rows(function, rows=Mesh(4))
    counts = NOT_COUNTS | {"no divisor": 3, "more than rows": 8}
    for row in rows_of_values(function, "num_microbatches", counts, "OPT-12", "MESH-06"):
        yield row._replace(arguments=("num_microbatches", "rows"))
    function = "mesh_models.check_model"
    yield from mesh_rows(function, num_heads=Mesh(1, 1, 3), mlp_dim=Mesh(1, 1, 2))
    yield Row(function, "three rows on two shares", {"rows": 3}, ("rows",), ("MESH-06",))


ROWS = [*layer_rows(), *model_rows()]
