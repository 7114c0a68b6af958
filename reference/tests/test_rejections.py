"""What the reference refuses: every public function, with the argument and the clause in the message.

One table: `LEGAL` has arguments that each function accepts, `ILLEGAL` one change of them a row that
it must refuse with RejectedError. Tests at the end hold the tables complete.
"""

from __future__ import annotations

import importlib
import inspect
import math
import pkgutil
import re
from collections.abc import Iterator
from dataclasses import asdict, fields, replace
from typing import Any, NamedTuple

import ml_dtypes
import numpy as np
import pytest

import openmoe_reference
from openmoe_reference import moe, routing
from openmoe_spec.config import BASE, Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import PARAMETERS


@pytest.fixture(autouse=True)
def shape_checks() -> None:
    """Leave the annotations of the reference unchecked: here it must refuse by itself."""


def test_the_shape_checks_of_the_other_tests_are_off():
    values, order = routing._largest(np.zeros((2, 3), np.float64), 1)
    assert (values.dtype, order.tolist()) == (np.float64, [[0], [0]])


def changed(array: np.ndarray, place: tuple[int, ...], value: Any) -> np.ndarray:
    """Return a copy of `array` with another value at one place."""
    copy = array.copy()
    copy[place] = value
    return copy


def changed_record(record: Any, **changes: Any) -> Any:
    """Return `record` with other fields; a pair (place, value) changes one entry of a field."""
    return replace(
        record,
        **{
            name: changed(getattr(record, name), *change) if isinstance(change, tuple) else change
            for name, change in changes.items()
        },
    )


# ---------------------------------------------------------------------------- legal arguments

G, T, D, E, F, K, C = 2, 5, 3, 4, 2, 2, 2

_generator = np.random.default_rng(0)


def _normal(*shape: int) -> np.ndarray:
    return _generator.normal(size=shape).astype(np.float32)


INPUTS = _normal(G, T, D)
KERNEL = _normal(D, E)
NOISE = np.full((G, T, D), 1.125, np.float32)
WEIGHTS = {"wi_0": _normal(E, D, 2 * F), "wi_1": _normal(E, D, F), "wo": _normal(E, F, D)}
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
CALL = {"parameters": LAYER, "k": K, "router": "masked", "expert_dtype": "float32"}

LEGAL: dict[str, dict[str, Any]] = {
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
    },
    "grouping.capacity_factor": {
        "training": True,
        "train_capacity_factor": 1.25,
        "eval_capacity_factor": 2.0,
    },
    "grouping.to_groups": {"inputs": INPUTS, "padded": (2, 6), "num_groups": 4},
    "grouping.from_groups": {
        "outputs": INPUTS[:, :4].repeat(2, axis=0)[:, :3],
        "padded": (2, 6),
        "shape": (2, 5),
    },
    "routing.router_logits": {
        "inputs": INPUTS,
        "kernel": KERNEL,
        "noise": NOISE,
        "dtype": np.float32,
    },
    "routing.softmax": {"logits": LOGITS},
    "routing.probabilities": {"inputs": INPUTS, "kernel": KERNEL, "noise": NOISE},
    "routing.padding_mask": {"inputs": INPUTS},
    "routing.decide": DECIDING | {"k": K, "batch_prioritized": True},
    "routing.decide_scatter": DECIDING | {"k": K, "batch_prioritized": True},
    "routing.experts_choose": DECIDING,
    "routing.decide_positions": {
        "expert_index": DECISION.expert_index,
        "gate": DECISION.gate,
        "num_experts": E,
        "batch_prioritized": True,
    },
    "routing.combine_weights": {"decision": DECISION},
    "feed_forward.gated_mlp": {"inputs": _normal(E, C, D), **WEIGHTS, "dtype": "float32"},
    "losses.balance_loss": {
        "probabilities": CHANCES,
        "expert_index": DECISION.expert_index,
        "padding_mask": MASK,
    },
    "losses.router_z_loss": {"logits": LOGITS, "padding_mask": MASK},
    "losses.metrics": {
        "logits": LOGITS,
        "probabilities": CHANCES,
        "decision": DECISION,
        "padding_mask": None,
        "scatter": False,
    },
    "moe.slots": {"decision": DECISION, "num_experts": E},
    "moe.dispatch": {"inputs": INPUTS, "token": TOKEN},
    "moe.combine": {
        "expert_outputs": _normal(G, E, C, D),
        "token": TOKEN,
        "weight": WEIGHT,
        "tokens": T,
    },
    "moe.check_layer": {
        "inputs": INPUTS,
        "parameters": LAYER,
        "router": "masked",
        "expert_dtype": "float32",
    },
    "moe.moe": CALL
    | {
        "inputs": INPUTS,
        "capacity": C,
        "ignore_padding": False,
        "batch_prioritized": False,
        "noise": NOISE,
        "decision": None,
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
    },
    "gradients.router_gradients": {
        "inputs": INPUTS,
        "kernel": KERNEL,
        "probability_cotangent": _normal(G, T, E),
        "logit_cotangent": _normal(G, T, E),
    },
    "gradients.loss_cotangents": {
        "inputs": INPUTS,
        "kernel": KERNEL,
        "expert_index": DECISION.expert_index,
        "balance": 0.5,
        "z": 0.25,
        "padding_mask": MASK,
    },
    "gradients.layer_gradients": {
        "inputs": INPUTS,
        "parameters": LAYER,
        "cotangent": _normal(G, T, D),
        "decision": DECISION,
        "balance": 0.5,
        "z": 0.25,
        "padding_mask": MASK,
    },
}

