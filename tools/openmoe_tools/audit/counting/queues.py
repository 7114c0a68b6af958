"""Places of recorded choices in their experts' queues, and what gets no slot under capacity rules.

What `openmoe_reference.audit_drops.replay` says, by sorting: places are computed once for each
priority and group size, and serve every capacity. Spec: AUDIT-18, AUDIT-20.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_reference.audit_drops import PRIORITIES
from openmoe_tools.audit.counting.layout import GROUP_BINS, WhatIf
from openmoe_tools.audit.counting.routed import Groups

_KEYS = 1 << 16
"""Queues that are sorted at once: NumPy sorts whole numbers of 16 bits by radix, stably."""


def positions(
    expert: ndarray, num_experts: int, priority: str, gate: ndarray | None = None
) -> ndarray:
    """Return how many choices of the same expert stand before each choice, int32 [G, T, K].

    expert    integers [G, T, K]; -1 is no expert, takes no slot and has position -1
    priority  `choices`, `tokens` or `gates`, as the reference's `replay` explains them
    gate      floats [G, T, K], which `gates` needs
    Errors: UsageError. Spec: AUDIT-18, ROUTE-07, ROUTE-14.
    """
    _check(expert, num_experts)
    groups, tokens, choices = expert.shape
    if priority not in PRIORITIES:
        raise UsageError(f"priority {priority!r}: must be one of {', '.join(PRIORITIES)}")
    if priority == "tokens":
        queue = expert.reshape(groups, tokens * choices)
        return _places(queue, num_experts).reshape(expert.shape)
    order = None
    if priority == "gates":
        if gate is None or not np.isfinite(gate).all():
            raise UsageError("priority 'gates': needs the gates of all choices, some are not known")
        order = _best_first(gate[..., 0].astype(np.float32))
        expert = np.take_along_axis(expert, order[..., None], axis=1)
    # All first choices stand before all second ones: [G, T, K] -> [G, K * T].
    queue = expert.swapaxes(1, 2).reshape(groups, choices * tokens)
    found = _places(queue, num_experts).reshape(groups, choices, tokens)
    place = np.empty(expert.shape, np.int32)
    if order is None:
        place[...] = found.swapaxes(1, 2)
    else:
        np.put_along_axis(place, order[..., None], found.swapaxes(1, 2), axis=1)
    return place


def groups_of(expert: ndarray, position: ndarray, capacity: int, num_experts: int) -> Groups:
    """Return what whole groups received.

    expert    integers [L, G, T, K]; -1 is no expert
    position  int32 [L, G, T, K], each layer as `positions` gives it
    Errors: UsageError. Spec: AUDIT-13, AUDIT-16.
    """
    _check(expert, num_experts)
    layers, groups, tokens, _ = expert.shape
    # One expert more for choices that there are not, which is cut off again.
    number = np.arange(layers)[:, None] + np.arange(groups) * layers  # [L, G]: group, then layer
    key = (number * (num_experts + 1))[..., None, None] + _with_nobody(expert, num_experts)
    shape = (groups, layers, num_experts + 1)
    load = np.bincount(key.reshape(-1), minlength=math.prod(shape)).reshape(shape)
    beyond = position[..., 0] >= capacity
    for rank in range(1, expert.shape[-1]):
        beyond |= position[..., rank] >= capacity
    index = beyond.argmax(axis=-1)  # [L, G], 0 also where there is none
    first = np.where(beyond.any(axis=-1), index * GROUP_BINS // tokens, GROUP_BINS)
    return Groups(
        np.ascontiguousarray(load[..., :num_experts], np.int32),
        np.ascontiguousarray(first.T, np.int32),
        capacity,
    )


def replay(
    expert: ndarray, num_experts: int, rules: Sequence[WhatIf], gate: ndarray | None = None
) -> Iterator[tuple[int, ndarray]]:
    """Yield each rule's number and the choices that it leaves without a slot, bool [L, N, K].

    expert  integers [L, N, K] of N tokens of whole groups, in order; -1 takes no slot
    gate    floats [L, N, K], which rules by `gates` need
    Rules of the same priority and group size follow each other, whatever their order in `rules`.
    Errors: UsageError where groups of a rule's size do not make up the tokens. Spec: AUDIT-18.
    """
    kinds: dict[tuple[str, int], list[int]] = {}
    for number, rule in enumerate(rules):
        kinds.setdefault((rule.priority, rule.group_size), []).append(number)
    tokens, choices = expert.shape[1:]
    for (priority, size), numbers in kinds.items():
        if size < 1 or tokens % size:
            raise UsageError(
                f"group size {size}: {tokens} tokens are given at once, which groups of it do not "
                "make up; name a divisor"
            )
        shape = (-1, size, choices)  # the groups of all layers: [L * G, T, K]
        shown = None if gate is None or priority != "gates" else gate.reshape(shape)
        place = positions(expert.reshape(shape), num_experts, priority, shown)
        place = place.reshape(expert.shape)
        for number in numbers:
            yield number, place >= rules[number].capacity


def _check(expert: ndarray, num_experts: int) -> None:
    if expert.size and (expert.max() >= num_experts or expert.min() < -1):
        raise UsageError(
            f"choices: are of experts {expert.min()} to {expert.max()}; there are {num_experts}, "
            "counted from 0, and -1 where a token has none"
        )


def _with_nobody(expert: ndarray, num_experts: int) -> ndarray:
    """Return the experts as int64, with one more for -1."""
    wide = expert.astype(np.int64)
    if expert.dtype.kind == "i":
        wide[wide < 0] = num_experts
    return wide


def _places(queue: ndarray, num_experts: int) -> ndarray:
    """Return how often the same expert stands before, int32 [G, Q]; -1 where none stands.

    queue  integers [G, Q]
    """
    groups, length = queue.shape
    found = np.empty((groups, length), np.int32)
    step = max(1, _KEYS // (num_experts + 1))
    for start in range(0, groups, step):
        part = _with_nobody(queue[start : start + step], num_experts)
        part += np.arange(len(part))[:, None] * (num_experts + 1)
        key = part.reshape(-1)
        size = len(part) * (num_experts + 1)
        number = np.bincount(key, minlength=size)
        # A stable order puts each queue's choices together, first come first.
        order = np.argsort(key.astype(np.uint16 if size <= _KEYS else np.int64), kind="stable")
        before = np.repeat(np.cumsum(number) - number, number)
        place = np.empty(len(key), np.int32)
        place[order] = np.arange(len(key)) - before
        found[start : start + step] = place.reshape(part.shape)
    if queue.dtype.kind == "i":
        found[queue < 0] = -1
    return found


def _best_first(gate: ndarray) -> ndarray:
    """Return the stable order of descending float32 gates along the last axis, int64 [G, T]."""
    bits = (gate + np.float32(0)).view(np.uint32)  # the zero with a sign is no less than the other
    # Bits of floats without a sign are in the floats' order; with one, in the opposite.
    bits = np.where(bits >> 31, bits, ~bits & np.uint32(0x7FFFFFFF))
    # The low halves first, then the high ones, each by radix.
    order = np.argsort(bits.astype(np.uint16), axis=-1, kind="stable")
    high = np.take_along_axis((bits >> 16).astype(np.uint16), order, axis=-1)
    return np.take_along_axis(order, np.argsort(high, axis=-1, kind="stable"), axis=-1)
