"""Who may see whom, rotary positions, attention. Spec: ATTN-01..ATTN-13."""

from __future__ import annotations

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from openmoe_production.arguments import (
    require_count,
    require_floats,
    require_integers,
    require_mask,
    require_shape,
)
from openmoe_production.batches import require_segments
from openmoe_production.collectives import ALONE, Shard
from openmoe_production.dropout import Dropped
from openmoe_spec.errors import RejectedError

KERNELS = ("query", "key", "value", "out")
"""Names of an attention's weights: the first three [D, H N], out [H N, D]."""

MASKED = -1e10
"""What is added to the logit of a key that may not be seen: finite, unlike -infinity."""

_LARGEST = 2**31 - 1


def decoder_mask(
    target_ids: jax.Array,
    *,
    segment_ids: jax.Array | None = None,
    causal_attention: jax.Array | None = None,
) -> jax.Array:
    """Return bool [B, L, L], which key (last axis) each query may see, from TARGET ids [B, L].

    `causal_attention` [B, L], 1 on a prefix, opens the prefix both ways; OpenMoE passes none.
    Errors: RejectedError ATTN-12. Spec: ATTN-01, ATTN-02, ATTN-03.
    """
    require_shape("target_ids", target_ids, {"B": None, "L": None}, "ATTN-12")
    require_integers("target_ids", target_ids, "ATTN-12", least=-_LARGEST, most=_LARGEST)
    shape = dict(zip("BL", target_ids.shape, strict=True))
    place = jnp.arange(shape["L"])
    seen = place[:, None] >= place
    if causal_attention is not None:
        require_shape("causal_attention", causal_attention, shape, "ATTN-12")
        prefix = causal_attention > 0
        seen = seen | (prefix[:, :, None] & prefix[:, None, :])
    real = target_ids > 0
    seen = seen & real[:, :, None] & real[:, None, :]
    if segment_ids is not None:
        require_shape("segment_ids", segment_ids, shape, "ATTN-12")
        require_segments("segment_ids", segment_ids, "ATTN-12")
        seen = seen & (segment_ids[:, :, None] == segment_ids[:, None, :])
    return seen


def visible_by_targets(batch: Mapping[str, jax.Array], *, bidirectional: bool = False) -> jax.Array:
    """Return the mask of a training batch: from its targets, segments and, if asked, its prefix.

    Errors: RejectedError ATTN-12 on a batch without targets. Spec: ATTN-01, ATTN-02, ATTN-03.
    """
    if "decoder_target_tokens" not in batch:
        raise RejectedError("batch", "ATTN-12", "must hold decoder_target_tokens")
    return decoder_mask(
        batch["decoder_target_tokens"],
        segment_ids=batch.get("decoder_segment_ids"),
        causal_attention=batch.get("decoder_causal_attention") if bidirectional else None,
    )


def rotary_tables(positions: jax.Array, *, head_dim: int) -> tuple[jax.Array, jax.Array]:
    """Return float32 sine and cosine [..., N] of positions / 10000^(2 j / N), each twice.

    Errors: RejectedError ATTN-12. Spec: ATTN-04, ATTN-05.
    """
    require_count("head_dim", head_dim, "ATTN-12")
    if head_dim % 2:
        raise RejectedError("head_dim", "ATTN-12", f"must be even, got {head_dim}")
    require_integers("positions", positions, "ATTN-12", least=0, most=_LARGEST)
    # By NumPy and rounded once: an ulp of a frequency is an ulp of a large angle, and the powers of
    # devices and of NumPy's float32 differ by it.
    fraction = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequency = 1 / (10_000.0 ** fraction.astype(np.float64)).astype(np.float32)  # [N / 2]
    angle = positions.astype(jnp.float32)[..., None] * frequency
    angle = jnp.concatenate([angle, angle], axis=-1)
    return jnp.sin(angle), jnp.cos(angle)


def rotate(heads: jax.Array, positions: jax.Array) -> jax.Array:
    """Return heads [B, L, H, N] rotated at positions [L] or [B, L], in pairs (j, j + N / 2).

    The tables are rounded to the dtype of `heads` first.
    Errors: RejectedError ATTN-12. Spec: ATTN-05, ATTN-06.
    """
    require_shape("heads", heads, {"B": None, "L": None, "H": None, "N": None}, "ATTN-12")
    require_floats("heads", heads, "ATTN-12")
    batch, length, _, head_dim = heads.shape
    wanted = {"L": length} if positions.ndim == 1 else {"B": batch, "L": length}
    require_shape("positions", positions, wanted, "ATTN-12")
    sine, cosine = (
        table.astype(heads.dtype)[..., None, :]  # [..., L, 1, N]
        for table in rotary_tables(positions, head_dim=head_dim)
    )
    first, second = jnp.split(heads, 2, axis=-1)
    return heads * cosine + jnp.concatenate([-second, first], axis=-1) * sine


