"""Checks of SPEC.md "Dialects"."""
