"""The OpenMoE layer in JAX: index-based, static shapes, made to be run. Needs numpy and jax only."""
