"""What groups and capacity refuse: the illegal calls of that chapter."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rejections import (
    LEGAL,
    NOT_COUNTS,
    NOT_FACTORS,
    Row,
    rows_of_arrays,
    rows_of_values,
)

_BATCH = np.random.default_rng(0).normal(size=(2, 5, 3)).astype(np.float32)

LEGAL.update(
    {
        "grouping.num_expert_replicas": {
            "device_count": 8,
            "num_expert_partitions": 2,
            "num_model_partitions": 1,
        },
        "grouping.padded_shape": {"batch": 2, "length": 5, "multiple": 4},
        "grouping.num_groups": {
            "num_tokens": 16,
            "max_group_size": 8,
            "num_experts": 4,
            "num_expert_replicas": 1,
        },
        "grouping.expert_capacity": {
            "tokens_per_group": 8,
            "num_experts": 4,
            "capacity_factor": 1.25,
            "min_expert_capacity": 4,
            "k": None,
        },
        "grouping.even_capacity": {
            "tokens_per_group": 8,
            "num_experts": 4,
            "capacity_factor": 1.25,
            "min_expert_capacity": 4,
            "k": 2,
        },
        "grouping.groups_by_experts": {
            "batch": 2,
            "length": 8,
            "max_group_size": 8,
            "num_experts": 4,
            "num_expert_replicas": 1,
        },
        "grouping.one_group": {
            "batch": 2,
            "length": 8,
            "max_group_size": 8,
            "num_experts": 4,
            "num_expert_replicas": 1,
        },
        "grouping.capacity_factor": {
            "training": True,
            "train_capacity_factor": 1.25,
            "eval_capacity_factor": 2.0,
        },
        "grouping.to_groups": {"inputs": _BATCH, "padded": (2, 6), "num_groups": 4},
        "grouping.from_groups": {
            "outputs": _BATCH[:, :4].repeat(2, axis=0)[:, :3],
            "padded": (2, 6),
            "shape": (2, 5),
        },
    }
)


def grouping_rows() -> Iterator[Row]:
    """Yield the illegal calls of groups and capacity."""
    clause = "GROUP-09"
    for function in (
        "num_expert_replicas",
        "padded_shape",
        "num_groups",
        "expert_capacity",
        "even_capacity",
        "groups_by_experts",
    ):
        name = f"grouping.{function}"
        for argument, legal in LEGAL[name].items():
            values = NOT_FACTORS if argument == "capacity_factor" else NOT_COUNTS
            if legal is not None:
                yield from rows_of_values(name, argument, values, clause)
    yield from rows_of_values("grouping.even_capacity", "k", {"more than E": 5}, clause)
    yield from rows_of_values(
        "grouping.num_groups",
        "num_tokens",
        {"no multiple of the experts": 18, "fewer than the experts": 3},
        clause,
    )
    yield Row(
        "grouping.num_groups",
        "no multiple of experts x replicas",
        {"num_tokens": 20, "num_expert_replicas": 2},
        ("num_tokens",),
        (clause,),
    )
    for name in ("grouping.expert_capacity", "grouping.even_capacity"):
        yield Row(
            name,
            "a factor whose product is no float",
            {"capacity_factor": 1e308, "tokens_per_group": 100},
            ("capacity_factor",),
            (clause,),
        )
    for training in (True, False):
        for argument in ("train_capacity_factor", "eval_capacity_factor"):
            for row in rows_of_values("grouping.capacity_factor", argument, NOT_FACTORS, clause):
                yield row._replace(
                    what=f"{row.what}, training {training}",
                    changes=row.changes | {"training": training},
                )
    pairs = {
        "a number": 12,
        "one number": (12,),
        "three numbers": (2, 6, 1),
        "a float": (2.0, 6),
        "a half": (2, 6.5),
        "a word": "26",
        "nothing": None,
    }
    yield from rows_of_values(
        "grouping.to_groups",
        "padded",
        pairs | {"fewer rows": (1, 12), "fewer columns": (3, 4), "negative": (-2, -6)},
        clause,
    )
    yield from rows_of_values(
        "grouping.to_groups", "num_groups", NOT_COUNTS | {"no divisor": 5, "too many": 24}, clause
    )
    yield from rows_of_arrays("grouping.to_groups", ("inputs",), (clause,), any_values=True)
    yield from rows_of_arrays("grouping.from_groups", ("outputs",), (clause,), any_values=True)
    for argument in ("padded", "shape"):
        yield from rows_of_values("grouping.from_groups", argument, pairs, clause)
    for what, changes in {
        "more tokens than there are": {"padded": (2, 7)},
        "fewer tokens than there are": {"padded": (2, 5)},
        "a negative size": {"padded": (-2, -6)},
        "an unknown size": {"padded": (2, -1)},
        "more rows than padded": {"shape": (3, 5)},
        "more columns than padded": {"shape": (2, 7)},
        "no row": {"shape": (0, 5)},
        "negative columns": {"shape": (2, -1)},
    }.items():
        yield Row("grouping.from_groups", what, changes, ("padded", "shape", "outputs"), (clause,))


ROWS = [*grouping_rows()]
