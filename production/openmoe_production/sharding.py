"""Where tensors lie: one table from logical axes to mesh axes, and what it makes of a mesh.

A mesh has three axes. `data` and `expert` both split the rows of a batch, and with them whole
groups; `expert` splits the experts too, so slots travel over it; `model` splits heads, hidden
widths and the vocabulary. Spec: MESH-01, MESH-06.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from openmoe_production import stacking
from openmoe_production.arguments import require_count
from openmoe_production.collectives import Shard
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError

AXES = ("data", "expert", "model")
"""The axes of every mesh, in the order of its devices."""


@dataclass(frozen=True)
class ShardingRules:
    """Which mesh axes split each logical axis; nothing else in this port says so.

    batch is the axis of rows and of groups, the others are those of `openmoe_spec.parameters`.
    """

    batch: tuple[str, ...] = ("data", "expert")
    vocab: tuple[str, ...] = ("model",)
    embed: tuple[str, ...] = ()
    mlp_embed: tuple[str, ...] = ()
    joined_kv: tuple[str, ...] = ("model",)
    mlp: tuple[str, ...] = ("model",)
    expert: tuple[str, ...] = ("expert",)
    expert_mlp: tuple[str, ...] = ("model",)
    unmodeled: tuple[str, ...] = ()
    block: tuple[str, ...] = ()


RULES = ShardingRules()
"""Every tensor whole on each `data` coordinate."""

PARAMETERS_OVER_DATA = ShardingRules(embed=("data",), mlp_embed=("data",))
"""The model's width split over `data` too: a layer's weights are gathered when it runs."""


def make_mesh(
    data: int = 1, expert: int = 1, model: int = 1, *, devices: Sequence[Any] | None = None
) -> Mesh:
    """Return a mesh of data x expert x model devices; None: the first of those at hand.

    Errors: RejectedError MESH-06 when they are not there.
    """
    sizes = dict(zip(AXES, (data, expert, model), strict=True))
    for name, size in sizes.items():
        require_count(name, size, "MESH-06")
    at_hand = list(jax.devices()) if devices is None else list(devices)
    wanted = data * expert * model
    if wanted > len(at_hand):
        raise RejectedError(
            "mesh",
            "MESH-06",
            f"of {data} x {expert} x {model} needs {wanted} devices, {len(at_hand)} are at hand",
        )
    if devices is None and jax.process_count() > 1 and wanted < len(at_hand):
        # A process without a device in the mesh would have no part in what the others do.
        raise RejectedError(
            "mesh",
            "MESH-06",
            f"of {data} x {expert} x {model} has {wanted} devices, the processes {len(at_hand)}: "
            "all must be in it",
        )
    return jax.make_mesh(
        (data, expert, model), AXES, (AxisType.Auto,) * 3, devices=at_hand[:wanted]
    )


@dataclass(frozen=True)
class Layout:
    """A mesh and a table: where each logical axis lies. Mesh axes of one device split nothing."""

    mesh: Mesh
    rules: ShardingRules = RULES

    def axes(self, logical: str) -> tuple[str, ...]:
        """Return the mesh axes, of more than one device, that split a logical axis."""
        return tuple(axis for axis in getattr(self.rules, logical) if self.mesh.shape[axis] > 1)

    def size(self, logical: str) -> int:
        """Return into how many parts a logical axis is split."""
        found = 1
        for axis in self.axes(logical):
            found *= self.mesh.shape[axis]
        return found

    def spec(self, *logical: str | None) -> PartitionSpec:
        """Return the partition of an array by the logical names of its axes; None: not split."""
        return PartitionSpec(  # type: ignore[no-untyped-call]
            *(None if name is None else self.axes(name) or None for name in logical)
        )

    def sharding(self, *logical: str | None) -> NamedSharding:
        """Return the sharding of an array by the logical names of its axes."""
        return NamedSharding(self.mesh, self.spec(*logical))

    def of_tensors(
        self, parameters: Mapping[str, Any], configuration: Configuration
    ) -> dict[str, PartitionSpec]:
        """Return the partition of a model's tensors in the form that they are in."""
        form = stacking.form(parameters)
        if not form.split and self.size("mlp") * self.size("expert_mlp") > 1:
            raise RejectedError(
                "parameters",
                "MESH-06",
                "gates must be in halves where F is split; `stacking.split_gates` makes them so",
            )
        forms = stacking.held(configuration, form)
        return {name: self.spec(*forms[name].axes) for name in parameters}

    def of_step(
        self, parameters: Mapping[str, Any], configuration: Configuration, *, rows: int
    ) -> tuple[dict[str, PartitionSpec], PartitionSpec]:
        """Return the partitions of tensors and of a batch's arrays, or refuse what does not fit.

        Errors: RejectedError MESH-06.
        """
        self.require(configuration)
        self.require_divisible("batch", rows, "batch")
        return self.of_tensors(parameters, configuration), self.spec("batch")

    def place(
        self, parameters: Mapping[str, Any], configuration: Configuration
    ) -> dict[str, jax.Array]:
        """Return a model's tensors on the mesh, each device with its parts; gates are split.

        Errors: RejectedError MESH-06.
        """
        self.require(configuration)
        split = (
            dict(parameters)
            if stacking.form(parameters).split
            else stacking.split_gates(parameters)
        )
        specs = self.of_tensors(split, configuration)
        return {
            name: jax.device_put(value, NamedSharding(self.mesh, specs[name]))
            for name, value in split.items()
        }

    def spread(self, function: Callable[..., Any], given: Any, found: Any) -> Callable[..., Any]:
        """Return a function of whole arrays of which each device computes its share.

        `function` works on a share and is told which by the keyword `shard`; `given` and `found` are
        the partitions of its positional arguments and of its result, trees or beginnings of such.
        """
        share = partial(function, shard=self.shard)
        return jax.shard_map(share, mesh=self.mesh, in_specs=given, out_specs=found)

    @property
    def shard(self) -> Shard:
        """Return what a function inside `jax.shard_map` knows of its place."""
        names = tuple(ShardingRules.__dataclass_fields__)
        return Shard({name: (self.axes(name), self.size(name)) for name in names})

    def require(self, configuration: Configuration) -> None:
        """Refuse a model whose tensors this layout would cut unevenly, or within a head.

        Errors: RejectedError MESH-06, which says what would do. Spec: MESH-06.
        """
        c = configuration
        wanted = {
            "num_experts": (c.num_experts, "expert"),
            "num_heads": (c.num_heads, "joined_kv"),
            "num_kv_heads": (c.key_value_heads, "joined_kv"),
            "mlp_dim": (c.mlp_dim, "mlp"),
            "expert_mlp_dim": (c.expert_width, "expert_mlp"),
            "embed_dim": (c.embed_dim, "expert_mlp"),
            "vocabulary_size": (c.vocabulary_size, "vocab"),
        }
        if self.axes("embed"):
            wanted |= {"embed_dim ": (c.embed_dim, "embed")}
        for name, (size, logical) in wanted.items():
            self.require_divisible(name.strip(), size, logical)

    def require_divisible(self, name: str, size: int, logical: str) -> None:
        """Refuse a size that a logical axis cannot be cut into. Spec: MESH-06."""
        parts = self.size(logical)
        if size % parts:
            fits = [n for n in range(1, size + 1) if size % n == 0]
            near = [n for n in fits if n < parts][-1:] + [n for n in fits if n > parts][:1]
            raise RejectedError(
                name,
                "MESH-06",
                f"{size} cannot be split into {parts} parts over {' x '.join(self.axes(logical))}; "
                f"{' or '.join(map(str, near))} parts would do",
            )
