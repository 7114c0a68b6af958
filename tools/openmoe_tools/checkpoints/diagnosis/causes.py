"""What became of one matrix: a named cause; and how one is confirmed, bit by bit.

A fingerprint proposes, an exact second read confirms.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from numpy import ndarray

from openmoe_tools.checkpoints.diagnosis.fingerprints import Matrix
from openmoe_tools.checkpoints.verification.numeric import bits


@dataclass(frozen=True)
class Cause:
    """What became of a matrix: a name, a sentence behind "the matrix", what to do, and where.

    exact  it explains every value, bit for bit
    """

    cause: str
    text: str
    fix: str = ""
    where: str = ""
    exact: bool = True


def kind_of(name: str) -> tuple[str, str]:
    """Return what the rows and the columns of a tensor are, as `rearrangements.named` has it."""
    if name.endswith("wi_0/kernel"):
        return "", "gate"
    if name.endswith(("query/kernel", "key/kernel")):
        return "", "rotary"
    if name.endswith("value/kernel"):
        return "", "heads"
    if name.endswith("self_attention/out/kernel"):
        return "heads", ""
    if name.endswith("router_weights/w/kernel"):
        return "", "experts"
    return "", ""


def same(expected: Callable[[int, int], ndarray], found: Matrix) -> bool:
    """Return whether rows of a matrix are those expected, bit for bit."""
    return all((bits(expected(*rows)) == bits(found.rows(*rows))).all() for rows in found.ranges())


def equal(a: Matrix, b: Matrix) -> bool:
    """Return whether two matrices are the same, bit for bit."""
    return a.shape == b.shape and same(a.rows, b)