def attention(
    inputs: jax.Array,
    kernels: Mapping[str, jax.Array],
    visible: jax.Array | None,
    *,
    num_heads: int,
    positions: jax.Array | None = None,
    cache: tuple[jax.Array, jax.Array, jax.Array] | None = None,
    dropped: Dropped | None = None,
    shard: Shard = ALONE,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return the output [B, Q, D] and the keys and values [B, L, H, N] that were seen, not rotated.

    All arithmetic is in the dtype of `inputs` [B, Q, D]. `visible` bool [B, Q, L] says which keys a
    query may see (None: all); `positions` [Q] or [B, Q] are those of the queries (None: 0, 1, ...),
    keys stand at 0 ... L - 1. `cache` is keys and values of earlier tokens and index [B], the slot
    of the first of these Q; what falls behind the last slot is not kept. `dropped` is what
    becomes of the weights [B, G, R, Q, L] in training. In a `shard` heads are its
    part of them, and so are kernels.
    Errors: RejectedError ATTN-12. Spec: ATTN-05..ATTN-11.
    """
    head_dim = _require_attention(inputs, kernels, num_heads)
    batch, length, _ = inputs.shape
    queries, keys, values = (
        jnp.einsum("bqd,df->bqf", inputs, kernels[name].astype(inputs.dtype)).reshape(
            batch, length, -1, head_dim
        )
        for name in ("query", "key", "value")
    )
    if cache is not None:
        old_keys, old_values, index = cache
        keys, values = _insert(old_keys, keys, index), _insert(old_values, values, index)
    if visible is not None:
        wanted = {"B": batch, "Q": length, "L": keys.shape[1]}
        require_mask("visible", visible, wanted, "ATTN-12")
    queries = rotate(queries, jnp.arange(length) if positions is None else positions)
    # Rotated anew in every call: the cache holds keys as they came.
    rotated = rotate(keys, jnp.arange(keys.shape[1]))
    mixed = _attend(queries, rotated, values, visible, dropped)
    out = kernels["out"].astype(inputs.dtype)
    output = jnp.einsum("bqf,fd->bqd", mixed.reshape(batch, length, -1), out)
    return shard.sum("joined_kv", output), keys, values


def _attend(
    queries: jax.Array,
    keys: jax.Array,
    values: jax.Array,
    visible: jax.Array | None,
    dropped: Dropped | None,
) -> jax.Array:
    """Return [B, Q, H, N]; R queries share each of the heads G of keys and values."""
    batch, length, heads, head_dim = queries.shape
    queries = queries.reshape(batch, length, keys.shape[2], -1, head_dim)
    logits = jnp.einsum("bqgrn,blgn->bgrql", queries, keys)  # not divided by sqrt(N)
    if visible is not None:
        # Added, so that a query without any key attends to all alike: it swallows the logits.
        bias = jnp.where(visible, 0.0, MASKED).astype(logits.dtype)
        logits = logits + bias[:, None, None]
    weights = jax.nn.softmax(logits, axis=-1)
    if dropped is not None:
        weights = dropped(weights)
    return jnp.einsum("bgrql,blgn->bqgrn", weights, values).reshape(batch, length, heads, head_dim)


def _insert(old: jax.Array, new: jax.Array, index: jax.Array) -> jax.Array:
    """Return `old` [B, L, H, N] with `new` [B, Q, H, N] from slot index[b] on, L at most."""
    source = jnp.arange(old.shape[1]) - index[:, None]  # [B, L]: which of the Q stands in a slot
    inside = (source >= 0) & (source < new.shape[1])
    taken = jnp.take_along_axis(new, source.clip(0, new.shape[1] - 1)[..., None, None], axis=1)
    return jnp.where(inside[..., None, None], taken.astype(old.dtype), old)


def _require_attention(inputs: jax.Array, kernels: Mapping[str, jax.Array], num_heads: int) -> int:
    """Return the width of a head, or refuse what does not fit."""
    require_shape("inputs", inputs, {"B": None, "Q": None, "D": None}, "ATTN-12")
    require_floats("inputs", inputs, "ATTN-12")
    require_count("num_heads", num_heads, "ATTN-12")
    if set(kernels) != set(KERNELS):
        raise RejectedError("kernels", "ATTN-12", f"must hold {KERNELS}, got {sorted(kernels)}")
    width = inputs.shape[2]
    require_shape("kernels['query']", kernels["query"], {"D": width, "HN": None}, "ATTN-12")
    require_shape("kernels['key']", kernels["key"], {"D": width, "GN": None}, "ATTN-12")
    of_queries, of_keys = kernels["query"].shape[1], kernels["key"].shape[1]
    require_shape("kernels['value']", kernels["value"], {"D": width, "GN": of_keys}, "ATTN-12")
    require_shape("kernels['out']", kernels["out"], {"HN": of_queries, "D": width}, "ATTN-12")
    for name in KERNELS:
        require_floats(f"kernels[{name!r}]", kernels[name], "ATTN-12")
    head_dim = of_queries // num_heads
    if of_queries % num_heads or of_keys % head_dim or num_heads % (of_keys // head_dim):
        raise RejectedError(
            "num_heads", "ATTN-12", f"must divide {of_queries} and {of_keys}, got {num_heads}"
        )
    return head_dim
