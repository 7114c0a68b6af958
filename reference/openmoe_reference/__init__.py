"""The arithmetic of SPEC.md in NumPy: one module a chapter, written to be read."""
