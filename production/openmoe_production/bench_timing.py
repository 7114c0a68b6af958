"""How programs are timed against one another, and how the numbers are shown."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

Program = Callable[[], Any]
"""A program with its operands; what it returns is waited for."""


def compiled(function: Callable[..., Any], *operands: Any, **options: Any) -> Any:
    """Return `function` compiled for `operands`; options are those of `jax.jit`."""
    return jax.jit(function, **options).lower(*operands).compile()


def seconds(programs: Mapping[str, Program], rounds: int) -> dict[str, list[float]]:
    """Return each program's times: all run in every round, so that a busy spell hits all alike."""
    names = list(programs)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(1 + rounds):
        first = turn % len(names)
        for name in names[first:] + names[:first]:
            start = time.perf_counter()
            jax.block_until_ready(programs[name]())  # type: ignore[no-untyped-call]
            taken[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in taken.items()}  # the first round warms up


def measured(times: Sequence[float], bound: Sequence[float]) -> list[str]:
    """Return cells: median and least in milliseconds, and the ratios of both to the bound's."""
    median, least = statistics.median(times), min(times)
    ratios = median / statistics.median(bound), least / min(bound)
    return [f"{1e3 * median:.1f}", f"{1e3 * least:.1f}", *(f"{one:.2f}" for one in ratios)]


MEASURED = ("median", "least", "of medians", "of least")
"""The heads of those cells."""


def judged(ratio: float, most: float, digits: int = 2) -> str:
    """Return a target and whether a ratio meets it."""
    return f"<= {most:.{digits}f}: {'met' if ratio <= most else 'missed'}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Return a Markdown table whose columns are aligned, to be read as plain text too."""
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [head, ["-" * width for width in widths], *rows]
    return "\n".join(
        f"| {' | '.join(cell.ljust(width) for cell, width in zip(line, widths, strict=True))} |"
        for line in lines
    )
