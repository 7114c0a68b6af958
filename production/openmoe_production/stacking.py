"""Layers that repeat, held together: one tensor for each position in the block of layers.

A block is the layers up to and including a sparse one. The first block stays by itself: with
bfloat16 activations its residual stream is bfloat16 and that of the others float32 (MODEL-06), and
what a scan carries has one dtype.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from openmoe_spec.config import Configuration
from openmoe_spec.parameters import parameters as tree

_LAYER = re.compile(r"decoder/layers_(\d+)/(.+)")
_REPEATED = re.compile(r"decoder/blocks/layers_(\d+)/(.+)")


def stack(parameters: Mapping[str, Any], configuration: Configuration) -> dict[str, jax.Array]:
    """Return the parameters with all blocks but the first stacked along a leading axis.

    Layer i of block b > 0 is `decoder/blocks/layers_{i}/...`[b - 1]; other names stay.
    """
    apart: dict[str, Any] = {}
    together: dict[str, list[Any]] = {}
    for one in tree(configuration):  # in the order of layers
        place = _place(one.name, configuration)
        if place is None:
            apart[one.name] = parameters[one.name]
        else:
            together.setdefault(place[0], []).append(parameters[one.name])
    return apart | {name: jnp.stack(parts) for name, parts in together.items()}


def unstack(parameters: Mapping[str, Any], configuration: Configuration) -> dict[str, jax.Array]:
    """Return stacked parameters, or their gradients, under the names of single layers."""
    found = {}
    for one in tree(configuration):
        place = _place(one.name, configuration)
        found[one.name] = parameters[one.name] if place is None else parameters[place[0]][place[1]]
    return found


def shapes(configuration: Configuration, *, stacked: bool) -> dict[str, tuple[int, ...]]:
    """Return the shape of every tensor by its name in a layout."""
    found = {}
    for one in tree(configuration):
        place = _place(one.name, configuration) if stacked else None
        if place is None:
            found[one.name] = one.shape
        else:
            found[place[0]] = (configuration.num_moe_layers - 1, *one.shape)
    return found


def is_stacked(parameters: Mapping[str, Any]) -> bool:
    """Return whether parameters are in the layout of `stack`."""
    return any(_REPEATED.fullmatch(name) for name in parameters)


Layers = list[dict[str, Any]]


def by_layer(parameters: Mapping[str, Any]) -> tuple[Layers, Layers]:
    """Return the tensors of each layer that stands by itself, and of each layer of the block.

    Names are without `decoder/layers_{i}/`.
    """
    return _gathered(parameters, _LAYER), _gathered(parameters, _REPEATED)


def _gathered(parameters: Mapping[str, Any], pattern: re.Pattern[str]) -> Layers:
    layers: dict[int, dict[str, Any]] = {}
    for name, value in parameters.items():
        if found := pattern.fullmatch(name):
            layers.setdefault(int(found[1]), {})[found[2]] = value
    return [layers[i] for i in sorted(layers)]


def _place(name: str, configuration: Configuration) -> tuple[str, int] | None:
    """Return the stacked tensor that holds a tensor and where in it; None: it stays by itself."""
    found = _LAYER.fullmatch(name)
    interval = configuration.num_layers // configuration.num_moe_layers
    if found is None or int(found[1]) < interval:
        return None
    block, position = divmod(int(found[1]), interval)
    return f"decoder/blocks/layers_{position}/{found[2]}", block - 1
