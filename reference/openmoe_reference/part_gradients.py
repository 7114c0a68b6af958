"""Gradients of the parts of a model in float64 NumPy, by hand: what reverse mode must give.

Derived from the clauses on paper and not by a library; central differences of the float64
reference confirm them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import numpy as np
from numpy import ndarray

from openmoe_reference import attention, cross_entropy
from openmoe_reference.arguments import check_array, check_finite, check_integer
from openmoe_reference.feed_forward import check_feed_forward, projections
from openmoe_reference.layers import EPSILON


def embedding_gradient(ids: ndarray, cotangent: ndarray, *, vocabulary_size: int) -> ndarray:
    """Return the gradient [V, D] of the table: each id's row adds up its cotangents.

    Spec: LAYER-09. Source: embedding.py::Embed, differentiated.
    """
    sizes: dict[str, int] = {}
    check_array("ids", ids, "B L", sizes, "LAYER-08", kind="i")
    check_array("cotangent", cotangent, "B L D", sizes, "LAYER-08")
    check_integer("vocabulary_size", vocabulary_size, "LAYER-08", least=1)
    gradient = np.zeros((vocabulary_size, cotangent.shape[-1]))
    known = (ids >= 0) & (ids < vocabulary_size)  # an unknown id has zeros, so no gradient
    np.add.at(gradient, ids[known], cotangent[known].astype(np.float64))
    return gradient


def frozen_start_gradient(ids: ndarray, cotangent: ndarray, *, vocabulary_size: int) -> ndarray:
    """Return the same with the row of id 0 at 0: the port never trains it. Spec: DIAL-02.

    Source: modeling_openmoe.py::OpenMoeModel (`padding_idx`)@95e3378e.
    """
    gradient = embedding_gradient(ids, cotangent, vocabulary_size=vocabulary_size)
    gradient[0] = 0
    return gradient


def norm_gradients(inputs: ndarray, scale: ndarray, cotangent: ndarray) -> dict[str, ndarray]:
    """Return gradients `inputs` and `scale` of a norm. Spec: LAYER-09.

    Source: layer_norm.py::T5LayerNorm, differentiated.
    """
    sizes: dict[str, int] = {}
    check_array("inputs", inputs, "B L D", sizes, "LAYER-08")
    check_array("scale", scale, "D", sizes, "LAYER-08")
    check_array("cotangent", cotangent, "B L D", sizes, "LAYER-08")
    x, g = inputs.astype(np.float64), cotangent.astype(np.float64)
    inverse = 1 / np.sqrt((x * x).mean(axis=-1, keepdims=True) + EPSILON)
    d_y = g * scale
    d_x = inverse * d_y - x * inverse**3 * (d_y * x).mean(axis=-1, keepdims=True)
    return {"inputs": d_x, "scale": (g * x * inverse).sum(axis=(0, 1))}


def feed_forward_gradients(
    inputs: ndarray,
    kernels: Mapping[str, ndarray],
    cotangent: ndarray,
    *,
    activations: tuple[str, ...] = ("swiglu", "linear"),
) -> dict[str, ndarray]:
    """Return gradients `inputs` and those of the kernels [E, ...] of feed-forwards.

    Spec: MODEL-08. Source: dense.py::MlpBlock, differentiated.
    """
    check_feed_forward(inputs, kernels, activations)
    sizes = dict(zip("ESD", inputs.shape, strict=True))
    check_array("cotangent", cotangent, "E S D", sizes, "MOE-11")
    x, names = inputs.astype(np.float64), projections(activations)
    ups = [np.einsum("esd,edf->esf", x, kernels[name].astype(np.float64)) for name in names]
    pairs = [SLOPES[one](up) for one, up in zip(activations, ups, strict=True)]
    factors = [value for value, _ in pairs]
    hidden = np.multiply.reduce(factors)
    d_hidden = np.einsum("esd,efd->esf", cotangent, kernels["wo"])
    gradients = {"wo": np.einsum("esf,esd->efd", hidden, cotangent)}
    d_x = np.zeros(x.shape)
    for i, name in enumerate(names):
        others = np.multiply.reduce([np.ones(hidden.shape), *factors[:i], *factors[i + 1 :]])
        d_up = pairs[i][1](d_hidden * others)
        gradients[name] = np.einsum("esd,esf->edf", x, d_up)
        d_x += np.einsum("esf,edf->esd", d_up, kernels[name])
    return {"inputs": d_x, **gradients}


_Backward = Callable[[ndarray], ndarray]


def _linear(x: ndarray) -> tuple[ndarray, _Backward]:
    return x, lambda g: g


def _swish(x: ndarray) -> tuple[ndarray, _Backward]:
    with np.errstate(over="ignore"):
        sigmoid = 1 / (1 + np.exp(-x))
    return x * sigmoid, lambda g: g * sigmoid * (1 + x * (1 - sigmoid))


def _swiglu(x: ndarray) -> tuple[ndarray, _Backward]:
    value, gate = np.split(x, 2, axis=-1)
    activated, backward = _swish(gate)
    return value * activated, lambda g: np.concatenate(
        [g * activated, backward(g * value)], axis=-1
    )


def _gelu(x: ndarray) -> tuple[ndarray, _Backward]:
    root = np.sqrt(2 / np.pi)
    tanh = np.tanh(root * (x + 0.044715 * x**3))
    slope = 0.5 * (1 + tanh) + 0.5 * x * (1 - tanh**2) * root * (1 + 3 * 0.044715 * x**2)
    return 0.5 * x * (1 + tanh), lambda g: g * slope


SLOPES: dict[str, Callable[[ndarray], tuple[ndarray, _Backward]]] = {
    "linear": _linear,
    "swish": _swish,
    "swiglu": _swiglu,
    "gelu": _gelu,
}
"""Value and backward pass of each activation."""


def attention_gradients(
    inputs: ndarray,
    kernels: Mapping[str, ndarray],
    bias: ndarray | None,
    cotangent: ndarray,
    *,
    num_heads: int,
) -> dict[str, ndarray]:
    """Return gradients `inputs`, `query`, `key`, `value` and `out` of one attention.

    Spec: ATTN-13. Source: dense_attention.py::MultiHeadDotProductAttention, differentiated.
    """
    sizes = attention.check_attention(inputs, kernels, num_heads)
    check_array("cotangent", cotangent, "B Q D", sizes, "ATTN-12")
    if bias is not None:
        length = {"L": sizes["Q"]}
        check_array("bias", bias, "B Q L", sizes | length, "ATTN-12")
    x, g = inputs.astype(np.float64), cotangent.astype(np.float64)
    w = {name: kernels[name].astype(np.float64) for name in attention.KERNELS}
    head_dim = w["query"].shape[1] // num_heads
    heads = {name: (x @ w[name]).reshape(*x.shape[:2], -1, head_dim) for name in w if name != "out"}
    repeats = num_heads // heads["key"].shape[2]
    places = np.arange(x.shape[1])
    q = attention.rotate(heads["query"], places)
    k = np.repeat(attention.rotate(heads["key"], places), repeats, axis=2)
    v = np.repeat(heads["value"], repeats, axis=2)
    logits = np.einsum("bqhn,blhn->bhql", q, k)
    logits = logits if bias is None else logits + bias[:, None] * 2.0**29  # as in `attend`
    p = np.exp(logits - logits.max(axis=-1, keepdims=True))
    p /= p.sum(axis=-1, keepdims=True)
    mixed = np.einsum("bhql,blhn->bqhn", p, v).reshape(*x.shape[:2], -1)

    d_mixed = (g @ w["out"].T).reshape(q.shape)
    d_p = np.einsum("bqhn,blhn->bhql", d_mixed, v)
    d_logits = p * (d_p - (p * d_p).sum(axis=-1, keepdims=True))
    d_heads = {
        "query": _rotated_back(np.einsum("bhql,blhn->bqhn", d_logits, k), places),
        "key": _rotated_back(_folded(np.einsum("bhql,bqhn->blhn", d_logits, q), repeats), places),
        "value": _folded(np.einsum("bhql,bqhn->blhn", p, d_mixed), repeats),
    }
    flat = {name: one.reshape(*x.shape[:2], -1) for name, one in d_heads.items()}
    gradients = {name: np.einsum("bld,blf->df", x, one) for name, one in flat.items()}
    return {
        "inputs": sum(one @ w[name].T for name, one in flat.items()),
        **gradients,
        "out": np.einsum("blf,bld->fd", mixed, g),
    }


def _rotated_back(cotangent: ndarray, places: ndarray) -> ndarray:
    """Return the transpose of `attention.rotate`."""
    sine, cosine = (
        one.astype(np.float64)[:, None, :]
        for one in attention.rotary_tables(places, cotangent.shape[-1])
    )
    first, second = np.split(cotangent * sine, 2, axis=-1)
    return cotangent * cosine + np.concatenate([second, -first], axis=-1)


def _folded(heads: ndarray, repeats: int) -> ndarray:
    """Return the transpose of repeating each head of keys or values `repeats` times."""
    batch, length, count, width = heads.shape
    return heads.reshape(batch, length, count // repeats, repeats, width).sum(axis=3)


def cross_entropy_gradient(
    logits: ndarray,
    targets: ndarray,
    *,
    weights: ndarray | None = None,
    normalizing_factor: float | None = None,
    z_loss: float = 0.0,
    label_smoothing: float = 0.0,
) -> ndarray:
    """Return the gradient [B, L, V] of the loss, its z-loss included.

    Spec: LOSS-18. Source: losses.py::_cross_entropy_with_logits_bwd.
    """
    sizes = cross_entropy.check_targets(logits, targets, weights)
    check_finite("z_loss", z_loss, "LOSS-25")
    wide = logits.astype(np.float64)
    on, off, _ = cross_entropy.smoothing(label_smoothing, sizes["V"], wide.dtype)
    soft = np.where(targets[..., None] == np.arange(sizes["V"]), on, off)
    log_z = cross_entropy.logsumexp(wide)[..., None]
    gradient = (1 + 2 * z_loss * log_z) * np.exp(wide - log_z) - soft
    if weights is not None:
        gradient = gradient * weights[..., None]
    divisor = 1.0 if normalizing_factor is None else normalizing_factor
    return gradient / cross_entropy.check_divisor(divisor)
