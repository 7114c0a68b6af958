"""The training code's vectors: `index.json` with cases by group, and tables beside it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openmoe_conformance.upstream_rows import (
    failed,
    guarded,
    inside,
    later,
    offered,
    plain,
    skipped,
    table,
)
from openmoe_conformance.upstream_t5x_clauses import clauses_of
from openmoe_conformance.vector_cases import VectorCase
from openmoe_spec.config import PUBLISHED, Configuration

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

_GROUPS = {
    "moe_layer_replicas": "moe_layer",
    "tiny_model": "model",
    "decode": "decoding",
}
"""Groups whose cases are of a kind of another name."""

_COMPONENTS = {
    "mlp": "feed_forward",
    "swiglu": "swiglu",
    "layernorm": "norm",
    "logit": "token_mask",
    "embed": "embedding",
    "rope": "rotary",
    "masks": "decoder_mask",
    "attn": "attention",
    "xent": "cross_entropy",
}
"""Kinds of the group `components` by the first word of the id."""

_ADAFACTOR = {
    "decay_rate": 0.8,
    "step_offset": 0,
    "epsilon1": 1e-30,
    "epsilon2": 1e-3,
    "clipping_threshold": 1.0,
    "min_dim_size_to_factor": 128,
    "multiply_by_parameter_scale": True,
    "beta1": None,
    "weight_decay": None,
}
"""The optimizer that the models were trained with; another is not specified."""


def cases(folder: Path, index: Mapping[str, Any]) -> list[VectorCase]:
    """Return the cases of the index and of the tables beside it."""
    rows = index["cases"]
    found = guarded(folder, "index.json", rows, lambda row: [_case(folder, row, rows)])
    found += table(folder, "capacity_table.json", lambda content: _capacities(folder, content))
    found += table(folder, "lr_schedule.json", lambda content: _rates(folder, content))
    found += table(folder, "sparse_layout.json", lambda content: _layouts(folder, content))
    found += table(folder, "param_trees.json", lambda content: _trees(folder, content))
    checkpoints = (index.get("extra_files") or {}).get("checkpoints", ())
    return found + [later(folder, one["dir"], "checkpoints") for one in checkpoints]


def _case(folder: Path, row: Any, rows: list[Any]) -> VectorCase:
    identifier, group, config = row["id"], row["group"], row["config"]
    exercises = row.get("exercises", "")
    if row.get("error"):
        return failed(folder, identifier, row["error"])
    kind = _kind(identifier, group, config)
    if kind is None:
        return later(folder, identifier, f"{group} vectors")
    if reason := _unspecified(kind, config):
        return skipped(folder, identifier, reason)
    path = inside(folder, row["file"])
    names, lender = tuple(row["arrays"]), None
    if "params_case" in config:
        (found,) = [one for one in rows if one["id"] == config["params_case"]]
        lender = _case(folder, found, rows)
    config = _normalised(kind, identifier, config)
    every = names + (lender.names if lender else ())
    return VectorCase(
        folder.name,
        identifier,
        kind,
        exercises,
        config,
        {} if kind == "parameters" else offered(kind, clauses_of(kind, config, exercises), every),
        names,
        path,
        lender=lender,
        chapter=CHAPTERS[kind],
    )


def _kind(identifier: str, group: str, config: Mapping[str, Any]) -> str | None:
    """Return the kind of a case, None when this version has none for it."""
    if group == "components":
        return _COMPONENTS.get(identifier.partition("_")[0])
    if config.get("kind") == "params":
        return "parameters"
    if group == "adafactor":
        return "adafactor" if "logical_axes" in config else "training"
    kind = _GROUPS.get(group, group)
    return kind if kind in CHAPTERS else None


def _unspecified(kind: str, config: Mapping[str, Any]) -> str:
    """Return why a case says nothing about OpenMoE, empty when it does."""
    if kind == "norm" and config.get("epsilon", 1e-6) != 1e-6:
        return f"a norm with epsilon {config['epsilon']} is not specified"
    if kind == "adafactor" and any(config.get(k, v) != v for k, v in _ADAFACTOR.items()):
        return "an optimizer with other settings is not specified"
    if kind == "training" and _dtypes(config)["dtype"] != "float32":
        return "no function of the adapter trains in bfloat16"
    return ""


def _normalised(kind: str, identifier: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the configuration as the comparisons read it; of routers and layers as it is."""
    if kind == "embedding":
        return {**config, "dtype": "bfloat16" if "bfloat16" in identifier else "float32"}
    if kind == "adafactor":
        return {"logical_axes": config["logical_axes"]}
    if kind not in ("model", "decoding", "training"):
        return dict(config)
    found: dict[str, Any] = {"configuration": _configuration(config)}
    if kind == "training":
        found["num_microbatches"] = config["num_microbatches"]
        found["num_expert_partitions"] = config["num_expert_partitions_grad_scale"]
        return found
    found["call"] = _dtypes(config)
    if kind == "decoding":
        return found | {"steps": config["steps"]}
    given = ("batch", "activation_dtypes", "min_router_margin")
    found |= {name: config[name] for name in given if name in config}
    return found | {"training": config["train"]}


