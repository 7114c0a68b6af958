"""`openmoe inspect` of a checkpoint: what it is, and what is odd about it."""
