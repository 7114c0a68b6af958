"""What routing audits refuse: choices, counts, predictors, documents and intervals."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from rejections import (
    LEGAL,
    NOT_COUNTS,
    NOT_FACTORS,
    NOT_WORDS,
    Row,
    changed,
    rows_of_arrays,
    rows_of_sizes,
    rows_of_values,
)

CLAUSE = ("AUDIT-27",)
E, K = 4, 2

KEYS = np.array([0, 1, 1, -1, 0])
CHOSEN = np.array([[0, 1], [2, 0], [2, 3], [1, 3], [0, 3]])
COUNTS = np.array([
    [[2, 0], [0, 1], [0, 0], [0, 1]],
    [[0, 1], [0, 0], [2, 0], [0, 1]],
    [[0, 0], [0, 0], [0, 0], [0, 0]],
])  # fmt: skip
FIRST = np.array([[2, 0, 0, 0], [0, 0, 2, 0], [0, 1, 0, 0]])
SHARES = np.array([0.5, 0.25, 0.25, 0.0])
DROPS = np.array([[False, False], [False, True], [True, True]])
GATES = np.array([[0.5, 0.25], [0.75, 0.125], [0.5, 0.5]], np.float32)
GROUPS = CHOSEN[None, :3]
VALUES = np.array([0.5, 0.25, 0.375])
TALL = {"counts": COUNTS}
LEVEL = {"level": 0.95}

LEGAL.update(
    {
        "audit.check_choices": {
            "expert_index": CHOSEN,
            "num_experts": E,
            "sizes": {"N": 5, "K": 2},
            "name": "expert_index",
        },
        "audit.check_counts": {"name": "counts", "counts": COUNTS},
        "audit.tokens_of": TALL,
        "audit.counted_tokens": {"ids": np.array([[0, 5, 6, 0], [0, 0, 0, 0]])},
        "audit.count_choices": {
            "keys": KEYS,
            "expert_index": CHOSEN,
            "num_keys": 2,
            "num_experts": E,
        },
        "audit.choice_shares": TALL,
        "audit.share_spread": TALL,
        "audit.mean_spread": TALL | {"least": 1},
        "audit.largest_spread": {"k": K, "num_experts": E},
        "audit.spread_floor": {
            "tokens": np.array([3, 0, 200]),
            "k": K,
            "num_experts": E,
            "shares": SHARES,
        },
        "audit.debiased_spread": TALL | {"shares": SHARES},
        "audit.specialisation": TALL | {"shares": SHARES},
        "audit_measures.top_tokens": TALL | {"by": "precision", "number": 2, "least": 1},
        "audit_measures.vocabulary_specialisation": TALL | {"least": 1, "weighted": True},
        "audit_measures.coactivation": {"expert_index": CHOSEN, "num_experts": E},
        "audit_measures.coactivation_shares": {
            "counts": np.array([[0, 2, 1], [2, 0, 0], [1, 0, 0]]),
            "tokens": np.array([3, 2, 1]),
        },
        "audit_measures.repetition": {"expert_index": CHOSEN, "row": np.array([0, 0, 0, 1, 1])},
        "audit_measures.repetition_by_chance": {"k": K, "num_experts": E},
        "audit_measures.load_statistics": {"loads": np.array([3, 0, 5])},
        "audit_measures.margin_codes": {"margins": np.array([0.0, 0.5, 3.0], np.float32)},
        "audit_measures.near_tie_share": {"histogram": np.arange(256), "tolerance": 2.0**-7},
        "audit_measures.saturation": {"first": CHOSEN, "second": CHOSEN[::-1].copy()},
        "audit_measures.table_divergence": {"first": COUNTS, "second": COUNTS[::-1].copy()},
        "audit_measures.overlap": {"first": FIRST, "second": FIRST},
        "audit_measures.relabelling": {"first": FIRST, "second": FIRST},
        "audit_drops.drop_counts": {"dropped": DROPS, "keys": KEYS[:3], "num_keys": 2},
        "audit_drops.lost_gate_share": {"gate": GATES, "dropped": DROPS},
        "audit_drops.replay": {
            "expert_index": GROUPS,
            "num_experts": E,
            "capacity": 1,
            "priority": "gates",
            "gate": GATES[None],
        },
        "audit_inference.information": {"counts": FIRST},
        "audit_inference.held_out_hits": {"train": FIRST, "test": FIRST},
        "audit_inference.held_out_gain": {"by_fold": np.stack([FIRST] * 3), **LEVEL},
        "audit_inference.explained_by_tokens": {
            "slice_tokens": np.array([1, 1, 0]),
            "token_counts": COUNTS,
            "slice_counts": np.array([[1, 0], [0, 1], [1, 0], [0, 1]]),
        },
        "audit_inference.document_fold": {"document": "news/1", "folds": 8},
        "audit_inference.document_weights": {"document": "news/1", "replicates": 9, "seed": 1},
        "audit_inference.bootstrap_interval": {"estimate": 0.5, "replicates": VALUES, **LEVEL},
        "audit_inference.jackknife_interval": {"estimate": 0.5, "left_out": VALUES, **LEVEL},
        "audit_inference.student_quantile": {"chance": 0.975, "degrees": 7},
    }
)

OR_0 = {what: value for what, value in NOT_COUNTS.items() if what != "zero"}
"""What is no whole number from 0 on."""
NOT_CHANCES = NOT_FACTORS | {"one": 1.0, "a percentage": 95.0}
NOT_NAMES = {
    "nothing": None,
    "no text": "",
    "a number": 5,
    "bytes": b"news/1",
    "a list": ["news/1"],
    "half a surrogate pair": "news/\ud800",
}
NOT_NUMBERS = {what: value for what, value in NOT_FACTORS.items() if "zero" not in what} | {
    "an array": VALUES
}
del NOT_NUMBERS["a negative number"]


def choices() -> Iterator[Row]:
    """Yield ids, keys and choices that are none."""
    yield from rows_of_arrays("audit.counted_tokens", ("ids",), CLAUSE)
    yield from rows_of_values(
        "audit.counted_tokens", "ids", {"an id below 0": np.array([[0, -1]])}, *CLAUSE
    )
    for function, argument in (
        ("audit.check_choices", "expert_index"),
        ("audit.count_choices", "expert_index"),
        ("audit_measures.coactivation", "expert_index"),
        ("audit_measures.repetition", "expert_index"),
        ("audit_measures.saturation", "first"),
        ("audit_measures.saturation", "second"),
        ("audit_drops.replay", "expert_index"),
    ):
        yield from rows_of_arrays(function, (argument,), CLAUSE)
        legal = LEGAL[function][argument]
        wrong = {"an expert twice": legal[..., :1].repeat(2, axis=-1)}
        if function != "audit_drops.replay":  # there -1 is no choice
            wrong["a recorder's -1"] = changed(legal, (0, 1), -1)
        else:
            wrong["a recorder's -2"] = changed(legal, (0, 0, 1), -2)
        if "num_experts" in LEGAL[function]:
            wrong["a recorder's 255"] = changed(legal, (0,) * (legal.ndim - 1) + (1,), 255)
            wrong["an expert too much"] = changed(legal, (0,) * legal.ndim, E)
            fewer = {"num_experts": E - 1}
            yield Row(function, "fewer experts", fewer, (argument,), CLAUSE)
            if function != "audit.check_choices":
                yield from rows_of_values(function, "num_experts", NOT_COUNTS, *CLAUSE)
        yield from rows_of_values(function, argument, wrong, *CLAUSE)
    for function in ("audit.count_choices", "audit_drops.drop_counts"):
        yield from rows_of_arrays(function, ("keys",), CLAUSE)
        keys = LEGAL[function]["keys"]
        wrong = {"a key too much": changed(keys, (0,), 2), "below -1": changed(keys, (0,), -2)}
        yield from rows_of_values(function, "keys", wrong, *CLAUSE)
        yield from rows_of_values(function, "num_keys", NOT_COUNTS, *CLAUSE)
    yield from rows_of_sizes("audit.count_choices", {"keys": (0,), "expert_index": (0,)}, CLAUSE)
    yield from rows_of_arrays("audit_measures.repetition", ("row",), CLAUSE)
    yield from rows_of_sizes(
        "audit_measures.repetition", {"row": (0,), "expert_index": (0,)}, CLAUSE
    )
    yield from rows_of_sizes("audit_measures.saturation", {"first": (0,), "second": (0,)}, CLAUSE)
    fewer = {"second": CHOSEN[:, :1]}
    yield Row("audit_measures.saturation", "a choice less", fewer, ("second",), CLAUSE)


def not_counts(legal: np.ndarray) -> dict[str, Any]:
    """Return counts [..., E, K] that are none."""
    return {
        "a count below 0": changed(changed(legal, (0, 0, 0), -1), (0, 2, 0), 3),
        "ranks of different tokens": changed(legal, (0, 0, 0), 3),
        "more second choices than first": changed(legal, (1, 1, 1), 3),
        "an expert twice for one token": changed(changed(legal, (0, 0, 1), 1), (0, 1, 1), 0),
    }


def counts() -> Iterator[Row]:
    """Yield counts that are none, and options of the measures that are made of them."""
    for function, exact in (
        ("audit.check_counts", False),
        ("audit.tokens_of", False),
        ("audit.choice_shares", False),
        ("audit.share_spread", False),
        ("audit.mean_spread", False),
        ("audit.debiased_spread", False),
        ("audit.specialisation", False),
        ("audit_measures.top_tokens", True),
        ("audit_measures.vocabulary_specialisation", True),
    ):
        illegal = {row.what: row for row in rows_of_arrays(function, ("counts",), CLAUSE)}
        if not exact:  # any axes may stand before, and there may be no key
            for what in ("one axis less", "one axis more", "no element"):
                del illegal[what]
        yield from illegal.values()
        wrong = not_counts(COUNTS) | {"one axis": COUNTS[0, 0], "no expert": COUNTS[:, :0]}
        yield from rows_of_values(function, "counts", wrong, *CLAUSE)
        if "least" in LEGAL[function]:
            yield from rows_of_values(function, "least", OR_0, *CLAUSE)
        if "shares" in LEGAL[function]:
            yield from shares(function)
    everyone = np.array([[[3, 0], [0, 3]]])
    what = "a choice of all experts"
    yield Row(
        "audit.specialisation", what, {"counts": everyone, "shares": None}, ("counts",), CLAUSE
    )
    yield from rows_of_values("audit_measures.top_tokens", "by", NOT_WORDS, *CLAUSE)
    yield from rows_of_values("audit_measures.top_tokens", "number", NOT_COUNTS, *CLAUSE)
    yield from rows_of_arrays("audit_measures.table_divergence", ("first", "second"), CLAUSE)
    for argument in ("first", "second"):
        legal = LEGAL["audit_measures.table_divergence"][argument][
            :: 1 if argument == "first" else -1
        ]
        wrong = not_counts(legal)
        yield from rows_of_values("audit_measures.table_divergence", argument, wrong, *CLAUSE)
    axes = {"first": (0,), "second": (0,)}
    yield from rows_of_sizes("audit_measures.table_divergence", axes, CLAUSE)


def shares(function: str) -> Iterator[Row]:
    """Yield shares of the whole text that are none."""
    legal = LEGAL[function]["shares"]
    yield from rows_of_arrays(function, ("shares",), CLAUSE)
    wrong = {
        "a share below 0": np.array([0.5, 0.5, 0.25, -0.25]),
        "shares that make less": legal / 2,
        "choices that make K": legal * K,
        "a share above 1 / K": np.array([0.75, 0.25, 0.0, 0.0]),
        "three of four": np.array([0.5, 0.25, 0.25]),
    }
    yield from rows_of_values(function, "shares", wrong, *CLAUSE)


def sizes() -> Iterator[Row]:
    """Yield numbers of choices and experts that are none."""
    for function in (
        "audit.largest_spread",
        "audit.spread_floor",
        "audit_measures.repetition_by_chance",
    ):
        yield from rows_of_values(function, "num_experts", NOT_COUNTS, *CLAUSE)
        yield from rows_of_values(function, "k", NOT_COUNTS | {"more than E": E + 1}, *CLAUSE)
    function = "audit.spread_floor"
    illegal = {
        row.what: row for row in rows_of_arrays(function, ("tokens",), CLAUSE, any_rank=True)
    }
    del illegal["no element"]
    yield from illegal.values()
    below = {"tokens below 0": np.array([3, -1])}
    yield from rows_of_values(function, "tokens", below, *CLAUSE)
    yield from shares(function)


def side_by_side() -> Iterator[Row]:
    """Yield pairs, loads and margins that are none."""
    function = "audit_measures.coactivation_shares"
    yield from rows_of_arrays(function, ("counts", "tokens"), CLAUSE)
    yield from rows_of_sizes(function, {"counts": (0, 1), "tokens": (0,)}, CLAUSE)
    legal = LEGAL[function]
    wrong = {
        "a pair below 0": changed(legal["counts"], (0, 1), -1),
        "more than the expert has": changed(legal["counts"], (2, 0), 2),
    }
    yield from rows_of_values(function, "counts", wrong, *CLAUSE)
    for what, value in (("fewer than its pairs", 1), ("tokens below 0", -1)):
        tokens = changed(legal["tokens"], (0,), value)
        yield Row(function, what, {"tokens": tokens}, ("tokens", "counts"), CLAUSE)
    function = "audit_measures.load_statistics"
    yield from rows_of_arrays(function, ("loads",), CLAUSE)
    wrong = {"a load below 0": np.array([3, -1, 5]), "no choice": np.zeros(3, np.int64)}
    yield from rows_of_values(function, "loads", wrong, *CLAUSE)
    function = "audit_measures.margin_codes"
    illegal = {
        row.what: row for row in rows_of_arrays(function, ("margins",), CLAUSE, any_rank=True)
    }
    del illegal["no element"]
    yield from illegal.values()
    wrong = {
        "a margin below 0": np.array([0.5, -0.5], np.float32),
        "float64": np.array([0.5]),
        "nothing": None,
    }
    yield from rows_of_values(function, "margins", wrong, *CLAUSE)
    function = "audit_measures.near_tie_share"
    yield from rows_of_arrays(function, ("histogram",), CLAUSE)
    wrong = {
        "255 codes": np.arange(255),
        "a number below 0": changed(np.arange(256), (5,), -1),
        "no margin": np.zeros(256, np.int64),
    }
    yield from rows_of_values(function, "histogram", wrong, *CLAUSE)
    wrong = NOT_FACTORS | {"no threshold": 0.01, "beyond the last": 2.0**9}
    yield from rows_of_values(function, "tolerance", wrong, *CLAUSE)


def first_choices() -> Iterator[Row]:
    """Yield tables [keys, E] that are none."""
    for function, arguments in (
        ("audit_measures.overlap", ("first", "second")),
        ("audit_measures.relabelling", ("first", "second")),
        ("audit_inference.information", ("counts",)),
        ("audit_inference.held_out_hits", ("train", "test")),
        ("audit_inference.held_out_gain", ("by_fold",)),
    ):
        yield from rows_of_arrays(function, arguments, CLAUSE)
        for argument in arguments:
            legal = LEGAL[function][argument]
            below = {"a count below 0": changed(legal, (0,) * legal.ndim, -1)}
            yield from rows_of_values(function, argument, below, *CLAUSE)
        if len(arguments) == 2:
            yield from rows_of_sizes(function, dict.fromkeys(arguments, (0, 1)), CLAUSE)
    many = np.ones((1, 17), np.int64)
    what = "more experts than can be tried"
    changes = {"first": many, "second": many}
    yield Row("audit_measures.relabelling", what, changes, ("first", "second"), CLAUSE)
    none = {"no token": np.zeros_like(FIRST)}
    yield from rows_of_values("audit_inference.information", "counts", none, *CLAUSE)
    folds = {
        "one fold": FIRST[None],
        "two folds, one of which would be left": np.stack([FIRST] * 2),
        "one fold alone where the baseline is wrong": np.array([[[9, 1]], [[5, 0]], [[5, 0]]]),
        "no token": np.zeros((3, 2, 2), np.int64),
        "one expert, never missed": np.ones((3, 2, 1), np.int64),
    }
    yield from rows_of_values("audit_inference.held_out_gain", "by_fold", folds, *CLAUSE)
    function = "audit_inference.explained_by_tokens"
    names = "slice_tokens", "token_counts", "slice_counts"
    yield from rows_of_arrays(function, names, CLAUSE)
    yield from rows_of_sizes(
        function, {"token_counts": (0, 1, 2), "slice_tokens": (0,), "slice_counts": (0, 1)}, CLAUSE
    )
    legal = LEGAL[function]
    yield from rows_of_values(function, "token_counts", not_counts(COUNTS), *CLAUSE)
    wrong = {
        "ranks of different tokens": changed(legal["slice_counts"], (0, 0), 2),
        "a count below 0": changed(legal["slice_counts"], (0, 0), -1),
        "an expert twice for one token": np.array([[2, 2], [0, 0], [0, 0], [0, 0]]),
        "three of four experts": legal["slice_counts"][[0, 1, 2]],
    }
    yield from rows_of_values(function, "slice_counts", wrong, *CLAUSE)
    wrong = {
        "tokens below 0": np.array([3, -1, 0]),
        "fewer than the choices are of": np.array([1, 0, 0]),
    }
    yield from rows_of_values(function, "slice_tokens", wrong, *CLAUSE)
    none = {"slice_tokens": np.zeros(3, np.int64), "slice_counts": np.zeros((E, K), np.int64)}
    yield Row(function, "no token", none, ("slice_tokens", "slice_counts"), CLAUSE)
    absent = {"slice_tokens": np.array([1, 0, 1])}
    yield Row(function, "an id that the text lacks", absent, ("token_counts",), CLAUSE)


def drops() -> Iterator[Row]:
    """Yield drops and gates that are none, and rules of capacity."""
    yield from rows_of_arrays("audit_drops.drop_counts", ("dropped",), CLAUSE)
    yield from rows_of_sizes("audit_drops.drop_counts", {"dropped": (0,), "keys": (0,)}, CLAUSE)
    function = "audit_drops.lost_gate_share"
    yield from rows_of_arrays(function, ("gate", "dropped"), CLAUSE)
    yield from rows_of_sizes(function, {"gate": (0, 1), "dropped": (0, 1)}, CLAUSE)
    wrong = {"a gate below 0": -GATES, "gates of nothing": np.zeros_like(GATES)}
    yield from rows_of_values(function, "gate", wrong, *CLAUSE)
    function = "audit_drops.replay"
    yield from rows_of_values(function, "capacity", NOT_COUNTS, *CLAUSE)
    words = {"experts": "experts", "capitals": "Choices"}
    yield from rows_of_values(function, "priority", NOT_WORDS | words, *CLAUSE)
    yield from rows_of_arrays(function, ("gate",), CLAUSE)
    yield from rows_of_sizes(function, {"gate": (0, 1, 2), "expert_index": (0, 1)}, CLAUSE)
    yield Row(function, "no gates to order by", {"gate": None}, ("gate",), CLAUSE)
    for priority in ("choices", "tokens"):
        what = f"gates that `{priority}` does not look at"
        yield Row(function, what, {"priority": priority}, ("gate",), CLAUSE)


def inference() -> Iterator[Row]:
    """Yield documents and intervals that are none."""
    for function in ("audit_inference.document_fold", "audit_inference.document_weights"):
        yield from rows_of_values(function, "document", NOT_NAMES, *CLAUSE)
    folds = NOT_COUNTS | {"one": 1}
    yield from rows_of_values("audit_inference.document_fold", "folds", folds, *CLAUSE)
    function = "audit_inference.document_weights"
    yield from rows_of_values(function, "replicates", NOT_COUNTS, *CLAUSE)
    yield from rows_of_values(function, "seed", OR_0, *CLAUSE)
    for function, argument in (
        ("audit_inference.bootstrap_interval", "replicates"),
        ("audit_inference.jackknife_interval", "left_out"),
    ):
        yield from rows_of_arrays(function, (argument,), CLAUSE)
        yield from rows_of_values(function, argument, {"one of them": VALUES[:1]}, *CLAUSE)
        yield from rows_of_values(function, "estimate", NOT_NUMBERS, *CLAUSE)
        yield from rows_of_values(function, "level", NOT_CHANCES, *CLAUSE)
    yield from rows_of_values("audit_inference.held_out_gain", "level", NOT_CHANCES, *CLAUSE)
    yield from rows_of_values("audit_inference.student_quantile", "degrees", NOT_COUNTS, *CLAUSE)
    for what, value in NOT_CHANCES.items():
        changes = {"chance": value}
        yield Row("audit_inference.student_quantile", what, changes, ("chance",), CLAUSE)


ROWS = [
    *choices(),
    *counts(),
    *sizes(),
    *side_by_side(),
    *first_choices(),
    *drops(),
    *inference(),
]
"""What the reference refuses: every public function, with the argument and the clause in the message."""
