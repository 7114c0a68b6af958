"""The protocol: every function that an adapter may offer, with its arguments and keywords.

The guide is `conformance/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Function:
    """One function of the adapter: its positional arguments, and its keywords' defaults.

    A keyword whose value equals its default is passed only when the function takes it, and one
    with the default ANY is never missed: it says what the arrays show too.
    """

    arguments: tuple[str, ...]
    required: tuple[str, ...]
    optional: Mapping[str, Any]


ANY = object()
"""Default of a keyword that may be left out whatever its value."""

Mesh = tuple[int, int, int]
"""Devices along data, expert and model."""

MESHES: tuple[Mesh, ...] = tuple(
    (data, expert, devices // (data * expert))
    for devices in (1, 2, 4, 8)
    for data in (1, 2, 4, 8)
    for expert in (1, 2, 4, 8)
    if devices % (data * expert) == 0
)
"""Every mesh of 1, 2, 4 and 8 devices: those that a function may be asked to run on."""

_ROUTING = {"padding_mask": None, "batch_prioritized": False}
_LAYER = {
    "router": "masked",
    "ignore_padding": False,
    "batch_prioritized": False,
    "expert_dtype": "float32",
    "mesh": None,
}
_FACTORS = {"auxiliary_loss_factor": 0.0, "router_z_loss_factor": 0.0}
_DERIVED = {
    "k": 2,
    "train_capacity_factor": 1.25,
    "eval_capacity_factor": 2.0,
    "min_expert_capacity": 4,
    "max_group_size": 4096,
    "num_expert_replicas": 1,
}

_PASS = {
    "training": False,
    "dtype": "float32",
    "expert_dtype": None,
    "decisions": None,
    "num_expert_replicas": 1,
    "dialect": "t5x",
    "mesh": None,
}
_TEXT_LOSS = {
    "weights": None,
    "normalizing_factor": None,
    "z_loss": 0.0,
    "label_smoothing": 0.0,
}
_DECODE = {
    "dtype": "float32",
    "expert_dtype": None,
    "num_expert_replicas": 1,
    "dialect": "t5x",
    "mesh": None,
}
_CHOICE = {"noise": None, "temperature": 1.0, "top_k": 0, "top_p": 0.0}

_SENTINELS = {"num_sentinels": 300, "reverse": True}
_NOISE = ("noise_density", "mean_noise_span_length")

FUNCTIONS: Mapping[str, Function] = {
    # configuration and groups: plain numbers
    "configuration": Function(("name",), (), {"dialect": "t5x"}),
    "validate_configuration": Function(("fields",), (), {}),
    "num_expert_replicas": Function(
        ("device_count",), ("num_expert_partitions", "num_model_partitions"), {}
    ),
    "padded_shape": Function(("batch", "length"), ("multiple",), {}),
    "num_groups": Function(
        ("num_tokens",), ("max_group_size", "num_experts"), {"num_expert_replicas": 1}
    ),
    "expert_capacity": Function(
        ("tokens_per_group",),
        ("num_experts", "capacity_factor"),
        {"min_expert_capacity": 4, "k": ANY, "dialect": "t5x"},
    ),
    # parameters: from a configuration, a mapping of SPEC.md's fields
    "parameters": Function(("configuration",), (), {}),
    "sparse_layers": Function(("num_layers", "num_sparse"), (), {"layout": "MIXED"}),
    "count_parameters": Function(("configuration",), (), {}),
    "port_parameters": Function(("parameters",), (), {}),
    # checkpoints
    "tensor_digest": Function(("tensor",), (), {}),
    "model_digest": Function(("digests",), (), {}),
    "round_to_bfloat16": Function(("tensor",), (), {}),
    "per_expert_parameters": Function(("parameters",), (), {}),
    # routing audits: counts are int [keys, E, K], choices int [N, K]
    "counted_tokens": Function(("ids",), (), {}),
    "count_choices": Function(("keys", "expert_index"), ("num_keys", "num_experts"), {}),
    "choice_shares": Function(("counts",), (), {}),
    "share_spread": Function(("counts",), (), {}),
    "mean_spread": Function(("counts",), (), {"least": 128}),
    "spread_floor": Function(("tokens",), ("k", "num_experts"), {"shares": None}),
    "debiased_spread": Function(("counts",), (), {"shares": None}),
    "specialisation": Function(("counts",), (), {"shares": None}),
    "top_tokens": Function(("counts",), ("by",), {"number": 10, "least": 10}),
    "saturation": Function(("first", "second"), (), {}),
    "coactivation": Function(("expert_index",), ("num_experts",), {}),
    "coactivation_shares": Function(("counts", "tokens"), (), {}),
    "vocabulary_specialisation": Function(("counts",), (), {"least": 0, "weighted": False}),
    "repetition": Function(("expert_index", "row"), (), {}),
    "repetition_by_chance": Function(("k", "num_experts"), (), {}),
    "load_statistics": Function(("loads",), (), {}),
    "margin_codes": Function(("margins",), (), {}),
    "near_tie_share": Function(("histogram",), (), {"tolerance": 2.0**-7}),
    "table_divergence": Function(("first", "second"), (), {}),
    "overlap": Function(("first", "second"), (), {}),
    "relabelling": Function(("first", "second"), (), {}),
    "drop_counts": Function(("dropped", "keys"), ("num_keys",), {}),
    "lost_gate_share": Function(("gate", "dropped"), (), {}),
    "replay_choices": Function(
        ("expert_index",), ("num_experts", "capacity", "priority"), {"gate": None}
    ),
    "information": Function(("counts",), (), {}),
    "held_out_hits": Function(("train", "test"), (), {}),
    "held_out_gain": Function(("by_fold",), (), {"level": 0.95}),
    "explained_by_tokens": Function(("slice_tokens", "token_counts", "slice_counts"), (), {}),
    "document_fold": Function(("document",), (), {"folds": 8}),
    "document_weights": Function(("document",), (), {"replicates": 100, "seed": 0}),
    "bootstrap_interval": Function(("estimate", "replicates"), (), {"level": 0.95}),
    "jackknife_interval": Function(("estimate", "left_out"), (), {"level": 0.95}),
    # layers
    "embed": Function(("table", "ids"), (), {"dtype": "float32"}),
    "rms_norm": Function(("inputs", "scale"), (), {"dtype": "float32"}),
    "token_mask": Function(("input_ids",), (), {}),
    "output_logits": Function(("inputs", "kernel"), (), {"mask": None}),
    "feed_forward": Function(
        ("inputs", "kernels"), (), {"activations": ("swiglu", "linear"), "dtype": "float32"}
    ),
    # attention
    "decoder_mask": Function(("target_ids",), (), {"segment_ids": None, "causal_attention": None}),
    "rotary_tables": Function(("positions",), ("head_dim",), {}),
    "rotate": Function(("heads", "positions"), (), {}),
    "attention": Function(("inputs", "kernels", "mask"), ("num_heads",), {"dtype": "float32"}),
    "part_gradients": Function(
        ("part", "inputs", "parameters", "cotangent"),
        (),
        {"mask": None, "num_heads": ANY, "activations": ("swiglu", "linear"), "size": ANY},
    ),
    # the model
    "forward": Function(("parameters", "batch"), ("configuration",), _PASS),
    "loss": Function(("parameters", "batch"), ("configuration",), _PASS),
    "model_gradients": Function(("parameters", "batch"), ("configuration",), _PASS),
    "group_tokens": Function(("inputs",), ("group_size",), {"multiple": 1}),
    # routing
    "probabilities": Function(("inputs", "kernel"), (), {"noise": None}),
    "decide": Function(("probabilities",), ("k", "capacity"), _ROUTING),
    "route": Function(
        ("inputs", "kernel"),
        ("k", "capacity"),
        {"ignore_padding": False, "batch_prioritized": False, "noise": None},
    ),
    "decide_scatter": Function(("probabilities",), ("k", "capacity"), _ROUTING),
    "experts_choose": Function(("probabilities",), ("capacity",), {"padding_mask": None}),
    "route_gradients": Function(
        ("inputs", "kernel", "gate_cotangent"),
        ("k", "capacity"),
        {"ignore_padding": False, "batch_prioritized": False, **_FACTORS},
    ),
    # the layer
    "dispatch": Function(("inputs", "decision"), ("num_experts",), {}),
    "expert": Function(("inputs", "wi_0", "wi_1", "wo"), (), {"dtype": "float32"}),
    "combine": Function(("expert_outputs", "decision"), (), {"num_experts": ANY}),
    "moe": Function(("inputs", "parameters"), ("k", "capacity"), {**_LAYER, "noise": None}),
    "moe_layer": Function(("inputs", "parameters"), ("training",), {**_DERIVED, **_LAYER}),
    "moe_gradients": Function(
        ("inputs", "parameters", "cotangent"), ("k", "capacity"), {**_LAYER, **_FACTORS}
    ),
    # losses
    "balance_loss": Function(("probabilities", "expert_index"), (), {"padding_mask": None}),
    "router_z_loss": Function(("logits",), (), {"padding_mask": None}),
    "cross_entropy": Function(("logits", "targets"), (), _TEXT_LOSS),
    "cross_entropy_gradient": Function(("logits", "targets"), (), _TEXT_LOSS),
    "normalizer": Function(("name", "batch"), (), {}),
    # training
    "learning_rate": Function(("step",), (), {"dialect": "t5x"}),
    "optimizer_state": Function(("shape", "axes"), (), {}),
    "adafactor": Function(("parameter", "gradient", "state"), ("axes", "step", "rate"), {}),
    "scaled_gradients": Function(("gradients",), ("num_expert_partitions",), {}),
    "accumulated_gradients": Function(
        ("parameters", "batch"),
        ("configuration", "num_microbatches"),
        {"training": True, "mesh": None},
    ),
    "train_step": Function(
        ("parameters", "state", "batch"),
        ("configuration", "step"),
        {"num_microbatches": 1, "num_expert_partitions": 1, "mesh": None},
    ),
    "initialise": Function(("configuration", "seed"), (), {}),
    # decoding
    "decode": Function(("parameters", "batch"), ("configuration", "steps"), _DECODE),
    "generate": Function(
        ("parameters", "batch"), ("configuration",), {**_DECODE, **_CHOICE, "temperature": 0.0}
    ),
    "sample": Function(("logits",), (), _CHOICE),
    "cached_calls": Function(
        ("parameters", "batch"),
        ("configuration", "prefill"),
        {"chunk": 1, "positions_from_mask": False, "dialect": "torch_port"},
    ),
    "greedy": Function(
        ("parameters", "ids"),
        ("configuration", "new_tokens"),
        {"attention_mask": None, "use_cache": True, "dialect": "torch_port"},
    ),
    # vocabulary: `model` is the path of a SentencePiece file
    "vocabulary": Function(("num_pieces",), (), {"num_sentinels": 300, "reverse": True}),
    "decoded_ids": Function(("ids",), ("vocabulary_size",), {"unknown": 3}),
    "encode_text": Function(("text",), ("model",), _SENTINELS),
    "decode_text": Function(("ids",), ("model",), _SENTINELS),
    # objectives: ids are int32 [n], masks bool [n]
    "objectives": Function((), (), {"dialect": "t5x"}),
    "noise_counts": Function(("length",), _NOISE, {}),
    "noise_mask": Function(
        ("length",), (*_NOISE, "noise_permutation", "nonnoise_permutation"), {"roll": 0}
    ),
    "span_lengths": Function(
        ("inputs_length",),
        _NOISE,
        {"extra_tokens_per_span_inputs": 1, "extra_tokens_per_span_targets": 1},
    ),
    "replace_noise": Function(
        ("tokens", "noise_mask"),
        ("transform", "vocabulary_size"),
        {"num_sentinels": 300, "overflow": "rejected"},
    ),
    "prefix_bounds": Function(("length",), (), {"noise_density": 0.5}),
    "split_prefix": Function(("tokens", "split"), (), {}),
    "finish_example": Function(
        ("inputs", "targets"),
        ("inputs_length", "targets_length"),
        {"prompt": None, "ends": ("inputs", "targets")},
    ),
    "ul2_example": Function(
        ("segment", "objective"),
        ("inputs_length", "targets_length", "vocabulary_size", "prompt"),
        {
            "noise_permutation": None,
            "nonnoise_permutation": None,
            "split": None,
            "num_sentinels": 300,
            "overflow": "rejected",
            "dialect": "t5x",
        },
    ),
    # documents: a document is int32 [n], documents a list of them
    "num_blocks": Function(("length",), (), {"max_length": 65_536}),
    "document_block": Function(("tokens", "block"), (), {"max_length": 65_536}),
    "join_documents": Function(("documents",), (), {"end": None}),
    "objective_groups": Function(("num_groups", "objective"), (), {}),
    "objective_segments": Function(
        ("documents", "objective"), ("inputs_length",), {"block": 0, "max_length": 65_536}
    ),
    "full_lm_segments": Function(("documents",), ("length",), {}),
    "mix_streams": Function(("lengths", "choices"), (), {}),
    "mixture": Function(("name",), (), {}),
    "sft_texts": Function(("task", "fields"), (), {}),
    # batching: an example is a mapping of int32 [n]
    "decoder_features": Function(
        ("examples",), ("lengths",), {"pack": False, "loss_on_targets_only": True, "start": 0}
    ),
    "feed_statistics": Function(("features",), (), {}),
    # draws of the implementation's own, from a seed
    "draw_noise_masks": Function(("length",), (*_NOISE, "count", "seed"), {}),
    "draw_splits": Function(("length",), ("count", "seed"), {}),
    "draw_objectives": Function(("count",), ("seed",), {}),
    "draw_blocks": Function(("length",), ("count", "seed"), {"max_length": 65_536}),
    "draw_tasks": Function(("mixture", "count"), ("seed",), {}),
    # the pipeline: rows fed from documents, and a state to go on from
    "feed": Function(
        ("documents",),
        ("count", "seed", "inputs_length", "targets_length", "vocabulary_size", "prompts"),
        {"state": None, "process": 0, "num_processes": 1},
    ),
    # the structure of a program: "route", "moe" or "moe_gradients"
    "operations": Function(
        ("program",),
        ("groups", "tokens", "width", "hidden", "experts", "k", "capacity"),
        {"router": "masked", "mesh": None},
    ),
    # meshes that functions with the keyword `mesh` can be run on here
    "meshes": Function((), (), {}),
}
"""The whole protocol, by function name."""