FLAGS = {"training", "batch_prioritized", "ignore_padding", "scatter"}
"""Arguments whose values chapters 4 to 7 do not limit."""


def call(name: str, **changes: Any) -> Any:
    """Call a function of the reference with its legal arguments but for `changes`."""
    module, function = name.split(".")
    arguments = LEGAL[name] | changes
    return getattr(importlib.import_module(f"openmoe_reference.{module}"), function)(**arguments)


# ---------------------------------------------------------------------------- illegal values

NOT_COUNTS = {
    "zero": 0,
    "a negative number": -1,
    "a whole float": 2.0,
    "a half": 2.5,
    "a NumPy float": np.float64(2),
    "true": True,
    "a NumPy boolean": np.True_,
    "infinity": math.inf,
    "not a number": math.nan,
    "a word": "two",
    "a numeral": "2",
    "a list": [2],
    "a complex number": 2j,
    "nothing": None,
}

NOT_FACTORS = {
    "zero": 0.0,
    "minus zero": -0.0,
    "a negative number": -1.25,
    "infinity": math.inf,
    "minus infinity": -math.inf,
    "not a number": math.nan,
    "not a number of NumPy": np.float32(math.nan),
    "true": True,
    "a numeral": "1.25",
    "a list": [1.25],
    "a complex number": 1.25j,
    "nothing": None,
    "a number beyond every float": 10**400,
}

NOT_WORDS = {
    "an unknown word": "nonsense",
    "an empty word": "",
    "a number": 1,
    "a list": ["masked", "float32"],
    "an array": np.array(["masked", "float32"]),
    "a dtype": np.dtype("float32"),
    "a type": np.float32,
    "nothing": None,
}


