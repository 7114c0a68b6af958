"""Mutants of SPEC.md "Groups and capacity"."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter


@mutant("GROUP-01")
class NoReplicasBelowOne(ReferenceAdapter):
    """R is not raised to 1 on few devices."""

    def num_expert_replicas(self, device_count: int, **options: int) -> int:
        return device_count // (options["num_expert_partitions"] * options["num_model_partitions"])


@mutant("GROUP-01")
class PadsWhatFits(ReferenceAdapter):
    """A whole multiple is padded by one more multiple."""

    def padded_shape(self, batch: int, length: int, *, multiple: int) -> tuple[int, int]:
        if batch * length % multiple == 0:
            return batch, length + multiple
        return super().padded_shape(batch, length, multiple=multiple)


@mutant("GROUP-02")
class PaddingTiesToRows(ReferenceAdapter):
    """Where rows and columns cost the same, rows are added."""

    def padded_shape(self, batch: int, length: int, *, multiple: int) -> tuple[int, int]:
        columns, rows = super().padded_shape(length, batch, multiple=multiple)
        return rows, columns


@mutant("GROUP-02")
class AlwaysPadsColumns(ReferenceAdapter):
    """Rows are never added, though they would cost fewer tokens."""

    def padded_shape(self, batch: int, length: int, *, multiple: int) -> tuple[int, int]:
        while batch * length % multiple:
            length += 1
        return batch, length


@mutant("GROUP-03")
class PadsInFront(ReferenceAdapter):
    """Zeros are put before the tokens."""

    def group_tokens(self, inputs: ndarray, *, group_size: int, multiple: int = 1) -> ndarray:
        flipped = inputs[::-1, ::-1]
        groups = super().group_tokens(flipped, group_size=group_size, multiple=multiple)
        return groups[::-1, ::-1]


@mutant("GROUP-03")
class PadsAfterFlattening(ReferenceAdapter):
    """All padding stands at the end of the flat batch, none between rows."""

    def group_tokens(self, inputs: ndarray, *, group_size: int, multiple: int = 1) -> ndarray:
        padded = self.padded_shape(inputs.shape[0], inputs.shape[1], multiple=multiple)
        flat = inputs.reshape(-1, inputs.shape[-1])
        extra = padded[0] * padded[1] - len(flat)
        return np.pad(flat, ((0, extra), (0, 0))).reshape(-1, group_size, inputs.shape[-1])


@mutant("GROUP-05")
class GroupsAcrossRows(ReferenceAdapter):
    """Tokens are flattened column by column."""

    def group_tokens(self, inputs: ndarray, *, group_size: int, multiple: int = 1) -> ndarray:
        groups = super().group_tokens(inputs, group_size=group_size, multiple=multiple)
        padded = self.padded_shape(inputs.shape[0], inputs.shape[1], multiple=multiple)
        rows = groups.reshape(*padded, -1).swapaxes(0, 1)
        return np.ascontiguousarray(rows).reshape(groups.shape)


@mutant("GROUP-04")
class GroupsAreRoundedUp(ReferenceAdapter):
    """The division by the largest group size is rounded up."""

    def num_groups(self, num_tokens: int, **options: int) -> int:
        super().num_groups(num_tokens, **options)
        multiple = options["num_experts"] * options.get("num_expert_replicas", 1)
        groups = max(-(-num_tokens // options["max_group_size"]), multiple)
        while num_tokens % groups or groups % multiple:
            groups += 1
        return groups


@mutant("GROUP-04")
class GroupsIgnoreExperts(ReferenceAdapter):
    """The number of groups need not be a multiple of E x R."""

    def num_groups(self, num_tokens: int, **options: int) -> int:
        super().num_groups(num_tokens, **options)
        groups = max(num_tokens // options["max_group_size"], 1)
        while num_tokens % groups:
            groups += 1
        return groups


@mutant("GROUP-04")
class GroupsIgnoreReplicas(ReferenceAdapter):
    """R does not enter the number of groups."""

    def num_groups(self, num_tokens: int, **options: int) -> int:
        return super().num_groups(num_tokens, **{**options, "num_expert_replicas": 1})


class _Capacity(ReferenceAdapter):
    """A capacity whose rounding is another."""

    def expert_capacity(self, tokens_per_group: int, **options: Any) -> int:
        super().expert_capacity(tokens_per_group, **options)
        raw = options["capacity_factor"] * tokens_per_group / options["num_experts"]
        return max(self.rounded(raw), options.get("min_expert_capacity", 4))

    def rounded(self, raw: float) -> int:
        return round(raw)


@mutant("GROUP-06")
class CapacityIsFloored(_Capacity):
    """The capacity is rounded down."""

    def rounded(self, raw: float) -> int:
        return math.floor(raw)


@mutant("GROUP-06")
class CapacityIsCeiled(_Capacity):
    """The capacity is rounded up."""

    def rounded(self, raw: float) -> int:
        return math.ceil(raw)


@mutant("GROUP-06")
class CapacityHalvesGoUp(_Capacity):
    """Halves are rounded up: 4.5 -> 5."""

    def rounded(self, raw: float) -> int:
        return math.floor(raw + 0.5)


@mutant("GROUP-06")
class CapacityIsMadeEven(_Capacity):
    """An odd capacity is raised by one, as the published port does."""

    def rounded(self, raw: float) -> int:
        return round(raw) + round(raw) % 2


@mutant("GROUP-06")
class CapacityHasNoMinimum(ReferenceAdapter):
    """The smallest capacity is 1."""

    def expert_capacity(self, tokens_per_group: int, **options: Any) -> int:
        return super().expert_capacity(tokens_per_group, **options | {"min_expert_capacity": 1})


@mutant("GROUP-07")
class CapacityCountsK(ReferenceAdapter):
    """The layer multiplies its capacity by K."""

    def layer_capacity(self, tokens_per_group: int, *, k: int, **options: Any) -> int:
        return k * super().layer_capacity(tokens_per_group, k=k, **options)


@mutant("GROUP-08")
class AlwaysEvaluates(ReferenceAdapter):
    """The evaluation factor is used in training too."""

    def capacity_factor(self, *, training: bool, train: float, evaluate: float) -> float:
        return super().capacity_factor(training=False, train=train, evaluate=evaluate)


@mutant("GROUP-09")
class RegroupsSilently(ReferenceAdapter):
    """A group size that does not divide is made smaller until it does."""

    def group_tokens(self, inputs: ndarray, *, group_size: int, multiple: int = 1) -> ndarray:
        padded = self.padded_shape(inputs.shape[0], inputs.shape[1], multiple=multiple)
        group_size = max(group_size, 1)
        while padded[0] * padded[1] % group_size:
            group_size -= 1
        return super().group_tokens(inputs, group_size=group_size, multiple=multiple)


@mutant("GROUP-09")
class AcceptsAnyCapacity(ReferenceAdapter):
    """Nonsense gives the smallest capacity instead of an error."""

    def expert_capacity(self, tokens_per_group: int, **options: Any) -> int:
        try:
            return super().expert_capacity(tokens_per_group, **options)
        except ValueError:
            return 4
