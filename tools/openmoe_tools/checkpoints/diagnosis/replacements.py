"""What a matrix holds that has none of the source's values: nothing, another step's, or fresh ones."""

from __future__ import annotations

import numpy as np

from openmoe_tools.checkpoints.diagnosis.causes import Cause
from openmoe_tools.checkpoints.diagnosis.fingerprints import Matrix


def emptied(a: Matrix, b: Matrix) -> Cause | None:
    """Return that a matrix holds nothing: zeros, one value everywhere, or what is not finite.

    None also where the source's is like that itself.
    """
    if 0 in b.shape:
        return None
    low, high, finite = _range(b)
    own_low, own_high, own_finite = _range(a)
    if not finite:
        if not own_finite:
            return None
        return Cause("not finite", "holds NaN or infinite values", "convert it again", exact=False)
    if low != high or own_low == own_high:
        return None
    if low == 0.0:
        text = "is all zero: it was never written"
        return Cause("dropped", text, "write it from the source", exact=False)
    text = f"holds {low:.6g} everywhere: it was never written"
    return Cause("left at initialisation", text, "write it from the source", exact=False)


def _range(matrix: Matrix) -> tuple[float, float, bool]:
    """Return the smallest and the largest value, and whether all are finite."""
    low, high, finite = np.inf, -np.inf, True
    if 0 in matrix.shape:
        return 0.0, 0.0, True
    for rows in matrix.ranges():
        values = matrix.rows(*rows).astype(np.float32)
        finite = finite and bool(np.isfinite(values).all())
        low, high = min(low, float(values.min())), max(high, float(values.max()))
    return low, high, finite


_NEAR = 0.5
"""A cosine between steps of one run, and not between two models."""

_WIDEST = 2.0
"""The largest standard deviation of an initialiser is the embedding's, 1."""


def replaced(a: Matrix, b: Matrix) -> Cause:
    """Return what values that have nothing to do with the source's look like."""
    one, other = (m.rows(*next(m.ranges())).astype(np.float64).reshape(-1) for m in (a, b))
    size = min(len(one), len(other))
    centre = 1.0 if a.name.endswith("/scale") else 0.0  # scales of norms are all near 1
    one, other = one[:size] - centre, other[:size] - centre
    scale = float(np.linalg.norm(one) * np.linalg.norm(other))
    alike = float(one @ other) / scale if scale else 0.0
    if alike > _NEAR:
        return Cause(
            "stale",
            "holds values near the source's: those of another step",
            "take it from the same step as the others",
            exact=False,
        )
    if _looks_fresh(b):
        return Cause(
            "left at initialisation",
            "holds values that look freshly drawn, and not the source's",
            "write it from the source: the target's program kept its own",
        )
    return Cause(
        "other values", "holds values that have nothing to do with the source's",
        "find out where they come from: no tensor of the source has them",
    )  # fmt: skip


def _looks_fresh(b: Matrix) -> bool:
    """Return whether values have mean 0 and no heavy tails, as drawn ones do and trained ones do not."""
    values = b.rows(*next(b.ranges())).astype(np.float64).reshape(-1)
    spread = float(values.std())
    if len(values) < 64 or not spread:
        return False
    normal = (values - values.mean()) / spread
    tails = float((normal**4).mean())
    centred = abs(float(values.mean())) < 4 * spread / np.sqrt(len(values))
    # Kurtosis: uniform 1.8, normal cut at two deviations 2.4, normal 3.
    return centred and spread <= _WIDEST and tails < 3.0 + 10 / np.sqrt(len(values))
