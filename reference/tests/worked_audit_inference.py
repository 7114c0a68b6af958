"""Worked examples of SPEC.md "Routing audits": predictors, documents, intervals, and what is refused."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import naive_audit
import numpy as np
from numpy import ndarray
from worked_audit import EVEN, FIXED, MIXED, NOTHING, TEXT, bounded, exact, real, whole
from worked_example import Example

# ---- predictors ----------------------------------------------------------------------------------


def predictors() -> Iterator[Example]:
    """Yield what a key tells of a choice, in sample and held out, and what ids tell of a slice."""
    # Two keys, each with an expert of its own: ln 2, and 1/16 from each of three entropies of 8 tokens.
    once = math.log(2) + 1 / 16
    told = [[5, 1, 0], [0, 4, 2], [0, 0, 0], [3, 3, 3]]
    cases: dict[str, Any] = {
        "audit_information_of_all": (
            "the key says the choice",
            {"counts": whole([[4, 0], [0, 4]])},
            [once, once],
        ),
        # The four cells are even: the entropies are ln 2, ln 2 and ln 4, 1/16 and 1/16 less 3/16.
        "audit_information_of_nothing": (
            "even cells: below 0 by the correction",
            {"counts": whole([[2, 2], [2, 2]])},
            [-1 / 16, once],
        ),
        "audit_information": (
            "cells and keys that do not occur are not corrected for",
            {"counts": whole(told)},
            naive_audit.information(told),
        ),
    }
    yield from bounded("information", "AUDIT-22", cases)
    train = [[3, 3, 0], [0, 0, 0], [1, 0, 4], [0, 2, 0]]
    test = [[5, 7, 1], [2, 3, 4], [1, 1, 6], [0, 0, 0]]
    # Of all, 4, 5, 4: the second. Guesses 0 (of equals), 1 (not seen), 2.
    cases = {
        "audit_hits": (
            "the lower of equals, an unseen key, a key that is not asked",
            {"train": whole(train), "test": whole(test)},
            whole([30, 14, 11]),
        ),
        "audit_hits_of_equals": (
            "two experts as often: the lower is the baseline",
            {"train": whole([[2, 2], [0, 0]]), "test": whole([[1, 3], [4, 1]])},
            whole([9, 5, 5]),
        ),
    }
    yield from exact("held_out_hits", "AUDIT-23", cases)
    folds = [
        [[6, 1, 1], [0, 5, 2], [1, 0, 0]],
        [[4, 2, 0], [1, 7, 0], [0, 0, 2]],
        [[5, 0, 1], [2, 3, 1], [0, 1, 1]],
        [[7, 1, 2], [0, 6, 0], [0, 0, 0]],
    ]
    for name, text, options in (
        ("audit_gain", "four folds, each guessed from the other three", {}),
        ("audit_gain_at_99", "a wider interval", {"level": 0.99}),
    ):
        answer = naive_audit.held_out_gain(folds, **options)
        arguments = {"by_fold": whole(folds)} | options
        yield from bounded("held_out_gain", "AUDIT-23", {name: (text, arguments, answer)})
    # MIXED and FIXED make 10, 9, 1, 0 of 20 choices: 1/2, 9/20, 1/20, 0. The slice has 1/2, 1/3, 1/6, 0;
    # two tokens of MIXED and one of FIXED lead to expect 1/2, 5/12, 1/12, 0.
    own = [[2, 1], [1, 1], [0, 1], [0, 0]]
    cases = {
        "audit_explained": (
            "more of one id than the text has, and other choices of it",
            {
                "slice_tokens": whole([2, 1]),
                "token_counts": whole([MIXED, FIXED]),
                "slice_counts": whole(own),
            },
            [7 / 60, 1 / 12, 5 / 7],
        ),
        "audit_explained_in_full": (
            "ids choose as they do everywhere",
            {
                "slice_tokens": whole([4, 0]),
                "token_counts": whole([MIXED, FIXED]),
                "slice_counts": whole(MIXED),
            },
            [3 / 40, 0, 0],
        ),
    }
    yield from bounded("explained_by_tokens", "AUDIT-24", cases)


# ---- documents and intervals ---------------------------------------------------------------------


def documents() -> Iterator[Example]:
    """Yield folds and weights of documents, which follow from their names."""
    names = {"": "news/0", "_of_text": "Pariser Straße, 世界/7", "_of_a_space": " news/0"}
    for suffix, document in names.items():
        told = {"document": document}
        what = f"the name {document!r}"
        for function, options in (
            ("document_fold", {}),
            ("document_weights", {"replicates": 20}),
        ):
            answer = getattr(naive_audit, function)(document, **options)
            yield Example(
                f"audit_{function}{suffix}",
                "AUDIT-25",
                what,
                function,
                told | options,
                whole(answer) if isinstance(answer, list) else answer,
            )
    fold = naive_audit.document_fold("news/0", folds=5)
    told = {"document": "news/0", "folds": 5}
    yield Example("audit_document_fold_of_5", "AUDIT-25", "of 5", "document_fold", told, fold)
    told = {"document": "news/0", "seed": 12}
    answer = whole(naive_audit.document_weights("news/0", seed=12))
    what = "100 replicates of another seed"
    yield Example(
        "audit_document_weights_of_12", "AUDIT-25", what, "document_weights", told, answer
    )


def intervals() -> Iterator[Example]:
    """Yield intervals by both ways."""
    values = [0.25, 0.5, 0.375, 0.625, 0.5]
    for function, argument, numbers in (
        ("bootstrap_interval", "replicates", values),
        ("jackknife_interval", "left_out", values),
        ("jackknife_interval", "left_out", [0.5, 0.25]),
        ("jackknife_interval", "left_out", [*values, 0.4375, 0.5, 0.5625]),
    ):
        for level in (0.95, 0.998):
            answer = getattr(naive_audit, function)(0.5, numbers, level=level)
            name = f"audit_{function}_{len(numbers)}_{round(1000 * level)}"
            what = f"{len(numbers)} numbers, {level}"
            arguments = {"estimate": 0.5, argument: real(numbers), "level": level}
            yield from bounded(function, "AUDIT-26", {name: (what, arguments, answer)})


# ---- what is refused -----------------------------------------------------------------------------


def refused() -> Iterator[Example]:
    """Yield calls that must be rejected."""
    keys = np.array([0, 0, 2, 0, 2, 2], np.int32)
    chosen = TEXT["expert_index"]

    def with_one(value: int) -> ndarray:
        array = chosen.copy()
        array[3, 1] = value
        return array

    counts = TEXT | {"keys": keys, "num_keys": 3}
    twice = {"expert_index": with_one(0)}
    table = {"counts": whole([FIXED, EVEN])}
    uneven = {"counts": whole([[[6, 0], [0, 5], [0, 0], [0, 0]]])}
    doubled = {"counts": whole([[[6, 6], [0, 0], [0, 0], [0, 0]]])}
    gate = np.array([[0.5, 0.25], [0.5, math.nan]], np.float32)
    group = {"expert_index": chosen[None], "num_experts": 4, "capacity": 2, "priority": "choices"}
    three = {"replicates": real([0.5, 0.25, 0.5])}
    for name, what, function, arguments in (
        ("expert_255", "a recorder's 255", "count_choices", counts | {"expert_index": with_one(255)}),
        ("expert_none", "a recorder's -1", "count_choices", counts | {"expert_index": with_one(-1)}),
        ("expert_4", "expert 4 of 4", "count_choices", counts | {"expert_index": with_one(4)}),
        ("expert_twice", "an expert twice", "count_choices", counts | twice),
        ("key_3", "key 3 of 3", "count_choices", counts | {"keys": keys + 1}),
        ("key_below", "a key of -2", "count_choices", counts | {"keys": keys - 2}),
        ("pair_twice", "an expert twice", "coactivation", TEXT | twice),
        ("neighbour_twice", "an expert twice", "repetition", twice | {"row": whole([0] * 6)}),
        ("drop_key", "a key that there is not", "drop_counts",
         {"dropped": np.zeros((6, 2), bool), "keys": keys, "num_keys": 2}),
        ("saturation_twice", "an expert twice", "saturation",
         {"first": chosen, "second": twice["expert_index"]}),
        ("replay_twice", "an expert twice", "replay_choices",
         group | {"expert_index": twice["expert_index"][None]}),
        ("replay_255", "a recorder's 255", "replay_choices",
         group | {"expert_index": with_one(255)[None]}),
        ("ranks", "ranks of different tokens", "choice_shares", uneven),
        ("ranks_spread", "ranks of different tokens", "share_spread", uneven),
        ("ranks_top", "ranks of different tokens", "top_tokens", uneven | {"by": "count"}),
        ("counted_twice", "an expert twice for one token", "debiased_spread", doubled),
        ("below_0", "a count below 0", "choice_shares",
         {"counts": whole([[[3, 0], [-1, 2], [0, 0], [0, 0]]])}),
        ("shares_of_2", "shares that make 2", "debiased_spread",
         table | {"shares": real([1, 1 / 2, 1 / 2, 0])}),
        ("shares_of_one", "all choices of one expert, K = 2", "spread_floor",
         {"tokens": whole([5]), "k": 2, "num_experts": 4, "shares": real([1, 0, 0, 0])}),
        ("gate_none", "a gate that is no number", "lost_gate_share",
         {"gate": gate, "dropped": np.zeros((2, 2), bool)}),
        ("gates_of_0", "gates of nothing", "lost_gate_share",
         {"gate": np.zeros((2, 2), np.float32), "dropped": np.zeros((2, 2), bool)}),
        ("margin_infinite", "an infinite margin", "margin_codes",
         {"margins": np.array([0.5, math.inf], np.float32)}),
        ("replicate_none", "a replicate that is no number", "bootstrap_interval",
         {"estimate": 0.5, "replicates": real([0.5, math.nan, 0.25])}),
        ("estimate_none", "an estimate that is no number", "bootstrap_interval",
         three | {"estimate": real(math.inf)}),
        ("loads_of_0", "no choice", "load_statistics", {"loads": whole([0, 0, 0])}),
        ("near_ties_of_0", "no margin", "near_tie_share", {"histogram": np.zeros(256, np.int64)}),
        ("information_of_0", "no token", "information", {"counts": whole([[0, 0], [0, 0]])}),
        ("gain_of_0", "no token", "held_out_gain", {"by_fold": np.zeros((3, 2, 2), np.int64)}),
        ("explained_of_0", "a slice without a token", "explained_by_tokens",
         {"slice_tokens": whole([0, 0]), "token_counts": whole([MIXED, FIXED]),
          "slice_counts": whole(NOTHING)}),
    ):  # fmt: skip
        yield Example(f"audit_refused_{name}", "AUDIT-27", what, function, arguments)


def examples() -> list[Example]:
    """Return the examples of this module."""
    return [
        example for chapter in (predictors, documents, intervals, refused) for example in chapter()
    ]
