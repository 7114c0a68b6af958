"""SPEC.md "Losses and metrics of the layer": balance loss, router z-loss, the five scalars.

Line-comparable to flaxformer routing.py and moe_layers.py@c5bdc41.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from openmoe_reference.arguments import check_array, check_record, check_within
from openmoe_spec.records import Decision, ExpertsChoice


def balance_loss(
    probabilities: Float[ndarray, "G T E"],
    expert_index: Int[ndarray, "G T K"],
    *,
    padding_mask: Bool[ndarray, "G T"] | None = None,
) -> np.floating:
    """Return E^2 x mean over groups and experts of f x P; perfect balance gives K, not 1.

    f counts the choices before capacity drops any; both means over T count padding.
    Errors: RejectedError LOSS-13 on non-finite values or shapes that do not match.
    Spec: LOSS-01..LOSS-04. Source: routing.py::_load_balancing_loss.
    """
    sizes: dict[str, int] = {}
    check_array("probabilities", probabilities, "G T E", sizes, "LOSS-13")
    check_array("expert_index", expert_index, "G T K", sizes, "LOSS-13", kind="i")
    if padding_mask is not None:
        check_array("padding_mask", padding_mask, "G T", sizes, "LOSS-13", kind="b")
        probabilities = probabilities * padding_mask[..., None].astype(probabilities.dtype)
    check_within("expert_index", expert_index, "LOSS-13", -1, sizes["E"] - 1)
    experts = np.arange(sizes["E"])
    chosen = (expert_index[..., None] == experts).any(axis=2)  # [G, T, E]; -1 matches none
    share = chosen.mean(axis=1, dtype=probabilities.dtype)  # f [G, E]
    mean_probability = probabilities.mean(axis=1)  # P [G, E]
    return (share * mean_probability).mean() * sizes["E"] ** 2


def balance_loss_of_batch(
    probabilities: Float[ndarray, "G T E"],
    expert_index: Int[ndarray, "G T K"],
    *,
    padding_mask: Bool[ndarray, "G T"] | None = None,
) -> np.floating:
    """Return the balance loss of all tokens as one group, as the paper's equation 5 reads.

    Errors: as `balance_loss`. Spec: DIAL-03. Source: arXiv 2402.01739, equations 5 and 6.
    """
    sizes: dict[str, int] = {}
    check_array("probabilities", probabilities, "G T E", sizes, "LOSS-13")
    check_array("expert_index", expert_index, "G T K", sizes, "LOSS-13", kind="i")
    if padding_mask is not None:
        check_array("padding_mask", padding_mask, "G T", sizes, "LOSS-13", kind="b")
    return balance_loss(
        probabilities.reshape(1, -1, probabilities.shape[-1]),
        expert_index.reshape(1, -1, expert_index.shape[-1]),
        padding_mask=None if padding_mask is None else padding_mask.reshape(1, -1),
    )


def router_z_loss(
    logits: Float[ndarray, "G T E"], *, padding_mask: Bool[ndarray, "G T"] | None = None
) -> np.floating:
    """Return the mean over all G x T tokens of logsumexp(logits)^2.

    Ignored padding has its logits multiplied by 0 and so still adds (ln E)^2 each.
    Errors: RejectedError LOSS-13 on non-finite values or shapes that do not match.
    Spec: LOSS-05, LOSS-06. Source: routing.py::_router_z_loss.
    """
    sizes: dict[str, int] = {}
    check_array("logits", logits, "G T E", sizes, "LOSS-13")
    if padding_mask is not None:
        check_array("padding_mask", padding_mask, "G T", sizes, "LOSS-13", kind="b")
        logits = logits * padding_mask[..., None].astype(logits.dtype)
    largest = logits.max(axis=-1, keepdims=True)
    log_z = np.log(np.exp(logits - largest).sum(axis=-1)) + largest[..., 0]  # [G, T]
    return (log_z**2).sum() / log_z.size


def metrics(
    logits: Float[ndarray, "G T E"],
    probabilities: Float[ndarray, "G T E"],
    decision: Decision | ExpertsChoice,
    *,
    padding_mask: Bool[ndarray, "G T"] | None = None,
    scatter: bool = False,
    balance: Callable[..., np.floating] = balance_loss,
) -> dict[str, np.floating]:
    """Return the five scalars that the layer sows, by the names of `records.METRICS`.

    A quotient of zeros is not-a-number; where no token is real but padding was dispatched, the
    fraction left behind is minus infinity.
    Errors: RejectedError LOSS-13 on non-finite values or shapes that do not match.
    Spec: LOSS-01..LOSS-11. Source: moe_layers.py::MoeLayer._mask_and_dispatch_to_experts.
    """
    sizes: dict[str, int] = {}
    check_array("logits", logits, "G T E", sizes, "LOSS-13")
    check_array("probabilities", probabilities, "G T E", sizes, "LOSS-13")
    if padding_mask is not None:
        check_array("padding_mask", padding_mask, "G T", sizes, "LOSS-13", kind="b")
    check_record(decision, sizes, "LOSS-13")
    real = probabilities.dtype.type
    groups, tokens, num_experts = probabilities.shape
    counted = groups * tokens if padding_mask is None else int(padding_mask.sum())
    if isinstance(decision, ExpertsChoice):
        auxiliary_loss, usage = real(0), real(1)  # full experts by construction
        dispatched = decision.token_index.size
        somewhere = sum(len(np.unique(group)) for group in decision.token_index)
        weight = decision.gate.sum()
    else:
        auxiliary_loss = balance(probabilities, decision.expert_index, padding_mask=padding_mask)
        dispatched = int(decision.kept.sum())
        somewhere = int(decision.kept.any(axis=-1).sum())
        weight = decision.gate[decision.kept].sum()
        usage = real(dispatched / (num_experts * decision.capacity * groups))
        if scatter and padding_mask is not None:
            # Upstream counts real tokens after repeating each K times: K times too many.
            counted *= decision.expert_index.shape[-1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return {
            "auxiliary_loss": auxiliary_loss,
            "router_z_loss": router_z_loss(logits, padding_mask=padding_mask),
            "fraction_tokens_left_behind": real(1) - real(somewhere) / real(counted),
            "router_confidence": weight / real(dispatched),
            "expert_usage": usage,
        }
