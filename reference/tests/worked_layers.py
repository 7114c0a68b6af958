"""Worked examples of single layers, answered by the naive form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import naive_layers
import numpy as np
from naive_training import differences
from numpy import ndarray
from worked_example import LAYER_BOUND, Example, grid

TWO_UNITS = {"relative": 2.0**-6}


def of_rows(function: Callable[..., Any], inputs: ndarray, *more: Any) -> ndarray:
    """Return a naive function of each vector of inputs [B, L, D]."""
    return np.array([[function(x, *more) for x in row] for row in inputs.tolist()])


def embeddings() -> list[Example]:
    """Return rows of a table, some of them of ids that have none."""
    table = grid(1, 5, 4) + np.float32(0.001)
    ids = np.array([[0, 4, 2], [4, 0, 0]], np.int32)
    outside = np.array([[0, 5, -1], [4, 100, -5]], np.int32)
    return [
        Example(
            *(name, clause, what, "embed"),
            {"table": table, "ids": given, "dtype": dtype},
            np.array([[naive_layers.embed(table.tolist(), i, rounding) for i in r] for r in given]),
        )
        for name, clause, what, given, dtype, rounding in (
            ("rows", "LAYER-01", "rows as they are", ids, "float32", "float64"),
            ("rounded_rows", "LAYER-01", "rows rounded", ids, "bfloat16", "bfloat16"),
            ("no_rows", "LAYER-02", "ids outside 0 ... 4: zeros", outside, "float32", "float64"),
        )
    ]


def norms_and_masks() -> list[Example]:
    """Return norms, token masks and logits."""
    inputs, scale = grid(2, 2, 3, 4) * 3, 1 + grid(3, 4) / 4
    inputs[1, 1:] = grid(15, 4) / 2**10, np.zeros(4)  # whose mean square is near 1e-6
    found = [
        Example(
            *("norm", "LAYER-03", "a row of zeros among them", "rms_norm"),
            {"inputs": inputs, "scale": scale},
            of_rows(naive_layers.norm, inputs, scale.tolist()),
            LAYER_BOUND,
        ),
        Example(
            *("rounded_norm", "LAYER-04", "rounded before the scale", "rms_norm"),
            {"inputs": inputs, "scale": scale + np.float32(0.001), "dtype": "bfloat16"},
            of_rows(naive_layers.norm, inputs, (scale + np.float32(0.001)).tolist(), "bfloat16"),
            TWO_UNITS,
        ),
    ]
    ids = np.array([[0, 5, 0, 0, 7], [0, 0, 0, 3, 0], [4, 4, 0, 0, 0]], np.int32)
    wanted = np.array([naive_layers.token_mask(row) for row in ids.tolist()])
    what = "the next id keeps a position, and the first one stays"
    found.append(Example("token_mask", "LAYER-05", what, "token_mask", {"input_ids": ids}, wanted))
    kernel, fine = grid(4, 4, 7), grid(5, 2, 3, 4) + np.float32(0.0001)
    mask = np.array([[1, 0, 1], [1, 1, 0]], bool)
    exact = of_rows(naive_layers.project, inputs, kernel.tolist()) * mask[..., None]
    return [
        *found,
        Example(
            *("head", "LAYER-06", "inputs that bfloat16 does not hold", "output_logits"),
            {"inputs": fine, "kernel": kernel + np.float32(0.0001)},
            of_rows(naive_layers.project, fine, (kernel + np.float32(0.0001)).tolist()),
            LAYER_BOUND,
        ),
        Example(
            *("masked_head", "LAYER-07", "exact zeros", "output_logits"),
            {"inputs": inputs, "kernel": kernel, "mask": mask},
            exact,
        ),
    ]


def layer_gradients() -> list[Example]:
    """Return gradients of a norm and of an embedding."""
    inputs, scale, cotangent = grid(6, 1, 2, 4) * 2, 1 + grid(7, 4) / 4, grid(8, 1, 2, 4)

    def norm(x: ndarray, s: ndarray) -> float:
        return float((of_rows(naive_layers.norm, x, s.tolist()) * cotangent).sum())

    ids, of_rows_ = np.array([[0, 3, 0], [3, 1, 0]], np.int32), grid(9, 2, 3, 4)
    table = np.zeros((5, 4))
    for place in np.ndindex(ids.shape):
        table[ids[place]] += of_rows_[place]
    return [
        Example(
            *("norm_gradients", "LAYER-09", "of a norm", "part_gradients"),
            {
                "part": "rms_norm",
                "inputs": inputs,
                "parameters": {"scale": scale},
                "cotangent": cotangent,
            },
            {
                "inputs": differences(lambda x: norm(x, scale), inputs),
                "scale": differences(lambda s: norm(inputs, s), scale),
            },
            LAYER_BOUND,
        ),
        Example(
            *("embedding_gradient", "LAYER-09", "id 0 and repeated ids", "part_gradients"),
            {
                "part": "embed",
                "inputs": ids,
                "parameters": {"table": grid(10, 5, 4)},
                "cotangent": of_rows_,
                "size": 5,
            },
            {"table": table},
            LAYER_BOUND,
        ),
    ]


def rejected_layers() -> list[Example]:
    """Return arguments of layers that must be rejected."""
    table, ids = grid(1, 5, 4), np.array([[0, 1]], np.int32)
    unknown = table.copy()
    unknown[4, 3] = np.nan
    inputs, scale = grid(2, 1, 2, 4), np.ones(4, np.float32)
    calls: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
        ("unknown_table", "not a number in a row", "embed", {"table": unknown, "ids": ids}),
        ("ids_of_floats", "ids that are floats", "embed", {"table": table, "ids": ids / 2}),
        ("half_precision", "float16", "embed", {"table": table, "ids": ids, "dtype": "float16"}),
        ("short_scale", "a scale of 3", "rms_norm", {"inputs": inputs, "scale": scale[:3].copy()}),
        (
            *("long_mask", "a mask of other rows", "output_logits"),
            {"inputs": inputs, "kernel": grid(4, 4, 7), "mask": np.ones((2, 2), bool)},
        ),
    )
    return [Example(name, "LAYER-08", what, *call) for name, what, *call in calls]


def examples() -> list[Example]:
    """Return the examples of layers, in the order of SPEC.md."""
    return [*embeddings(), *norms_and_masks(), *rejected_layers(), *layer_gradients()]
