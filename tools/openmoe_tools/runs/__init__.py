"""Training runs: starting, watching, evaluating them."""
