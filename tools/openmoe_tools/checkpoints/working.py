"""Going over tensors in bounded memory and in parallel."""

from __future__ import annotations

import math
import os
import re
import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy import ndarray
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from openmoe_conformance.outcome import UsageError
from openmoe_spec.layouts import TRANSPOSE
from openmoe_tools.checkpoints.containers.opening import Checkpoint
from openmoe_tools.checkpoints.containers.stored import DTYPES, Unreadable

Item = TypeVar("Item")
Made = TypeVar("Made")

OWN = 256 << 20
"""Bytes that the program takes before it holds any tensor: the interpreter and its libraries."""

LEAST = 512 << 20
_SEQUENTIAL = 1 << 20
"""Bytes read at once where any will do: what fits a core's cache is digested fastest."""


def memory(text: str) -> int:
    """Return bytes from `2GB`, `1.5 GB`, `800MiB` or a number. Errors: UsageError."""
    try:
        found = size_of(text)
    except ValueError as error:
        raise UsageError(f"--memory {text}: is no size; write it as 2GB or 800MB") from error
    if found < LEAST:
        raise UsageError(f"--memory {text}: at least {LEAST >> 20} MiB are needed")
    return found


def size_of(text: str) -> int:
    """Return bytes from a number with a unit, of 1000 or, with an i, of 1024. Errors: ValueError."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)(i?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise ValueError(text)
    power = ("", "K", "M", "G", "T").index(match[2].upper())
    return int(float(match[1]) * (1024 if match[3] else 1000) ** power)


@dataclass
class Budget:
    """Bytes that may be held at once, shared by the threads of `each`."""

    total: int
    jobs: int
    _used: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    @classmethod
    def of(cls, memory: int, jobs: int) -> Budget:
        """Return the budget of a limit on the whole program; jobs 0: one a core."""
        return cls(memory - OWN, jobs or len(os.sched_getaffinity(0)))

    @property
    def block(self) -> int:
        """Return the bytes of one block, of which a thread holds a few."""
        return min(64 << 20, self.total // (8 * self.jobs))

    @property
    def large(self) -> int:
        """Return the bytes of a block that is worth waiting for: a transposed tensor's."""
        return self.total // 6

    @contextmanager
    def hold(self, size: int) -> Iterator[None]:
        """Hold so many bytes, when others have given back enough."""
        size = min(size, self.total)
        with self._changed:
            self._changed.wait_for(lambda: self._used + size <= self.total)
            self._used += size
        try:
            yield
        finally:
            with self._changed:
                self._used -= size
                self._changed.notify_all()


def must_stream(checkpoint: Checkpoint, name: str, budget: Budget) -> bool:
    """Return whether a tensor has a chunk too large to be decoded at once.

    Errors: UsageError where it has, and cannot be taken apart in its codec.
    """
    parts = checkpoint.tensors[name].parts
    least = max(checkpoint.reader.tensors[part.theirs].least for part in parts)
    if 3 * least <= budget.total:
        return False
    part = parts[0]
    plain = len(parts) == 1 and not part.operations and part.at is None
    if not plain or checkpoint.reader.stream(part.theirs) is None:
        need = (3 * least + OWN) / 1e9
        raise Unreadable(
            f"{checkpoint.path}: {name} has chunks of {least / 1e9:.2f} GB, which its codec gives "
            f"only whole; allow more with --memory {need:.1f}GB"
        )
    return True


def limit_of(checkpoint: Checkpoint, name: str, budget: Budget) -> int:
    """Return the bytes of a tensor's blocks when it is gone over in C order."""
    placed, reader = checkpoint.tensors[name], checkpoint.reader
    if any(TRANSPOSE in part.operations for part in placed.parts):
        return budget.large
    least = max(reader.tensors[part.theirs].least for part in placed.parts)
    chunked = any(reader.tensors[part.theirs].chunk for part in placed.parts)
    return max(budget.block if chunked else _SEQUENTIAL, least)


def need_of(checkpoint: Checkpoint, name: str, budget: Budget) -> int:
    """Return the bytes that going over a tensor holds at once."""
    if must_stream(checkpoint, name, budget):
        return 4 * budget.block
    parts = checkpoint.tensors[name].parts
    least = max(checkpoint.reader.tensors[part.theirs].least for part in parts)
    block = min(limit_of(checkpoint, name, budget), checkpoint.size(name))
    return 2 * block + 2 * least


def values(checkpoint: Checkpoint, name: str, budget: Budget) -> Iterator[ndarray]:
    """Yield a tensor's values in C order, in pieces of any length. Errors: UsageError."""
    if must_stream(checkpoint, name, budget):
        yield from _streamed(checkpoint, name)
        return
    for region in checkpoint.blocks(name, limit_of(checkpoint, name, budget)):
        yield checkpoint.read(name, region).reshape(-1)


def _streamed(checkpoint: Checkpoint, name: str) -> Iterator[ndarray]:
    (part,) = checkpoint.tensors[name].parts
    dtype, rest = DTYPES[checkpoint.dtype(name)], b""
    pieces = checkpoint.reader.stream(part.theirs)
    assert pieces is not None, name
    given = 0
    for piece in pieces:
        content = rest + piece
        number = len(content) // dtype.itemsize
        rest = content[number * dtype.itemsize :]
        given += number
        yield np.frombuffer(content, dtype, number)
    if rest or given != math.prod(checkpoint.tensors[name].shape):
        raise Unreadable(f"{checkpoint.path}: {name} has {given} values, not as many as its shape")


def each(
    items: Iterable[Item],
    work: Callable[[Item], Made],
    *,
    budget: Budget,
    need: Callable[[Item], int],
    done: Callable[[Item], None] = lambda _: None,
) -> dict[Item, Made]:
    """Return what a function makes of each item, by threads that share a budget.

    The first error ends it: what was begun is finished, what was not is not begun.
    """
    stopped = threading.Event()

    def one(item: Item) -> Made | None:
        try:
            with budget.hold(need(item)):
                if stopped.is_set():
                    return None
                made = work(item)
            done(item)
        except BaseException:
            stopped.set()
            raise
        return made

    with ThreadPoolExecutor(budget.jobs) as pool:
        futures = {item: pool.submit(one, item) for item in items}
        try:
            wait(futures.values(), return_when=FIRST_EXCEPTION)
        except BaseException:
            stopped.set()
            raise
    return {item: future.result() for item, future in futures.items()}  # type: ignore[misc]


@contextmanager
def bar(to: Console, what: str, total: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of bytes on a terminal; nothing elsewhere."""
    if not to.is_terminal:
        yield lambda _: None
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=to, transient=True) as shown:
        task = shown.add_task(what, total=total)
        yield lambda size: shown.update(task, advance=size)
