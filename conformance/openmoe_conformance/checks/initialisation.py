"""Checks of SPEC.md "Training": initialisation."""
