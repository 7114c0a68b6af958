"""What layer and model cost beyond their matrix products: `python -m openmoe_production.bench`.

Of the layer, in one process: itself; the bound, only the experts' products and activation on filled
slots; the one-hot form of the training code. Ratios travel to other machines, times do not. The
whole model's part of the page is `bench_model`.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from openmoe_production import bench_model, grouping, moe, one_hot
from openmoe_production.bench_timing import MEASURED, compiled, judged, measured, seconds, table
from openmoe_production.layers import gated_mlp

TIME_TARGET = 1.10
MEMORY_TARGET = 1.35
"""The layer's temporary memory over the bound's, at most; above, the same of its time."""
PASSES = ("forward", "forward + backward")
_SIZES: Mapping[str, tuple[int | list[int], str]] = {
    "tokens": (4096, "T of the timed group"),
    "experts": ([16, 32], "every E timed; memory is planned for the largest"),
    "rounds": (16, "timed runs of each program of the layer, and of each step"),
    "width": (512, "D"),
    "hidden": (2048, "F"),
    "memory": ([1024, 2048, 4096, 8192, 16384], "every T whose memory is planned"),
    "model-rounds": (5, "timed runs of each program of the model"),
    "head-width": (22, "N of the model: D = 12 N, F = 32 N"),
    "layers": (12, "of the model, a multiple of 4"),
    "vocabulary": (4096, "V of the model"),
    "rows": (2, "B of the model's batch"),
    "length": (512, "L of the model's batch"),
    "caches": ([512, 1024, 2048], "every L of a cache"),
    "batches": ([1, 8], "every B that is decoded"),
}
K = 2
CAPACITY_FACTOR = 1.25
Make = Callable[[tuple[int, ...], float], Any]
Operands = Mapping[str, tuple[Any, Any, Any]]


class Case(NamedTuple):
    """One group of T tokens before E experts."""

    tokens: int
    experts: int
    width: int
    hidden: int

    @property
    def capacity(self) -> int:
        """Slots of one expert."""
        return grouping.expert_capacity(
            self.tokens, num_experts=self.experts, capacity_factor=CAPACITY_FACTOR
        )


def layer(inputs: jax.Array, parameters: Mapping[str, jax.Array], *, capacity: int) -> jax.Array:
    """Return the layer's output only: XLA removes the metrics."""
    return moe.moe(inputs, parameters, k=K, capacity=capacity).output


def bound(slots: jax.Array, weights: Mapping[str, jax.Array]) -> jax.Array:
    """Return the experts' outputs on filled slots [E, C, D]: what no layer can do without."""
    return gated_mlp(slots, weights["wi_0"], weights["wi_1"], weights["wo"])


def operands(case: Case, make: Make, groups: int = 1) -> Operands:
    """Return (inputs, weights, cotangent) of each program for so many groups, from make(shape, scale)."""
    tokens, experts, width, hidden = case
    weights = {
        "wi_0": make((experts, width, 2 * hidden), width**-0.5),
        "wi_1": make((experts, width, hidden), width**-0.5),
        "wo": make((experts, hidden, width), hidden**-0.5),
    }
    parameters = {"router": make((width, experts), width**-0.5), **weights}
    rows, slots = (groups, tokens, width), (experts, groups * case.capacity, width)
    of_layer = make(rows, 1), parameters, make(rows, 1)
    of_bound = make(slots, 1), weights, make(slots, 1)
    return {"bound": of_bound, "layer": of_layer, "one-hot": of_layer}


def programs(case: Case, which: str, given: Operands) -> dict[str, Any]:
    """Return the compiled programs of a pass by name."""
    functions: dict[str, Callable[..., jax.Array]] = {
        "bound": bound,
        "layer": partial(layer, capacity=case.capacity),
        "one-hot": partial(one_hot.moe, k=K, capacity=case.capacity),
    }
    return {
        name: compiled(with_cotangent(function, which), *given[name])
        for name, function in functions.items()
    }


def with_cotangent(function: Callable[..., jax.Array], which: str) -> Callable[..., Any]:
    """Return `function` or its gradients; both take the cotangent, so calls look alike."""
    if which == PASSES[0]:
        return lambda inputs, weights, _: function(inputs, weights)
    # The value is returned too: without it XLA would skip the last product of the bound's forward.
    return jax.value_and_grad(
        lambda inputs, weights, cotangent: (function(inputs, weights) * cotangent).sum(),
        argnums=(0, 1),
    )


def time_rows(case: Case, rounds: int) -> list[list[str]]:
    """Return the rows of the table of times for one number of experts."""
    random = np.random.default_rng(0)

    def make(shape: tuple[int, ...], scale: float) -> jax.Array:
        return jnp.asarray(random.standard_normal(shape, np.float32) * np.float32(scale))

    given = operands(case, make)
    rows = []
    for which in PASSES:
        print(f"time, E = {case.experts}, {which}", file=sys.stderr)
        made = programs(case, which, given)
        taken = seconds({name: partial(one, *given[name]) for name, one in made.items()}, rounds)
        for name, times in taken.items():
            ratio = statistics.median(times) / statistics.median(taken["bound"])
            target = judged(ratio, TIME_TARGET) if name == "layer" else ""
            row = [str(case.experts), which, name, *measured(times, taken["bound"]), target]
            rows.append(row)
    return rows


