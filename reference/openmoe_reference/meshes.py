"""SPEC.md "Meshes": a mesh on which nothing runs side by side, so that it can be read.

Each share of rows, experts, heads, hidden widths and ids is computed by itself, one after another, in
`mesh_layers.py` and `mesh_models.py`. Here is what a mesh is and what its shares tell one another.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_reference import grouping, losses, routing
from openmoe_reference.arguments import check_integer
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Decision

Tensors = Mapping[str, ndarray]


@dataclass(frozen=True)
class Mesh:
    """Devices along the three axes. Errors: RejectedError MESH-06 on what is no number of devices."""

    data: int = 1
    expert: int = 1
    model: int = 1

    def __post_init__(self) -> None:
        """Refuse axes that are no whole numbers of at least 1. Spec: MESH-06."""
        for name, size in vars(self).items():
            check_integer(f"mesh.{name}", size, "MESH-06", least=1)

    @property
    def rows(self) -> int:
        """Return how many shares rows and groups have, those of one data coordinate side by side."""
        return self.data * self.expert


def check_parts(**sizes: tuple[int, int]) -> None:
    """Refuse, by its name, a size that has not so many equal parts. Spec: MESH-06."""
    for name, (size, parts) in sizes.items():
        if size % parts:
            fits = math.gcd(size, parts)
            raise RejectedError(
                name, "MESH-06", f"{size} have no {parts} equal parts; {fits} parts would do"
            )


# ---- what shares tell one another ----------------------------------------------------------


def add(parts: Sequence[Any]) -> Any:
    """Return the sum of what the shares have, arrays or mappings of such. Spec: MESH-02, MESH-03."""
    if isinstance(parts[0], Mapping):
        return {name: add([one[name] for one in parts]) for name in parts[0]}
    return sum(parts[1:], start=parts[0])


def exchange(pieces: Sequence[ndarray], *, split: int, concat: int) -> list[ndarray]:
    """Return what each share is sent: the pieces of all, cut along one axis, joined along another.

    Spec: MESH-02.
    """
    cut = [np.split(one, len(pieces), axis=split) for one in pieces]
    return [np.concatenate([one[j] for one in cut], axis=concat) for j in range(len(pieces))]


def part_of_hidden(kernels: Tensors, number: int, parts: int) -> dict[str, ndarray]:
    """Return one of the parts of F of a feed-forward's kernels: of wi_0 its part of BOTH halves.

    Spec: MESH-02.
    """

    def part(value: ndarray, axis: int) -> ndarray:
        return np.split(value, parts, axis=axis)[number]

    halves = np.split(kernels["wi_0"], 2, axis=-1)
    return {
        "wi_0": np.concatenate([part(half, -1) for half in halves], axis=-1),
        "wi_1": part(kernels["wi_1"], -1),
        "wo": part(kernels["wo"], -2),
    }


_FIELDS = ("expert_index", "gate", "position", "kept")


def parts_of(decision: Decision, parts: int) -> list[Decision]:
    """Return the record of each share of the groups."""
    cut = zip(*(np.split(getattr(decision, name), parts) for name in _FIELDS), strict=True)
    return [
        Decision(index, gate, position, kept, decision.capacity)
        for index, gate, position, kept in cut
    ]


def joined(decisions: Sequence[Decision]) -> Decision:
    """Return the record of all groups."""
    fields = (np.concatenate([getattr(one, name) for one in decisions]) for name in _FIELDS)
    index, gate, position, kept = fields
    return Decision(index, gate, position, kept, decisions[0].capacity)


@dataclass(frozen=True)
class Routed:
    """The groups of one share and what its router made of them; no share sees another's tokens."""

    inputs: ndarray
    mask: ndarray | None
    logits: ndarray
    probabilities: ndarray
    decision: Decision


def tally(share: Routed) -> dict[str, Any]:
    """Return what one share counts, and the means of its groups. Spec: MESH-02."""
    groups, tokens, experts = share.logits.shape
    index, kept = share.decision.expert_index, share.decision.kept
    return {
        "shares": 1,
        "balance": losses.balance_loss(share.probabilities, index, padding_mask=share.mask),
        "z": losses.router_z_loss(share.logits, padding_mask=share.mask),
        "tokens": groups * tokens if share.mask is None else int(share.mask.sum()),
        "somewhere": int(kept.any(axis=-1).sum()),
        "kept": int(kept.sum()),
        "gates": share.decision.gate[kept].sum(),
        "slots": groups * experts * share.decision.capacity,
    }


def metrics(shares: Sequence[Routed]) -> dict[str, np.floating]:
    """Return the five scalars of all groups: counts are added up before they are divided.

    Spec: MESH-02, LOSS-01..LOSS-10.
    """
    all_, real = add([tally(share) for share in shares]), shares[0].logits.dtype.type
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "auxiliary_loss": all_["balance"] / real(all_["shares"]),  # shares have equally many
            "router_z_loss": all_["z"] / real(all_["shares"]),
            "fraction_tokens_left_behind": 1 - real(all_["somewhere"]) / real(all_["tokens"]),
            "router_confidence": all_["gates"] / real(all_["kept"]),
            "expert_usage": real(all_["kept"]) / real(all_["slots"]),
        }


@dataclass(frozen=True)
class Collectives:
    """The functions that make a whole of shares; a planted bug exchanges one."""

    groups: Callable[..., tuple[tuple[int, int], int]] = grouping.groups_by_experts
    decide: Callable[..., Decision] = routing.decide
    part_of_hidden: Callable[..., dict[str, ndarray]] = part_of_hidden
    add: Callable[[Sequence[Any]], Any] = add
    exchange: Callable[..., list[ndarray]] = exchange
    metrics: Callable[[Sequence[Routed]], dict[str, np.floating]] = metrics
    add_gradients: Callable[[Sequence[Any]], Any] = add


COLLECTIVES = Collectives()
"""What makes the numbers of one device."""
