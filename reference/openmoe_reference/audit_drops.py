"""SPEC.md "Routing audits": which choices found no slot, by key, and under other capacity rules."""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Int64, Integer
from numpy import ndarray

from openmoe_reference.arguments import check_array, check_choice, check_integer, check_within
from openmoe_reference.routing import decide_positions
from openmoe_spec.errors import RejectedError

PRIORITIES = ("choices", "tokens", "gates")
"""Whose turn is first: all first choices; all choices of a token; the first choices of the best gates."""


def drop_counts(
    dropped: Bool[ndarray, "N K"], keys: Integer[ndarray, " N"], *, num_keys: int
) -> Int64[ndarray, "keys 5"]:
    """Return tokens by key, and those whose first, second, any, and every choice found no slot.

    keys  in 0 .. num_keys - 1, or -1 for a token that is not counted
    With K = 1 no second choice is dropped. Errors: RejectedError AUDIT-27.
    Spec: AUDIT-16. Source: the paper, figure 12, whose ratio is none of these by its words.
    """
    num_keys = check_integer("num_keys", num_keys, "AUDIT-27", least=1)
    sizes: dict[str, int] = {}
    check_array("dropped", dropped, "N K", sizes, "AUDIT-27", kind="b")
    check_array("keys", keys, "N", sizes, "AUDIT-27", kind="i")
    check_within("keys", keys, "AUDIT-27", -1, num_keys - 1)
    none = np.zeros(len(dropped), bool)
    columns = (
        ~none,
        dropped[:, 0],
        dropped[:, 1] if sizes["K"] > 1 else none,
        dropped.any(axis=1),
        dropped.all(axis=1),
    )
    found = np.zeros((num_keys, len(columns)), np.int64)
    for number, column in enumerate(columns):
        np.add.at(found[:, number], keys[column & (keys >= 0)], 1)
    return found


def lost_gate_share(gate: Float[ndarray, "N K"], dropped: Bool[ndarray, "N K"]) -> float:
    """Return the part of all gates that the dropped choices had.

    Errors: RejectedError AUDIT-27, also where gates add up to nothing.
    Spec: AUDIT-17. Source: this specification.
    """
    sizes: dict[str, int] = {}
    check_array("gate", gate, "N K", sizes, "AUDIT-27")
    check_array("dropped", dropped, "N K", sizes, "AUDIT-27", kind="b")
    exact = gate.astype(np.float64)
    if (exact < 0).any() or not exact.sum():
        raise RejectedError("gate", "AUDIT-27", "must be probabilities, of which one is above 0")
    return float(exact[dropped].sum() / exact.sum())


def replay(
    expert_index: Integer[ndarray, "G T K"],
    *,
    num_experts: int,
    capacity: int,
    priority: str,
    gate: Float[ndarray, "G T K"] | None = None,
) -> Bool[ndarray, "G T K"]:
    """Return which recorded choices would find no slot in groups of T tokens under a capacity rule.

    expert_index  -1 for a token that takes no slot
    priority      `choices`: all first choices stand before all second ones, as in training; `tokens`: all
                  choices of a token stand before the next token's; `gates`: as `choices`, tokens with a
                  larger first gate first
    gate          of the choices; `gates` needs it
    Deeper layers would have seen other inputs: a replay does not know that.
    Errors: RejectedError AUDIT-27. Spec: AUDIT-18, AUDIT-20. Source: ROUTE-07, ROUTE-14.
    """
    num_experts = check_integer("num_experts", num_experts, "AUDIT-27", least=1)
    capacity = check_integer("capacity", capacity, "AUDIT-27", least=1)
    check_choice("priority", priority, PRIORITIES, "AUDIT-27")
    sizes: dict[str, int] = {}
    check_array("expert_index", expert_index, "G T K", sizes, "AUDIT-27", kind="i")
    check_within("expert_index", expert_index, "AUDIT-27", -1, num_experts - 1)
    ordered = np.sort(expert_index, axis=-1)
    if ((ordered[..., 1:] == ordered[..., :-1]) & (ordered[..., 1:] >= 0)).any():
        raise RejectedError("expert_index", "AUDIT-27", "names an expert twice for one token")
    if (priority == "gates") != (gate is not None):
        raise RejectedError("gate", "AUDIT-27", "is for priority `gates`, and needed there")
    if priority == "tokens":
        # Each choice as a token of its own: [G, T, K] -> [G, T * K, 1].
        queue = expert_index.reshape(sizes["G"], -1, 1)
        none = np.zeros(queue.shape, np.float32)
        position = decide_positions(queue, none, num_experts, False).reshape(expert_index.shape)
    else:
        queue = np.zeros(expert_index.shape, np.float32)
        if gate is not None:
            # Places among the values that occur: whatever the gates' dtype, no two become equal.
            first = check_array("gate", gate, "G T K", sizes, "AUDIT-27")[..., 0]
            queue[..., 0] = np.unique(first, return_inverse=True)[1].reshape(first.shape)
        position = decide_positions(expert_index, queue, num_experts, priority == "gates")
    return position >= capacity
