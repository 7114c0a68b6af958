"""What follows from a router's logits: choices, gates, margins, entropy. Spec: AUDIT-24."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_reference.audit_measures import margin_codes
from openmoe_reference.routing import softmax
from openmoe_tools.audit.layout import ENTROPY_BINS, FIXED_POINT

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

    Among equals the lower index is. Errors: UsageError on K. Spec: AUDIT-24, ROUTE-03, ROUTE-04.
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
    margin = None
    if k < logits.shape[-1]:
        # Of the logits in their own order: probabilities that underflow are in none.
        ordered = -np.sort(-logits, axis=-1)
        pairs = ordered[:, k - 1] - ordered[:, k], ordered[:, 0] - ordered[:, 1]
        margin = np.stack([margin_codes(_finite(one)) for one in pairs])
    exact = logits.astype(np.float64)
    largest = exact.max(axis=-1, keepdims=True)
    exponentials = np.exp(exact - largest)
    total = exponentials.sum(axis=-1, keepdims=True)
    wide = exponentials / total
    scale = 2.0**FIXED_POINT
    squares = np.rint((np.log(total) + largest) ** 2 * scale)
    return Chosen(
        expert.astype(np.uint16),
        gate,
        margin,
        entropy_codes(wide),
        np.rint(wide * scale).astype(np.int64).sum(axis=0),
        np.array([len(logits), int(squares.astype(np.int64).sum())], np.int64),
    )


def _finite(margins: ndarray) -> ndarray:
    """Return float32 margins that a difference of finite logits may have left float32's range in."""
    return np.minimum(margins, np.finfo(np.float32).max).astype(np.float32)


def entropy_codes(probability: ndarray) -> ndarray:
    """Return the entropy of probabilities [N, E] over ln E, as 64ths, uint8 [N]."""
    logs = np.log(np.maximum(probability, np.finfo(np.float64).tiny))
    entropy = -(probability * logs).sum(axis=-1) / np.log(max(probability.shape[-1], 2))
    return np.floor(np.clip(entropy, 0, 1) * (ENTROPY_BINS - 1)).astype(np.uint8)
