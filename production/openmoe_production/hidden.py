"""One pass over the decoder, from token ids to its last norm, on one device's share of it.

Spec: MODEL-01, MODEL-02, MODEL-03, MODEL-06.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from openmoe_production import attention, layers, moe, stacking
from openmoe_production.collectives import ALONE, Shard
from openmoe_production.dropout import (
    ATTENDED,
    EMBEDDED,
    EXTRA_FED,
    EXTRA_HIDDEN,
    FED,
    HIDDEN,
    LAYERS,
    NORMED,
    WEIGHTS,
    Dropout,
    Dropped,
)
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.parameters import sparse_layers
from openmoe_spec.records import Cache, Decision

Parameters = Mapping[str, jax.Array]


class Hidden(NamedTuple):
    """What a pass has computed before its logits.

    normed    [B, Q, D], behind the last norm and before the mask
    mask      bool [B, Q], which of them the output projection reads
    kernel    the output projection's [D, V]
    embedded  [B, Q, D]
    seen      what each layer left behind
    """

    normed: jax.Array
    mask: jax.Array
    kernel: jax.Array
    embedded: jax.Array
    seen: list[_Seen]

    @property
    def decisions(self) -> dict[int, Decision]:
        """The record of each sparse layer."""
        return {i: one.decision for i, one in enumerate(self.seen) if one.decision is not None}

    @property
    def metrics(self) -> dict[int, dict[str, jax.Array]]:
        """The five scalars by sparse layer."""
        return {i: one.metrics for i, one in enumerate(self.seen) if one.metrics is not None}

    @property
    def activations(self) -> dict[str, jax.Array]:
        """Outputs of modules by name. Spec: MODEL-11."""
        found = {"token_embedder": self.embedded, "decoder/decoder_norm": self.normed}
        for i, one in enumerate(self.seen):
            found |= {f"decoder/layers_{i}{name}": a for name, a in one.activations.items()}
        return found


def hidden(
    parameters: Parameters,
    input_ids: jax.Array,
    visible: jax.Array,
    decisions: Mapping[int, Decision] | None = None,
    *,
    configuration: Configuration,
    positions: jax.Array | None = None,
    cache: Cache | None = None,
    training: bool = False,
    dtype: str = "float32",
    expert_dtype: str | None = None,
    num_expert_replicas: int = 1,
    remat: bool = False,
    dropout: Dropout | None = None,
    shard: Shard = ALONE,
) -> Hidden:
    """Return a pass up to its last norm.

    training             the training capacity factor is in force
    dtype, expert_dtype  of activations, and of the experts (None: the same)
    num_expert_replicas  R, which groups depend on
    remat                layers are computed again in the backward pass instead of being kept
    dropout              that of this pass; None: nothing is dropped
    shard                the share of rows and tensors that this is; `ALONE`: all of them
    Errors: RejectedError LAYER-08, ATTN-12, MOE-11, GROUP-09, MESH-06.
    Spec: MODEL-01, MODEL-02, MODEL-03, MODEL-06.
    """
    decisions = {} if decisions is None else decisions
    sparse = sparse_layers(configuration.num_layers, configuration.num_moe_layers)
    if not set(decisions) <= set(sparse):
        raise RejectedError(
            "decisions", "MOE-11", f"must be of layers {sparse}, got {sorted(decisions)}"
        )
    form = stacking.form(parameters)
    layer = _Layer(
        configuration,
        mask=layers.token_mask(input_ids),
        visible=visible,
        positions=positions,
        index=None if cache is None else cache.index,
        training=training,
        dtype=dtype,
        expert_dtype=dtype if expert_dtype is None else expert_dtype,
        num_expert_replicas=num_expert_replicas,
        form=form,
        axes=stacking.axes_of_layers(configuration, form),
        dropout=dropout,
        shard=shard,
    )
    step = jax.checkpoint(layer.apply) if remat else layer.apply
    table = shard.at_hand(parameters["token_embedder/embedding"], ("vocab", "embed"))
    embedded = layers.embed(table, input_ids, dtype=dtype, shard=shard)
    x = embedded
    if dropout is not None:
        x = dropout.at(EMBEDDED).of_rows(x, shard)
    apart, repeated = stacking.by_layer(parameters)
    seen = []
    for i, weights in enumerate(apart):
        kept = None if cache is None else (cache.keys[i], cache.values[i])
        x, one = step(x, _Inputs(jnp.int32(i), weights, kept, decisions.get(i)))
        seen.append(one)
    if repeated:
        x, more = _scan(step, x, _stacked_inputs(repeated, len(apart), cache, decisions))
        seen += more
    scale = shard.at_hand(parameters["decoder/decoder_norm/scale"], ("embed",))
    kernel = shard.at_hand(parameters["decoder/logits_dense/kernel"], ("embed", "vocab"))
    normed = layers.rms_norm(x, scale, dtype=dtype)
    if dropout is not None:
        normed = dropout.at(NORMED).of_rows(normed, shard)
    return Hidden(normed, layer.mask, kernel, embedded, seen)


class _Inputs(NamedTuple):
    """What one layer has of its own: its number, tensors without the prefix of their name."""

    number: jax.Array
    weights: Mapping[str, jax.Array]
    cached: tuple[jax.Array, jax.Array] | None
    decision: Decision | None


class _Seen(NamedTuple):
    """What one layer leaves behind."""

    keys: jax.Array
    values: jax.Array
    decision: Any
    metrics: Any
    activations: dict[str, jax.Array]


class _Places(NamedTuple):
    """Where values of one layer are dropped; of no dropout, nowhere."""

    dropout: Dropout | None
    number: jax.Array
    shard: Shard

    def within(self, place: int) -> Dropout | None:
        if self.dropout is None:
            return None
        return self.dropout.at(LAYERS + self.number, place)

    def rows(self, place: int, values: jax.Array) -> jax.Array:
        here = self.within(place)
        return values if here is None else here.of_rows(values, self.shard)

    def weights(self) -> Dropped | None:
        here = self.within(WEIGHTS)
        return None if here is None else partial(here.of_weights, shard=self.shard)

    def hidden(self, place: int, rows: jax.Array) -> Dropped | None:
        """Return that of hidden values [1, B * L, F] of a feed-forward of rows [B, L, D]."""
        here = self.within(place)
        if here is None:
            return None

        def dropped(values: jax.Array) -> jax.Array:
            by_row = values.reshape(*rows.shape[:2], -1)
            return here.of_rows(by_row, self.shard, split="mlp").reshape(values.shape)

        return dropped


@dataclass(frozen=True)
class _Layer:
    """One layer of a pass, with what all of them share."""

    configuration: Configuration
    mask: jax.Array
    visible: jax.Array
    positions: jax.Array | None
    index: jax.Array | None
    training: bool
    dtype: str
    expert_dtype: str
    num_expert_replicas: int
    form: stacking.Form
    axes: Mapping[str, tuple[str | None, ...]]
    dropout: Dropout | None
    shard: Shard

    def apply(self, x: jax.Array, own: _Inputs) -> tuple[jax.Array, _Seen]:
        """Return the residual stream behind the layer. Spec: MODEL-02, MODEL-03, MODEL-06."""
        weights = {
            name: self.shard.at_hand(tensor, self.axes[name])
            for name, tensor in own.weights.items()
        }
        if self.form.split:  # the halves of a part are joined as those of the whole
            weights = stacking.join_gates(weights)
        places = _Places(self.dropout, own.number, self.shard)
        attended, keys, values = attention.attention(
            self._normed(x, weights, "pre_self_attention_layer_norm"),
            {name: weights[f"self_attention/{name}/kernel"] for name in attention.KERNELS},
            self.visible,
            num_heads=self.configuration.num_heads // self.shard.size("joined_kv"),
            positions=self.positions,
            cache=None if own.cached is None or self.index is None else (*own.cached, self.index),
            dropped=places.weights(),
            shard=self.shard,
        )
        x = x + places.rows(ATTENDED, attended)
        normed = self._normed(x, weights, "pre_mlp_layer_norm")
        activations = {"/self_attention": attended}
        if _ROUTER not in weights:
            fed = self._feed_forward(normed, weights, "mlp", places.hidden(HIDDEN, x))
            activations["/mlp"] = fed
            activations[""] = x = x + places.rows(FED, fed)
            return x, _Seen(keys, values, None, None, activations)
        result = self._experts(normed, weights, own.decision, places.within(HIDDEN))
        activations["/mlp/router/router_weights"] = result.logits
        activations["/mlp"] = result.output
        # float32 from here on, whatever it was
        activations[""] = x = x + places.rows(FED, result.output)
        normed = self._normed(x, weights, "pre_extra_mlp_layer_norm")
        dropped = places.hidden(EXTRA_HIDDEN, x)
        fed = self._feed_forward(normed, weights, "extra_mlp", dropped)
        activations["/extra_mlp"] = fed
        x = x + places.rows(EXTRA_FED, fed)
        return x, _Seen(keys, values, result.decision, result.metrics, activations)

    def _normed(self, x: jax.Array, weights: Mapping[str, jax.Array], name: str) -> jax.Array:
        # The mask multiplies what a sublayer reads, never the residual stream.
        normed = layers.rms_norm(x, weights[f"{name}/scale"], dtype=self.dtype)
        return normed * self.mask[..., None].astype(normed.dtype)

    def _feed_forward(
        self,
        x: jax.Array,
        weights: Mapping[str, jax.Array],
        name: str,
        dropped: Dropped | None,
    ) -> jax.Array:
        kernels = {key: weights[f"{name}/{key}/kernel"] for key in ("wi_0", "wi_1", "wo")}
        rows = x.reshape(-1, x.shape[-1])
        outputs = layers.feed_forward(rows, kernels, dtype=self.dtype, dropped=dropped)
        return self.shard.sum("mlp", outputs.reshape(x.shape))

    def _experts(
        self,
        x: jax.Array,
        weights: Mapping[str, jax.Array],
        decision: Decision | None,
        dropout: Dropout | None,
    ) -> Any:
        c = self.configuration
        kernels = {name: weights[f"mlp/expert/{name}/kernel"] for name in ("wi_0", "wi_1", "wo")}
        return moe.moe_layer(
            x,
            {"router": weights[_ROUTER], **kernels},
            training=self.training,
            k=c.num_selected_experts,
            train_capacity_factor=c.train_capacity_factor,
            eval_capacity_factor=c.eval_capacity_factor,
            min_expert_capacity=c.min_expert_capacity,
            max_group_size=c.max_group_size,
            num_expert_replicas=self.num_expert_replicas,
            ignore_padding=c.ignore_padding_tokens,
            batch_prioritized=c.batch_prioritized_routing,
            expert_dtype=self.expert_dtype,
            decision=decision,
            dropout=dropout,
            shard=self.shard,
        )


_ROUTER = "mlp/router/router_weights/w/kernel"


def _stacked_inputs(
    repeated: list[dict[str, jax.Array]],
    first: int,
    cache: Cache | None,
    decisions: Mapping[int, Decision],
) -> list[_Inputs]:
    """Return what the layers of the block have of their own, each with an axis of blocks.

    `first` layers stand by themselves: the first block, as long as each of the others.
    """
    forced = [decisions[i] for i in sorted(decisions) if i >= first]
    blocks = repeated[-1][_ROUTER].shape[0]
    if forced and len(forced) != blocks:
        raise RejectedError("decisions", "MOE-11", "must name every stacked layer or none")
    decision = jax.tree.map(lambda *parts: jnp.stack(parts), *forced) if forced else None
    inputs = []
    for position, weights in enumerate(repeated):
        kept = None
        if cache is not None:
            its = slice(first + position, None, first)
            kept = cache.keys[its], cache.values[its]
        numbers = first + position + first * jnp.arange(blocks, dtype=jnp.int32)
        inputs.append(_Inputs(numbers, weights, kept, decision if _ROUTER in weights else None))
    return inputs


def _scan(step: Any, x: jax.Array, inputs: list[_Inputs]) -> tuple[jax.Array, list[_Seen]]:
    """Run the block over the axis of blocks; return what each layer left, in order."""

    def block(x: jax.Array, inputs: list[_Inputs]) -> tuple[jax.Array, list[_Seen]]:
        seen = []
        for own in inputs:
            x, one = step(x, own)
            seen.append(one)
        return x, seen

    x, seen = lax.scan(block, x, inputs)
    blocks = jax.tree.leaves(seen)[0].shape[0]
    return x, [jax.tree.map(lambda a, b=b: a[b], one) for b in range(blocks) for one in seen]
