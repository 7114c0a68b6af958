"""Mutants of SPEC.md "Decoding": choosing a token."""
