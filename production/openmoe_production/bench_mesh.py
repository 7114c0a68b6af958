"""What the layer computes and sends on meshes of eight devices: `python -m openmoe_production.bench_mesh`.

Read from compiled programs, beside the arithmetic of the specification; nothing is run. In a process of
its own, since a processor is made eight devices before anything else.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from openmoe_production import compiled_programs, mesh_layer
from openmoe_production.bench_timing import table
from openmoe_production.sharding import Layout, make_mesh

DEVICES = 8


class Size(NamedTuple):
    """The layer that is looked at: G groups of T tokens, D, F, E experts of C slots, K choices."""

    groups: int = 8
    tokens: int = 384
    width: int = 128
    hidden: int = 256
    experts: int = 8
    capacity: int = 60
    k: int = 2


def section() -> str:
    """Return the table as Markdown, made in a process of its own; where that fails, its last line."""
    print("programs on meshes", file=sys.stderr, flush=True)
    name = "openmoe_production.bench_mesh"
    flags = f"--xla_force_host_platform_device_count={DEVICES}"
    found = subprocess.run(  # noqa: S603 - this module
        [sys.executable, "-m", name],
        env={**os.environ, "XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode:
        last = (found.stderr.strip().splitlines() or ["no word of why"])[-1]
        return f"## The layer on meshes\n\nNot measured: {last}\n"
    return found.stdout


def rows(size: Size) -> Iterator[list[str]]:
    """Yield a row of the table for each mesh of 1 and of 8 devices."""
    for mesh in meshes():
        yield row(size, mesh)


def meshes() -> list[tuple[int, int, int]]:
    """Return one device, and every mesh of eight."""
    powers = [1, 2, 4, 8]
    whole = [(d, e, m) for d in powers for e in powers for m in powers if d * e * m == DEVICES]
    return [(1, 1, 1), *whole]


def programs(size: Size, mesh: tuple[int, int, int]) -> tuple[Any, Any]:
    """Return the layer's forward and backward pass on a mesh, lowered and compiled."""
    layout = Layout(make_mesh(*mesh))

    def placed(shape: tuple[int, ...], *axes: str | None) -> Any:
        sharding = layout.sharding(*axes)
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=sharding)  # type: ignore[no-untyped-call]

    shapes = {
        "router": (size.width, size.experts),
        "wi_0": (size.experts, size.width, 2, size.hidden),  # in halves, as a run holds it
        "wi_1": (size.experts, size.width, size.hidden),
        "wo": (size.experts, size.hidden, size.width),
    }
    weights = {name: placed(shape, *mesh_layer.AXES[name]) for name, shape in shapes.items()}
    inputs = placed((size.groups, size.tokens, size.width), "batch")

    def value(inputs: jax.Array, weights: Any, cotangent: jax.Array) -> jax.Array:
        found = mesh_layer.layer(
            inputs, weights, layout=layout, k=size.k, capacity=size.capacity
        ).output
        return (found * cotangent).sum()

    step = jax.jit(jax.value_and_grad(value, argnums=(0, 1)))
    lowered = step.lower(inputs, weights, inputs)
    return lowered, lowered.compile()


def arithmetic(size: Size) -> int:
    """Return the products of all devices together: three passes of the experts and of the router."""
    slots, tokens = size.groups * size.experts * size.capacity, size.groups * size.tokens
    experts = 8 * slots * size.width * size.hidden
    router = 2 * tokens * size.width * size.experts
    return 3 * (experts + router)


def exchanged(size: Size, mesh: tuple[int, int, int]) -> int:
    """Return the bytes that one device exchanges: its slots there and back, forward and backward."""
    data, expert, model = mesh
    slots = size.groups // (data * expert) * size.experts * size.capacity
    return 4 * 4 * slots * size.width // model if expert > 1 else 0


def row(size: Size, mesh: tuple[int, int, int]) -> list[str]:
    """Return a mesh's row of the table, by HEAD."""
    lowered, compiled = programs(size, mesh)
    found = compiled_programs.read(compiled.as_text())
    devices = mesh[0] * mesh[1] * mesh[2]
    sent = found.bytes["all-to-all"]
    wanted = exchanged(size, mesh)
    rest = [
        f"{found.bytes[kind] / 1e6:.2f}" for kind in ("all-gather", "reduce-scatter", "all-reduce")
    ]
    experts = size.experts // mesh[1]
    weights = {
        (experts, size.width, size.hidden),
        (experts, size.hidden, size.width),
        (experts, size.width, 2, size.hidden),
    }
    return [
        " x ".join(map(str, mesh)),
        f"{devices * found.flops / arithmetic(size):.3f}",
        f"{sent / 1e6:.2f}",
        "-" if not wanted else f"{sent / wanted:.2f}",
        *rest,
        "yes" if weights & found.gathered else "no",
        str(compiled_programs.float_scatters(lowered.as_text())),
    ]


HEAD = (
    "mesh",
    "FLOPs to arithmetic",
    "all-to-all MB",
    "to arithmetic",
    "all-gather MB",
    "reduce-scatter MB",
    "all-reduce MB",
    "expert weights gathered",
    "float scatters",
)


def page(size: Size) -> str:
    """Return the section as Markdown."""
    return f"""## The layer on meshes

Read from the compiled programs of {DEVICES} forced devices, forward and backward; nothing is run. G = {size.groups}, \
T = {size.tokens}, D = {size.width}, F = {size.hidden},
E = {size.experts}, C = {size.capacity}, float32. Meshes are data x expert x model.

- **FLOPs**: of matrix products, all devices together, over the specification's arithmetic: above 1 is work done twice.
- **MB**: of one device, 10^6 bytes; the exchange is beside its arithmetic, each slot there and back in both passes.
- The router is computed by every part of a width, which is the little above 1 where model > 1.

{table(HEAD, list(rows(size)))}
"""


if __name__ == "__main__":
    print(page(Size()))
