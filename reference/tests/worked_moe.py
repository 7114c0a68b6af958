"""Worked examples of the mixture-of-experts layer and its losses, answered by the naive form."""

from __future__ import annotations

from typing import Any

import naive
import numpy as np
from numpy import ndarray
from worked_example import LAYER_BOUND, Example, grid
from worked_routing import record, uneven


def weights(seed: int, experts: int, width: int = 4, hidden: int = 3) -> dict[str, ndarray]:
    """Return a layer's parameters."""
    return {
        "router": grid(seed, width, experts),
        "wi_0": grid(seed + 1, experts, width, 2 * hidden),
        "wi_1": grid(seed + 2, experts, width, hidden),
        "wo": grid(seed + 3, experts, hidden, width),
    }


def layer(inputs: ndarray, parameters: dict[str, ndarray], k: int, capacity: int) -> dict[str, Any]:
    """Return the naive layer's output and metrics on whole groups."""
    experts = parameters["router"].shape[1]
    logits = naive.router_logits(inputs, parameters["router"])
    probabilities = naive.softmax(logits).astype(np.float32)
    decision = naive.decide(probabilities, k=k, capacity=capacity)
    slots = naive.dispatch(inputs, decision, num_experts=experts)
    names = ("wi_0", "wi_1", "wo")
    outputs = [naive.expert(group, *(parameters[name] for name in names)) for group in slots]
    sown = {
        "auxiliary_loss": naive.balance_loss(probabilities, decision.expert_index),
        "router_z_loss": naive.router_z_loss(logits),
        **naive.metrics(decision, num_experts=experts),
    }
    sown = {name: np.float64(value) for name, value in sown.items()}
    return {"output": naive.combine(np.stack(outputs), decision), "metrics": sown}


def parts() -> list[Example]:
    """Return dispatch, an expert and combine, each alone."""
    inputs, probabilities = grid(6, 2, 6, 4), uneven(7, 2, 6, 4)
    decision = naive.decide(probabilities, k=2, capacity=2)
    slots = naive.dispatch(inputs, decision, num_experts=4)
    outputs = grid(8, 2, 4, 2, 4)
    given = {"decision": record(decision), "num_experts": 4}
    experts = {name: value for name, value in weights(9, 4).items() if name != "router"}
    rows = grid(13, 4, 3, 4) * 2
    answer = naive.expert(rows, *experts.values())
    dropped = naive.decide(uneven(7, 2, 6, 4)[..., :2].copy(), k=1, capacity=1)
    few = grid(14, 2, 2, 1, 4)
    return [
        Example(
            *("slots", "MOE-01", "copies of tokens, zeros in empty slots", "dispatch"),
            {"inputs": inputs, **given},
            slots,
        ),
        Example(
            *("three_projections", "MOE-02", "a silu(b) (x wi_1), then wo", "expert"),
            {"inputs": rows, **experts},
            answer,
            LAYER_BOUND,
        ),
        Example(
            *("second_half", "MOE-03", "first half negative, second positive", "expert"),
            {"inputs": np.abs(rows), **experts, "wi_0": _signed(experts["wi_0"])},
            naive.expert(np.abs(rows), _signed(experts["wi_0"]), experts["wi_1"], experts["wo"]),
            LAYER_BOUND,
        ),
        Example(
            *("weighted_sum", "MOE-04", "raw gates of kept choices", "combine"),
            {"expert_outputs": outputs, **given},
            naive.combine(outputs, decision),
            LAYER_BOUND,
        ),
        Example(
            *("nothing_kept", "MOE-05", "one slot an expert: most tokens get zeros", "combine"),
            {"expert_outputs": few, "decision": record(dropped), "num_experts": 2},
            naive.combine(few, dropped),
            LAYER_BOUND,
        ),
    ]


def _signed(wi_0: ndarray) -> ndarray:
    first, second = np.split(np.abs(wi_0), 2, axis=-1)
    return np.concatenate([-first, second], axis=-1)


