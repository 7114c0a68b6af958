"""Mutants of SPEC.md "The model"."""
