"""SPEC.md "Routing": floating-point probabilities, then exact decisions.

The two halves never mix: `probabilities` is compared with a tolerance, `decide` takes float32
probabilities and returns integers that are compared exactly. Line-comparable to flaxformer
routing.py@c5bdc41.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Bool, Float, Float32, Int, Int32, Shaped
from numpy import ndarray

from openmoe_reference.arguments import check_array, check_integer, check_record, check_within
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Decision, ExpertsChoice


def router_logits(
    inputs: Float[ndarray, "G T D"],
    kernel: Float[ndarray, "D E"],
    *,
    noise: Float[ndarray, "G T D"] | None = None,
    dtype: type[np.floating] = np.float32,
) -> Float[ndarray, "G T E"]:
    """Return x @ W with x cast to float32 first; `dtype` np.float64 is for oracles only.

    `noise` is the jitter, drawn by the caller from [1 - epsilon, 1 + epsilon]; it multiplies the
    router's input alone, never what the experts receive.
    Errors: RejectedError ROUTE-20 on non-finite values or shapes that do not match.
    Spec: ROUTE-02, ROUTE-16, ROUTE-17. Source: routing.py::Router._compute_router_probabilities.
    """
    if dtype not in {np.float32, np.float64}:
        raise RejectedError("dtype", "ROUTE-20", f"must be float32 or float64, got {dtype!r}")
    sizes: dict[str, int] = {}
    check_array("inputs", inputs, "G T D", sizes, "ROUTE-20")
    check_array("kernel", kernel, "D E", sizes, "ROUTE-20")
    if noise is not None:
        check_array("noise", noise, "G T D", sizes, "ROUTE-20")
    with np.errstate(over="ignore", invalid="ignore"):  # beyond float32: refused below
        x = inputs.astype(dtype)
        if noise is not None:
            x = x * noise.astype(dtype)
        w = kernel.astype(dtype)
        # One product a group: the bits of a group's logits cannot depend on its neighbours.
        logits = np.stack([group @ w for group in x])  # [T, D] @ [D, E] -> [T, E]
    return check_array("logits", logits, "G T E", sizes, "ROUTE-20")


def softmax(logits: Float[ndarray, "G T E"]) -> Float[ndarray, "G T E"]:
    """Return the softmax over all E experts, in the dtype of `logits`.

    Spec: ROUTE-03. Source: routing.py::Router._compute_router_probabilities.
    """
    check_array("logits", logits, "G T E", {}, "ROUTE-20")
    exponentials = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return _flushed(exponentials / exponentials.sum(axis=-1, keepdims=True))


def _flushed(values: Float[ndarray, ...]) -> Float[ndarray, ...]:
    """Return the values with subnormals replaced by 0, as the training run's devices do. Spec: NUM-04."""
    return np.where(np.abs(values) < np.finfo(values.dtype).tiny, np.zeros_like(values), values)


def probabilities(
    inputs: Float[ndarray, "G T D"],
    kernel: Float[ndarray, "D E"],
    *,
    noise: Float[ndarray, "G T D"] | None = None,
) -> Float32[ndarray, "G T E"]:
    """Return the float32 router probabilities of every token.

    Errors: RejectedError ROUTE-20 on non-finite values or shapes that do not match.
    Spec: ROUTE-02, ROUTE-03, ROUTE-16, ROUTE-18, ROUTE-19.
    Source: routing.py::Router._compute_router_probabilities.
    """
    return softmax(router_logits(inputs, kernel, noise=noise))


def padding_mask(inputs: Float[ndarray, "G T D"]) -> Bool[ndarray, "G T"]:
    """Return True for real tokens: a padding token is a row of exact zeros.

    Spec: ROUTE-13. Source: routing.py::Router.__call__.
    """
    check_array("inputs", inputs, "G T D", {}, "ROUTE-20")
    smallest = np.finfo(np.float32).tiny
    return np.asarray((np.abs(inputs.astype(np.float32)) >= smallest).any(axis=-1))


