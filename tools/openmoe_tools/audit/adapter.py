"""The audit's counting behind the conformance kit's functions: what a pass does a call at a time.

openmoe conform --implementation openmoe_tools.audit.adapter:Adapter
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_reference.audit_measures import overlap
from openmoe_spec import SPEC_VERSION
from openmoe_spec.errors import RejectedError
from openmoe_tools.audit.counting import queues
from openmoe_tools.audit.counting.layout import Sizes, WhatIf
from openmoe_tools.audit.counting.routed import Routed
from openmoe_tools.audit.counting.tables import Tables
from openmoe_tools.audit.measures.pairs import assigned

_PIECE = 3
"""Tokens that are counted at once: as odd a number as any."""


class Adapter:
    """Tables, counted in pieces; replays by sorting."""

    name = "openmoe_tools.audit"
    version = SPEC_VERSION
    rejects_invalid_input = True

    def count_choices(
        self, keys: ndarray, expert_index: ndarray, *, num_keys: int, num_experts: int
    ) -> ndarray:
        sizes = _sizes(expert_index, num_experts, vocabulary=num_keys)
        tables = _counted(sizes, expert_index, keys)
        return tables["token"].sum(axis=0, dtype=np.int64)[:, 0]

    def coactivation(self, expert_index: ndarray, *, num_experts: int) -> ndarray:
        sizes = _sizes(expert_index, num_experts)
        return _counted(sizes, expert_index, _zeros(expert_index))["coactivation"][0]

    def repetition(self, expert_index: ndarray, row: ndarray) -> ndarray:
        sizes = _sizes(expert_index, int(expert_index.max()) + 1)
        # A row's tokens are given together: neighbours are those of one call.
        tables = Tables(sizes)
        with _Refusing():
            tables.add(_routed(expert_index, _zeros(expert_index), row=row))
        return tables.arrays["repetition"].sum(axis=(0, 1))

    def drop_counts(self, dropped: ndarray, keys: ndarray, *, num_keys: int) -> ndarray:
        experts = np.broadcast_to(np.arange(dropped.shape[1]), dropped.shape)
        sizes = _sizes(experts, dropped.shape[1], length=num_keys, rules=("one",))
        tables = _counted(sizes, experts, keys, position=keys, dropped=dropped[None, :, None])
        return tables["drop"][0, 0, :, 0]

    def replay_choices(
        self,
        expert_index: ndarray,
        *,
        num_experts: int,
        capacity: int,
        priority: str,
        gate: ndarray | None = None,
    ) -> ndarray:
        shape = expert_index.shape
        ordered = np.sort(expert_index, axis=-1)
        if ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any():
            # A pass replays what its tables have admitted.
            raise RejectedError("expert_index", "AUDIT-27", "names an expert twice for one token")
        rule = WhatIf(priority, shape[1], 1.0, capacity)
        with _Refusing():
            whole = expert_index.reshape(1, -1, shape[2])
            gates = None if gate is None else gate.reshape(whole.shape)
            [(_, dropped)] = queues.replay(whole, num_experts, [rule], gates)
        return dropped.reshape(shape)

    def relabelling(self, first: ndarray, second: ndarray) -> ndarray:
        return assigned(overlap(first, second))


class _Refusing:
    """What the tools refuse in a line is what the kit knows as rejected."""

    def __enter__(self) -> None: ...

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, UsageError):
            raise RejectedError("routing", "AUDIT-27", str(error)) from error


def _zeros(expert_index: ndarray) -> ndarray:
    return np.zeros(len(expert_index), np.int32)


def _sizes(expert_index: ndarray, experts: int, **other: Any) -> Sizes:
    given = {"vocabulary": 1, "length": 1, "slices": 1, "layers": 1, "experts": experts}
    return Sizes(**given | {"choices": expert_index.shape[1]} | other)


def _counted(
    sizes: Sizes,
    expert_index: ndarray,
    keys: ndarray,
    *,
    position: ndarray | None = None,
    dropped: ndarray | None = None,
) -> Mapping[str, ndarray]:
    """Return tables of tokens that were counted in pieces and merged; a key of -1 is not counted."""
    whole = Tables(sizes)
    with _Refusing():
        for start in range(0, len(keys), _PIECE):
            here = np.arange(start, min(start + _PIECE, len(keys)))
            here = here[keys[here] != -1]
            part = Tables(sizes)
            part.add(
                _routed(
                    expert_index[here],
                    np.zeros(len(here), np.int32) if sizes.vocabulary == 1 else keys[here],
                    row=here,
                    position=None if position is None else position[here],
                    dropped=None if dropped is None else dropped[:, here],
                )
            )
            whole.merge(part)
    return whole.arrays


def _routed(
    expert_index: ndarray,
    token: ndarray,
    *,
    row: ndarray,
    position: ndarray | None = None,
    dropped: ndarray | None = None,
) -> Routed:
    none = _zeros(expert_index)
    return Routed(
        row=row,
        position=none if position is None else position,
        token=token,
        slice=none,
        document=none,
        expert=expert_index[:, None],
        documents=("one",),
        dropped=dropped,
    )