def _dtypes(config: Mapping[str, Any]) -> dict[str, Any]:
    dtype = config.get("ACTIVATION_DTYPE", "bfloat16")
    of_experts = config.get("MOE_TRUNCATED_DTYPE", "bfloat16")
    return {"dtype": dtype, "expert_dtype": None if of_experts == dtype else of_experts}


_FIELDS = {
    "num_layers": "NUM_DECODER_LAYERS",
    "num_moe_layers": "NUM_DECODER_SPARSE_LAYERS",
    "embed_dim": "EMBED_DIM",
    "num_heads": "NUM_HEADS",
    "head_dim": "HEAD_DIM",
    "mlp_dim": "MLP_DIM",
    "expert_mlp_dim": "EXPERT_MLP_DIM",
    "num_experts": "NUM_EXPERTS",
    "num_selected_experts": "num_selected_experts",
    "vocabulary_size": "NUM_EMBEDDINGS",
    "max_group_size": "GROUP_SIZE",
    "train_capacity_factor": "train_capacity_factor",
    "eval_capacity_factor": "eval_capacity_factor",
    "auxiliary_loss_factor": "aux_loss_factor",
    "router_z_loss_factor": "router_z_loss_factor",
    "z_loss_factor": "z_loss",
    "label_smoothing": "label_smoothing",
    "inputs_bidirectional_attention": "inputs_bidirectional_attention",
}
"""Fields of a configuration by the names of the training code's settings."""


def _configuration(config: Mapping[str, Any]) -> dict[str, Any]:
    fields = {ours: config[theirs] for ours, theirs in _FIELDS.items() if theirs in config}
    if "EVAL_EXPERT_CAPACITY_FACTOR" in config:
        fields["eval_capacity_factor"] = config["EVAL_EXPERT_CAPACITY_FACTOR"]
    return asdict(Configuration(name=config.get("params_case", "tiny"), **fields))


# ---- tables ------------------------------------------------------------------------------------


def _capacities(folder: Path, content: Mapping[str, Any]) -> Iterator[VectorCase]:
    rows = [("group_sizes", "capacity", row) for row in content["rows"]]
    rows += [("replicas", "replicas", row) for row in content["expert_replicas"]]
    for number, (kind, prefix, row) in enumerate(rows):
        name = f"{prefix}_{number:03d}"
        config = {key: value for key, value in row.items() if key not in ("error", "note")}
        if kind == "group_sizes":
            config["min_cap"] = content["min_expert_capacity"]
        if row.get("error"):
            yield failed(folder, name, row["error"])
            continue
        yield plain(
            folder,
            name,
            kind,
            config=config,
            clauses=clauses_of(kind, config, ""),
            chapter=CHAPTERS[kind],
            exercises=row.get("note") or "",
        )


def _rates(folder: Path, content: Mapping[str, Any]) -> Iterator[VectorCase]:
    for name, schedule in content.items():
        if not isinstance(schedule, dict):
            continue
        if (schedule["base_learning_rate"], schedule["warmup_steps"]) != (1.0, 10_000):
            yield skipped(folder, f"learning_rate_{name}", "another schedule is not specified")
            continue
        for step, rate in schedule["values"].items():
            config = {
                "function": "learning_rate",
                "arguments": {"step": int(step)},
                "expected": rate,
                "bounds": {"relative": 2e-6},
            }
            yield plain(
                folder,
                f"learning_rate_{name}_{step}",
                "call",
                config=config,
                clauses={"answer": "OPT-01"},
                chapter="optimizer",
            )


def _layouts(folder: Path, content: Mapping[str, Any]) -> Iterator[VectorCase]:
    for key, layers in content.items():
        count, sparse, layout = key.split("/")
        arguments = {"num_layers": int(count), "num_sparse": int(sparse), "layout": layout}
        config = {"function": "sparse_layers", "arguments": arguments, "expected": layers}
        yield plain(
            folder,
            f"sparse_layers_{key}",
            "call",
            config=config,
            clauses={"answer": "PARAM-02"},
            chapter="parameters",
        )


_MODELS = {"base": "base", "large": "8b", "xl": "34b"}
"""Published configurations by the training code's names."""


def _trees(folder: Path, content: Mapping[str, Any]) -> Iterator[VectorCase]:
    for name, found in content.items():
        if name not in _MODELS:
            yield skipped(folder, f"parameters_{name}", f"there is no published model {name}")
            continue
        config = {
            "configuration": asdict(PUBLISHED[_MODELS[name]]),
            "total": found["total_params"],
            "activated": found["activated_excl_embed"],
            "tensors": {
                tensor: {
                    "shape": one["shape"],
                    "axes": one["logical_axes"],
                    "state": one["adafactor_state"],
                }
                for tensor, one in found["params"].items()
            },
        }
        kind = "parameter_tree"
        yield plain(
            folder,
            f"parameters_{name}",
            kind,
            config=config,
            clauses=clauses_of(kind, config, ""),
            chapter=CHAPTERS[kind],
        )
