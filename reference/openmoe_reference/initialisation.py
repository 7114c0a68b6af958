"""SPEC.md "Training": the distributions that the tensors were drawn from.

Line-comparable to moe_decoder_only.gin@c5bdc41 and jax.nn.initializers.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy import ndarray

from openmoe_spec.config import Configuration
from openmoe_spec.parameters import Parameter, parameters

SCALE = 0.1
ROUTER_DEVIATION = 0.02
TRUNCATED = 0.87962566103423978
"""Standard deviation of a unit normal that is cut at two deviations."""


def deviation(parameter: Parameter, configuration: Configuration) -> tuple[float, bool]:
    """Return a tensor's standard deviation, and whether it is cut at two of its parent's.

    Fan-in is the second last axis: of one expert, and of matrices as they are stored.
    Spec: INIT-01, INIT-02, INIT-03. Source: dense_attention.py, dense.py, routing.py, gin files.
    """
    name, shape = parameter.name, parameter.shape
    if name.endswith("embedding"):
        return 1.0, False
    if name.endswith("router_weights/w/kernel"):
        return ROUTER_DEVIATION, False
    spread = float(np.sqrt(SCALE / shape[-2]))
    if name.endswith("query/kernel"):
        # The 1 / sqrt(N) that the logits lack stands here, in training from scratch alone.
        return spread / float(np.sqrt(configuration.head_dim)), False
    return spread, not ("/expert/" in name or "/self_attention/" in name)


def initialise(configuration: Configuration, generator: np.random.Generator) -> dict[str, ndarray]:
    """Return freshly drawn float32 tensors by name; norms are ones. Spec: INIT-01..INIT-04."""
    return dict(_draw(configuration, generator))


def _draw(
    configuration: Configuration, generator: np.random.Generator
) -> Iterable[tuple[str, ndarray]]:
    for parameter in parameters(configuration):
        if parameter.name.endswith("scale"):
            yield parameter.name, np.ones(parameter.shape, np.float32)
            continue
        spread, cut = deviation(parameter, configuration)
        values = generator.standard_normal(parameter.shape)
        if cut:
            while (outside := np.abs(values) > 2).any():
                values[outside] = generator.standard_normal(int(outside.sum()))
            values /= TRUNCATED
        yield parameter.name, (values * spread).astype(np.float32)
