"""Regions of tensors: cut into blocks, and turned or split as a layout has them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator

import numpy as np
from numpy import ndarray

from openmoe_spec.places import Region, whole


def blocks(
    shape: tuple[int, ...], itemsize: int, limit: int, multiple: int = 1
) -> Iterator[Region]:
    """Yield regions that follow each other in C order; rows by multiples of a number where they fit."""
    size = math.prod(shape) * itemsize
    if size <= limit or not shape:
        yield whole(shape)
        return
    inner = math.prod(shape[1:]) * itemsize
    if len(shape) > 2 and inner > limit:
        for i in range(shape[0]):
            for region in blocks(shape[1:], itemsize, limit, multiple):
                yield ((i, i + 1), *region)
        return
    step = max(1, limit // max(1, inner))
    if len(shape) <= 2 and step >= multiple:
        step -= step % multiple
    for start in range(0, shape[0], step):
        yield ((start, min(start + step, shape[0])), *whole(shape[1:]))


STRIP = 32
"""Rows that are transposed together: more would leave the cores' caches between reading and writing."""


CACHED = 1 << 18
"""Bytes of a strip that is read and turned at once."""


def turn(x: ndarray, out: ndarray) -> None:
    """Write the last two axes exchanged: by strips, several times as fast as a copy of the view."""
    for start in range(0, x.shape[-2], STRIP):
        part = slice(start, start + STRIP)
        out[..., part] = x[..., part, :].swapaxes(-1, -2)


def _transposed(x: ndarray) -> ndarray:
    out = np.empty((*x.shape[:-2], x.shape[-1], x.shape[-2]), x.dtype)
    turn(x, out)
    return out


_OPERATIONS: dict[str, Callable[[ndarray], ndarray]] = {
    "transpose": _transposed,
    "split_halves": lambda x: x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2),
    "join_halves": lambda x: x.reshape(*x.shape[:-2], -1),
}


def apply(operations: tuple[str, ...], array: ndarray) -> ndarray:
    """Return an array after operations of `layouts.INVERSES`."""
    for name in operations:
        array = _OPERATIONS[name](array)
    return array
