"""How two models' routers agree, and which tokens a near-tie leaves open."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray

from openmoe_reference import grouping
from openmoe_spec.config import Configuration
from openmoe_tools.checkpoints.function.measuring import Floor, router_probabilities
from openmoe_tools.checkpoints.function.probes import grouped, groups_of
from openmoe_tools.checkpoints.function.sides import Pass, Side, router_of

MARGINS = (1e-6, 1e-4, 1e-2)
"""Bounds of the histogram of margins."""


@dataclass(frozen=True)
class Routing:
    """How two routers of one layer agree.

    choices      compared: K of each token
    equal        share of choices that are the same expert in the same place
    equal_kept   share of choices that are both kept or both dropped
    margins      choices that differ, by how far apart the two experts' probabilities are
    allowed      margin up to which a choice may differ
    forbidden    choices that differ and have a larger one
    kept_apart   choices kept by one model alone though all choices of the pass are equal
    """

    layer: int
    choices: int
    equal: float
    equal_kept: float
    margins: Mapping[str, int]
    allowed: float
    forbidden: int
    kept_apart: int


_BUCKETS = (*(f"below {bound:g}" for bound in MARGINS), "more")


@dataclass
class Choices:
    """What `Routing` is made of, over several passes."""

    allowed: float
    choices: int = 0
    equal: int = 0
    equal_kept: int = 0
    forbidden: int = 0
    kept_apart: int = 0
    margins: Counter[str] = field(default_factory=Counter)

    def add(
        self,
        a: tuple[ndarray, ndarray],
        b: tuple[ndarray, ndarray],
        probabilities: ndarray,
        judged: ndarray,
    ) -> None:
        """Take in experts and keeping [B, L, K] of both, and the first's probabilities [B, L, E]."""
        (mine, my_kept), (theirs, their_kept) = ([x[judged] for x in one] for one in (a, b))
        equal, kept = mine == theirs, my_kept == their_kept
        self.choices += equal.size
        self.equal += int(equal.sum())
        self.equal_kept += int(kept.sum())
        if equal.all():
            self.kept_apart += int((~kept).sum())
        p = probabilities[judged]
        of_mine, of_theirs = (np.take_along_axis(p, x.clip(0), -1) for x in (mine, theirs))
        margin = np.abs(of_mine - of_theirs)[~equal]
        self.margins.update(_BUCKETS[i] for i in np.searchsorted(MARGINS, margin, side="right"))
        self.forbidden += int((margin > self.allowed).sum())

    def close(self, layer: int) -> Routing:
        """Return the shares."""
        whole = max(1, self.choices)
        return Routing(
            layer,
            self.choices,
            self.equal / whole,
            self.equal_kept / whole,
            {name: self.margins[name] for name in _BUCKETS},
            self.allowed,
            self.forbidden,
            self.kept_apart,
        )


def unsettled(found: Pass, side: Side, c: Configuration, floor: Floor) -> ndarray:
    """Return tokens [B, L] that a legitimate other choice at a near-tie may have moved.

    Later tokens of its row see it, and so do tokens of its group where an expert is full: their
    slots may move. Exact zeros are padding, whose tie index order decides for everybody.
    """
    first = next(iter(found.activations.values()))
    both = (first.shape[0], first.shape[1])
    padded, _ = groups_of(both, c, side.dialect)
    moved: ndarray = np.zeros(both, bool)
    for layer, decision in found.decisions.items():
        logits = found.activations[router_of(layer)]
        best = -np.sort(-router_probabilities(logits), axis=-1)[..., : c.num_selected_experts + 1]
        close = -np.diff(best, axis=-1).max(axis=-1, initial=-np.inf)
        moved |= (close <= floor.margin(layer)) & (logits != 0).any(axis=-1)
        in_groups = grouped(moved, c, side.dialect)
        full = (decision.position >= decision.capacity - 1).any(axis=(1, 2))
        in_groups = in_groups | (in_groups.any(axis=1) & full)[:, None]
        moved = grouping.from_groups(in_groups[..., None], padded=padded, shape=both)[..., 0]
        moved = np.logical_or.accumulate(moved, axis=1)
    return moved
