"""From tensors that differ to causes with a name, a place and a fix."""
