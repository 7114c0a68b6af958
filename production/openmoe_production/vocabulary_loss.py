"""Cross entropy of a model's text, the output projection included, a few positions at a time.

The logits of a batch are its largest array by far, so they are never held: each chunk of positions
gives its part of the loss and, when it is differentiated, of the gradients at once. That takes the
three products of the plain form and no fourth. Spec: LOSS-15..LOSS-22, LAYER-06, LAYER-07, MESH-05.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from openmoe_production import cross_entropy
from openmoe_production.collectives import ALONE, Shard, zeros_like

LEAST_TOKENS, MOST_TOKENS = 128, 1024
"""Positions of a chunk: enough for a product to be efficient, and no more than memory is worth."""


def text_loss(
    normed: jax.Array,
    kernel: jax.Array,
    batch: Mapping[str, jax.Array],
    *,
    mask: jax.Array,
    z_loss_factor: float = 0.0,
    label_smoothing: float = 0.0,
    shard: Shard = ALONE,
    chunk: int | None = None,
) -> dict[str, jax.Array]:
    """Return `loss`, its parts `cross_entropy` and `z_loss`, `weight_sum` and `accuracy`.

    `normed` [B, L, D] and `mask` bool [B, L] are what the output projection `kernel` [D, V] reads. In
    a `shard` rows and ids are its part, `kernel` is marked as its own, and all is of the whole batch.
    Only `loss`, the sum of the two parts, is differentiated; `chunk` positions of each row at a time.
    Errors: RejectedError LOSS-25. Spec: LOSS-15..LOSS-19, LOSS-21, LOSS-22, LOSS-24.
    """
    divisor, weights = cross_entropy.normalizer("NUM_REAL_TARGET_TOKENS", batch)
    total_weight = shard.sum("batch", divisor)
    rows, length, _ = normed.shape
    if chunk is None:
        tokens = min(max(rows * length // 16, LEAST_TOKENS), MOST_TOKENS)
        chunk = max(tokens // rows, 1)
    how = _How(z_loss_factor, label_smoothing, shard, min(chunk, length))
    inputs = normed * mask[..., None].astype(normed.dtype)
    sums = _sums(inputs, kernel, batch["decoder_target_tokens"], weights, how)
    loss, penalty, right = (shard.sum("batch", one) / total_weight for one in sums)
    penalty, right = lax.stop_gradient((penalty, right))
    return {
        "loss": loss,
        "cross_entropy": lax.stop_gradient(loss) - penalty,
        "z_loss": penalty,
        "weight_sum": total_weight,
        "accuracy": right,
    }


class _How(NamedTuple):
    """What is fixed when a program is compiled."""

    z_loss_factor: float
    label_smoothing: float
    shard: Shard
    chunk: int


Sums = tuple[jax.Array, jax.Array, jax.Array]
"""Of this share's rows: weighted losses, z-losses in them, right predictions."""


@partial(jax.custom_vjp, nondiff_argnums=(4,))
def _sums(
    inputs: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, how: _How
) -> Sums:
    def add(sums: Sums, chunk: _Chunk) -> tuple[Sums, None]:
        return _added(sums, _of_chunk(chunk, kernel, how).sums), None

    return lax.scan(add, _nothing(weights), _chunks(inputs, targets, weights, how.chunk))[0]


Saved = tuple[jax.Array, jax.Array]


def _sums_forward(
    inputs: jax.Array, kernel: jax.Array, targets: jax.Array, weights: jax.Array, how: _How
) -> tuple[Sums, Saved]:
    wide = kernel.astype(jnp.float32)

    def add(
        carried: tuple[Sums, jax.Array], chunk: _Chunk
    ) -> tuple[tuple[Sums, jax.Array], jax.Array]:
        sums, d_kernel = carried
        found = _of_chunk(chunk, kernel, how)
        d_logits = _d_logits(found, chunk, how)
        d_inputs = _product("bcv,dv->bcd", d_logits, wide)
        d_kernel += _product("bcd,bcv->dv", chunk.inputs.astype(jnp.float32), d_logits)
        return (_added(sums, found.sums), d_kernel), d_inputs

    begin = (_nothing(weights), zeros_like(wide))
    (sums, d_kernel), parts = lax.scan(add, begin, _chunks(inputs, targets, weights, how.chunk))
    d_inputs = how.shard.sum("vocab", parts).swapaxes(0, 1)  # [B, chunks, positions, D]
    d_inputs = d_inputs.reshape(len(inputs), -1, inputs.shape[2])[:, : inputs.shape[1]]
    return sums, (d_inputs.astype(inputs.dtype), d_kernel.astype(kernel.dtype))


