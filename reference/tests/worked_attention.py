"""Worked examples of attention and its parts, answered by the naive form."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import naive_layers
import numpy as np
from naive_training import differences
from numpy import ndarray
from worked_example import LAYER_BOUND, Example, grid

ATTENTION_BOUND = {"relative": 1e-5, "absolute": 1e-6}
ATTENTION_BFLOAT16 = {"relative": 2e-2, "absolute": 2e-2}
GRADIENT_BOUND = {"relative": 1e-5, "of_largest": 1e-5}


def masks() -> list[Example]:
    """Return who sees whom."""
    ids = np.array([[3, 0, 4, 2, 0], [1, 1, 1, 0, 0]], np.int32)
    full = np.full((1, 5), 2, np.int32)
    segments = np.array([[1, 1, 2, 2, 0]], np.int32)
    prefix = np.array([[1, 1, 1, 0, 0]], np.int32)
    found = []
    for name, clause, what, targets, more in (
        ("padding_mask", "ATTN-01", "a target of 0 neither sees nor is seen", ids, {}),
        ("packed_mask", "ATTN-02", "segments", full, {"segment_ids": segments}),
        ("causal_mask", "ATTN-03", "no prefix is given: causal", full, {}),
        ("prefix_mask", "ATTN-03", "a prefix sees itself", full, {"causal_attention": prefix}),
    ):
        one = {key: value[0].tolist() for key, value in more.items()}
        wanted = [
            naive_layers.visible_by_targets(
                row, one.get("segment_ids"), one.get("causal_attention")
            )
            for row in targets.tolist()
        ]
        arguments = {"target_ids": targets, **more}
        found.append(Example(name, clause, what, "decoder_mask", arguments, np.array(wanted)))
    return found


def rotations() -> list[Example]:
    """Return tables, and rotated heads."""
    positions, head_dim = np.array([0, 1, 5, 63]), 6
    pairs = [
        [naive_layers.sine_and_cosine(place, j % 3, head_dim) for j in range(head_dim)]
        for place in positions.tolist()
    ]
    sine, cosine = np.moveaxis(np.array(pairs), -1, 0)
    heads = grid(11, 1, 4, 2, head_dim)
    wanted = np.zeros(heads.shape)
    for b, i, h in np.ndindex(heads.shape[:3]):
        wanted[b, i, h] = naive_layers.rotate(heads[b, i, h].tolist(), int(positions[i]))
    return [
        Example(
            *("tables", "ATTN-04", "each angle twice, side by side", "rotary_tables"),
            {"positions": positions, "head_dim": head_dim},
            {"0": sine, "1": cosine},
            {"absolute": 1e-5},
        ),
        Example(
            *("halves", "ATTN-05", "halves are the pairs", "rotate"),
            {"heads": heads, "positions": positions},
            wanted,
            LAYER_BOUND,
        ),
    ]


def kernels(seed: int, width: int, heads: int, head_dim: int) -> dict[str, ndarray]:
    """Return the kernels of an attention."""
    inner = heads * head_dim
    made = {name: grid(seed + i, width, inner) for i, name in enumerate(("query", "key", "value"))}
    return made | {"out": grid(seed + 3, inner, width)}


def attended(
    inputs: ndarray,
    given: dict[str, ndarray],
    mask: ndarray,
    num_heads: int,
    dtype: str = "float64",
) -> ndarray:
    """Return the naive attention of a batch."""
    lists = {name: value.tolist() for name, value in given.items()}
    return np.array(
        [
            naive_layers.attention(
                row, lists, seen.tolist(), num_heads=num_heads, dtype=dtype
            ).output
            for row, seen in zip(inputs.tolist(), mask, strict=True)
        ]
    )


def attentions() -> list[Example]:
    """Return whole attentions."""
    causal = np.tril(np.ones((1, 4, 4), bool))
    nobody = causal.copy()
    nobody[0, 1], nobody[0, 3] = False, False
    two, wide = kernels(20, 4, 2, 4), kernels(30, 4, 3, 2)
    inputs = grid(12, 1, 4, 4)
    loud = {name: value * 4 for name, value in two.items()}
    found = [
        Example(
            *(name, clause, what, "attention"),
            {"inputs": inputs, "kernels": given, "mask": mask, "num_heads": heads},
            attended(inputs, given, mask, heads),
            ATTENTION_BOUND,
        )
        for name, clause, what, given, mask, heads in (
            ("unscaled", "ATTN-07", "products as they are", loud, causal, 2),
            ("nobody_seen", "ATTN-09", "two queries that see no key", two, nobody, 2),
            ("wider_heads", "ATTN-11", "heads of 6 columns, a width of 4", wide, causal, 3),
        )
    ]
    exact_in_bfloat16 = {
        name: value.astype(ml_dtypes.bfloat16).astype(np.float32) for name, value in two.items()
    }
    return [
        found[0],
        *(
            _finite_bias(name, what, power)
            for name, what, power in (
                ("finite_bias", "-1e10 and a logit of 4e10: the hidden key is seen", 36),
                ("large_bias", "-1e10 and a logit of 5e9: it is not", 33),
            )
        ),
        found[1],
        Example(
            *("bfloat16", "ATTN-10", "every step rounded", "attention"),
            {
                "inputs": inputs,
                "kernels": exact_in_bfloat16,
                "mask": nobody,
                "num_heads": 2,
                "dtype": "bfloat16",
            },
            attended(inputs, exact_in_bfloat16, nobody, 2, "bfloat16"),
            ATTENTION_BFLOAT16,
        ),
        found[2],
    ]


def _finite_bias(name: str, what: str, power: int) -> Example:
    """Return two tokens; the product of the first query and the second key is 2^power cos(1)."""
    inputs = np.array([[[1, 0, 1, 2], [0, 1, 3, 4]]], np.float32)
    given = {"query": np.zeros((4, 2), np.float32), "key": np.zeros((4, 2), np.float32)}
    given["query"][0, 0], given["key"][1, 0] = 2.0 ** (power // 2), 2.0 ** (power - power // 2)
    given["value"] = np.eye(4, dtype=np.float32)[:, 2:]
    given["out"] = np.ascontiguousarray(given["value"].T)
    mask = np.array([[[1, 0], [1, 1]]], bool)
    arguments = {"inputs": inputs, "kernels": given, "mask": mask, "num_heads": 1}
    answer = attended(inputs, given, mask, 1)
    return Example(name, "ATTN-08", what, "attention", arguments, answer, ATTENTION_BOUND)


def attention_gradients() -> Example:
    """Return the gradients of an attention in which every query sees a key."""
    inputs, given, cotangent = grid(13, 1, 3, 4), kernels(40, 4, 2, 2), grid(14, 1, 3, 4)
    mask = np.tril(np.ones((1, 3, 3), bool))

    def summed(name: str) -> Callable[[ndarray], float]:
        def function(value: ndarray) -> float:
            x = value if name == "inputs" else inputs
            weights = given if name == "inputs" else {**given, name: value}
            return float((attended(x, weights, mask, 2) * cotangent).sum())

        return function

    return Example(
        *("attention_gradients", "ATTN-13", "of inputs and kernels", "part_gradients"),
        {
            "part": "attention",
            "inputs": inputs,
            "parameters": given,
            "cotangent": cotangent,
            "mask": mask,
            "num_heads": 2,
        },
        {
            name: differences(summed(name), value)
            for name, value in {"inputs": inputs, **given}.items()
        },
        GRADIENT_BOUND,
    )


def rejected_attentions() -> list[Example]:
    """Return arguments of attention that must be rejected."""
    inputs, given, mask = grid(12, 1, 4, 4), kernels(20, 4, 2, 4), np.tril(np.ones((1, 4, 4), bool))
    call = {"inputs": inputs, "kernels": given, "mask": mask, "num_heads": 2}
    infinite = {**given, "value": np.full((4, 8), np.inf, np.float32)}
    mixed = np.array([[1, 2, 1, 0]], np.int32)
    calls: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
        ("three_heads", "3 heads of 8 columns", "attention", call | {"num_heads": 3}),
        ("narrow_mask", "a mask of 3 keys", "attention", call | {"mask": mask[..., :3].copy()}),
        ("infinite_kernel", "an infinite kernel", "attention", call | {"kernels": infinite}),
        (
            *("odd_head", "a head of 3 columns", "rotate"),
            {"heads": grid(1, 1, 2, 1, 3), "positions": np.array([0, 1])},
        ),
        (
            *("negative_position", "position -1", "rotary_tables"),
            {"positions": np.array([0, -1]), "head_dim": 4},
        ),
        (
            *("interleaved", "segments 1 2 1", "decoder_mask"),
            {"target_ids": np.array([[1, 2, 3, 0]], np.int32), "segment_ids": mixed},
        ),
    )
    return [Example(name, "ATTN-12", what, *rest) for name, what, *rest in calls]


def examples() -> list[Example]:
    """Return the examples of attention, in the order of SPEC.md."""
    return [
        *masks(),
        *rotations(),
        *attentions(),
        *rejected_attentions(),
        attention_gradients(),
    ]
