"""SPEC.md "Layers": embedding, norm, token mask, output projection.

Line-comparable to flaxformer embedding.py, layer_norm.py, t5_architecture.py@c5bdc41.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from openmoe_reference.arguments import check_array, check_choice, rows_of
from openmoe_reference.dtypes import DTYPES, matmul

EPSILON = 1e-6
"""What every norm adds to the mean of squares."""


def embed(
    table: Float[ndarray, "V D"], ids: Int[ndarray, "B L"], *, dtype: str = "float32"
) -> Float[ndarray, "B L D"]:
    """Return each id's row rounded to `dtype`, not scaled; an id that is none gives zeros.

    Errors: RejectedError LAYER-08 on shapes, values that are not finite, ids that are no integers.
    Spec: LAYER-01, LAYER-02. Source: embedding.py::Embed.
    """
    sizes: dict[str, int] = {}
    check_choice("dtype", dtype, tuple(DTYPES), "LAYER-08")
    check_array("table", table, "V D", sizes, "LAYER-08")
    check_array("ids", ids, "B L", sizes, "LAYER-08", kind="i")
    known = (ids >= 0) & (ids < sizes["V"])
    rows = table.astype(DTYPES[dtype])[np.where(known, ids, 0)]  # [B, L] -> [B, L, D]
    # Upstream multiplies a one-hot row with the table, so an unknown id selects nothing.
    return np.where(known[..., None], rows, np.zeros((), rows.dtype))


def rms_norm(
    inputs: Float[ndarray, "*rows D"], scale: Float[ndarray, " D"], *, dtype: str = "float32"
) -> Float[ndarray, "*rows D"]:
    """Return inputs over their root mean square, times `scale`: no mean is subtracted, no bias.

    Statistics are float32; the quotient is rounded to `dtype` BEFORE the product with `scale`.
    Errors: RejectedError LAYER-08 on shapes and values that are not finite.
    Spec: LAYER-03, LAYER-04. Source: layer_norm.py::T5LayerNorm.
    """
    check_choice("dtype", dtype, tuple(DTYPES), "LAYER-08")
    sizes: dict[str, int] = {}
    check_array("inputs", inputs, f"{rows_of(inputs)}D", sizes, "LAYER-08")
    check_array("scale", scale, "D", sizes, "LAYER-08")
    kind = DTYPES[dtype]
    wide: type[np.floating] = np.float64 if dtype == "float64" else np.float32
    x: ndarray = inputs.astype(wide)
    mean_square = (x * x).mean(axis=-1, keepdims=True, dtype=x.dtype)
    y = x * (1 / np.sqrt(mean_square + x.dtype.type(EPSILON)))
    return y.astype(kind) * scale.astype(kind)


def token_mask(input_ids: Int[ndarray, "B L"]) -> Bool[ndarray, "B L"]:
    """Return which positions carry a token: its id or the next one is above 0, or it is the first.

    A packed segment begins with id 0; the id after it keeps that position.
    Errors: RejectedError LAYER-08 on anything but integers [B, L].
    Spec: LAYER-05. Source: dense_attention.py::get_decoder_logit_mask.
    """
    check_array("input_ids", input_ids, "B L", {}, "LAYER-08", kind="i")
    here = input_ids > 0
    following = np.pad(here[:, 1:], ((0, 0), (0, 1)))  # nothing follows the last position
    first = np.arange(input_ids.shape[1]) == 0
    return here | following | first


def every_token(input_ids: Int[ndarray, "B L"]) -> Bool[ndarray, "B L"]:
    """Return a mask that hides nothing: the port knows no other.

    Spec: DIAL-02. Source: modeling_openmoe.py::OpenMoeModel.forward@95e3378e.
    """
    check_array("input_ids", input_ids, "B L", {}, "LAYER-08", kind="i")
    return np.ones(input_ids.shape, bool)


def output_logits(
    inputs: Float[ndarray, "B L D"],
    kernel: Float[ndarray, "D V"],
    *,
    mask: Bool[ndarray, "B L"] | None = None,
    dtype: str = "float32",
) -> Float[ndarray, "B L V"]:
    """Return logits of normed inputs: masked positions are exactly 0, the product is `dtype`'s.

    The kernel is one of its own, not the embedding's, and nothing is divided by sqrt(D).
    Errors: RejectedError LAYER-08 on shapes and values that are not finite.
    Spec: LAYER-06, LAYER-07. Source: t5_architecture.py::Decoder, moe_decoder_only.gin@c5bdc41.
    """
    sizes: dict[str, int] = {}
    check_choice("dtype", dtype, tuple(DTYPES), "LAYER-08")
    check_array("inputs", inputs, "B L D", sizes, "LAYER-08")
    check_array("kernel", kernel, "D V", sizes, "LAYER-08")
    if mask is not None:
        check_array("mask", mask, "B L", sizes, "LAYER-08", kind="b")
        inputs = inputs * mask[..., None].astype(inputs.dtype)
    product = matmul(inputs, kernel, DTYPES[dtype])
    return product.astype(np.float64 if dtype == "float64" else np.float32)
