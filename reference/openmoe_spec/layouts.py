"""Where other programs keep the same tensors, and what they call the same settings. Data alone.

`places` makes of it where each part of a tensor lies, in both directions.
Spec: PARAM-05, CKPT-04. Source: ColossalAI convert_openmoe_ckpt.py, modeling_openmoe.py@95e3378e;
openmoe-pt convert_openmoe_weight_to_hf.py@81951eb; t5x convert of scanned layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

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

TRANSPOSE = "transpose"
SPLIT = "split_halves"
JOIN = "join_halves"

INVERSES: Mapping[str, str] = {TRANSPOSE: TRANSPOSE, SPLIT: JOIN, JOIN: SPLIT}
"""What is done to a tensor of ours to have theirs, and what undoes it.

transpose     the last two axes are exchanged
split_halves  the last axis [2F] becomes two, [2, F]
join_halves   the last two axes [2, F] become one, [2F]
"""


class Rule(NamedTuple):
    """Where one kind of tensor lies: its name here, its name there, and what is done to it.

    {i}  the layer
    {e}  the expert: each expert's matrix is a tensor of its own
    {p}  the place of a layer in its block, where the layers of all blocks but the first are stacked

    A name there without {i} of a name here with it: the layers are stacked along axis `stacked`.
    """

    ours: str
    theirs: str
    operations: tuple[str, ...] = ()
    stacked: int | None = None


@dataclass(frozen=True)
class Layout:
    """The rules of one program, and what they are called in a report."""

    name: str
    title: str
    rules: tuple[Rule, ...]


_LAYER = "decoder/layers_{i}/"
_KERNELS = {"wi_0": "gate", "wi_1": "up", "wo": "down"}
_ATTENTION = {"query": "q", "key": "k", "value": "v", "out": "o"}
_TURNED = (TRANSPOSE,)

_OUTSIDE = ("token_embedder/embedding", "decoder/decoder_norm/scale", "decoder/logits_dense/kernel")
_NORMS = (
    "pre_self_attention_layer_norm/scale",
    "pre_mlp_layer_norm/scale",
    "pre_extra_mlp_layer_norm/scale",
)
_ROUTER = "mlp/router/router_weights/w/kernel"
_IN_LAYER = (
    *_NORMS,
    *(f"self_attention/{name}/kernel" for name in _ATTENTION),
    *(
        f"{block}/{name}/kernel"
        for block in ("mlp", "extra_mlp", "mlp/expert")
        for name in _KERNELS
    ),
    _ROUTER,
)
"""Names of a layer's tensors, sparse or not, without the layer's."""

T5X_TENSORS: tuple[Rule, ...] = (
    *(Rule(name, name) for name in _OUTSIDE),
    *(Rule(_LAYER + name, _LAYER + name) for name in _IN_LAYER),
)
"""The training code's checkpoints, without their prefix `target/`: the names of PARAM-01."""


def _port_layer(name: str, port: str, operations: tuple[str, ...] = ()) -> Rule:
    return Rule(_LAYER + name, "model.layers.{i}." + port, operations)


_PORT_SHARED: tuple[Rule, ...] = (
    Rule("token_embedder/embedding", "model.embed_tokens.weight"),
    _port_layer("pre_self_attention_layer_norm/scale", "input_layernorm.weight"),
    *(
        _port_layer(f"self_attention/{ours}/kernel", f"self_attn.{theirs}_proj.weight", _TURNED)
        for ours, theirs in _ATTENTION.items()
    ),
    _port_layer("pre_mlp_layer_norm/scale", "post_attention_layernorm.weight"),
    *(
        _port_layer(f"{block}/{ours}/kernel", f"{block}.{theirs}_proj.weight", _TURNED)
        for block in ("mlp", "extra_mlp")
        for ours, theirs in _KERNELS.items()
    ),
    _port_layer("pre_extra_mlp_layer_norm/scale", "pre_extra_mlp_layernorm.weight"),
    Rule("decoder/decoder_norm/scale", "model.norm.weight"),
    Rule("decoder/logits_dense/kernel", "lm_head.weight", _TURNED),
)

