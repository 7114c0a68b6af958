"""What each comparison of the training code's vectors decides, and where an import puts it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

Config = Mapping[str, Any]

CHAPTERS: Mapping[str, str] = {
    "router_masked": "routing",
    "router_scatter": "routing",
    "router_experts_choose": "routing",
    "moe_layer": "moe",
    "group_sizes": "grouping",
    "replicas": "grouping",
    "feed_forward": "layers",
    "swiglu": "layers",
    "norm": "layers",
    "token_mask": "layers",
    "embedding": "layers",
    "rotary": "attention",
    "decoder_mask": "attention",
    "attention": "attention",
    "cross_entropy": "cross_entropy",
    "parameters": "model",
    "model": "model",
    "decoding": "decoding",
    "adafactor": "optimizer",
    "training": "optimizer",
    "parameter_tree": "parameters",
}
"""The folder that cases of a kind are imported to."""


def clauses_of(kind: str, config: Config, exercises: str) -> dict[str, str]:
    """Return what a case of this kind may be compared on, and the clause that each decides."""
    return _CLAUSES[kind](config, exercises)


# ---- routers, layers, group sizes --------------------------------------------------------------


def _router(config: Config, _: str) -> dict[str, str]:
    ignore = bool(config.get("ignore_padding_tokens"))
    return {"probabilities": "ROUTE-03", "router_z_loss": "LOSS-06" if ignore else "LOSS-05"}


def _masked(config: Config, exercises: str) -> dict[str, str]:
    ignore = bool(config.get("ignore_padding_tokens"))
    bpr = bool(config["batch_prioritized_routing"])
    found = _router(config, exercises) | {
        "decision": "ROUTE-14" if bpr else "ROUTE-12" if ignore else "ROUTE-09",
        "gates": "ROUTE-10",
        "balance_loss": "LOSS-04" if ignore else "LOSS-01",
    }
    # Ties between tokens hang on the last bit of softmax: those start from stored probabilities.
    if not ("TIES" in exercises and bpr) and "saturate" not in exercises:
        found["route"] = "ROUTE-19"
    return found | {
        "gradients_combine": "ROUTE-26",
        "gradients_aux": "LOSS-12",
        "gradients_z": "LOSS-12",
    }


def _scatter(config: Config, exercises: str) -> dict[str, str]:
    ignore = bool(config.get("ignore_padding_tokens"))
    return _router(config, exercises) | {
        "decision": "ROUTE-22" if ignore else "ROUTE-21",
        "gates": "ROUTE-10",
        "balance_loss": "LOSS-04" if ignore else "LOSS-01",
    }


def _experts_choose(config: Config, exercises: str) -> dict[str, str]:
    decision = "ROUTE-24" if config.get("ignore_padding_tokens") else "ROUTE-23"
    return _router(config, exercises) | {"decision": decision, "gates": decision}


def _group_sizes(*_: object) -> dict[str, str]:
    return {"padded_shape": "GROUP-02", "num_groups": "GROUP-04", "expert_capacity": "GROUP-06"}


def _layer(config: Config, _: str) -> dict[str, str]:
    output = "MOE-07" if config.get("router", "masked") == "masked" else "MOE-14"
    if config.get("dtype") == "bfloat16":
        output = "MOE-06"
    experts, ignored = config.get("router") == "experts", config.get("ignore")
    metrics = {
        "auxiliary_loss": "LOSS-11" if experts else "LOSS-04" if ignored else "LOSS-01",
        "router_z_loss": "LOSS-06" if ignored else "LOSS-05",
        "fraction_tokens_left_behind": "LOSS-10" if ignored else "LOSS-07",
        "router_confidence": "LOSS-08",
        "expert_usage": "LOSS-11" if experts else "LOSS-09",
    }
    return _group_sizes() | metrics | {"output": output, "gradients": "MOE-09"}


# ---- parts of a model --------------------------------------------------------------------------


def _norm(config: Config, _: str) -> dict[str, str]:
    bfloat16 = config.get("dtype") == "bfloat16"
    return {"output": "LAYER-04" if bfloat16 else "LAYER-03", "gradients": "LAYER-09"}


def _attention(config: Config, exercises: str) -> dict[str, str]:
    output = "ATTN-09" if "fully masked" in exercises else "ATTN-11"
    if config.get("dtype") == "bfloat16":
        output = "ATTN-10"
    return {"output": output, "gradients": "ATTN-13"}


def _cross_entropy(config: Config, _: str) -> dict[str, str]:
    real = config["loss_normalizing_factor"] == "NUM_REAL_TARGET_TOKENS"
    return {
        "cross_entropy": "LOSS-17" if config["label_smoothing"] else "LOSS-15",
        "z_loss": "LOSS-16",
        "weight_sum": "LOSS-15",
        "gradient": "LOSS-18",
        "normalizer": "LOSS-19" if real else "LOSS-20",
    }


# ---- whole models ------------------------------------------------------------------------------

_ATTENTION_OF_BATCH = {
    "padded": "ATTN-09",
    "packed": "ATTN-06",
    "prefix": "ATTN-03",
    "prefix_packed": "ATTN-02",
}
"""What a kind of batch is for."""


def _model(config: Config, _: str) -> dict[str, str]:
    bfloat16 = config["call"]["dtype"] == "bfloat16"
    padded = config.get("batch") == "padded"
    forward = {
        "logits": "MODEL-07" if bfloat16 else "MODEL-01",
        "embedder": "LAYER-01",
        "attention": _ATTENTION_OF_BATCH.get(str(config.get("batch")), "ATTN-11"),
        "mlp": "MODEL-04",
        "experts": "MOE-08" if padded else "MOE-07",
        "router": "ROUTE-02",
        "extra_mlp": "MODEL-03",
        "residual": "MODEL-02",
        "norm": "LAYER-03",
        "auxiliary_loss": "LOSS-01",
        "router_z_loss": "LOSS-06" if padded else "LOSS-05",
        "fraction_tokens_left_behind": "LOSS-07",
        "router_confidence": "LOSS-08",
        "expert_usage": "LOSS-09",
    }
    if padded:
        forward["masked"] = "LAYER-07"
    if bfloat16:
        forward |= {"attention": "ATTN-10", "experts": "MOE-06", "norm": "LAYER-04"}
        forward["dtypes"] = "MODEL-06"
    else:  # where bfloat16 decides near-ties, the stored decisions are forced
        forward["decisions"] = "MODEL-05"
    loss = {
        "total": "LOSS-21" if config["training"] else "LOSS-24",
        "cross_entropy": "LOSS-17" if config["configuration"]["label_smoothing"] else "LOSS-15",
        "z_loss": "LOSS-16",
        "auxiliary_loss": "LOSS-23",
        "router_z_loss": "LOSS-23",
        "weight_sum": "LOSS-19",
        "accuracy": "LOSS-22",
    }
    return {
        **{f"forward_{name}": clause for name, clause in forward.items()},
        **{f"loss_{name}": clause for name, clause in loss.items()},
        "gradients": "MODEL-08",
    }


_ALWAYS: Mapping[str, Mapping[str, str]] = {
    "parameters": {},
    "replicas": {"num_expert_replicas": "GROUP-01"},
    "feed_forward": {"output": "MODEL-04", "gradients": "MODEL-08"},
    "swiglu": {"output": "MOE-03"},
    "token_mask": {"mask": "LAYER-05"},
    "embedding": {"output": "LAYER-01", "outside": "LAYER-02"},
    "rotary": {"tables": "ATTN-04", "rotated": "ATTN-05"},
    "decoder_mask": {
        "causal": "ATTN-01",
        "padded": "ATTN-01",
        "packed": "ATTN-02",
        "prefix": "ATTN-03",
    },
    "decoding": {
        "decode_prompt": "DEC-01",
        "decode_prefill": "DEC-02",
        "decode_unfilled": "DEC-03",
        "decode_logits": "DEC-04",
        "decode_cache": "DEC-04",
        "decode_as_full_pass": "DEC-06",
        "forward_logits": "MODEL-01",
        "generate": "DEC-07",
    },
    "adafactor": {
        "initial_state": "OPT-04",
        "factoring": "OPT-02",
        "factoring_of_experts": "OPT-03",
        "moments": "OPT-05",
        "moments_of_experts": "OPT-05",
        "parameters": "OPT-09",
        "parameters_of_experts": "OPT-07",
    },
    "training": {
        "learning_rate": "OPT-01",
        "gradients": "OPT-11",
        "train_loss": "LOSS-21",
        "train_parameters": "OPT-10",
        "train_state": "OPT-10",
    },
    "parameter_tree": {
        "tensors": "PARAM-01",
        "total": "PARAM-01",
        "activated": "PARAM-03",
        "factoring": "OPT-02",
        "factoring_of_experts": "OPT-03",
    },
}

_CLAUSES: Mapping[str, Callable[[Config, str], dict[str, str]]] = {
    "router_masked": _masked,
    "router_scatter": _scatter,
    "router_experts_choose": _experts_choose,
    "moe_layer": _layer,
    "group_sizes": _group_sizes,
    "norm": _norm,
    "attention": _attention,
    "cross_entropy": _cross_entropy,
    "model": _model,
    **{kind: lambda *_, found=found: dict(found) for kind, found in _ALWAYS.items()},
}
