"""The bound of a model's pass: all of its matrix products and nothing else.

They are written down from the configuration, not read off the model: that would hide its waste.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from openmoe_production import grouping
from openmoe_production.layers import DTYPES
from openmoe_spec.config import Configuration
from openmoe_spec.parameters import sparse_layers


class Product(NamedTuple):
    """One matrix product, as `einsum` takes it; `full`: in float32, whatever the device prefers."""

    form: str
    left: tuple[int, ...]
    right: tuple[int, ...]
    dtype: str
    full: bool = False


def products(
    c: Configuration, rows: int, queries: int, keys: int, *, training: bool, dtype: str
) -> Iterator[Product]:
    """Yield every product of a forward pass over [B, Q] tokens that see L keys."""
    n = rows * queries
    inner, heads = c.num_heads * c.head_dim, (c.num_heads, c.head_dim)
    sparse = sparse_layers(c.num_layers, c.num_moe_layers)
    groups, tokens, slots = _slots(c, rows, queries, training=training)
    for layer in range(c.num_layers):
        for _ in range(3):
            yield Product("nd,de->ne", (n, c.embed_dim), (c.embed_dim, inner), dtype)
        seen, weights = (rows, keys, *heads), (rows, c.num_heads, queries, keys)
        yield Product("bqhn,bkhn->bhqk", (rows, queries, *heads), seen, dtype)
        yield Product("bhqk,bkhn->bqhn", weights, seen, dtype)
        yield Product("nd,de->ne", (n, inner), (inner, c.embed_dim), dtype)
        yield from _feed_forward(1, n, c.embed_dim, c.mlp_dim, dtype)
        if layer in sparse:
            router = (c.embed_dim, c.num_experts)
            yield Product(
                "gtd,de->gte", (groups, tokens, c.embed_dim), router, "float32", full=True
            )
            yield from _feed_forward(c.num_experts, slots, c.embed_dim, c.expert_width, dtype)
    kernel = (c.embed_dim, c.vocabulary_size)
    yield Product("nd,de->ne", (n, c.embed_dim), kernel, "float32", full=True)


def _slots(c: Configuration, rows: int, length: int, *, training: bool) -> tuple[int, int, int]:
    """Return groups, tokens of one, and the slots of an expert in all of them."""
    padded = math.prod(grouping.padded_shape(rows, length, multiple=c.num_experts))
    groups = grouping.num_groups(padded, max_group_size=c.max_group_size, num_experts=c.num_experts)
    tokens = padded // groups
    capacity = grouping.expert_capacity(
        tokens,
        num_experts=c.num_experts,
        capacity_factor=c.train_capacity_factor if training else c.eval_capacity_factor,
        min_expert_capacity=c.min_expert_capacity,
    )
    return groups, tokens, groups * capacity


def _feed_forward(
    experts: int, slots: int, width: int, hidden: int, dtype: str
) -> Iterator[Product]:
    for columns in (2 * hidden, hidden):
        yield Product("esd,edf->esf", (experts, slots, width), (experts, width, columns), dtype)
    yield Product("esf,efd->esd", (experts, slots, hidden), (experts, hidden, width), dtype)


Operands = list[tuple[jax.Array, jax.Array, jax.Array]]


def operands(wanted: Sequence[Product]) -> Operands:
    """Return arrays for each product, and one of its result's shape to be carried back."""
    random = np.random.default_rng(0)

    def make(shape: tuple[int, ...], dtype: str) -> jax.Array:
        return jnp.asarray(random.random(shape, np.float32).astype(DTYPES[dtype]))

    made = []
    for one in wanted:
        left, right = make(one.left, one.dtype), make(one.right, one.dtype)
        result = jax.eval_shape(partial(_product, one), left, right)
        made.append((left, right, make(result.shape, one.dtype)))
    return made


def bound(given: Operands, wanted: Sequence[Product], which: str) -> list[jax.Array]:
    """Return all products, and backward both products that carry each one's cotangent back."""
    made = []
    for one, (left, right, cotangent) in zip(wanted, given, strict=True):
        result, carry = jax.vjp(partial(_product, one), left, right)
        made += [result, *(carry(cotangent) if which == "gradients" else ())]
    return made


def _product(one: Product, left: jax.Array, right: jax.Array) -> jax.Array:
    precision = lax.Precision.HIGHEST if one.full else None
    return jnp.einsum(one.form, left, right, precision=precision)
