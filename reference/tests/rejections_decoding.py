"""What decoding, sampling, the port's calls and the tables of dialects refuse."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
from rejections import (
    LEGAL,
    NOT_COUNTS,
    NOT_FACTORS,
    NOT_WORDS,
    Row,
    changed,
    not_real,
    rows_of_arrays,
    rows_of_sizes,
    rows_of_values,
)
from rejections_layers import IDS, normal
from rejections_model import CALL, CONFIGURATION, PARAMETERS, RULES, V, batch_rows, tree_rows

from openmoe_reference import decoding, dialects, port_decoding

MARKS = np.array([[1, 1, 0], [1, 0, 0]], np.int32)
PROMPT = {"decoder_input_tokens": IDS, "decoder_causal_attention": MARKS}
MODEL = {"parameters": PARAMETERS, "configuration": CONFIGURATION, "call": CALL, "rules": RULES}
CACHE, _ = decoding.prefill(PARAMETERS, PROMPT, CONFIGURATION)
PORT = {"rules": dialects.rules("torch_port"), "decode_position": "position_ids"}
EMPTY = port_decoding.empty_cache(CONFIGURATION, 2, 3)
LOGITS = normal(2, V)


def choose(logits: np.ndarray, number: int) -> np.ndarray:
    """Choose the best token."""
    del number
    return logits.argmax(axis=-1)


LEGAL.update(
    {
        "decoding.prompt": {"batch": PROMPT},
        "decoding.prefill": MODEL | {"batch": PROMPT, "end": None},
        "decoding.step": MODEL | {"tokens": np.array([3, 5]), "cache": CACHE},
        "decoding.forced_steps": MODEL | {"batch": PROMPT, "steps": 2},
        "decoding.check_cache": {"cache": CACHE, "configuration": CONFIGURATION},
        "decoding.generate": MODEL | {"batch": PROMPT, "choose": choose, "feed_again": True},
        "sampling.sample": {
            "logits": LOGITS,
            "noise": normal(2, V),
            "temperature": 1.0,
            "top_k": 2,
            "top_p": 0.0,
        },
        "sampling.among_largest": {"logits": LOGITS, "count": 2},
        "sampling.among_mass": {"logits": LOGITS, "mass": 0.5},
        "port_decoding.empty_cache": {"configuration": CONFIGURATION, "batch": 2, "length": 3},
        "port_decoding.cached_call": {
            "parameters": PARAMETERS,
            "tokens": IDS[:, :1],
            "cache": EMPTY,
            "configuration": CONFIGURATION,
            "attention_mask": np.ones((2, 1), np.int32),
            "position_ids": np.zeros((2, 1), np.int32),
            "call": CALL,
            **PORT,
        },
        "port_decoding.incremental": {
            "parameters": PARAMETERS,
            "batch": {"decoder_input_tokens": IDS, "attention_mask": MARKS},
            "configuration": CONFIGURATION,
            "prefill": 2,
            "chunk": 1,
            "positions_from_mask": True,
            "call": CALL,
            **PORT,
        },
        "port_decoding.counted": {"mask": MARKS},
        "port_decoding.greedy": {
            "parameters": PARAMETERS,
            "ids": IDS,
            "configuration": CONFIGURATION,
            "new_tokens": 1,
            "attention_mask": np.ones_like(IDS),
            "use_cache": True,
            "end": 1,
            "padding": 0,
            **PORT,
        },
        "dialects.steps": {"dialect": "t5x"},
        "dialects.rules": {"dialect": "t5x"},
    }
)

NOT_DIALECTS: dict[str, Any] = {
    "an unknown one": "flaxformer",
    "an empty word": "",
    "a number": 1,
    "nothing": None,
    "a list": ["t5x"],
    "an unknown point": {"capacities": "half_even"},
    "a point that is a number": {1: "half_even"},
    "an unknown option": {"capacity": "half_up"},
    "an option of another point": {"capacity": "targets"},
    "an option that is nothing": {"capacity": None},
}


def decoding_rows() -> Iterator[Row]:
    """Yield the illegal calls of prefill, steps and generation."""
    clauses = ("DEC-09", "MODEL-10")
    for name in ("prompt", "prefill", "generate"):
        function = f"decoding.{name}"
        yield from batch_rows(function, tuple(PROMPT), *clauses)
        values = {f"without {key}": {n: PROMPT[n] for n in PROMPT if n != key} for key in PROMPT}
        yield from rows_of_values(function, "batch", values, *clauses)
    for name in ("prefill", "step", "forced_steps", "generate"):
        yield from tree_rows(f"decoding.{name}")
    for name in ("prefill", "generate"):
        function = f"decoding.{name}"
        long = {key: np.ones((2, 5), np.int32) for key in PROMPT}
        values = {
            "an id of V": PROMPT | {"decoder_input_tokens": changed(IDS, (0, 1), V)},
            "a negative id": PROMPT | {"decoder_input_tokens": changed(IDS, (0, 1), -1)},
            "longer than max_length": long,
            "a row without a prompt": PROMPT
            | {"decoder_causal_attention": changed(MARKS, (1,), 0)},
        }
        yield from rows_of_values(function, "batch", values, *clauses)
    function = "decoding.forced_steps"
    yield from rows_of_values(function, "steps", NOT_COUNTS | {"more than fit": 3}, "DEC-09")
    without = {"no causal attention": {"decoder_input_tokens": IDS}}
    yield from rows_of_values(function, "batch", without, "DEC-09")
    function = "decoding.step"
    yield from rows_of_arrays(function, ("tokens",), ("DEC-09",))
    yield from rows_of_sizes(function, {"tokens": (0,)}, ("DEC-09",))
    ids = {"an id of V": np.array([3, V]), "a negative id": np.array([-1, 3])}
    yield from rows_of_values(function, "tokens", ids, "DEC-09")
    for name in ("step", "check_cache"):
        yield from cache_rows(f"decoding.{name}", "DEC-09")


def cache_rows(function: str, clause: str) -> Iterator[Row]:
    """Yield rows for a cache that is none, or another model's."""
    legal = LEGAL[function]["cache"]
    values: dict[str, Any] = {
        "nothing": None,
        "a tuple": (legal.keys, legal.values, legal.index),
        "floats for an index": replace(legal, index=legal.index.astype(np.float32)),
        "more indices": replace(legal, index=legal.index.repeat(2)),
        "negative indices": replace(legal, index=legal.index - 100),
    }
    for axis, of in enumerate(("layers", "rows", "slots", "heads", "columns")):
        longer = legal.keys.repeat(2, axis)
        values[f"more {of} of keys"] = replace(legal, keys=longer)
        if of in ("layers", "heads", "columns"):
            values[f"more {of}"] = replace(legal, keys=longer, values=longer)
    for what, keys in not_real(legal.keys):
        values[f"keys: {what}"] = replace(legal, keys=keys)
    yield from rows_of_values(function, "cache", values, clause)


