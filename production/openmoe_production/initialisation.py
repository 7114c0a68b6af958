"""The distributions that the tensors were drawn from. Spec: INIT-01..INIT-04."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from openmoe_spec.config import Configuration
from openmoe_spec.parameters import Parameter, parameters

SCALE = 0.1
ROUTER_DEVIATION = 0.02
TRUNCATED = 0.87962566103423978
"""Standard deviation of a unit normal that is cut at two deviations."""


def initialise(configuration: Configuration, key: jax.Array) -> dict[str, jax.Array]:
    """Return freshly drawn float32 tensors by name, each from a key of its own.

    Spec: INIT-01..INIT-04. Source: flaxformer moe_decoder_only.gin@c5bdc41.
    """
    tensors = parameters(configuration)
    keys = jax.random.split(key, len(tensors))
    return {one.name: draw(one, configuration, own) for one, own in zip(tensors, keys, strict=True)}


def draw(parameter: Parameter, configuration: Configuration, key: jax.Array) -> jax.Array:
    """Return one tensor; experts differ, for each of its numbers is drawn.

    Fan-in is the second last axis: of one expert, and of matrices as they are stored.
    Spec: INIT-01..INIT-04. Source: flaxformer dense_attention.py, dense.py, routing.py@c5bdc41.
    """
    name, shape = parameter.name, parameter.shape
    if name.endswith("scale"):
        return jnp.ones(shape, jnp.float32)
    if name.endswith("embedding"):
        return jax.random.normal(key, shape, jnp.float32)
    if name.endswith("router_weights/w/kernel"):
        return ROUTER_DEVIATION * jax.random.normal(key, shape, jnp.float32)
    spread = math.sqrt(SCALE / shape[-2])
    if name.endswith("query/kernel"):
        spread /= math.sqrt(configuration.head_dim)  # the 1 / sqrt(N) that the logits lack
    if "/self_attention/" in name or "/expert/" in name:
        return spread * jax.random.normal(key, shape, jnp.float32)
    return spread / TRUNCATED * jax.random.truncated_normal(key, -2, 2, shape, jnp.float32)
