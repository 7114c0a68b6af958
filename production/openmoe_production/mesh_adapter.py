"""Where the adapter's calls run: on the mesh that is asked for, or on the largest that they fit."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from itertools import product
from typing import Any

import jax

from openmoe_production import (
    grouping,
    mesh_layer,
    optimizer,
    sharding,
    stacking,
    training,
)
from openmoe_production.sharding import Layout
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError

Mesh = tuple[int, int, int]
"""Devices along data, expert and model."""

Require = Callable[[Layout], None]
"""Refuses a layout that a call does not fit."""

_DEVICES = 8


class MeshAdapter:
    """What of an adapter knows meshes. `Adapter("2x2x2")` runs every call that knows them on that mesh.

    A call that does not fit it runs on the largest mesh whose axes divide those of the wanted one, and
    on one device where there is none; `used` counts the calls by mesh.
    Errors: RejectedError MESH-06 on a text that is no mesh, or one of more devices than are at hand.
    """

    def __init__(self, mesh: str = "") -> None:
        _provide_devices()
        self.used: Counter[Mesh] = Counter()
        self._wanted = list(_smaller(_read(mesh))) if mesh else []

    def meshes(self) -> tuple[Mesh, ...]:
        """Return the meshes of 1, 2, 4 and 8 devices that are at hand. Spec: MESH-01."""
        return tuple(_meshes(min(_DEVICES, len(jax.devices()))))

    def on(self, mesh: Mesh | None, require: Require) -> dict[str, Layout]:
        """Return the keyword `layout` of a call, nothing where one device has all.

        A mesh that is asked for is taken, whether the call fits it or not: the function refuses.
        """
        if mesh is not None:
            found: Layout | None = _layout(mesh)
        else:
            found = next((one for one in map(_layout, self._wanted) if _fits(one, require)), None)
        self.used[tuple(found.mesh.devices.shape) if found else (1, 1, 1)] += 1
        return {} if found is None else {"layout": found}


def of_layer(parameters: Mapping[str, Any], groups: int) -> Require:
    """Return what a layer of whole groups asks of a layout. Spec: MESH-06."""

    def require(layout: Layout) -> None:
        layout.require_divisible("groups", groups, "batch")
        mesh_layer.require_parts(parameters, layout)

    return require


def of_batch(
    rows: int, length: int, *, experts: int, max_group_size: int, num_expert_replicas: int
) -> Require:
    """Return what a batch that is grouped asks of a layout. Spec: MESH-01, MESH-06."""

    def require(layout: Layout) -> None:
        layout.require_divisible("batch", rows, "batch")
        grouping.share_of_groups(
            rows // layout.size("batch"),
            length,
            shares=layout.size("batch"),
            max_group_size=max_group_size,
            num_experts=experts,
            num_expert_replicas=num_expert_replicas,
        )

    return require


def of_layer_of_batch(parameters: Mapping[str, Any], inputs: Any, **sizes: int) -> Require:
    """Return what a layer of a batch [B, L, D] asks of a layout. Spec: MESH-01, MESH-06."""

    def require(layout: Layout) -> None:
        rows, length, _ = inputs.shape
        mesh_layer.require_parts(parameters, layout)
        of_batch(rows, length, experts=parameters["wi_1"].shape[0], **sizes)(layout)

    return require


def of_model(
    configuration: Configuration, rows: int, *lengths: int, num_expert_replicas: int = 1
) -> Require:
    """Return what passes of so many rows, of each of the lengths, ask of a layout. Spec: MESH-06."""

    def require(layout: Layout) -> None:
        layout.require(configuration)
        for length in lengths:
            of_batch(
                rows,
                length,
                experts=configuration.num_experts,
                max_group_size=configuration.max_group_size,
                num_expert_replicas=num_expert_replicas,
            )(layout)

    return require


def of_slices(
    configuration: Configuration, batch: Mapping[str, Any], num_microbatches: int
) -> Require:
    """Return what passes over microbatches ask of a layout. Spec: MESH-06, MESH-07."""
    rows, length = batch["decoder_input_tokens"].shape
    return of_model(configuration, rows // num_microbatches, length)


def of_steps(
    configuration: Configuration, batch: Mapping[str, Any], num_expert_replicas: int
) -> Require:
    """Return what a prefill and steps of one token a row ask of a layout. Spec: MESH-06."""
    rows, length = batch["decoder_input_tokens"].shape
    return of_model(configuration, rows, length, 1, num_expert_replicas=num_expert_replicas)


# ---- functions of one device or of a mesh --------------------------------------------------


def held(parameters: Mapping[str, Any], layout: Layout | None) -> Mapping[str, Any]:
    """Return a model's tensors in the form that a layout takes them in: gates in halves."""
    return parameters if layout is None else stacking.split_gates(parameters)


