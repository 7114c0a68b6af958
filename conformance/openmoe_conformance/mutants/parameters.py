"""Mutants of SPEC.md "Parameters"."""
