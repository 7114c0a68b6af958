"""What the mixture-of-experts layer refuses."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
from rejections import (
    LEGAL,
    NOT_COUNTS,
    NOT_FACTORS,
    NOT_WORDS,
    Row,
    changed,
    rows_of_arrays,
    rows_of_mapping,
    rows_of_sizes,
    rows_of_values,
)
from rejections_routing import (
    CHOICE,
    DECISION,
    FULL,
    INPUTS,
    KERNEL,
    LAYER,
    NOISE,
    NOT_K,
    TOKEN,
    WEIGHT,
    WEIGHTS,
    C,
    D,
    E,
    G,
    K,
    T,
    choice_rows,
    normal,
    place_rows,
    record_rows,
)

CALL = {"parameters": LAYER, "k": K, "router": "masked", "expert_dtype": "float32"}

LEGAL.update(
    {
        "feed_forward.gated_mlp": {
            "inputs": normal(E, C, D),
            **WEIGHTS,
            "dtype": "float32",
            "activations": ("swiglu", "linear"),
        },
        "moe.slots": {"decision": DECISION, "num_experts": E},
        "moe.dispatch": {"inputs": INPUTS, "token": TOKEN},
        "moe.combine": {
            "expert_outputs": normal(G, E, C, D),
            "token": TOKEN,
            "weight": WEIGHT,
            "tokens": T,
        },
        "moe.combine_rounded": {
            "expert_outputs": normal(G, E, C, D),
            "token": TOKEN,
            "weight": WEIGHT,
            "tokens": T,
        },
        "moe.router_logits_of_rounded": {"inputs": INPUTS, "kernel": KERNEL},
        "moe.check_layer": {
            "inputs": INPUTS,
            "parameters": LAYER,
            "router": "masked",
            "expert_dtype": "float32",
            "activations": ("swiglu", "linear"),
        },
        "moe.moe": CALL
        | {
            "inputs": INPUTS,
            "capacity": C,
            "ignore_padding": False,
            "batch_prioritized": False,
            "noise": NOISE,
            "decision": None,
            "steps": None,
        },
        "moe.moe_layer": CALL
        | {
            "inputs": INPUTS,
            "training": False,
            "train_capacity_factor": 1.25,
            "eval_capacity_factor": 2.0,
            "min_expert_capacity": 4,
            "max_group_size": 8,
            "num_expert_replicas": 1,
            "ignore_padding": False,
            "batch_prioritized": False,
            "decision": None,
            "steps": None,
        },
    }
)


def layer_rows() -> Iterator[Row]:
    """Yield the illegal calls of the layer."""
    clause = "MOE-11"
    function = "feed_forward.gated_mlp"
    yield from rows_of_arrays(function, ("inputs", *WEIGHTS), (clause,))
    yield from rows_of_sizes(
        function,
        {"inputs": (0, 2), "wi_0": (0, 1, 2), "wi_1": (0, 1, 2), "wo": (0, 1, 2)},
        (clause,),
    )
    yield from rows_of_values(function, "wi_0", {"as wide as wi_1": WEIGHTS["wi_1"]}, clause)
    yield from rows_of_values(function, "dtype", NOT_WORDS | {"float16": "float16"}, clause)
    for function in ("moe.check_layer", "moe.moe", "moe.moe_layer"):
        yield from parameter_rows(function)
        yield from rows_of_values(function, "router", NOT_WORDS, clause)
        yield from rows_of_values(
            function, "expert_dtype", NOT_WORDS | {"float16": "float16"}, clause
        )
        yield from rows_of_arrays(function, ("inputs",), (clause, "ROUTE-20"))
        yield Row(
            function,
            "axis 2 twice as long",
            {"inputs": INPUTS.repeat(2, 2)},
            ("inputs", "parameters"),
            (clause,),
        )
    yield from parts_rows()
    yield from group_layer_rows()
    yield from batch_layer_rows()


def parameter_rows(function: str) -> Iterator[Row]:
    """Yield rows for the parameters of a layer."""
    yield from rows_of_mapping(function, "parameters", ("MOE-11",))
    narrow = {"wi_0 as wide as wi_1": LAYER | {"wi_0": LAYER["wi_1"]}}
    yield from rows_of_values(function, "parameters", narrow, "MOE-11")


def parts_rows() -> Iterator[Row]:
    """Yield rows for the steps of a layer: slots, dispatch and combine."""
    clauses = ("MOE-11", "ROUTE-20")
    yield from rows_of_values("moe.slots", "num_experts", NOT_COUNTS, *clauses)
    yield Row(
        "moe.slots",
        "fewer than are chosen",
        {"num_experts": int(DECISION.expert_index.max())},
        ("num_experts", "decision"),
        clauses,
    )
    yield from record_rows("moe.slots", ("expert_index", "gate", "position", "kept"), clauses)
    yield from place_rows("moe.slots", clauses)
    yield from choice_rows("moe.slots", clauses)

    tokens = {
        "a token too many": changed(TOKEN, FULL, T),
        "below -1": changed(TOKEN, FULL, -2),
    }
    yield from rows_of_arrays("moe.dispatch", ("inputs",), clauses, any_values=True)
    yield from rows_of_arrays("moe.dispatch", ("token",), clauses)
    yield from rows_of_sizes("moe.dispatch", {"inputs": (0,), "token": (0,)}, clauses)
    yield from rows_of_values("moe.dispatch", "token", tokens, *clauses)

    for function in ("moe.combine", "moe.combine_rounded"):
        yield from rows_of_arrays(function, ("expert_outputs", "token"), clauses)
        yield from rows_of_arrays(function, ("weight",), clauses, place=FULL)
        yield from rows_of_sizes(
            function,
            {"expert_outputs": (0, 1, 2), "token": (0, 1, 2), "weight": (0, 1, 2)},
            clauses,
        )
        yield from rows_of_values(function, "token", tokens, *clauses)
        yield from rows_of_values(function, "tokens", NOT_COUNTS, *clauses)
        yield Row(
            function,
            "fewer than are dispatched",
            {"tokens": int(TOKEN.max())},
            ("tokens", "token"),
            clauses,
        )
    function = "moe.router_logits_of_rounded"
    yield from rows_of_arrays(function, ("inputs", "kernel"), clauses)
    yield from rows_of_sizes(function, {"inputs": (2,), "kernel": (0,)}, clauses)


def group_layer_rows() -> Iterator[Row]:
    """Yield rows for what `moe` takes besides its parameters."""
    function, clauses = "moe.moe", ("ROUTE-20", "MOE-11")
    yield from rows_of_arrays(function, ("noise",), clauses)
    yield from rows_of_sizes(function, {"noise": (0, 1, 2)}, clauses)
    for what, changes in {
        "inputs beyond float32": {"inputs": INPUTS.astype(np.float64) * 1e300},
        "products beyond float32": {
            "inputs": INPUTS * np.float32(1e25),
            "parameters": LAYER | {"router": KERNEL * np.float32(1e25)},
        },
    }.items():
        yield Row(function, what, changes, ("inputs", "parameters", "logits"), clauses)
    for router, decision in (
        ("masked", None),
        ("scatter", None),
        ("experts_choose", None),
        ("masked", DECISION),
        ("experts_choose", CHOICE),
    ):
        with_them = {"router": router, "decision": decision}
        how = f"{router}, {'own' if decision is None else 'forced'} decision"
        for argument, values in (("k", NOT_K), ("capacity", NOT_COUNTS)):
            for row in rows_of_values(function, argument, values, "ROUTE-20"):
                yield row._replace(what=f"{row.what}, {how}", changes=row.changes | with_them)
    yield Row(
        function,
        "more than T, experts choose",
        {"capacity": T + 1, "router": "experts_choose"},
        ("capacity",),
        ("ROUTE-25",),
    )
    yield from record_rows(function, ("expert_index", "position", "kept"), clauses)
    yield from place_rows(function, clauses)
    yield from choice_rows(function, clauses, router="experts_choose")
    for what, record in {
        "a forced decision with fewer choices than k": {
            name: getattr(DECISION, name)[..., :1]
            for name in ("expert_index", "gate", "position", "kept")
        },
        "a forced decision of fewer groups": {
            name: getattr(DECISION, name)[:1]
            for name in ("expert_index", "gate", "position", "kept")
        },
        "a forced decision of fewer tokens": {
            name: getattr(DECISION, name)[:, 1:]
            for name in ("expert_index", "gate", "position", "kept")
        },
    }.items():
        yield Row(function, what, {"decision": replace(DECISION, **record)}, ("decision",), clauses)


def batch_layer_rows() -> Iterator[Row]:
    """Yield rows for what `moe_layer` takes besides its parameters."""
    function = "moe.moe_layer"
    yield from rows_of_values(function, "k", NOT_K, "ROUTE-20")
    for argument in ("min_expert_capacity", "max_group_size", "num_expert_replicas"):
        yield from rows_of_values(function, argument, NOT_COUNTS, "GROUP-09")
    for training in (True, False):
        for argument in ("train_capacity_factor", "eval_capacity_factor"):
            for row in rows_of_values(function, argument, NOT_FACTORS, "GROUP-09"):
                yield row._replace(
                    what=f"{row.what}, training {training}",
                    changes=row.changes | {"training": training},
                )
    # The batch is padded and cut into four groups of three tokens: this record is of other groups.
    yield Row(
        function,
        "of other groups",
        {"decision": DECISION},
        ("decision",),
        ("ROUTE-20", "MOE-11"),
    )


ROWS = [*layer_rows()]
