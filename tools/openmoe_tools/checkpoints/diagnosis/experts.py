"""What became of the experts of one tensor: which matrix each one holds now."""

from __future__ import annotations

from collections import defaultdict
from typing import TYPE_CHECKING

from openmoe_tools.checkpoints.diagnosis.causes import Cause, equal
from openmoe_tools.checkpoints.diagnosis.fingerprints import Fingerprint, Matrix
from openmoe_tools.checkpoints.verification.findings import ranges

if TYPE_CHECKING:
    from openmoe_tools.checkpoints.diagnosis.diagnosis import Diagnosis

Found = list[tuple[tuple[int, ...], Cause | None]]
"""Causes with the experts that they are about; () is all of them; None where a shape says all."""

_OWN = "write each expert from the source's expert of the same number"


def explained(diagnosis: Diagnosis, name: str) -> Found:
    """Return what became of each expert's matrix, those of one cause together.

    An expert may stand at another's number and be rearranged besides: both are told.
    """
    a, b = (diagnosis.matrices(side, name) for side in (0, 1))
    fa, fb = (diagnosis.prints(side, name) for side in (0, 1))
    differing = [
        e for e in range(len(b)) if e >= len(a) or not _same(fa[e], fb[e]) or not equal(a[e], b[e])
    ]
    homes = _homes(a, b, fa, fb, differing)
    moved = {e: home for e, home in homes.items() if home != e}
    lost = [e for e in differing if homes.get(e) != e]
    found: Found = list(_orders(len(a), len(b), moved, lost).items())
    causes: dict[int, Cause | None] = {}
    for e in differing:
        home = homes.get(e)
        if home is None:
            causes[e] = (
                diagnosis.explain(name, a[e], b[e], fa[e], fb[e])
                if e < len(a)
                else Cause("expert added", "is one that the source does not have", "leave it out")
            )
        elif home != e and not found:
            causes[e] = Cause(
                "expert duplicated",
                f"holds the source's expert {home}: its own values are not there",
                _OWN,
            )
        elif home == e or not equal(a[home], b[e]):
            causes[e] = diagnosis.explain(name, a[home], b[e], fa[home], fb[e])
    together: dict[Cause | None, list[int]] = defaultdict(list)
    for e, cause in causes.items():
        together[cause].append(e)
    if found and found[0][1] is not None and found[0][1].cause == "expert dropped":
        together.clear()  # the shape is another, and the gap says why
    for cause, ones in together.items():
        is_all = len(ones) == len(b) > 1 and len(together) == 1
        found.append((() if is_all else tuple(ones), cause))
    return found


def _same(one: Fingerprint, other: Fingerprint) -> bool:
    return (
        one.rows.shape == other.rows.shape
        and one.columns.shape == other.columns.shape
        and bool((one.rows == other.rows).all() and (one.columns == other.columns).all())
    )


def _homes(
    a: list[Matrix],
    b: list[Matrix],
    fa: list[Fingerprint],
    fb: list[Fingerprint],
    differing: list[int],
) -> dict[int, int]:
    """Return which expert of the source has the values that each differing one of the target has.

    Bit for bit where there is one, else in another arrangement, its own number first.
    """
    homes = {}
    for e in differing:
        own = [e] if e < len(a) else []
        candidates = [*own, *(f for f in range(len(a)) if f != e)]
        alike = [f for f in candidates if fa[f].total == fb[e].total]
        exact = [f for f in alike if _same(fa[f], fb[e]) and equal(a[f], b[e])]
        if alike:
            homes[e] = (exact or alike)[0]
    return homes


def _orders(
    source: int, target: int, held: dict[int, int], differing: list[int]
) -> dict[tuple[int, ...], Cause]:
    """Return experts that were all moved: rolled, permuted, or closed up behind one left out."""
    if not differing and target < source:
        gone = tuple(range(target, source))
        return {
            gone: Cause("expert dropped", f"is left out: there are {target}", "write all experts")
        }
    if not differing:
        return {}
    if source != target:
        return _closed_up(source, target, held, differing)
    if set(held) != set(differing) or sorted(held.values()) != sorted(held):
        return _cut_off(held, differing)
    shift = (held[differing[0]] - differing[0]) % source
    if len(differing) == source and all((held[e] - e) % source == shift for e in held):
        by = shift if shift <= source // 2 else shift - source
        text = f"are shifted by {by:+d} along the expert axis: expert 0 holds the source's expert {shift}"
        return {(): Cause("experts rolled", text, f"shift the experts by {-by:+d}")}
    first = ", ".join(f"{e} holds {held[e]}" for e in differing[:6])
    text = f"are in another order: {first}{', ...' if len(differing) > 6 else ''}"
    fix = f"put experts {ranges(differing)} in the source's order, the router's columns with them"
    return {tuple(differing): Cause("experts permuted", text, fix)}


def _closed_up(
    source: int, target: int, held: dict[int, int], differing: list[int]
) -> dict[tuple[int, ...], Cause]:
    """Return the expert that was left out, where each behind it is one number early."""
    moved = sorted(held)  # the first of them stands in the gap
    if target != source - 1 or differing != moved or any(held[e] != e + 1 for e in moved):
        return {}
    text = f"is left out: there are {target} experts, and each behind it is one number early"
    return {(moved[0],): Cause("expert dropped", text, "write all experts")}


def _cut_off(held: dict[int, int], differing: list[int]) -> dict[tuple[int, ...], Cause]:
    """Return experts that were shifted and not carried round: one at the end is lost."""
    shifts = {held[e] - e for e in held}
    if len(shifts) != 1 or len(held) < max(2, len(differing) - 1):
        return {}
    by = shifts.pop()
    text = f"are shifted: expert e holds the source's expert e{by:+d}, and one at the end is lost"
    fix = "number the experts from 0, as the source does"
    return {tuple(differing): Cause("experts rolled", text, fix)}
