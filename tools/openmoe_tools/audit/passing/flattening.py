"""From what the routers of a call decided to the routing of its counted tokens. Spec: AUDIT-01, AUDIT-16."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_reference.audit import counted_tokens
from openmoe_tools.audit.counting import probabilities, queues
from openmoe_tools.audit.counting.layout import GROUP_BINS, WhatIf
from openmoe_tools.audit.counting.routed import Groups, Routed
from openmoe_tools.audit.passing.recording import Recorded
from openmoe_tools.audit.passing.rules import Rule
from openmoe_tools.audit.passing.text import Call


class Flat(NamedTuple):
    """What a call adds to the tables.

    groups        of each rule
    probability   int64 [L, E] sums of probabilities, in units of 2^-30
    log_sum       int64 [L, 2] tokens, and sums of squared log-sum-exps of the logits, in units of 2^-10
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
    summed = probabilities.summed(logits)
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
        margin=_by_token(probabilities.margins(logits, rows.shape[-1])),
        gate=tokens(by_row(found.gate)),
        entropy=np.ascontiguousarray(summed.entropy.T),
    )
    groups = [
        queues.groups_of(found.expert, found.position, training.capacity, experts),
        queues.groups_of(whole, position, port.capacity, experts),
    ]
    tokens_of = np.full(len(logits), logits.shape[1], np.int64)
    log_sum = np.stack([tokens_of, summed.squares], axis=1)
    return Flat(routed, groups, summed.probability, log_sum)


def _by_token(codes: ndarray | None) -> ndarray | None:
    """[2, n, N] -> [2, N, n]."""
    return None if codes is None else np.ascontiguousarray(codes.swapaxes(1, 2))


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