def memory_rows(case: Case) -> list[list[str]]:
    """Return the rows of the table of memory for one number of tokens; nothing is run."""
    given = jax.eval_shape(partial(operands, case, lambda shape, _: jnp.zeros(shape)))
    rows = []
    for which in PASSES:
        print(f"memory, T = {case.tokens}, {which}", file=sys.stderr)
        used = {name: p.memory_analysis() for name, p in programs(case, which, given).items()}
        for name, memory in used.items():
            size = memory.temp_size_in_bytes
            ratio = size / used["bound"].temp_size_in_bytes
            target = judged(ratio, MEMORY_TARGET) if name == "layer" else ""
            row = [which, name, str(case.tokens), f"{size / 1e6:.1f}", f"{size / case.tokens:.0f}"]
            rows.append([*row, f"{ratio:.2f}", target])
    return rows


def page(options: argparse.Namespace, more: Sequence[Callable[[], str]] = ()) -> str:
    """Run everything and return the report as a Markdown page, with `more` sections in it."""
    sizes = options.width, options.hidden
    timed = [Case(options.tokens, experts, *sizes) for experts in options.experts]
    print("timing: a few minutes", file=sys.stderr, flush=True)
    times = [row for case in timed for row in time_rows(case, options.rounds)]
    planned = [Case(tokens, max(options.experts), *sizes) for tokens in options.memory]
    memory = [row for case in planned for row in memory_rows(case)]
    memory.sort(key=lambda row: row[:2])  # so that T grows from one line to the next
    size = bench_model.Size(
        options.head_width, options.layers, options.vocabulary, options.rows, options.length
    )
    sections = [
        bench_model.section(
            size,
            options.caches,
            options.batches,
            rounds=options.model_rounds,
            step_rounds=options.rounds,
        )
    ]
    sections += [section() for section in more]
    values = {name: np.ravel(_value(options, name)) for name in _SIZES}
    chosen = " ".join(f"--{name} {' '.join(map(str, value))}" for name, value in values.items())
    return f"""# Benchmarks

Python {platform.python_version()}, jax {jax.__version__}, numpy {np.__version__};
{platform.system()} {platform.machine()}, {os.cpu_count()} processors, on {jax.default_backend()}.
Ratios are of programs that ran in turns in one process: they travel to other machines, times do not.

## The layer

float32, D = {options.width}, F = {options.hidden}, K = {K}, capacity factor {CAPACITY_FACTOR}.

- **layer**: `openmoe_production.moe.moe`, its output only.
- **bound**: the experts' batched products and activation alone, on filled slots [E, C, D].
- **one-hot**: the same layer by masks [G, T, E, C], as the training code computes it.

The backward pass is that of sum(output x cotangent), with gradients of inputs and all weights.

### Time

Milliseconds of {options.rounds} interleaved rounds after a warm-up; ratios to the bound.
T = {options.tokens} tokens in one group.

{table(("E", "pass", "program", *MEASURED, "target"), times)}

### Memory

Temporary memory of the compiled program as XLA plans it, in megabytes (10^6 bytes); nothing is
run. One group of T tokens, E = {max(options.experts)}. Linear in T: bytes per token stay the same.
Backward, XLA on a CPU keeps temporaries in the buffers of the results, the weights' gradients,
while they fit: past that size bytes per token rise by steps, the bound's as well.

{table(("pass", "program", "T", "megabytes", "bytes per token", "to bound", "target"), memory)}

{chr(10).join(sections)}
## Reproduce

    python -m openmoe_production.bench {chosen}
"""


def _value(options: argparse.Namespace, name: str) -> Any:
    return getattr(options, name.replace("-", "_"))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m openmoe_production.bench",
        description="Compare layer and model with the bounds of their matrix products.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for name, (value, text) in _SIZES.items():
        many = "+" if isinstance(value, list) else None
        parser.add_argument(f"--{name}", type=int, nargs=many, default=value, help=text)
    folder = Path(__file__).parents[1]
    # An installed package lies in site-packages, where no page belongs.
    default = folder / "BENCHMARKS.md" if folder.name == "production" else None
    parser.add_argument("--output", type=Path, default=default, help="Markdown page to write")
    parser.add_argument("--no-write", action="store_true", help="print only")
    return parser


def main(arguments: Sequence[str] | None = None, more: Sequence[Callable[[], str]] = ()) -> None:
    """Measure, print the report and write it as a page; `more` are further sections of it."""
    parser = _parser()
    options = parser.parse_args(arguments)
    for name in _SIZES:
        if np.min(_value(options, name)) < 1:
            parser.error(f"--{name} must be 1 or more")
    if options.layers % bench_model.INTERVAL:
        parser.error(f"--layers must be a multiple of {bench_model.INTERVAL}")
    text = page(options, more)
    print(text)
    if options.output and not options.no_write:
        options.output.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
