"""Worked examples of configurations and parameters, answered by hand or by the naive form."""

from __future__ import annotations

from typing import Any

import naive_parameters
import numpy as np
from worked_example import Example, grid

from openmoe_spec.config import Configuration

# Copied by hand from the configuration files of the training code, not from this project.
_SHARED = {
    "num_selected_experts": 2,
    "vocabulary_size": 256384,
    "train_capacity_factor": 1.25,
    "eval_capacity_factor": 2.0,
    "min_expert_capacity": 4,
    "auxiliary_loss_factor": 0.01,
    "jitter_noise": 0.0,
    "batch_prioritized_routing": False,
    "ignore_padding_tokens": False,
}
_OF_THE_MODEL = {
    "max_length": 2048,
    "inputs_bidirectional_attention": False,
    "z_loss_factor": 0.0001,
    "label_smoothing": 0.0,
}
_NAMES = (
    *("num_layers", "num_moe_layers", "embed_dim", "num_heads", "head_dim", "mlp_dim"),
    *("num_experts", "max_group_size", "router_z_loss_factor"),
)
_PUBLISHED = {
    "base": (12, 3, 768, 12, 64, 2048, 16, 4096, 1e-4),
    "8b": (24, 4, 2048, 24, 128, 8192, 32, 4096, 1e-4),
    "34b": (32, 8, 3072, 24, 128, 12288, 32, 8192, 1e-3),
}
FIELDS = {n: {**_SHARED, **dict(zip(_NAMES, v, strict=True))} for n, v in _PUBLISHED.items()}
"""The published configurations, by name."""


def published() -> list[Example]:
    """Return the published values."""
    found = [
        Example(f"configuration_{name}", "CFG-01", name, "configuration", {"name": name}, value)
        for name, value in FIELDS.items()
    ]
    return found + [
        Example(
            *(f"whole_model_{name}", "CFG-04", f"{name}, fields of the whole model"),
            "configuration",
            {"name": name},
            _OF_THE_MODEL,
        )
        for name in FIELDS
    ]


def illegal() -> list[Example]:
    """Return configurations that must be rejected."""
    found = []
    for clause, name, value in (
        ("CFG-02", "num_selected_experts", 17),
        ("CFG-02", "num_experts", 0),
        ("CFG-02", "num_moe_layers", 5),
        ("CFG-02", "max_group_size", 2.5),
        ("CFG-02", "eval_capacity_factor", 0.0),
        ("CFG-02", "router_z_loss_factor", -0.001),
        ("CFG-02", "jitter_noise", 1.0),
        ("CFG-02", "ignore_padding_tokens", "no"),
        ("CFG-05", "expert_mlp_dim", 0),
        ("CFG-05", "num_kv_heads", 5),
        ("CFG-05", "head_dim", 63),
        ("CFG-05", "max_length", 0),
        ("CFG-05", "z_loss_factor", -0.0001),
        ("CFG-05", "label_smoothing", 1.0),
        ("CFG-05", "inputs_bidirectional_attention", 1),
    ):
        wrong = {"name": "wrong", **FIELDS["base"], **_OF_THE_MODEL, name: value}
        what = f"base with {name} = {value!r}"
        arguments = {"fields": wrong}
        found.append(Example(f"illegal_{name}", clause, what, "validate_configuration", arguments))
    return found


# ---- parameters ------------------------------------------------------------------------------

_TINY: dict[str, Any] = {
    "name": "tiny",
    "num_layers": 2,
    "num_moe_layers": 1,
    "embed_dim": 4,
    "num_heads": 3,
    "head_dim": 2,
    "num_kv_heads": 1,
    "mlp_dim": 5,
    "expert_mlp_dim": 3,
    "num_experts": 2,
    "vocabulary_size": 7,
}


def trees() -> list[Example]:
    """Return the tensors of a model, their numbers, and where its sparse layers are."""
    tensors = {
        name: {"shape": list(shape), "axes": list(axes)}
        for name, shape, axes in naive_parameters.tensors(Configuration(**_TINY))
    }
    what = "heads that share keys, experts of another width"
    found = [Example("tree", "PARAM-01", what, "parameters", {"configuration": _TINY}, tensors)]
    for layers, sparse, layout in (
        *((12, 3, "MIXED"), (24, 4, "MIXED"), (32, 8, "MIXED"), (5, 5, "MIXED")),
        *((12, 4, "TOP"), (12, 4, "BOTTOM"), (12, 4, "MIDDLE"), (7, 2, "MIDDLE")),
    ):
        arguments = {"num_layers": layers, "num_sparse": sparse, "layout": layout}
        found.append(
            Example(
                *(f"sparse_{layout.lower()}_{layers}_{sparse}", "PARAM-02"),
                f"{sparse} of {layers} layers, {layout}",
                "sparse_layers",
                arguments,
                naive_parameters.sparse_layers(layers, sparse, layout),
            )
        )
    for name, fields in FIELDS.items():
        given = {"name": name, **fields}
        found.append(
            Example(
                *(f"count_{name}", "PARAM-03", f"all of {name}, and what a token uses"),
                "count_parameters",
                {"configuration": given},
                naive_parameters.counts(Configuration(**given)),
            )
        )
    return [*found, _port_names(), _no_counterpart()]


def _port_names() -> Example:
    """Return one tensor of each kind, one of them square."""
    layer = "decoder/layers_1"
    shapes = {
        "token_embedder/embedding": (7, 4),
        f"{layer}/pre_self_attention_layer_norm/scale": (4,),
        f"{layer}/self_attention/query/kernel": (4, 6),
        f"{layer}/self_attention/out/kernel": (4, 4),
        f"{layer}/mlp/router/router_weights/w/kernel": (4, 2),
        f"{layer}/mlp/expert/wo/kernel": (2, 3, 4),
        f"{layer}/extra_mlp/wo/kernel": (5, 4),
        "decoder/decoder_norm/scale": (4,),
        "decoder/logits_dense/kernel": (4, 7),
    }
    tensors = {name: grid(i, *shape) for i, (name, shape) in enumerate(shapes.items())}
    answer = {
        name: np.ascontiguousarray(value)
        for name, value in naive_parameters.port_tensors(tensors).items()
    }
    what = "a tensor of each kind under its name in the port"
    return Example(
        "port_names", "PARAM-05", what, "port_parameters", {"parameters": tensors}, answer
    )


def _no_counterpart() -> Example:
    unknown = {"parameters": {"decoder/relpos_bias/rel_embedding": grid(0, 2, 3)}}
    what = "a tensor that the port does not have"
    return Example("no_counterpart", "PARAM-05", what, "port_parameters", unknown)


def examples() -> list[Example]:
    """Return the examples of configurations and parameters, in the order of SPEC.md."""
    return [*published(), *illegal(), *trees()]
