"""SPEC.md "The mixture-of-experts layer": route, dispatch, experts, combine.

Line-comparable to flaxformer moe_layers.py@c5bdc41 and dense.py::MlpBlock@c5bdc41.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from jaxtyping import Float, Int, Shaped
from numpy import ndarray

from openmoe_reference import grouping, losses, routing
from openmoe_reference.arguments import (
    check_array,
    check_choice,
    check_integer,
    check_names,
    check_record,
    check_within,
)
from openmoe_reference.dtypes import DTYPES
from openmoe_reference.feed_forward import feed_forward
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import PARAMETERS, ROUTERS, Decision, ExpertsChoice, LayerResult


def combine(
    expert_outputs: Float[ndarray, "G E C D"],
    token: Int[ndarray, "G E C"],
    weight: Float[ndarray, "G E C"],
    *,
    tokens: int,
) -> Float[ndarray, "G T D"]:
    """Return the weighted sum of each token's slots, in the dtype of `weight`.

    A token with no slot gets exact zeros; weights are not renormalised after drops.
    Spec: MOE-04, MOE-05, MOE-06. Source: moe_layers.py::MoeLayer._mask_and_dispatch_to_experts.
    """
    sizes: dict[str, int] = {}
    check_array("expert_outputs", expert_outputs, "G E C D", sizes, "MOE-11")
    check_array("token", token, "G E C", sizes, "MOE-11", kind="i")
    check_array("weight", weight, "G E C", sizes, "MOE-11")
    check_integer("tokens", tokens, "MOE-11", least=1)
    check_within("token", token, "MOE-11", -1, tokens - 1)
    groups, _, _, width = expert_outputs.shape
    output = np.zeros((groups, tokens, width), weight.dtype)
    for g, e, c in np.argwhere(token >= 0):
        output[g, token[g, e, c]] += weight[g, e, c] * expert_outputs[g, e, c].astype(weight.dtype)
    return output


def combine_rounded(
    expert_outputs: Float[ndarray, "G E C D"],
    token: Int[ndarray, "G E C"],
    weight: Float[ndarray, "G E C"],
    *,
    tokens: int,
) -> Float[ndarray, "G T D"]:
    """Return `combine` as the published port does it: gates and sum in the outputs' dtype.

    Spec: DIAL-02. Source: colossalai layers.py::SparseMLP.forward@95e3378e.
    """
    sizes: dict[str, int] = {}
    check_array("expert_outputs", expert_outputs, "G E C D", sizes, "MOE-11")
    check_array("weight", weight, "G E C", sizes, "MOE-11")
    rounded = weight.astype(expert_outputs.dtype).astype(weight.dtype)
    return combine(expert_outputs, token, rounded, tokens=tokens).astype(expert_outputs.dtype)


def router_logits_of_rounded(
    inputs: Float[ndarray, "G T D"], kernel: Float[ndarray, "D E"], **options: Any
) -> Float[ndarray, "G T E"]:
    """Return router logits with the kernel held in the inputs' dtype, as the port holds it.

    Spec: DIAL-02. Source: colossalai layers.py::SparseMLP.forward@95e3378e.
    """
    sizes: dict[str, int] = {}
    check_array("inputs", inputs, "G T D", sizes, "ROUTE-20")
    check_array("kernel", kernel, "D E", sizes, "ROUTE-20")
    return routing.router_logits(inputs, kernel.astype(inputs.dtype), **options)


@dataclass(frozen=True)
class Steps:
    """The functions that a layer is composed of: a dialect exchanges some. Spec: DIAL-01."""

    groups: Callable[..., tuple[tuple[int, int], int]] = grouping.groups_by_experts
    capacity: Callable[..., int] = grouping.expert_capacity
    router_logits: Callable[..., ndarray] = routing.router_logits
    decide: Callable[..., Decision] = routing.decide
    activations: tuple[str, ...] = ("swiglu", "linear")
    combine: Callable[..., ndarray] = combine
    balance_loss: Callable[..., np.floating] = losses.balance_loss


STEPS = Steps()
"""The layer that the weights were trained with."""


def moe(
    inputs: Float[ndarray, "G T D"],
    parameters: Mapping[str, ndarray],
    *,
    k: int,
    capacity: int,
    router: str = "masked",
    ignore_padding: bool = False,
    batch_prioritized: bool = False,
    expert_dtype: str = "float32",
    noise: Float[ndarray, "G T D"] | None = None,
    decision: Decision | ExpertsChoice | None = None,
    steps: Steps | None = None,
) -> LayerResult:
    """Apply the layer to whole groups [G, T, D]; `parameters` as in `records.PARAMETERS`.

    A given `decision` is used instead of this router's own: its indices are forced, its gates
    are recomputed, so that two implementations can be compared past a near-tie (JUDGE-04).
    `steps` are a dialect's functions.
    Errors: RejectedError MOE-11 on parameters, ROUTE-20 on what the router refuses.
    Spec: MOE-01..MOE-08, MOE-10, MOE-14. Source: moe_layers.py::MoeLayer.
    """
    steps = STEPS if steps is None else steps
    sizes = check_layer(inputs, parameters, router, expert_dtype, steps.activations)
    check_integer("k", k, "ROUTE-20", least=1, most=sizes["E"])
    check_integer("capacity", capacity, "ROUTE-20", least=1)
    if decision is not None:
        slot = {"C": capacity} if isinstance(decision, ExpertsChoice) else {"K": k}
        check_record(decision, sizes | slot, "ROUTE-20")
        if isinstance(decision, Decision) and decision.capacity != capacity:
            raise RejectedError(
                "decision.capacity", "ROUTE-20", f"must be {capacity}, got {decision.capacity}"
            )
    mask = routing.padding_mask(inputs) if ignore_padding else None
    wide = np.float64 if expert_dtype == "float64" else np.float32
    logits = steps.router_logits(inputs, parameters["router"], noise=noise, dtype=wide)
    probabilities = routing.softmax(logits)
    if decision is None:
        narrow = probabilities.astype(np.float32)
        if router == "experts_choose":
            decision = routing.experts_choose(narrow, capacity=capacity, padding_mask=mask)
        else:
            options: dict[str, Any] = {"padding_mask": mask, "batch_prioritized": batch_prioritized}
            if router == "masked":
                decision = steps.decide(narrow, k=k, capacity=capacity, logits=logits, **options)
            else:
                decision = routing.decide_scatter(narrow, k=k, capacity=capacity, **options)
    # Gates of this arithmetic at the decided places; ignored padding weighs nothing.
    weights = probabilities if mask is None else probabilities * mask[..., None]
    decision = _with_gates(decision, weights)
    token, weight = slots(decision, num_experts=sizes["E"])
    expert_inputs = dispatch(inputs, token)  # [G, E, C, D]
    kernels = {name: parameters[name] for name in ("wi_0", "wi_1", "wo")}
    expert_outputs = np.stack(
        [
            feed_forward(group, kernels, activations=steps.activations, dtype=expert_dtype)
            for group in expert_inputs
        ]
    )
    # Back to the input's dtype, then combined in the router's: bfloat16 in, float32 out.
    output = steps.combine(expert_outputs.astype(inputs.dtype), token, weight, tokens=sizes["T"])
    metrics = losses.metrics(
        logits,
        probabilities,
        decision,
        padding_mask=mask,
        scatter=router == "scatter",
        balance=steps.balance_loss,
    )
    return LayerResult(output, decision, metrics, logits)


def slots(
    decision: Decision | ExpertsChoice, *, num_experts: int
) -> tuple[Int[ndarray, "G E C"], Float[ndarray, "G E C"]]:
    """Return which token holds each slot (-1: empty) and the weight of that slot's output.

    This one table serves all three routers; it replaces upstream's [G, T, E, C] masks.
    Spec: MOE-01, MOE-04, ROUTE-09. Source: routing.py (dispatch_mask, combine_array).
    """
    check_integer("num_experts", num_experts, "MOE-11", least=1)
    check_record(decision, {"E": num_experts}, "MOE-11")
    if isinstance(decision, ExpertsChoice):
        return decision.token_index, decision.gate
    groups = len(decision.expert_index)
    token = np.full((groups, num_experts, decision.capacity), -1, np.int32)
    weight = np.zeros((groups, num_experts, decision.capacity), decision.gate.dtype)
    for g, t, j in np.argwhere(decision.kept):
        place = g, decision.expert_index[g, t, j], decision.position[g, t, j]
        token[place], weight[place] = t, decision.gate[g, t, j]
    return token, weight


def dispatch(
    inputs: Shaped[ndarray, "G T D"], token: Int[ndarray, "G E C"]
) -> Shaped[ndarray, "G E C D"]:
    """Return every expert's inputs slot by slot: an exact copy of its token, zeros when empty.

    Spec: MOE-01. Source: moe_layers.py::MoeLayer._mask_and_dispatch_to_experts.
    """
    sizes: dict[str, int] = {}
    check_array("inputs", inputs, "G T D", sizes, "MOE-11", kind="any")
    check_array("token", token, "G E C", sizes, "MOE-11", kind="i")
    check_within("token", token, "MOE-11", -1, sizes["T"] - 1)
    rows = np.stack([group[index] for group, index in zip(inputs, token, strict=True)])
    return np.where(token[..., None] >= 0, rows, np.zeros((), inputs.dtype))


def moe_layer(
    inputs: Float[ndarray, "B L D"],
    parameters: Mapping[str, ndarray],
    *,
    training: bool,
    k: int = 2,
    train_capacity_factor: float = 1.25,
    eval_capacity_factor: float = 2.0,
    min_expert_capacity: int = 4,
    max_group_size: int = 4096,
    num_expert_replicas: int = 1,
    router: str = "masked",
    ignore_padding: bool = False,
    batch_prioritized: bool = False,
    expert_dtype: str = "float32",
    decision: Decision | ExpertsChoice | None = None,
    steps: Steps | None = None,
) -> LayerResult:
    """Apply the layer to a batch [B, L, D] with the groups that the training run derived.

    The decision and metrics of the result are those of the padded groups.
    Errors: RejectedError GROUP-09, MOE-11, ROUTE-20, as the functions it calls.
    Spec: GROUP-01..GROUP-08, MOE-07, MOE-08. Source: moe_layers.py::MoeLayer.__call__.
    """
    sizes: dict[str, int] = {}
    check_array("inputs", inputs, "B L D", sizes, "MOE-11")
    check_names("parameters", parameters, PARAMETERS, "MOE-11")
    check_array("parameters['router']", parameters["router"], "D E", sizes, "MOE-11")
    num_experts = sizes["E"]
    num_expert_replicas = check_integer(
        "num_expert_replicas", num_expert_replicas, "GROUP-09", least=1
    )
    steps = STEPS if steps is None else steps
    padded, groups = steps.groups(
        sizes["B"],
        sizes["L"],
        max_group_size=max_group_size,
        num_experts=num_experts,
        num_expert_replicas=num_expert_replicas,
    )
    grouped = grouping.to_groups(inputs, padded=padded, num_groups=groups)
    factor = grouping.capacity_factor(
        training=training,
        train_capacity_factor=train_capacity_factor,
        eval_capacity_factor=eval_capacity_factor,
    )
    capacity = steps.capacity(
        grouped.shape[1],
        num_experts=num_experts,
        capacity_factor=factor,
        min_expert_capacity=min_expert_capacity,
        k=k,
    )
    result = moe(
        grouped,
        parameters,
        k=k,
        capacity=capacity,
        router=router,
        ignore_padding=ignore_padding,
        batch_prioritized=batch_prioritized,
        expert_dtype=expert_dtype,
        decision=decision,
        steps=steps,
    )
    output = grouping.from_groups(result.output, padded=padded, shape=(sizes["B"], sizes["L"]))
    return replace(result, output=output)


def _with_gates(
    decision: Decision | ExpertsChoice, weights: Float[ndarray, "G T E"]
) -> Decision | ExpertsChoice:
    """Return the same places with this arithmetic's gates; a choice without expert weighs 0."""
    if isinstance(decision, ExpertsChoice):
        by_expert = weights.swapaxes(1, 2)  # [G, T, E] -> [G, E, T]
        return replace(decision, gate=np.take_along_axis(by_expert, decision.token_index, axis=-1))
    gate = np.take_along_axis(weights, decision.expert_index.clip(0), axis=-1)
    return replace(decision, gate=np.where(decision.expert_index < 0, np.zeros_like(gate), gate))


def check_layer(
    inputs: ndarray,
    parameters: Mapping[str, ndarray],
    router: str,
    expert_dtype: str,
    activations: tuple[str, ...] = ("swiglu", "linear"),
) -> dict[str, int]:
    """Return the sizes of a layer's arguments or refuse them. Spec: MOE-11."""
    sizes: dict[str, int] = {}
    check_choice("router", router, ROUTERS, "MOE-11")
    check_choice("expert_dtype", expert_dtype, tuple(DTYPES), "MOE-11")
    check_array("inputs", inputs, "G T D", sizes, "MOE-11")
    check_names("parameters", parameters, PARAMETERS, "MOE-11")
    for name, shape in (
        ("router", "D E"),
        ("wi_0", "E D 2F" if activations[0] == "swiglu" else "E D F"),
        ("wi_1", "E D F"),
        ("wo", "E F D"),
    ):
        check_array(f"parameters[{name!r}]", parameters[name], shape, sizes, "MOE-11")
    if sizes.get("2F", 2 * sizes["F"]) != 2 * sizes["F"]:
        raise RejectedError(
            "parameters['wi_0']",
            "MOE-11",
            f"must be twice as wide as wi_1 ({sizes['F']}), got {sizes['2F']}",
        )
    return sizes