def layers() -> list[Example]:
    """Return whole layers on groups and on batches, and parameters that must be rejected."""
    parameters, inputs = weights(20, 4), grid(24, 2, 6, 4)
    padded = inputs.copy()
    padded[:, 2:4] = 0
    whole = layer(inputs, parameters, 2, 2)
    found = [
        Example(name, clause, what, "moe", {**call, "parameters": parameters}, answer, LAYER_BOUND)
        for name, clause, what, call, answer in (
            (
                *("zero_rows", "MOE-08", "zero rows take slots and come out as zeros"),
                {"inputs": padded, "k": 2, "capacity": 2},
                {"output": layer(padded, parameters, 2, 2)["output"]},
            ),
            (
                *("room_for_all", "MOE-10", "nothing is dropped"),
                {"inputs": inputs, "k": 2, "capacity": 12},
                {"output": layer(inputs, parameters, 2, 12)["output"]},
            ),
            *(
                (
                    *(name, clause, name),
                    {"inputs": inputs, "k": 2, "capacity": 2},
                    {"metrics": {name: whole["metrics"][name]}},
                )
                for name, clause in (("router_confidence", "LOSS-08"), ("expert_usage", "LOSS-09"))
            ),
        )
    ]
    found += [
        _batch(parameters, k, clause, training=training)
        for k, clause, training in (
            (1, "GROUP-07", True),
            (2, "GROUP-07", True),
            (2, "GROUP-08", True),
            (2, "GROUP-08", False),
        )
    ]
    wrong = {**parameters, "wi_0": parameters["wi_0"][..., :-1].copy()}
    turned = {**parameters, "wo": parameters["wo"].swapaxes(1, 2).copy()}
    call = {"inputs": inputs, "k": 2, "capacity": 2}
    return [
        *found,
        Example("odd_gate", "MOE-11", "wi_0 of odd width", "moe", {**call, "parameters": wrong}),
        Example("turned", "MOE-11", "wo transposed", "moe", {**call, "parameters": turned}),
    ]


def _batch(parameters: dict[str, ndarray], k: int, clause: str, *, training: bool) -> Example:
    """Return 4 groups of 36 crowded tokens: the capacity shows in who gets nothing."""
    inputs = np.abs(grid(25, 4, 36, 4)) + np.float32(0.125)
    capacity = naive.expert_capacity(36, num_experts=4, capacity_factor=1.25 if training else 2.0)
    answer = layer(inputs, parameters, k, capacity)["output"]
    what = f"K = {k}, {'training' if training else 'evaluation'}: capacity {capacity}"
    name = f"batch_{clause.lower().replace('-', '_')}_k{k}_{'train' if training else 'eval'}"
    arguments = {"inputs": inputs, "parameters": parameters, "training": training, "k": k}
    return Example(name, clause, what, "moe_layer", arguments, {"output": answer}, LAYER_BOUND)


def losses() -> list[Example]:
    """Return balance losses, and what must be rejected."""
    unlike = np.full((2, 4, 4), 0.125, np.float32)
    unlike[0, :, 0], unlike[1, :, 3] = 0.625, 0.625
    index = naive.decide(unlike, k=1, capacity=4).expert_index
    even = np.full((1, 4, 4), 0.25, np.float32)
    spread = ((np.arange(4)[:, None] + np.arange(2)) % 4)[None].astype(np.int32)
    cases = (
        ("two_groups_apart", "LOSS-02", "each group overloads another expert", unlike, index),
        ("perfect_balance", "LOSS-03", "K = 2 gives 2, not 1", even, spread),
    )
    found = [
        Example(
            *(name, clause, what, "balance_loss"),
            {"probabilities": p, "expert_index": chosen},
            np.float64(naive.balance_loss(p, chosen)),
            {"relative": 5e-6},
        )
        for name, clause, what, p, chosen in cases
    ]
    bad = {"probabilities": even * np.float32(np.nan), "expert_index": spread}
    return [*found, Example("no_number", "LOSS-13", "not a number", "balance_loss", bad)]


def models() -> dict[str, dict[str, ndarray]]:
    """Return the layer that several examples run, by the id of the case that lends it."""
    return {"layer_of_four_experts": weights(20, 4)}


def examples() -> list[Example]:
    """Return the examples of the layer and its losses, in the order of SPEC.md."""
    return [*parts(), *layers(), *losses()]
