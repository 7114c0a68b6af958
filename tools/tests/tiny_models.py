"""Small models for tests of the functional tier, and ways to change their weights."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np

from openmoe_reference.initialisation import initialise
from openmoe_spec.config import Configuration

TINY = Configuration(
    name="tiny",
    num_layers=4,
    num_moe_layers=2,
    embed_dim=16,
    num_heads=2,
    head_dim=8,
    mlp_dim=24,
    num_experts=8,
    vocabulary_size=160,
    max_length=128,
)
ONE_CHOICE = replace(TINY, num_layers=2, num_moe_layers=1, num_experts=4, num_selected_experts=1)
ROUTER_1 = "decoder/layers_1/mlp/router/router_weights"


def drawn(configuration, seed=0):
    weights = initialise(configuration, np.random.default_rng(seed))
    # Fresh routers hardly prefer anybody, and fresh queries and keys hardly see a position.
    spread = {"router_weights": 20, "query": 6, "key": 2}
    for name in weights:
        for part, factor in spread.items():
            if f"/{part}/" in name:
                weights[name] = weights[name] * np.float32(factor)
    return weights


WEIGHTS = drawn(TINY)


def changed(name, change):
    """Return the weights with what `change` makes of a copy of one tensor."""
    tensor = WEIGHTS[name].copy()
    return WEIGHTS | {name: np.asarray(change(tensor), np.float32)}


def narrowed(weights):
    return {name: value.astype(ml_dtypes.bfloat16) for name, value in weights.items()}


def halves(matrix):
    return np.roll(matrix, matrix.shape[-1] // 2, axis=-1)
