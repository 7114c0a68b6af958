"""Comparisons: exact for discrete values, the band and the admissible set for choices near a tie.

Spec: JUDGE-01..JUDGE-05.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import Disagreement, Evidence

UNIT_ROUNDOFF = {"float64": 2.0**-53, "float32": 2.0**-24, "tf32": 2.0**-11, "float16": 2.0**-11}
UNIT_ROUNDOFF["bfloat16"] = 2.0**-8
_LAMBDA = 6.0  # standard deviations of the rounding error of a sum (JUDGE-01)


@dataclass(frozen=True)
class Arithmetic:
    """Unit roundoffs of a router: operands, accumulation, stored logits, probabilities."""

    operands: float = 0.0
    accumulate: float = UNIT_ROUNDOFF["float32"]
    logits: float = UNIT_ROUNDOFF["float32"]
    probabilities: float = UNIT_ROUNDOFF["float32"]

    @property
    def resolution(self) -> float:
        """Largest margin in logits that this arithmetic need not resolve (JUDGE-06).

        Ladder logits are below 4 in magnitude, so storing them errs by at most 4 u_out each.
        """
        coarse = max(self.logits if self.logits > UNIT_ROUNDOFF["float32"] else 0.0, self.operands)
        return 2 * (4 * self.probabilities + 4 * coarse)


NAMED_ARITHMETIC = {
    "float32": Arithmetic(),
    "tf32": Arithmetic(operands=UNIT_ROUNDOFF["tf32"]),
    "float16": Arithmetic(
        UNIT_ROUNDOFF["float16"], logits=UNIT_ROUNDOFF["float16"], probabilities=2.0**-11
    ),
    "bfloat16": Arithmetic(
        UNIT_ROUNDOFF["bfloat16"], logits=UNIT_ROUNDOFF["bfloat16"], probabilities=2.0**-8
    ),
    "bfloat16 operands": Arithmetic(operands=UNIT_ROUNDOFF["bfloat16"]),
}
"""The arithmetics an adapter may declare by name; the default is float32."""


def same(name: str, got: Any, wanted: Any) -> None:
    """Require equal shapes and values; the message shows the first difference."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    if got.shape != wanted.shape:
        raise Disagreement(f"{name}: shape {list(got.shape)}, expected {list(wanted.shape)}")
    differs = ~((got == wanted) | (_nan(got) & _nan(wanted)))
    if differs.any():
        place = tuple(int(i) for i in np.argwhere(differs)[0])
        where = f" at {list(place)}" if place else ""
        raise Disagreement(
            f"{name}{where}: got {got[place]}, expected {wanted[place]} "
            f"({int(differs.sum())} of {differs.size} differ)"
        )


def close(
    name: str,
    got: Any,
    wanted: Any,
    evidence: Evidence,
    *,
    relative: float,
    of_largest: float = 0.0,
    absolute: float = 0.0,
) -> None:
    """Require |got - wanted| <= relative |wanted| + of_largest max|wanted| + absolute."""
    got, wanted = np.asarray(got), np.asarray(wanted)
    if got.shape != wanted.shape:
        raise Disagreement(f"{name}: shape {list(got.shape)}, expected {list(wanted.shape)}")
    got, wanted = got.astype(np.float64), wanted.astype(np.float64)
    both = (got == wanted) | (np.isnan(got) & np.isnan(wanted))  # infinities included
    largest = np.abs(wanted[np.isfinite(wanted)]).max(initial=0.0)
    with np.errstate(invalid="ignore"):
        limit = relative * np.abs(wanted) + of_largest * largest + absolute
        excess = np.where(both, 0.0, np.abs(got - wanted) / np.maximum(limit, 1e-300))
    excess = np.where(np.isnan(excess), np.inf, excess)
    if not excess.size:
        return
    worst = np.unravel_index(excess.argmax(), excess.shape)
    evidence.measured(float(excess[worst]))
    if excess[worst] > 1:
        place = [int(i) for i in worst]
        raise Disagreement(
            f"{name}{f' at {place}' if place else ''}: got {got[worst]:.9g}, expected "
            f"{wanted[worst]:.9g}, error {excess[worst]:.3g} x the limit "
            f"({int((excess > 1).sum())} of {excess.size} outside)"
        )


def _nan(array: ndarray) -> ndarray:
    return np.isnan(array) if array.dtype.kind == "f" else np.zeros(array.shape, bool)


def logit_band(inputs: ndarray, kernel: ndarray, arithmetic: Arithmetic) -> tuple[ndarray, ndarray]:
    """Return float64 logits [G, T, E] and the half-width b of the band around each.

    Where every product and partial sum is exact in float32, b is 0 for float32 arithmetic.
    Spec: JUDGE-01, JUDGE-03.
    """
    x, w = inputs.astype(np.float64), kernel.astype(np.float64)
    logits = x @ w
    spread = np.sqrt(x**2 @ w**2)
    rounding = np.sqrt(2) * arithmetic.operands + np.sqrt(x.shape[-1]) * arithmetic.accumulate
    half = _LAMBDA * rounding * spread
    # Probabilities compare like logits plus the rounding of exp and of the division.
    half = half + arithmetic.logits * np.abs(logits) + 4 * arithmetic.probabilities
    if arithmetic == Arithmetic():
        half = np.where(_exact_in_float32(inputs, kernel)[..., None], 0.0, half)
    return logits, half


