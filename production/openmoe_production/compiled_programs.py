"""What a compiled program does, read from its text: products, and what devices send one another.

XLA partitions nothing here: `jax.shard_map` has done so, and the text is that of one device.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import NamedTuple

COLLECTIVES = ("all-to-all", "all-gather", "reduce-scatter", "all-reduce", "collective-permute")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s32": 4, "u32": 4, "f32": 4, "f64": 8}
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_LINE = re.compile(r"\s*(?:ROOT )?%?([\w.\-]+) = (.+?) ([a-z][\w\-]*)\((.*)")
_CALLED = re.compile(r"(?:calls|to_apply|body|condition)=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')
_CUT = re.compile(r"lhs_contracting_dims=\{([\d,]*)\}")
_SCATTER = re.compile(r'"stablehlo\.scatter".*?\}\) : \(tensor<([^>]*)>', re.DOTALL)

Shape = tuple[int, ...]


class Found(NamedTuple):
    """What one device does when a program runs once.

    flops     of matrix products, two for a multiplication and an addition
    bytes     that it receives or holds of each kind of collective: the size of the results
    gathered  shapes of the results of all-gathers
    """

    flops: int
    bytes: Counter[str]
    gathered: set[Shape]


def read(text: str) -> Found:
    """Return what a compiled program's text, as `compiled.as_text()` gives it, says."""
    computations, entry = _computations(text)
    flops, sizes, gathered = 0, Counter[str](), set[Shape]()
    for times, line in _run(computations, entry, 1):
        if line.kind == "dot":
            flops += times * line.flops
        kind = line.kind.removesuffix("-start")
        if kind in COLLECTIVES:
            sizes[kind] += times * sum(_size(kind, shape) for kind, shape in line.results)
            if kind == "all-gather":
                gathered |= {shape for _, shape in line.results}
    return Found(flops, sizes, gathered)


def float_scatters(lowered: str) -> int:
    """Return how many scatters of floating-point values a program has before it is compiled.

    A CPU's compiler turns scatters into loops, so its own text does not show them.
    """
    kinds = (one.rpartition("x")[2] for one in _SCATTER.findall(lowered))
    return sum("f" in kind for kind in kinds)


class _Line(NamedTuple):
    """One instruction: its results, and what it calls, as often as its loop turns."""

    kind: str
    results: list[tuple[str, Shape]]
    flops: int
    called: list[str]
    times: int


def _computations(text: str) -> tuple[Mapping[str, list[_Line]], str]:
    found: dict[str, list[_Line]] = {}
    shapes: dict[str, Shape] = {}
    entry, here = "", ""
    for line in text.splitlines():
        if line.endswith("{") and "->" in line:
            here = line.removeprefix("ENTRY ").strip().lstrip("%").split(" ")[0].split("(")[0]
            found[here] = []
            entry = here if line.startswith("ENTRY") else entry
        elif match := _LINE.match(line):
            name, result, kind, rest = match.groups()
            results = [(dtype, _shape(size)) for dtype, size in _ARRAY.findall(result)]
            if len(results) == 1:
                shapes[name] = results[0][1]
            trips = _TRIPS.search(rest)
            found[here].append(
                _Line(
                    kind,
                    results,
                    _flops(results[0][1], rest, shapes) if kind == "dot" else 0,
                    _CALLED.findall(rest),
                    int(trips[1]) if trips else 1,
                )
            )
    return found, entry


def _shape(sizes: str) -> Shape:
    return tuple(int(one) for one in sizes.split(",") if one)


def _flops(result: Shape, rest: str, shapes: Mapping[str, Shape]) -> int:
    """Return 2 x the result's elements x the length that is summed over."""
    operands = rest.split(")", maxsplit=1)[0]
    written = _ARRAY.search(operands)
    named = re.search(r"%([\w.\-]+)", operands)
    first = _shape(written[2]) if written else shapes[named[1] if named else operands.split(",")[0]]
    cut = _CUT.search(rest)
    assert cut is not None
    return 2 * math.prod(result) * math.prod(first[axis] for axis in _shape(cut[1]))


def _size(dtype: str, shape: Shape) -> int:
    return _BYTES.get(dtype, 0) * math.prod(shape)


def _run(
    computations: Mapping[str, list[_Line]], name: str, times: int
) -> Iterator[tuple[int, _Line]]:
    for line in computations.get(name, ()):
        yield times, line
        for called in line.called:
            yield from _run(computations, called, times * line.times)
