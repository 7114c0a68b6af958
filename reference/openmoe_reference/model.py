"""SPEC.md "The model": one forward pass, from token ids to logits, with everything on the way.

Line-comparable to flaxformer t5_architecture.py, moe_architecture.py@c5bdc41.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from jaxtyping import Float
from numpy import ndarray

from openmoe_reference import attention, feed_forward, layers, masks, moe
from openmoe_reference.batches import check_batch, check_parameters
from openmoe_spec.config import Configuration
from openmoe_spec.parameters import sparse_layers
from openmoe_spec.records import Cache, Decision, ForwardResult, LayerResult

Sublayer = Callable[[ndarray], ndarray]


def sequential_block(
    x: Float[ndarray, "B L D"],
    *,
    mlp_norm: Sublayer,
    experts: Sublayer,
    extra_norm: Sublayer,
    extra_mlp: Sublayer,
) -> tuple[ndarray, ndarray]:
    """Return the residual stream before and after the extra feed-forward, which has its own norm.

    Spec: MODEL-03. Source: moe_architecture.py::SparseDecoderLayer.
    """
    after = x + experts(mlp_norm(x))
    return after, after + extra_mlp(extra_norm(after))


def parallel_block(
    x: Float[ndarray, "B L D"],
    *,
    mlp_norm: Sublayer,
    experts: Sublayer,
    extra_norm: Sublayer,
    extra_mlp: Sublayer,
) -> tuple[ndarray, ndarray]:
    """Return the same as the paper's equation 4 has it: both read one normed input.

    Spec: DIAL-03. Source: arXiv 2402.01739, equation 4.
    """
    del extra_norm
    normed = mlp_norm(x)
    after = x + experts(normed)
    return after, after + extra_mlp(normed)


@dataclass(frozen=True)
class Rules:
    """The functions that a model is composed of: a dialect, or a planted bug, exchanges some.

    Their defaults are the normative dialect. Spec: DIAL-01.
    """

    embed: Callable[..., ndarray] = layers.embed
    norm: Callable[..., ndarray] = layers.rms_norm
    token_mask: Callable[[ndarray], ndarray] = layers.token_mask
    visible: Callable[..., tuple[ndarray, ...]] = masks.visible_by_targets
    bias: Callable[..., ndarray] = masks.finite_bias
    attention: Callable[..., tuple[ndarray, ndarray, ndarray]] = attention.attention
    feed_forward: Callable[..., ndarray] = feed_forward.feed_forward
    activations: tuple[str, ...] = ("swiglu", "linear")
    moe: Callable[..., LayerResult] = moe.moe_layer
    sparse_block: Callable[..., tuple[ndarray, ndarray]] = sequential_block
    output_logits: Callable[..., ndarray] = layers.output_logits
    logits_dtype: str = "float32"


@dataclass(frozen=True)
class Call:
    """How one pass over the decoder is run.

    training             the training capacity factor is in force
    dtype, expert_dtype  of activations, and of the experts (None: the same)
    num_expert_replicas  R, which groups depend on
    decisions            forced decisions by layer index; a layer that is not named decides itself
    positions            where the queries stand, [Q] or [B, Q]; None: 0, 1, ...
    cache                keys and values of earlier tokens; None: there are none
    """

    training: bool = False
    dtype: str = "float32"
    expert_dtype: str | None = None
    num_expert_replicas: int = 1
    decisions: Mapping[int, Decision] = field(default_factory=dict)
    positions: ndarray | None = None
    cache: Cache | None = None


@dataclass(frozen=True)
class Pass:
    """One pass's result, and the keys and values [n, B, L, H, N] that its attention saw."""

    result: ForwardResult
    keys: ndarray
    values: ndarray


def forward(
    parameters: Mapping[str, ndarray],
    batch: Mapping[str, ndarray],
    configuration: Configuration,
    *,
    call: Call | None = None,
    rules: Rules | None = None,
) -> ForwardResult:
    """Return logits [B, L, V] of a batch, with decisions, metrics and activations.

    `parameters` by the names of `openmoe_spec.parameters`, `batch` by those of `records.BATCH`;
    `decoder_positions` are not looked at: rotary positions count from the row's start.
    Errors: RejectedError MODEL-09, MODEL-10, and those of the functions it calls.
    Spec: MODEL-01..MODEL-08. Source: t5_architecture.py::DecoderOnly, moe_architecture.py.
    """
    rules = Rules() if rules is None else rules
    check_parameters(parameters, configuration, doubled_gate=rules.activations[0] == "swiglu")
    check_batch(batch, configuration)
    reasons = rules.visible(batch, bidirectional=configuration.inputs_bidirectional_attention)
    ids = batch["decoder_input_tokens"]
    bias = rules.bias(reasons)
    return run(parameters, ids, bias, configuration, call=call or Call(), rules=rules).result