def sampling_rows() -> Iterator[Row]:
    """Yield the illegal calls of the choice of a token."""
    function, clause = "sampling.sample", ("DEC-10",)
    yield from rows_of_arrays(function, ("logits", "noise"), clause)
    yield from rows_of_sizes(function, {"logits": (0, 1), "noise": (0, 1)}, clause)
    negative = {what: value for what, value in NOT_FACTORS.items() if "zero" not in what}
    yield from rows_of_values(function, "temperature", negative, *clause)
    counts = {what: value for what, value in NOT_COUNTS.items() if what != "zero"}
    yield from rows_of_values(function, "top_k", counts | {"more than V": V + 1}, *clause)
    shares = negative | {"more than one": 1.5}
    for row in rows_of_values(function, "top_p", shares, *clause):
        yield row._replace(changes=row.changes | {"top_k": 0})
    yield Row(function, "both cuts at once", {"top_p": 0.5}, ("top_p", "top_k"), clause)
    yield Row(function, "no noise", {"noise": None}, ("noise",), clause)
    unknown = changed(LOGITS, (1, 2), np.nan)
    yield Row(
        function,
        "not a number, greedy",
        {"logits": unknown, "temperature": 0.0},
        ("logits",),
        clause,
    )


def port_rows() -> Iterator[Row]:
    """Yield the illegal calls of the published port's decoding."""
    function, clauses = "port_decoding.cached_call", ("DEC-09",)
    yield from tree_rows(function)
    yield from rows_of_arrays(function, ("tokens", "attention_mask", "position_ids"), clauses)
    yield from rows_of_sizes(
        function, {"tokens": (0,), "attention_mask": (0, 1), "position_ids": (0, 1)}, clauses
    )
    ids = {"an id of V": np.array([[3], [V]]), "a negative id": np.array([[-1], [3]])}
    yield from rows_of_values(function, "tokens", ids, *clauses)
    many = {"tokens": np.tile(IDS, 2), "position_ids": None, "attention_mask": None}
    yield Row(function, "more than fit", many, ("tokens",), clauses)
    places = {"beyond the table": np.array([[0], [1]]), "below 0": np.array([[0], [-1]])}
    yield from rows_of_values(function, "position_ids", places, *clauses)
    yield from cache_rows(function, "DEC-09")
    function = "port_decoding.incremental"
    yield from tree_rows(function)
    yield from batch_rows(function, ("decoder_input_tokens", "attention_mask"), "MODEL-10")
    yield from rows_of_values(function, "prefill", NOT_COUNTS | {"more than L": 4}, *clauses)
    yield from rows_of_values(function, "chunk", NOT_COUNTS, *clauses)
    function = "port_decoding.greedy"
    yield from tree_rows(function)
    yield from rows_of_arrays(function, ("ids", "attention_mask"), clauses)
    yield from rows_of_sizes(function, {"ids": (0, 1), "attention_mask": (0, 1)}, clauses)
    ids = {"an id of V": changed(IDS, (0, 1), V), "a negative id": changed(IDS, (0, 1), -1)}
    yield from rows_of_values(function, "ids", ids, *clauses)
    yield from rows_of_values(function, "new_tokens", NOT_COUNTS, *clauses)
    for name in ("cached_call", "incremental", "greedy"):
        yield from rows_of_values(f"port_decoding.{name}", "decode_position", NOT_WORDS, *clauses)


def dialect_rows() -> Iterator[Row]:
    """Yield the illegal dialects."""
    for function in ("dialects.steps", "dialects.rules"):
        yield from rows_of_values(function, "dialect", NOT_DIALECTS, "DIAL-01")


ROWS = [*decoding_rows(), *sampling_rows(), *port_rows(), *dialect_rows()]
