"""One step of training: microbatches added up, gradients scaled, tensors updated. Spec: OPT-10..OPT-12."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax  # type: ignore[import-untyped]
from jax import lax

from openmoe_production import cross_entropy, model, optimizer
from openmoe_production.arguments import require_count
from openmoe_production.batches import require_batch
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.parameters import parameters as tree

Tree = Mapping[str, Any]


class Accumulated(NamedTuple):
    """What the microbatches of one batch gave.

    losses     by the names of `records.LOSSES`
    metrics    by sparse layer and the names of `records.METRICS`: means over the microbatches
    gradients  float32, by tensor
    """

    losses: dict[str, jax.Array]
    metrics: dict[int, dict[str, jax.Array]]
    gradients: dict[str, jax.Array]


def accumulated(
    parameters: Tree,
    batch: Tree,
    configuration: Configuration,
    *,
    num_microbatches: int = 1,
    averaged: bool = False,
    training: bool = True,
    **options: Any,
) -> Accumulated:
    """Return losses and gradients ADDED UP over contiguous slices of the rows, as trained.

    Groups, capacity and divisors are those of a slice, so splitting changes the result; `averaged`
    divides the sums by the number of slices. Other options are those of `model.run`.
    Errors: RejectedError OPT-12 when the microbatches do not divide the rows, MODEL-09, MODEL-10.
    Spec: OPT-11. Source: t5x trainer.py::accumulate_grads_microbatched.
    """
    require_batch(batch, configuration)
    require_microbatches(batch, num_microbatches)
    slices = {
        name: jnp.asarray(value).reshape(num_microbatches, -1, value.shape[1])
        for name, value in batch.items()
    }

    def of_slice(part: Tree) -> Accumulated:
        def loss(values: Tree) -> tuple[jax.Array, Any]:
            result = model.forward(values, part, configuration, training=training, **options)
            parts = cross_entropy.total_loss(result.logits, part, result.metrics, configuration)
            return parts["total"], (parts, result.metrics)

        (_, shown), gradients = jax.value_and_grad(loss, has_aux=True)(dict(parameters))
        losses, metrics = shown
        return Accumulated(losses, metrics, gradients)

    def add(total: Accumulated, part: Tree) -> tuple[Accumulated, None]:
        return jax.tree.map(jnp.add, total, of_slice(part)), None

    shapes = jax.eval_shape(of_slice, jax.tree.map(lambda value: value[0], slices))
    zeros = jax.tree.map(lambda one: jnp.zeros(one.shape, one.dtype), shapes)
    total, _ = lax.scan(add, zeros, slices)
    mean = jax.tree.map(lambda value: value / num_microbatches, total)
    return mean if averaged else total._replace(metrics=mean.metrics)


def require_microbatches(batch: Tree, num_microbatches: int) -> None:
    """Refuse a number of slices that does not divide the rows. Spec: OPT-12."""
    rows = len(batch["decoder_input_tokens"])
    require_count("num_microbatches", num_microbatches, "OPT-12", most=rows)
    if rows % num_microbatches:
        reason = f"must divide {rows} rows, got {num_microbatches}"
        raise RejectedError("num_microbatches", "OPT-12", reason)


def adafactor(
    configuration: Configuration, rate: optax.Schedule = optimizer.learning_rate
) -> optax.GradientTransformation:
    """Return the optimizer of a model's tensors. Spec: OPT-01..OPT-09."""
    return optimizer.adafactor({one.name: one.axes for one in tree(configuration)}, rate)


class Trained(NamedTuple):
    """What a step of training leaves; losses and metrics are those before the update."""

    parameters: dict[str, jax.Array]
    state: optimizer.State
    losses: dict[str, jax.Array]
    metrics: dict[int, dict[str, jax.Array]]


def train_step(
    parameters: Tree,
    state: optimizer.State,
    batch: Tree,
    configuration: Configuration,
    *,
    num_microbatches: int = 1,
    averaged: bool = False,
    num_expert_partitions: int = 1,
    rate: optax.Schedule = optimizer.learning_rate,
    **options: Any,
) -> Trained:
    """Return parameters and state after one update; `state` begins as `adafactor(...).init` has it.

    Pure, so to be jitted with everything behind the batch static, and with parameters and state
    donated. Options are those of `accumulated`.
    Errors: RejectedError OPT-12, MODEL-09, MODEL-10.
    Spec: OPT-01..OPT-11. Source: t5x trainer.py, contrib/moe/trainer.py::MoeTrainer.
    """
    found = accumulated(
        parameters,
        batch,
        configuration,
        num_microbatches=num_microbatches,
        averaged=averaged,
        **options,
    )
    gradients = optimizer.scaled_gradients(
        found.gradients, num_expert_partitions=num_expert_partitions
    )
    changes, state = adafactor(configuration, rate).update(gradients, state, parameters)
    return Trained(optax.apply_updates(parameters, changes), state, found.losses, found.metrics)
