"""SPEC.md "Attention": masks, rotary positions, attention.

Line-comparable to flaxformer dense_attention.py, embedding.py@c5bdc41.
"""

from __future__ import annotations

from collections.abc import Mapping

import ml_dtypes
import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from openmoe_reference.arguments import (
    check_array,
    check_choice,
    check_integer,
    check_names,
    check_within,
    rows_of,
)
from openmoe_reference.dtypes import DTYPES, matmul
from openmoe_spec.errors import RejectedError

KERNELS = ("query", "key", "value", "out")
"""Names of an attention's weights: the first three [D, H N], out [H N, D]."""


def rotary_tables(
    positions: Int[ndarray, "*rows L"], head_dim: int
) -> tuple[Float[ndarray, "*rows L N"], Float[ndarray, "*rows L N"]]:
    """Return float32 sine and cosine of position / 10000^(2 j / N), each twice side by side.

    Errors: RejectedError ATTN-12 on an odd head_dim or a position below 0.
    Spec: ATTN-04, ATTN-05. Source: embedding.py::generate_fixed_pos_embedding.
    """
    check_integer("head_dim", head_dim, "ATTN-12", least=2)
    if head_dim % 2:
        raise RejectedError("head_dim", "ATTN-12", f"must be even, got {head_dim}")
    check_array("positions", positions, f"{rows_of(positions)}L", {}, "ATTN-12", kind="i")
    check_within("positions", positions, "ATTN-12", 0, 2**31 - 1)
    fraction = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    # The power is rounded once: NumPy's float32 power is off by some units in the last place.
    timescale = (10_000.0 ** fraction.astype(np.float64)).astype(np.float32)
    angle = positions.astype(np.float32)[..., None] * (1 / timescale)  # [..., L, N / 2]
    angle = np.concatenate([angle, angle], axis=-1)
    return np.sin(angle), np.cos(angle)


def rotate(
    heads: Float[ndarray, "B L H N"], positions: Int[ndarray, "*rows L"]
) -> Float[ndarray, "B L H N"]:
    """Return queries or keys rotated at their positions: halves (j, j + N / 2) are the pairs.

    Not interleaved pairs (2 j, 2 j + 1). The tables are rounded to the dtype of `heads` first.
    Errors: RejectedError ATTN-12 on shapes and values that are not finite.
    Spec: ATTN-05, ATTN-06. Source: embedding.py::apply_rotary_embedding.
    """
    sizes: dict[str, int] = {}
    check_array("heads", heads, "B L H N", sizes, "ATTN-12")
    shape = "B L" if getattr(positions, "ndim", 1) == 2 else "L"
    check_array("positions", positions, shape, sizes, "ATTN-12", kind="i")
    sine, cosine = (
        table.astype(heads.dtype)[..., None, :]  # [..., L, 1, N]
        for table in rotary_tables(positions, sizes["N"])
    )
    first, second = np.split(heads, 2, axis=-1)
    return heads * cosine + np.concatenate([-second, first], axis=-1) * sine


def attention(
    inputs: Float[ndarray, "B Q D"],
    kernels: Mapping[str, ndarray],
    bias: Float[ndarray, "B Q L"] | None,
    *,
    num_heads: int,
    dtype: str = "float32",
    positions: Int[ndarray, "*rows Q"] | None = None,
    cache: tuple[ndarray, ndarray, ndarray] | None = None,
    scale: str = "one",
    softmax_dtype: str = "activation",
) -> tuple[Float[ndarray, "B Q D"], Float[ndarray, "B L G N"], Float[ndarray, "B L G N"]]:
    """Return the output and the keys and values that were attended to, keys NOT rotated.

    `bias` is added to the logits; `positions` are those of the queries (default 0, 1, ...), keys
    stand at 0 ... L - 1. `cache` is keys and values [B, L, H, N] and the slots [B] where those of
    these Q inputs go.
    Errors: RejectedError ATTN-12 on shapes, values that are not finite, an unknown option.
    Spec: ATTN-06..ATTN-11. Source: dense_attention.py::MultiHeadDotProductAttention.
    """
    check_choice("dtype", dtype, tuple(DTYPES), "ATTN-12")
    sizes = check_attention(inputs, kernels, num_heads)
    head_dim = sizes["HN"] // num_heads
    kind = DTYPES[dtype]
    queries, keys, values = (
        matmul(inputs, kernels[name], kind).reshape(*inputs.shape[:2], -1, head_dim)
        for name in ("query", "key", "value")
    )  # [B, Q, D] -> [B, Q, H, N]
    if cache is not None:
        keys, values = _inserted(cache, keys, values)
    if positions is None:
        positions = np.arange(sizes["Q"])
    rotated = rotate(keys, np.arange(keys.shape[1]))  # every call rotates all keys anew
    mixed = attend(
        rotate(queries, positions), rotated, values, bias, scale=scale, softmax_dtype=softmax_dtype
    )
    return matmul(mixed.reshape(*inputs.shape[:2], -1), kernels["out"], kind), keys, values


