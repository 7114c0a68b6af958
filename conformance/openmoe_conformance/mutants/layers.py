"""Mutants of SPEC.md "Layers"."""
