"""Mutants of SPEC.md "Dialects"."""
