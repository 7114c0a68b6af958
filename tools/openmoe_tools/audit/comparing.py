"""`openmoe audit compare`: two audits of one text token by token: what differs, and why it may.

Two implementations of one model may differ where two logits nearly tie, and in what that displaces: other
drops in the tokens' capacity groups, and other inputs of deeper layers. Anything else is a difference of
the models. The JSON's schema is `comparison.schema.json`, beside this file. Spec: AUDIT-14.
"""

from __future__ import annotations

import json as json_module
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray
from rich.table import Table

from openmoe_conformance.outcome import UsageError
from openmoe_reference.audit_measures import MARGIN_THRESHOLDS, NEAR_TIE
from openmoe_tools import files
from openmoe_tools.audit import folder
from openmoe_tools.audit.counting.routed import ORDER, SELECTION, Routed
from openmoe_tools.audit.folder import Audit
from openmoe_tools.audit.trace import reading
from openmoe_tools.data import opening
from openmoe_tools.terminal import console, say

COMMAND, SCHEMA = "openmoe audit compare", "openmoe-audit-comparison/1"
SHOWN = 20
"""Differences that are listed one by one."""
CODES = int(np.searchsorted(MARGIN_THRESHOLDS, np.float32(NEAR_TIE), side="right"))
"""The first code that is no near-tie."""
TIED, DISPLACED, OTHER = "near-tie", "displaced", "not explained"


@dataclass(frozen=True)
class Request:
    """The options of `openmoe audit compare`: two folders of audits with traces."""

    one: Path
    other: Path
    json: Path | None


@dataclass
class Found:
    """Tokens of each sparse layer, whose choices or drops differ, by the reason; and some of them."""

    tokens: int = 0
    counts: dict[str, ndarray] = field(default_factory=dict)
    listed: list[dict[str, Any]] = field(default_factory=list)


def compare(request: Request) -> int:
    """Print what differs; return 0 where near-ties explain all of it, else 1. Errors: UsageError."""
    opening.require(COMMAND, "pyarrow", extra="audit")
    files.writable(request.json)
    audits = folder.read(request.one), folder.read(request.other)
    _check(*audits)
    found = _compared(*audits)
    layers = audits[0].manifest["model"]["layers"]
    _show(found, layers)
    made = {
        "schema": SCHEMA,
        "audits": [request.one.name, request.other.name],
        "tokens": found.tokens,
        "layers": [
            {"layer": layer, **{name: int(counts[m]) for name, counts in found.counts.items()}}
            for m, layer in enumerate(layers)
        ],
        "listed": found.listed,
    }
    files.write(request.json, lambda: json_module.dumps(made, indent=1) + "\n")
    return int(bool(found.counts[OTHER].sum()))


def _check(one: Audit, other: Audit) -> None:
    for name, of in (
        ("texts (by digest)", lambda a: a.manifest["corpus"]["digest"]),
        ("tokenisers (by digest)", lambda a: a.manifest["tokenizer"]),
        ("sizes", lambda a: a.tables.sizes),
        ("rows", lambda a: (a.manifest["recipe"]["rows"], a.manifest["recipe"]["share"])),
    ):
        if of(one) != of(other):
            raise UsageError(
                f"{one.path} and {other.path}: are of other {name}; nothing is comparable"
            )


def _rows(audit: Audit) -> Iterator[Routed]:
    """Yield the rows of an audit's trace, with both margins. Errors: UsageError."""
    for routed in reading.read(audit.path / folder.TRACE):
        if routed.margin is None or routed.dropped is None:
            raise UsageError(
                f"{audit.path}: its trace has not both margins; run it with --trace --gates"
            )
        edges = np.flatnonzero(np.diff(routed.row, prepend=-1, append=-1))
        for start, stop in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True):
            yield reading.part(routed, start, stop)