def misshaped(array: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yield what is no array of the rank of `array`."""
    yield "one axis less", array[0]
    yield "one axis more", array[None]
    yield "no element", array[:0]
    yield "a number", 1.5
    yield "a word", "nonsense"
    yield "a dictionary", {}
    yield "a ragged list", [[[1.0]], [[1.0, 2.0]]]


def not_real(array: np.ndarray, place: tuple[int, ...] | None = None) -> Iterator[tuple[str, Any]]:
    """Yield arrays that are not finite floating-point numbers, wrong at one place."""
    place = place or tuple(size - 1 for size in array.shape)
    yield "not a number", changed(array, place, math.nan)
    yield "infinity", changed(array, place, math.inf)
    yield "minus infinity", changed(array, place, -math.inf)
    yield "not a number in bfloat16", changed(array.astype(ml_dtypes.bfloat16), place, math.nan)
    yield "whole numbers", array.astype(np.int32)
    yield "booleans", array > 0
    yield "complex numbers", array.astype(np.complex64)
    yield "words", array.astype(str)
    yield "objects", array.astype(object)


def not_whole(array: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yield arrays that are not integers."""
    yield "floats", array.astype(np.float32)
    yield "booleans", array > 0
    yield "words", array.astype(str)
    yield "objects", array.astype(object)


def not_boolean(array: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yield masks of the right shape that are not booleans."""
    yield "whole numbers", array.astype(np.int8)
    yield "floats", array.astype(np.float32)
    yield "words", array.astype(str)
    yield "objects", array.astype(object)


class Row(NamedTuple):
    """One illegal call: what must be named, the argument (or one of several) and the clause."""

    function: str
    what: str
    changes: dict[str, Any]
    arguments: tuple[str, ...]
    clauses: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.function}: {'/'.join(self.changes)}: {self.what}"


def rows_of_values(
    function: str, argument: str, values: dict[str, Any], *clauses: str
) -> Iterator[Row]:
    """Yield a row for each illegal value of an argument."""
    for what, value in values.items():
        yield Row(function, what, {argument: value}, (argument,), clauses)


def rows_of_arrays(
    function: str,
    arguments: tuple[str, ...],
    clauses: tuple[str, ...],
    *,
    place: tuple[int, ...] | None = None,
    any_values: bool = False,
) -> Iterator[Row]:
    """Yield rows for array arguments: other ranks, no arrays, and values of another kind."""
    for argument in arguments:
        array = LEGAL[function][argument]
        if argument == "padding_mask":
            array = MASK
        values = dict(misshaped(array))
        if not any_values:
            kind = {"b": not_boolean, "i": not_whole}.get(array.dtype.kind)
            values |= kind(array) if kind else not_real(array, place)
        yield from rows_of_values(function, argument, values, *clauses)


def rows_of_sizes(
    function: str, axes: dict[str, tuple[int, ...]], clauses: tuple[str, ...]
) -> Iterator[Row]:
    """Yield rows in which an axis of one argument disagrees with the other arguments.

    Whichever of the arguments may be named.
    """
    for argument, several in axes.items():
        for axis in several:
            array = MASK if argument == "padding_mask" else LEGAL[function][argument]
            what = f"axis {axis} twice as long"
            yield Row(function, what, {argument: array.repeat(2, axis)}, tuple(axes), clauses)


# ---- groups and capacity


def grouping_rows() -> Iterator[Row]:
    """Yield the illegal calls of chapter 4."""
    clause = "GROUP-09"
    for function in ("num_expert_replicas", "padded_shape", "num_groups", "expert_capacity"):
        name = f"grouping.{function}"
        for argument in LEGAL[name]:
            values = NOT_FACTORS if argument == "capacity_factor" else NOT_COUNTS
            yield from rows_of_values(name, argument, values, clause)
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
    yield Row(
        "grouping.expert_capacity",
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


# ---- routing

NOT_K = NOT_COUNTS | {"more than E": E + 1}
LARGE_FACTORS = {
    "inputs beyond float32": {"inputs": INPUTS.astype(np.float64) * 1e300},
    "products beyond float32": {
        "inputs": INPUTS * np.float32(1e25),
        "kernel": KERNEL * np.float32(1e25),
    },
}


def routing_rows() -> Iterator[Row]:
    """Yield the illegal calls of chapter 5."""
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
    for function in ("routing.decide", "routing.decide_scatter", "routing.experts_choose"):
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


# ---- layers


def layer_rows() -> Iterator[Row]:
    """Yield the illegal calls of chapter 6."""
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
    values: dict[str, Any] = {
        "nothing": None,
        "a list of arrays": list(LAYER.values()),
        "a list of names": list(LAYER),
        "a word": "router",
        "no parameter": {},
        "an extra one": LAYER | {"bias": KERNEL},
        "an extra number": LAYER | {1: KERNEL},
        "extra names of two types": LAYER | {1: KERNEL, "bias": KERNEL},
    }
    for name in PARAMETERS:
        array = LAYER[name]
        values[f"without {name}"] = {key: LAYER[key] for key in LAYER if key != name}
        values[f"{name}: nothing"] = LAYER | {name: None}
        for axis in range(array.ndim):
            longer = array.repeat(2, axis)
            values[f"{name} twice as long on axis {axis}"] = LAYER | {name: longer}
        for what, value in (*misshaped(array), *not_real(array)):
            values[f"{name}: {what}"] = LAYER | {name: value}
    values["wi_0 as wide as wi_1"] = LAYER | {"wi_0": LAYER["wi_1"]}
    yield from rows_of_values(function, "parameters", values, "MOE-11")


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

    yield from rows_of_arrays("moe.combine", ("expert_outputs", "token"), clauses)
    yield from rows_of_arrays("moe.combine", ("weight",), clauses, place=FULL)
    yield from rows_of_sizes(
        "moe.combine",
        {"expert_outputs": (0, 1, 2), "token": (0, 1, 2), "weight": (0, 1, 2)},
        clauses,
    )
    yield from rows_of_values("moe.combine", "token", tokens, *clauses)
    yield from rows_of_values("moe.combine", "tokens", NOT_COUNTS, *clauses)
    yield Row(
        "moe.combine",
        "fewer than are dispatched",
        {"tokens": int(TOKEN.max())},
        ("tokens", "token"),
        clauses,
    )


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


# ---- losses


def loss_rows() -> Iterator[Row]:
    """Yield the illegal calls of chapter 7."""
    clauses = ("LOSS-13",)
    function = "losses.balance_loss"
    yield from rows_of_arrays(function, tuple(LEGAL[function]), clauses)
    yield from rows_of_sizes(
        function,
        {"probabilities": (0, 1), "expert_index": (0, 1), "padding_mask": (0, 1)},
        clauses,
    )
    yield from rows_of_values(
        function,
        "expert_index",
        {
            "an expert too many": changed(DECISION.expert_index, (0, 0, 0), E),
            "below -1": changed(DECISION.expert_index, (0, 0, 0), -2),
        },
        *clauses,
    )
    function = "losses.router_z_loss"
    yield from rows_of_arrays(function, ("logits", "padding_mask"), clauses)
    yield from rows_of_sizes(function, {"logits": (0, 1), "padding_mask": (0, 1)}, clauses)
    function = "losses.metrics"
    arrays = {"logits": (0, 1, 2), "probabilities": (0, 1, 2), "padding_mask": (0, 1)}
    for row in (
        *rows_of_arrays(function, tuple(arrays), clauses),
        *rows_of_sizes(function, arrays, clauses),
    ):
        named = row.arguments if len(row.arguments) == 1 else (*row.arguments, "decision")
        yield row._replace(arguments=named)
        yield row._replace(
            what=f"{row.what}, experts' choice",
            changes=row.changes | {"decision": CHOICE},
            arguments=named,
        )
    yield from record_rows(function, ("expert_index", "gate", "kept"), clauses)
    yield from choice_rows(function, clauses)
    bad = {
        "an expert too many": changed_record(DECISION, expert_index=(KEPT, E)),
        "an expert below -1": changed_record(DECISION, expert_index=(KEPT, -2)),
        "capacity zero": changed_record(DECISION, capacity=0),
        "capacity two and a half": changed_record(DECISION, capacity=2.5),
    }
    yield from rows_of_values(function, "decision", bad, *clauses)


# ---- gradients


def gradient_rows() -> Iterator[Row]:
    """Yield the illegal calls of the gradients; they have no clause of their own."""
    clauses = ("ROUTE-20", "MOE-11", "LOSS-13")
    function = "gradients.router_gradients"
    axes = {
        "inputs": (0, 1, 2),
        "kernel": (0, 1),
        "probability_cotangent": (0, 1, 2),
        "logit_cotangent": (0, 1, 2),
    }
    yield from rows_of_arrays(function, tuple(axes), clauses)
    yield from rows_of_sizes(function, axes, clauses)
    not_finite = {
        what: NOT_FACTORS[what] for what in ("infinity", "not a number", "a numeral", "nothing")
    }
    function = "gradients.loss_cotangents"
    axes = {"inputs": (0, 1, 2), "kernel": (0,), "expert_index": (0, 1), "padding_mask": (0, 1)}
    yield from rows_of_arrays(function, tuple(axes), clauses)
    yield from rows_of_sizes(function, axes, clauses)
    for argument in ("balance", "z"):
        yield from rows_of_values(function, argument, not_finite, *clauses)
    function = "gradients.layer_gradients"
    axes = {"inputs": (0, 1), "cotangent": (0, 1, 2), "padding_mask": (0, 1)}
    yield from rows_of_arrays(function, tuple(axes), clauses)
    for row in rows_of_sizes(function, axes, clauses):
        yield row._replace(arguments=(*row.arguments, "parameters", "decision"))
    yield from parameter_rows(function)
    yield from record_rows(function, ("expert_index", "gate", "position", "kept"), clauses)
    yield from place_rows(function, clauses)
    yield from choice_rows(function, clauses)
    for argument in ("balance", "z"):
        yield from rows_of_values(function, argument, not_finite, *clauses)


ILLEGAL = [
    *grouping_rows(),
    *routing_rows(),
    *layer_rows(),
    *loss_rows(),
    *gradient_rows(),
]


def assert_named(
    error: RejectedError, arguments: tuple[str, ...], clauses: tuple[str, ...]
) -> None:
    """Require a message of the form `argument: reason [clause]`, also in parts.

    A part of an argument may be named too: `decision.kept`, `parameters['wi_0']`.
    """
    assert str(error) == f"{error.argument}: {error.reason} [{error.clause}]"
    assert re.split(r"[.\[]", error.argument)[0] in arguments, str(error)
    assert error.clause in clauses, str(error)


@pytest.mark.parametrize("row", ILLEGAL, ids=str)
def test_an_illegal_call_is_rejected_by_argument_and_clause(row):
    with pytest.raises(RejectedError) as caught:
        call(row.function, **row.changes)
    assert_named(caught.value, row.arguments, row.clauses)


# ---------------------------------------------------------------------------- lists for arrays

ARRAYS = [
    (function, argument)
    for function, arguments in LEGAL.items()
    for argument, value in arguments.items()
    if isinstance(value, np.ndarray)
]


def flat(result: Any) -> Iterator[np.ndarray]:
    """Yield the numbers of any result."""
    if isinstance(result, dict):
        result = tuple(result.values())
    elif hasattr(result, "__dataclass_fields__"):
        result = tuple(getattr(result, field.name) for field in fields(result))
    if isinstance(result, tuple):
        for part in result:
            yield from flat(part)
    else:
        yield np.asarray(result)


@pytest.mark.parametrize(("function", "argument"), ARRAYS)
def test_nested_lists_are_read_as_arrays_or_rejected(function, argument):
    nested = LEGAL[function][argument].tolist()
    try:
        result = call(function, **{argument: nested})
    except RejectedError as error:
        assert_named(error, (argument,), (error.clause,))
    else:
        for got, wanted in zip(flat(result), flat(call(function)), strict=True):
            np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-6)


# ---------------------------------------------------------------------------- what is legal


@pytest.mark.parametrize("function", LEGAL)
def test_the_legal_arguments_are_accepted(function):
    call(function)


EDGES = {
    "one token": ("grouping.padded_shape", {"batch": 1, "length": 1, "multiple": 1}),
    "a whole number as factor": ("grouping.expert_capacity", {"capacity_factor": 2}),
    "a tiny factor": ("grouping.expert_capacity", {"capacity_factor": 5e-324}),
    "a single group": ("grouping.to_groups", {"num_groups": 1}),
    "a token a group": ("grouping.to_groups", {"num_groups": 12}),
    "no padding": ("grouping.to_groups", {"padded": (2, 5), "num_groups": 1}),
    "k equal to E": ("routing.decide", {"k": E}),
    "a single choice": ("routing.decide_scatter", {"k": 1}),
    "a single slot": ("routing.decide", {"capacity": 1}),
    "more slots than tokens": ("routing.decide", {"capacity": 10 * T}),
    "as many slots as tokens": ("routing.experts_choose", {"capacity": T}),
    "only padding": ("routing.decide", {"padding_mask": np.zeros((G, T), bool)}),
    "probabilities of zero": ("routing.decide", {"probabilities": np.zeros_like(CHANCES)}),
    "no mask": ("routing.experts_choose", {"padding_mask": None}),
    "no noise": ("routing.router_logits", {"noise": None}),
    "bfloat16 inputs": ("moe.moe", {"inputs": INPUTS.astype(ml_dtypes.bfloat16)}),
    "a forced decision": ("moe.moe", {"decision": DECISION}),
    "a forced decision without padding": ("moe.moe", {"decision": IGNORING}),
    "a forced experts' choice": ("moe.moe", {"decision": CHOICE, "router": "experts_choose"}),
    "metrics of ignored padding": (
        "losses.metrics",
        {"decision": IGNORING, "padding_mask": MASK},
    ),
    "metrics of an experts' choice": ("losses.metrics", {"decision": CHOICE}),
    "a loss of no choices": (
        "losses.balance_loss",
        {"expert_index": np.full((G, T, K), -1, np.int32)},
    ),
}


@pytest.mark.parametrize("edge", EDGES)
def test_the_edge_of_the_legal_is_accepted(edge):
    function, changes = EDGES[edge]
    call(function, **changes)


def test_the_gate_of_a_dropped_choice_does_not_matter():
    record = changed_record(DECISION, gate=(DROPPED, math.nan))
    assert routing.combine_weights(record)[DROPPED] == 0
    for function in ("losses.metrics", "moe.slots", "moe.moe", "routing.combine_weights"):
        with_it, without = call(function, decision=record), call(function, decision=DECISION)
        for got, wanted in zip(flat(with_it), flat(without), strict=True):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("kind", [np.int8, np.uint8, np.int32, np.int64])
def test_whole_numbers_of_numpy_give_the_results_of_pythons(kind):
    for function, changes in (
        ("grouping.num_expert_replicas", {"device_count": 100}),
        ("grouping.padded_shape", {"batch": 99, "length": 101, "multiple": 16}),
        ("grouping.num_groups", {"num_tokens": 120, "num_experts": 20, "num_expert_replicas": 2}),
        ("grouping.num_groups", {"num_tokens": 4 * 100, "max_group_size": 1}),
        ("grouping.expert_capacity", {"tokens_per_group": 100}),
        ("routing.decide", {"k": 2, "capacity": 3}),
        ("moe.moe_layer", {"num_expert_replicas": 40, "k": 1}),
    ):
        whole = {
            name: kind(value)
            for name, value in changes.items()
            if np.iinfo(kind).min <= value <= np.iinfo(kind).max
        }
        assert whole
        for got, wanted in zip(
            flat(call(function, **changes | whole)), flat(call(function, **changes)), strict=True
        ):
            np.testing.assert_array_equal(got, wanted)


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64])
def test_the_capacity_is_computed_in_float64_whatever_the_type_of_the_factor(kind):
    for factor in (0.1, 1.1, 1.25, 1.3, 2.0):
        for tokens, experts in ((1, 1), (36, 8), (4095, 7), (65536, 16), (131071, 3)):
            numbers = {"tokens_per_group": tokens, "num_experts": experts}
            wanted = call(
                "grouping.expert_capacity", **numbers, capacity_factor=float(kind(factor))
            )
            got = call("grouping.expert_capacity", **numbers, capacity_factor=kind(factor))
            assert (got, type(got)) == (wanted, int)


# ---------------------------------------------------------------------------- the tables are whole


def test_the_table_has_every_public_function_of_the_reference():
    public = set()
    for found in pkgutil.iter_modules(openmoe_reference.__path__):
        module = importlib.import_module(f"openmoe_reference.{found.name}")
        for name, function in vars(module).items():
            if inspect.isfunction(function) and function.__module__ == module.__name__:
                public.add(f"{found.name}.{name}")
    public = {name for name in public if "._" not in name and not name.startswith("arguments.")}
    assert set(LEGAL) == public


@pytest.mark.parametrize("function", LEGAL)
def test_the_table_breaks_every_argument_but_flags(function):
    module, name = function.split(".")
    signature = inspect.signature(
        getattr(importlib.import_module(f"openmoe_reference.{module}"), name)
    )
    assert set(LEGAL[function]) == set(signature.parameters)
    broken = {argument for row in ILLEGAL if row.function == function for argument in row.changes}
    assert broken | FLAGS >= set(signature.parameters)


# ---------------------------------------------------------------------------- configurations

COUNTS = (
    "num_layers",
    "num_moe_layers",
    "embed_dim",
    "num_heads",
    "head_dim",
    "mlp_dim",
    "num_experts",
    "num_selected_experts",
    "vocabulary_size",
    "max_group_size",
    "min_expert_capacity",
)
NOT_FRACTIONS = {
    what: value for what, value in NOT_FACTORS.items() if not what.endswith("zero")
} | {"one": 1.0, "more than one": 1.5, "the smallest negative number": -5e-324}
NOT_FLAGS = {"a number": 1, "zero": 0, "a word": "false", "nothing": None}
NOT_WEIGHTS = {what: value for what, value in NOT_FACTORS.items() if not what.endswith("zero")} | {
    "the smallest negative number": -5e-324
}

ILLEGAL_FIELDS: dict[str, dict[str, Any]] = {
    "name": {"an empty word": "", "a number": 1, "nothing": None, "bytes": b"base"},
    **dict.fromkeys(COUNTS, NOT_COUNTS),
    "train_capacity_factor": NOT_FACTORS,
    "eval_capacity_factor": NOT_FACTORS,
    "auxiliary_loss_factor": NOT_WEIGHTS,
    "router_z_loss_factor": NOT_WEIGHTS,
    "jitter_noise": NOT_FRACTIONS,
    "batch_prioritized_routing": NOT_FLAGS,
    "ignore_padding_tokens": NOT_FLAGS,
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        pytest.param(field, value, id=f"{field}: {what}")
        for field, values in ILLEGAL_FIELDS.items()
        for what, value in values.items()
    ],
)
def test_an_illegal_field_of_a_configuration_is_rejected(field, value):
    with pytest.raises(RejectedError) as caught:
        replace(BASE, **{field: value})
    assert_named(caught.value, (field,), ("CFG-02",))


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("num_selected_experts", {"num_selected_experts": 17}),
        ("num_selected_experts", {"num_experts": 1}),
        ("num_moe_layers", {"num_moe_layers": 13}),
        ("num_moe_layers", {"num_moe_layers": 5}),
        ("num_moe_layers", {"num_layers": 14}),
    ],
)
def test_fields_of_a_configuration_that_do_not_fit_each_other_are_rejected(field, changes):
    with pytest.raises(RejectedError) as caught:
        replace(BASE, **changes)
    assert_named(caught.value, (field,), ("CFG-02",))


def test_every_field_of_a_configuration_has_illegal_values():
    assert set(ILLEGAL_FIELDS) == {field.name for field in fields(Configuration)}


@pytest.mark.parametrize(
    "changes",
    [
        {"num_selected_experts": 16},
        {"num_experts": 1, "num_selected_experts": 1},
        {"num_moe_layers": 12},
        {"num_layers": 1, "num_moe_layers": 1},
        {"train_capacity_factor": 1, "eval_capacity_factor": 5e-324},
        {"auxiliary_loss_factor": 0.0, "router_z_loss_factor": 0},
        {"jitter_noise": 0.999},
        {"batch_prioritized_routing": True, "ignore_padding_tokens": True},
        {"max_group_size": 1, "min_expert_capacity": 1},
    ],
    ids=str,
)
def test_the_edge_of_the_legal_makes_a_configuration(changes):
    made = asdict(replace(BASE, **changes))
    assert made == asdict(BASE) | changes


def test_a_rejected_error_is_a_value_error_that_names_argument_and_clause():
    error = RejectedError("k", "ROUTE-20", "must be in 1..8, got 9")
    assert isinstance(error, ValueError)
    assert str(error) == "k: must be in 1..8, got 9 [ROUTE-20]"
    assert (error.argument, error.clause) == ("k", "ROUTE-20")
