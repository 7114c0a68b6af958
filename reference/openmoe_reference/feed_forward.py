"""SPEC.md "The mixture-of-experts layer": the feed-forward that dense layers and experts share.

Line-comparable to flaxformer dense.py::MlpBlock@c5bdc41.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping
from functools import reduce

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from openmoe_reference.arguments import check_array, check_choice, check_names
from openmoe_reference.dtypes import DTYPES, matmul
from openmoe_spec.errors import RejectedError


def gated_mlp(
    inputs: Float[ndarray, "E S D"],
    wi_0: Float[ndarray, "E D F2"],
    wi_1: Float[ndarray, "E D F"],
    wo: Float[ndarray, "E F D"],
    *,
    dtype: str = "float32",
    activations: tuple[str, ...] = ("swiglu", "linear"),
) -> Float[ndarray, "E S D"]:
    """Return the feed-forward of each expert on its S slots: three projections multiplied.

    Errors: RejectedError MOE-11 on shapes, non-finite values or an unknown dtype.
    Spec: MOE-02, MOE-03, MOE-06. Source: dense.py::MlpBlock, dense.py::SwiGLU.
    """
    return feed_forward(
        inputs, {"wi_0": wi_0, "wi_1": wi_1, "wo": wo}, activations=activations, dtype=dtype
    )


def feed_forward(
    inputs: Float[ndarray, "E S D"],
    kernels: Mapping[str, ndarray],
    *,
    activations: tuple[str, ...] = ("swiglu", "linear"),
    dtype: str = "float32",
) -> Float[ndarray, "E S D"]:
    """Return the product of the activated projections times `wo`; E feed-forwards side by side.

    `kernels` holds wo [E, F, D] and one projection an activation: wi_0, wi_1, ..., or wi alone.
    Errors: RejectedError MOE-11 on shapes, non-finite values, an unknown dtype or activation.
    Spec: MOE-02, MOE-03, MODEL-04. Source: dense.py::MlpBlock.
    """
    check_choice("dtype", dtype, tuple(DTYPES), "MOE-11")
    check_feed_forward(inputs, kernels, activations)
    # Not the textbook's gate: `swiglu` needs a projection of width 2F, and its product with the
    # second projection makes the whole cubic.
    kind = DTYPES[dtype]
    factors = (
        ACTIVATIONS[activation](matmul(inputs, kernels[name], kind))  # [E, S, F]
        for name, activation in zip(projections(activations), activations, strict=True)
    )
    hidden = reduce(operator.mul, factors)
    return matmul(hidden, kernels["wo"], kind)  # [E, S, F] -> [E, S, D]


def projections(activations: tuple[str, ...]) -> tuple[str, ...]:
    """Return the names of the projections of a feed-forward. Source: dense.py::MlpBlock."""
    return ("wi",) if len(activations) == 1 else tuple(f"wi_{i}" for i in range(len(activations)))


def check_feed_forward(
    inputs: ndarray, kernels: Mapping[str, ndarray], activations: tuple[str, ...]
) -> None:
    """Refuse unknown activations, and kernels that do not belong to them. Spec: MOE-11."""
    if not isinstance(activations, tuple) or not activations:
        raise RejectedError("activations", "MOE-11", f"must be a tuple, got {activations!r}")
    for activation in activations:
        check_choice("activation", activation, tuple(ACTIVATIONS), "MOE-11")
    check_names("kernels", kernels, (*projections(activations), "wo"), "MOE-11")
    sizes: dict[str, int] = {}
    check_array("inputs", inputs, "E S D", sizes, "MOE-11")
    check_array("wo", kernels["wo"], "E F D", sizes, "MOE-11")
    for name, activation in reversed(list(zip(projections(activations), activations, strict=True))):
        width = "2F" if activation == "swiglu" else "F"
        check_array(name, kernels[name], f"E D {width}", sizes, "MOE-11")
        if width == "2F" and sizes["2F"] != 2 * sizes["F"]:
            raise RejectedError(
                name,
                "MOE-11",
                f"must be twice as wide as wo is long ({sizes['F']}), got {sizes['2F']}",
            )


def silu(x: Float[ndarray, "*shape"]) -> Float[ndarray, "*shape"]:
    """Return x * sigmoid(x), each step rounded to the dtype of `x`. Spec: MOE-03."""
    with np.errstate(over="ignore"):  # exp(-x) may overflow to infinity: the quotient is then 0
        one = np.ones((), x.dtype)
        return x * (one / (one + np.exp(-x)))


def _swiglu(x: Float[ndarray, "E S F2"]) -> Float[ndarray, "E S F"]:
    value, gate = np.split(x, 2, axis=-1)
    # The SECOND half is activated; loaders made for other models activate the first.
    return value * silu(gate)


def _gelu(x: Float[ndarray, "*shape"]) -> Float[ndarray, "*shape"]:
    inner = x.dtype.type(math.sqrt(2 / math.pi)) * (x + x.dtype.type(0.044715) * x**3)
    return x.dtype.type(0.5) * x * (1 + np.tanh(inner))


ACTIVATIONS: dict[str, Callable[[ndarray], ndarray]] = {
    "swiglu": _swiglu,
    "linear": lambda x: x,
    "swish": silu,
    "gelu": _gelu,
}
"""Activations by the training code's names; OpenMoE uses ("swiglu", "linear")."""
