"""Mutants of SPEC.md "Loss of the model"."""
