"""Worked examples of groups and routing, answered by the naive form."""

from __future__ import annotations

import naive
import numpy as np
from numpy import ndarray
from worked_example import SOFTMAX_BOUND, Example, grid

from openmoe_spec.records import Decision


def uneven(seed: int, groups: int, tokens: int, experts: int) -> ndarray:
    """Return float32 probabilities of logits in whole numbers, so with many exact ties."""
    logits = np.random.default_rng(seed).integers(-2, 3, (groups, tokens, experts))
    return naive.softmax(logits.astype(np.float64)).astype(np.float32)


FIELDS = ("expert_index", "gate", "position", "kept")


def record(decision: Decision, fields: tuple[str, ...] = FIELDS) -> dict[str, ndarray]:
    """Return a decision's arrays by name."""
    return {name: getattr(decision, name) for name in fields}


def shown(decision: Decision, clause: str) -> dict[str, ndarray]:
    """Return the fields that a clause speaks of: another clause's bug is not its failure."""
    chosen = clause in ("ROUTE-04", "ROUTE-05", "ROUTE-06", "ROUTE-13", "ROUTE-18")
    return record(decision, ("expert_index",) if chosen else FIELDS)


# ---- groups ----------------------------------------------------------------------------------


def groups() -> list[Example]:
    """Return batches cut into groups, and sizes that must be rejected."""
    rows = np.arange(1, 31, dtype=np.float32).reshape(3, 5, 2)
    flat = np.arange(1, 49, dtype=np.float32).reshape(4, 6, 2)
    found = []
    for name, clause, inputs, multiple, size, what in (
        ("padded_columns", "GROUP-03", rows, 8, 8, "a column of zeros stands behind each row"),
        ("padded_rows", "GROUP-03", rows.swapaxes(0, 1), 12, 8, "rows of zeros stand at the end"),
        ("runs", "GROUP-05", flat, 1, 8, "groups cross the ends of rows"),
    ):
        batch, length, _ = inputs.shape
        padded = naive.padded_shape(batch, length, multiple=multiple)
        wanted = naive.to_groups(inputs, padded=padded, num_groups=padded[0] * padded[1] // size)
        arguments = {"inputs": inputs, "group_size": size, "multiple": multiple}
        found.append(Example(name, clause, what, "group_tokens", arguments, wanted))
    sizes = {"max_group_size": 16, "num_experts": 4}
    capacity = {"tokens_per_group": 64, "num_experts": 4}
    return [
        *found,
        Example(
            "no_multiple",
            "GROUP-09",
            "63 tokens for 4 experts",
            "num_groups",
            {"num_tokens": 63, **sizes},
        ),
        Example(
            "no_factor",
            "GROUP-09",
            "capacity factor 0",
            "expert_capacity",
            {"capacity_factor": 0.0, **capacity},
        ),
        Example(
            "no_divisor",
            "GROUP-09",
            "groups of 5 from 48 tokens",
            "group_tokens",
            {"inputs": flat, "group_size": 5},
        ),
    ]


# ---- routing ---------------------------------------------------------------------------------


def decisions() -> list[Example]:
    """Return decisions from float32 probabilities."""
    saturated = np.array([[[110, 0, 1, -1, 2], [0, 2, 300, 1, 0], [-300, 0, -200, 2, -250]]])
    tied, spread = uneven(1, 2, 6, 4), naive.softmax(grid(2, 1, 6, 8) * 4).astype(np.float32)
    last_bit = np.full((1, 2, 4), 0.25, np.float32)
    last_bit[0, :, 3] = np.nextafter(np.float32(0.25), np.float32(1))
    mask = np.array([[1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 1, 1]], bool)
    found = []
    for name, clause, what, function, options in (
        ("ties", "ROUTE-04", "equal probabilities: the lower index", "decide", {"k": 2, "c": 4}),
        ("three_choices", "ROUTE-06", "best first", "decide", {"k": 3, "c": 2, "p": spread}),
        ("one_bit", "ROUTE-04", "one last bit decides", "decide", {"k": 1, "c": 2, "p": last_bit}),
        (
            *("underflow", "ROUTE-05", "probabilities that underflow tie", "decide"),
            {"k": 2, "c": 4, "p": naive.softmax(saturated).astype(np.float32)},
        ),
        (
            "choice_major",
            "ROUTE-07",
            "room for all: the order of queues",
            "decide",
            {"k": 2, "c": 12},
        ),
        ("running_count", "ROUTE-08", "one slot an expert", "decide", {"k": 2, "c": 1}),
        (
            *("masked_priority", "ROUTE-15", "padding queues last", "decide_scatter"),
            {"k": 2, "c": 2, "padding_mask": mask, "batch_prioritized": True},
        ),
    ):
        probabilities = options.pop("p", tied)
        arguments = {"k": options.pop("k"), "capacity": options.pop("c"), **options}
        decision = getattr(naive, function)(probabilities, **arguments)
        arguments["probabilities"] = probabilities
        found.append(Example(name, clause, what, function, arguments, shown(decision, clause)))
    return found


def routes() -> list[Example]:
    """Return decisions and probabilities from hidden states whose logits are exact."""
    rows, kernel = grid(3, 1, 6, 4), grid(4, 4, 8)
    padded = rows.copy()
    padded[0, (1, 4)] = 0
    nearly = np.zeros((1, 4, 4), np.float32)
    nearly[0, 1], nearly[0, 2, 0], nearly[0, 3, 0] = (0.5, -0.5, 0, 0), 2.0**-60, -0.0
    twice = np.concatenate([rows, rows])
    found = []
    for name, clause, what, inputs, ignore in (
        ("padding_rows", "ROUTE-11", "zero rows take slots of experts 0 and 1", padded, False),
        ("sum_of_zero", "ROUTE-13", "a row that sums to 0 is real, -0.0 is not", nearly, True),
        ("two_groups", "ROUTE-17", "equal groups have equal records", twice, False),
    ):
        logits = naive.router_logits(inputs, kernel)
        mask = naive.padding_mask(inputs) if ignore else None
        probabilities = naive.softmax(logits).astype(np.float32)
        decision = naive.decide(probabilities, k=2, capacity=2, padding_mask=mask)
        arguments = {"inputs": inputs, "kernel": kernel, "k": 2, "capacity": 2}
        if ignore:
            arguments["ignore_padding"] = True
        answer = shown(decision, clause)
        found.append(Example(name, clause, what, "route", arguments, answer, SOFTMAX_BOUND))
    noise = 1 + grid(5, 1, 6, 4) / 4
    for name, clause, more in (
        ("logits", "ROUTE-02", {}),
        ("jitter", "ROUTE-16", {"noise": noise}),
    ):
        wanted = naive.softmax(naive.router_logits(rows, kernel, **more))
        arguments = {"inputs": rows, "kernel": kernel, **more}
        found.append(
            Example(
                name, clause, "softmax of x W", "probabilities", arguments, wanted, SOFTMAX_BOUND
            )
        )
    return found + [_rung(exponent) for exponent in (4, 12, 20)] + [_rung(None)]


def _rung(exponent: int | None) -> Example:
    """Return 8 tokens whose second choice hangs on a margin of 2^-exponent (None: on a tie)."""
    rows, kernel = np.full((1, 8, 8), -2, np.float32), np.eye(8, dtype=np.float32)
    wanted = np.zeros((1, 8, 2), np.int32)
    for t in range(8):
        first, winner, loser = t, (t + 3) % 8, (t + 5) % 8
        rows[0, t, first], rows[0, t, winner], rows[0, t, loser] = 2, 1, 1
        if exponent is None:
            winner, loser = min(winner, loser), max(winner, loser)
        else:
            rows[0, t, loser] = 1 - 2.0**-exponent
        wanted[0, t] = first, winner
    decision = naive.decide(
        naive.softmax(rows.astype(np.float64)).astype(np.float32), k=2, capacity=8
    )
    assert (decision.expert_index == wanted).all()
    what = "an exact tie" if exponent is None else f"a margin of 2^-{exponent} in logits"
    arguments = {"inputs": rows, "kernel": kernel, "k": 2, "capacity": 8}
    name = "ladder_tie" if exponent is None else f"ladder_{exponent:02d}"
    answer = shown(decision, "ROUTE-18")
    return Example(name, "ROUTE-18", what, "route", arguments, answer, SOFTMAX_BOUND)


def rejected_routes() -> list[Example]:
    """Return arguments of the router that must be rejected."""
    good = {"probabilities": np.full((1, 3, 4), 0.25, np.float32), "k": 2, "capacity": 2}
    unknown = good["probabilities"].copy()
    unknown[0, 1, 2] = np.nan
    wide = {"probabilities": good["probabilities"].astype(np.float64)}
    infinite = np.full((1, 3, 4), np.inf, np.float32)
    return [
        Example("more_choices", "ROUTE-20", "K = 5 of 4 experts", "decide", {**good, "k": 5}),
        Example("no_capacity", "ROUTE-20", "capacity 0", "decide", {**good, "capacity": 0}),
        Example("fraction", "ROUTE-20", "capacity 1.5", "decide", {**good, "capacity": 1.5}),
        Example(
            "unknown", "ROUTE-20", "not a number", "decide", {**good, "probabilities": unknown}
        ),
        Example("wide", "ROUTE-20", "float64 probabilities", "decide", {**good, **wide}),
        Example(
            *("infinite", "ROUTE-20", "infinite inputs", "probabilities"),
            {"inputs": infinite, "kernel": np.ones((4, 2), np.float32)},
        ),
        Example(
            *("full", "ROUTE-25", "4 slots for 3 tokens", "experts_choose"),
            {"probabilities": good["probabilities"], "capacity": 4},
        ),
    ]


def examples() -> list[Example]:
    """Return the examples of groups and routing, in the order of SPEC.md."""
    return [*groups(), *decisions(), *routes(), *rejected_routes()]