def accumulated(
    parameters: Any, *, layout: Layout | None = None, **options: Any
) -> training.Accumulated:
    """Return `training.accumulated` of tensors whose gates are joined. Spec: MESH-05, MESH-07."""
    found = training.accumulated(held(parameters, layout), layout=layout, **options)
    if layout is None:
        return found
    return found._replace(gradients=stacking.join_gates(found.gradients))


def train_step(
    parameters: Any,
    state: optimizer.State,
    *,
    configuration: Configuration,
    layout: Layout | None = None,
    **options: Any,
) -> training.Trained:
    """Return a step whose tensors and moments come and go with joined gates, as checkpoints hold them."""
    tensors = held(parameters, layout)
    rule = training.adafactor(configuration, form=stacking.form(tensors))
    shapes = jax.eval_shape(rule.init, tensors).slots
    slots = jax.tree.map(lambda value, like: value.reshape(like.shape), state.slots, shapes)
    found = training.train_step(
        tensors,
        state._replace(slots=slots),
        configuration=configuration,
        layout=layout,
        **options,
    )
    joined = jax.tree.map(
        lambda value, like: value.reshape(like.shape), found.state.slots, state.slots
    )
    shown = found.parameters if layout is None else stacking.join_gates(found.parameters)
    return found._replace(parameters=shown, state=found.state._replace(slots=joined))


# ---- meshes --------------------------------------------------------------------------------


def _provide_devices() -> None:
    """Make a CPU eight devices, unless JAX has begun or somebody has said how many."""
    said = "host_platform_device_count" in os.environ.get("XLA_FLAGS", "")
    config: Any = jax.config
    if said or config.jax_num_cpu_devices >= 0:
        return
    try:
        config.update("jax_num_cpu_devices", _DEVICES)
    except RuntimeError:  # its devices are made already
        return


def _meshes(most: int) -> Iterator[Mesh]:
    sizes = [size for size in (1, 2, 4, 8) if size <= most]
    for devices, data, expert in product(sizes, sizes, sizes):
        if devices % (data * expert) == 0:
            yield data, expert, devices // (data * expert)


def _read(text: str) -> Mesh:
    """Return the mesh that a text such as 2x2x2 says."""
    found = re.fullmatch(r"(\d+)x(\d+)x(\d+)", text)
    if found is None:
        reason = f"write it as 2x2x2, data x expert x model, got {text!r}"
        raise RejectedError("mesh", "MESH-06", reason)
    data, expert, model = map(int, found.groups())
    return data, expert, model


def _smaller(mesh: Mesh) -> Iterator[Mesh]:
    """Yield the meshes whose axes divide those of `mesh`, which must be there, largest first."""
    _layout(mesh)
    divisors = [[n for n in range(1, size + 1) if size % n == 0] for size in mesh]
    every = sorted(product(*divisors), key=lambda one: (-one[0] * one[1] * one[2], one))
    yield from (one for one in every if one != (1, 1, 1))  # type: ignore[misc]


@cache
def _layout(mesh: Mesh) -> Layout:
    return Layout(sharding.make_mesh(*mesh))


def _fits(layout: Layout, require: Require) -> bool:
    try:
        require(layout)
    except (AttributeError, LookupError, TypeError, ValueError):
        return False  # also of a call that is illegal anywhere: one device will say why
    return True
