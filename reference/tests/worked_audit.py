"""Worked examples of SPEC.md "Routing audits", answered by hand or by the naive form.

Where a fraction stands it was found with pencil and paper; the rest is answered by `naive_audit.py`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import naive_audit
import numpy as np
from numpy import ndarray
from worked_example import Example

BOUND = {"relative": 1e-9, "absolute": 1e-12}
NONE = math.nan

Cases = Mapping[str, tuple[str, dict[str, Any], Any]]
"""What an example is for, its arguments and its answer, by its name."""


def whole(numbers: Any) -> ndarray:
    """Return whole numbers as they are stored."""
    return np.array(numbers, np.int64)


def real(numbers: Any) -> ndarray:
    """Return real numbers as they are stored."""
    return np.array(numbers, np.float64)


def exact(function: str, clause: str, cases: Cases) -> Iterator[Example]:
    """Yield examples whose answers are equal or wrong."""
    for name, (what, arguments, answer) in cases.items():
        yield Example(name, clause, what, function, arguments, answer)


def bounded(function: str, clause: str, cases: Cases) -> Iterator[Example]:
    """Yield examples whose answers are real numbers."""
    for name, (what, arguments, answer) in cases.items():
        found = (
            {key: real(one) for key, one in answer.items()} if isinstance(answer, dict) else None
        )
        answered = real(answer) if found is None else found
        yield Example(name, clause, what, function, arguments, answered, BOUND)


FIXED = [[6, 0], [0, 6], [0, 0], [0, 0]]
EVEN = [[2, 1], [1, 2], [2, 1], [1, 2]]
MIXED = [[3, 1], [1, 2], [0, 1], [0, 0]]
NOTHING = [[0, 0]] * 4
"""Choices of two among four experts: fixed, even, uneven ones, none."""

# ---- counting ------------------------------------------------------------------------------------

CHOSEN = [[0, 1], [2, 0], [1, 2], [0, 2], [3, 0], [2, 0]]
TEXT = {"expert_index": np.array(CHOSEN, np.int32), "num_experts": 4}


def counting() -> Iterator[Example]:
    """Yield rows whose last tokens are padding, and texts that are counted whole and in parts."""
    ids = [[0, 5, 6, 0, 0], [0, 0, 0, 0, 0], [0, 7, 0, 8, 0], [9, 9, 9, 9, 9], [0, 0, 0, 0, 3]]
    counted = [[1, 1, 1, 0, 0], [0] * 5, [1, 1, 1, 1, 0], [1] * 5, [1] * 5]
    cases: dict[str, Any] = {
        "audit_counted": (
            "the start counts, padding behind does not, nor a row of padding",
            {"ids": np.array(ids, np.int32)},
            np.array(counted, bool),
        )
    }
    yield from exact("counted_tokens", "AUDIT-01", cases)
    by_id = [
        [[2, 1], [0, 1], [1, 1], [0, 0]],
        [[0, 0], [0, 0], [0, 0], [0, 0]],
        [[0, 2], [1, 0], [1, 1], [1, 0]],
    ]
    keys = np.array([0, 0, 2, 0, 2, 2], np.int32)
    cases = {
        "audit_counts": (
            "by rank, and a key without a token",
            TEXT | {"keys": keys, "num_keys": 3},
            whole(by_id),
        ),
        "audit_counts_of_one_choice": (
            "K = 1, an expert of more than a byte",
            {
                "keys": np.array([1, 1, 0], np.int32),
                "expert_index": np.array([[256], [256], [0]], np.int32),
                "num_keys": 2,
                "num_experts": 257,
            },
            whole([[[int(e == 0)] for e in range(257)], [[2 * (e == 256)] for e in range(257)]]),
        ),
    }
    yield from exact("count_choices", "AUDIT-02", cases)
    order = [4, 1, 5, 0, 3, 2]
    first = {"expert_index": TEXT["expert_index"][:2], "num_experts": 4, "num_keys": 3}
    rest = {"expert_index": TEXT["expert_index"][2:], "num_experts": 4, "num_keys": 3}
    in_first = naive_audit.count_choices([0, 0], CHOSEN[:2], num_keys=3, num_experts=4)
    cases = {
        "audit_counts_in_another_order": (
            "the same tokens in another order",
            {
                "keys": keys[order],
                "expert_index": TEXT["expert_index"][order],
                "num_keys": 3,
                "num_experts": 4,
            },
            whole(by_id),
        ),
        "audit_counts_of_a_part": (
            "two of the tokens",
            first | {"keys": keys[:2]},
            whole(in_first),
        ),
        "audit_counts_of_the_rest": (
            "the other four: what the two leave",
            rest | {"keys": keys[2:]},
            whole(by_id) - whole(in_first),
        ),
    }
    yield from exact("count_choices", "AUDIT-21", cases)


# ---- shares and spreads --------------------------------------------------------------------------


def shares() -> Iterator[Example]:
    """Yield shares, and spreads between none and the largest."""
    table = {"counts": whole([FIXED, EVEN, MIXED, NOTHING])}
    wanted = [[1 / 2, 1 / 2, 0, 0], [1 / 4] * 4, [1 / 2, 3 / 8, 1 / 8, 0], [NONE] * 4]
    cases: dict[str, Any] = {
        "audit_shares": ("over all ranks; none without a token", table, wanted),
    }
    yield from bounded("choice_shares", "AUDIT-03", cases)
    # MIXED: deviations 2/8, 1/8, -1/8, -2/8 of which the mean square is 10/256.
    cases = {
        "audit_spread": (
            "the largest, none, and one between",
            table,
            [1 / 4, 0, math.sqrt(10) / 16, NONE],
        ),
        "audit_spread_of_one_choice": (
            "K = 1, all tokens to one of two experts",
            {"counts": whole([[[3], [0]]])},
            [1 / 2],
        ),
    }
    yield from bounded("share_spread", "AUDIT-04", cases)

    def of(tokens: int, *, fixed: bool) -> list[list[int]]:
        half = tokens // 2
        return [[tokens], [0]] if fixed else [[half], [tokens - half]]

    around = {"counts": whole([of(128, fixed=True), of(129, fixed=True), of(130, fixed=False)])}
    few = {"counts": whole([of(128, fixed=True), of(3, fixed=True)])}
    cases = {
        "audit_mean_spread": ("128 tokens are too few, 129 are not", around, 1 / 4),
        "audit_mean_spread_of_all": ("each key once", around | {"least": 0}, 1 / 3),
        "audit_mean_spread_of_none": ("no key has enough", few, NONE),
    }
    yield from bounded("mean_spread", "AUDIT-05", cases)


def corrected() -> Iterator[Example]:
    """Yield floors, and spreads without what chance adds."""
    tokens = {"tokens": whole([1, 5, 128, 100_000])}
    even = {"k": 2, "num_experts": 32}
    text = [1 / 2, 1 / 4, 1 / 4, 0]
    # p = 1, 1/2, 1/2, 0: the sum of p (1 - p) is 1/2.
    cases: dict[str, Any] = {
        "audit_floor": (
            "2 of 32 experts, all alike",
            tokens | even,
            [math.sqrt(2 / 32 * 30 / 32 / n / 4) for n in (1, 5, 128, 100_000)],
        ),
        "audit_floor_of_a_text": (
            "drawn by the shares of the whole text",
            tokens | {"k": 2, "num_experts": 4, "shares": real(text)},
            [math.sqrt(1 / 2 / (4 * n * 4)) for n in (1, 5, 128, 100_000)],
        ),
        "audit_floor_of_all_experts": (
            "K = E: nothing is left to chance",
            {"tokens": whole([3]), "k": 4, "num_experts": 4},
            [0],
        ),
    }
    yield from bounded("spread_floor", "AUDIT-06", cases)
    single = [[1, 0], [0, 1], [0, 0], [0, 0]]
    table = {"counts": whole([FIXED, EVEN, MIXED, single, NOTHING])}
    # MIXED: p = 1, 3/4, 1/4, 0 and n = 4: 10/256 - (3/8)/(4 x 3 x 4) = 1/32. FIXED: p (1 - p) is 0.
    around_even = [1 / 4, 0, math.sqrt(1 / 32), NONE, NONE]
    # Around 1/2, 1/4, 1/4, 0: FIXED is off by 0, 1/4, -1/4, 0; MIXED by 0, 1/8, -1/8, 0, which is no
    # more than chance; EVEN by 1/4, 0, 0, 1/4: 1/32 - 1/(4 x 5 x 4).
    around_text = [math.sqrt(1 / 32), math.sqrt(1 / 32 - 1 / 80), 0, NONE, NONE]
    cases = {
        "audit_debiased": ("around 1/E; cut at 0; none below two tokens", table, around_even),
        "audit_debiased_around_a_text": (
            "around the shares of the whole text",
            table | {"shares": real(text)},
            around_text,
        ),
    }
    yield from bounded("debiased_spread", "AUDIT-07", cases)
    cases = {
        "audit_specialisation": (
            "a fixed set of experts is 1",
            table,
            [4 * one for one in around_even],
        ),
        "audit_specialisation_around_a_text": (
            "the same part of the largest spread",
            table | {"shares": real(text)},
            [4 * one for one in around_text],
        ),
    }
    yield from bounded("specialisation", "AUDIT-07", cases)


# ---- tokens and experts --------------------------------------------------------------------------

# tokens   40          10          9           20          5           0
OF_IDS = [[20, 20], [8, 2], [9, 0], [16, 4], [0, 5], [0, 0]]
"""Choices of two experts by id, K = 1."""


def of_tokens() -> Iterator[Example]:
    """Yield the ids of each expert by three rankings, and how special its vocabulary is."""
    table = {"counts": whole([[[one], [other]] for one, other in OF_IDS])}
    # Of 84 tokens 53 choose the first: its lifts are (c + 10 x 53/84)/(n + 10)/(53/84).
    thirds = {"counts": whole([[[n], [2 * n]] for n in range(1, 7)])}
    ranked = {
        "count": [[0, 3, 2, 1, -1, -1], [0, 4, 3, 1, -1, -1]],
        "precision": [[1, 3, 0, -1, -1, -1], [0, 1, 3, -1, -1, -1]],
        "lift": [[2, 3, 1, 0, -1, -1], [4, 0, 1, 3, -1, -1]],
    }
    what = {
        "count": "frequent ids lead, whatever they choose",
        "precision": "the part of an id's tokens; ids of 10 or more, equals by id",
        "lift": "the part over the load, few tokens drawn towards 1",
    }
    cases: dict[str, Any] = {
        f"audit_top_by_{by}": (what[by], table | {"by": by, "number": 6}, whole(answer))
        for by, answer in ranked.items()
    }
    cases["audit_top_of_equals"] = (
        "ids that choose as the whole text does have one lift",
        thirds | {"by": "lift", "number": 6},
        whole([[*range(6)]] * 2),
    )
    cases["audit_top_two"] = (
        "the first two of two choices, an id that never chose the third expert",
        {"counts": whole([MIXED, FIXED, EVEN]), "by": "count", "number": 2},
        whole([[1, 0], [1, 0], [2, 0], [2, -1]]),
    )
    yield from exact("top_tokens", "AUDIT-08", cases)
    # K = 2, ids of 4, 4, 3 and 5 tokens. They prefer 0 (4 of 4), 1 (3 of 4, as 2), 0 (2 of 3, as all), 2.
    several = [
        [[3, 1], [1, 1], [0, 2]],
        [[1, 1], [2, 1], [1, 2]],
        [[1, 1], [1, 1], [1, 1]],
        [[2, 1], [1, 2], [2, 2]],
    ]
    keys = {"counts": whole(several)}
    yield from bounded(
        "vocabulary_specialisation",
        "AUDIT-11",
        {
            "audit_vocabulary": ("each key once", keys, [5 / 6, 3 / 4, 4 / 5]),
            "audit_vocabulary_weighted": (
                "each key weighs its tokens",
                keys | {"weighted": True},
                [6 / 7, 3 / 4, 4 / 5],
            ),
            "audit_vocabulary_of_many": (
                "keys of 3 tokens or more, the lower of equals",
                {"counts": whole([[[2], [2]], [[0], [3]], [[1], [1]]]), "least": 3},
                [1 / 2, 1],
            ),
        },
    )


def examples() -> list[Example]:
    """Return the examples of this module."""
    return [
        example for chapter in (counting, shares, corrected, of_tokens) for example in chapter()
    ]