PORT_TENSORS: tuple[Rule, ...] = (
    *_PORT_SHARED,
    _port_layer(_ROUTER, "mlp.gate_weight", _TURNED),
    *(  # [E, in, out] on both sides
        _port_layer(f"mlp/expert/{ours}/kernel", f"mlp.experts.{theirs}")
        for ours, theirs in {"wi_0": "wi_gate", "wi_1": "wi_up", "wo": "wo"}.items()
    ),
)
"""The published PyTorch port."""

PER_EXPERT_TENSORS: tuple[Rule, ...] = (
    *_PORT_SHARED,
    _port_layer(_ROUTER, "mlp.gate.weight", _TURNED),
    *(
        _port_layer(f"mlp/expert/{ours}/kernel", f"mlp.experts.{{e}}.{theirs}_proj.weight", _TURNED)
        for ours, theirs in _KERNELS.items()
    ),
)
"""The second PyTorch port, openmoe-pt: each expert's matrices by themselves, as Linear has them."""


def _halved(rules: Iterable[Rule]) -> tuple[Rule, ...]:
    return tuple(
        rule._replace(operations=(SPLIT,)) if rule.ours.endswith("/wi_0/kernel") else rule
        for rule in rules
    )


SPLIT_TENSORS: tuple[Rule, ...] = _halved(T5X_TENSORS)
"""The production port, before its layers are stacked: gates [..., 2F] in halves [..., 2, F]."""

BLOCK_TENSORS: tuple[Rule, ...] = (
    *SPLIT_TENSORS,
    *_halved(
        Rule(_LAYER + name, f"decoder/blocks/layers_{{p}}/{name}", (), 0) for name in _IN_LAYER
    ),
)
"""The production port: the blocks behind the first are stacked along a leading axis."""

SCANNED_TENSORS: tuple[tuple[Rule, ...], ...] = tuple(
    (
        *(Rule(name, name) for name in _OUTSIDE),
        *(Rule(_LAYER + name, f"decoder/{scanned}/{name}", (), axis) for name in _IN_LAYER),
    )
    for scanned in ("layers", "decoder")
    for axis in (0, 1)
)
"""Scanned layers: one tensor for all layers that have it, stacked along axis 0 or 1."""

LAYOUTS: tuple[Layout, ...] = (
    Layout("t5x", "the training code's names", T5X_TENSORS),
    Layout("port", "the published PyTorch port's names, experts stacked", PORT_TENSORS),
    Layout("per_expert", "openmoe-pt's names, one tensor an expert", PER_EXPERT_TENSORS),
    Layout("split", "the training code's names, gates in halves", SPLIT_TENSORS),
    Layout("blocks", "the production port's names, blocks stacked", BLOCK_TENSORS),
    *(
        Layout(f"scanned_{i}", f"scanned layers, stacked along axis {i % 2}", rules)
        for i, rules in enumerate(SCANNED_TENSORS)
    ),
)
"""Every layout that is known, in the order in which they are tried."""


def layout(name: str) -> Layout:
    """Return a layout by its name; KeyError where there is none."""
    return {one.name: one for one in LAYOUTS}[name]


def port_name(name: str) -> tuple[str, bool] | None:
    """Return the port's name of a tensor and whether it is transposed there; None: it has none."""
    for rule in PORT_TENSORS:
        found = fields_of(rule.ours, name)
        if found is not None:
            return rule.theirs.format(**found), rule.operations == _TURNED
    return None


def name_from_port(name: str) -> tuple[str, bool] | None:
    """Return our name of a tensor of the port and whether it is transposed; None: unknown."""
    for rule in PORT_TENSORS:
        found = fields_of(rule.theirs, name)
        if found is not None:
            return rule.ours.format(**found), rule.operations == _TURNED
    return None


def fields_of(pattern: str, name: str) -> dict[str, int] | None:
    """Return the numbers in a name that a rule's pattern fits; None: it does not."""
    match = _compiled(pattern).fullmatch(name)
    return None if match is None else {key: int(one) for key, one in match.groupdict().items()}


@cache
def _compiled(pattern: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\\{(\w)\\\}", r"(?P<\1>0|[1-9][0-9]{0,8})", re.escape(pattern)))
