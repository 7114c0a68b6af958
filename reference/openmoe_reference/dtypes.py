"""The arithmetics of a model by name, and a matrix product in each."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float
from numpy import ndarray

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float64": np.float64,  # for oracles only
}
"""The arithmetics of a model by name."""


def matmul(x: Float[ndarray, "*rows D"], w: Float[ndarray, "*stack D F"], kind: Any) -> ndarray:
    """Return x @ w with operands and result rounded to `kind`; bfloat16 accumulates in float32."""
    if kind is not ml_dtypes.bfloat16:
        return x.astype(kind) @ w.astype(kind)
    product = x.astype(kind).astype(np.float32) @ w.astype(kind).astype(np.float32)
    return product.astype(kind)
