"""What a whole model costs beyond its matrix products, and what a decoded token costs.

The model has Base's proportions at another head width N: 12 heads, D = 12 N, F = 32 N, 16 experts.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from openmoe_production import decoding, initialisation, model, training
from openmoe_production.bench_bound import bound, operands, products
from openmoe_production.bench_timing import (
    MEASURED,
    Program,
    compiled,
    judged,
    measured,
    seconds,
    table,
)
from openmoe_spec.config import BASE, Configuration
from openmoe_spec.parameters import count
from openmoe_spec.records import Cache

INTERVAL = BASE.num_layers // BASE.num_moe_layers
DTYPES_TIMED = ("float32", "bfloat16")
PASSES = ("forward", "gradients")


class Size(NamedTuple):
    """What is timed: N, layers (each fourth sparse), V, and a batch of B rows of L tokens."""

    head_width: int
    layers: int
    vocabulary: int
    rows: int
    length: int


def shrunk(size: Size) -> Configuration:
    """Return Base with another head width, number of layers and vocabulary."""
    return replace(
        BASE,
        name="shrunk",
        embed_dim=BASE.num_heads * size.head_width,
        head_dim=size.head_width,
        mlp_dim=BASE.mlp_dim // BASE.head_dim * size.head_width,
        num_layers=size.layers,
        num_moe_layers=size.layers // INTERVAL,
        vocabulary_size=size.vocabulary,
        max_length=size.length,
    )


# ---- passes of a batch -------------------------------------------------------------------------


def batch_of(size: Size) -> dict[str, jax.Array]:
    """Return whole rows of random ids."""
    shape = (size.rows, size.length)
    targets = np.random.default_rng(1).integers(1, size.vocabulary, shape, np.int32)
    inputs = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    named = {"decoder_input_tokens": inputs, "decoder_target_tokens": targets}
    return {name: jnp.asarray(value) for name, value in named.items()}


def programs(size: Size, which: str, dtype: str) -> dict[str, tuple[Any, tuple[Any, ...]]]:
    """Return the compiled programs of a pass and their operands, by name."""
    c, batch = shrunk(size), batch_of(size)
    apart = initialisation.initialise(c, jax.random.key(0))
    scan = model.stack(apart, c)
    training_pass = which == "gradients"
    wanted = tuple(
        products(c, size.rows, size.length, size.length, training=training_pass, dtype=dtype)
    )
    made: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
        "bound": (partial(bound, wanted=wanted, which=which), (operands(wanted),))
    }
    if not training_pass:

        def forward(parameters: Any, batch: Any) -> jax.Array:
            return model.forward(parameters, batch, c, dtype=dtype).logits

        made |= {"apart": (forward, (apart, batch)), "scan": (forward, (scan, batch))}
    else:

        def gradients(parameters: Any, batch: Any, *, remat: bool = False) -> Any:
            def loss(parameters: Any) -> tuple[jax.Array, Any]:
                options: dict[str, Any] = {"training": True, "dtype": dtype, "remat": remat}
                return model.loss_fn(parameters, batch, c, **options)

            return jax.value_and_grad(loss, has_aux=True)(parameters)

        made["apart"] = gradients, (apart, batch)
        if dtype == "float32":  # variants of one program: once is enough, and compiling takes long
            again = partial(gradients, remat=True)
            made["scan"] = gradients, (scan, batch)
            made["apart, remat"], made["scan, remat"] = (
                (again, (given, batch)) for given in (apart, scan)
            )
        step = partial(training.train_step, configuration=c, dtype=dtype)
        made["train step"] = step, (apart, training.adafactor(c).init(apart), batch)
    return {name: (compiled(run, *given), given) for name, (run, given) in made.items()}


def pass_rows(size: Size, rounds: int) -> list[list[str]]:
    """Return the rows of the table of passes."""
    rows = []
    for dtype in DTYPES_TIMED:
        for which in PASSES:
            print(f"model, {dtype}, {which}", file=sys.stderr, flush=True)
            made = programs(size, which, dtype)
            taken = seconds(
                {name: partial(run, *given) for name, (run, given) in made.items()}, rounds
            )
            for name, times in taken.items():
                speed = size.rows * size.length / statistics.median(times)
                memory = made[name][0].memory_analysis().temp_size_in_bytes
                outside = 1 - statistics.median(taken["bound"]) / statistics.median(times)
                cells = [*measured(times, taken["bound"]), f"{outside:.2f}"]
                cells += [f"{speed:.0f}", f"{memory / 1e6:.0f}"]
                rows.append([dtype, which, name, *cells])
    return rows


# ---- decoding ----------------------------------------------------------------------------------


def step_rows(
    size: Size, lengths: Sequence[int], batches: Sequence[int], rounds: int
) -> list[list[str]]:
    """Return the rows of the table of cached steps."""
    c = shrunk(size)
    parameters = model.stack(initialisation.initialise(c, jax.random.key(0)), c)
    made: dict[str, Program] = {}
    cases = [(rows, length) for rows in batches for length in sorted(lengths)]
    for rows, length in cases:
        print(f"decoding, B = {rows}, L = {length}", file=sys.stderr, flush=True)
        made[f"{rows} {length}"] = _stepper(c, parameters, rows, length)
        wanted = tuple(products(c, rows, 1, length, training=False, dtype="float32"))
        given = operands(wanted)
        run = compiled(partial(bound, wanted=wanted, which="forward"), given)
        made[f"{rows} {length} bound"] = partial(run, given)
    taken = seconds(made, rounds)
    found: list[list[str]] = []
    before: tuple[int, int, float] | None = None
    for rows, length in cases:
        times, limit = taken[f"{rows} {length}"], taken[f"{rows} {length} bound"]
        growth = ["", ""]
        if before is not None and before[0] == rows:
            longer, slower = length / before[1], min(times) / before[2]
            growth = [f"{slower:.2f}", judged(slower, longer)]
        before = rows, length, min(times)
        of_bound = f"{1e3 * statistics.median(limit):.1f}"
        token = f"{1e3 * statistics.median(times) / rows:.1f}"
        found.append([str(rows), str(length), *measured(times, limit), of_bound, token, *growth])
    return found


def _stepper(c: Configuration, parameters: Any, rows: int, length: int) -> Program:
    """Return a step that goes on with its own cache, whose memory it uses again."""
    shape = (c.num_layers, rows, length, c.key_value_heads, c.head_dim)
    random = np.random.default_rng(2)
    keys, values = (jnp.asarray(random.random(shape, np.float32)) for _ in range(2))
    cache = Cache(keys, values, jnp.asarray(np.full(rows, length // 2, np.int32)))
    tokens = jnp.asarray(np.full(rows, 2, np.int32))

    def step(parameters: Any, tokens: jax.Array, cache: Cache) -> tuple[Cache, jax.Array]:
        cache, result = decoding.step(parameters, tokens, cache, c)
        return cache, result.logits

    run = compiled(step, parameters, tokens, cache, donate_argnums=2)

    def advance() -> jax.Array:
        nonlocal cache
        cache, logits = run(parameters, tokens, cache)
        return logits

    return advance


# ---- the page ----------------------------------------------------------------------------------


def section(
    size: Size,
    caches: Sequence[int],
    batches: Sequence[int],
    *,
    rounds: int,
    step_rounds: int,
) -> str:
    """Run everything and return the model's part of the page."""
    c, elements = shrunk(size), count(shrunk(size)).total
    passes, steps = pass_rows(size, rounds), step_rows(size, caches, batches, step_rounds)
    heads = ("dtype", "pass", "program", *MEASURED, "outside", "tokens/s", "temporary MB")
    of_steps = ("B", "L", *MEASURED, "bound", "a token", "growth", "target")
    return f"""## The whole model

Base in small: D = {c.embed_dim}, F = {c.mlp_dim}, {c.num_heads} heads of {c.head_dim}, \
{c.num_layers} layers, {c.num_moe_layers} of them sparse, E = {c.num_experts}, K = \
{c.num_selected_experts}, V = {c.vocabulary_size}: {elements / 1e6:.1f} million elements.
A batch is {size.rows} x {size.length} tokens, all of them text.
Milliseconds of {rounds} interleaved rounds after a warm-up; ratios to the bound.

- **bound**: every matrix product of the pass, with its shape and dtype and operands of its own;
  backward both products that carry each one's cotangent back. The program does nothing else.
- **apart**, **scan**: `model.forward` with layers one by one, and with blocks of layers under \
`lax.scan` (`model.stack`).
  An evaluation pass forward; gradients are of `model.loss_fn` in a training pass, in all tensors.
- **remat**: layers are computed again in the backward pass. The bound does not do that.
- **train step**: `training.train_step`, layers one by one: gradients and Adafactor.
- *outside*: the share of the median that is not the bound's, so spent outside matrix products.

bfloat16 is that of activations and experts: a CPU has to emulate it.

{table(heads, passes)}

## Decoding

Milliseconds of {step_rounds} interleaved rounds of one cached step of B rows, float32, with a cache of L slots; every
step rotates all keys anew. *A token* is the median over B. *Growth* is the least time over that with
the cache before; a step must not grow faster than its cache.

{table(of_steps, steps)}
"""
