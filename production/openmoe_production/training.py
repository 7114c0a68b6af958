"""One step of training: microbatches added up, gradients scaled, tensors updated. Spec: OPT-10..OPT-12."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax import lax

from openmoe_production import batches, model, optimizer, stacking
from openmoe_production.arguments import require_count
from openmoe_production.collectives import ALONE, Shard, zeros_like
from openmoe_production.dropout import Dropout
from openmoe_production.sharding import Layout
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError

Tree = Mapping[str, Any]


class Accumulated(NamedTuple):
    """What the microbatches of one batch gave.

    shown      losses added up, metrics averaged, loads added up over the microbatches
    gradients  float32, by tensor
    """

    shown: model.Shown
    gradients: dict[str, jax.Array]


def accumulated(
    parameters: Tree,
    batch: Tree,
    configuration: Configuration,
    *,
    num_microbatches: int = 1,
    averaged: bool = False,
    dropout: Dropout | None = None,
    layout: Layout | None = None,
    **options: Any,
) -> Accumulated:
    """Return losses and gradients ADDED UP over contiguous slices of the rows, as trained.

    Groups, capacity and divisors are those of a slice, so splitting changes the result; `averaged`
    divides the sums by the number of slices. `dropout` is that of this update, of which each slice has
    its own. On a mesh each device has its share of every slice.
    Other options are those of `model.hidden`.
    Errors: RejectedError OPT-12 when the microbatches do not divide the rows, MODEL-09, MODEL-10,
    MESH-06.
    Spec: OPT-11, MESH-05, MESH-07. Source: t5x trainer.py::accumulate_grads_microbatched.
    """
    batches.require_parameters(parameters, configuration)
    batches.require_batch(batch, configuration)
    require_microbatches(batch, num_microbatches)
    slices = {
        name: jnp.asarray(value).reshape(num_microbatches, -1, value.shape[1])
        for name, value in batch.items()
    }
    share: Any = partial(share_of_accumulated, configuration=configuration, **options)
    if layout is None:
        total = share(dict(parameters), slices, dropout)
    else:
        rows = len(batch["decoder_input_tokens"]) // num_microbatches
        tensors, _ = layout.of_step(parameters, configuration, rows=rows)
        given = (tensors, layout.spec(None, "batch"), layout.spec())
        found = Accumulated(layout.spec(), tensors)  # type: ignore[arg-type]
        total = layout.spread(share, given, found)(dict(parameters), slices, dropout)
    mean = jax.tree.map(lambda value: value / num_microbatches, total)
    shown = total.shown._replace(metrics=mean.shown.metrics)
    if averaged:
        return Accumulated(shown._replace(losses=mean.shown.losses), mean.gradients)
    return Accumulated(shown, total.gradients)


def share_of_accumulated(
    parameters: Tree,
    slices: Tree,
    dropout: Dropout | None = None,
    *,
    shard: Shard = ALONE,
    training: bool = True,
    **options: Any,
) -> Accumulated:
    """Return the sums over slices [m, B / m, L] of all rows, of which each holds a share.

    Gradients are added up over the slices first, and over the shares once.
    """
    own = shard.varying("batch", parameters)
    options |= {"training": training, "shard": shard}

    def add(total: Accumulated, numbered: tuple[jax.Array, Tree]) -> tuple[Accumulated, None]:
        number, part = numbered
        drops = None if dropout is None else dropout.at(number)

        def loss(values: Tree) -> tuple[jax.Array, model.Shown]:
            return model.share_of_loss(values, part, dropout=drops, **options)

        (_, shown), gradients = jax.value_and_grad(loss, has_aux=True)(own)
        return jax.tree.map(jnp.add, total, Accumulated(shown, gradients)), None

    first = jax.tree.map(lambda value: value[0], slices)
    shapes = jax.eval_shape(
        lambda values: model.share_of_loss(values, first, dropout=dropout, **options)[1], own
    )
    zeros = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shapes)
    numbers = jnp.arange(len(slices["decoder_input_tokens"]), dtype=jnp.int32)
    total, _ = lax.scan(add, Accumulated(zeros, zeros_like(own)), (numbers, slices))
    return total._replace(gradients=shard.sum_like("batch", total.gradients, parameters))


def require_microbatches(batch: Tree, num_microbatches: int) -> None:
    """Refuse a number of slices that does not divide the rows. Spec: OPT-12."""
    rows = len(batch["decoder_input_tokens"])
    require_count("num_microbatches", num_microbatches, "OPT-12", most=rows)
    if rows % num_microbatches:
        reason = f"must divide {rows} rows, got {num_microbatches}"
        raise RejectedError("num_microbatches", "OPT-12", reason)


def adafactor(
    configuration: Configuration,
    rate: optimizer.Rate = optimizer.learning_rate,
    *,
    form: stacking.Form = stacking.FLAT,
) -> optimizer.GradientTransformation:
    """Return the optimizer of a model's tensors in a form. Spec: OPT-01..OPT-09."""
    held = stacking.held(configuration, form)
    return optimizer.adafactor({name: one.axes for name, one in held.items()}, rate)


