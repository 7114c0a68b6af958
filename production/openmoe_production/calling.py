"""A function of the port called from NumPy: values checked, arrays moved, the program compiled once."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from openmoe_production import losses
from openmoe_production.arguments import require_floats
from openmoe_spec.errors import RejectedError


def call(
    function: Callable[..., Any],
    clause: str,
    arrays: Mapping[str, Any],
    *,
    by_group: bool = False,
    **options: Any,
) -> Any:
    """Run `function` jitted on named arrays; other options are static.

    What goes `by_group` is compiled in one way whatever its size: the bits of its routing may not
    depend on how many groups share a call (ROUTE-17).
    Values are unknown inside a trace, so those that must be rejected are looked for before it.
    """
    moved = {
        name: jax.tree.map(jnp.asarray, value)
        for name, value in arrays.items()
        if value is not None
    }
    if "probabilities" in arrays and function is not losses.balance_loss:
        _require_float32(arrays["probabilities"])  # JAX would cut float64 down silently
    for name, array in moved.items():
        if isinstance(array, jax.Array) and jnp.issubdtype(array.dtype, jnp.floating):
            least = 0 if name == "probabilities" else None
            require_floats(name, array, clause, least=least)
    size = sum(array.size for array in jax.tree.leaves(moved) if isinstance(array, jax.Array))
    plain = size < _SMALL and not by_group
    return _jitted(function, tuple(sorted(options)), plain)(**moved, **options)


def _require_float32(probabilities: np.ndarray) -> None:
    if probabilities.dtype != np.float32:
        raise RejectedError(
            "probabilities", "ROUTE-20", f"must be float32, got {probabilities.dtype}"
        )


_SMALL = 2**15
"""Elements below which a program runs for microseconds: compiled without LLVM's optimisation, which
takes most of the time that a short run has."""


@cache
def _jitted(
    function: Callable[..., Any], static: tuple[str, ...], plain: bool
) -> Callable[..., Any]:
    options = {"xla_backend_optimization_level": 0} if plain else None
    return jax.jit(function, static_argnames=static, compiler_options=options)
