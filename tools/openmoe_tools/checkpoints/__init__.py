"""Checkpoints: read, convert, verify, diagnose, certify. Needs no JAX, PyTorch or t5x."""
