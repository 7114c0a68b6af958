"""Mutants of SPEC.md "Decoding"."""
