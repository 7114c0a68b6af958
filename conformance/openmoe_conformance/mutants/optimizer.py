"""Mutants of SPEC.md "Training": learning rate, Adafactor, microbatches."""
