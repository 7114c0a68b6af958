"""Digests of tensors, a piece at a time: the same in every container and chunking.

Spec: CKPT-01, CKPT-02, CKPT-03. The reference's `checkpoints` does the same with whole tensors.
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_spec.places import Shape
from openmoe_tools.checkpoints import working
from openmoe_tools.checkpoints.containers.opening import Checkpoint
from openmoe_tools.checkpoints.containers.stored import DTYPES, WEIGHTS

NARROWER = {"float64": ("float32",), "float32": ("bfloat16", "float16")}
"""Casts that lose digits, and may be declared."""


@dataclass(frozen=True)
class Digest:
    """A tensor's dtype, shape and digest; `cast` by dtype: that of its values after a cast."""

    dtype: str
    shape: Shape
    digest: str
    cast: dict[str, str]


class Hasher:
    """The digest of a tensor whose values come in C order."""

    def __init__(self, dtype: str, shape: Shape) -> None:
        """Begin with the line of dtype and shape."""
        self._hash = hashlib.sha256(f"{dtype}[{','.join(map(str, shape))}]\n".encode())

    def add(self, piece: ndarray) -> None:
        """Take in the values that follow."""
        if sys.byteorder == "big":
            piece = piece.byteswap()
        self._hash.update(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)

    def digest(self) -> str:
        """Return the digest in hexadecimal."""
        return self._hash.hexdigest()


def cast(values: ndarray, dtype: str) -> ndarray:
    """Return values in another dtype, rounded to the nearest, ties to even. Spec: CKPT-03."""
    with np.errstate(over="ignore", invalid="ignore"):
        return values.astype(DTYPES[dtype])


def digest(
    checkpoint: Checkpoint, name: str, budget: working.Budget, *, casts: tuple[str, ...] = ()
) -> Digest:
    """Return a tensor's digest, and those of its values after casts. Errors: UsageError."""
    dtype, shape = checkpoint.dtype(name), checkpoint.tensors[name].shape
    own = Hasher(dtype, shape)
    others = {one: Hasher(one, shape) for one in casts if one != dtype}
    for piece in working.values(checkpoint, name, budget):
        own.add(piece)
        for one, hasher in others.items():
            hasher.add(cast(piece, one))
    return Digest(dtype, shape, own.digest(), {one: h.digest() for one, h in others.items()})


def all_digests(
    checkpoint: Checkpoint,
    budget: working.Budget,
    *,
    names: Iterable[str] | None = None,
    casts: Callable[[str], tuple[str, ...]] = lambda _: (),
    done: Callable[[int], None] = lambda _: None,
) -> dict[str, Digest]:
    """Return the digests of tensors by name, by default of all, the largest ones begun first.

    Errors: UsageError.
    """
    asked = checkpoint.tensors if names is None else names
    made = working.each(
        sorted(asked, key=lambda name: -checkpoint.size(name)),
        lambda name: digest(checkpoint, name, budget, casts=casts(name)),
        budget=budget,
        need=lambda name: working.need_of(checkpoint, name, budget),
        done=lambda name: done(checkpoint.size(name)),
    )
    return {name: made[name] for name in sorted(made)}


def require_weights(dtype: str, what: str) -> None:
    """Refuse a dtype that a weight cannot have. Errors: UsageError."""
    if dtype not in WEIGHTS:
        raise UsageError(f"{what}: must be one of {', '.join(WEIGHTS)}, got {dtype}")
