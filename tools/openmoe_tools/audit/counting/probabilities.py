"""What tables hold of routers' logits: codes of margins and entropies, and sums that are whole numbers.

Spec: AUDIT-14, AUDIT-21.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_reference.audit_measures import margin_codes
from openmoe_tools.audit.counting.layout import ENTROPY_BINS, FIXED_POINT, SQUARES_POINT


def margins(logits: ndarray, k: int) -> ndarray | None:
    """Return the codes of both margins of float32 logits [..., E], uint8 [2, ...].

    None where all experts are chosen, so that none is selected.
    """
    experts = logits.shape[-1]
    if experts <= k or experts < 2:
        return None
    ordered = -np.sort(-logits, axis=-1)
    with np.errstate(over="ignore"):  # finite logits may be further apart than float32 goes
        pairs = (ordered[..., k - 1] - ordered[..., k], ordered[..., 0] - ordered[..., 1])
    return np.stack([margin_codes(np.minimum(one, np.finfo(np.float32).max)) for one in pairs])


class Summed(NamedTuple):
    """What the softmax over the experts adds to tables.

    entropy      uint8 [...]: over ln E, as 64ths
    probability  int64 [..., E] without the last token axis: sums over tokens, in units of 2^-30
    squares      int64 [...]: sums of squared log-sum-exps, in units of 2^-10
    """

    entropy: ndarray
    probability: ndarray
    squares: ndarray


def summed(logits: ndarray) -> Summed:
    """Return codes of entropies [..., N], and sums over N, of logits [..., N, E]."""
    exact = logits.astype(np.float64)
    largest = exact.max(axis=-1, keepdims=True)
    exponentials = np.exp(exact - largest)
    total = exponentials.sum(axis=-1, keepdims=True)
    probability = exponentials / total
    logs = np.log(np.maximum(probability, np.finfo(np.float64).tiny))
    entropy = -(probability * logs).sum(axis=-1) / np.log(max(logits.shape[-1], 2))
    squares = ((np.log(total) + largest)[..., 0]) ** 2
    return Summed(
        np.floor(np.clip(entropy, 0, 1) * (ENTROPY_BINS - 1)).astype(np.uint8),
        np.rint(probability * 2.0**FIXED_POINT).astype(np.int64).sum(axis=-2),
        np.rint(squares * 2.0**SQUARES_POINT).astype(np.int64).sum(axis=-1),
    )
