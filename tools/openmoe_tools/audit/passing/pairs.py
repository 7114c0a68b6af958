"""Several checkpoints on the same tokens: what they choose alike with the one that is audited.

Spec: AUDIT-09, AUDIT-15, AUDIT-16.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_reference.audit_drops import drop_counts
from openmoe_tools.audit.counting.adding import position_bins
from openmoe_tools.audit.counting.layout import POSITION_BINS, Sizes, pair_forms
from openmoe_tools.audit.counting.routed import Routed
from openmoe_tools.audit.counting.weighing import folds_of, weights_of
from openmoe_tools.audit.passing import model as models
from openmoe_tools.audit.passing.flattening import flat
from openmoe_tools.audit.passing.model import Audited
from openmoe_tools.audit.passing.recording import Machine
from openmoe_tools.audit.passing.rules import Rule
from openmoe_tools.audit.passing.text import Call


@dataclass(frozen=True)
class Other:
    """A checkpoint beside the audited one: a step of its run, or one that was named."""

    label: str
    path: Path
    kind: str


def others(checkpoint: Path, *, series: bool, against: Sequence[str]) -> list[Other]:
    """Return the checkpoints to compare: the steps of a run, ascending, and those named `LABEL=PATH`.

    Errors: UsageError.
    """
    found = [*_steps(checkpoint)] if series else []
    for given in against:
        label, _, path = given.partition("=")
        if not label or not path:
            raise UsageError(f"--against {given}: must be LABEL=CHECKPOINT, as chat=runs/questions")
        if not Path(path).exists():
            raise UsageError(f"--against {given}: {path} does not exist")
        found.append(Other(label, Path(path), "other"))
    labels = [one.label for one in found]
    for label in labels:
        if labels.count(label) > 1:
            raise UsageError(f"--against {label}: is named twice")
    return found


def _steps(run: Path) -> Iterator[Other]:
    folder = run / "checkpoints" if (run / "checkpoints").is_dir() else run
    steps = sorted(int(one.name) for one in folder.glob("*") if re.fullmatch(r"\d+", one.name))
    if not folder.is_dir() or not steps:
        raise UsageError(f"--series: {run} is no folder of a run with checkpoints of several steps")
    for step in steps[:-1]:  # the newest is the one that is audited
        yield Other(f"step {step}", folder / str(step), "step")


def compare(
    audited: Audited,
    given: Sequence[Other],
    *,
    calls: Sequence[Call],
    machine: Machine,
    rules: Sequence[Rule],
    sizes: Sizes,
    heard: Callable[[str], None] = lambda _: None,
) -> tuple[list[dict[str, Any]], dict[str, ndarray]]:
    """Return what the checkpoints are, the audited one last, and the tables that compare them.

    calls  those that all of them are run on; what the audited one chooses of them is held in memory
    Errors: UsageError.
    """
    forms = pair_forms(sizes, len(given) + 1)
    tables = {name: np.zeros(form.shape, form.dtype) for name, form in forms.items()}
    own = [one.expert for one in _routed(audited, calls, machine, rules)]
    described = []
    for number, other in enumerate([*given, None]):
        model = audited if other is None else models.load(other.path)
        heard("" if other is None else other.label)
        for experts, routed in zip(own, _routed(model, calls, machine, rules), strict=True):
            mine = {name: table[number] for name, table in tables.items() if name != _REPLICATES}
            mine[_REPLICATES] = tables[_REPLICATES][:, number]
            _add(mine, experts, routed, sizes)
        described.append(
            {
                "label": "audited" if other is None else other.label,
                "kind": "audited" if other is None else other.kind,
                "step": model.step,
                "digest": model.digest,
            }
        )
    return described, tables


def _routed(
    model: Audited, calls: Sequence[Call], machine: Machine, rules: Sequence[Rule]
) -> Iterator[Routed]:
    record = machine.recorder(model)
    for call in calls:
        yield flat(call, record(call.ids, call.targets), rules).routed


_REPLICATES = "replicate_agreement"
"""The table whose first axis is not the checkpoints'."""


def _add(
    tables: Mapping[str, ndarray],
    own: ndarray,
    routed: Routed,
    sizes: Sizes,
) -> None:
    """Count a call in the tables of one checkpoint; `own` [N, n, K] is what the audited one chose."""
    shared = (own[..., :, None] == routed.expert[..., None, :]).sum(axis=(-1, -2))  # [N, n]
    first = own[..., 0] == routed.expert[..., 0]
    columns = np.stack([np.ones_like(shared), shared, first], axis=-1)  # [N, n, 3]
    tables["agreement"] += columns.sum(axis=0)
    halves = np.zeros(len(own), np.int64)
    for document in np.unique(routed.document).tolist():
        name, here = routed.documents[document], routed.document == document
        halves[here] = folds_of([name]) % 2
        own_sum = columns[here].sum(axis=0)
        tables[_REPLICATES] += weights_of(name)[:, None, None] * own_sum
    layers = np.arange(sizes.layers)
    for rank in range(sizes.choices):
        place: Any = (
            halves[:, None],
            routed.token[:, None],
            layers,
            routed.expert[..., rank],
            rank,
        )
        np.add.at(tables["checkpoint_token"], place, 1)
    if routed.dropped is None:
        return
    bins = position_bins(routed.position, sizes.length)
    for rule, dropped in enumerate(routed.dropped):
        for layer in range(sizes.layers):
            counts = drop_counts(dropped[:, layer], bins, num_keys=POSITION_BINS)
            tables["checkpoint_drop"][rule, :, layer] += counts
