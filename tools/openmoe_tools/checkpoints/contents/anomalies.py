"""What is odd about the values of a model's tensors. Spec: INIT-01..INIT-04."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import NormalDist

from openmoe_reference.initialisation import TRUNCATED, deviation
from openmoe_spec.config import BASE
from openmoe_spec.parameters import Parameter
from openmoe_tools.checkpoints.contents.statistics import Moments, Summary
from openmoe_tools.checkpoints.verification.findings import folded, listed, ranges
from openmoe_tools.checkpoints.verification.structure import EMBEDDING

ENOUGH = 10_000
"""Values below which a standard deviation says too little to tell a fresh draw."""

_SIGMAS = 4.5
_RARE = 1e-7
_JAX_LARGEST = 5.2
"""Deviations that JAX's normal draws of float32 may end at, however many there are."""


@dataclass(frozen=True)
class Anomaly:
    """One thing that is odd: its name, the tensors, and a plain line."""

    cause: str
    tensors: tuple[str, ...]
    text: str


# ---- fresh draws -------------------------------------------------------------------------------


def looks_fresh(found: Moments, tensor: Parameter, head_dims: Sequence[int] = ()) -> bool:
    """Return whether values have the mean, deviation and largest magnitude of the initialiser's draws.

    tensor     gives the name, and the fan-in by its shape; values may be one expert's of it
    head_dims  what a query's kernel may have been divided by the root of; empty: of any even width
    Spec: INIT-01..INIT-03.
    """
    if found.finite < max(ENOUGH, found.number) or len(tensor.shape) < 2:
        return False
    return any(
        _is_draw(found, *deviation(tensor, replace(BASE, head_dim=one)))
        for one in _head_dims(tensor, head_dims)
    )


def _head_dims(tensor: Parameter, known: Sequence[int]) -> Sequence[int]:
    if not tensor.name.endswith("query/kernel"):
        return (BASE.head_dim,)
    width = tensor.shape[-1]
    return known or [n for n in range(2, width + 1, 2) if width % n == 0]


def _is_draw(found: Moments, spread: float, cut: bool) -> bool:
    number = found.number
    tolerance = max(_SIGMAS / math.sqrt(2 * number), 2e-4)
    if abs(found.deviation / spread - 1) > tolerance:
        return False
    if abs(found.mean) > _SIGMAS * spread / math.sqrt(number):
        return False
    if cut:
        least = most = 2 * spread / TRUNCATED
        least *= 0.95
    else:
        normal = NormalDist()
        most = -spread * normal.inv_cdf(_RARE / (2 * number))
        expected = -normal.inv_cdf(-math.log(_RARE) / (2 * number))
        least = spread * min(expected, _JAX_LARGEST)
    return least <= found.largest <= most * 1.005  # what rounding to bfloat16 may add


# ---- what is odd -------------------------------------------------------------------------------


def anomalies(found: Mapping[str, Summary], head_dims: Sequence[int] = ()) -> list[Anomaly]:
    """Return what is odd about tensors, a plain line each; none of a trained model's is."""
    return [
        *_not_finite(found.values()),
        *_constant(found.values()),
        *_experts(found, head_dims),
        *_fresh(found, head_dims),
        *_odd_rows(found),
    ]


def _not_finite(found: Iterable[Summary]) -> Iterator[Anomaly]:
    for one in found:
        counts = {"NaN": one.total.nan, "infinite": one.total.infinite}
        told = " and ".join(f"{n:,} {what}" for what, n in counts.items() if n)
        if told:
            bad = [e for e, m in enumerate(one.experts) if m.nan or m.infinite]
            where = f", in experts {ranges(bad)}" if bad else ""
            text = f"{one.name} holds {told} of {one.total.number:,} values{where}"
            yield Anomaly("not finite", (one.name,), text)


def _constant(found: Iterable[Summary]) -> Iterator[Anomaly]:
    groups: dict[tuple[str, float], list[str]] = defaultdict(list)
    for one in found:
        value = one.total.constant
        if value is not None and (one.total.number > 1 or value == 0):
            norm = one.name.endswith("/scale") and value == 1
            cause = "untrained norm" if norm else "constant" if value else "all zero"
            groups[cause, value].append(one.name)
    told = {
        "untrained norm": "exactly 1 throughout, as before training",
        "all zero": "all zero",
    }
    for (cause, value), names in groups.items():
        said = told.get(cause, f"{value:g} throughout")
        yield Anomaly(cause, tuple(names), f"{listed(folded(names))}: {said}")


_EXPERT = re.compile(r"(decoder/layers_\d+/mlp/expert)/\w+/kernel")


def _experts(found: Mapping[str, Summary], head_dims: Sequence[int]) -> Iterator[Anomaly]:
    """Yield experts that are constant, equal, or fresh while others of their layer are not."""
    layers: dict[str, list[Summary]] = defaultdict(list)
    for one in found.values():
        match = _EXPERT.fullmatch(one.name)
        if match is not None and one.experts and one.total.constant is None:
            layers[match[1]].append(one)
    for layer, ones in layers.items():
        yield from _constant_experts(ones)
        yield from _equal_experts(ones)
        yield from _fresh_experts(layer, ones, head_dims)