def check_attention(
    inputs: ndarray, kernels: Mapping[str, ndarray], num_heads: int
) -> dict[str, int]:
    """Refuse inputs, kernels and heads that do not belong together. Spec: ATTN-12."""
    sizes: dict[str, int] = {}
    check_array("inputs", inputs, "B Q D", sizes, "ATTN-12")
    check_names("kernels", kernels, KERNELS, "ATTN-12")
    check_integer("num_heads", num_heads, "ATTN-12", least=1)
    for name, shape in zip(KERNELS, ("D HN", "D GN", "D GN", "HN D"), strict=True):
        check_array(f"kernels[{name!r}]", kernels[name], shape, sizes, "ATTN-12")
    head_dim = sizes["HN"] // num_heads
    if head_dim * num_heads != sizes["HN"] or sizes["GN"] % head_dim:
        raise RejectedError("num_heads", "ATTN-12", f"must divide {sizes['HN']}, got {num_heads}")
    return sizes


def _inserted(
    cache: tuple[ndarray, ndarray, ndarray], keys: ndarray, values: ndarray
) -> tuple[ndarray, ndarray]:
    old_keys, old_values, index = cache
    new_keys, new_values = old_keys.copy(), old_values.copy()
    for row, first in enumerate(index):
        new_keys[row, first : first + keys.shape[1]] = keys[row]
        new_values[row, first : first + keys.shape[1]] = values[row]
    return new_keys, new_values


def attend(
    queries: Float[ndarray, "B Q H N"],
    keys: Float[ndarray, "B L G N"],
    values: Float[ndarray, "B L G N"],
    bias: Float[ndarray, "B Q L"] | None,
    *,
    scale: str = "one",
    softmax_dtype: str = "activation",
) -> Float[ndarray, "B Q H N"]:
    """Return the mixture of values by softmax(q . k + bias): logits are NOT divided by sqrt(N).

    A row whose keys are all masked attends to all of them equally, later ones and padding too.
    Spec: ATTN-07, ATTN-08, ATTN-09, ATTN-10.
    Source: dense_attention.py::dot_product_attention_weights, dot_product_attention.
    """
    sizes: dict[str, int] = {}
    check_array("queries", queries, "B Q H N", sizes, "ATTN-12")
    check_array("keys", keys, "B L G N", sizes, "ATTN-12")
    check_array("values", values, "B L G N", sizes, "ATTN-12")
    check_choice("scale", scale, ("one", "head_dim"), "ATTN-12")
    check_choice("softmax_dtype", softmax_dtype, ("activation", "float32"), "ATTN-12")
    repeats = sizes["H"] // sizes["G"]
    if repeats * sizes["G"] != sizes["H"]:
        raise RejectedError("keys", "ATTN-12", f"their {sizes['G']} heads must divide {sizes['H']}")
    keys, values = (np.repeat(heads, repeats, axis=2) for heads in (keys, values))
    kind = queries.dtype
    logits = _einsum("bqhn,blhn->bhql", queries, keys)
    if scale == "head_dim":
        logits = logits * kind.type(1 / np.sqrt(sizes["N"]))
    if bias is not None:
        check_array("bias", bias, "B Q L", sizes, "ATTN-12", kind="any")
        if np.isnan(bias).any():  # minus infinity is legal: the port's two reasons add up to it
            raise RejectedError("bias", "ATTN-12", "must not be not-a-number")
        # In float32 and bfloat16 -1e10 swallows the logit it is added to, so a row without a
        # visible key is uniform; in float64 it takes 2^29 of it to do the same.
        reach = 2.0**29 if kind == np.float64 else 1.0
        logits = logits + (bias[:, None].astype(np.float64) * reach).astype(kind)
    if softmax_dtype == "float32" and kind != np.float64:
        logits = logits.astype(np.float32)
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights = weights / _sum(weights)
    return _einsum("bhql,blhn->bqhn", weights.astype(kind), values)


def _einsum(equation: str, a: ndarray, b: ndarray) -> ndarray:
    if a.dtype == ml_dtypes.bfloat16:  # operands as they are, the sum in float32, then rounded
        return np.einsum(equation, a.astype(np.float32), b.astype(np.float32)).astype(a.dtype)
    return np.einsum(equation, a, b)


def _sum(weights: ndarray) -> ndarray:
    if weights.dtype == ml_dtypes.bfloat16:
        return weights.astype(np.float32).sum(axis=-1, keepdims=True).astype(weights.dtype)
    return weights.sum(axis=-1, keepdims=True)
