"""Positions in the experts' queues, counted by the rule itself from given choices.

An implementation's choices are judged first; its positions and drops then have one right answer.
Spec: ROUTE-07, ROUTE-08, ROUTE-14, JUDGE-04.
"""

from __future__ import annotations

import numpy as np
from numpy import ndarray

from openmoe_conformance.compare import same
from openmoe_spec.records import Decision


def queue(expert_index: ndarray, *, first_gate: ndarray | None = None) -> ndarray:
    """Return the positions [G, T, K] that the choices must have; -1 where there is no expert.

    With `first_gate` [G, T] tokens queue by it, descending and stable (ROUTE-14).
    """
    groups, tokens, k = expert_index.shape
    position = np.full(expert_index.shape, -1, np.int64)
    for g in range(groups):
        gate = np.zeros(tokens) if first_gate is None else first_gate[g]
        order = np.argsort(-gate, kind="stable").tolist()
        chosen = expert_index[g].tolist()
        waiting: dict[int, int] = {}
        for j in range(k):
            for t in order:
                expert = chosen[t][j]
                if expert >= 0:
                    position[g, t, j] = waiting.get(expert, 0)
                    waiting[expert] = waiting.get(expert, 0) + 1
    return position


def compare_queue(got: Decision, position: ndarray, capacity: int) -> None:
    """Require the kept choices and their positions to be those of `position`.

    A dropped choice may show its running count or -1 (ROUTE-01).
    """
    kept = (position >= 0) & (position < capacity)
    same("kept", got.kept, kept)
    shown = kept | (got.position != -1)
    same("position", np.where(shown, got.position, -1), np.where(shown, position, -1))
