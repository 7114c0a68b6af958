"""Passes of the model: from token ids to logits, and to the loss that is differentiated.

Pure functions of a flat mapping from the names of `openmoe_spec.parameters` to arrays; `stack`
brings it into a form whose repeating layers run in a `lax.scan`. Spec: MODEL-01..MODEL-11.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from openmoe_production import attention, layers, losses, total_loss
from openmoe_production.batches import require_batch, require_parameters
from openmoe_production.collectives import ALONE, Shard
from openmoe_production.dropout import Dropout
from openmoe_production.hidden import Parameters, hidden
from openmoe_production.sharding import Layout
from openmoe_production.stacking import stack, unstack
from openmoe_spec.config import Configuration
from openmoe_spec.records import Cache, Decision, ForwardResult

__all__ = ["Pass", "forward", "loss_fn", "run", "stack", "unstack"]


@dataclass(frozen=True)
class Pass:
    """One pass's result, and the keys and values [n, B, L, H, N] that its attention saw."""

    result: ForwardResult
    keys: jax.Array
    values: jax.Array


for _record, _fields in (
    (ForwardResult, ["logits", "decisions", "metrics", "activations"]),
    (Cache, ["keys", "values", "index"]),
    (Pass, ["result", "keys", "values"]),
):
    jax.tree_util.register_dataclass(_record, data_fields=_fields, meta_fields=[])


def forward(
    parameters: Parameters,
    batch: Mapping[str, jax.Array],
    configuration: Configuration,
    **options: Any,
) -> ForwardResult:
    """Return logits [B, L, V] of a batch, with decisions and metrics; `options` are those of `run`.

    `decoder_positions` are not looked at: rotary positions count from the row's start.
    Errors: RejectedError MODEL-09, MODEL-10, and those of `run`. Spec: MODEL-01..MODEL-08.
    """
    require_parameters(parameters, configuration)
    require_batch(batch, configuration)
    visible = attention.visible_by_targets(
        batch, bidirectional=configuration.inputs_bidirectional_attention
    )
    ids = batch["decoder_input_tokens"]
    return run(parameters, ids, visible, configuration, **options).result


