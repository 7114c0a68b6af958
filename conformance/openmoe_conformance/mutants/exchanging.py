"""What most mutants of a model are: one of its functions, or a step of attention, is another."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.reference_model_adapter import Dialect
from openmoe_reference import attention, model
from openmoe_reference.dtypes import DTYPES, matmul


class Exchanged(ReferenceAdapter):
    """The reference with other rules, in a model and alone: `class Wrong(Exchanged, norm=wrong)`."""

    _exchanged: Mapping[str, Callable[..., Any]] = MappingProxyType({})

    def __init_subclass__(cls, **exchanged: Callable[..., Any]) -> None:
        super().__init_subclass__()
        cls._exchanged = exchanged

    def rules(self, dialect: Dialect | None = None) -> model.Rules:
        return replace(super().rules(dialect), **self._exchanged)  # type: ignore[arg-type]


Attention = Callable[..., tuple[ndarray, ndarray, ndarray]]


def composed(
    *,
    turn: Callable[[ndarray, ndarray], ndarray] = attention.rotate,
    turn_keys: Callable[[ndarray, ndarray], ndarray] | None = None,
    turn_values: Callable[[ndarray, ndarray], ndarray] = lambda heads, _: heads,
    mix: Callable[..., ndarray] = attention.attend,
) -> Attention:
    """Return an attention with other steps; one with a cache stays as it is."""

    def run(
        inputs: ndarray,
        kernels: Mapping[str, ndarray],
        bias: ndarray | None,
        *,
        num_heads: int,
        dtype: str = "float32",
        positions: ndarray | None = None,
        cache: Any = None,
    ) -> tuple[ndarray, ndarray, ndarray]:
        right = attention.attention(
            *(inputs, kernels, bias),
            num_heads=num_heads,
            dtype=dtype,
            positions=positions,
            cache=cache,
        )
        if cache is not None:
            return right
        _, keys, values = right
        rows, length, _, head_dim = keys.shape
        places, kind = np.arange(length), DTYPES[dtype]
        queries = matmul(inputs, kernels["query"], kind).reshape(rows, length, -1, head_dim)
        mixed = mix(
            turn(queries, places),
            (turn_keys or turn)(keys, places),
            turn_values(values, places),
            bias,
        )
        return matmul(mixed.reshape(rows, length, -1), kernels["out"], kind), keys, values

    return run
