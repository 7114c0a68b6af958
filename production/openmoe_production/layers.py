"""Embedding, norm, token mask, feed-forward and output projection.

Spec: LAYER-01..LAYER-09, MOE-02, MOE-03.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from openmoe_production.arguments import (
    require_floats,
    require_integers,
    require_mask,
    require_shape,
)
from openmoe_production.collectives import ALONE, Shard
from openmoe_production.dropout import Dropped
from openmoe_spec.errors import RejectedError

DTYPES: dict[str, Any] = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}
"""The arithmetics of activations and of experts by name."""

EPSILON = 1e-6
"""What every norm adds to the mean of squares."""


def require_dtype(name: str, dtype: str, clause: str) -> None:
    """Refuse a dtype that is not among the names of DTYPES."""
    if dtype not in DTYPES:
        raise RejectedError(name, clause, f"must be one of {tuple(DTYPES)}, got {dtype!r}")


def embed(
    table: jax.Array, ids: jax.Array, *, dtype: str = "float32", shard: Shard = ALONE
) -> jax.Array:
    """Return rows [B, L, D] of a table [V, D] in `dtype`, zeros for an id that is none.

    In a `shard` the table is its part of the ids.
    Errors: RejectedError LAYER-08. Spec: LAYER-01, LAYER-02, LAYER-09.
    """
    require_dtype("dtype", dtype, "LAYER-08")
    require_shape("table", table, {"V": None, "D": None}, "LAYER-08")
    require_floats("table", table, "LAYER-08")
    require_shape("ids", ids, {"B": None, "L": None}, "LAYER-08")
    require_integers("ids", ids, "LAYER-08", least=-(2**31), most=2**31 - 1)
    vocabulary = table.shape[0]
    ids = ids - shard.index("vocab") * vocabulary
    known = (ids >= 0) & (ids < vocabulary)
    rows = _rows(table, jnp.where(known, ids, vocabulary), vocabulary).astype(DTYPES[dtype])
    return shard.sum("vocab", rows)  # of which all but one are zeros


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _rows(table: jax.Array, ids: jax.Array, vocabulary: int) -> jax.Array:
    del vocabulary
    return jnp.take(table, ids, axis=0, mode="fill", fill_value=0)


def _rows_forward(table: jax.Array, ids: jax.Array, vocabulary: int) -> tuple[jax.Array, jax.Array]:
    return _rows(table, ids, vocabulary), ids


def _rows_backward(vocabulary: int, ids: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, None]:
    # The transpose of a gather adds floats by index, in an order that a device may choose. Sorted,
    # equal ids stand together and a segmented sum ends at the last of each; integers tell where.
    ids, rows = ids.reshape(-1), cotangent.reshape(-1, cotangent.shape[-1])
    order = jnp.argsort(ids, stable=True)
    ids, rows = ids[order], rows[order]

    def add(
        before: tuple[jax.Array, jax.Array], after: tuple[jax.Array, jax.Array]
    ) -> tuple[jax.Array, jax.Array]:
        same = (before[0] == after[0])[:, None]
        return after[0], jnp.where(same, before[1], 0) + after[1]

    _, sums = lax.associative_scan(add, (ids, rows))
    ends = jnp.append(ids[1:] != ids[:-1], True)
    last = jnp.full(vocabulary, ids.size, jnp.int32)
    last = last.at[jnp.where(ends, ids, vocabulary)].set(
        jnp.arange(ids.size, dtype=jnp.int32), mode="drop"
    )
    return jnp.take(sums, last, axis=0, mode="fill", fill_value=0), None


_rows.defvjp(_rows_forward, _rows_backward)


def rms_norm(inputs: jax.Array, scale: jax.Array, *, dtype: str = "float32") -> jax.Array:
    """Return inputs [..., D] over their root mean square, in `dtype`, times `scale` [D].

    Errors: RejectedError LAYER-08. Spec: LAYER-03, LAYER-04.
    """
    require_dtype("dtype", dtype, "LAYER-08")
    require_floats("inputs", inputs, "LAYER-08")
    require_shape("scale", scale, {"D": inputs.shape[-1]}, "LAYER-08")
    require_floats("scale", scale, "LAYER-08")
    x = inputs.astype(jnp.float32)
    y = x * lax.rsqrt(jnp.mean(x * x, axis=-1, keepdims=True) + EPSILON)
    return y.astype(DTYPES[dtype]) * scale.astype(DTYPES[dtype])


def token_mask(input_ids: jax.Array) -> jax.Array:
    """Return bool [B, L]: the id here or the next one is above 0, or the position is the first.

    Errors: RejectedError LAYER-08. Spec: LAYER-05.
    """
    require_shape("input_ids", input_ids, {"B": None, "L": None}, "LAYER-08")
    require_integers("input_ids", input_ids, "LAYER-08", least=-(2**31), most=2**31 - 1)
    here = input_ids > 0
    following = jnp.pad(here[:, 1:], ((0, 0), (0, 1)))  # nothing follows the last position
    return here | following | (jnp.arange(input_ids.shape[1]) == 0)


def output_logits(
    inputs: jax.Array, kernel: jax.Array, *, mask: jax.Array | None = None
) -> jax.Array:
    """Return float32 logits [B, L, V] of normed inputs and kernel [D, V]; 0 where masked.

    Errors: RejectedError LAYER-08. Spec: LAYER-06, LAYER-07.
    """
    require_shape("inputs", inputs, {"B": None, "L": None, "D": None}, "LAYER-08")
    require_floats("inputs", inputs, "LAYER-08")
    require_shape("kernel", kernel, {"D": inputs.shape[2], "V": None}, "LAYER-08")
    require_floats("kernel", kernel, "LAYER-08")
    if mask is not None:
        tokens = {"B": inputs.shape[0], "L": inputs.shape[1]}
        require_mask("mask", mask, tokens, "LAYER-08")
        inputs = inputs * mask[..., None].astype(inputs.dtype)
    return jnp.einsum(
        "bld,dv->blv",
        inputs.astype(jnp.float32),
        kernel.astype(jnp.float32),
        precision=lax.Precision.HIGHEST,
    )


def feed_forward(
    inputs: jax.Array,
    kernels: Mapping[str, jax.Array],
    *,
    dtype: str = "float32",
    dropped: Dropped | None = None,
) -> jax.Array:
    """Return one feed-forward [S, D] in `dtype`; kernels wi_0 [D, 2F], wi_1 [D, F] and wo [F, D].

    dropped  what becomes of the hidden values [1, S, F] in training; None: they stay
    Errors: RejectedError MOE-11. Spec: MOE-02, MOE-03, MODEL-04.
    """
    require_dtype("dtype", dtype, "MOE-11")
    if set(kernels) != {"wi_0", "wi_1", "wo"}:
        raise RejectedError(
            "kernels", "MOE-11", f"must hold wi_0, wi_1 and wo, got {sorted(kernels)}"
        )
    one = {name: kernel[None] for name, kernel in kernels.items()}
    return gated_mlp(inputs.astype(DTYPES[dtype])[None], **one, dropped=dropped)[0]


def gated_mlp(
    inputs: jax.Array,
    wi_0: jax.Array,
    wi_1: jax.Array,
    wo: jax.Array,
    *,
    dropped: Dropped | None = None,
) -> jax.Array:
    """Return [E, S, D] of inputs [E, S, D] and weights [E, D, 2F], [E, D, F], [E, F, D].

    All arithmetic is in the dtype of `inputs`, to which the weights are cast. `dropped` is what becomes
    of the hidden values [E, S, F] in training.
    Errors: RejectedError MOE-11 on shapes and values that are not finite.
    Spec: MOE-02, MOE-03, MOE-06, MODEL-04.
    """
    require_shape("inputs", inputs, {"E": None, "S": None, "D": None}, "MOE-11")
    experts, _, width = inputs.shape
    require_shape("wi_1", wi_1, {"E": experts, "D": width, "F": None}, "MOE-11")
    width_of_hidden = wi_1.shape[2]
    require_shape("wi_0", wi_0, {"E": experts, "D": width, "2F": 2 * width_of_hidden}, "MOE-11")
    require_shape("wo", wo, {"E": experts, "F": width_of_hidden, "D": width}, "MOE-11")
    for name, array in (("inputs", inputs), ("wi_0", wi_0), ("wi_1", wi_1), ("wo", wo)):
        require_floats(name, array, "MOE-11")
    dtype = inputs.dtype
    up = jnp.einsum("esd,edf->esf", inputs, wi_0.astype(dtype))
    value, gate = jnp.split(up, 2, axis=-1)  # the second half is the activated one
    hidden = value * jax.nn.silu(gate) * jnp.einsum("esd,edf->esf", inputs, wi_1.astype(dtype))
    if dropped is not None:
        hidden = dropped(hidden)
    return jnp.einsum("esf,efd->esd", hidden, wo.astype(dtype))
