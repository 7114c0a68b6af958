"""Small folders in the two upstream layouts, their outputs computed by the reference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from openmoe_conformance import model_cases
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_spec.dialects import DIALECTS
from openmoe_spec.layouts import PORT_FIELDS, port_name

REFERENCE = ReferenceAdapter()


def _write(folder: Path, index: dict[str, Any], arrays: dict[str, np.ndarray], file: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / file, **arrays)
    (folder / "index.json").write_text(json.dumps(index), encoding="utf-8")


# ---- the training code -------------------------------------------------------------------------


def t5x(folder: Path, *, dtype: str = "float32", kind: str = "prefix") -> Path:
    """Write a set of one tiny model: a pass with loss and gradients, and decoding."""
    made = model_cases.fixed(kind=kind, length=12, training=True)
    fields, weights, batch = model_cases.build(made)
    settings = {
        "NUM_DECODER_LAYERS": fields["num_layers"],
        "NUM_DECODER_SPARSE_LAYERS": fields["num_moe_layers"],
        "EMBED_DIM": fields["embed_dim"],
        "NUM_HEADS": fields["num_heads"],
        "HEAD_DIM": fields["head_dim"],
        "MLP_DIM": fields["mlp_dim"],
        "EXPERT_MLP_DIM": fields["expert_mlp_dim"],
        "NUM_EXPERTS": fields["num_experts"],
        "NUM_EMBEDDINGS": fields["vocabulary_size"],
        "params_case": "tiny_params",
    }
    if dtype == "float32":
        settings |= {"ACTIVATION_DTYPE": "float32", "MOE_TRUNCATED_DTYPE": "float32"}
    call = {"configuration": fields, "dtype": dtype}
    arrays = {
        "tiny_params": {f"params/{name}": array for name, array in weights.items()},
        "pass": {f"batch/{name}": array for name, array in batch.items()}
        | _pass(weights, batch, call | {"training": True}),
    }
    activations = REFERENCE.forward(weights, batch, training=True, **call).activations
    rows = [
        _row("tiny_params", "tiny_model", {"kind": "params"}, arrays),
        _row(
            "pass",
            "tiny_model",
            settings
            | {"train": True, "batch": kind}
            | {"activation_dtypes": {name: a.dtype.name for name, a in activations.items()}},
            arrays,
        ),
    ]
    if kind == "prefix":
        arrays["steps"] = _decoding(weights, batch, call)
        arrays["steps"] |= {f"batch/{name}": array for name, array in batch.items()}
        rows.append(_row("steps", "decode", settings | {"steps": 2}, arrays))
    flat = {f"{case}/{n}": a for case, found in arrays.items() for n, a in found.items()}
    _write(folder, {"cases": rows}, flat, "tiny_model.npz")
    return folder


def _row(name: str, group: str, config: dict[str, Any], arrays: dict[str, Any]) -> dict[str, Any]:
    listed = {array: {} for array in arrays[name]}
    row = {"id": name, "group": group, "file": "tiny_model.npz", "exercises": "", "config": config}
    return row | {"arrays": listed}


def _pass(weights: Any, batch: Any, call: dict[str, Any]) -> dict[str, np.ndarray]:
    result, loss = REFERENCE.forward(weights, batch, **call), REFERENCE.loss(weights, batch, **call)
    names = {
        "total": "total",
        "cross_entropy": "cross_entropy",
        "z_loss": "z_loss",
        "auxiliary_loss": "aux_scaled",
        "router_z_loss": "router_z_scaled",
        "weight_sum": "nonpadding_tokens",
        "accuracy": "accuracy",
    }
    gradients = REFERENCE.model_gradients(weights, batch, **call)
    found = {"logits": result.logits}
    found |= {f"loss/{theirs}": np.asarray(loss[ours]) for ours, theirs in names.items()}
    found |= {f"acts/{n}": np.asarray(a, np.float32) for n, a in result.activations.items()}
    found |= {f"grads/{n}": np.asarray(a, np.float32) for n, a in gradients.items()}
    return found | {
        f"sown/decoder/layers_{layer}/mlp/{name}": np.asarray(value)
        for layer, metrics in result.metrics.items()
        for name, value in metrics.items()
    }


def _decoding(weights: Any, batch: Any, call: dict[str, Any]) -> dict[str, np.ndarray]:
    answer = REFERENCE.decode(weights, batch, steps=2, **call)
    found = {
        "prefill/initial_index": answer["prefill"].index,
        "step_logits": answer["logits"],
        "full_forward_eval_logits": REFERENCE.forward(weights, batch, **call).logits,
        "predict_batch/sequences": REFERENCE.generate(weights, batch, **call),
    }
    for prefix, which in (("prefill_cache", "prefill"), ("final_cache", "cache")):
        cache = answer[which]
        for layer, (keys, values) in enumerate(zip(cache.keys, cache.values, strict=True)):
            path = f"{prefix}/decoder/layers_{layer}/self_attention"
            found[f"{path}/cached_key"] = np.moveaxis(np.asarray(keys, np.float32), 1, -1)
            found[f"{path}/cached_value"] = np.moveaxis(np.asarray(values, np.float32), 1, -1)
            found[f"{path}/cache_index"] = cache.index
    return found


# ---- the published port ------------------------------------------------------------------------


def torch_port(folder: Path, *, code: str = "my_openmoe") -> Path:
    """Write a set of one model folder: a pass, cached calls, a conversion.

    With the port's own code calls have two tokens; the other code's have one, whose position comes
    from a mask.
    """
    fields, weights, batch = model_cases.build(
        model_cases.fixed(kind="full", length=6), expert_mlp_dim=None, max_group_size=4096
    )
    ids = batch["decoder_input_tokens"]
    (folder / "decode").mkdir(parents=True)
    (folder / "convert").mkdir()
    model = folder / "models" / "M"
    model.mkdir(parents=True)
    settings = {theirs: fields[ours] for theirs, ours in PORT_FIELDS.items()}
    settings["num_key_value_heads"] = fields["num_heads"]
    settings["moe_layer_interval"] = fields["num_layers"] // fields["num_moe_layers"]
    (model / "config.json").write_text(json.dumps(settings), encoding="utf-8")
    state = REFERENCE.port_parameters(weights)
    save_file(state, model / "model.safetensors")
    (folder / "index.json").write_text('{"conventions": {}}', encoding="utf-8")

    def write(file: str, content: Any) -> None:
        (folder / file).write_text(json.dumps(content), encoding="utf-8")

    call = {"configuration": fields, "dialect": "torch_port"}
    passed = _port_pass(weights, ids, call)
    np.savez(folder / "models" / "M_forward.npz", **{f"plain/{n}": a for n, a in passed.items()})
    case = {"model": "M", "dir": "models/M", "forward": "models/M_forward.npz"}
    write("models/cases.json", [case | {"cases": [{"case": "plain"}]}])

    ours = code == "my_openmoe"
    row = {"case": "chunks", "model": "M", "prefill": 2, "chunk": 2 if ours else 1}
    row |= {"via_prepare_inputs_for_generation": not ours, "code": code}
    failed = {"case": "raised", "model": "M", "error": "IndexError: index 6 is out of bounds"}
    arrays, row["steps"] = _port_steps(weights, ids, fields, row)
    np.savez(folder / "decode" / "decode.npz", **{f"chunks/{n}": a for n, a in arrays.items()})
    write("decode/cases.json", {"cases": [row, failed]})

    tree = {name.replace("/", "|"): array for name, array in weights.items()}
    np.savez(folder / "convert" / "whole_t5x.npz", **tree)
    save_file(state, folder / "convert" / "whole_state_dict.safetensors")
    mapping = {}
    for name in weights:
        there, transposed = port_name(name)
        mapping[there] = [name, "transpose" if transposed else "copy"]
    whole = {"name": "whole", "config": "M", "mapping": mapping, "strict_load": "ok"}
    cut = {"name": "cut", "config": "M", "error": "KeyError: 'router'"}
    np.savez(folder / "convert" / "cut_t5x.npz", **dict(list(tree.items())[:-1]))
    write("convert/cases.json", [whole | {"unused_t5x_keys": []}, cut])
    return folder


def _port_pass(weights: Any, ids: np.ndarray, call: dict[str, Any]) -> dict[str, np.ndarray]:
    result = REFERENCE.forward(weights, {"decoder_input_tokens": ids}, **call)
    act, count = result.activations, call["configuration"]["num_layers"]
    after = [
        act[f"decoder/layers_{i}"] + act.get(f"decoder/layers_{i}/extra_mlp", np.float32(0))
        for i in range(count)
    ]
    states = [act["token_embedder"], *after[:-1], act["decoder/decoder_norm"]]
    metrics = [result.metrics[layer] for layer in sorted(result.metrics)]
    found = {
        "in/input_ids": ids,
        "logits": result.logits,
        "hidden_states": np.stack(states),
        "last_layer_raw": after[-1],
        "aux_losses": np.array([one["auxiliary_loss"] for one in metrics]),
        "z_losses": np.array([one["router_z_loss"] for one in metrics]),
    }
    for layer, decision in result.decisions.items():
        name = f"decoder/layers_{layer}/mlp"
        found |= {f"moe{layer}/{key}": array for key, array in _stored(decision).items()}
        found[f"moe{layer}/gate_logits"] = act[f"{name}/router/router_weights"][0]
        found[f"moe{layer}/output"] = act[name]
        found[f"moe{layer}/capacity"] = np.array(decision.capacity)
        used = decision.expert_index[decision.kept]
        found[f"moe{layer}/used_capacity"] = np.bincount(used, minlength=4)
    return found


def _stored(decision: Any) -> dict[str, np.ndarray]:
    kept = decision.kept[0]
    return {
        "expert_index": decision.expert_index[0],
        "kept": kept,
        "position": np.where(kept, decision.position[0], -1),
        "gate": np.where(kept, decision.gate[0], 0),
    }


def _port_steps(
    weights: Any, ids: np.ndarray, fields: dict[str, Any], row: dict[str, Any]
) -> tuple[dict[str, np.ndarray], list[dict[str, Any]]]:
    batch, dialect = {"decoder_input_tokens": ids}, DIALECTS["torch_port"]
    if row["via_prepare_inputs_for_generation"]:
        batch["attention_mask"] = (np.arange(ids.shape[1]) > 0) * np.ones_like(ids)
        dialect = {**dialect, "decode_position": "position_ids_plus_one"}
    answer = REFERENCE.cached_calls(
        weights,
        batch,
        configuration=fields,
        prefill=row["prefill"],
        chunk=row["chunk"],
        positions_from_mask=row["via_prepare_inputs_for_generation"],
        dialect=dialect,
    )
    full = REFERENCE.forward(weights, batch, configuration=fields, dialect=dialect)
    found = {"input_ids": ids, "decode_logits": answer["logits"], "full_logits": full.logits}
    if "attention_mask" in batch:
        found["attention_mask"] = batch["attention_mask"]
    steps = []
    for number, decisions in enumerate(answer["decisions"]):
        facts = {}
        for layer, decision in decisions.items():
            stored = _stored(decision)
            found |= {f"step{number:02d}/moe{layer}/{key}": a for key, a in stored.items()}
            facts[f"moe{layer}"] = {
                "tokens": len(stored["kept"]),
                "capacity": decision.capacity,
                "dropped": int((~stored["kept"]).sum()),
            }
        steps.append(facts)
    for layer, decision in full.decisions.items():
        found |= {f"full/moe{layer}/{key}": a for key, a in _stored(decision).items()}
    return found, steps
