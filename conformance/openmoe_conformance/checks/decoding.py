"""Checks of SPEC.md "Decoding"."""