def _sums_backward(how: _How, saved: Saved, cotangents: Sums) -> tuple[Any, ...]:
    del how
    return *(one * cotangents[0].astype(one.dtype) for one in saved), None, None


_sums.defvjp(_sums_forward, _sums_backward)


class _Chunk(NamedTuple):
    """Some positions of every row: [B, c, D], and [B, c] of targets and weights."""

    inputs: jax.Array
    targets: jax.Array
    weights: jax.Array


def _chunks(inputs: jax.Array, targets: jax.Array, weights: jax.Array, size: int) -> _Chunk:
    """Return all chunks along a leading axis; what the last one lacks has weight 0."""
    rows, length = targets.shape
    missing = -length % size

    def cut(array: jax.Array) -> jax.Array:
        whole = jnp.pad(array, ((0, 0), (0, missing)) + ((0, 0),) * (array.ndim - 2))
        return whole.reshape(rows, -1, size, *array.shape[2:]).swapaxes(0, 1)

    return _Chunk(cut(inputs), cut(targets), cut(weights))


class _Found(NamedTuple):
    """What the logits [B, c, V] of a chunk say: log Z [B, c], where targets stand, and the sums."""

    logits: jax.Array
    log_z: jax.Array
    hit: jax.Array
    sums: Sums


def _of_chunk(chunk: _Chunk, kernel: jax.Array, how: _How) -> _Found:
    """Return losses of a chunk. Spec: LOSS-15, LOSS-16, LOSS-17, LOSS-24."""
    shard = how.shard
    logits = _product("bcd,dv->bcv", chunk.inputs.astype(jnp.float32), kernel.astype(jnp.float32))
    here = logits.shape[-1]
    ids = jnp.arange(here) + shard.index("vocab") * here
    hit = chunk.targets[..., None] == ids
    largest = logits.max(axis=-1)
    best = shard.max("vocab", largest)
    log_z = best + jnp.log(shard.sum("vocab", jnp.exp(logits - best[..., None]).sum(axis=-1)))
    log_softmax = logits - log_z[..., None]
    on, off = _smoothed(how, here)
    loss = -(on - off) * shard.sum("vocab", jnp.where(hit, log_softmax, 0).sum(axis=-1))
    if how.label_smoothing:
        ids_in_all = here * shard.size("vocab")
        least = -(on * math.log(on) + (ids_in_all - 1) * off * math.log(off + 1e-20))
        loss -= off * shard.sum("vocab", log_softmax.sum(axis=-1)) + least
    penalty = how.z_loss_factor * log_z**2
    # The least id of the largest logit, wherever it lies.
    place = jnp.where(largest == best, ids[logits.argmax(axis=-1)], here * shard.size("vocab"))
    right = -shard.max("vocab", -place) == chunk.targets
    weights = chunk.weights
    sums = ((loss + penalty) * weights, penalty * weights, jnp.where(right, weights, 0))
    return _Found(logits, log_z, hit, (sums[0].sum(), sums[1].sum(), sums[2].sum()))


def _d_logits(found: _Found, chunk: _Chunk, how: _How) -> jax.Array:
    """Return the gradient of the weighted losses. Spec: LOSS-18."""
    on, off = _smoothed(how, found.logits.shape[-1])
    probabilities = jnp.exp(found.logits - found.log_z[..., None])
    slope = 1 + 2 * how.z_loss_factor * found.log_z
    difference = slope[..., None] * probabilities - jnp.where(found.hit, on, off)
    return difference * chunk.weights[..., None]


def _smoothed(how: _How, here: int) -> tuple[float, float]:
    """Return what a target's id is to have, and every other one. Spec: LOSS-17."""
    vocabulary = here * how.shard.size("vocab")
    return 1 - how.label_smoothing, how.label_smoothing / max(vocabulary - 1, 1)


def _product(how: str, first: jax.Array, second: jax.Array) -> jax.Array:
    # HIGHEST: an accelerator's default would round the operands.
    return jnp.einsum(how, first, second, precision=lax.Precision.HIGHEST)


def _nothing(weights: jax.Array) -> Sums:
    zero = zeros_like(weights[0, 0])
    return zero, zero, zero


def _added(sums: Sums, more: Sums) -> Sums:
    return sums[0] + more[0], sums[1] + more[1], sums[2] + more[2]
