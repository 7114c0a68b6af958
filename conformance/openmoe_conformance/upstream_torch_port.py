"""The published port's vectors: folders with `cases.json`, npz files and whole model folders."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from openmoe_conformance import upstream_port_tables
from openmoe_conformance.upstream_port_files import (
    CHAPTER,
    CODES,
    called,
    configuration,
    dialect_clauses,
    keys_under,
    stored,
    weights,
)
from openmoe_conformance.upstream_rows import failed, guarded, later, plain, skipped, table
from openmoe_conformance.vector_cases import VectorCase

Row = Mapping[str, Any]

_NEW_TOKENS = 8
_MODELS, _DECODING = "models/cases.json", "decode/cases.json"


def cases(folder: Path) -> list[VectorCase]:
    """Return the cases of all files that are there."""
    found = upstream_port_tables.routers(folder)
    found += table(folder, _MODELS, partial(_models, folder))
    found += table(folder, _DECODING, partial(_decoding, folder))
    found += upstream_port_tables.parameters(folder)
    files = [*folder.glob("models/*_sharded_*"), *folder.glob("convert/*_hf")]
    names = sorted(str(path.relative_to(folder)) for path in files)
    return found + [later(folder, name, "checkpoint files") for name in names]


# ---- models ------------------------------------------------------------------------------------


def _models(folder: Path, rows: list[Any]) -> Iterator[VectorCase]:
    yield from guarded(folder, _MODELS, rows, partial(_model, folder))


def _model(folder: Path, model: Row) -> Iterator[VectorCase]:
    lender = weights(folder, model["dir"])
    yield lender
    fields = configuration(folder, model["dir"])
    make = partial(_pass, folder, model, fields, lender)
    yield from guarded(folder, _MODELS, model["cases"], make)


def _pass(
    folder: Path, model: Row, fields: Mapping[str, Any], lender: VectorCase, row: Row
) -> Iterator[VectorCase]:
    case, dtype, without = row["case"], "float32", []
    name = f"{model['model']}_{case}"
    if row.get("error"):
        yield failed(folder, name, row["error"])
        return
    if case == "bf16":
        lender, dtype = weights(folder, f"{model['dir']}_bf16"), "bfloat16"
        without.append("forward_decisions")  # the stored ones are forced where they can be
        yield lender
    config = called(fields, dtype=dtype) | {"training": case == "train_mode"}
    if case == "plain_nomask" and "loss" in model:
        config["loss"] = model["loss"]
    else:
        without.append("loss_")
    yield stored(
        folder,
        name,
        "port_model",
        file=model["forward"],
        keys=keys_under(folder, model["forward"], under=f"{case}/"),
        config=config,
        clauses=dialect_clauses("port_model", without),
        exercises=row.get("note", case.replace("_", " ")),
        lender=lender,
    )


# ---- decoding ----------------------------------------------------------------------------------


def _decoding(folder: Path, content: Mapping[str, Any]) -> Iterator[VectorCase]:
    makers = {"cases": _cached, "noncausal": _pair, "generate": _generated}
    for group, make in makers.items():
        yield from guarded(folder, _DECODING, content.get(group, []), partial(make, folder))


def _cached(folder: Path, row: Row) -> Iterator[VectorCase]:
    name = f"decode_{row['case']}"
    if row.get("error"):
        yield failed(folder, name, row["error"])
        return
    if row["code"] not in CODES:
        yield skipped(folder, name, f"there is no dialect of the file {row['code']}")
        return
    config = called(configuration(folder, f"models/{row['model']}"), code=row["code"])
    config |= {key: row[key] for key in ("prefill", "chunk", "steps")}
    config["positions_from_mask"] = row["via_prepare_inputs_for_generation"]
    exercises = f"calls of {row['prefill']}, then {row['chunk']} tokens; {row['code']}"
    yield _decoded(folder, "port_decoding", name, row, config | {"exercises": exercises})


def _pair(folder: Path, row: Row) -> Iterator[VectorCase]:
    name = f"noncausal_{row['case']}"
    if row.get("error"):
        yield failed(folder, name, row["error"])
        return
    config = called(configuration(folder, f"models/{row['model']}"))
    config["exercises"] = f"two inputs that differ at {row.get('changed', 'one place')}"
    yield _decoded(folder, "port_pair", name, row, config)


def _decoded(folder: Path, kind: str, name: str, row: Row, config: dict[str, Any]) -> VectorCase:
    file = "decode/decode.npz"
    return stored(
        folder,
        name,
        kind,
        file=file,
        keys=keys_under(folder, file, under=f"{row['case']}/"),
        exercises=config.pop("exercises"),
        config=config,
        clauses=dialect_clauses(kind),
        lender=weights(folder, f"models/{row['model']}"),
    )


def _generated(folder: Path, row: Row) -> Iterator[VectorCase]:
    name, ids = f"generate_{row['case']}", row["input_ids"]
    if row.get("error"):
        yield failed(folder, name, row["error"])
        return
    ones = [[1] * len(one) for one in ids] if row["case"].startswith("mask_ones") else None
    config = called(configuration(folder, f"models/{row['model']}")) | {
        "input_ids": ids,
        "attention_mask": row.get("attention_mask", ones),
        "new_tokens": _NEW_TOKENS,
    }
    answers = {
        "generate_with_cache": "greedy_use_cache",
        "generate_without_cache": "greedy_no_cache",
    }
    found = {comparison: key for comparison, key in answers.items() if row.get(key) is not None}
    case = plain(
        folder,
        name,
        "port_generation",
        config=config | {key: row[key] for key in found.values()},
        clauses=dict.fromkeys(found, "DIAL-02"),
        chapter=CHAPTER,
        exercises=row["case"],
    )
    yield replace(case, lender=weights(folder, f"models/{row['model']}"))
