"""SPEC.md "Groups and capacity": integers from shapes alone; no value is looked at."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Shaped
from numpy import ndarray

from openmoe_reference.arguments import check_array, check_integer, check_pair, check_positive
from openmoe_spec.errors import RejectedError


def num_expert_replicas(
    device_count: int, *, num_expert_partitions: int, num_model_partitions: int
) -> int:
    """Return R, the copies of each expert that a training run's devices held.

    Errors: RejectedError GROUP-09 on a count below 1.
    Spec: GROUP-01. Source: flaxformer moe_layers.py::_num_expert_replicas@c5bdc41.
    """
    device_count = check_integer("device_count", device_count, "GROUP-09", least=1)
    num_expert_partitions = check_integer(
        "num_expert_partitions", num_expert_partitions, "GROUP-09", least=1
    )
    num_model_partitions = check_integer(
        "num_model_partitions", num_model_partitions, "GROUP-09", least=1
    )
    return max(1, device_count // (num_expert_partitions * num_model_partitions))


def padded_shape(batch: int, length: int, *, multiple: int) -> tuple[int, int]:
    """Return [B, L] after the layer's own padding: B * L becomes a multiple of `multiple`.

    Whole rows or whole columns are added, whichever adds fewer tokens; on a tie, columns.
    Errors: RejectedError GROUP-09 on a size below 1.
    Spec: GROUP-01, GROUP-02. Source: flaxformer moe_layers.py::_maybe_pad@c5bdc41.
    """
    batch = check_integer("batch", batch, "GROUP-09", least=1)
    length = check_integer("length", length, "GROUP-09", least=1)
    multiple = check_integer("multiple", multiple, "GROUP-09", least=1)
    if batch * length % multiple == 0:
        return batch, length
    rows, columns = 1, 1
    while (batch + rows) * length % multiple:
        rows += 1
    while batch * (length + columns) % multiple:
        columns += 1
    if columns * batch > rows * length:
        return batch + rows, length
    return batch, length + columns


def num_groups(
    num_tokens: int, *, max_group_size: int, num_experts: int, num_expert_replicas: int = 1
) -> int:
    """Return G, the number of routing groups of B * L (padded) tokens.

    The floor division is the training code's: T = num_tokens / G may exceed max_group_size.
    Errors: RejectedError GROUP-09 on a size below 1 or when no number of groups fits.
    Spec: GROUP-04. Source: flaxformer moe_layers.py::_num_groups@c5bdc41.
    """
    num_tokens = check_integer("num_tokens", num_tokens, "GROUP-09", least=1)
    max_group_size = check_integer("max_group_size", max_group_size, "GROUP-09", least=1)
    num_experts = check_integer("num_experts", num_experts, "GROUP-09", least=1)
    num_expert_replicas = check_integer(
        "num_expert_replicas", num_expert_replicas, "GROUP-09", least=1
    )
    multiple = num_experts * num_expert_replicas
    if num_tokens % multiple:
        raise RejectedError(
            "num_tokens",
            "GROUP-09",
            f"must be a multiple of experts x replicas ({multiple}), got {num_tokens}",
        )
    groups = max(num_tokens // max_group_size, multiple)
    while num_tokens % groups or groups % multiple:
        groups += 1
    return groups


def expert_capacity(
    tokens_per_group: int,
    *,
    num_experts: int,
    capacity_factor: float,
    min_expert_capacity: int = 4,
    k: int | None = None,
) -> int:
    """Return C, the slots of one expert in one group.

    K is not in the formula: with K = 2 and factor 1.25 at most 62.5 % of the choices fit. `k` is
    taken, so that every dialect's rule is called alike, and not looked at.
    Errors: RejectedError GROUP-09 on a size below 1 or a factor that is not above 0.
    Spec: GROUP-06, GROUP-07. Source: flaxformer moe_layers.py::MoeLayer@c5bdc41.
    """
    del k
    tokens_per_group = check_integer("tokens_per_group", tokens_per_group, "GROUP-09", least=1)
    num_experts = check_integer("num_experts", num_experts, "GROUP-09", least=1)
    factor = check_positive("capacity_factor", capacity_factor, "GROUP-09")
    min_expert_capacity = check_integer(
        "min_expert_capacity", min_expert_capacity, "GROUP-09", least=1
    )
    # Python's round is half to even: 4.5 -> 4, 5.5 -> 6.
    exact = factor * tokens_per_group / num_experts
    if not math.isfinite(exact):
        raise RejectedError("capacity_factor", "GROUP-09", f"is too large, got {capacity_factor}")
    return max(round(exact), min_expert_capacity)


def even_capacity(
    tokens_per_group: int,
    *,
    num_experts: int,
    capacity_factor: float,
    min_expert_capacity: int = 4,
    k: int = 2,
) -> int:
    """Return C of the published port: K counts, rounded down, one more when odd.

    The minimum comes last, so an odd minimum stays odd.
    Errors: RejectedError GROUP-09 on a size below 1 or a factor that is not above 0.
    Spec: DIAL-02. Source: colossalai routers.py::MoeRouter.get_capacity@95e3378e.
    """
    tokens_per_group = check_integer("tokens_per_group", tokens_per_group, "GROUP-09", least=1)
    num_experts = check_integer("num_experts", num_experts, "GROUP-09", least=1)
    factor = check_positive("capacity_factor", capacity_factor, "GROUP-09")
    least = check_integer("min_expert_capacity", min_expert_capacity, "GROUP-09", least=1)
    k = check_integer("k", k, "GROUP-09", least=1, most=num_experts)
    exact = k * factor * tokens_per_group / num_experts
    if not math.isfinite(exact):
        raise RejectedError("capacity_factor", "GROUP-09", f"is too large, got {capacity_factor}")
    whole = math.floor(exact)
    return max(whole + whole % 2, least)


def groups_by_experts(
    batch: int,
    length: int,
    *,
    max_group_size: int,
    num_experts: int,
    num_expert_replicas: int = 1,
) -> tuple[tuple[int, int], int]:
    """Return the padded [B, L] and G that the training run derived. Spec: GROUP-01..GROUP-04."""
    check_integer("num_experts", num_experts, "GROUP-09", least=1)
    check_integer("num_expert_replicas", num_expert_replicas, "GROUP-09", least=1)
    padded = padded_shape(batch, length, multiple=num_experts * num_expert_replicas)
    groups = num_groups(
        padded[0] * padded[1],
        max_group_size=max_group_size,
        num_experts=num_experts,
        num_expert_replicas=num_expert_replicas,
    )
    return padded, groups


def one_group(
    batch: int,
    length: int,
    *,
    max_group_size: int,
    num_experts: int,
    num_expert_replicas: int = 1,
) -> tuple[tuple[int, int], int]:
    """Return [B, L] as it is and one group: all tokens of the call compete. Spec: DIAL-02.

    Source: colossalai layers.py::SparseMLP.forward@95e3378e.
    """
    del max_group_size, num_experts, num_expert_replicas
    return (batch, length), 1


def capacity_factor(
    *, training: bool, train_capacity_factor: float, eval_capacity_factor: float
) -> float:
    """Return the factor in force: the training flag decides, whatever the dropout rate.

    Errors: RejectedError GROUP-09 on either factor that is not a finite number above 0.
    Spec: GROUP-08. Source: flaxformer moe_layers.py::MoeLayer@c5bdc41 (`enable_dropout`).
    """
    check_positive("train_capacity_factor", train_capacity_factor, "GROUP-09")
    check_positive("eval_capacity_factor", eval_capacity_factor, "GROUP-09")
    return train_capacity_factor if training else eval_capacity_factor


def to_groups(
    inputs: Shaped[ndarray, "B L D"], *, padded: tuple[int, int], num_groups: int
) -> Shaped[ndarray, "G T D"]:
    """Pad [B, L, D] with zeros at the ends of its axes and cut it into G runs of T tokens.

    Padding comes before flattening: padded columns stand between the rows.
    Errors: RejectedError GROUP-09 when padding would shrink or G does not divide the tokens.
    Spec: GROUP-03, GROUP-05. Source: flaxformer moe_layers.py::MoeLayer, _maybe_pad@c5bdc41.
    """
    check_array("inputs", inputs, "B L D", {}, "GROUP-09", kind="any")
    check_pair("padded", padded, "GROUP-09")
    batch, length, width = inputs.shape
    rows, columns = padded[0] - batch, padded[1] - length
    if rows < 0 or columns < 0:
        raise RejectedError(
            "padded", "GROUP-09", f"must be at least {inputs.shape[:2]}, got {padded}"
        )
    tokens = padded[0] * padded[1]
    num_groups = check_integer("num_groups", num_groups, "GROUP-09", least=1)
    if tokens % num_groups:
        raise RejectedError(
            "num_groups", "GROUP-09", f"must divide the {tokens} tokens, got {num_groups}"
        )
    whole = np.pad(inputs, ((0, rows), (0, columns), (0, 0)))  # [B, L, D] -> padded [B', L', D]
    return whole.reshape(num_groups, tokens // num_groups, width)  # -> [G, T, D], row-major


def from_groups(
    outputs: Shaped[ndarray, "G T D"], *, padded: tuple[int, int], shape: tuple[int, int]
) -> Shaped[ndarray, "B L D"]:
    """Undo `to_groups`: back to [B, L, D] with the padding cut off.

    Errors: RejectedError GROUP-09 on shapes that do not match.
    Spec: GROUP-03, GROUP-05. Source: flaxformer moe_layers.py::MoeLayer@c5bdc41.
    """
    check_array("outputs", outputs, "G T D", {}, "GROUP-09", kind="any")
    rows, columns = check_pair("padded", padded, "GROUP-09")
    batch, length = check_pair("shape", shape, "GROUP-09")
    if rows * columns != outputs.shape[0] * outputs.shape[1]:
        raise RejectedError(
            "padded", "GROUP-09", f"must have the tokens of {outputs.shape[:2]}, got {padded}"
        )
    if batch > rows or length > columns:
        raise RejectedError("shape", "GROUP-09", f"must fit in {padded}, got {shape}")
    return outputs.reshape(*padded, outputs.shape[-1])[: shape[0], : shape[1]]
