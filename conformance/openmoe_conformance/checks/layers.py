"""Checks of SPEC.md "Layers"."""
