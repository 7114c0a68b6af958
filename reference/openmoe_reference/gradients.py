"""Gradients of the router and the layer in NumPy, by hand.

Derived from the clauses on paper and not by a library; central differences of the float64
reference confirm them. Decisions are constants everywhere: no gradient flows through a choice.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy import ndarray

from openmoe_reference import moe, routing
from openmoe_reference.arguments import check_array, check_finite, check_record, check_within
from openmoe_spec.records import Decision, ExpertsChoice


def router_gradients(
    inputs: ndarray,
    kernel: ndarray,
    probability_cotangent: ndarray,
    logit_cotangent: ndarray,
) -> tuple[ndarray, ndarray]:
    """Return gradients of inputs [G, T, D] and kernel [D, E] through softmax and product.

    Spec: ROUTE-26. Source: flaxformer routing.py::Router@c5bdc41, differentiated.
    """
    sizes: dict[str, int] = {}
    check_array("inputs", inputs, "G T D", sizes, "ROUTE-20")
    check_array("kernel", kernel, "D E", sizes, "ROUTE-20")
    check_array("probability_cotangent", probability_cotangent, "G T E", sizes, "ROUTE-20")
    check_array("logit_cotangent", logit_cotangent, "G T E", sizes, "ROUTE-20")
    p = routing.softmax(routing.router_logits(inputs, kernel, dtype=np.float64))
    inner = (p * probability_cotangent).sum(axis=-1, keepdims=True)
    d_logits = p * (probability_cotangent - inner) + logit_cotangent  # all E terms
    return d_logits @ kernel.T, np.einsum("gtd,gte->de", inputs, d_logits)


def loss_cotangents(
    inputs: ndarray,
    kernel: ndarray,
    expert_index: ndarray | None,
    *,
    balance: float,
    z: float,
    padding_mask: ndarray | None = None,
) -> tuple[ndarray, ndarray]:
    """Return d loss / d probabilities and d loss / d logits of balance and z-loss, [G, T, E].

    Spec: LOSS-12. Source: routing.py::_load_balancing_loss, _router_z_loss@c5bdc41, differentiated.
    """
    sizes: dict[str, int] = {}
    check_array("inputs", inputs, "G T D", sizes, "LOSS-13")
    check_array("kernel", kernel, "D E", sizes, "LOSS-13")
    check_finite("balance", balance, "LOSS-13")
    check_finite("z", z, "LOSS-13")
    if padding_mask is not None:
        check_array("padding_mask", padding_mask, "G T", sizes, "LOSS-13", kind="b")
    if expert_index is not None:
        check_array("expert_index", expert_index, "G T K", sizes, "LOSS-13", kind="i")
        check_within("expert_index", expert_index, "LOSS-13", -1, sizes["E"] - 1)
    logits = routing.router_logits(inputs, kernel, dtype=np.float64)
    groups, tokens, experts = logits.shape
    real = np.ones((groups, tokens, 1)) if padding_mask is None else padding_mask[..., None]
    d_probabilities = np.zeros(logits.shape)
    if expert_index is not None:
        chosen = (expert_index[..., None] == np.arange(experts)).any(axis=2)
        share = chosen.mean(axis=1, keepdims=True)  # f is constant
        d_probabilities += balance * experts / (groups * tokens) * share * real
    masked = logits * real
    largest = masked.max(axis=-1, keepdims=True)
    log_z = np.log(np.exp(masked - largest).sum(axis=-1, keepdims=True)) + largest
    d_logits = z * 2 * log_z * np.exp(masked - log_z) / (groups * tokens) * real
    return d_probabilities, d_logits


def layer_gradients(
    inputs: ndarray,
    parameters: Mapping[str, ndarray],
    cotangent: ndarray,
    decision: Decision | ExpertsChoice,
    *,
    balance: float,
    z: float,
    padding_mask: ndarray | None = None,
) -> dict[str, ndarray]:
    """Return gradients of sum(output x cotangent) + losses by the layer's names.

    Spec: MOE-09. Source: flaxformer moe_layers.py::MoeLayer@c5bdc41, differentiated.
    """
    sizes = moe.check_layer(inputs, parameters, "masked", "float64")
    check_array("cotangent", cotangent, "G T D", sizes, "MOE-11")
    if padding_mask is not None:
        check_array("padding_mask", padding_mask, "G T", sizes, "MOE-11", kind="b")
    check_record(decision, sizes, "MOE-11")
    x = inputs.astype(np.float64)
    weights = {name: np.asarray(value, np.float64) for name, value in parameters.items()}
    experts = weights["router"].shape[1]
    token, weight = moe.slots(decision, num_experts=experts)
    group = np.arange(len(x))[:, None, None]
    filled = token >= 0
    slots = moe.dispatch(x, token)  # [G, E, C, D]

    # expert forward
    up = np.einsum("gecd,edf->gecf", slots, weights["wi_0"])
    value, gate = np.split(up, 2, axis=-1)
    sigmoid = 1 / (1 + np.exp(-gate))
    linear = np.einsum("gecd,edf->gecf", slots, weights["wi_1"])
    hidden = value * gate * sigmoid * linear
    outputs = np.einsum("gecf,efd->gecd", hidden, weights["wo"])

    # combine
    of_slot = np.where(filled[..., None], cotangent[group, token], 0)
    d_weight = (of_slot * outputs).sum(axis=-1)  # [G, E, C]
    d_outputs = of_slot * weight[..., None]

    # expert backward
    d_hidden = np.einsum("gecd,efd->gecf", d_outputs, weights["wo"])
    d_value = d_hidden * gate * sigmoid * linear
    d_gate = d_hidden * value * linear * sigmoid * (1 + gate * (1 - sigmoid))
    d_up = np.concatenate([d_value, d_gate], axis=-1)
    d_linear = d_hidden * value * gate * sigmoid
    d_slots = np.einsum("gecf,edf->gecd", d_up, weights["wi_0"])
    d_slots += np.einsum("gecf,edf->gecd", d_linear, weights["wi_1"])

    # dispatch and router
    d_x = np.zeros(x.shape)
    d_probabilities = np.zeros((*x.shape[:2], experts))
    for g, e, c in np.argwhere(filled):
        d_x[g, token[g, e, c]] += d_slots[g, e, c]
        d_probabilities[g, token[g, e, c], e] += d_weight[g, e, c]
    if padding_mask is not None:
        d_probabilities *= padding_mask[..., None]
    index = decision.expert_index if isinstance(decision, Decision) else None
    of_balance, d_logits = loss_cotangents(
        x, weights["router"], index, balance=balance, z=z, padding_mask=padding_mask
    )
    d_router_x, d_router = router_gradients(
        x, weights["router"], d_probabilities + of_balance, d_logits
    )
    return {
        "inputs": d_x + d_router_x,
        "router": d_router,
        "wi_0": np.einsum("gecd,gecf->edf", slots, d_up),
        "wi_1": np.einsum("gecd,gecf->edf", slots, d_linear),
        "wo": np.einsum("gecf,gecd->efd", hidden, d_outputs),
    }
