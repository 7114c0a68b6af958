"""The records of a routing decision: plain named arrays, the same fields in every wing.

The arrays may be of any array library; shapes use the letters of SPEC.md chapter 2.
Spec: ROUTE-01.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

Array = Any
"""An array of any library that converts with `numpy.asarray`."""


@dataclass(frozen=True)
class Decision:
    """Tokens choose experts: what one call of a tokens-choose router decided.

    expert_index  int32   [G, T, K]  expert of each choice, best first; -1: the token has no expert
    gate          float32 [G, T, K]  probability of the chosen expert, never renormalised; 0 where
                                     there is no expert. It stays when the choice is dropped.
    position      int32   [G, T, K]  running count in the expert's queue, also where it is >=
                                     capacity; -1 where there is no expert
    kept          bool    [G, T, K]  the choice has a slot: 0 <= position < capacity
    capacity      int                slots of one expert in one group
    """

    expert_index: Array
    gate: Array
    position: Array
    kept: Array
    capacity: int


@dataclass(frozen=True)
class ExpertsChoice:
    """Experts choose tokens: slot c of expert e holds its c-th best token.

    token_index  int32   [G, E, C]
    gate         float32 [G, E, C]  probability of that token for that expert
    """

    token_index: Array
    gate: Array


@dataclass(frozen=True)
class LayerResult:
    """What one call of a mixture-of-experts layer returns.

    output    float32 [G, T, D] or [B, L, D]
    decision  the record behind the output, or None where an implementation cannot show it
    metrics   the five sown scalars by name (METRICS), or None
    logits    float32 [G, T, E] of the router, or None
    """

    output: Array
    decision: Decision | ExpertsChoice | None = None
    metrics: Mapping[str, Array] | None = field(default=None)
    logits: Array | None = None


METRICS = (
    "auxiliary_loss",
    "router_z_loss",
    "fraction_tokens_left_behind",
    "router_confidence",
    "expert_usage",
)
"""Names of the five scalars that the layer sows (LOSS chapter)."""

PARAMETERS = ("router", "wi_0", "wi_1", "wo")
"""Names of the layer's weights: router [D, E], wi_0 [E, D, 2F], wi_1 [E, D, F], wo [E, F, D]."""

ROUTERS = ("masked", "scatter", "experts_choose")
"""The three routers of the training code; OpenMoE was trained with `masked`."""

BATCH = (
    "decoder_input_tokens",
    "decoder_target_tokens",
    "decoder_loss_weights",
    "decoder_segment_ids",
    "decoder_positions",
    "decoder_causal_attention",
    "attention_mask",
    "position_ids",
)
"""Names of a batch's arrays, all [B, L]: the training code's features, and what the port's caller
gives. Only `decoder_input_tokens` is always there."""


@dataclass(frozen=True)
class ForwardResult:
    """What one forward pass of a model returns.

    logits       float32 [B, L, V]
    decisions    the record of each sparse layer, by layer index, of its padded groups
    metrics      the five sown scalars of each sparse layer, by layer index
    activations  outputs of modules by name (trace): `token_embedder`,
                 `decoder/layers_i/self_attention`, `.../mlp`, `.../extra_mlp`,
                 `.../mlp/router/router_weights` (router logits [G, T, E]), `decoder/layers_i` (the
                 residual stream; in sparse layers before the extra feed-forward is added),
                 `decoder/decoder_norm`
    """

    logits: Array
    decisions: Mapping[int, Decision] = field(default_factory=dict)
    metrics: Mapping[int, Mapping[str, Array]] = field(default_factory=dict)
    activations: Mapping[str, Array] | None = None


LOSSES = (
    "total",
    "cross_entropy",
    "z_loss",
    "auxiliary_loss",
    "router_z_loss",
    "weight_sum",
    "accuracy",
)
"""Names of the parts of a model's loss: `total` is the sum of the next four; `cross_entropy` and
`z_loss` are divided by the weights' sum, the router losses are scaled means over sparse layers."""


@dataclass(frozen=True)
class Cache:
    """Keys and values of a sequence that is being decoded, not rotated, zeros where none is yet.

    keys, values  [n, B, L, H, N] of all n layers
    index         int32 [B]: slots filled, which is where the next token goes
    """

    keys: Array
    values: Array
    index: Array
