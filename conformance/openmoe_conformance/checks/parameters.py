"""Checks of SPEC.md "Parameters"."""
