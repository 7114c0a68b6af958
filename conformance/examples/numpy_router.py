"""A whole adapter in pure NumPy: a router with capacity drop, and nothing else of the model.

Written from conformance/README.md alone. Try it from this folder:
    openmoe conform --implementation numpy_router:Adapter --profile quick
What it does not offer (a layer, losses, ignored padding, priorities) is reported as SKIPPED.
"""

import numpy as np


class Adapter:
    """The functions of conformance/README.md that this implementation has."""

    name = "numpy_router"
    version = "1.0"
    arithmetic = "float32"
    rejects_invalid_input = True

    def probabilities(self, inputs, kernel):
        """Return softmax(inputs @ kernel) in float32."""
        if not (np.isfinite(inputs).all() and np.isfinite(kernel).all()):
            raise ValueError("inputs and kernel must be finite")
        if inputs.ndim != 3 or kernel.shape[:1] != inputs.shape[2:]:
            raise ValueError("shapes must be [G, T, D] and [D, E]")
        # group by group, so that no group's bits depend on how many share the call
        logits = np.stack([group.astype(np.float32) @ kernel for group in inputs])
        powers = np.exp(logits - logits.max(axis=-1, keepdims=True))
        return powers / powers.sum(axis=-1, keepdims=True)

    def decide(self, probabilities, *, k, capacity):
        """Return the K choices of every token and their places in the experts' queues."""
        if probabilities.ndim != 3 or probabilities.dtype != np.float32:
            raise ValueError("probabilities must be float32 [G, T, E]")
        if not np.isfinite(probabilities).all() or (probabilities < 0).any():
            raise ValueError("probabilities must be finite and not negative")
        groups, tokens, experts = probabilities.shape
        if not (isinstance(k, int) and 1 <= k <= experts):
            raise ValueError("k must be a whole number from 1 to E")
        if not (isinstance(capacity, int) and capacity >= 1):
            raise ValueError("capacity must be a whole number of at least 1")
        # stable: equal probabilities keep the order of the experts
        chosen = np.argsort(-probabilities, axis=-1, kind="stable")[..., :k]
        position = np.zeros((groups, tokens, k), np.int32)
        for g in range(groups):
            waiting = np.zeros(experts, np.int32)
            for j in range(k):  # all first choices before any second choice
                for t in range(tokens):
                    expert = chosen[g, t, j]
                    position[g, t, j] = waiting[expert]
                    waiting[expert] += 1
        return {
            "expert_index": chosen,
            "gate": np.take_along_axis(probabilities, chosen, axis=-1),
            "position": position,
            "kept": position < capacity,
        }

    def expert_capacity(self, tokens_per_group, *, num_experts, capacity_factor):
        """Return C: half-even rounding, then the minimum of 4; K is not in it."""
        if min(tokens_per_group, num_experts) < 1 or not 0 < capacity_factor < float("inf"):
            raise ValueError("sizes must be at least 1 and the factor a finite number above 0")
        return max(round(capacity_factor * tokens_per_group / num_experts), 4)
