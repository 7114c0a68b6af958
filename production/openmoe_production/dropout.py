"""Dropout of a training pass: places of their own draws, the same on every mesh. Spec: MODEL-12..MODEL-14.

A key stands for a place: that of a run is folded with the number of a step, of a microbatch, of a layer
and of a place in it; masks of rows with the number of the row in the microbatch, those of experts
with the number of the expert. So which of the values are dropped does not depend on the mesh.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import jax
import jax.numpy as jnp

from openmoe_production.collectives import Shard

EMBEDDED, NORMED, LAYERS = range(3)
"""Places of a pass; layer i is LAYERS + i."""
WEIGHTS, ATTENDED, HIDDEN, FED, EXTRA_HIDDEN, EXTRA_FED = range(6)
"""Places of a layer: attention's weights and output; what a feed-forward computes with, and returns."""


Dropped = Callable[[jax.Array], jax.Array]
"""What becomes of values at a place: some of them are dropped."""


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Dropout:
    """What is dropped at a place: each value with a probability of `rate`, 0 < rate < 1.

    key  of this place alone
    """

    key: jax.Array
    rate: float = field(metadata={"static": True})

    def at(self, *places: int | jax.Array) -> Dropout:
        """Return that of a place within this one."""
        key = self.key
        for place in places:
            key = jax.random.fold_in(key, place)
        return replace(self, key=key)

    def of_rows(self, values: jax.Array, shard: Shard, *, split: str | None = None) -> jax.Array:
        """Return values [B, L, D] of which some are zero, the same along all L of a row.

        split  the logical axis that splits D, in a share
        """
        kept = self._kept((values.shape[0], values.shape[2]), shard, "batch", split)
        return self._applied(values, kept[:, None])

    def of_weights(self, weights: jax.Array, shard: Shard) -> jax.Array:
        """Return attention's weights [B, G, R, Q, L] of which some are zero, alike for all queries."""
        batch, groups, repeats, _, length = weights.shape
        shape = (batch, groups * repeats, length)
        kept = self._kept(shape, shard, "batch", "joined_kv")
        return self._applied(weights, kept.reshape(batch, groups, repeats, 1, length))

    def of_experts(self, values: jax.Array, shard: Shard) -> jax.Array:
        """Return values [E, S, F] of which some are zero, the same in all slots of an expert."""
        kept = self._kept((values.shape[0], values.shape[2]), shard, "expert", "expert_mlp")
        return self._applied(values, kept[:, None])

    def _kept(
        self, shape: tuple[int, ...], shard: Shard, first: str, split: str | None
    ) -> jax.Array:
        """Draw by the number of each in the first axis; cut the second as that of a share's values."""
        numbers = shard.index(first) * shape[0] + jnp.arange(shape[0])
        parts = 1 if split is None else shard.size(split)
        each = (parts * shape[1], *shape[2:])

        def draw(number: jax.Array) -> jax.Array:
            key = jax.random.fold_in(self.key, number)
            return jax.random.bernoulli(key, 1 - self.rate, each)

        kept = jax.vmap(draw)(numbers)
        if split is None or parts == 1:
            return kept
        begin = shard.index(split) * shape[1]
        return jax.lax.dynamic_slice_in_dim(shard.varying(split, kept), begin, shape[1], axis=1)

    def _applied(self, values: jax.Array, kept: jax.Array) -> jax.Array:
        share = jnp.asarray(1 - self.rate, values.dtype)
        return jnp.where(kept, values / share, jnp.zeros((), values.dtype))
