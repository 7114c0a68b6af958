"""Checks of SPEC.md "Attention"."""
