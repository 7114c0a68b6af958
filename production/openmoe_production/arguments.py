"""What the public functions refuse. Shapes are checked always, values only outside a trace."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from openmoe_spec.errors import RejectedError


def require_count(name: str, value: Any, clause: str, *, most: int | None = None) -> None:
    """Refuse anything but a whole number from 1 to `most`."""
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < 1 or (most is not None and value > most):
        limit = "1 or more" if most is None else f"in 1..{most}"
        raise RejectedError(name, clause, f"must be a whole number, {limit}, got {value!r}")


def require_factor(name: str, value: Any, clause: str) -> None:
    """Refuse anything but a finite number above 0."""
    number = isinstance(value, int | float | np.number) and not isinstance(value, bool)
    if not number or not 0 < value <= np.finfo(np.float64).max:
        raise RejectedError(name, clause, f"must be a finite number above 0, got {value!r}")


def require_shape(
    name: str, array: jax.Array, wanted: Mapping[str, int | None], clause: str
) -> None:
    """Refuse an array whose axes are not those of `wanted` (None: any size of at least 1)."""
    shape = "[" + ", ".join(wanted) + "]"
    sizes = {letter: size for letter, size in wanted.items() if size is not None}
    fits = array.ndim == len(wanted) and all(
        actual >= 1 and size in (None, actual)
        for size, actual in zip(wanted.values(), array.shape, strict=True)
    )
    if not fits:
        known = "".join(f", {letter} = {size}" for letter, size in sizes.items())
        raise RejectedError(name, clause, f"must have shape {shape}{known}, got {array.shape}")


def require_floats(name: str, array: jax.Array, clause: str, *, least: float | None = None) -> None:
    """Refuse other dtypes than floating point; outside a trace also infinities and values < least."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise RejectedError(name, clause, f"must hold floating-point numbers, got {array.dtype}")
    if isinstance(array, jax.core.Tracer):
        return  # values are not known here; the caller checks them before jit
    values = np.asarray(array).astype(np.float32)
    if not np.isfinite(values).all():
        raise RejectedError(name, clause, "must be finite, got infinity or not-a-number")
    if least is not None and (values < least).any():
        raise RejectedError(name, clause, f"must be {least:g} or more, got {values.min():g}")


def require_integers(name: str, array: Any, clause: str, *, least: int, most: int) -> None:
    """Refuse other dtypes than integers; outside a trace also values outside `least`..`most`."""
    if not jnp.issubdtype(array.dtype, jnp.integer):
        raise RejectedError(name, clause, f"must hold integers, got {array.dtype}")
    if isinstance(array, jax.core.Tracer):
        return
    values = np.asarray(array)
    if values.min() < least or values.max() > most:
        raise RejectedError(
            name, clause, f"must be in {least}..{most}, got {values.min()}..{values.max()}"
        )


def require_mask(
    name: str, array: jax.Array, wanted: Mapping[str, int | None], clause: str
) -> None:
    """Refuse anything but booleans of the wanted axes."""
    require_shape(name, array, wanted, clause)
    if array.dtype != jnp.bool_:
        raise RejectedError(name, clause, f"must hold booleans, got {array.dtype}")
