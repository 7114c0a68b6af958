"""The gated feed-forward that dense layers and experts share. Spec: MOE-02, MOE-03."""

from __future__ import annotations

import jax
import jax.numpy as jnp

from openmoe_production.arguments import require_floats, require_shape


def gated_mlp(inputs: jax.Array, wi_0: jax.Array, wi_1: jax.Array, wo: jax.Array) -> jax.Array:
    """Return [E, S, D] of inputs [E, S, D] and weights [E, D, 2F], [E, D, F], [E, F, D].

    All arithmetic is in the dtype of `inputs`, to which the weights are cast.
    Errors: RejectedError MOE-11 on shapes and values that are not finite.
    Spec: MOE-02, MOE-03, MOE-06.
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
    return jnp.einsum("esf,efd->esd", hidden, wo.astype(dtype))
