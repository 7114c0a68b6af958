"""Mutants of SPEC.md "Training": initialisation."""
