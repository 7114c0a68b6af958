"""Worked examples of SPEC.md "Routing audits": neighbours, loads, margins, pairs of tables, drops."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import naive_audit
import numpy as np
from worked_audit import EVEN, FIXED, MIXED, NOTHING, bounded, exact, whole
from worked_example import Example

# ---- side by side --------------------------------------------------------------------------------


def side_by_side() -> Iterator[Example]:
    """Yield choices of two checkpoints, pairs of experts, and neighbours."""
    first = np.array([[0, 1], [2, 3], [1, 2], [3, 0]], np.int32)
    second = np.array([[1, 0], [2, 0], [3, 0], [3, 0]], np.int32)
    cases: dict[str, Any] = {
        "audit_saturation": (
            "2, 1, 0 and 2 experts of 2, in any order",
            {"first": first, "second": second},
            5 / 8,
        ),
        "audit_saturation_of_one": (
            "K = 1: how often the same",
            {"first": first[:, :1], "second": second[:, :1]},
            1 / 2,
        ),
    }
    yield from bounded("saturation", "AUDIT-09", cases)
    three = np.array([[0, 1, 2], [2, 0, 3], [3, 2, 1]], np.int32)
    together = [[0, 1, 2, 1], [1, 0, 2, 1], [2, 2, 0, 2], [1, 1, 2, 0]]
    alone = np.array([[0], [1]], np.int32)
    cases = {
        "audit_pairs": (
            "K = 3: the first and the third too",
            {"expert_index": three, "num_experts": 4},
            whole(together),
        ),
        "audit_pairs_of_one": (
            "K = 1: no pair",
            {"expert_index": alone, "num_experts": 2},
            whole([[0, 0], [0, 0]]),
        ),
    }
    yield from exact("coactivation", "AUDIT-10", cases)
    cases = {
        "audit_pairs_shared": (
            "rows make K - 1",
            {"counts": whole(together), "tokens": whole([2, 2, 3, 2])},
            [
                [0, 1 / 2, 1, 1 / 2],
                [1 / 2, 0, 1, 1 / 2],
                [2 / 3, 2 / 3, 0, 2 / 3],
                [1 / 2, 1 / 2, 1, 0],
            ],
        )
    }
    yield from bounded("coactivation_shares", "AUDIT-10", cases)
    chosen = np.array([[0, 1], [0, 2], [3, 0], [3, 0], [1, 2], [1, 2]], np.int32)
    cases = {
        "audit_repetition": (
            "two rows: the neighbours across them do not count",
            {"expert_index": chosen, "row": whole([7, 7, 7, 8, 8, 8])},
            whole([4, 2, 3]),
        ),
        "audit_repetition_of_none": (
            "rows of one token",
            {"expert_index": chosen[:2], "row": whole([0, 1])},
            whole([0, 0, 0]),
        ),
    }
    yield from exact("repetition", "AUDIT-12", cases)
    # 1 - (30 x 29)/(32 x 31)
    cases = {
        "audit_repetition_by_chance": (
            "2 of 32",
            {"k": 2, "num_experts": 32},
            [1 / 32, 61 / 496],
        ),
        "audit_repetition_by_need": ("3 of 5 always meet", {"k": 3, "num_experts": 5}, [1 / 5, 1]),
    }
    yield from bounded("repetition_by_chance", "AUDIT-12", cases)


def loads_and_margins() -> Iterator[Example]:
    """Yield loads, even ones and others, and margins at the thresholds and beside them."""
    # 1, 0, 5, 2: mean 2, squares 1 + 4 + 9 + 0; differences 1, 4, 1, 5, 2, 3 make 16, both ways 32.
    entropy = -(1 / 8 * math.log(1 / 8) + 5 / 8 * math.log(5 / 8) + 1 / 4 * math.log(1 / 4))
    some = {
        "cv": math.sqrt(14 / 4) / 2,
        "max_over_mean": 5 / 2,
        "min_over_mean": 0,
        "entropy": entropy / math.log(4),
        "effective_experts": math.exp(entropy),
        "gini": 32 / 16 / 4,
        "dead_fraction": 1 / 4,
    }
    even = [0, 1, 1, 1, 3, 0, 0]
    cases: dict[str, Any] = {
        "audit_loads": ("an expert without a choice", {"loads": whole([1, 0, 5, 2])}, some),
        "audit_loads_even": (
            "all alike",
            {"loads": whole([7, 7, 7])},
            dict(zip(some, even, strict=True)),
        ),
    }
    yield from bounded("load_statistics", "AUDIT-13", cases)
    thresholds = [float(one) for one in naive_audit.margin_thresholds()]
    at = np.array([thresholds[c] for c in (0, 1, 8, 100, 136, 253, 254)], np.float32)
    below, above = np.nextafter(at, np.float32(0)), np.nextafter(at, np.float32(1e9))
    far = np.array([0, 2.0**-30, 1, 2, 1000], np.float32)
    codes = [1, 2, 9, 101, 137, 254, 255]
    cases = {
        "audit_margins": (
            "thresholds, and the float32 below and above them",
            {"margins": np.stack([below, at, above])},
            np.array([[code - 1 for code in codes], codes, codes], np.uint8),
        ),
        "audit_margins_far": (
            "no margin, less than the first, and more than the last threshold",
            {"margins": far},
            np.array([0, 0, 193, 201, 255], np.uint8),
        ),
    }
    yield from exact("margin_codes", "AUDIT-14", cases)
    # 2^-7 is threshold 136: codes from 137 on reach it.
    histogram = np.zeros(256, np.int64)
    histogram[[0, 136, 137, 255]] = [1, 2, 4, 1]
    cases = {
        "audit_near_ties": ("margins below 2^-7", {"histogram": histogram}, 3 / 8),
        "audit_nearer_ties": (
            "margins below the first threshold",
            {"histogram": histogram, "tolerance": 2.0**-24},
            1 / 8,
        ),
    }
    yield from bounded("near_tie_share", "AUDIT-14", cases)


def pairs() -> Iterator[Example]:
    """Yield tables by id of two checkpoints."""
    first, second = [MIXED, FIXED, NOTHING, EVEN], [FIXED, EVEN, MIXED, NOTHING]
    told = {"first": whole(first), "second": whole(second)}
    apart = [[0, 0], [0, 0], [3, 0], [0, 3]]
    cases: dict[str, Any] = {
        "audit_divergence": (
            "of the two ids that both have, weighing 10 and 12 tokens",
            told,
            naive_audit.table_divergence(first, second),
        ),
        "audit_divergence_of_a_bit": (
            "no expert in common",
            {"first": whole([FIXED]), "second": whole([apart])},
            1,
        ),
        "audit_divergence_of_equals": (
            "twice the text, the same shares",
            {"first": whole([MIXED, EVEN]), "second": 2 * whole([MIXED, EVEN])},
            0,
        ),
    }
    yield from bounded("table_divergence", "AUDIT-15", cases)
    one = [[5, 1, 0], [0, 4, 2], [3, 0, 3]]
    moved = [[row[2], row[0], row[1]] for row in one]
    both = {"first": whole(one), "second": whole(moved)}
    cases = {
        "audit_overlap": (
            "sums of the smaller counts, of no more ids than have both",
            both,
            whole([[3, 8, 1], [2, 1, 5], [5, 3, 2]]),
        )
    }
    yield from exact("overlap", "AUDIT-15", cases)
    alike = [[2, 2, 1], [1, 1, 2]]
    # Overlaps 10, 9 and 8, 1: who takes the largest first gets 11 of 17.
    greedy = whole([[10, 0], [9, 0], [0, 8], [0, 1]]), whole([[10, 0], [0, 9], [8, 0], [0, 1]])
    cases = {
        "audit_relabelled": ("experts that were moved", both, whole([1, 2, 0])),
        "audit_not_relabelled": (
            "two experts alike: the unchanged numbers do as well",
            {"first": whole(alike), "second": whole(alike)},
            whole([0, 1, 2]),
        ),
        "audit_relabelled_as_a_whole": (
            "the sum decides, not its largest part",
            {"first": greedy[0], "second": greedy[1]},
            whole([1, 0]),
        ),
    }
    yield from exact("relabelling", "AUDIT-15", cases)


# ---- drops ---------------------------------------------------------------------------------------


def drops() -> Iterator[Example]:
    """Yield drops by key, the gates that were lost, and recorded choices under other rules."""
    dropped = np.array([[0, 0], [0, 1], [1, 1], [1, 0], [0, 1]], bool)
    three = np.array([[0, 0, 1], [1, 1, 1], [0, 1, 1]], bool)
    keys = np.array([1, 1, 1, 0, 0], np.int32)
    cases: dict[str, Any] = {
        "audit_drops": (
            "tokens, first, second, any, every choice",
            {"dropped": dropped, "keys": keys, "num_keys": 3},
            whole([[2, 1, 1, 2, 0], [3, 1, 2, 2, 1], [0] * 5]),
        ),
        "audit_drops_of_three": (
            "any and every one of three choices",
            {"dropped": three, "keys": np.zeros(3, np.int32), "num_keys": 1},
            whole([[3, 1, 2, 3, 1]]),
        ),
    }
    yield from exact("drop_counts", "AUDIT-16", cases)
    gate = np.array([[0.5, 0.25], [0.75, 0.125], [0.5, 0.375]], np.float32)
    cases = {
        "audit_lost_gates": (
            "0.125 + 0.5 + 0.375 of 2.5",
            {"gate": gate, "dropped": dropped[:3]},
            2 / 5,
        )
    }
    yield from bounded("lost_gate_share", "AUDIT-17", cases)
    group = np.array([[0, 1], [1, 0], [0, 2], [1, 2]], np.int32)
    other = np.array([[2, 0], [2, 1], [2, 0], [0, 2]], np.int32)
    recorded = {"expert_index": np.stack([group, other]), "num_experts": 3, "capacity": 2}
    # Choices: 0, 1, 0, 1 fill two experts, then 1 and 0 find none and 2, 2 do; 2, 2, 2, 0, then 0, 1, 0, 2.
    by_choices = [[0, 1], [0, 1], [0, 0], [0, 0]], [[0, 0], [0, 0], [1, 1], [0, 1]]
    # Tokens: 0 1, 1 0, then 0 and 1 find none; 2 0, 2 1, 2 0, 0 2.
    by_tokens = [[0, 0], [0, 0], [1, 0], [1, 0]], [[0, 0], [0, 0], [1, 0], [1, 1]]
    gates = [
        [[0.5, 0.25], [0.5, 0.25], [0.75, 0.125], [0.5, 0.25]],
        [[0.25, 0.25], [0.5, 0.25], [0.5, 0.25], [0.75, 0.0]],
    ]
    # Second group in the order 3, 1, 2, 0: 0, 2, 2, 2, then 2, 1, 0, 0.
    by_gates = [[0, 1], [0, 1], [0, 0], [0, 0]], [[1, 1], [0, 0], [0, 0], [0, 1]]
    cases = {
        "audit_replay_by_choices": (
            "first choices before second ones, each group by itself",
            recorded | {"priority": "choices"},
            np.array(by_choices, bool),
        ),
        "audit_replay_by_tokens": (
            "a token's choices before the next one's",
            recorded | {"priority": "tokens"},
            np.array(by_tokens, bool),
        ),
        "audit_replay_by_gates": (
            "the largest first gate first, equals in token order",
            recorded | {"priority": "gates", "gate": np.array(gates, np.float32)},
            np.array(by_gates, bool),
        ),
        "audit_replay_without_drops": (
            "slots for all",
            recorded | {"priority": "choices", "capacity": 8},
            np.zeros((2, 4, 2), bool),
        ),
    }
    yield from exact("replay_choices", "AUDIT-18", cases)


def examples() -> list[Example]:
    """Return the examples of this module."""
    return [
        example
        for chapter in (side_by_side, loads_and_margins, pairs, drops)
        for example in chapter()
    ]
