"""Mutants of SPEC.md "Attention"."""
