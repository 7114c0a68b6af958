"""The tables of an audit: integers by name, of which every report is made. Spec: AUDIT-02, AUDIT-21.

Tables of two parts of a text add up to those of the whole, whoever counted which part.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

FOLDS, REPLICATES = 8, 100
"""Parts of the documents for held-out predictions; sets of weights of the document bootstrap."""
POSITION_BINS, GROUP_BINS, RATIO_BINS, GATE_BINS, ENTROPY_BINS, MARGIN_CODES = (
    32,
    64,
    64,
    64,
    65,
    256,
)
"""Parts of a row, of a group, eighths of an octave of largest over mean load, parts of [0, 1], codes."""
FIXED_POINT, SQUARES_POINT = 30, 10
"""Binary places of sums of probabilities and gates, and of squared log-sum-exps, which may be thousands."""
DROP_COLUMNS = ("tokens", "first", "second", "any", "all")
"""Tokens, and those of which the first, the second, any, and every choice got no slot."""
GROUP_COLUMNS = ("groups", "used", "beyond", "overflowing")
"""Groups, slots that were filled, choices beyond capacity, groups with such a choice; by expert."""
REPETITION_COLUMNS = ("pairs", "first", "meeting")
"""Neighbours in a row, those with the same first choice, those whose choices have an expert in common."""
AGREEMENT_COLUMNS = ("tokens", "shared", "first")
"""Tokens, choices that two checkpoints share as sets, tokens with the same first choice."""


class WhatIf(NamedTuple):
    """A capacity rule that recorded choices are replayed under."""

    priority: str
    group_size: int
    factor: float
    capacity: int


@dataclass(frozen=True)
class Sizes:
    """How large the tables of an audit are.

    vocabulary, length, slices, layers, experts, choices   V, S, D, L, E, K
    rules    names of capacity rules whose drops are known, R of them
    what_if  rules that choices are replayed under, W of them
    """

    vocabulary: int
    length: int
    slices: int
    layers: int
    experts: int
    choices: int
    rules: tuple[str, ...] = ()
    what_if: tuple[WhatIf, ...] = field(default=())


class Form(NamedTuple):
    """Shape, dtype and meaning of a table."""

    shape: tuple[int, ...]
    dtype: type[np.integer]
    axes: str


def forms(sizes: Sizes) -> Mapping[str, Form]:
    """Return the tables of an audit by name."""
    v, s, d = sizes.vocabulary, sizes.length, sizes.slices
    l, e, k = sizes.layers, sizes.experts, sizes.choices  # noqa: E741 - SPEC's letter
    r, w = len(sizes.rules), len(sizes.what_if)
    pairs, i64 = l * (l - 1) // 2, np.int64
    return {
        # choices: tokens by key, layer, expert and rank
        "token": Form((FOLDS, v, l, e, k), np.uint32, "fold token layer expert rank"),
        "position": Form((FOLDS, s, l, e, k), i64, "fold position layer expert rank"),
        "slice": Form((FOLDS, d, l, e, k), i64, "fold slice layer expert rank"),
        "slice_token": Form((d, v), i64, "slice token"),
        "documents": Form((FOLDS, d), i64, "fold slice"),
        # neighbours
        "coactivation": Form((l, e, e), i64, "layer expert expert"),
        "cross_layer": Form((pairs, e, e), i64, "pair expert expert"),
        "transition": Form((l, e, e), i64, "layer expert expert"),
        "repetition": Form((d, l, 3), i64, "slice layer REPETITION_COLUMNS"),
        # drops
        "drop": Form((r, d, s, l, 5), i64, "rule slice position layer DROP_COLUMNS"),
        "drop_in_group": Form((r, GROUP_BINS, l, 5), i64, "rule place layer DROP_COLUMNS"),
        "lost_gate": Form((r, d, l, 2), i64, "rule slice layer (dropped, all)"),
        "group_load": Form((r, l, RATIO_BINS), i64, "rule layer ratio"),
        "group_use": Form((r, l, e, 4), i64, "rule layer expert GROUP_COLUMNS"),
        "first_drop": Form((r, l, GROUP_BINS + 1), i64, "rule layer place"),
        "what_if": Form((w, POSITION_BINS, l, 5), i64, "what_if position layer DROP_COLUMNS"),
        # probabilities
        "margin": Form((2, d, l, MARGIN_CODES), i64, "margin slice layer code"),
        "gate": Form((d, l, k, GATE_BINS), i64, "slice layer rank gate"),
        "entropy": Form((l, ENTROPY_BINS), i64, "layer entropy"),
        "probability": Form((l, e), i64, "layer expert"),
        "log_sum": Form((l, 2), i64, "layer (tokens, squares)"),
        # replicates of the document bootstrap
        "replicate_slice": Form((REPLICATES, d, l, e, k), i64, "replicate slice layer expert rank"),
        "replicate_drop": Form(
            (REPLICATES, r, d, POSITION_BINS, l, 5), i64, "replicate rule slice position layer DROP"
        ),
        "replicate_repetition": Form((REPLICATES, l, 3), i64, "replicate layer REPETITION_COLUMNS"),
    }


def pair_forms(sizes: Sizes, checkpoints: int) -> Mapping[str, Form]:
    """Return the tables that compare checkpoints with the one that is audited, on the same tokens."""
    v, l, e, k = sizes.vocabulary, sizes.layers, sizes.experts, sizes.choices  # noqa: E741
    return {
        "agreement": Form((checkpoints, l, 3), np.int64, "checkpoint layer AGREEMENT_COLUMNS"),
        "replicate_agreement": Form(
            (REPLICATES, checkpoints, l, 3), np.int64, "replicate checkpoint layer AGREEMENT"
        ),
        "checkpoint_token": Form(
            (checkpoints, 2, v, l, e, k), np.uint32, "checkpoint half token layer expert rank"
        ),
        "checkpoint_drop": Form(
            (checkpoints, len(sizes.rules), POSITION_BINS, l, 5),
            np.int64,
            "checkpoint rule position layer DROP_COLUMNS",
        ),
    }
