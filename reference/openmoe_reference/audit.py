"""SPEC.md "Routing audits": choices counted by a key, their shares, and how far these are spread.

A key is whatever tokens are told apart by: their id, their position, their slice of the text. Everything
follows from whole numbers of choices [keys, E, K], which add up over parts of a text. Shapes: E experts,
K choices, N tokens.
"""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Bool, Float, Float64, Int64, Integer
from numpy import ndarray

from openmoe_reference.arguments import check_array, check_integer, check_within
from openmoe_spec.errors import RejectedError

NUM_TOKENS_FILTER = 128
"""Tokens that an id must have more of to count in the mean spread."""


def counted_tokens(ids: Integer[ndarray, "B S"]) -> Bool[ndarray, "B S"]:
    """Return which tokens of rows are counted: all up to a row's last id that is not padding.

    The start token counts, though its id is padding's; a row of nothing but padding has none.
    Errors: RejectedError AUDIT-27. Spec: AUDIT-01. Source: this specification.
    """
    check_array("ids", ids, "B S", {}, "AUDIT-27", kind="i")
    check_within("ids", ids, "AUDIT-27", 0, math.inf)
    behind = np.cumsum((ids != 0)[:, ::-1], axis=1)[
        :, ::-1
    ]  # ids that are not padding, from here on
    return behind > 0


def check_choices(
    expert_index: object, num_experts: int, sizes: dict[str, int], name: str = "expert_index"
) -> ndarray:
    """Return choices that are of experts, each expert once a token, or refuse them."""
    array = check_array(name, expert_index, "N K", sizes, "AUDIT-27", kind="i")
    # A recorder's sentinel, as 255 or -1, is an expert that there is not.
    check_within(name, array, "AUDIT-27", 0, num_experts - 1)
    ordered = np.sort(array, axis=-1)
    if (ordered[..., 1:] == ordered[..., :-1]).any():
        raise RejectedError(name, "AUDIT-27", "names an expert twice for one token")
    return array


def count_choices(
    keys: Integer[ndarray, " N"],
    expert_index: Integer[ndarray, "N K"],
    *,
    num_keys: int,
    num_experts: int,
) -> Int64[ndarray, "keys E K"]:
    """Return how often each expert was each choice of the tokens of a key, dropped choices too.

    keys  in 0 .. num_keys - 1, or -1 for a token that is not counted
    Errors: RejectedError AUDIT-27 on other keys, on an expert that there is not, on one named twice.
    Spec: AUDIT-02, AUDIT-21. Source: the paper, section 4; what it counts is this specification's choice.
    """
    num_keys = check_integer("num_keys", num_keys, "AUDIT-27", least=1)
    num_experts = check_integer("num_experts", num_experts, "AUDIT-27", least=1)
    sizes: dict[str, int] = {}
    check_array("keys", keys, "N", sizes, "AUDIT-27", kind="i")
    check_within("keys", keys, "AUDIT-27", -1, num_keys - 1)
    check_choices(expert_index, num_experts, sizes)
    counts = np.zeros((num_keys, num_experts, sizes["K"]), np.int64)
    for key, experts in zip(keys.tolist(), expert_index.tolist(), strict=True):
        if key >= 0:
            counts[key, experts, range(sizes["K"])] += 1
    return counts


def check_counts(name: str, counts: object) -> ndarray:
    """Return whole numbers [..., E, K] of which every rank adds up to the same tokens, or refuse them."""
    if not isinstance(counts, ndarray) or counts.ndim < 2 or 0 in counts.shape[-2:]:
        raise RejectedError(name, "AUDIT-27", "must be an array of counts [..., E, K]")
    if counts.dtype.kind not in "iu" or (counts < 0).any():
        raise RejectedError(name, "AUDIT-27", "must hold whole numbers, none below 0")
    tokens = counts.sum(axis=-2, dtype=np.int64)  # [..., K]
    if (tokens != tokens[..., :1]).any():
        raise RejectedError(name, "AUDIT-27", "must count every choice of the same tokens")
    if (counts.sum(axis=-1, dtype=np.int64) > tokens[..., :1]).any():
        raise RejectedError(name, "AUDIT-27", "count an expert twice for one token")
    return counts


def tokens_of(counts: Integer[ndarray, "*keys E K"]) -> Int64[ndarray, "*keys"]:
    """Return the tokens behind counts. Errors: RejectedError AUDIT-27. Spec: AUDIT-02."""
    return np.asarray(check_counts("counts", counts)[..., 0].sum(axis=-1, dtype=np.int64))


def choice_shares(counts: Integer[ndarray, "*keys E K"]) -> Float64[ndarray, "*keys E"]:
    """Return the share of a key's choices that each expert has; not-a-number where it has no token.

    Errors: RejectedError AUDIT-27. Spec: AUDIT-03. Source: the paper, figures 5 to 11.
    """
    tokens = tokens_of(counts)[..., None]
    chosen = counts.sum(axis=-1, dtype=np.int64)
    return np.where(tokens > 0, chosen / np.maximum(tokens * counts.shape[-1], 1), np.nan)


