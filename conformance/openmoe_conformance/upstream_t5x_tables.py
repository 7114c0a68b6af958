"""The tables beside the training code's index: sizes, learning rates, sparse layers, whole trees."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from openmoe_conformance.upstream_rows import failed, plain, skipped, table
from openmoe_conformance.upstream_t5x_clauses import CHAPTERS, clauses_of
from openmoe_conformance.vector_cases import VectorCase
from openmoe_spec.config import PUBLISHED


def cases(folder: Path) -> list[VectorCase]:
    """Return the cases of the tables that are there."""
    makers = {
        "capacity_table.json": _capacities,
        "lr_schedule.json": _rates,
        "sparse_layout.json": _layouts,
        "param_trees.json": _trees,
    }
    return [
        one for file, make in makers.items() for one in table(folder, file, partial(make, folder))
    ]


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
