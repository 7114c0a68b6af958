"""Capacity rules that drops are counted under, and those that recorded choices are replayed under.

Spec: AUDIT-18, AUDIT-19, GROUP-01..GROUP-08, DIAL-02.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from openmoe_reference import grouping
from openmoe_spec.config import Configuration
from openmoe_tools.audit.counting.layout import WhatIf

TRAINING, PORT = "t5x", "torch_port"
FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
PRIORITIES = ("choices", "tokens", "gates")


@dataclass(frozen=True)
class Rule:
    """How a call's tokens are grouped, and the slots that an expert has in each group.

    padded  rows and columns of a call with the layer's own padding
    """

    name: str
    padded: tuple[int, int]
    groups: int
    capacity: int
    formula: str

    @property
    def group_size(self) -> int:
        """Tokens in a group, T."""
        return self.padded[0] * self.padded[1] // self.groups

    def manifest(self) -> dict[str, Any]:
        """Return the rule in numbers."""
        return {
            "name": self.name,
            "groups": self.groups,
            "group_size": self.group_size,
            "capacity": self.capacity,
            "formula": self.formula,
        }


def rules(
    model: Configuration, rows: int, length: int, *, factor: float, replicas: int = 1
) -> tuple[Rule, Rule]:
    """Return the rule of the training code, which the pass is run with, and that of the published port.

    Errors: RejectedError GROUP-09 where no groups fit.
    """
    sizes = {"max_group_size": model.max_group_size, "num_experts": model.num_experts}
    return (
        _rule(
            TRAINING,
            grouping.groups_by_experts(rows, length, num_expert_replicas=replicas, **sizes),
            grouping.expert_capacity,
            model=model,
            factor=factor,
            formula="max(round(factor T / E), least)",
        ),
        _rule(
            PORT,
            grouping.one_group(rows, length, num_expert_replicas=replicas, **sizes),
            grouping.even_capacity,
            model=model,
            factor=factor,
            formula="K factor T / E, rounded down to a whole number and up to an even one, at least least",
        ),
    )


def _rule(
    name: str,
    grouped: tuple[tuple[int, int], int],
    capacity: Callable[..., int],
    *,
    model: Configuration,
    factor: float,
    formula: str,
) -> Rule:
    padded, groups = grouped
    slots = capacity(
        padded[0] * padded[1] // groups,
        num_experts=model.num_experts,
        capacity_factor=factor,
        min_expert_capacity=model.min_expert_capacity,
        k=model.num_selected_experts,
    )
    return Rule(name, padded, groups, slots, formula)


def what_ifs(model: Configuration, rows: int, length: int, training: Rule) -> tuple[WhatIf, ...]:
    """Return the rules of a replay: priorities, group sizes and factors; capacities by the training code.

    Groups are the pass's own size, a row, and a whole call, where they cut a call's tokens evenly.
    """
    tokens = rows * length
    sizes = sorted({one for one in (training.group_size, length, tokens) if tokens % one == 0})
    return tuple(
        WhatIf(
            priority,
            size,
            factor,
            grouping.expert_capacity(
                size,
                num_experts=model.num_experts,
                capacity_factor=factor,
                min_expert_capacity=model.min_expert_capacity,
            ),
        )
        for priority in PRIORITIES
        for size in sizes
        for factor in FACTORS
    )
