"""Deliberately naive layers of a model: embedding, norm, token mask, feed-forward and attention.

Written from SPEC.md chapters 5 and 6 as plain loops over lists of float64, sharing nothing with
the reference. `dtype` is "float64", where nothing is rounded, or "bfloat16", where the result of
every operation on activations is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ml_dtypes
import numpy as np

Vector = list[float]
Matrix = Sequence[Sequence[float]]


def rounded(value: float, dtype: str) -> float:
    """Return a number as an activation of `dtype` holds it."""
    return value if dtype == "float64" else float(ml_dtypes.bfloat16(value))


def dot(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the sum of products."""
    return math.fsum(a * b for a, b in zip(left, right, strict=True))


def project(x: Sequence[float], kernel: Matrix, dtype: str = "float64") -> Vector:
    """Return x [M] times kernel [M, N]."""
    return [rounded(dot(x, column), dtype) for column in zip(*kernel, strict=True)]


def add(left: Vector, right: Vector, dtype: str) -> Vector:
    """Return the sum of two vectors."""
    return [rounded(a + b, dtype) for a, b in zip(left, right, strict=True)]


# ---------------------------------------------------------------------------- layers


def embed(table: Matrix, token: int, dtype: str = "float64") -> Vector:
    """Return the row of an id, zeros for an id that has none."""
    if not 0 <= token < len(table):
        return [0.0] * len(table[0])
    return [rounded(value, dtype) for value in table[token]]


def norm(x: Vector, scale: Sequence[float], dtype: str = "float64") -> Vector:
    """Return x over the root of its mean square, times scale."""
    root = math.sqrt(math.fsum(value * value for value in x) / len(x) + 1e-6)
    return [
        rounded(rounded(value / root, dtype) * rounded(factor, dtype), dtype)
        for value, factor in zip(x, scale, strict=True)
    ]


def token_mask(ids: Sequence[int]) -> list[int]:
    """Return 1 for each position of a row that is a token, 0 for padding."""
    mask = []
    for i in range(len(ids)):
        next_is_token = i + 1 < len(ids) and ids[i + 1] > 0
        mask.append(1 if i == 0 or ids[i] > 0 or next_is_token else 0)
    return mask


def feed_forward(
    x: Vector, wi_0: Matrix, wi_1: Matrix, wo: Matrix, dtype: str = "float64"
) -> Vector:
    """Return a silu(b) c through wo, a and b from wi_0 [D, 2F]; silu(b) c when it is [D, F]."""
    gate, linear = project(x, wi_0, dtype), project(x, wi_1, dtype)
    hidden = []
    for f, c in enumerate(linear):
        if len(gate) == 2 * len(linear):
            b = gate[len(linear) + f]
            a = rounded(gate[f] * silu(b, dtype), dtype)
        else:
            a = silu(gate[f], dtype)
        hidden.append(rounded(a * c, dtype))
    return project(hidden, wo, dtype)


def silu(x: float, dtype: str) -> float:
    """Return x / (1 + exp(-x)), without overflow."""
    small = math.exp(-abs(x))
    return rounded(x * (1 / (1 + small) if x >= 0 else small / (1 + small)), dtype)


# ---------------------------------------------------------------------------- attention


def visible_by_targets(
    targets: Sequence[int],
    segments: Sequence[int] | None = None,
    prefix: Sequence[int] | None = None,
) -> list[list[bool]]:
    """Return [query][key] of one row; `prefix` marks what sees itself in both directions."""
    length = len(targets)
    seen = []
    for query in range(length):
        row = []
        for key in range(length):
            order = key <= query or bool(prefix and prefix[query] and prefix[key])
            tokens = targets[query] > 0 and targets[key] > 0
            together = segments is None or segments[query] == segments[key]
            row.append(order and tokens and together)
        seen.append(row)
    return seen