def decide(
    probabilities: Float32[ndarray, "G T E"],
    *,
    k: int,
    capacity: int,
    padding_mask: Bool[ndarray, "G T"] | None = None,
    batch_prioritized: bool = False,
    logits: Float[ndarray, "G T E"] | None = None,
) -> Decision:
    """Return the masked router's decision, the one OpenMoE was trained with.

    `logits` are taken, so that every dialect's rule is called alike, and not looked at.

    `padding_mask` (True = real) makes the router ignore padding; OpenMoE passes none, so its
    padding is routed like any token.
    Errors: RejectedError ROUTE-20: not float32, non-finite, negative, K > E, capacity < 1, shapes.
    Spec: ROUTE-04..ROUTE-12, ROUTE-14, ROUTE-15.
    Source: routing.py::TokensChooseMaskedRouter._compute_routing_instructions.
    """
    del logits
    mask = _check_decidable(probabilities, k, capacity, padding_mask)
    gate, expert_index = _largest(probabilities, k)  # [G, T, K] each
    if mask is not None:
        # Padding has no expert: upstream gives it a negative index, we always write -1.
        gate = np.where(mask[..., None], gate, np.float32(0))
        expert_index = np.where(mask[..., None], expert_index, np.int32(-1))
    position = decide_positions(expert_index, gate, probabilities.shape[-1], batch_prioritized)
    return Decision(expert_index, gate, position, (position >= 0) & (position < capacity), capacity)


def decide_one_by_logits(
    probabilities: Float32[ndarray, "G T E"],
    *,
    k: int,
    capacity: int,
    padding_mask: Bool[ndarray, "G T"] | None = None,
    batch_prioritized: bool = False,
    logits: Float[ndarray, "G T E"],
) -> Decision:
    """Return the published port's decision: with K = 1 it ranks logits, else as `decide`.

    The two differ where probabilities saturate; gates are probabilities either way.
    Errors: as `decide`. Spec: DIAL-02. Source: colossalai routers.py::Top1Router@95e3378e.
    """
    _check_decidable(probabilities, k, capacity, padding_mask)
    check_array(
        "logits", logits, "G T E", dict(zip("GTE", probabilities.shape, strict=True)), "ROUTE-20"
    )
    ranked = decide(
        probabilities if k > 1 else _as_ranks(logits),
        k=k,
        capacity=capacity,
        padding_mask=padding_mask,
        batch_prioritized=batch_prioritized,
    )
    gate = np.take_along_axis(probabilities, ranked.expert_index.clip(0), axis=-1)
    return Decision(
        ranked.expert_index,
        np.where(ranked.expert_index < 0, np.float32(0), gate),
        ranked.position,
        ranked.kept,
        capacity,
    )


def _as_ranks(logits: Float[ndarray, "G T E"]) -> Float32[ndarray, "G T E"]:
    """Return how many logits of the token are smaller: the same order, and equals stay equal."""
    return (logits[..., None] > logits[..., None, :]).sum(axis=-1).astype(np.float32)


def decide_scatter(
    probabilities: Float32[ndarray, "G T E"],
    *,
    k: int,
    capacity: int,
    padding_mask: Bool[ndarray, "G T"] | None = None,
    batch_prioritized: bool = False,
) -> Decision:
    """Return the scatter router's decision: it differs from `decide` on ignored padding alone.

    Errors: as `decide`.
    Spec: ROUTE-21, ROUTE-22.
    Source: routing.py::TokensChooseScatterRouter._compute_routing_instructions.
    """
    mask = _check_decidable(probabilities, k, capacity, padding_mask)
    if mask is not None:
        # Masked before the choice: padding still picks experts 0..K-1 and takes their slots.
        probabilities = probabilities * mask[..., None].astype(np.float32)
    gate, expert_index = _largest(probabilities, k)
    position = decide_positions(expert_index, gate, probabilities.shape[-1], batch_prioritized)
    return Decision(expert_index, gate, position, position < capacity, capacity)


def experts_choose(
    probabilities: Float32[ndarray, "G T E"],
    *,
    capacity: int,
    padding_mask: Bool[ndarray, "G T"] | None = None,
) -> ExpertsChoice:
    """Return for every expert the `capacity` tokens with the largest probability for it.

    Errors: as `decide`, and RejectedError ROUTE-25 when capacity > T.
    Spec: ROUTE-23, ROUTE-24, ROUTE-25.
    Source: routing.py::ExpertsChooseMaskedRouter._compute_routing_instructions.
    """
    mask = _check_decidable(probabilities, 1, capacity, padding_mask)
    check_integer("capacity", capacity, "ROUTE-25", least=1, most=probabilities.shape[1])
    if mask is not None:
        probabilities = probabilities * mask[..., None].astype(np.float32)
    gate, token_index = _largest(probabilities.swapaxes(1, 2), capacity)  # [G, E, T] -> [G, E, C]
    return ExpertsChoice(token_index, gate)


