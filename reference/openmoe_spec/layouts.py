"""Names of the same tensors and settings elsewhere: the published PyTorch port's. Data, and its use.

Spec: PARAM-05. Source: ColossalAI convert_openmoe_ckpt.py, modeling_openmoe.py@95e3378e.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

PORT_FIELDS: Mapping[str, str] = {
    "vocab_size": "vocabulary_size",
    "hidden_size": "embed_dim",
    "intermediate_size": "mlp_dim",
    "num_hidden_layers": "num_layers",
    "num_attention_heads": "num_heads",
    "num_key_value_heads": "num_kv_heads",
    "head_dim": "head_dim",
    "num_experts": "num_experts",
    "router_topk": "num_selected_experts",
    "router_capacity_factor_train": "train_capacity_factor",
    "router_capacity_factor_eval": "eval_capacity_factor",
    "router_min_capacity": "min_expert_capacity",
    "router_aux_loss_factor": "auxiliary_loss_factor",
    "router_z_loss_factor": "router_z_loss_factor",
    "z_loss_factor": "z_loss_factor",
    "label_smoothing": "label_smoothing",
    "max_position_embeddings": "max_length",
}
"""Keys of the port's `config.json` and the fields of a configuration that they set.

`moe_layer_interval` gives num_moe_layers = num_hidden_layers / interval.
"""

_KERNELS = {"wi_0": "gate", "wi_1": "up", "wo": "down"}

PORT_TENSORS: tuple[tuple[str, str, bool], ...] = (
    (r"token_embedder/embedding", "model.embed_tokens.weight", False),
    (
        r"decoder/layers_{i}/pre_self_attention_layer_norm/scale",
        "model.layers.{i}.input_layernorm.weight",
        False,
    ),
    *(
        (
            f"decoder/layers_{{i}}/self_attention/{ours}/kernel",
            f"model.layers.{{i}}.self_attn.{theirs}_proj.weight",
            True,
        )
        for ours, theirs in {"query": "q", "key": "k", "value": "v", "out": "o"}.items()
    ),
    (
        r"decoder/layers_{i}/pre_mlp_layer_norm/scale",
        "model.layers.{i}.post_attention_layernorm.weight",
        False,
    ),
    *(
        (
            f"decoder/layers_{{i}}/{block}/{ours}/kernel",
            f"model.layers.{{i}}.{block}.{theirs}_proj.weight",
            True,
        )
        for block in ("mlp", "extra_mlp")
        for ours, theirs in _KERNELS.items()
    ),
    (
        r"decoder/layers_{i}/mlp/router/router_weights/w/kernel",
        "model.layers.{i}.mlp.gate_weight",
        True,
    ),
    *(
        (
            f"decoder/layers_{{i}}/mlp/expert/{ours}/kernel",
            f"model.layers.{{i}}.mlp.experts.{theirs}",
            False,  # [E, in, out] on both sides
        )
        for ours, theirs in {"wi_0": "wi_gate", "wi_1": "wi_up", "wo": "wo"}.items()
    ),
    (
        r"decoder/layers_{i}/pre_extra_mlp_layer_norm/scale",
        "model.layers.{i}.pre_extra_mlp_layernorm.weight",
        False,
    ),
    (r"decoder/decoder_norm/scale", "model.norm.weight", False),
    (r"decoder/logits_dense/kernel", "lm_head.weight", True),
)
"""Name here, name there, and whether the matrix is transposed; {i} is the layer."""


def port_name(name: str) -> tuple[str, bool] | None:
    """Return the port's name of a tensor and whether it is transposed there; None: it has none."""
    return _translate(name, 0, 1)


def name_from_port(name: str) -> tuple[str, bool] | None:
    """Return our name of a tensor of the port and whether it is transposed; None: unknown."""
    return _translate(name, 1, 0)


def _translate(name: str, source: int, target: int) -> tuple[str, bool] | None:
    for row in PORT_TENSORS:
        pattern = re.escape(str(row[source])).replace(r"\{i\}", r"(?P<i>\d+)")
        if match := re.fullmatch(pattern, name):
            return str(row[target]).format(**match.groupdict()), row[2]
    return None