def run(
    parameters: Mapping[str, ndarray],
    input_ids: ndarray,
    bias: ndarray,
    configuration: Configuration,
    *,
    call: Call,
    rules: Rules,
) -> Pass:
    """Return one pass of `input_ids` [B, Q] over the decoder, attending as `bias` [B, Q, L] allows.

    Spec: MODEL-01, MODEL-02, MODEL-03, MODEL-06. Source: t5_architecture.py::Decoder.
    """
    walk = _Walk(parameters, rules.token_mask(input_ids), bias, configuration, call, rules)
    x = rules.embed(parameters["token_embedder/embedding"], input_ids, dtype=call.dtype)
    walk.activations["token_embedder"] = x
    sparse = sparse_layers(configuration.num_layers, configuration.num_moe_layers)
    for i in range(configuration.num_layers):
        x = walk.layer(x, i, is_sparse=i in sparse)
    x = rules.norm(x, parameters["decoder/decoder_norm/scale"], dtype=call.dtype)
    walk.activations["decoder/decoder_norm"] = x
    dtype = {"activation": call.dtype}.get(rules.logits_dtype, rules.logits_dtype)
    logits = rules.output_logits(
        x,
        parameters["decoder/logits_dense/kernel"],
        mask=walk.mask,
        dtype="float64" if call.dtype == "float64" else dtype,
    )
    result = ForwardResult(logits, walk.decisions, walk.metrics, walk.activations)
    return Pass(result, np.stack(walk.keys), np.stack(walk.values))


@dataclass
class _Walk:
    """What the layers of one pass share, and what they leave behind."""

    parameters: Mapping[str, ndarray]
    mask: ndarray
    bias: ndarray
    configuration: Configuration
    call: Call
    rules: Rules
    decisions: dict[int, Decision] = field(default_factory=dict)
    metrics: dict[int, Mapping[str, Any]] = field(default_factory=dict)
    activations: dict[str, ndarray] = field(default_factory=dict)
    keys: list[ndarray] = field(default_factory=list)
    values: list[ndarray] = field(default_factory=list)

    def layer(self, x: ndarray, index: int, *, is_sparse: bool) -> ndarray:
        """Return the residual stream after one layer. Spec: MODEL-02, MODEL-03."""
        name = f"decoder/layers_{index}"
        attended = self._attention(self._normed(x, f"{name}/pre_self_attention_layer_norm"), index)
        x = x + attended
        if not is_sparse:
            normed = self._normed(x, f"{name}/pre_mlp_layer_norm")
            after = x = x + self._feed_forward(normed, f"{name}/mlp")
        else:
            after, x = self.rules.sparse_block(
                x,
                mlp_norm=lambda h: self._normed(h, f"{name}/pre_mlp_layer_norm"),
                experts=lambda h: self._experts(h, index),
                extra_norm=lambda h: self._normed(h, f"{name}/pre_extra_mlp_layer_norm"),
                extra_mlp=lambda h: self._feed_forward(h, f"{name}/extra_mlp"),
            )
        self.activations[name] = after
        return x

    def _normed(self, x: ndarray, name: str) -> ndarray:
        # The mask multiplies what a sublayer reads, never the residual stream.
        normed = self.rules.norm(x, self.parameters[f"{name}/scale"], dtype=self.call.dtype)
        return normed * self.mask[..., None].astype(normed.dtype)

    def _attention(self, x: ndarray, index: int) -> ndarray:
        name, cache = f"decoder/layers_{index}/self_attention", self.call.cache
        output, keys, values = self.rules.attention(
            x,
            self._kernels(name, attention.KERNELS),
            self.bias,
            num_heads=self.configuration.num_heads,
            dtype=self.call.dtype,
            positions=self.call.positions,
            cache=None if cache is None else (cache.keys[index], cache.values[index], cache.index),
        )
        self.keys.append(keys)
        self.values.append(values)
        self.activations[name] = output
        return output

    def _feed_forward(self, x: ndarray, name: str) -> ndarray:
        names = (*feed_forward.projections(self.rules.activations), "wo")
        kernels = {key: value[None] for key, value in self._kernels(name, names).items()}
        rows = x.reshape(1, -1, x.shape[-1])  # one feed-forward on B x L slots
        output = self.rules.feed_forward(
            rows, kernels, activations=self.rules.activations, dtype=self.call.dtype
        ).reshape(x.shape)
        self.activations[name] = output
        return output

    def _experts(self, x: ndarray, index: int) -> ndarray:
        name, c = f"decoder/layers_{index}/mlp", self.configuration
        weights = self._kernels(f"{name}/expert", ("wi_0", "wi_1", "wo"))
        weights["router"] = self.parameters[f"{name}/router/router_weights/w/kernel"]
        result = self.rules.moe(
            x,
            weights,
            training=self.call.training,
            k=c.num_selected_experts,
            train_capacity_factor=c.train_capacity_factor,
            eval_capacity_factor=c.eval_capacity_factor,
            min_expert_capacity=c.min_expert_capacity,
            max_group_size=c.max_group_size,
            num_expert_replicas=self.call.num_expert_replicas,
            ignore_padding=c.ignore_padding_tokens,
            batch_prioritized=c.batch_prioritized_routing,
            expert_dtype=self.call.expert_dtype or self.call.dtype,
            decision=self.call.decisions.get(index),
        )
        assert isinstance(result.decision, Decision)
        assert result.metrics is not None
        self.decisions[index], self.metrics[index] = result.decision, result.metrics
        if result.logits is not None:
            self.activations[f"{name}/router/router_weights"] = result.logits
        output: ndarray = result.output
        self.activations[name] = output
        return output

    def _kernels(self, name: str, keys: tuple[str, ...]) -> dict[str, ndarray]:
        return {key: self.parameters[f"{name}/{key}/kernel"] for key in keys}