def loss_fn(
    parameters: Parameters,
    batch: Mapping[str, jax.Array],
    configuration: Configuration,
    *,
    decisions: Mapping[int, Decision] | None = None,
    dropout: Dropout | None = None,
    layout: Layout | None = None,
    **options: Any,
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Return the total loss of a batch and its parts; differentiate it in `parameters`.

    Decisions are forced as in `run`. Options are those of `hidden`; a batch that is trained on is one of `training=True`. Logits of the
    whole batch are never held.
    Errors: RejectedError LOSS-25, MESH-06, and those of `forward`.
    Spec: MODEL-08, LOSS-21, LOSS-24, MESH-05.
    """
    require_parameters(parameters, configuration)
    require_batch(batch, configuration)
    share: Any = partial(share_of_loss, configuration=configuration, **options)
    arrays = (dict(parameters), dict(batch), dict(decisions or {}), dropout)
    if layout is None:
        total, shown = share(*arrays)
        return total, shown.losses
    rows = len(batch["decoder_input_tokens"])
    tensors, of_rows = layout.of_step(parameters, configuration, rows=rows)
    given = (tensors, of_rows, of_rows, layout.spec())
    total, shown = layout.spread(share, given, layout.spec())(*arrays)
    return total, shown.losses


class Shown(NamedTuple):
    """What a pass with a loss tells beside it.

    losses   by the names of `records.LOSSES`
    metrics  by sparse layer and the names of `records.METRICS`
    loads    by sparse layer: int32 [E] of `losses.load`
    """

    losses: dict[str, jax.Array]
    metrics: dict[int, dict[str, jax.Array]]
    loads: dict[int, dict[str, jax.Array]]


def share_of_loss(
    parameters: Parameters,
    batch: Mapping[str, jax.Array],
    decisions: Mapping[int, Decision] | None = None,
    dropout: Dropout | None = None,
    *,
    configuration: Configuration,
    shard: Shard = ALONE,
    **options: Any,
) -> tuple[jax.Array, Shown]:
    """Return the loss of all rows, of which these are a share. Spec: MODEL-08, LOSS-21, LOSS-24."""
    visible = attention.visible_by_targets(
        batch, bidirectional=configuration.inputs_bidirectional_attention
    )
    ids = batch["decoder_input_tokens"]
    options |= {"configuration": configuration, "dropout": dropout, "shard": shard}
    last = hidden(parameters, ids, visible, decisions, **options)
    parts = total_loss.total_loss(
        last.normed,
        last.kernel,
        batch,
        last.metrics,
        configuration,
        mask=last.mask,
        shard=shard,
    )
    loads = {
        i: losses.load(one, num_experts=configuration.num_experts, shard=shard)
        for i, one in last.decisions.items()
    }
    return parts["total"], Shown(parts, last.metrics, loads)


def run(
    parameters: Parameters,
    input_ids: jax.Array,
    visible: jax.Array,
    configuration: Configuration,
    *,
    decisions: Mapping[int, Decision] | None = None,
    positions: jax.Array | None = None,
    cache: Cache | None = None,
    layout: Layout | None = None,
    **options: Any,
) -> Pass:
    """Return one pass of `input_ids` [B, Q], attending as `visible` bool [B, Q, L] allows.

    decisions  forced decisions by layer index; a layer that is not named decides itself.
               Stacked layers are forced all or none.
    positions  where the queries stand, [Q] or [B, Q]; None: 0, 1, ...
    cache      keys and values of earlier tokens; None: there are none
    layout     a mesh and how it splits rows, experts, heads, widths and the vocabulary; None: one
               device has all. Arrays are those of the whole batch.
    Other options are those of `share_of_run`.
    Errors: as `hidden`, and RejectedError MESH-06.
    Spec: MODEL-01, MODEL-02, MODEL-03, MODEL-06, MESH-01..MESH-05.
    """
    arrays = (dict(parameters), input_ids, visible, dict(decisions or {}), positions, cache)
    share: Any = partial(share_of_run, configuration=configuration, **options)
    if layout is None:
        return share(*arrays)
    tensors, rows = layout.of_step(parameters, configuration, rows=len(input_ids))
    kept = layout.spec(None, "batch", None, "joined_kv")
    of_positions = layout.spec() if positions is None or positions.ndim == 1 else rows
    of_result: Any = ForwardResult  # of partitions
    logits = layout.spec("batch", None, "vocab")
    of_cache = layout.spec() if cache is None else Cache(kept, kept, rows)
    given = (tensors, rows, rows, rows, of_positions, of_cache)
    found = Pass(of_result(logits, rows, layout.spec(), rows), kept, kept)  # type: ignore[arg-type]
    passed: Pass = layout.spread(share, given, found)(*arrays)
    return passed


def share_of_run(  # noqa: PLR0917 - shard_map hands arrays over by their place
    parameters: Parameters,
    input_ids: jax.Array,
    visible: jax.Array,
    decisions: Mapping[int, Decision],
    positions: jax.Array | None,
    cache: Cache | None,
    *,
    trace: bool = False,
    **options: Any,
) -> Pass:
    """Return what one device has of a pass: its rows, the logits of its part of the ids.

    `trace`: activations are returned by name (MODEL-11). Other options are those of `hidden`.
    """
    last = hidden(
        parameters, input_ids, visible, decisions, positions=positions, cache=cache, **options
    )
    logits = layers.output_logits(last.normed, last.kernel, mask=last.mask)
    result = ForwardResult(
        logits, last.decisions, last.metrics, last.activations if trace else None
    )
    keys, values = (
        jnp.stack([getattr(one, name) for one in last.seen]) for name in ("keys", "values")
    )
    return Pass(result, keys, values)
