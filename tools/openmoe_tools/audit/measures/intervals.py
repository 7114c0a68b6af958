"""Intervals of many numbers at once, and of one number at another level."""

from __future__ import annotations

import math

import numpy as np
from numpy import ndarray

from openmoe_reference import audit_inference
from openmoe_tools.audit.counting.layout import FOLDS

LEVEL = 0.95
"""Of the intervals that figures show."""
Ends = tuple[float, float]


def bootstrapped(
    estimates: ndarray,
    replicates: ndarray,
    *,
    level: float = LEVEL,
    least: float = 0.0,
    most: float = math.inf,
) -> tuple[ndarray, ndarray]:
    """Return the ends of the intervals of estimates [...], from replicates [B, ...], cut at bounds.

    Not-a-number where a replicate has no token to tell from: that is so where there are few documents,
    whose spread would say too little.
    """
    low, high = np.full(estimates.shape, np.nan), np.full(estimates.shape, np.nan)
    known = np.isfinite(estimates) & np.isfinite(replicates).all(axis=0)
    for place in np.ndindex(estimates.shape):
        if not known[place]:
            continue
        ends = audit_inference.bootstrap_interval(
            float(estimates[place]), replicates[(slice(None), *place)], level=level
        )
        low[place], high[place] = max(ends.low, least), min(ends.high, most)
    return low, high


def ratios(over: ndarray, under: ndarray) -> ndarray:
    """Return quotients of counts; not-a-number where there is nothing to divide by."""
    return np.where(under > 0, over / np.maximum(under, 1), np.nan)


def at_level(gain: audit_inference.Gain, level: float) -> Ends:
    """Return the ends of a gain's interval at another level than LEVEL, at which it was made.

    Both are the gain with a quantile of Student's distribution times the jackknife's error each side.
    """
    wide = audit_inference.student_quantile((1 + level) / 2, FOLDS - 1)
    usual = audit_inference.student_quantile((1 + LEVEL) / 2, FOLDS - 1)
    half = (gain.high - gain.low) / 2 * wide / usual
    return gain.gain - half, gain.gain + half


def total_variation(first: ndarray, second: ndarray) -> ndarray:
    """Return how far shares [..., E] are apart: half the sum of distances."""
    return np.abs(first - second).sum(axis=-1) / 2