def _exact_in_float32(inputs: ndarray, kernel: ndarray) -> ndarray:
    """Return which tokens [G, T] have exact logits in any order of summation.

    All products are multiples of 2^(a + b), a and b the lowest bits of the row and of the kernel;
    sums stay exact while their magnitudes stay below 2^24 of that unit.
    """
    unit = _lowest_bit(inputs, axis=-1) + _lowest_bit(kernel, axis=None)
    largest = (np.abs(inputs.astype(np.float64)) @ np.abs(kernel.astype(np.float64))).max(axis=-1)
    return largest < np.exp2(np.minimum(unit + 24.0, 1000.0))


def _lowest_bit(values: ndarray, axis: int | None) -> ndarray:
    """Return the exponent of the lowest set bit among `values` along `axis`; large for zeros."""
    mantissa, exponent = np.frexp(values.astype(np.float64))
    whole = (mantissa * 2.0**53).astype(np.int64)
    lowest = np.log2(np.where(whole == 0, 1, whole & -whole)) + exponent - 53
    return np.asarray(np.where(whole == 0, 1000.0, lowest).min(axis=axis))


def judge_choices(
    expert_index: ndarray, logits: ndarray, half: ndarray, wanted: ndarray
) -> ndarray:
    """Return which tokens [G, T] are decided; raise on a choice that is not admissible.

    Where the largest logit stands so high that others underflow in float32, those are equal and
    index order decides: their ends meet at the underflow threshold. A token whose band is 0 has
    one right answer, ties included.
    Spec: JUDGE-02, JUDGE-03, ROUTE-05, ROUTE-19.
    """
    low, high = _clipped(logits, half)
    if not np.array_equal(np.sort(expert_index, axis=-1), np.sort(expert_index, axis=-1).clip(0)):
        raise Disagreement("expert_index: a token has no expert though padding is not ignored")
    if (np.diff(np.sort(expert_index, axis=-1), axis=-1) == 0).any():
        raise Disagreement("expert_index: a token chose the same expert twice")
    if (expert_index >= logits.shape[-1]).any():
        raise Disagreement(f"expert_index: an index is above {logits.shape[-1] - 1}")
    open_ = _margin(expert_index, high, low) < 0
    if open_.any():
        g, t = (int(i) for i in np.argwhere(open_)[0])
        raise Disagreement(
            f"expert_index at [{g}, {t}]: got {expert_index[g, t].tolist()}, expected "
            f"{wanted[g, t].tolist()}; not admissible: logits "
            f"{np.array2string(logits[g, t][wanted[g, t]], precision=9)} against "
            f"{np.array2string(logits[g, t][expert_index[g, t]], precision=9)}, band "
            f"{half[g, t].max():.3g} ({int(open_.sum())} of {open_.size} tokens)"
        )
    decided: ndarray = (_margin(wanted, low, high) > 0) | (half == 0).all(axis=-1)
    differs = decided & (expert_index != wanted).any(axis=-1)
    if differs.any():
        g, t = (int(i) for i in np.argwhere(differs)[0])
        raise Disagreement(
            f"expert_index at [{g}, {t}]: got {expert_index[g, t].tolist()}, expected "
            f"{wanted[g, t].tolist()}, and the margin exceeds the band {half[g, t].max():.3g} "
            f"({int(differs.sum())} of {differs.size} tokens)"
        )
    return decided


def _clipped(logits: ndarray, half: ndarray) -> tuple[ndarray, ndarray]:
    # exp(-103.98) is the least float32 above 0 after rounding; subnormals may be flushed, so
    # between there and the least normal number (exp(-87.34)) the outcome is open.
    top = logits.max(axis=-1, keepdims=True)
    low, high = logits - half, logits + half
    return np.where(low < top - 87.0, -np.inf, low), np.where(high < top - 104.5, -np.inf, high)


def _margin(choices: ndarray, ends: ndarray, others: ndarray) -> ndarray:
    """Return min over i of ends[choice i] - max others[later choices and experts not chosen]."""
    k = choices.shape[-1]
    chosen_ends = np.take_along_axis(ends, choices, axis=-1)
    chosen_others = np.take_along_axis(others, choices, axis=-1)
    rest = others.copy()
    np.put_along_axis(rest, choices, -np.inf, axis=-1)
    behind = rest.max(axis=-1)  # [G, T]
    margin = np.full(behind.shape, np.inf)
    for i in reversed(range(k)):
        with np.errstate(invalid="ignore"):
            gap = chosen_ends[..., i] - behind
        margin = np.minimum(margin, np.where(np.isnan(gap), 0.0, gap))
        behind = np.maximum(behind, chosen_others[..., i])
    return margin


def fields_of(record: Any, names: tuple[str, ...]) -> dict[str, Any]:
    """Return the named fields of a record given as a mapping or as attributes, None where absent."""
    if isinstance(record, Mapping):
        return {name: record.get(name) for name in names}
    return {name: getattr(record, name, None) for name in names}
