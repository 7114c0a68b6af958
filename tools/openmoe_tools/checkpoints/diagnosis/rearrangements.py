"""Rearrangements by name: what a converter does to the rows, columns or experts of a matrix.

Each is a permutation p, what was done being `target = source[p]`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy import ndarray


@dataclass(frozen=True)
class Rearrangement:
    """A named permutation of rows or columns.

    cause  its name in findings
    text   what it did, to be read behind "columns" or "rows"
    fix    how it is undone
    """

    cause: str
    text: str
    fix: str
    order: ndarray


def regrouped(groups: int, rows: int, columns: int) -> ndarray:
    """Return the order of n = groups x rows x columns, each group's grid read down, not across."""
    numbers = np.arange(groups * rows * columns).reshape(groups, rows, columns)
    return numbers.transpose(0, 2, 1).reshape(-1)


def divisors(number: int) -> list[int]:
    """Return the divisors of a number, the small ones first."""
    return [one for one in range(1, number + 1) if number % one == 0] if number else []


_ROTARY_FIX = (
    "keep each head's first half and second half apart: element j turns with j + N/2 (ATTN-05)"
)


def named(kind: str, size: int, heads: int | None) -> Iterator[Rearrangement]:
    """Yield the rearrangements of one axis that converters make, those of the kind first.

    kind   `gate`, `rotary`, `heads` or another
    heads  their number, where it is known
    """
    if kind == "gate":
        yield from _gates(size)
    if kind == "rotary":
        yield from _rotary(size, heads)
    if kind in {"rotary", "heads"}:
        yield from _heads(size, heads)
    yield Rearrangement(
        "reversed", "are in reverse order", "read them forwards", np.arange(size)[::-1]
    )


def _gates(size: int) -> Iterator[Rearrangement]:
    if size % 2:
        return
    half = size // 2
    yield Rearrangement(
        "gate halves swapped",
        "have their halves exchanged: the half that is activated comes second (MOE-03)",
        "put the second half behind the first again",
        np.roll(np.arange(size), half),
    )
    yield Rearrangement(
        "gate halves interleaved",
        "have their halves interleaved, one of each in turn",
        "keep the halves one behind the other: [F of the one, F of the other]",
        regrouped(1, 2, half),
    )
    yield Rearrangement(
        "gate halves interleaved",
        "were taken for interleaved halves and pulled apart, and were halves before",
        "keep the halves as they are",
        regrouped(1, half, 2),
    )


def _rotary(size: int, heads: int | None) -> Iterator[Rearrangement]:
    known = [heads] if heads and size % heads == 0 else []
    for groups in (*known, *(n for n in divisors(size) if n not in known)):
        per_head = size // groups
        if per_head % 2 or per_head < 4:
            continue
        of = f"in each of {groups} heads" if groups > 1 else "over all heads taken as one"
        if heads and groups != heads:
            of += f" (the model has {heads})"
        yield Rearrangement(
            "rotary interleaved",
            f"are interleaved {of}, pairs side by side, where the model has halves",
            _ROTARY_FIX,
            regrouped(groups, 2, per_head // 2),
        )
        yield Rearrangement(
            "rotary halved",
            f"were pulled apart into halves {of}, and were halves before",
            f"{_ROTARY_FIX}; nothing is to be permuted",
            regrouped(groups, per_head // 2, 2),
        )


def _heads(size: int, heads: int | None) -> Iterator[Rearrangement]:
    known = [heads] if heads and size % heads == 0 else []
    for number in (*known, *(n for n in divisors(size) if n not in known)):
        if number in {1, size}:
            continue
        yield Rearrangement(
            "heads and dimensions exchanged",
            f"run over {size // number} dimensions of {number} heads where the model has heads first",
            "keep each head's dimensions together: [heads, dimensions]",
            regrouped(1, number, size // number),
        )


def described(order: ndarray, unit: str, heads: int | None = None) -> tuple[str, str, str]:
    """Return cause, text and fix of a permutation that no name fits: a roll, blocks, or any."""
    size = len(order)
    if heads and size % heads == 0:
        per_head = size // heads
        grid = order.reshape(heads, per_head)
        if (grid == grid[:, :1] + np.arange(per_head)).all() and (grid[:, 0] % per_head == 0).all():
            places = ", ".join(map(str, (grid[:, 0] // per_head)[:8]))
            return (
                "heads permuted",
                f"have their heads in another order: {places}{', ...' if heads > 8 else ''}",
                "put the heads in the source's order",
            )
    shift = int(order[0])
    if (order == (np.arange(size) + shift) % size).all():
        by = shift if shift <= size // 2 else shift - size
        return (
            f"{unit} rolled",
            f"are shifted by {by:+d}: {unit[:-1]} 0 holds what is {unit[:-1]} {shift} in the source",
            f"shift the {unit} by {-by:+d}",
        )
    moved = np.flatnonzero(order != np.arange(size))
    if len(moved) == 2:
        one, other = (int(i) for i in moved)
        return (f"{unit} permuted", f"are exchanged, {one} and {other}", "exchange them again")
    first = ", ".join(f"{int(i)} holds {int(order[i])}" for i in moved[:3])
    return (
        f"{unit} permuted",
        f"are in another order, {len(moved)} of {size}: {first}{', ...' if len(moved) > 3 else ''}",
        f"put the {unit} in the source's order",
    )
