"""Checkpoints against the audited one, on the same tokens. Spec: AUDIT-09, AUDIT-15, AUDIT-23."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_reference import audit_inference, audit_measures
from openmoe_tools.audit.counting.layout import AGREEMENT_COLUMNS
from openmoe_tools.audit.measures.intervals import ratios
from openmoe_tools.audit.measures.view import View

TOKENS, SHARED, FIRST = (AGREEMENT_COLUMNS.index(one) for one in ("tokens", "shared", "first"))
STEP, OTHER, AUDITED = "step", "other", "audited"


class Relabelled(NamedTuple):
    """Whether experts kept their numbers from a checkpoint to the audited one.

    wins   no other way to number them has a larger overlap
    moved  experts that the best way numbers otherwise
    kept, best   overlaps of the unchanged and the best numbers, as parts of the smaller text's choices
    """

    wins: bool
    moved: int
    kept: float
    best: float


class Transfer(NamedTuple):
    """How often a checkpoint's table of ids guesses the audited one's first choice on other documents."""

    accuracy: float
    baseline: float


def tables(view: View) -> dict[str, ndarray]:
    """Return the tables of pairs, which there have to be."""
    assert view.pairs is not None, "sections of checkpoints are made where there are pairs"
    return dict(view.pairs)


def saturations(view: View) -> ndarray:
    """Return the saturation by checkpoint and layer. Spec: AUDIT-09."""
    counts = tables(view)["agreement"]
    return ratios(counts[..., SHARED], counts[..., TOKENS] * view.sizes.choices)


def agreements(view: View) -> ndarray:
    """Return how often the first choice is the same, by checkpoint and layer. Spec: AUDIT-09."""
    counts = tables(view)["agreement"]
    return ratios(counts[..., FIRST], counts[..., TOKENS])


def replicated(view: View) -> ndarray:
    """Return the replicates of the saturation, by replicate, checkpoint and layer."""
    counts = tables(view)["replicate_agreement"]
    return ratios(counts[..., SHARED], counts[..., TOKENS] * view.sizes.choices)


def _counts(view: View, checkpoint: int, layer: int) -> ndarray:
    """Return choices by half, seen id, expert and rank."""
    return tables(view)["checkpoint_token"][checkpoint][:, view.seen, layer].astype(np.int64)


def divergence(view: View, checkpoint: int, layer: int) -> float:
    """Return how far the tables of ids are apart, in bits. Spec: AUDIT-15."""
    one = _counts(view, checkpoint, layer).sum(axis=0)
    last = _counts(view, -1, layer).sum(axis=0)
    return audit_measures.table_divergence(one, last)


def relabelled(view: View, checkpoint: int, layer: int) -> Relabelled:
    """Return whether experts kept their numbers. Spec: AUDIT-15."""
    key = ("relabelled", checkpoint, layer)
    return view.once(key, lambda: _relabelled(view, checkpoint, layer))


def _relabelled(view: View, checkpoint: int, layer: int) -> Relabelled:
    one = _counts(view, checkpoint, layer).sum(axis=(0, -1))  # [n, E]
    last = _counts(view, -1, layer).sum(axis=(0, -1))
    shared = audit_measures.overlap(one, last)
    order = assigned(shared)
    all_of = max(min(int(one.sum()), int(last.sum())), 1)
    same = np.arange(len(order))
    kept, best = int(np.trace(shared)), int(shared[same, order].sum())
    return Relabelled(kept == best, int((order != same).sum()), kept / all_of, best / all_of)


def assigned(shared: ndarray) -> ndarray:
    """Return the column of each row, each once, so that int [E, E] adds up to most.

    Where the diagonal does as well, it is that. For any number of experts; the reference tries all ways, of up
    to 16.
    """
    from scipy.optimize import (  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415
        linear_sum_assignment,
    )

    found: ndarray = linear_sum_assignment(shared, maximize=True)[1]
    same = np.arange(len(shared))
    return same if np.trace(shared) == shared[same, found].sum() else found


def transfer(view: View, checkpoint: int, layer: int) -> Transfer:
    """Return how well a checkpoint's ids tell the audited one's first choices. Spec: AUDIT-23.

    Each half of the documents is guessed from the checkpoint's table of the other half.
    """
    known, asked = _counts(view, checkpoint, layer)[..., 0], _counts(view, -1, layer)[..., 0]
    if not (known.any(axis=(1, 2)).all() and asked.any(axis=(1, 2)).all()):
        return Transfer(np.nan, np.nan)  # the documents are all in one half
    hits = audit_inference.held_out_hits(known[0], asked[1])
    hits = hits + audit_inference.held_out_hits(known[1], asked[0])
    tokens, right, plain = hits.tolist()
    return Transfer(right / tokens, plain / tokens)
