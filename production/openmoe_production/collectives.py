"""What one device's share of a computation says to the others, by logical axes.

Functions of the model are written for one share of the rows, experts, heads and widths. Where
such a share is not enough they name the logical axis that they need more of; `ALONE` is the share
that is the whole, for which nothing is said. Inside `jax.shard_map` the types tell what differs
between devices, and their transposes give every gradient its sum. Spec: MESH-01..MESH-05.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

_lax: Any = lax  # its collectives are not typed

STORED = ("embed", "mlp_embed")
"""Logical axes that no product is cut along: a mesh axis that splits them splits only storage."""


@dataclass(frozen=True)
class Shard:
    """The share of one device: the mesh axes that split each logical axis, and into how many.

    Hashed by what it holds, so that it may be a static argument.
    """

    splits: Mapping[str, tuple[tuple[str, ...], int]] = field(default_factory=dict)

    def __hash__(self) -> int:
        return hash(tuple(sorted(self.splits.items())))

    def axes(self, logical: str) -> tuple[str, ...]:
        """Return the mesh axes that split a logical axis."""
        return self.splits.get(logical, ((), 1))[0]

    def size(self, logical: str) -> int:
        """Return into how many shares a logical axis is split."""
        return self.splits.get(logical, ((), 1))[1]

    def sum(self, logical: str, value: Any) -> Any:
        """Return the sum of all shares' values, which each of them then has."""
        axes = self.axes(logical)
        return _lax.psum(value, axes) if axes else value

    def mean(self, logical: str, value: Any) -> Any:
        """Return the mean of all shares' values; that of the whole where shares are of equal size."""
        axes = self.axes(logical)
        return _lax.pmean(value, axes) if axes else value

    def sum_like(self, logical: str, value: Any, like: Any) -> Any:
        """Return a tree's leaves summed over those shares that have the leaves of `like` alike."""

        def one(leaf: jax.Array, tensor: jax.Array) -> jax.Array:
            missing = _missing(tensor, self.axes(logical))
            return _lax.psum(leaf, missing) if missing else leaf

        return jax.tree.map(one, value, like)

    def max(self, logical: str, value: Any) -> Any:
        """Return the largest of all shares' values, through which nothing is differentiated."""
        axes = self.axes(logical)
        value = lax.stop_gradient(value)
        return _lax.pmax(value, axes) if axes else value

    def index(self, logical: str) -> jax.Array | int:
        """Return which share this is."""
        axes = self.axes(logical)
        return lax.axis_index(axes) if axes else 0

    def varying(self, logical: str, tree: Any) -> Any:
        """Return values that all shares have alike as each share's own: their gradients stay apart."""
        axes = self.axes(logical)
        return jax.tree.map(lambda leaf: _varying(leaf, axes), tree) if axes else tree

    def part(self, logical: str, value: jax.Array) -> jax.Array:
        """Return this share's part of the last axis of what all shares have alike."""
        axes = self.axes(logical)
        return _part(value, axes) if axes else value

    def whole(self, logical: str, value: jax.Array, *, axis: int = -1) -> jax.Array:
        """Return all parts along an axis, which each share then has alike."""
        axes = self.axes(logical)
        return _whole(value, axes, axis % value.ndim) if axes else value

    def at_hand(self, tensor: jax.Array, axes: tuple[str | None, ...]) -> jax.Array:
        """Return a tensor to compute with: whole along what it is only stored by, for these rows.

        Its gradient is that of these rows, until a transpose or `sum` adds the others'.
        """
        for axis, logical in enumerate(axes):
            if logical in STORED:
                tensor = self.gathered(logical, tensor, axis=axis)
        return self.varying("batch", tensor)

    def gathered(self, logical: str, value: jax.Array, *, axis: int) -> jax.Array:
        """Return all parts along an axis for this share to use; a gradient goes back in parts."""
        axes = self.axes(logical)
        return _lax.all_gather(value, axes, axis=axis, tiled=True) if axes else value

    def sum_in_parts(self, logical: str, value: jax.Array) -> jax.Array:
        """Return this share's part of the last axis of the sum of all shares' values."""
        axes = self.axes(logical)
        if not axes:
            return value
        return _lax.psum_scatter(value, axes, scatter_dimension=value.ndim - 1, tiled=True)

    def exchange(self, logical: str, value: jax.Array, *, split: int, concat: int) -> jax.Array:
        """Return the shares' pieces for this one: each cut along `split`, joined along `concat`."""
        axes = self.axes(logical)
        if not axes:
            return value
        return _lax.all_to_all(value, axes, split_axis=split, concat_axis=concat, tiled=True)


def zeros_like(tree: Any) -> Any:
    """Return zeros that differ between devices as the leaves of a tree do, to begin a scan with."""
    return jax.tree.map(lambda leaf: _varying(jnp.zeros_like(leaf), tuple(_differs(leaf))), tree)


ALONE = Shard()
"""The share of a device that has no others beside it."""


def _missing(leaf: jax.Array, axes: tuple[str, ...]) -> tuple[str, ...]:
    """Return those of the mesh axes along which devices have the same."""
    return tuple(axis for axis in axes if axis not in _differs(leaf))


def _differs(leaf: jax.Array) -> frozenset[str]:
    """Return the mesh axes along which, by its type, a value may differ."""
    kind: Any = jax.typeof(leaf)
    found = kind.vma if hasattr(kind, "vma") else kind.manual_axis_type.varying  # by JAX's version
    return frozenset(found)


def _varying(leaf: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    missing = _missing(leaf, axes)
    return lax.pcast(leaf, missing, to="varying") if missing else leaf


@partial(jax.custom_vjp, nondiff_argnums=(1,))
def _part(value: jax.Array, axes: tuple[str, ...]) -> jax.Array:
    width = value.shape[-1] // lax.axis_size(axes)
    start = lax.axis_index(axes) * width
    return lax.dynamic_slice_in_dim(_varying(value, axes), start, width, axis=-1)


def _part_forward(value: jax.Array, axes: tuple[str, ...]) -> tuple[jax.Array, None]:
    return _part(value, axes), None


def _part_backward(axes: tuple[str, ...], _: None, cotangent: jax.Array) -> tuple[jax.Array]:
    # Parts put side by side: the transpose of a slice would add up mostly zeros.
    return (_whole(cotangent, axes, cotangent.ndim - 1),)


_part.defvjp(_part_forward, _part_backward)


def _whole(value: jax.Array, axes: tuple[str, ...], axis: int) -> jax.Array:
    return _lax.all_gather(value, axes, axis=axis, tiled=True, to="invarying")