def _check_decidable(
    probabilities: ndarray, k: int, capacity: int, padding_mask: ndarray | None
) -> ndarray | None:
    sizes: dict[str, int] = {}
    check_array("probabilities", probabilities, "G T E", sizes, "ROUTE-20")
    if probabilities.dtype != np.float32:
        raise RejectedError(
            "probabilities", "ROUTE-20", f"must be float32, got {probabilities.dtype}"
        )
    if (probabilities < 0).any():
        raise RejectedError("probabilities", "ROUTE-20", "must not be negative")
    check_integer("k", k, "ROUTE-20", least=1, most=sizes["E"])
    check_integer("capacity", capacity, "ROUTE-20", least=1)
    if padding_mask is None:
        return None
    return check_array("padding_mask", padding_mask, "G T", sizes, "ROUTE-20", kind="b")


def _largest(
    values: Float32[ndarray, "*rows N"], count: int
) -> tuple[Float32[ndarray, "*rows K"], Int32[ndarray, "*rows K"]]:
    """Return the `count` largest of each row and their indices; equals keep index order.

    Spec: ROUTE-04, ROUTE-05, ROUTE-06, ROUTE-10, ROUTE-23. Source: routing.py::_top_k.
    """
    values = _flushed(values)
    order = np.argsort(-values, axis=-1, kind="stable")[..., :count]
    return np.take_along_axis(values, order, axis=-1), order.astype(np.int32)


def decide_positions(
    expert_index: Int[ndarray, "G T K"],
    gate: Float32[ndarray, "G T K"],
    num_experts: int,
    batch_prioritized: bool,
) -> Int32[ndarray, "G T K"]:
    """Return each choice's place in its expert's queue: how many choices of it stand before.

    Choices that come too late still count, so positions run on past the capacity.
    Spec: ROUTE-07, ROUTE-08, ROUTE-14, ROUTE-15.
    Source: routing.py::TokensChooseMaskedRouter._compute_routing_instructions.
    """
    check_integer("num_experts", num_experts, "ROUTE-20", least=1)
    sizes: dict[str, int] = {}
    check_array("expert_index", expert_index, "G T K", sizes, "ROUTE-20", kind="i")
    check_within("expert_index", expert_index, "ROUTE-20", -1, num_experts - 1)
    groups, tokens, k = expert_index.shape
    if batch_prioritized:
        check_array("gate", gate, "G T K", sizes, "ROUTE-20")
        # Best first choice first; equals keep token order. Only the queue is permuted.
        order = np.argsort(-gate[..., 0], axis=-1, kind="stable")  # [G, T]
        expert_index = np.take_along_axis(expert_index, order[..., None], axis=1)
    # All first choices in token order, then all second choices: [G, T, K] -> [G, K * T].
    queue = expert_index.swapaxes(1, 2).reshape(groups, k * tokens)
    chosen = queue[..., None] == np.arange(num_experts)  # [G, K * T, E]; -1 matches none
    before = chosen.cumsum(axis=1) - 1  # [G, K * T, E]
    position = np.where(chosen, before, -1).max(axis=-1)  # [G, K * T]
    position = position.reshape(groups, k, tokens).swapaxes(1, 2)  # -> [G, T, K]
    if batch_prioritized:
        position = np.take_along_axis(position, order.argsort(axis=-1)[..., None], axis=1)
    return position.astype(np.int32)


def combine_weights(decision: Decision) -> Shaped[ndarray, "G T K"]:
    """Return the weight of each choice in the output: its raw probability, 0 where dropped.

    Spec: ROUTE-10, MOE-04. Source: routing.py::TokensChooseMaskedRouter.
    """
    check_record(decision, {}, "ROUTE-20")
    return np.where(decision.kept, decision.gate, np.zeros_like(decision.gate))
