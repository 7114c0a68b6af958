"""From what the routers of a call decided to the routing of its counted tokens. Spec: AUDIT-01, AUDIT-16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_reference.audit import counted_tokens
from openmoe_reference.audit_measures import margin_codes
from openmoe_tools.audit import queues
from openmoe_tools.audit.layout import ENTROPY_BINS, FIXED_POINT, GROUP_BINS, WhatIf
from openmoe_tools.audit.recording import Recorded
from openmoe_tools.audit.routed import Groups, Routed
from openmoe_tools.audit.rules import Rule
from openmoe_tools.audit.text import Call


class Flat(NamedTuple):
    """What a call adds to the tables.

    groups        of each rule
    probability   int64 [L, E] sums of probabilities, in units of 2^-30
    log_sum       int64 [L, 2] tokens, and sums of squared log-sum-exps of the logits, in units of 2^-30
    """

    routed: Routed
    groups: list[Groups]
    probability: ndarray
    log_sum: ndarray


def flat(call: Call, found: Recorded, rules: Sequence[Rule]) -> Flat:
    """Return the counted tokens of a call, and the groups that it was cut into by each rule.

    rules  of the pass itself, and of the published port, which the same choices are replayed under
    """
    training, port = rules
    shape = call.ids.shape
    here = counted(call)

    def by_row(array: ndarray) -> ndarray:
        return _by_row(array, training, shape)

    def tokens(array: ndarray) -> ndarray:
        """[n, B, L, ...] -> [N, n, ...]."""
        return np.ascontiguousarray(array[:, here].swapaxes(0, 1))

    experts = found.logits.shape[-1]
    rows = by_row(found.expert)
    whole = rows.reshape(len(rows), 1, -1, rows.shape[-1])  # one group: [n, 1, B * L, K]
    # Groups of different layers are groups like any others.
    position = queues.positions(whole[:, 0], experts, "choices")[:, None]
    late = (position >= port.capacity).reshape(rows.shape)
    logits = by_row(found.logits)[:, here]  # [n, N, E]
    place, column = np.nonzero(here)
    routed = Routed(
        row=call.row[place],
        position=column.astype(np.int32),
        token=call.ids[here],
        slice=np.full(len(place), call.slice, np.int16),
        document=place.astype(np.int32),
        expert=tokens(rows).astype(np.uint16),
        documents=call.documents,
        dropped=np.stack([tokens(~by_row(found.kept)), tokens(late)]),
        place=np.stack([_places(place, column, rule, shape[1]) for rule in rules]),
        margin=_margins(logits, rows.shape[-1]),
        gate=tokens(by_row(found.gate)),
        entropy=None,
    )
    groups = [
        queues.groups_of(found.expert, found.position, training.capacity, experts),
        queues.groups_of(whole, position, port.capacity, experts),
    ]
    return _with_probabilities(routed, groups, logits)


def counted(call: Call) -> ndarray:
    """Return which tokens of a call are counted, bool [B, L]. Spec: AUDIT-01."""
    return counted_tokens(call.ids) & (call.row >= 0)[:, None]


def _by_row(array: ndarray, rule: Rule, shape: tuple[int, ...]) -> ndarray:
    """[n, G, T, ...] -> [n, B, L, ...], without the layer's own padding."""
    whole = array.reshape(len(array), *rule.padded, *array.shape[3:])
    return whole[:, : shape[0], : shape[1]]


def _places(row: ndarray, column: ndarray, rule: Rule, length: int) -> ndarray:
    """Return tokens' indices in their groups, as 64ths of a group."""
    width = length if rule.groups == 1 else rule.padded[1]
    index = (row * width + column) % rule.group_size
    return (index * GROUP_BINS // rule.group_size).astype(np.int32)


def _margins(logits: ndarray, k: int) -> ndarray | None:
    """Return the codes of both margins, uint8 [2, N, n]; None where K = E has nothing to select among."""
    experts = logits.shape[-1]
    if experts <= k or experts < 2:
        return None
    ordered = -np.sort(-logits, axis=-1)
    pairs = (ordered[..., k - 1] - ordered[..., k], ordered[..., 0] - ordered[..., 1])
    return np.stack([margin_codes(one).T for one in pairs])


def _with_probabilities(routed: Routed, groups: list[Groups], logits: ndarray) -> Flat:
    exact = logits.astype(np.float64)
    largest = exact.max(axis=-1, keepdims=True)
    exponentials = np.exp(exact - largest)
    total = exponentials.sum(axis=-1, keepdims=True)
    probability = exponentials / total
    log_sum = (np.log(total) + largest)[..., 0]
    logs = np.log(np.maximum(probability, np.finfo(np.float64).tiny))
    entropy = -(probability * logs).sum(axis=-1) / np.log(max(logits.shape[-1], 2))
    codes = np.floor(np.clip(entropy, 0, 1) * (ENTROPY_BINS - 1)).astype(np.uint8)
    scale = 2.0**FIXED_POINT
    squares = np.rint(log_sum**2 * scale).astype(np.int64).sum(axis=1)
    tokens = np.full(len(logits), logits.shape[1], np.int64)
    return Flat(
        replace(routed, entropy=np.ascontiguousarray(codes.T)),
        groups,
        np.rint(probability * scale).astype(np.int64).sum(axis=1),
        np.stack([tokens, squares], axis=1),
    )


def replayed(
    call: Call, found: Recorded, training: Rule, asked: Sequence[WhatIf]
) -> Iterator[tuple[int, ndarray]]:
    """Yield each rule's number and what it drops of the counted tokens, bool [N, n, K]. Spec: AUDIT-18."""
    here = counted(call).reshape(-1)
    rows, gates = (
        np.ascontiguousarray(_by_row(array, training, call.ids.shape)).reshape(
            len(array), call.ids.size, -1
        )
        for array in (found.expert, found.gate)
    )
    for number, dropped in queues.replay(rows, found.logits.shape[-1], asked, gates):
        yield number, dropped[:, here].swapaxes(0, 1)
