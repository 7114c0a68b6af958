"""The routing-resolution ladder: how small a margin between two logits a router still sees.

Every logit is coarse + fine with coarse a multiple of 1/8 below 4 and fine a power of two: inputs
and weights are exact in bfloat16 and all sums are exact in float32, so a rung's margin is certain.
Spec: JUDGE-06, ROUTE-18.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

EXPERTS = 32
K = 2
RUNGS = (4, 6, 8, 10, 12, 14, 16, 18, 20, 22)
"""Margins 2^-m in logits, coarsest first."""
FINEST_CERTIFIED = 20
"""2^-20 is above twice the 4 u_p rounding of a float32 softmax (2^-21); 2^-22 is not."""
TIE = "tie"
_FINE = 2.0**-11  # weight of the fine half of the inputs


@dataclass(frozen=True)
class Rung:
    """Tokens whose choice hangs on one margin.

    inputs [1, rows, 2 E], kernel [2 E, E], expected [1, rows, K]: the choices, best first.
    """

    label: str
    inputs: ndarray
    kernel: ndarray
    expected: ndarray


def rung(exponent: int | str, rows: int, seed: int = 0) -> Rung:
    """Return `rows` tokens with margin 2^-exponent, or exact ties for TIE.

    Half of the rows decide who is second, the other half who is first; which of the two experts
    has the lower index is random.
    """
    tie = exponent == TIE
    generator = np.random.default_rng([seed, 0 if tie else int(exponent)])
    coarse = generator.integers(-24, 8, (rows, EXPERTS)) / 8.0  # background in [-3, 1)
    fine = np.zeros((rows, EXPERTS))
    experts = generator.permuted(np.tile(np.arange(EXPERTS), (rows, 1)), axis=1)[:, :3]
    first, second, third = experts.T
    row = np.arange(rows)
    level = generator.integers(9, 24, rows) / 8.0  # of the disputed pair, above the background
    at_the_edge = row % 2 == 0
    # Even rows: `first` leads clearly, `second` and `third` dispute the last place.
    # Odd rows: `first` and `second` dispute the first place.
    winner = np.where(at_the_edge, second, first)
    loser = np.where(at_the_edge, third, second)
    coarse[row[at_the_edge], first[at_the_edge]] = 31 / 8.0
    coarse[row, winner] = level
    coarse[row, loser] = level
    if tie:
        lower, higher = np.minimum(winner, loser), np.maximum(winner, loser)
        winner, loser = lower, higher
    else:
        fine[row, loser] = -(2.0 ** -int(exponent))
    expected = np.where(
        at_the_edge[:, None], np.stack([first, winner], 1), np.stack([winner, loser], 1)
    )
    inputs = np.concatenate([coarse, fine / _FINE], axis=1).astype(np.float32)
    kernel = np.concatenate([np.eye(EXPERTS), _FINE * np.eye(EXPERTS)]).astype(np.float32)
    label = "exact tie" if tie else f"2^-{exponent}"
    return Rung(label, inputs[None], kernel, expected[None])


def all_rungs(rows: int) -> dict[int | str, Rung]:
    """Return every rung, exact ties first, then from coarse to fine."""
    return {name: rung(name, rows) for name in (TIE, *RUNGS)}


def resolution(right: dict[int | str, float]) -> str:
    """Return the headline from the share of right choices per rung.

    It is the finest certified margin at which, and above which, nothing was wrong.
    """
    reached = None
    for exponent in RUNGS:
        if exponent > FINEST_CERTIFIED or right[exponent] < 1:
            break
        reached = exponent
    margin = "coarser than 2^-4" if reached is None else f"2^-{reached}"
    ties = (
        "all exact ties right" if right[TIE] == 1 else f"{1 - right[TIE]:.1%} of exact ties wrong"
    )
    return f"{margin} in logits, {ties}"
