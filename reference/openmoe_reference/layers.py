"""SPEC.md "Layers": the feed-forward that dense layers and experts share.

Line-comparable to flaxformer dense.py::MlpBlock@c5bdc41.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from jaxtyping import Float
from numpy import ndarray

from openmoe_reference.arguments import check_array, check_choice
from openmoe_spec.errors import RejectedError

DTYPES: dict[str, Any] = {
    "float32": np.float32,
    "bfloat16": ml_dtypes.bfloat16,
    "float64": np.float64,  # for oracles only
}
"""The arithmetics of a feed-forward by name."""


def gated_mlp(
    inputs: Float[ndarray, "E S D"],
    wi_0: Float[ndarray, "E D F2"],
    wi_1: Float[ndarray, "E D F"],
    wo: Float[ndarray, "E F D"],
    *,
    dtype: str = "float32",
) -> Float[ndarray, "E S D"]:
    """Return the feed-forward of each expert on its S slots: three projections multiplied.

    Errors: RejectedError MOE-11 on shapes, non-finite values or an unknown dtype.
    Spec: MOE-02, MOE-03, MOE-06. Source: dense.py::MlpBlock, dense.py::SwiGLU.
    """
    check_choice("dtype", dtype, tuple(DTYPES), "MOE-11")
    sizes: dict[str, int] = {}
    check_array("inputs", inputs, "E S D", sizes, "MOE-11")
    check_array("wi_0", wi_0, "E D 2F", sizes, "MOE-11")
    check_array("wi_1", wi_1, "E D F", sizes, "MOE-11")
    check_array("wo", wo, "E F D", sizes, "MOE-11")
    if sizes["2F"] != 2 * sizes["F"]:
        raise RejectedError(
            "wi_0", "MOE-11", f"must be twice as wide as wi_1 ({sizes['F']}), got {sizes['2F']}"
        )
    kind = DTYPES[dtype]
    # Not the textbook's gate: `wi_0` is 2F wide and its product with `wi_1` makes it cubic.
    value, gate = np.split(_matmul(inputs, wi_0, kind), 2, axis=-1)  # [E, S, 2F] -> two [E, S, F]
    # The SECOND half is activated; loaders made for other models activate the first.
    hidden = value * _silu(gate) * _matmul(inputs, wi_1, kind)  # [E, S, F]
    return _matmul(hidden, wo, kind)  # [E, S, F] -> [E, S, D]


def _matmul(x: Float[ndarray, "E S D"], w: Float[ndarray, "E D F"], kind: Any) -> ndarray:
    """Return x @ w with operands and result rounded to `kind`; bfloat16 accumulates in float32."""
    if kind is not ml_dtypes.bfloat16:
        return x.astype(kind) @ w.astype(kind)
    product = x.astype(kind).astype(np.float32) @ w.astype(kind).astype(np.float32)
    return product.astype(kind)


def _silu(x: Float[ndarray, "E S F"]) -> Float[ndarray, "E S F"]:
    """Return x * sigmoid(x), each step rounded to the dtype of `x`."""
    with np.errstate(over="ignore"):  # exp(-x) may overflow to infinity: the quotient is then 0
        one = np.ones((), x.dtype)
        return x * (one / (one + np.exp(-x)))
