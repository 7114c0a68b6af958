"""A function of the port called from NumPy: values checked, arrays moved, the program compiled once."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
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
    sized_by: str | None = None,
    **options: Any,
) -> Any:
    """Run `function` jitted on named arrays; other options are static.

    What goes `by_group` is compiled in one way whatever its size: the bits of its routing may not
    depend on how many groups share a call (ROUTE-17). A model is compiled as the size of its
    parameters says, whatever the batch: `sized_by` names them.
    Values are unknown inside a trace, so those that must be rejected are looked for before it.
    """
    moved = {
        name: jax.tree.map(jnp.asarray, value)
        for name, value in arrays.items()
        if value is not None
    }
    if "probabilities" in arrays and function is not losses.balance_loss:
        _require_float32(arrays["probabilities"])  # JAX would cut float64 down silently
    for name, array in _named(moved):
        if jnp.issubdtype(array.dtype, jnp.floating):
            least = 0 if name == "probabilities" else None
            require_floats(name, array, clause, least=least)
    sizing = moved if sized_by is None else moved[sized_by]
    size = sum(array.size for array in jax.tree.leaves(sizing) if isinstance(array, jax.Array))
    plain = size < _SMALL and not by_group
    return _jitted(function, tuple(sorted(options)), plain)(**moved, **options)


def _named(arrays: Mapping[str, Any]) -> Iterator[tuple[str, jax.Array]]:
    """Yield every array with its name, those of a mapping too; a record checks its own."""
    for name, value in arrays.items():
        inner = value if isinstance(value, Mapping) else {}
        yield from _named({f"{name}[{key!r}]": one for key, one in inner.items()})
        if isinstance(value, jax.Array):
            yield name, value


def _require_float32(probabilities: np.ndarray) -> None:
    if probabilities.dtype != np.float32:
        raise RejectedError(
            "probabilities", "ROUTE-20", f"must be float32, got {probabilities.dtype}"
        )


_SMALL = 2**15
"""Elements below which a program runs for microseconds: compiled without LLVM's optimisation, which
takes most of the time that a short run has."""


@cache
def options(*, plain: bool) -> dict[str, Any]:
    """Return the compiler's options: roundings to bfloat16 are kept, which XLA would leave out.

    A `plain` program has neither LLVM's optimisation nor kernels of fused loops.
    """
    exact = {"xla_allow_excess_precision": False}
    if not plain:
        return exact
    quick = exact | {"xla_backend_optimization_level": 0, "xla_cpu_use_fusion_emitters": False}
    try:
        jax.jit(jnp.negative, compiler_options=quick).lower(0.0).compile()
    except jax.errors.JaxRuntimeError:  # newer versions know no such kernels
        del quick["xla_cpu_use_fusion_emitters"]
    return quick


@cache
def _jitted(
    function: Callable[..., Any], static: tuple[str, ...], plain: bool
) -> Callable[..., Any]:
    return jax.jit(function, static_argnames=static, compiler_options=options(plain=plain))


def as_numpy(tree: Any) -> Any:
    """Return a tree of arrays with each moved to NumPy."""
    return jax.tree.map(np.asarray, tree)
