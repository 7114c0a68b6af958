"""What the router refuses, and the arrays and records of a layer that other tables use."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import ml_dtypes
import numpy as np
from rejections import (
    LEGAL,
    NOT_COUNTS,
    Row,
    changed,
    changed_record,
    not_boolean,
    not_real,
    not_whole,
    rows_of_arrays,
    rows_of_sizes,
    rows_of_values,
)

from openmoe_reference import moe, routing

G, T, D, E, F, K, C = 2, 5, 3, 4, 2, 2, 2

_generator = np.random.default_rng(0)


def normal(*shape: int) -> np.ndarray:
    """Return float32 numbers of size 1."""
    return _generator.normal(size=shape).astype(np.float32)


INPUTS = normal(G, T, D)
KERNEL = normal(D, E)
NOISE = np.full((G, T, D), 1.125, np.float32)
WEIGHTS = {"wi_0": normal(E, D, 2 * F), "wi_1": normal(E, D, F), "wo": normal(E, F, D)}
LAYER = {"router": KERNEL, **WEIGHTS}
LOGITS = routing.router_logits(INPUTS, KERNEL)
CHANCES = routing.softmax(LOGITS)
MASK = np.arange(G * T).reshape(G, T) % 4 != 1
DECISION = routing.decide(CHANCES, k=K, capacity=C)
IGNORING = routing.decide(CHANCES, k=K, capacity=C, padding_mask=MASK)
CHOICE = routing.experts_choose(CHANCES, capacity=C)
TOKEN, WEIGHT = moe.slots(DECISION, num_experts=E)

KEPT = tuple(np.argwhere(DECISION.kept)[0])
FULL = tuple(np.argwhere(TOKEN >= 0)[0])
DROPPED = tuple(np.argwhere(~DECISION.kept)[0])

DECIDING = {"probabilities": CHANCES, "capacity": C, "padding_mask": MASK}

LEGAL.update(
    {
        "routing.router_logits": {
            "inputs": INPUTS,
            "kernel": KERNEL,
            "noise": NOISE,
            "dtype": np.float32,
        },
        "routing.softmax": {"logits": LOGITS},
        "routing.probabilities": {"inputs": INPUTS, "kernel": KERNEL, "noise": NOISE},
        "routing.padding_mask": {"inputs": INPUTS},
        "routing.decide": DECIDING | {"k": K, "batch_prioritized": True, "logits": LOGITS},
        "routing.decide_one_by_logits": DECIDING
        | {"k": 1, "batch_prioritized": True, "logits": LOGITS},
        "routing.decide_scatter": DECIDING | {"k": K, "batch_prioritized": True},
        "routing.experts_choose": DECIDING,
        "routing.decide_positions": {
            "expert_index": DECISION.expert_index,
            "gate": DECISION.gate,
            "num_experts": E,
            "batch_prioritized": True,
        },
        "routing.combine_weights": {"decision": DECISION},
    }
)


NOT_K = NOT_COUNTS | {"more than E": E + 1}
LARGE_FACTORS = {
    "inputs beyond float32": {"inputs": INPUTS.astype(np.float64) * 1e300},
    "products beyond float32": {
        "inputs": INPUTS * np.float32(1e25),
        "kernel": KERNEL * np.float32(1e25),
    },
}


def routing_rows() -> Iterator[Row]:
    """Yield the illegal calls of the router."""
    clause = "ROUTE-20"
    for function in ("routing.router_logits", "routing.probabilities"):
        names = ("inputs", "kernel", "noise")
        yield from rows_of_arrays(function, names, (clause,))
        yield from rows_of_sizes(
            function, {"inputs": (0, 1, 2), "kernel": (0,), "noise": (0, 1, 2)}, (clause,)
        )
        for what, changes in LARGE_FACTORS.items():
            yield Row(function, what, changes, ("inputs", "kernel", "logits"), (clause,))
    for what, dtype in {
        "whole numbers": np.int32,
        "half precision": np.float16,
        "a word": "nonsense",
        "complex numbers": np.complex64,
    }.items():
        row = Row("routing.router_logits", what, {"dtype": dtype}, ("dtype",), (clause, "MOE-11"))
        yield row
    yield from rows_of_arrays("routing.softmax", ("logits",), (clause,))
    yield from rows_of_arrays("routing.padding_mask", ("inputs",), (clause,))
    for function in (
        "routing.decide",
        "routing.decide_one_by_logits",
        "routing.decide_scatter",
        "routing.experts_choose",
    ):
        yield from rows_of_arrays(function, ("probabilities", "padding_mask"), (clause,))
        yield from rows_of_sizes(
            function, {"probabilities": (0, 1), "padding_mask": (0, 1)}, (clause,)
        )
        yield from rows_of_values(
            function,
            "probabilities",
            {
                "float64": CHANCES.astype(np.float64),
                "float16": CHANCES.astype(np.float16),
                "bfloat16": CHANCES.astype(ml_dtypes.bfloat16),
                "a negative one": changed(CHANCES, (0, 0, 0), -0.125),
            },
            clause,
        )
        yield from rows_of_values(function, "capacity", NOT_COUNTS, clause)
        if function != "routing.experts_choose":
            yield from rows_of_values(function, "k", NOT_K, clause)
    function = "routing.decide_one_by_logits"
    yield from rows_of_arrays(function, ("logits",), (clause,))
    yield from rows_of_sizes(function, {"logits": (0, 1, 2), "probabilities": (2,)}, (clause,))
    yield from rows_of_values(
        "routing.experts_choose", "capacity", {"more than T": T + 1}, "ROUTE-25"
    )
    function = "routing.decide_positions"
    yield from rows_of_arrays(function, ("expert_index", "gate"), (clause,))
    yield from rows_of_sizes(function, {"expert_index": (0, 1, 2), "gate": (0, 1, 2)}, (clause,))
    yield from rows_of_values(function, "num_experts", NOT_COUNTS, clause)
    yield from rows_of_values(
        function,
        "expert_index",
        {
            "an expert too many": changed(DECISION.expert_index, (0, 0, 0), E),
            "below -1": changed(DECISION.expert_index, (0, 0, 0), -2),
        },
        clause,
    )
    yield from record_rows("routing.combine_weights", ("gate", "kept"), (clause,))


# ---- records


def record_rows(function: str, read: tuple[str, ...], clauses: tuple[str, ...]) -> Iterator[Row]:
    """Yield rows for a Decision whose fields that a function reads do not belong together."""
    records: dict[str, Any] = {
        "a dictionary": asdict(DECISION),
        "a tuple": tuple(asdict(DECISION).values()),
        "a word": "nonsense",
        "an array": DECISION.expert_index,
    }
    if function not in {"moe.moe", "moe.moe_layer"}:
        records["nothing"] = None
    for name in read:
        field = getattr(DECISION, name)
        for axis in range(field.ndim):
            longer = field.repeat(2, axis)
            records[f"{name} twice as long on axis {axis}"] = changed_record(
                DECISION, **{name: longer}
            )
        records[f"{name} with one axis less"] = changed_record(DECISION, **{name: field[0]})
        kind = {"b": not_boolean, "i": not_whole, "f": not_real}[field.dtype.kind]
        values = kind(field) if name != "gate" else not_real(field, KEPT)
        for what, value in values:
            records[f"{name}: {what}"] = changed_record(DECISION, **{name: value})
    yield from rows_of_values(function, "decision", records, *clauses)


def place_rows(function: str, clauses: tuple[str, ...]) -> Iterator[Row]:
    """Yield rows for a Decision whose kept choices cannot all stand in the slots."""
    other = next(place for place in map(tuple, np.argwhere(DECISION.kept)) if place != KEPT)
    same = {
        name: changed(getattr(DECISION, name), other, getattr(DECISION, name)[KEPT])
        for name in ("expert_index", "position")
    }
    assert other[0] == KEPT[0]
    records = {
        "an expert too many": {"expert_index": (KEPT, E)},
        "an expert too many where it is dropped": {"expert_index": (DROPPED, E)},
        "an expert below -1": {"expert_index": (KEPT, -2)},
        "no expert but kept": {"expert_index": (KEPT, -1)},
        "no position but kept": {"position": (KEPT, -1)},
        "beyond the capacity but kept": {"position": (KEPT, C)},
        "two choices in one slot": same,
        "capacity zero": {"capacity": 0},
        "capacity two and a half": {"capacity": 2.5},
        "capacity true": {"capacity": True},
    }
    yield from rows_of_values(
        function,
        "decision",
        {what: changed_record(DECISION, **change) for what, change in records.items()},
        *clauses,
    )


def choice_rows(function: str, clauses: tuple[str, ...], **changes: Any) -> Iterator[Row]:
    """Yield rows for an ExpertsChoice that does not belong to the other arguments."""
    index, gate = CHOICE.token_index, CHOICE.gate
    records: dict[str, Any] = {
        "a negative token": {"token_index": ((0, 0, 0), -1)},
        "more experts": {"token_index": index.repeat(2, 1), "gate": gate.repeat(2, 1)},
        "fewer experts": {"token_index": index[:, 1:], "gate": gate[:, 1:]},
        "floats for tokens": {"token_index": index.astype(np.float32)},
        "one axis less": {"token_index": index[0], "gate": gate[0]},
    }
    if function != "moe.slots":  # which cannot know T and G
        records |= {
            "a token too many": {"token_index": ((0, 0, 0), T)},
            "more groups": {"token_index": index.repeat(2, 0), "gate": gate.repeat(2, 0)},
        }
    if function in {"moe.moe", "moe.moe_layer"}:
        records |= {"more slots": {"token_index": index.repeat(2, 2), "gate": gate.repeat(2, 2)}}
    else:
        records |= {
            "more gates": {"gate": gate.repeat(2, 2)},
            "a gate not a number": {"gate": ((0, 0, 0), math.nan)},
        }
    for what, change in records.items():
        record = changed_record(CHOICE, **change)
        yield Row(
            function,
            f"an experts' choice with {what}",
            {"decision": record, **changes},
            ("decision",),
            clauses,
        )


ROWS = [*routing_rows()]
