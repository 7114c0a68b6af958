"""The layouts that vectors of the original programs come in: no hashes, no clause ids.

The clause that each comparison decides is supplied here, by group and configuration of a case.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from openmoe_conformance.vector_cases import VectorCase

CHAPTER_OF_GROUP = {
    "router_masked": "routing",
    "router_scatter": "routing",
    "router_experts_choose": "routing",
    "moe_layer": "moe",
    "moe_layer_replicas": "moe",
    "capacity_table": "grouping",
}
"""Upstream groups that this version's chapters cover."""


def upstream_cases(folder: Path, index: Mapping[str, Any]) -> list[VectorCase] | None:
    """Return the cases of an upstream folder, None when its index is of no such layout.

    What belongs to chapters that this version lacks is listed, to be reported as SKIPPED.
    """
    if isinstance(index.get("cases"), list):
        cases = [_case(folder, row) for row in index["cases"]]
        table = folder / "capacity_table.json"
        return cases + (list(_capacity_cases(table)) if table.exists() else [])
    if "conventions" in index:
        found = sorted(path.parent.name for path in folder.glob("*/cases.json"))
        return [_later(folder, name, "the dialect of the PyTorch port") for name in found]
    if isinstance(index.get("groups"), dict):
        return [_later(folder, name, "the data chapters") for name in index["groups"]]
    return None


def _later(folder: Path, name: str, chapter: str) -> VectorCase:
    reason = f"{chapter}: not in this version"
    return VectorCase(folder.name, name, "", "", {}, {"all": ""}, (), None, skip=reason)


def _failed(name: str, identifier: str, config: Mapping[str, Any], error: Any) -> VectorCase:
    reason = f"the original failed on it: {error}"
    return VectorCase(name, identifier, "", "", config, {"all": ""}, (), None, skip=reason)


def _case(folder: Path, row: Any) -> VectorCase:
    name = folder.name
    try:
        identifier, group, config = row["id"], row["group"], row["config"]
        exercises, error = row.get("exercises", ""), row.get("error")
        if group not in CHAPTER_OF_GROUP:
            return _later(folder, identifier, f"{group} vectors")
        if error:
            return _failed(name, identifier, config, error)
        kind = "moe_layer" if group == "moe_layer_replicas" else group
        path = folder / row["file"]
        inside = path.resolve().parent == folder.resolve()
        outside = f"{name}/index.json, case {identifier}: file leaves its folder"
        return VectorCase(
            name,
            identifier,
            kind,
            exercises,
            config,
            comparisons_of(kind, config, exercises),
            tuple(row["arrays"]),
            path,
            faults=() if inside else (outside,),
        )
    except (KeyError, TypeError, AttributeError) as error:
        where = row.get("id", "?") if isinstance(row, dict) else "?"
        fault = (f"{name}/index.json, case {where}: lacks {error}",)
        return VectorCase(name, str(where), "", "", {}, {"index": ""}, (), None, None, fault)


def comparisons_of(kind: str, config: Mapping[str, Any], exercises: str) -> dict[str, str]:
    """Return what a case of this kind is compared on, and the clause that each decides."""
    ignore = bool(config.get("ignore_padding_tokens"))
    router = {
        "probabilities": "ROUTE-03",
        "router_z_loss": "LOSS-06" if ignore else "LOSS-05",
    }
    balance = "LOSS-04" if ignore else "LOSS-01"
    if kind == "router_masked":
        bpr = bool(config["batch_prioritized_routing"])
        decision = {
            (False, False): "ROUTE-09",
            (True, False): "ROUTE-12",
            (False, True): "ROUTE-14",
            (True, True): "ROUTE-14",
        }[ignore, bpr]
        found = router | {"decision": decision, "gates": "ROUTE-10", "balance_loss": balance}
        # Ties between tokens hang on the last bit of softmax: those start from stored probabilities.
        if not ("TIES" in exercises and bpr) and "saturate" not in exercises:
            found["route"] = "ROUTE-19"
        return found | {
            "gradients_combine": "ROUTE-26",
            "gradients_aux": "LOSS-12",
            "gradients_z": "LOSS-12",
        }
    if kind == "router_scatter":
        decision = "ROUTE-22" if ignore else "ROUTE-21"
        return router | {"decision": decision, "gates": "ROUTE-10", "balance_loss": balance}
    if kind == "router_experts_choose":
        decision = "ROUTE-24" if ignore else "ROUTE-23"
        return router | {"decision": decision, "gates": decision}
    if kind == "moe_layer":
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
        return _SHAPE_CLAUSES | metrics | {"output": output, "gradients": "MOE-09"}
    if kind == "group_sizes":
        return dict(_SHAPE_CLAUSES)
    return {"num_expert_replicas": "GROUP-01"}


_SHAPE_CLAUSES = {
    "padded_shape": "GROUP-02",
    "num_groups": "GROUP-04",
    "expert_capacity": "GROUP-06",
}


def _capacity_cases(table: Path) -> Iterator[VectorCase]:
    name = table.parent.name
    try:
        content = json.loads(table.read_text(encoding="utf-8"))
        rows = [("group_sizes", row) for row in content["rows"]]
        rows += [("replicas", row) for row in content["expert_replicas"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        fault = (f"{name}/{table.name} cannot be read: {error!r}",)
        yield VectorCase(name, table.name, "", "", {}, {"table": ""}, (), None, None, fault)
        return
    for number, (kind, row) in enumerate(rows):
        config = {key: value for key, value in row.items() if key not in ("error", "note")}
        if kind == "group_sizes":
            config["min_cap"] = content["min_expert_capacity"]
        identifier = f"capacity_{number:03d}" if kind == "group_sizes" else f"replicas_{number:03d}"
        if row.get("error"):
            yield _failed(name, identifier, config, row["error"])
            continue
        yield VectorCase(
            name,
            identifier,
            kind,
            row.get("note") or "",
            config,
            comparisons_of(kind, config, ""),
            (),
            None,
        )
