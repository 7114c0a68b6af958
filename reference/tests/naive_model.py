"""A deliberately naive model: the whole forward pass.

Written from SPEC.md chapter 10, it shares nothing with the reference but records and configuration:
its layers are those of `naive_layers`, its routing is that of `naive`. `choices` are those of a
dialect; points that only change a dtype are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import naive
import naive_layers as layers
import numpy as np
from naive_layers import Attended, Vector
from naive_parameters import sparse_layers
from numpy import ndarray

from openmoe_spec.config import Configuration
from openmoe_spec.dialects import T5X
from openmoe_spec.records import Decision


@dataclass(frozen=True)
class Model:
    """Weights by name, and how they are used."""

    parameters: Mapping[str, ndarray]
    configuration: Configuration
    dtype: str = "float64"
    choices: Mapping[str, str] = field(default_factory=lambda: dict(T5X))
    replicas: int = 1

    def weight(self, name: str) -> Any:
        """Return a tensor as lists, rounded as activations are but for the two float32 products."""
        value = np.asarray(self.parameters[name], np.float64)
        if self.dtype == "bfloat16" and not name.endswith(
            ("router_weights/w/kernel", "logits_dense/kernel")
        ):
            value = value.astype(ml_dtypes.bfloat16).astype(np.float64)
        return value.tolist()

    def kernels(self, path: str, names: Sequence[str] = ("wi_0", "wi_1", "wo")) -> dict[str, Any]:
        """Return the kernels below a path, by their short names."""
        return {name: self.weight(f"{path}/{name}/kernel") for name in names}

    @property
    def scale(self) -> float:
        """Return the factor of the products of queries and keys."""
        scaled = self.choices["attention_scale"] == "head_dim"
        return 1 / math.sqrt(self.configuration.head_dim) if scaled else 1.0


@dataclass
class Pass:
    """What a forward pass leaves: `attended` by layer and row, the rest as records.ForwardResult."""

    logits: ndarray = field(default_factory=lambda: np.zeros(0))
    decisions: dict[int, Decision] = field(default_factory=dict)
    metrics: dict[int, dict[str, float]] = field(default_factory=dict)
    activations: dict[str, Any] = field(default_factory=dict)
    attended: list[list[Attended]] = field(default_factory=list)


def visible(model: Model, batch: Mapping[str, ndarray], row: int) -> list[list[bool]]:
    """Return who sees whom in one row of a batch."""
    arrays = {name: value[row].tolist() for name, value in batch.items()}
    length = len(arrays["decoder_input_tokens"])
    if model.choices["attention_mask"] == "user":
        given = arrays.get("attention_mask", [1] * length)
        seen = [
            [key <= query and bool(given[key]) for key in range(length)] for query in range(length)
        ]
    else:
        both_ways = model.configuration.inputs_bidirectional_attention
        seen = layers.visible_by_targets(
            arrays["decoder_target_tokens"],
            arrays.get("decoder_segment_ids"),
            arrays.get("decoder_causal_attention") if both_ways else None,
        )
    if model.choices["masked_keys"] == "first_key_open":
        for keys in seen:
            keys[0] = True
    return seen


def forward(
    model: Model,
    batch: Mapping[str, ndarray],
    *,
    training: bool = False,
    decisions: Mapping[int, Decision] | None = None,
    earlier: Sequence[Sequence[Attended]] | None = None,
) -> Pass:
    """Return one pass over a batch; `decisions` are taken as they are, with the pass's own gates.

    `earlier` holds what each layer and row has cached: then the batch is the next token of each
    row, which sees all that was before it and itself.
    """
    c, dtype, result = model.configuration, model.dtype, Pass()
    ids = batch["decoder_input_tokens"].tolist()
    table = model.weight("token_embedder/embedding")
    stream = [[layers.embed(table, token, dtype) for token in row] for row in ids]
    result.activations["token_embedder"] = stream
    masks = {"by_ids": layers.token_mask, "none": lambda row: [1] * len(row)}
    mask = [masks[model.choices["token_mask"]](row) for row in ids]
    residual = dtype  # of the stream, which the experts' float32 output widens

    def normed(name: str) -> list[list[Vector]]:
        scale = model.weight(f"{name}/scale")
        return [
            [
                [value * keep for value in layers.norm(x, scale, dtype)]
                for x, keep in zip(row, keeps, strict=True)
            ]
            for row, keeps in zip(stream, mask, strict=True)
        ]

    def added(name: str, output: list[list[Vector]]) -> list[list[Vector]]:
        result.activations[name] = output
        return [
            [layers.add(x, y, residual) for x, y in zip(row, outputs, strict=True)]
            for row, outputs in zip(stream, output, strict=True)
        ]

    for i in range(c.num_layers):
        layer = f"decoder/layers_{i}"
        kernels = model.kernels(f"{layer}/self_attention", ("query", "key", "value", "out"))
        attended = []
        for b, rows in enumerate(normed(f"{layer}/pre_self_attention_layer_norm")):
            before = earlier[i][b] if earlier else None
            seen = [[True] * (len(before.keys) + 1)] if before else visible(model, batch, b)
            attended.append(
                layers.attention(
                    rows,
                    kernels,
                    seen,
                    num_heads=c.num_heads,
                    dtype=dtype,
                    scale=model.scale,
                    earlier=before,
                )
            )
        result.attended.append(attended)
        stream = added(f"{layer}/self_attention", [one.output for one in attended])
        inputs = normed(f"{layer}/pre_mlp_layer_norm")
        if i not in sparse_layers(c.num_layers, c.num_moe_layers):
            dense = model.kernels(f"{layer}/mlp")
            output = [[layers.feed_forward(x, **dense, dtype=dtype) for x in row] for row in inputs]
            stream = added(f"{layer}/mlp", output)
            result.activations[layer] = stream
            continue
        output = sparse(model, i, inputs, result, training=training, decisions=decisions)
        if model.choices["combine"] == "float32":
            residual = "float64"
        stream = added(f"{layer}/mlp", output)
        result.activations[layer] = stream
        if model.choices["extra_mlp"] == "sequential":
            inputs = normed(f"{layer}/pre_extra_mlp_layer_norm")
        extra = model.kernels(f"{layer}/extra_mlp")
        output = [[layers.feed_forward(x, **extra, dtype=dtype) for x in row] for row in inputs]
        stream = added(f"{layer}/extra_mlp", output)
    kernel = model.weight("decoder/logits_dense/kernel")
    last = normed("decoder/decoder_norm")
    result.logits = np.array([[layers.project(x, kernel) for x in row] for row in last])
    return result


def group_shape(model: Model, batch: int, length: int) -> tuple[tuple[int, int], int]:
    """Return the padded shape of a batch and its number of groups."""
    c = model.configuration
    if model.choices["groups"] == "whole_call":
        return (batch, length), 1
    padded = naive.padded_shape(batch, length, multiple=c.num_experts * model.replicas)
    groups = naive.num_groups(
        padded[0] * padded[1],
        max_group_size=c.max_group_size,
        num_experts=c.num_experts,
        num_expert_replicas=model.replicas,
    )
    return padded, groups


def capacity(model: Model, tokens: int, *, training: bool) -> int:
    """Return the slots of an expert in a group of `tokens`."""
    c = model.configuration
    factor = c.train_capacity_factor if training else c.eval_capacity_factor
    if model.choices["capacity"] == "even_slots":
        slots = math.floor(c.num_selected_experts * factor * tokens / c.num_experts)
        return max(slots + slots % 2, c.min_expert_capacity)
    return naive.expert_capacity(
        tokens,
        num_experts=c.num_experts,
        capacity_factor=factor,
        min_expert_capacity=c.min_expert_capacity,
    )


def sparse(
    model: Model,
    i: int,
    inputs: list[list[Vector]],
    result: Pass,
    *,
    training: bool,
    decisions: Mapping[int, Decision] | None,
) -> list[list[Vector]]:
    """Return the output of the experts of layer i; decision and metrics go into `result`."""
    c, path = model.configuration, f"decoder/layers_{i}/mlp"
    x = np.array(inputs, np.float64)
    padded, groups = group_shape(model, *x.shape[:2])
    grouped = naive.to_groups(x, padded=padded, num_groups=groups)
    kernel = model.weight(f"{path}/router/router_weights/w/kernel")
    logits = np.array(
        [[layers.project(token, kernel) for token in group] for group in grouped.tolist()]
    )
    probabilities = naive.softmax(logits)
    real = naive.padding_mask(grouped) if c.ignore_padding_tokens else None
    decision = (
        decisions[i]
        if decisions
        else naive.decide(
            probabilities.astype(np.float32),
            k=c.num_selected_experts,
            capacity=capacity(model, grouped.shape[1], training=training),
            padding_mask=real,
            batch_prioritized=c.batch_prioritized_routing,
        )
    )
    gates = np.zeros(decision.gate.shape)
    for place in np.ndindex(gates.shape):
        if decision.expert_index[place] >= 0:
            gates[place] = probabilities[place[0], place[1], decision.expert_index[place]]
    decision = Decision(
        decision.expert_index, gates, decision.position, decision.kept, decision.capacity
    )
    experts = model.kernels(f"{path}/expert")
    outputs = np.zeros(grouped.shape)
    for g, t in np.ndindex(grouped.shape[:2]):
        total = [0.0] * x.shape[2]
        for choice in range(c.num_selected_experts):
            if decision.kept[g, t, choice]:
                e = decision.expert_index[g, t, choice]
                one = {name: value[e] for name, value in experts.items()}
                output = layers.feed_forward(grouped[g, t].tolist(), **one, dtype=model.dtype)
                total = layers.add(
                    total, [gates[g, t, choice] * value for value in output], "float64"
                )
        outputs[g, t] = total
    result.activations[f"{path}/router/router_weights"] = logits
    result.decisions[i] = decision
    shape = (1, -1) if model.choices["balance"] == "batch" else grouped.shape[:2]
    result.metrics[i] = {
        "auxiliary_loss": naive.balance_loss(
            probabilities.reshape(*shape, c.num_experts),
            decision.expert_index.reshape(*shape, c.num_selected_experts),
            padding_mask=None if real is None else real.reshape(shape),
        ),
        "router_z_loss": naive.router_z_loss(logits, padding_mask=real),
        **naive.metrics(decision, num_experts=c.num_experts, padding_mask=real),
    }
    return naive.from_groups(outputs, padded=padded, shape=x.shape[:2]).tolist()
