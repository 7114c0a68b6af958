"""The routing of counted tokens, whoever recorded it: what tables and traces are made of.

Spec: AUDIT-01, AUDIT-02.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from numpy import ndarray

SELECTION, ORDER = 0, 1
"""Margins, by their place: between choices K and K + 1, and between the first and the second."""


@dataclass(frozen=True)
class Routed:
    """What the router chose for N counted tokens of rows, in order; L sparse layers, K choices.

    row        int64 [N]        number of the token's row in all the text
    position   int32 [N]        place in the row; the start token has 0
    token      int32 [N]        id
    slice      int16 [N]        number of the row's slice
    document   int32 [N]        place in `documents`
    expert     uint16 [N, L, K] experts before capacity, best first
    dropped    bool [R, N, L, K] choices that got no slot, by rule; None: not known
    place      int32 [R, N]     index in the token's group, as 64ths of its length; None: not known
    margin     uint8 [2, N, L]  codes of both margins; None: not known
    gate       float32 [N, L, K] probabilities of the chosen experts; None: not known
    entropy    uint8 [N, L]     of the router's probabilities over ln E, as 64ths; None: not known
    documents  names of documents, which say in which fold and in which replicates they are
    """

    row: ndarray
    position: ndarray
    token: ndarray
    slice: ndarray
    document: ndarray
    expert: ndarray
    documents: Sequence[str]
    dropped: ndarray | None = None
    place: ndarray | None = None
    margin: ndarray | None = None
    gate: ndarray | None = None
    entropy: ndarray | None = None


@dataclass(frozen=True)
class Groups:
    """What whole capacity groups received, padding among them: G groups of one rule.

    load   int32 [G, L, E]  choices of each expert, dropped ones too
    first  int32 [G, L]     index of the first token with a dropped choice, as 64ths; 64: none
    """

    load: ndarray
    first: ndarray
    capacity: int