def _compared(one: Audit, other: Audit) -> Found:
    layers = one.tables.sizes.layers
    found = Found(counts={name: np.zeros(layers, np.int64) for name in (TIED, DISPLACED, OTHER)})
    # Rows of a call share groups; which rows a call has is not in a trace, but how many are.
    reach = int(one.manifest["recipe"]["rows"] or 1)
    near: deque[tuple[int, ndarray]] = deque(maxlen=2 * reach)
    waiting: deque[tuple[Routed, Routed, ndarray]] = deque()
    for mine, theirs in zip_longest(_rows(one), _rows(other)):
        if mine is None or theirs is None or not np.array_equal(mine.token, theirs.token):
            raise UsageError(f"{one.path} and {other.path}: their traces are of other tokens")
        found.tokens += len(mine.token)
        tied = _tied(mine, theirs)
        near.append((int(mine.row[0]), np.asarray(tied.any(axis=0))))
        waiting.append((mine, theirs, tied))
        if len(waiting) >= reach:  # what a row's call may hold behind it has been seen
            _judge(found, *waiting[0], _around(waiting.popleft()[0], near, reach))
    for last in waiting:
        _judge(found, *last, _around(last[0], near, reach))
    return found


def _tied(mine: Routed, theirs: Routed) -> ndarray:
    """Return where choices differ and a margin is small on either side, bool [N, L]."""
    assert mine.margin is not None
    assert theirs.margin is not None
    sets = np.sort(mine.expert, axis=-1) != np.sort(theirs.expert, axis=-1)
    kind = np.where(sets.any(axis=-1), SELECTION, ORDER)
    margin = np.minimum(mine.margin, theirs.margin)  # [2, N, L]
    # A near-tie among more than the first two is seen by neither margin alone: the smaller one counts.
    small = np.where(kind == SELECTION, margin[SELECTION], margin.min(axis=0)) < CODES
    return small & (mine.expert != theirs.expert).any(axis=-1)


def _around(mine: Routed, near: Iterable[tuple[int, ndarray]], reach: int) -> ndarray:
    """Return which layers have a near-tie in a row that may be of the same call, bool [L]."""
    row = int(mine.row[0])
    found = np.zeros(mine.expert.shape[1], bool)
    for place, layers in near:
        if abs(place - row) < reach:
            found |= layers
    return found


def _judge(found: Found, mine: Routed, theirs: Routed, tied: ndarray, around: ndarray) -> None:
    before = np.concatenate([[False], np.logical_or.accumulate(around)[:-1]])  # in an earlier layer
    chosen = (mine.expert != theirs.expert).any(axis=-1)
    assert mine.dropped is not None
    assert theirs.dropped is not None
    dropped = (mine.dropped != theirs.dropped).any(axis=(0, -1))
    displaced = ~tied & ((chosen & before) | (~chosen & dropped & (before | around)))
    other = (chosen | dropped) & ~tied & ~displaced
    for name, where in ((TIED, tied), (DISPLACED, displaced), (OTHER, other)):
        found.counts[name] += where.sum(axis=0)
        for token, layer in np.argwhere(where).tolist():
            if len(found.listed) < SHOWN or name == OTHER:
                found.listed.append(_listed(name, mine, theirs, token, layer))
    found.listed.sort(key=lambda one: one["why"] != OTHER)
    del found.listed[SHOWN:]


def _listed(name: str, mine: Routed, theirs: Routed, token: int, layer: int) -> dict[str, Any]:
    assert mine.margin is not None
    code = int(mine.margin[:, token, layer].min())
    return {
        "why": name,
        "layer": layer,
        "document": mine.documents[int(mine.document[token])],
        "row": int(mine.row[token]),
        "position": int(mine.position[token]),
        "token": int(mine.token[token]),
        "one": mine.expert[token, layer].tolist(),
        "other": theirs.expert[token, layer].tolist(),
        "margin": float(MARGIN_THRESHOLDS[code - 1]) if code else 0.0,
    }


def _show(found: Found, layers: list[int]) -> None:
    to = console()
    total = sum(int(one.sum()) for one in found.counts.values())
    unexplained = int(found.counts[OTHER].sum())
    word = "DIFFER" if unexplained else "EQUAL"
    rest = "no difference" if not total else f"{total:,} differences, {unexplained:,} not explained"
    say(to, f"{word}: {found.tokens:,} tokens, {rest} by near-ties and what they displace", "bold")
    if not total:
        return
    table = Table("layer", *found.counts, title="Tokens that differ", title_justify="left")
    for m, layer in enumerate(layers):
        table.add_row(str(layer), *(f"{counts[m]:,}" for counts in found.counts.values()))
    to.print(table)
    for one in found.listed:
        say(
            to,
            f"{one['why']}: layer {layers[one['layer']]}, {one['document']}, row {one['row']}, position "
            f"{one['position']}, id {one['token']}: {one['one']} and {one['other']}, margin {one['margin']:.2g}",
        )
