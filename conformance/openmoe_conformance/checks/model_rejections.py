"""Checks of SPEC.md "The model": what it must reject."""
