"""SPEC.md "The model": the gradient of the training loss in every tensor, in float64 by hand.

The forward pass is `model.forward`, in float64 unless `call` says otherwise; its activations are read
from behind, always in float64. Decisions are constants: no gradient flows through a choice. Normative
dialect only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy import ndarray

from openmoe_reference import (
    attention,
    cross_entropy,
    gradients,
    grouping,
    layers,
    masks,
    model,
    part_gradients,
    routing,
)
from openmoe_reference.dtypes import DTYPES
from openmoe_spec.config import Configuration
from openmoe_spec.parameters import sparse_layers
from openmoe_spec.records import ForwardResult


def model_gradients(
    parameters: Mapping[str, ndarray],
    batch: Mapping[str, ndarray],
    configuration: Configuration,
    *,
    call: model.Call | None = None,
    of_embedding: Callable[..., ndarray] = part_gradients.embedding_gradient,
) -> tuple[dict[str, float], dict[str, ndarray]]:
    """Return the parts of the loss and the gradient of `total` in each tensor, float64.

    Errors: as `model.forward` and `cross_entropy.total_loss`.
    Spec: MODEL-08. Source: contrib/moe/models.py::MoeDecoderOnlyModel.loss_fn, differentiated.
    """
    call = call or model.Call(dtype="float64")
    passed = model.forward(parameters, batch, configuration, call=call)
    passed = _widened(passed)
    wide = {
        name: _rounded(name, value, call).astype(np.float64) for name, value in parameters.items()
    }
    parts = cross_entropy.total_loss(passed.logits, batch, passed.metrics, configuration)
    divisor, weights = cross_entropy.normalizer("NUM_REAL_TARGET_TOKENS", batch)
    d_logits = part_gradients.cross_entropy_gradient(
        passed.logits,
        batch["decoder_target_tokens"],
        weights=weights,
        normalizing_factor=float(divisor),
        z_loss=configuration.z_loss_factor,
        label_smoothing=configuration.label_smoothing,
    )
    ids = batch["decoder_input_tokens"]
    reasons = masks.visible_by_targets(
        batch, bidirectional=configuration.inputs_bidirectional_attention
    )
    bias = masks.finite_bias(reasons)
    back = _Back(wide, passed, layers.token_mask(ids)[..., None], bias, configuration, call)
    d_x = back.head(d_logits)
    for i in reversed(range(configuration.num_layers)):
        d_x = back.layer(d_x, i)
    back.found["token_embedder/embedding"] = of_embedding(
        ids, d_x, vocabulary_size=configuration.vocabulary_size
    )
    return {name: float(value) for name, value in parts.items()}, back.found


def _widened(passed: ForwardResult) -> ForwardResult:
    assert passed.activations is not None
    wide = {name: value.astype(np.float64) for name, value in passed.activations.items()}
    return replace(passed, logits=passed.logits.astype(np.float64), activations=wide)


def _rounded(name: str, value: ndarray, call: model.Call) -> ndarray:
    """Return a tensor as the pass multiplied with it: router and output projection are float32."""
    if name.endswith(("router_weights/w/kernel", "logits_dense/kernel")):
        return value
    dtype = call.expert_dtype if "/expert/" in name else None
    return value.astype(DTYPES[dtype or call.dtype])


@dataclass
class _Back:
    """The way back through a pass: what it reads, and the gradients it has found."""

    parameters: Mapping[str, ndarray]
    passed: ForwardResult
    mask: ndarray
    bias: ndarray
    configuration: Configuration
    call: model.Call
    found: dict[str, ndarray] = field(default_factory=dict)

    def head(self, d_logits: ndarray) -> ndarray:
        acts, kernel = self.passed.activations, self.parameters["decoder/logits_dense/kernel"]
        assert acts is not None
        normed = acts["decoder/decoder_norm"] * self.mask
        self.found["decoder/logits_dense/kernel"] = np.einsum("bld,blv->dv", normed, d_logits)
        last = self._stream(self.configuration.num_layers)
        return self._norm("decoder/decoder_norm", last, d_logits @ kernel.T)

    def layer(self, d_out: ndarray, index: int) -> ndarray:
        """Return the cotangent of a layer's input; sublayers are undone last to first."""
        acts, name = self.passed.activations, f"decoder/layers_{index}"
        assert acts is not None
        start = self._stream(index)
        middle = start + acts[f"{name}/self_attention"]
        d_x = d_out
        if self._is_sparse(index):
            d_x = d_x + self._sublayer(
                f"{name}/pre_extra_mlp_layer_norm",
                acts[name],
                lambda x: self._feed_forward(f"{name}/extra_mlp", x, d_out),
            )
        d_after = d_x
        undo = self._experts if self._is_sparse(index) else self._dense
        d_x = d_x + self._sublayer(
            f"{name}/pre_mlp_layer_norm", middle, lambda x: undo(index, x, d_after)
        )
        d_middle = d_x
        return d_x + self._sublayer(
            f"{name}/pre_self_attention_layer_norm",
            start,
            lambda x: self._attention(f"{name}/self_attention", x, d_middle),
        )

    def _stream(self, index: int) -> ndarray:
        """Return the residual stream before layer `index`."""
        acts = self.passed.activations
        assert acts is not None
        if index == 0:
            return acts["token_embedder"]
        name = f"decoder/layers_{index - 1}"
        extra = acts[f"{name}/extra_mlp"] if self._is_sparse(index - 1) else 0
        return np.asarray(acts[name] + extra)

    def _is_sparse(self, index: int) -> bool:
        c = self.configuration
        return index in sparse_layers(c.num_layers, c.num_moe_layers)

    def _sublayer(self, norm: str, stream: ndarray, undo: Callable[[ndarray], ndarray]) -> ndarray:
        """Return the cotangent that a sublayer behind a norm and the mask sends to the stream."""
        scale = self.parameters[f"{norm}/scale"]
        normed = layers.rms_norm(stream, scale, dtype="float64") * self.mask
        return self._norm(norm, stream, undo(normed))

    def _norm(self, name: str, stream: ndarray, d_normed: ndarray) -> ndarray:
        scale = self.parameters[f"{name}/scale"]
        found = part_gradients.norm_gradients(stream, scale, d_normed * self.mask)
        self.found[f"{name}/scale"] = found["scale"]
        return found["inputs"]

    def _dense(self, index: int, x: ndarray, d_out: ndarray) -> ndarray:
        return self._feed_forward(f"decoder/layers_{index}/mlp", x, d_out)

    def _feed_forward(self, name: str, x: ndarray, d_out: ndarray) -> ndarray:
        kernels = {key: self.parameters[f"{name}/{key}/kernel"][None] for key in _KERNELS}
        rows = (1, -1, x.shape[-1])
        found = part_gradients.feed_forward_gradients(x.reshape(rows), kernels, d_out.reshape(rows))
        self.found |= {f"{name}/{key}/kernel": found[key][0] for key in _KERNELS}
        return found["inputs"].reshape(x.shape)

    def _attention(self, name: str, x: ndarray, d_out: ndarray) -> ndarray:
        kernels = {key: self.parameters[f"{name}/{key}/kernel"] for key in attention.KERNELS}
        found = part_gradients.attention_gradients(
            x, kernels, self.bias, d_out, num_heads=self.configuration.num_heads
        )
        self.found |= {f"{name}/{key}/kernel": found[key] for key in attention.KERNELS}
        return found["inputs"]

    def _experts(self, index: int, x: ndarray, d_out: ndarray) -> ndarray:
        c, name = self.configuration, f"decoder/layers_{index}/mlp"
        padded, groups = grouping.groups_by_experts(
            *x.shape[:2],
            max_group_size=c.max_group_size,
            num_experts=c.num_experts,
            num_expert_replicas=self.call.num_expert_replicas,
        )
        paths = {key: f"{name}/expert/{key}/kernel" for key in _KERNELS}
        paths["router"] = f"{name}/router/router_weights/w/kernel"
        grouped = grouping.to_groups(x, padded=padded, num_groups=groups)
        found = gradients.layer_gradients(
            grouped,
            {key: self.parameters[path] for key, path in paths.items()},
            grouping.to_groups(d_out, padded=padded, num_groups=groups),
            self.passed.decisions[index],
            balance=c.auxiliary_loss_factor / c.num_moe_layers,  # losses are means over layers
            z=c.router_z_loss_factor / c.num_moe_layers,
            padding_mask=routing.padding_mask(grouped) if c.ignore_padding_tokens else None,
        )
        self.found |= {path: found[key] for key, path in paths.items()}
        return grouping.from_groups(found["inputs"], padded=padded, shape=x.shape[:2])


_KERNELS = ("wi_0", "wi_1", "wo")