PARTS: Mapping[str, str] = {
    "embedding": r"token_embedder/.*",
    "attention": r".*/self_attention/.*",
    "router": r".*/router/.*",
    "experts": r".*/expert/.*",
    "feed_forward": r".*/(mlp|extra_mlp)/w.*",
    "norms": r".*/scale",
    "output": r"decoder/logits_dense/.*",
}
"""The parts of a model whose gradients are measured, by patterns of their tensors' names."""


def gradient_norms(gradients: Tree) -> dict[str, jax.Array]:
    """Return the root of the sum of squares of all gradients, `all`, and of those of each part."""
    squares = {
        name: jnp.sum(jnp.square(value.astype(jnp.float32))) for name, value in gradients.items()
    }
    found = {"all": list(squares.values())}
    for part, pattern in PARTS.items():
        found[part] = [value for name, value in squares.items() if re.fullmatch(pattern, name)]
    return {part: jnp.sqrt(sum(values, start=jnp.float32(0))) for part, values in found.items()}


class Trained(NamedTuple):
    """What a step of training leaves; `shown` and norms of gradients are those before the update."""

    parameters: dict[str, jax.Array]
    state: optimizer.State
    shown: model.Shown
    gradient_norms: dict[str, jax.Array]


def train_step(
    parameters: Tree,
    state: optimizer.State,
    batch: Tree,
    configuration: Configuration,
    *,
    num_expert_partitions: int = 1,
    rate: optimizer.Rate = optimizer.learning_rate,
    dropout: Dropout | None = None,
    **options: Any,
) -> Trained:
    """Return parameters and state after one update; `state` begins as `adafactor(...).init` has it.

    Pure, so to be jitted with everything behind the batch static, and with parameters and state
    donated. `dropout` is that of the run, of which each step has its own. Options are those of
    `accumulated`. On a mesh each device updates its parts of tensors.
    Errors: RejectedError OPT-12, MODEL-09, MODEL-10, MESH-06.
    Spec: OPT-01..OPT-11, MESH-05, MESH-07. Source: t5x trainer.py, contrib/moe/trainer.py::MoeTrainer.
    """
    drops = None if dropout is None else dropout.at(state.step)
    found = accumulated(parameters, batch, configuration, dropout=drops, **options)
    gradients = optimizer.scaled_gradients(
        found.gradients, num_expert_partitions=num_expert_partitions
    )
    rule = adafactor(configuration, rate, form=stacking.form(parameters))
    changes, state = rule.update(gradients, state, parameters)
    changed = {name: value + changes[name] for name, value in parameters.items()}
    return Trained(changed, state, found.shown, gradient_norms(found.gradients))
