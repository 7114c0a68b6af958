"""The gated feed-forward that dense layers and experts share. Spec: MOE-02, MOE-03."""

from __future__ import annotations

import jax
import jax.numpy as jnp


def gated_mlp(inputs: jax.Array, wi_0: jax.Array, wi_1: jax.Array, wo: jax.Array) -> jax.Array:
    """Return [E, S, D] of inputs [E, S, D] and weights [E, D, 2F], [E, D, F], [E, F, D].

    All arithmetic is in the dtype of `inputs`, to which the weights are cast.
    Spec: MOE-02, MOE-03, MOE-06.
    """
    dtype = inputs.dtype
    up = jnp.einsum("esd,edf->esf", inputs, wi_0.astype(dtype))
    value, gate = jnp.split(up, 2, axis=-1)  # the second half is the activated one
    hidden = value * jax.nn.silu(gate) * jnp.einsum("esd,edf->esf", inputs, wi_1.astype(dtype))
    return jnp.einsum("esf,efd->esd", hidden, wo.astype(dtype))
