"""Layer and train step on one accelerator: `python -m openmoe_production.bench_accelerator`.

Needs NumPy and JAX alone, as images with an accelerator have them, and a few minutes. The layer at the
shapes of Base and of 8B in bfloat16, over the bound of its batched products and beside the one-hot form;
a train step of Base in tokens a second, and as a share of the rate of one large product.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from openmoe_production import (
    bench,
    bench_bound,
    bench_model,
    initialisation,
    moe,
    one_hot,
    training,
)
from openmoe_production.bench_timing import MEASURED, compiled, judged, measured, seconds, table
from openmoe_spec.config import BASE, LARGE, Configuration

BOUNDS = {"forward": 1.20, "forward + backward": 1.25}
"""The layer's time over its bound's, at most."""
AHEAD = {"base": 1.7, "8b": 1.2}
"""The one-hot form's time over the layer's, at least; of forward and backward."""


def operands(case: bench.Case, groups: int) -> bench.Operands:
    """Return (inputs, weights, cotangent) of each program in bfloat16, the router in float32."""
    random = np.random.default_rng(0)

    def make(shape: tuple[int, ...], scale: float) -> jax.Array:
        drawn = random.standard_normal(shape, np.float32) * np.float32(scale)
        return jnp.asarray(drawn, jnp.bfloat16)

    given = bench.operands(case, make, groups)
    inputs, weights, cotangent = given["layer"]
    of_layer = inputs, weights | {"router": weights["router"].astype(jnp.float32)}, cotangent
    return {"bound": given["bound"], "layer": of_layer, "one-hot": of_layer}


def functions(case: bench.Case) -> Mapping[str, Callable[..., jax.Array]]:
    """Return what is timed by name."""

    def layer(inputs: jax.Array, weights: Any) -> jax.Array:
        options: dict[str, Any] = {"k": bench.K, "capacity": case.capacity}
        return moe.moe(inputs, weights, expert_dtype="bfloat16", **options).output

    masks = partial(one_hot.moe, k=bench.K, capacity=case.capacity)
    return {"bound": bench.bound, "layer": layer, "one-hot": masks}


def layer_rows(name: str, case: bench.Case, groups: int, rounds: int) -> list[list[str]]:
    """Return the rows of one shape: both passes of the three programs."""
    given, rows = operands(case, groups), []
    for which, most in BOUNDS.items():
        print(f"layer of {name}, {which}", file=sys.stderr, flush=True)
        made = {
            one: compiled(bench.with_cotangent(function, which), *given[one])
            for one, function in functions(case).items()
        }
        taken = seconds({one: partial(run, *given[one]) for one, run in made.items()}, rounds)
        middle = {one: statistics.median(times) for one, times in taken.items()}
        ahead = middle["one-hot"] / middle["layer"]
        targets = {
            "layer": judged(middle["layer"] / middle["bound"], most),
            "one-hot": f">= {AHEAD[name]:.1f} of the layer: "
            + ("met" if ahead >= AHEAD[name] else "missed")
            + f" ({ahead:.2f})",
        }
        for one, times in taken.items():
            target = targets.get(one, "") if one == "layer" or which != "forward" else ""
            rows.append([name, which, one, *measured(times, taken["bound"]), target])
    return rows


def dense_rate(size: int, rounds: int) -> float:
    """Return the operations a second of one product of `size` cubed in bfloat16."""
    one = jnp.ones((size, size), jnp.bfloat16)
    run = compiled(jnp.matmul, one, one)
    return 2 * size**3 / statistics.median(seconds({"": partial(run, one, one)}, rounds)[""])


def step_row(c: Configuration, rows: int, length: int, rate: float, rounds: int) -> list[str]:
    """Return a train step's milliseconds, tokens a second, and share of the rate of products.

    Operations are those of the products that `bench_bound` writes down, three for each: forward, and
    two backward.
    """
    print(f"train step of {c.name}", file=sys.stderr, flush=True)
    size = bench_model.Size(c.head_dim, c.num_layers, c.vocabulary_size, rows, length)
    batch = bench_model.batch_of(size)
    parameters = jax.jit(partial(initialisation.initialise, c))(key=jax.random.key(0))
    state = training.adafactor(c).init(parameters)
    step = partial(training.train_step, configuration=c, dtype="bfloat16", remat=True)
    run = compiled(step, parameters, state, batch, donate_argnums=(0, 1))

    def update() -> Any:
        nonlocal parameters, state
        made = run(parameters, state, batch)
        parameters, state = made.parameters, made.state
        return made.gradient_norms

    taken = statistics.median(seconds({"": update}, rounds)[""])
    wanted = bench_bound.products(c, rows, length, length, training=True, dtype="bfloat16")
    operations = 3 * sum(map(_operations, wanted))
    speed = rows * length / taken
    share = operations / taken / rate
    return [c.name, f"{1e3 * taken:.1f}", f"{speed:,.0f}", f"{share:.2f}"]


def _operations(one: bench_bound.Product) -> int:
    """Return two for each multiplication of a product: every axis of its form once."""
    left, right = one.form.split("->")[0].split(",")
    sizes = dict(zip(left + right, one.left + one.right, strict=True))
    return 2 * math.prod(sizes.values())


def page(options: argparse.Namespace) -> str:
    """Run everything and return it as Markdown."""
    device = jax.devices()[0]
    cases = {
        c.name: bench.Case(options.tokens, c.num_experts, c.embed_dim, c.expert_width)
        for c in (BASE, LARGE)
    }
    if options.shrink > 1:
        cases = {
            name: one._replace(
                width=one.width // options.shrink, hidden=one.hidden // options.shrink
            )
            for name, one in cases.items()
        }
    rows = [
        row
        for name, case in cases.items()
        for row in layer_rows(name, case, options.groups, options.rounds)
    ]
    rate = dense_rate(options.product, options.rounds)
    steps = []
    if options.shrink == 1:
        steps = [step_row(BASE, options.rows, options.length, rate, options.rounds)]
    return f"""## On an accelerator

{device.device_kind} ({device.platform}), one of {len(jax.devices())}; Python {platform.python_version()}, \
jax {jax.__version__}, numpy {np.__version__}.
{options.groups} groups of {options.tokens} tokens, K = {bench.K}, capacity factor {bench.CAPACITY_FACTOR}, bfloat16, \
router float32; milliseconds of {options.rounds}
interleaved rounds.

{table(("shape", "pass", "program", *MEASURED, "target"), rows)}

One product of {options.product} cubed: {rate / 1e12:.3g} TFLOP/s. A train step of {options.rows} x {options.length} tokens, bfloat16, \
layers computed again:

{table(("model", "median", "tokens/s", "share of the rate"), steps) if steps else "not measured at this size."}
"""


_SIZES: Mapping[str, tuple[int, str]] = {
    "groups": (8, "G of the layer"),
    "tokens": (4096, "T of a group"),
    "rounds": (16, "timed runs of each program"),
    "product": (8192, "size of the product whose rate is taken"),
    "rows": (16, "B of the train step"),
    "length": (2048, "L of the train step"),
    "shrink": (1, "divides D and F, to try the script out; without a train step"),
}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the sizes that arguments give."""
    parser = argparse.ArgumentParser(
        prog="python -m openmoe_production.bench_accelerator",
        description="Time layer and train step on one accelerator.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, (value, text) in _SIZES.items():
        parser.add_argument(f"--{name}", type=int, default=value, help=text)
    options = parser.parse_args(arguments)
    for name in _SIZES:
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be 1 or more")
    return options


if __name__ == "__main__":
    print(page(parse()))
