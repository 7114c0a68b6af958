"""Times of programs that run in turns, for the tools' benchmarks; production has its own, with JAX."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def in_turns(programs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each program, run in turns after a first time."""
    taken: dict[str, list[float]] = {name: [] for name in programs}
    for number in range(rounds + 1):
        for name, program in programs.items():
            begun = time.perf_counter()
            program()
            if number:
                taken[name].append(time.perf_counter() - begun)
    return {name: statistics.median(times) for name, times in taken.items()}