def _constant_experts(ones: Sequence[Summary]) -> Iterator[Anomaly]:
    groups: dict[tuple[str, tuple[int, ...]], list[str]] = defaultdict(list)
    for one in ones:
        values = [moments.constant for moments in one.experts]
        for what, flags in (
            ("all zero", [value == 0 for value in values]),
            ("of one value throughout", [value not in {None, 0} for value in values]),
        ):
            if any(flags):
                groups[what, tuple(e for e, flag in enumerate(flags) if flag)].append(one.name)
    for (what, experts), names in groups.items():
        text = f"{listed(folded(names))}: {_numbered(experts)} {what}"
        yield Anomaly("constant expert", tuple(names), text)


def _equal_experts(ones: Sequence[Summary]) -> Iterator[Anomaly]:
    kinds: dict[tuple[tuple[int, ...], ...], list[str]] = defaultdict(list)
    for one in ones:
        alike: dict[str, list[int]] = defaultdict(list)
        for e, digest in enumerate(one.digests):
            if one.experts[e].constant is None:
                alike[digest].append(e)
        groups = tuple(tuple(group) for group in alike.values() if len(group) > 1)
        if groups:
            kinds[groups].append(one.name)
    for groups, names in kinds.items():
        told = "; ".join(ranges(group) for group in groups)
        text = f"{listed(folded(names))}: experts {told} are equal to each other"
        yield Anomaly("equal experts", tuple(names), text)


def _fresh_experts(
    layer: str, ones: Sequence[Summary], head_dims: Sequence[int]
) -> Iterator[Anomaly]:
    # By itself one matrix may look so by chance; all of an expert's will not.
    flags = [
        all(looks_fresh(one.experts[e], _parameter(one), head_dims) for one in ones)
        for e in range(min(len(one.experts) for one in ones))
    ]
    fresh = [e for e, flag in enumerate(flags) if flag]
    if 0 < len(fresh) <= len(flags) // 2:
        verb = "looks" if len(fresh) == 1 else "look"
        text = (
            f"{layer}: {_numbered(fresh).rpartition(' ')[0]} {verb} as freshly initialised, or "
            "hardly trained, and the others do not"
        )
        yield Anomaly("fresh experts", tuple(one.name for one in ones), text)


def _numbered(experts: Sequence[int]) -> str:
    return f"expert {experts[0]} is" if len(experts) == 1 else f"experts {ranges(experts)} are"


def _parameter(one: Summary) -> Parameter:
    return Parameter(one.name, one.shape, ())


def _fresh(found: Mapping[str, Summary], head_dims: Sequence[int]) -> Iterator[Anomaly]:
    """Yield the kinds of kernels of which all layers' look as freshly drawn."""
    kinds: dict[str, list[Summary]] = defaultdict(list)
    for one in found.values():
        if len(one.shape) > 1:
            kinds[re.sub(r"layers_\d+", "layers_i", one.name)].append(one)
    fresh = [
        ones
        for ones in kinds.values()
        if all(looks_fresh(one.total, _parameter(one), head_dims) for one in ones)
    ]
    names = [one.name for ones in fresh for one in ones]
    if names:
        share = "all" if len(fresh) == len(kinds) else f"{len(fresh)} of {len(kinds)}"
        text = (
            f"{share} kinds of kernels look as freshly initialised, or hardly trained, by mean, "
            f"deviation and largest value: {listed(folded(names))}"
        )
        yield Anomaly("fresh", tuple(names), text)


def _odd_rows(found: Mapping[str, Summary]) -> Iterator[Anomaly]:
    one = found.get(EMBEDDING)
    if one is None or one.rows is None or one.total.constant is not None:
        return
    for rows, what in ((one.rows.zero, "all zero"), (one.rows.constant, "of one value throughout")):
        if rows:
            text = f"{EMBEDDING}: {_counted(rows)} {what}, as rows that were never trained"
            yield Anomaly("untrained rows", (EMBEDDING,), text)
    equal = one.rows.equal
    if len(equal) == 1:
        text = f"{EMBEDDING}: {_counted(equal[0])} equal to each other"
        yield Anomaly("equal rows", (EMBEDDING,), text)
    elif equal:
        number, first = sum(map(len, equal)), listed(ranges(equal[0]).split(", "), 6)
        text = f"{EMBEDDING}: {number:,} rows are equal to others, in {len(equal):,} groups"
        yield Anomaly("equal rows", (EMBEDDING,), f"{text}, the first {first}")


def _counted(rows: Sequence[int]) -> str:
    shown = listed(ranges(rows).split(", "), 6)
    return f"row {shown} is" if len(rows) == 1 else f"{len(rows):,} rows ({shown}) are"
