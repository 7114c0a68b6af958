"""`openmoe verify`: structure, bits and numbers of two checkpoints; reports and certificates."""
