"""What the cross entropy in chunks costs beside the plain form, which holds all logits."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from openmoe_production import cross_entropy, layers
from openmoe_production.bench_timing import MEASURED, compiled, judged, measured, seconds, table
from openmoe_production.vocabulary_loss import text_loss

TIME_TARGET, MEMORY_TARGET = 1.10, 1 / 8


class Size(NamedTuple):
    """Rows B of L positions, D, and V."""

    rows: int = 2
    length: int = 1024
    width: int = 256
    vocabulary: int = 32_768


def programs(size: Size) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Return loss and gradients in both forms, compiled, and their operands."""
    draws = np.random.default_rng(0)
    shape = (size.rows, size.length)
    normed = jnp.asarray(draws.standard_normal((*shape, size.width), np.float32))
    kernel = jnp.asarray(
        draws.standard_normal((size.width, size.vocabulary), np.float32) * size.width**-0.5
    )
    batch = {"decoder_target_tokens": jnp.asarray(draws.integers(1, size.vocabulary, shape))}
    mask = jnp.ones(shape, bool)

    def plain(normed: jax.Array, kernel: jax.Array, batch: Any) -> jax.Array:
        logits = layers.output_logits(normed, kernel, mask=mask)
        targets = batch["decoder_target_tokens"]
        return cross_entropy.cross_entropy(
            logits,
            targets,
            weights=jnp.ones(shape),
            normalizing_factor=float(targets.size),
            z_loss=1e-4,
        ).loss

    def chunks(normed: jax.Array, kernel: jax.Array, batch: Any) -> jax.Array:
        return text_loss(normed, kernel, batch, mask=mask, z_loss_factor=1e-4)["loss"]

    forms: dict[str, Callable[..., jax.Array]] = {"plain": plain, "chunks": chunks}
    given = normed, kernel, batch
    return {
        name: (compiled(jax.value_and_grad(form, argnums=(0, 1)), *given), given)
        for name, form in forms.items()
    }


def section(size: Size | None = None, rounds: int = 8) -> str:
    """Return time and temporary memory of both forms as Markdown."""
    size = Size() if size is None else size
    print("cross entropy in chunks", file=sys.stderr, flush=True)
    made = programs(size)
    taken = seconds({name: partial(one, *given) for name, (one, given) in made.items()}, rounds)
    memory = {name: one.memory_analysis().temp_size_in_bytes for name, (one, _) in made.items()}
    rows = []
    for name, times in taken.items():
        ratio = statistics.median(times) / statistics.median(taken["plain"])
        share = memory[name] / memory["plain"]
        targets = (
            (judged(ratio, TIME_TARGET), judged(share, MEMORY_TARGET, 3))
            if name == "chunks"
            else ("", "")
        )
        cells = measured(times, taken["plain"])
        rows.append(
            [name, *cells, targets[0], f"{memory[name] / 1e6:.1f}", f"{share:.3f}", targets[1]]
        )
    head = ("form", *MEASURED, "target", "temporary MB", "to plain", "target of memory")
    return f"""## Cross entropy in chunks

Loss and gradients of text, the output projection included: {size.rows} x {size.length} positions, D = {size.width}, \
V = {size.vocabulary}, float32.
Milliseconds of {rounds} interleaved rounds; temporary memory as XLA plans it. *plain* holds all logits.

{table(head, rows)}
"""
