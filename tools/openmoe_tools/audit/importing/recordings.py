"""What a file tells of routing, as one form, and what is refused in all of them. Spec: AUDIT-27."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.trace.decoding import check_experts


@dataclass(frozen=True)
class Options:
    """What is said of recordings beside their files.

    choices, experts, layers, vocabulary  K, E, L, V, where a format does not tell; None: not said
    tokens     a file of ids [N] of all tokens: npy, npz, JSON
    documents  a file of the documents in order: lengths, or {"tokens", "name", "slice"} each
    slice      the slice of what has no other
    """

    choices: int | None = None
    experts: int | None = None
    layers: int | None = None
    vocabulary: int | None = None
    tokens: Path | None = None
    documents: Path | None = None
    slice: str = "imported"


@dataclass(frozen=True)
class Recording:
    """The routing of some tokens in order: a file, a call, a request; None is not known.

    where        what is said of the place in a message
    expert       [N, L, K] experts before capacity, best first
    experts      E
    rules        names of the capacity rules of `dropped`
    dropped      bool [R, N, L, K]
    gate         float32 [N, L, K]; margin: uint8 [2, N, L]; entropy: uint8 [N, L], as in `Routed`
    sums         sums of probabilities int64 [L, E] and of log-sum-exps int64 [L, 2], as `Tables` adds them
    token, position, row  integers [N]
    document     integers [N], places in `documents`; slice: integers [N], places in `slices`
    request      whether these tokens are one document
    """

    where: str
    expert: ndarray
    experts: int
    rules: tuple[str, ...] = ()
    dropped: ndarray | None = None
    gate: ndarray | None = None
    margin: ndarray | None = None
    entropy: ndarray | None = None
    sums: tuple[ndarray, ndarray] | None = None
    token: ndarray | None = None
    position: ndarray | None = None
    row: ndarray | None = None
    document: ndarray | None = None
    documents: Sequence[str] = ()
    slice: ndarray | None = None
    slices: Sequence[str] = ()
    request: bool = False


def checked(recording: Recording) -> Recording:
    """Return a recording with experts uint16, or refuse it. Errors: UsageError. Spec: AUDIT-27."""
    expert, where = recording.expert, recording.where
    if expert.ndim != 3 or expert.dtype.kind not in "iu":
        raise UsageError(
            f"{where}: experts are {expert.dtype} {list(expert.shape)}, not integers "
            "[tokens, layers, choices]"
        )
    n, layers, choices = expert.shape
    if not n:
        raise UsageError(f"{where}: has no token")
    if not layers or not choices:
        raise UsageError(f"{where}: has no layer, or no choice: experts are {list(expert.shape)}")
    if not 1 <= choices <= recording.experts <= 1 << 16:
        raise UsageError(f"{where}: {choices} choices of {recording.experts} experts cannot be")
    check_experts(expert, recording.experts, where)
    shapes = {
        "dropped": (len(recording.rules), n, layers, choices),
        "gate": (n, layers, choices),
        "margin": (2, n, layers),
        **dict.fromkeys(("token", "position", "row", "document", "slice"), (n,)),
    }
    for name, shape in shapes.items():
        values = getattr(recording, name)
        if values is not None and values.shape != shape:
            raise UsageError(f"{where}: {name} is {list(values.shape)}, not {list(shape)}")
    return recording


def refuse_not_finite(values: ndarray, where: str, layer: int) -> None:
    """Refuse values [N, ...] of a layer that are not finite. Errors: UsageError. Spec: AUDIT-27."""
    if values.dtype.kind not in "fiu":
        raise UsageError(f"{where}: layer {layer} is {values.dtype}, not numbers")
    wrong = ~np.isfinite(values.reshape(len(values), -1)).all(axis=1)
    if wrong.any():
        token = int(np.flatnonzero(wrong)[0])
        raise UsageError(f"{where}: token {token}, layer {layer}: holds NaN or infinity")
