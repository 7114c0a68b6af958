"""Group size and capacity as the training run derived them: helpers, for both are inputs here.

Whole groups go in, whole groups come out: nothing is ever regrouped to suit a device count.
Spec: GROUP-01..GROUP-10.
"""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp

from openmoe_production.arguments import require_count, require_factor, require_shape
from openmoe_spec.errors import RejectedError


def num_expert_replicas(
    device_count: int, *, num_expert_partitions: int, num_model_partitions: int
) -> int:
    """Return R of a training run on `device_count` devices. Spec: GROUP-01, GROUP-09."""
    require_count("device_count", device_count, "GROUP-09")
    require_count("num_expert_partitions", num_expert_partitions, "GROUP-09")
    require_count("num_model_partitions", num_model_partitions, "GROUP-09")
    return device_count // (num_expert_partitions * num_model_partitions) or 1


def padded_shape(batch: int, length: int, *, multiple: int) -> tuple[int, int]:
    """Return the padded [B, L] whose token count is a multiple. Spec: GROUP-02, GROUP-09."""
    require_count("batch", batch, "GROUP-09")
    require_count("length", length, "GROUP-09")
    require_count("multiple", multiple, "GROUP-09")
    # B x L' is a multiple of M exactly when L' is a multiple of M / gcd(B, M).
    row_step = multiple // math.gcd(length, multiple)
    column_step = multiple // math.gcd(batch, multiple)
    rows, columns = -(-batch // row_step) * row_step, -(-length // column_step) * column_step
    if (columns - length) * batch > (rows - batch) * length:
        return rows, length
    return batch, columns


def num_groups(
    num_tokens: int, *, max_group_size: int, num_experts: int, num_expert_replicas: int = 1
) -> int:
    """Return G for a padded token count. Spec: GROUP-04, GROUP-09."""
    require_count("num_tokens", num_tokens, "GROUP-09")
    require_count("max_group_size", max_group_size, "GROUP-09")
    require_count("num_experts", num_experts, "GROUP-09")
    require_count("num_expert_replicas", num_expert_replicas, "GROUP-09")
    multiple = num_experts * num_expert_replicas
    if num_tokens % multiple:
        raise RejectedError(
            "num_tokens", "GROUP-09", f"must be a multiple of {multiple}, got {num_tokens}"
        )
    # G = M x q with q a divisor of n / M: the least one that is large enough.
    blocks = num_tokens // multiple
    least = max(num_tokens // max_group_size, multiple)
    return multiple * next(
        q for q in range(1, blocks + 1) if blocks % q == 0 and multiple * q >= least
    )


def share_of_groups(
    batch: int,
    length: int,
    *,
    shares: int = 1,
    max_group_size: int,
    num_experts: int,
    num_expert_replicas: int = 1,
) -> tuple[tuple[int, int], int]:
    """Return the padded shape of one share of the rows, and the group size of the whole batch.

    `batch` rows are a share's; equal shares, one behind the other, make the whole.
    Errors: RejectedError GROUP-09, MESH-06 when the shares do not hold whole groups.
    Spec: GROUP-02, GROUP-04, MESH-01, MESH-06.
    """
    rows = batch * shares
    multiple = num_experts * num_expert_replicas
    padded = padded_shape(rows, length, multiple=multiple)
    tokens = padded[0] * padded[1]
    groups = num_groups(
        tokens,
        max_group_size=max_group_size,
        num_experts=num_experts,
        num_expert_replicas=num_expert_replicas,
    )
    if shares > 1 and padded[0] != rows:
        step = multiple // math.gcd(length, multiple)
        fits = -(-rows // math.lcm(step, shares)) * math.lcm(step, shares)
        raise RejectedError(
            "batch",
            "MESH-06",
            f"{rows} rows of {length} tokens get {padded[0] - rows} rows of padding, which no share "
            f"of {shares} has; {fits} rows would do",
        )
    if groups % shares:
        raise RejectedError(
            "batch",
            "MESH-06",
            f"{rows} rows of {length} tokens make {groups} groups, which {shares} shares cannot hold "
            f"whole; {math.gcd(groups, shares)} shares would do, or num_expert_replicas "
            f"{_replicas(num_experts, shares)}",
        )
    return (padded[0] // shares, padded[1]), tokens // groups


def _replicas(num_experts: int, shares: int) -> int:
    """Return the fewest replicas with which every batch makes whole groups for so many shares."""
    return shares // math.gcd(num_experts, shares)


def expert_capacity(
    tokens_per_group: int,
    *,
    num_experts: int,
    capacity_factor: float,
    min_expert_capacity: int = 4,
) -> int:
    """Return C, half-even, without K, at least the minimum. Spec: GROUP-06, GROUP-07, GROUP-09."""
    require_count("tokens_per_group", tokens_per_group, "GROUP-09")
    require_count("num_experts", num_experts, "GROUP-09")
    require_factor("capacity_factor", capacity_factor, "GROUP-09")
    require_count("min_expert_capacity", min_expert_capacity, "GROUP-09")
    exact = float(capacity_factor) * int(tokens_per_group) / int(num_experts)
    if not math.isfinite(exact):
        raise RejectedError("capacity_factor", "GROUP-09", f"is too large, got {capacity_factor}")
    return max(round(exact), int(min_expert_capacity))


def to_groups(inputs: jax.Array, *, padded: tuple[int, int], group_size: int) -> jax.Array:
    """Return [B, L, D] zero-padded and cut into [G, T, D], T = group_size. Spec: GROUP-03, GROUP-05.

    Errors: RejectedError GROUP-09 when group_size does not divide the padded tokens.
    """
    require_shape("inputs", inputs, {"B": None, "L": None, "D": None}, "GROUP-09")
    batch, length, width = inputs.shape
    if padded[0] < batch or padded[1] < length:
        raise RejectedError(
            "padded", "GROUP-09", f"must be at least {(batch, length)}, got {padded}"
        )
    require_count("group_size", group_size, "GROUP-09")
    if padded[0] * padded[1] % group_size:
        raise RejectedError(
            "group_size",
            "GROUP-09",
            f"must divide the {padded[0] * padded[1]} tokens, got {group_size}",
        )
    whole = jnp.pad(inputs, ((0, padded[0] - batch), (0, padded[1] - length), (0, 0)))
    return whole.reshape(-1, group_size, width)


def from_groups(
    outputs: jax.Array, *, padded: tuple[int, int], shape: tuple[int, int]
) -> jax.Array:
    """Return [G, T, D] as [B, L, D] with the padding cut off. Spec: GROUP-03, GROUP-05.

    Errors: RejectedError GROUP-09 on shapes that do not match.
    """
    require_shape("outputs", outputs, {"G": None, "T": None, "D": None}, "GROUP-09")
    if padded[0] * padded[1] != outputs.shape[0] * outputs.shape[1]:
        raise RejectedError(
            "padded", "GROUP-09", f"must have the tokens of {outputs.shape[:2]}, got {padded}"
        )
    if not (1 <= shape[0] <= padded[0] and 1 <= shape[1] <= padded[1]):
        raise RejectedError("shape", "GROUP-09", f"must fit in {padded}, got {shape}")
    return outputs.reshape(*padded, outputs.shape[-1])[: shape[0], : shape[1]]
