"""The training code's vectors: `index.json` with cases by group, and tables beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from openmoe_conformance import upstream_t5x_tables
from openmoe_conformance.upstream_rows import failed, guarded, inside, later, skipped
from openmoe_conformance.upstream_t5x_clauses import CHAPTERS, clauses_of
from openmoe_conformance.vector_cases import VectorCase, VectorError
from openmoe_conformance.vector_kinds import KINDS
from openmoe_spec.config import Configuration

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
    found += upstream_t5x_tables.cases(folder)
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
        lender = _lender(folder, config["params_case"], rows)
    config = _normalised(kind, identifier, config)
    return VectorCase(
        folder.name,
        identifier,
        kind,
        exercises,
        config,
        _comparisons(kind, clauses_of(kind, config, exercises), names),
        names,
        path,
        lender=lender,
        chapter=CHAPTERS[kind],
    )


def _comparisons(kind: str, clauses: Mapping[str, str], names: tuple[str, ...]) -> dict[str, str]:
    """Return the comparisons with their clauses, but those of a part that the case is not for."""
    made = {name: KINDS[kind].comparisons[name] for name in clauses}
    optional = ("tables", "rotated", "normalizer")
    absent = {name for name in optional if name in made and made[name].lacking(names)}
    return {name: clause for name, clause in clauses.items() if name not in absent}


def _lender(folder: Path, wanted: str, rows: list[Any]) -> VectorCase:
    for row in rows:
        if isinstance(row, dict) and row.get("id") == wanted:
            return _case(folder, row, rows)
    raise VectorError(f"the index has no case {wanted}")


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