def largest_spread(k: int, num_experts: int) -> float:
    """Return the spread of tokens that all take the same K experts: no other is larger.

    Errors: RejectedError AUDIT-27. Spec: AUDIT-04. Source: the paper, figures 13 and 14.
    """
    num_experts = check_integer("num_experts", num_experts, "AUDIT-27", least=1)
    k = check_integer("k", k, "AUDIT-27", least=1, most=num_experts)
    return math.sqrt(max(0.0, 1 / (k * num_experts) - 1 / num_experts**2))


def share_spread(counts: Integer[ndarray, "*keys E K"]) -> Float64[ndarray, "*keys"]:
    """Return the standard deviation of a key's shares over the experts, around 1 / E.

    Errors: RejectedError AUDIT-27. Spec: AUDIT-04. Source: the paper, figures 13 and 14.
    """
    return np.asarray(np.sqrt(_squares(choice_shares(counts), None).mean(axis=-1)))


def _squares(
    shares: Float64[ndarray, "*keys E"], around: Float[ndarray, " E"] | None
) -> Float64[ndarray, "*keys E"]:
    centre = 1 / shares.shape[-1] if around is None else around
    return (shares - centre) ** 2


def mean_spread(counts: Integer[ndarray, "keys E K"], *, least: int = NUM_TOKENS_FILTER) -> float:
    """Return the mean spread of the keys that have more than `least` tokens, each counting once.

    Not-a-number where no key has. Errors: RejectedError AUDIT-27.
    Spec: AUDIT-05. Source: the paper, figure 14 ("more than 128 tokens").
    """
    least = check_integer("least", least, "AUDIT-27", least=0)
    kept = tokens_of(counts) > least  # strictly more
    return float(share_spread(counts)[kept].mean()) if kept.any() else math.nan


def _inclusion(k: int, num_experts: int, shares: Float[ndarray, " E"] | None) -> ndarray:
    """Return how likely each expert is among a token's choices."""
    if shares is None:
        return np.full(num_experts, k / num_experts)
    check_array("shares", shares, "E", {"E": num_experts}, "AUDIT-27")
    if (shares < 0).any() or not math.isclose(shares.sum(), 1, abs_tol=1e-6):
        raise RejectedError("shares", "AUDIT-27", "must be shares of the experts, which make 1")
    if (shares > (1 + 1e-6) / k).any():
        raise RejectedError(
            "shares", "AUDIT-27", f"must be at most 1 / {k}: a token takes {k} experts"
        )
    return np.minimum(k * shares.astype(np.float64), 1)


def spread_floor(
    tokens: Integer[ndarray, "*keys"],
    *,
    k: int,
    num_experts: int,
    shares: Float[ndarray, " E"] | None = None,
) -> Float64[ndarray, "*keys"]:
    """Return the spread that chance alone gives n tokens whose routing does not depend on the key.

    shares  of the whole text, which tokens are then drawn by; None: all experts alike
    Not-a-number for no token. Errors: RejectedError AUDIT-27. Spec: AUDIT-06. Source: this specification.
    """
    num_experts = check_integer("num_experts", num_experts, "AUDIT-27", least=1)
    k = check_integer("k", k, "AUDIT-27", least=1, most=num_experts)
    if not isinstance(tokens, ndarray) or tokens.dtype.kind not in "iu" or (tokens < 0).any():
        raise RejectedError("tokens", "AUDIT-27", "must be an array of whole numbers, none below 0")
    p = _inclusion(k, num_experts, shares)
    one = (p * (1 - p)).sum() / (num_experts * k**2)
    return np.asarray(np.sqrt(np.where(tokens > 0, one / np.maximum(tokens, 1), np.nan)))


def debiased_spread(
    counts: Integer[ndarray, "*keys E K"], *, shares: Float[ndarray, " E"] | None = None
) -> Float64[ndarray, "*keys"]:
    """Return the spread without what a finite number of tokens adds to it; 0 where that is all.

    shares  what the spread is around; None: 1 / E
    What is taken off is the variance of the key's own shares, so the square is unbiased for tokens drawn
    one by one (before it is cut at 0). Not-a-number below two tokens.
    Errors: RejectedError AUDIT-27. Spec: AUDIT-07. Source: this specification.
    """
    found = choice_shares(counts)
    experts, k = counts.shape[-2:]
    tokens = tokens_of(counts)
    around = None if shares is None else _inclusion(k, experts, shares) / k
    p = k * found  # how often an expert is among a token's choices
    noise = (p * (1 - p)).sum(axis=-1) / (experts * k**2 * np.maximum(tokens - 1, 1))
    square = _squares(found, around).mean(axis=-1) - noise
    return np.where(tokens > 1, np.sqrt(np.maximum(square, 0)), np.nan)


def specialisation(
    counts: Integer[ndarray, "*keys E K"], *, shares: Float[ndarray, " E"] | None = None
) -> Float64[ndarray, "*keys"]:
    """Return the debiased spread as a part of the largest there is: 0 none, 1 a fixed set of experts.

    Errors: RejectedError AUDIT-27, also where every expert is chosen by every token.
    Spec: AUDIT-07. Source: this specification.
    """
    experts, k = check_counts("counts", counts).shape[-2:]
    if k == experts:
        raise RejectedError(
            "counts", "AUDIT-27", f"all {experts} experts are chosen by every token"
        )
    return np.asarray(debiased_spread(counts, shares=shares) / largest_spread(k, experts))
