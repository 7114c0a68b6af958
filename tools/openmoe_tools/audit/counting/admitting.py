"""What is counted is looked at first: a number out of its range would be counted as another's.

Spec: AUDIT-27.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.counting.layout import ENTROPY_BINS, GROUP_BINS, MARGIN_CODES, Sizes
from openmoe_tools.audit.counting.routed import Groups, Routed

LARGEST_GATE = 1 + 2.0**-8
"""A probability that was rounded to bfloat16 on its way may be this much."""


class _Range(NamedTuple):
    """What an array must be like; most None: as it is."""

    kinds: str
    shape: tuple[int, ...]
    least: float = 0
    most: float | None = None


def check_routed(sizes: Sizes, routed: Routed) -> None:
    """Refuse tokens that do not fit the tables. Errors: UsageError. Spec: AUDIT-27."""
    n, l, k = len(routed.token), sizes.layers, sizes.choices  # noqa: E741 - SPEC's letters
    r = len(sizes.rules)
    ranges = {
        "row": _Range("iu", (n,)),
        "position": _Range("iu", (n,), 0, sizes.length - 1),
        "token": _Range("iu", (n,), 0, sizes.vocabulary - 1),
        "slice": _Range("iu", (n,), 0, sizes.slices - 1),
        "document": _Range("iu", (n,), 0, len(routed.documents) - 1),
        "expert": _Range("iu", (n, l, k), 0, sizes.experts - 1),
        "dropped": _Range("b", (r, n, l, k)),
        "place": _Range("iu", (r, n), 0, GROUP_BINS - 1),
        "margin": _Range("iu", (2, n, l), 0, MARGIN_CODES - 1),
        "gate": _Range("f", (n, l, k), 0, LARGEST_GATE),
        "entropy": _Range("iu", (n, l), 0, ENTROPY_BINS - 1),
    }
    for name, wanted in ranges.items():
        array = getattr(routed, name)
        if array is not None:
            _check(f"routing: {name}", array, wanted)
    for one in range(k):
        for other in range(one):
            same = routed.expert[..., one] == routed.expert[..., other]
            if same.any():
                token, layer = (int(at[0]) for at in np.nonzero(same))
                raise UsageError(
                    f"routing: expert {routed.expert[token, layer, one]} is named twice for the token "
                    f"at position {routed.position[token]} of row {routed.row[token]}; the choices "
                    "of a token must be of different experts"
                )


def check_groups(sizes: Sizes, groups: Sequence[Sequence[Groups]]) -> None:
    """Refuse groups that do not fit the tables. Errors: UsageError. Spec: AUDIT-27."""
    if not groups:
        return
    if len(groups) != len(sizes.rules):
        raise UsageError(
            f"routing: groups of {len(groups)} capacity rules; the audit has {len(sizes.rules)}"
        )
    for rule, ones in zip(sizes.rules, groups, strict=True):
        for one in ones:
            shape = (len(one.load), sizes.layers, sizes.experts)
            _check(f"routing: load of groups of {rule}", one.load, _Range("iu", shape))
            first = _Range("iu", shape[:2], 0, GROUP_BINS)
            _check(f"routing: first drop of groups of {rule}", one.first, first)


def check_array(
    name: str, array: ndarray, kinds: str, shape: tuple[int, ...], most: float | None = None
) -> None:
    """Refuse an array of another shape or kind, or with numbers below 0 or above `most`."""
    _check(name, array, _Range(kinds, shape, 0, most))


def _check(name: str, array: ndarray, wanted: _Range) -> None:
    if array.shape != wanted.shape or array.dtype.kind not in wanted.kinds:
        kinds = {"b": "bool", "f": "floats"}.get(wanted.kinds, "integers")
        raise UsageError(
            f"{name}: is {array.dtype} {list(array.shape)}; must be {kinds} {list(wanted.shape)}"
        )
    if array.size and wanted.kinds != "b":
        low, high = array.min(), array.max()
        # Not-a-number is neither above the one nor below the other.
        if not (low >= wanted.least and (wanted.most is None or high <= wanted.most)):
            most = "" if wanted.most is None else f" and at most {wanted.most}"
            raise UsageError(
                f"{name}: goes from {low} to {high}; must be {wanted.least} at least{most}"
            )
