"""`openmoe audit export`: loads by layer and expert, as programs that place experts on devices read them.

Spec: AUDIT-13. Source of the form: EPLB, whose `weight` is [layers, experts].
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_tools import files
from openmoe_tools.audit import folder
from openmoe_tools.audit.counting.tables import Tables
from openmoe_tools.terminal import console, say

SCHEMA = "openmoe-audit-load/1"


@dataclass(frozen=True)
class Request:
    """The options of `openmoe audit export`: an audit's folder, and a file .npy, .csv or .json."""

    folder: Path
    output: Path


def load_table(tables: Tables) -> ndarray:
    """Return how many choices each expert had, dropped ones too, int64 [layers, experts].

    Spec: AUDIT-02.
    """
    by_slice: ndarray = tables.arrays["slice"]  # [folds, slices, L, E, K]
    return by_slice.sum(axis=(0, 1, 4), dtype=np.int64)


def export(request: Request) -> int:
    """Write the loads of an audit; return 0. Errors: UsageError. Spec: AUDIT-13."""
    files.writable(request.output)
    written = _FORMS.get(request.output.suffix)
    if written is None:
        raise UsageError(f"{request.output}: must end in {', '.join(_FORMS)}")
    audit = folder.read(request.folder)
    load = load_table(audit.tables)
    if not load.any():
        raise UsageError(f"{request.folder}: has counted no token, so there is no load")
    layers = [int(one) for one in audit.manifest["model"]["layers"]]
    files.write(request.output, lambda: written(load, layers))
    say(
        console(),
        f"{request.output}: {load.shape[0]} layers, {load.shape[1]} experts, {load.sum():,} choices",
    )
    return 0


def _npy(load: ndarray, layers: Sequence[int]) -> bytes:
    del layers  # a row each, in their order
    made = io.BytesIO()
    np.save(made, load, allow_pickle=False)
    return made.getvalue()


def _csv(load: ndarray, layers: Sequence[int]) -> bytes:
    made = io.StringIO()
    writer = csv.writer(made, lineterminator="\n")
    writer.writerow(["layer", *(f"expert_{e}" for e in range(load.shape[1]))])
    for number, row in zip(layers, load.tolist(), strict=True):
        writer.writerow([number, *row])
    return made.getvalue().encode()


def _json(load: ndarray, layers: Sequence[int]) -> bytes:
    told = {
        "schema": SCHEMA,
        "layers": list(layers),
        "experts": load.shape[1],
        "weight": load.tolist(),
    }
    return (json.dumps(told) + "\n").encode()


_FORMS: Mapping[str, Callable[[ndarray, Sequence[int]], bytes]] = {
    ".npy": _npy,
    ".csv": _csv,
    ".json": _json,
}
