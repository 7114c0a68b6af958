"""Naive tensors of a model: names, shapes and axes, as the table of SPEC.md chapter 4 lists them.

Shares nothing with the project but the configuration. Shapes use the letters of chapter 2.
"""

from __future__ import annotations

import numpy as np

from openmoe_spec.config import Configuration

Tensor = tuple[str, tuple[int, ...], tuple[str, ...]]
"""Name, shape, and a logical name of each axis."""


def sparse_layers(num_layers: int, num_sparse: int, layout: str = "MIXED") -> list[int]:
    """Return the numbers of the sparse layers in one of the four layouts."""
    found = []
    for i in range(num_layers):
        mixed = num_sparse > 0 and (i + 1) * num_sparse % num_layers == 0
        top = i >= num_layers - num_sparse
        bottom = i < num_sparse
        middle = num_layers - num_sparse <= 2 * i < num_layers + num_sparse
        if {"MIXED": mixed, "TOP": top, "BOTTOM": bottom, "MIDDLE": middle}[layout]:
            found.append(i)
    return found


def tensors(c: Configuration, *, doubled_gate: bool = True) -> list[Tensor]:
    """Return every tensor of a model; without `doubled_gate` wi_0 is [D, F], as the paper says."""
    D, F, V, E = c.embed_dim, c.mlp_dim, c.vocabulary_size, c.num_experts
    expert_width = F if c.expert_mlp_dim is None else c.expert_mlp_dim
    heads = c.num_heads * c.head_dim
    keys = (c.num_heads if c.num_kv_heads is None else c.num_kv_heads) * c.head_dim
    gate = 2 if doubled_gate else 1
    up, down = ("mlp_embed", "mlp"), ("mlp", "mlp_embed")
    expert_up = ("expert", "mlp_embed", "expert_mlp")
    expert_down = ("expert", "expert_mlp", "mlp_embed")
    listed: list[Tensor] = [("token_embedder/embedding", (V, D), ("vocab", "embed"))]
    for i in range(c.num_layers):
        layer = f"decoder/layers_{i}"
        attention = f"{layer}/self_attention"
        listed += [
            (f"{layer}/pre_self_attention_layer_norm/scale", (D,), ("embed",)),
            (f"{attention}/query/kernel", (D, heads), ("embed", "joined_kv")),
            (f"{attention}/key/kernel", (D, keys), ("embed", "joined_kv")),
            (f"{attention}/value/kernel", (D, keys), ("embed", "joined_kv")),
            (f"{attention}/out/kernel", (heads, D), ("joined_kv", "embed")),
            (f"{layer}/pre_mlp_layer_norm/scale", (D,), ("embed",)),
        ]
        dense = f"{layer}/mlp"
        if i in sparse_layers(c.num_layers, c.num_moe_layers):
            expert = f"{layer}/mlp/expert"
            listed += [
                (f"{layer}/mlp/router/router_weights/w/kernel", (D, E), ("embed", "unmodeled")),
                (f"{expert}/wi_0/kernel", (E, D, gate * expert_width), expert_up),
                (f"{expert}/wi_1/kernel", (E, D, expert_width), expert_up),
                (f"{expert}/wo/kernel", (E, expert_width, D), expert_down),
                (f"{layer}/pre_extra_mlp_layer_norm/scale", (D,), ("embed",)),
            ]
            dense = f"{layer}/extra_mlp"
        listed += [
            (f"{dense}/wi_0/kernel", (D, gate * F), up),
            (f"{dense}/wi_1/kernel", (D, F), up),
            (f"{dense}/wo/kernel", (F, D), down),
        ]
    return [
        *listed,
        ("decoder/decoder_norm/scale", (D,), ("embed",)),
        ("decoder/logits_dense/kernel", (D, V), ("embed", "vocab")),
    ]


def counts(c: Configuration, *, doubled_gate: bool = True) -> dict[str, int]:
    """Return the elements of all tensors, and of those that one token uses (PARAM-03)."""
    total = activated = 0
    for name, shape, _ in tensors(c, doubled_gate=doubled_gate):
        size = 1
        for axis in shape:
            size *= axis
        total += size
        if "/expert/" in name:
            activated += size // c.num_experts * c.num_selected_experts
        elif name not in ("token_embedder/embedding", "decoder/logits_dense/kernel"):
            activated += size
    return {"total": total, "activated": activated}


def port_tensors(parameters: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the tensors under the published port's names, in its orientation."""
    kernels = {"wi_0": "gate", "wi_1": "up", "wo": "down"}
    letters = {"query": "q", "key": "k", "value": "v", "out": "o"}
    norms = {
        "pre_self_attention_layer_norm": "input_layernorm",
        "pre_mlp_layer_norm": "post_attention_layernorm",
        "pre_extra_mlp_layer_norm": "pre_extra_mlp_layernorm",
    }
    found = {}
    for name, value in parameters.items():
        parts = name.split("/")
        turned = value.T
        if name == "token_embedder/embedding":
            found["model.embed_tokens.weight"] = value
        elif name == "decoder/decoder_norm/scale":
            found["model.norm.weight"] = value
        elif name == "decoder/logits_dense/kernel":
            found["lm_head.weight"] = turned
        else:
            layer = f"model.layers.{parts[1].removeprefix('layers_')}"
            if parts[2] in norms:
                found[f"{layer}.{norms[parts[2]]}.weight"] = value
            elif parts[2] == "self_attention":
                found[f"{layer}.self_attn.{letters[parts[3]]}_proj.weight"] = turned
            elif parts[3] == "router":
                found[f"{layer}.mlp.gate_weight"] = turned
            elif parts[3] == "expert":
                theirs = {"wi_0": "wi_gate", "wi_1": "wi_up", "wo": "wo"}[parts[4]]
                found[f"{layer}.mlp.experts.{theirs}"] = value
            else:
                found[f"{layer}.{parts[2]}.{kernels[parts[3]]}_proj.weight"] = turned
    return found
