"""Every tensor of a model: name, shape, logical axes; computed from a configuration, never allocated.

Names are those of the training code's checkpoints, without their prefix `target/`.
Spec: PARAM-01..PARAM-04. Source: flaxformer moe_architecture.py, dense.py, dense_attention.py@c5bdc41.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError


@dataclass(frozen=True)
class Parameter:
    """One tensor: its name, its shape, and a logical name of each axis."""

    name: str
    shape: tuple[int, ...]
    axes: tuple[str, ...]

    @property
    def size(self) -> int:
        """Return the number of elements."""
        return math.prod(self.shape)


LAYOUTS = ("MIXED", "TOP", "BOTTOM", "MIDDLE")
"""Ways of the training code to place sparse layers; the models were built with MIXED."""


def sparse_layers(num_layers: int, num_sparse: int, layout: str = "MIXED") -> tuple[int, ...]:
    """Return the indices of the mixture-of-experts layers, counted from 0.

    Errors: RejectedError PARAM-02 on an unknown layout, or counts that do not fit it.
    Spec: PARAM-02. Source: moe_architecture.py::SparseDecoder._is_sparse_layer.
    """
    if layout not in LAYOUTS:
        raise RejectedError("layout", "PARAM-02", f"must be one of {LAYOUTS}, got {layout!r}")
    if not 0 <= num_sparse <= num_layers:
        raise RejectedError("num_sparse", "PARAM-02", f"must be in 0..{num_layers}")
    if not num_sparse:
        return ()
    if layout == "MIXED":
        if num_layers % num_sparse:
            raise RejectedError("num_sparse", "PARAM-02", f"must divide {num_layers} layers")
        interval = num_layers // num_sparse
        return tuple(range(interval - 1, num_layers, interval))
    if layout == "BOTTOM":
        return tuple(range(num_sparse))
    if layout == "TOP":
        return tuple(range(num_layers - num_sparse, num_layers))
    low, high = num_layers - num_sparse, num_layers + num_sparse
    return tuple(i for i in range(num_layers) if low <= 2 * i < high)


def parameters(configuration: Configuration, *, doubled_gate: bool = True) -> tuple[Parameter, ...]:
    """Return every tensor of the model, in the order of the forward pass.

    `doubled_gate` False gives the feed-forward of the paper's text: three matrices, wi_0 [D, F].
    Spec: PARAM-01, PARAM-03.
    """
    return tuple(_walk(configuration, 2 if doubled_gate else 1))


def _walk(c: Configuration, gate: int) -> Iterator[Parameter]:
    width, inner = c.embed_dim, c.num_heads * c.head_dim
    of_keys = c.key_value_heads * c.head_dim
    yield Parameter("token_embedder/embedding", (c.vocabulary_size, width), ("vocab", "embed"))
    sparse = sparse_layers(c.num_layers, c.num_moe_layers)
    for i in range(c.num_layers):
        layer = f"decoder/layers_{i}"
        yield Parameter(f"{layer}/pre_self_attention_layer_norm/scale", (width,), ("embed",))
        for name, size in (("query", inner), ("key", of_keys), ("value", of_keys)):
            path = f"{layer}/self_attention/{name}/kernel"
            yield Parameter(path, (width, size), ("embed", "joined_kv"))
        path = f"{layer}/self_attention/out/kernel"
        yield Parameter(path, (inner, width), ("joined_kv", "embed"))
        yield Parameter(f"{layer}/pre_mlp_layer_norm/scale", (width,), ("embed",))
        if i not in sparse:
            yield from _feed_forward(f"{layer}/mlp", width, c.mlp_dim, gate)
            continue
        path = f"{layer}/mlp/router/router_weights/w/kernel"
        yield Parameter(path, (width, c.num_experts), ("embed", "unmodeled"))
        for one in _feed_forward(f"{layer}/mlp/expert", width, c.expert_width, gate):
            axes = tuple("expert_mlp" if axis == "mlp" else axis for axis in one.axes)
            yield Parameter(one.name, (c.num_experts, *one.shape), ("expert", *axes))
        yield Parameter(f"{layer}/pre_extra_mlp_layer_norm/scale", (width,), ("embed",))
        yield from _feed_forward(f"{layer}/extra_mlp", width, c.mlp_dim, gate)
    yield Parameter("decoder/decoder_norm/scale", (width,), ("embed",))
    yield Parameter("decoder/logits_dense/kernel", (width, c.vocabulary_size), ("embed", "vocab"))


def _feed_forward(path: str, width: int, hidden: int, gate: int) -> Iterator[Parameter]:
    up = ("mlp_embed", "mlp")
    yield Parameter(f"{path}/wi_0/kernel", (width, gate * hidden), up)
    yield Parameter(f"{path}/wi_1/kernel", (width, hidden), up)
    yield Parameter(f"{path}/wo/kernel", (hidden, width), up[::-1])


@dataclass(frozen=True)
class Counts:
    """Numbers of elements: of the whole model, and of what one token uses.

    total             all tensors
    vocabulary        one vocabulary matrix; the model has two, not tied
    experts           the experts of all layers
    activated         what one token uses, K experts a layer, without both vocabulary matrices
    """

    total: int
    vocabulary: int
    experts: int
    activated: int


def count(configuration: Configuration, *, doubled_gate: bool = True) -> Counts:
    """Return the sizes of a model. Spec: PARAM-04."""
    tensors = parameters(configuration, doubled_gate=doubled_gate)
    total = sum(tensor.size for tensor in tensors)
    experts = sum(tensor.size for tensor in tensors if "expert" in tensor.axes)
    vocabulary = configuration.vocabulary_size * configuration.embed_dim
    used = experts // configuration.num_experts * configuration.num_selected_experts
    return Counts(total, vocabulary, experts, total - 2 * vocabulary - experts + used)
