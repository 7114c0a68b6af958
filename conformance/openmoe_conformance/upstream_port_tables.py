"""The published port's routers, capacities, converted trees and shapes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from openmoe_conformance.upstream_port_files import (
    CHAPTER,
    called,
    configuration,
    dialect_clauses,
    keys_under,
    stored,
    translated,
)
from openmoe_conformance.upstream_rows import failed, guarded, plain, table
from openmoe_conformance.upstream_t5x_clauses import clauses_of
from openmoe_conformance.vector_cases import VectorCase
from openmoe_spec.config import PUBLISHED
from openmoe_spec.layouts import PORT_FIELDS

Row = Mapping[str, Any]

_ROUTERS, _CAPACITIES = "router/cases.json", "router/capacity_table.json"
_CONVERSIONS = "convert/cases.json"

_CLAUSES = {
    "probabilities": "ROUTE-03",
    "decision": "ROUTE-09",
    "gates": "ROUTE-10",
    "capacity": "DIAL-02",
    "balance_loss": "LOSS-01",
    "router_z_loss": "LOSS-05",
}
"""But for the capacity the port's routers do what those of the training code do."""


# ---- routers -----------------------------------------------------------------------------------


def routers(folder: Path) -> list[VectorCase]:
    """Return the cases of the routers and of the table of capacities."""
    found = table(folder, _ROUTERS, partial(_routers, folder))
    return found + table(folder, _CAPACITIES, partial(_capacities, folder))


def _routers(folder: Path, content: Mapping[str, Any]) -> Iterator[VectorCase]:
    for group, rows in content.items():
        if isinstance(rows, list):
            yield from guarded(folder, _ROUTERS, rows, partial(_router, folder, group))


def _router(folder: Path, group: str, row: Row) -> Iterator[VectorCase]:
    name, file = f"router_{row['name']}", f"router/{group}.npz"
    if row.get("error"):
        yield failed(folder, name, row["error"])
        return
    absent = {"router_z_loss": "z_loss", "capacity": "capacity_factor"}
    clauses = {n: c for n, c in _CLAUSES.items() if row.get(absent.get(n, "name")) is not None}
    yield stored(
        folder,
        name,
        "port_router",
        file=file,
        keys=keys_under(folder, file, under=f"{row['name']}/"),
        config=row,
        clauses=clauses,
        exercises=f"{row.get('router', group)}, input {row.get('kind', '?')}",
    )


def _capacities(folder: Path, rows: list[Any]) -> Iterator[VectorCase]:
    for number, row in enumerate(rows):
        yield from guarded(folder, _CAPACITIES, [row], partial(_capacity, folder, number))


def _capacity(folder: Path, number: int, row: Row) -> Iterator[VectorCase]:
    """What the port does with a number of tokens, and what the training code does, if stored."""
    name, given = f"capacity_{number:03d}", ("tokens", "num_experts", "k", "capacity_factor")
    config = {key: row[key] for key in (*given, "min_capacity")}
    if row.get("error"):
        config["error"], clauses = row["error"], {"rejected": "GROUP-09"}
    else:
        config["capacity"], clauses = row["torch_capacity"], {"capacity": "DIAL-02"}
    yield plain(folder, name, "port_capacity", config=config, clauses=clauses, chapter=CHAPTER)
    if row.get("jax_groups_1device") is None:
        return
    sizes = {
        "batch": 1,
        "seq": row["tokens"],
        "padded_batch": 1,
        "padded_seq": row["jax_padded_tokens_min"],
        "num_experts": row["num_experts"],
        "num_expert_replicas": 1,
        "max_group_size": 4096,
        "num_groups": row["jax_groups_1device"],
        "tokens_per_group": row["jax_tokens_per_group"],
        "capacity_factor": row["capacity_factor"],
        "min_cap": max(1, row["min_capacity"]),
        "capacity": row["jax_capacity_per_group"],
    }
    yield plain(
        folder,
        f"{name}_t5x",
        "group_sizes",
        config=sizes,
        clauses=clauses_of("group_sizes", sizes, ""),
        chapter=CHAPTER,
    )


# ---- parameters --------------------------------------------------------------------------------


def parameters(folder: Path) -> list[VectorCase]:
    """Return the cases of converted trees and of the published models' shapes."""
    found = table(folder, _CONVERSIONS, partial(_conversions, folder))
    for path in sorted(folder.glob("shapes_*.json")):
        found += table(folder, path.name, partial(_shapes, folder, path.stem))
    return found


def _conversions(folder: Path, rows: list[Any]) -> Iterator[VectorCase]:
    yield from guarded(folder, _CONVERSIONS, rows, partial(_conversion, folder))


def _conversion(folder: Path, row: Row) -> Iterator[VectorCase]:
    """Names and values there, and a pass; what cannot be converted or loaded must be rejected."""
    name, start = f"convert_{row['name']}", f"convert/{row['name']}"
    model, loads = f"models/{row['config']}", row.get("strict_load", "ok")
    config: dict[str, Any] = {
        "mapping": row.get("mapping", {}),
        "unused": row.get("unused_t5x_keys", []),
        "error": row.get("error") or ("" if loads == "ok" else loads),
    }
    clauses = {"names": "PARAM-05"} if config["mapping"] else {}
    clauses |= {"unused": "PARAM-05"} if config["unused"] else {}
    if config["error"]:
        clauses["rejected"] = "MODEL-09"
        config["configuration"] = configuration(folder, model)
    file = f"{start}_t5x.npz"
    tree = stored(
        folder,
        name,
        "port_names",
        file=file,
        keys=keys_under(folder, file, named="params/"),
        config=config,
        clauses=clauses,
        exercises=config["error"] or f"{len(config['mapping'])} tensors",
    )
    yield tree
    file = f"{start}_state_dict.safetensors"
    if (folder / file).exists():
        case = stored(
            folder,
            f"{name}_state_dict",
            "port_state_dict",
            file=file,
            keys=keys_under(folder, file, named="state_dict/"),
            config=config,
            clauses={"state_dict": "PARAM-05"},
            lender=tree,
        )
        yield replace(case, chapter="")  # it follows from the names and the tree
    file = f"{start}_forward.npz"
    if (folder / file).exists():
        keys = keys_under(folder, file)
        yield stored(
            folder,
            f"{name}_forward",
            "port_model",
            file=file,
            keys={"in/input_ids": keys.pop("input_ids"), **keys},
            config=called(configuration(folder, model))
            | {"training": False, "unused": config["unused"]},
            clauses=dialect_clauses("port_model", ("loss_",)),
            lender=tree,
        )


def _shapes(folder: Path, stem: str, content: Mapping[str, Any]) -> Iterator[VectorCase]:
    name, settings = stem.removeprefix("shapes_"), content["config"]
    clauses = {"shapes": "PARAM-05"} | ({"configuration": "DIAL-04"} if name in PUBLISHED else {})
    yield plain(
        folder,
        stem,
        "port_shapes",
        config={
            "name": name,
            "configuration": translated(settings, name),
            "published": {
                ours: settings[theirs] for theirs, ours in PORT_FIELDS.items() if theirs in settings
            },
            **{key: content[key] for key in ("shapes", "n_tensors", "n_params")},
        },
        clauses=clauses,
        chapter=CHAPTER,
    )
