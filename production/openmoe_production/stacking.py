"""Layers that repeat, held together: one tensor for each position in the block of layers.

A block is the layers up to and including a sparse one. The first block stays by itself: with
bfloat16 activations its residual stream is bfloat16 and that of the others float32 (MODEL-06), and
what a scan carries has one dtype.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

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


_GATE = "/wi_0/kernel"


def split_gates(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with each doubled weight [..., 2F] as [..., 2, F]: the same numbers.

    A part of F then has parts of both halves, whose products meet.
    """
    return {
        name: value.reshape(*value.shape[:-1], 2, -1) if name.endswith(_GATE) else value
        for name, value in parameters.items()
    }


def join_gates(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parameters with each doubled weight [..., 2, F] as [..., 2F]."""
    return {
        name: value.reshape(*value.shape[:-2], -1) if name.endswith(_GATE) else value
        for name, value in parameters.items()
    }


@dataclass(frozen=True)
class Form:
    """How a model's tensors are held: layers that repeat together, gates in halves."""

    stacked: bool = False
    split: bool = False


FLAT = Form()
"""The tensors as they are named and shaped in checkpoints."""


def form(parameters: Mapping[str, Any]) -> Form:
    """Return how the tensors of a mapping are held, by its names and ranks."""
    stacked = is_stacked(parameters)
    gates = [name for name in parameters if name.endswith(_GATE)]
    ranks = {name: 2 + ("/expert/" in name) + bool(_REPEATED.fullmatch(name)) for name in gates}
    split = all(getattr(parameters[name], "ndim", 0) > rank for name, rank in ranks.items())
    return Form(stacked, split and bool(gates))


class Held(NamedTuple):
    """One tensor as a form has it: its shape, and a logical name of each axis (None: it has none)."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]


def held(configuration: Configuration, form: Form = FLAT) -> dict[str, Held]:
    """Return every tensor by its name in a form, with the shape and logical axes it has there.

    Blocks are an axis `block`.
    """
    found = {}
    for one in tree(configuration):
        name, shape = one.name, one.shape
        axes: tuple[str | None, ...] = one.axes
        if form.split and name.endswith(_GATE):
            shape, axes = (*shape[:-1], 2, shape[-1] // 2), (*axes[:-1], None, axes[-1])
        place = _place(one.name, configuration) if form.stacked else None
        if place is not None:
            name = place[0]
            shape, axes = (configuration.num_moe_layers - 1, *shape), ("block", *axes)
        found[name] = Held(shape, axes)
    return found


def axes_of_layers(configuration: Configuration, form: Form) -> dict[str, tuple[str | None, ...]]:
    """Return the logical axes of a layer's tensors, by names without the layer's and without blocks."""
    found = {}
    for name, one in held(configuration, form).items():
        if match := _LAYER.fullmatch(name) or _REPEATED.fullmatch(name):
            found[match[2]] = tuple(axis for axis in one.axes if axis != "block")
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
