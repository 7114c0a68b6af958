"""What follows from a router's logits: choices, gates, margins, entropy. Spec: AUDIT-27."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_reference.routing import softmax
from openmoe_tools.audit.counting import probabilities

_ROWS = 1 << 14
"""Tokens that are worked on at once, in float64."""


class Chosen(NamedTuple):
    """What a layer's router chose of E experts for N tokens.

    expert  uint16 [N, K]; gate: float32 [N, K], probabilities; entropy: uint8 [N]
    margin  uint8 [2, N]; None where K = E, and there is nothing to select among
    probability  int64 [E] and log_sum int64 [2]: what `Tables.add_probabilities` adds
    """

    expert: ndarray
    gate: ndarray
    margin: ndarray | None
    entropy: ndarray
    probability: ndarray
    log_sum: ndarray


def choose(logits: ndarray, k: int, where: str) -> Chosen:
    """Return what follows from finite logits [N, E]: the K largest float32 probabilities are chosen.

    Among equals the lower index is. Errors: UsageError on K. Spec: AUDIT-27, ROUTE-03, ROUTE-04.
    """
    experts = logits.shape[-1]
    if not 1 <= k <= experts:
        raise UsageError(f"{where}: --choices {k}: must be 1 to {experts}, its experts")
    parts = [
        _choose(logits[start : start + _ROWS].astype(np.float32), k)
        for start in range(0, len(logits), _ROWS)
    ]
    margins = [one.margin for one in parts if one.margin is not None]
    return Chosen(
        np.concatenate([one.expert for one in parts]),
        np.concatenate([one.gate for one in parts]),
        np.concatenate(margins, axis=1) if margins else None,
        np.concatenate([one.entropy for one in parts]),
        np.sum([one.probability for one in parts], axis=0),
        np.sum([one.log_sum for one in parts], axis=0),
    )


def _choose(logits: ndarray, k: int) -> Chosen:
    probability = softmax(logits[None])[0]
    order = np.argsort(-probability, axis=-1, kind="stable")
    expert = order[:, :k]
    gate = np.take_along_axis(probability, expert, axis=-1)
    summed = probabilities.summed(logits)
    return Chosen(
        expert.astype(np.uint16),
        gate,
        probabilities.margins(logits, k),
        summed.entropy,
        summed.probability,
        np.array([len(logits), int(summed.squares)], np.int64),
    )
