"""Checks of SPEC.md "The model"."""
