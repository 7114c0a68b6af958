"""Checks, vectors, mutants and a runner that can be pointed at any implementation. Never imports JAX."""