def sine_and_cosine(position: int, j: int, head_dim: int) -> tuple[float, float]:
    """Return those of position / 10000^(2 j / N), every operation rounded to float32."""
    single = np.float32
    timescale = single(10000.0 ** float(single(2 * j) / single(head_dim)))
    angle = single(position) * (single(1) / timescale)
    return float(np.sin(angle)), float(np.cos(angle))


def rotate(head: Vector, position: int, dtype: str = "float64") -> Vector:
    """Return a head [N] rotated in the pairs (j, j + N / 2)."""
    half = len(head) // 2
    turned = [0.0] * len(head)
    for j in range(half):
        s, c = (rounded(value, dtype) for value in sine_and_cosine(position, j, len(head)))
        low, high = head[j], head[j + half]
        turned[j] = rounded(rounded(low * c, dtype) - rounded(high * s, dtype), dtype)
        turned[j + half] = rounded(rounded(high * c, dtype) + rounded(low * s, dtype), dtype)
    return turned


def heads_of(x: Vector, count: int) -> list[Vector]:
    """Return x [H N] cut into heads, the first one first."""
    width = len(x) // count
    return [x[h * width : (h + 1) * width] for h in range(count)]


def hidden(logit: float, dtype: str) -> float:
    """Return what is left of a hidden key's logit: -1e10 swallows it, in float32 and bfloat16."""
    kind = np.float32 if dtype == "float64" else ml_dtypes.bfloat16
    return float(kind(logit) + kind(-1e10))


def attend(
    query: Vector,
    keys: Sequence[Vector],
    values: Sequence[Vector],
    seen: Sequence[bool],
    *,
    dtype: str = "float64",
    scale: float = 1.0,
) -> Vector:
    """Return one head's mix of values [S][N]: the softmax of unscaled products."""
    logits = []
    for key, is_seen in zip(keys, seen, strict=True):
        logit = rounded(rounded(dot(query, key), dtype) * scale, dtype)
        logits.append(logit if is_seen else hidden(logit, dtype))
    largest = max(logits)
    powers = [rounded(math.exp(rounded(logit - largest, dtype)), dtype) for logit in logits]
    total = rounded(math.fsum(powers), dtype)
    weights = [rounded(power / total, dtype) for power in powers]
    return project(weights, values, dtype)


@dataclass
class Attended:
    """The output of attention on one row, and its keys and values before rotation, [S][H][N]."""

    output: list[Vector]
    keys: list[list[Vector]]
    values: list[list[Vector]]


def attention(
    rows: Sequence[Vector],
    kernels: Mapping[str, Matrix],
    seen: Sequence[Sequence[bool]],
    *,
    num_heads: int,
    dtype: str = "float64",
    scale: float = 1.0,
    earlier: Attended | None = None,
) -> Attended:
    """Return the attention of tokens [Q][D], the first of which stands behind `earlier` ones."""
    keys = list(earlier.keys) if earlier else []
    values = list(earlier.values) if earlier else []
    first = len(keys)
    of_keys = len(kernels["key"][0]) // (len(kernels["query"][0]) // num_heads)
    for x in rows:
        keys.append(heads_of(project(x, kernels["key"], dtype), of_keys))
        values.append(heads_of(project(x, kernels["value"], dtype), of_keys))
    turned = [
        [rotate(head, slot, dtype) for head in heads_of_slot]
        for slot, heads_of_slot in enumerate(keys)
    ]
    outputs = []
    for q, x in enumerate(rows):
        mixed: Vector = []
        for h, head in enumerate(heads_of(project(x, kernels["query"], dtype), num_heads)):
            shared = h * of_keys // num_heads
            mixed += attend(
                rotate(head, first + q, dtype),
                [slot[shared] for slot in turned],
                [slot[shared] for slot in values],
                seen[q],
                dtype=dtype,
                scale=scale,
            )
        outputs.append(project(mixed, kernels["out"], dtype))
    return Attended(outputs, keys, values)
