"""What a traced program consists of, so that clauses about structure can be read off it.

A CPU computes the same bits at every matrix-multiplication precision and never shows the order of
a scatter: what is asked of other devices stands only in the program. Spec: ROUTE-27, MOE-12, MOE-13.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax


def operations(function: Callable[..., Any], *arguments: Any) -> list[dict[str, Any]]:
    """Return every operation of `function` traced on arrays or shapes, inner programs included.

    Each has `name` (a JAX primitive), `precision` (of a matrix product: the lowest asked of its
    operands; else None), and `inputs` and `outputs` as lists of {shape, dtype}.
    """
    return list(_walk(jax.make_jaxpr(function)(*arguments).jaxpr))


def _walk(jaxpr: Any) -> Iterator[dict[str, Any]]:
    for equation in jaxpr.eqns:
        yield {
            "name": equation.primitive.name,
            "precision": _precision(equation.params.get("precision")),
            "inputs": [_shaped(variable) for variable in equation.invars],
            "outputs": [_shaped(variable) for variable in equation.outvars],
        }
        for value in equation.params.values():
            for inner in value if isinstance(value, tuple | list) else (value,):
                # Closed or open: JAX 0.10 has two classes for inner programs, 0.12 one.
                program = getattr(inner, "jaxpr", inner)
                if hasattr(program, "eqns"):
                    yield from _walk(program)


_LEVELS = ("default", "high", "highest")


def _precision(asked: Any) -> str | None:
    if asked is None:
        return None
    names = [str(one).rpartition(".")[2].lower() for one in _as_tuple(asked)]
    return min(names, key=lambda name: _LEVELS.index(name) if name in _LEVELS else -1)


def _as_tuple(value: Any) -> tuple[Any, ...]:
    return value if isinstance(value, tuple) else (value,)


def _shaped(variable: Any) -> dict[str, Any]:
    described = variable.aval
    return {
        "shape": [int(size) for size in getattr(described, "shape", ())],
        "dtype": str(getattr(described, "dtype", "")),
    }
