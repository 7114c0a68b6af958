"""SPEC.md "Routing audits": tokens and experts, neighbours, load, margins, and pairs of checkpoints."""

from __future__ import annotations

import math

import numpy as np
from jaxtyping import Float32, Float64, Int64, Integer, UInt8
from numpy import ndarray

from openmoe_reference.arguments import check_array, check_choice, check_integer, check_positive
from openmoe_reference.audit import check_choices, check_counts, choice_shares, tokens_of
from openmoe_spec.errors import RejectedError

RANKINGS = ("count", "precision", "lift")
"""Orders of an expert's tokens: how many, how large a part of the token's choices, how much above its load."""
NEAR_TIE = 2.0**-7
"""The step of bfloat16 at 1: closer logits may be in another order in another arithmetic."""


# ---- tokens and experts ------------------------------------------------------------------------


def top_tokens(
    counts: Integer[ndarray, "V E K"], *, by: str, number: int = 10, least: int = 10
) -> Int64[ndarray, "E number"]:
    """Return the ids that an expert is chosen by most, best first; -1 where there are no more.

    by     `count`: choices of the expert; `precision`: their part of the id's choices, of ids with `least`
           tokens or more; `lift`: how often that part is the expert's own load, drawn towards 1 as if the
           id had `least` more tokens that choose as the whole text does
    Among equals the lower id. An id that never chose an expert is none of its tokens.
    Errors: RejectedError AUDIT-27. Spec: AUDIT-08. Source: the paper, tables 9 and 15; OLMoE, section 5.3.
    """
    check_choice("by", by, RANKINGS, "AUDIT-27")
    number = check_integer("number", number, "AUDIT-27", least=1)
    least = check_integer("least", least, "AUDIT-27", least=0)
    check_array("counts", counts, "V E K", {}, "AUDIT-27", kind="i")
    tokens = tokens_of(counts)[:, None].astype(np.float64)
    chosen = counts.sum(axis=-1, dtype=np.int64)  # [V, E]
    k, score = counts.shape[-1], chosen.astype(np.float64)
    if by == "precision":
        score = np.where(tokens >= least, chosen / np.maximum(k * tokens, 1), 0)
    elif by == "lift":
        # N K / load times as much, so that equals are equal: quotients of whole numbers.
        score = (chosen * tokens.sum() + least * chosen.sum(axis=0)) / np.maximum(tokens + least, 1)
    score = np.where(chosen > 0, score, -np.inf).T  # [E, V]
    order = np.argsort(-score, axis=1, kind="stable")[:, :number]
    there = np.isfinite(np.take_along_axis(score, order, axis=1)) & (
        np.take_along_axis(score, order, axis=1) > 0
    )
    found = np.full((score.shape[0], number), -1, np.int64)
    found[:, : order.shape[1]] = np.where(there, order, -1)
    return found


def vocabulary_specialisation(
    counts: Integer[ndarray, "keys E K"], *, least: int = 0, weighted: bool = False
) -> Float64[ndarray, " E"]:
    """Return by expert how often the keys that prefer it choose it: mean part of a key's tokens.

    least     keys with fewer tokens, and those with none, are left out
    weighted  a key counts as often as it occurs; else once
    Not-a-number for an expert that no key prefers. A key prefers the lower index among equals. A key that
    occurs once has 1 by itself: without a filter, routing by chance looks specialised.
    Errors: RejectedError AUDIT-27. Spec: AUDIT-11. Source: OLMoE, section 5.4 (`least` 0, not weighted).
    """
    least = check_integer("least", least, "AUDIT-27", least=0)
    check_array("counts", counts, "keys E K", {}, "AUDIT-27", kind="i")
    tokens = tokens_of(counts)
    chosen = counts.sum(axis=-1, dtype=np.int64)
    kept = (tokens > 0) & (tokens >= least)
    preferred = chosen.argmax(axis=1)
    part = chosen.max(axis=1) / np.maximum(tokens, 1)
    weight = np.where(kept, tokens if weighted else 1, 0).astype(np.float64)
    experts = counts.shape[1]
    total = np.bincount(preferred, weight * part, experts)
    weights = np.bincount(preferred, weight, experts)
    return np.where(weights > 0, total / np.where(weights > 0, weights, 1), np.nan)


# ---- choices side by side ----------------------------------------------------------------------


def coactivation(
    expert_index: Integer[ndarray, "N K"], *, num_experts: int
) -> Int64[ndarray, "E E"]:
    """Return how many tokens chose both of two experts, whatever the ranks; 0 on the diagonal.

    Errors: RejectedError AUDIT-27. Spec: AUDIT-10. Source: OLMoE, section 5.2, over all pairs.
    """
    num_experts = check_integer("num_experts", num_experts, "AUDIT-27", least=1)
    check_choices(expert_index, num_experts, {})
    chosen = np.zeros((len(expert_index), num_experts), np.int64)
    np.put_along_axis(chosen, expert_index.astype(np.int64), 1, axis=1)
    together = chosen.T @ chosen
    np.fill_diagonal(together, 0)
    return together


def coactivation_shares(
    counts: Integer[ndarray, "E E"], tokens: Integer[ndarray, " E"]
) -> Float64[ndarray, "E E"]:
    """Return of each expert's tokens the part that chose another expert too; rows make K - 1.

    Not-a-number for an expert without tokens. Errors: RejectedError AUDIT-27. Spec: AUDIT-10.
    """
    sizes: dict[str, int] = {}
    check_array("counts", counts, "E E", sizes, "AUDIT-27", kind="i")
    check_array("tokens", tokens, "E", sizes, "AUDIT-27", kind="i")
    if (counts < 0).any() or (counts > tokens[:, None]).any():
        raise RejectedError("counts", "AUDIT-27", "must be of each expert's tokens")
    return np.where(tokens[:, None] > 0, counts / np.maximum(tokens[:, None], 1), np.nan)


def repetition(
    expert_index: Integer[ndarray, "N K"], row: Integer[ndarray, " N"]
) -> Int64[ndarray, " 3"]:
    """Return neighbours, those with the same first choice, and those that have an expert in common.

    row  tokens stand in order, and are neighbours where the row is the same
    Errors: RejectedError AUDIT-27. Spec: AUDIT-12. Source: Mixtral of Experts, section 5, table 5.
    """
    sizes: dict[str, int] = {}
    check_choices(expert_index, np.iinfo(np.int32).max, sizes)
    check_array("row", row, "N", sizes, "AUDIT-27", kind="i")
    before, after = expert_index[:-1], expert_index[1:]
    neighbours = row[:-1] == row[1:]
    same = before[:, 0] == after[:, 0]
    meeting = (before[:, :, None] == after[:, None, :]).any(axis=(1, 2))
    return np.array(
        [neighbours.sum(), (neighbours & same).sum(), (neighbours & meeting).sum()], np.int64
    )


def repetition_by_chance(k: int, num_experts: int) -> tuple[float, float]:
    """Return how often neighbours with independent, even choices share the first, and have one in common.

    Errors: RejectedError AUDIT-27. Spec: AUDIT-12.
    """
    num_experts = check_integer("num_experts", num_experts, "AUDIT-27", least=1)
    k = check_integer("k", k, "AUDIT-27", least=1, most=num_experts)
    apart = math.comb(num_experts - k, k) / math.comb(num_experts, k)
    return 1 / num_experts, 1 - apart


# ---- load --------------------------------------------------------------------------------------


def load_statistics(loads: Integer[ndarray, " E"]) -> dict[str, float]:
    """Return how evenly choices are spread over the experts.

    cv                 standard deviation over mean
    max_over_mean      1 where all are alike, E where one expert has all; min_over_mean likewise
    entropy            over that of even loads: 1 where all are alike; 1 for a single expert
    effective_experts  the number of alike experts that have this entropy
    gini               0 where all are alike
    dead_fraction      experts without a choice
    Errors: RejectedError AUDIT-27, also without a choice. Spec: AUDIT-13. Source: this specification.
    """
    check_array("loads", loads, "E", {}, "AUDIT-27", kind="i")
    if (loads < 0).any() or not loads.sum():
        raise RejectedError("loads", "AUDIT-27", "must be counts, of which one is above 0")
    experts = len(loads)
    shares = loads / loads.sum()
    there = shares[shares > 0]
    nats = float(-(there * np.log(there)).sum())
    ascending = np.sort(shares)
    return {
        "cv": float(shares.std() * experts),
        "max_over_mean": float(shares.max() * experts),
        "min_over_mean": float(shares.min() * experts),
        "entropy": nats / math.log(experts) if experts > 1 else 1.0,
        "effective_experts": math.exp(nats),
        "gini": float(((2 * np.arange(1, experts + 1) - experts - 1) * ascending).sum() / experts),
        "dead_fraction": float((loads == 0).mean()),
    }


# ---- margins -----------------------------------------------------------------------------------


def _thresholds() -> Float32[ndarray, " 255"]:
    """Return the margins at which codes begin: eight to an octave, from 2^-24 on."""
    eighths = [np.float64(2.0) ** (i / 8) for i in range(8)]
    return np.array([eighths[c % 8] * 2.0 ** (c // 8 - 24) for c in range(255)], np.float32)


MARGIN_THRESHOLDS = _thresholds()


def margin_codes(margins: Float32[ndarray, "*tokens"]) -> UInt8[ndarray, "*tokens"]:
    """Return the code of each margin between two logits: how many of the thresholds it reaches.

    Code 0 is below 2^-24, code c from 2^((c - 1) / 8 - 24) on, 255 from 2^(254 / 8 - 24) on.
    Errors: RejectedError AUDIT-27 on margins below 0, infinite ones, or none. Spec: AUDIT-14.
    """
    if not isinstance(margins, ndarray) or margins.dtype != np.float32:
        raise RejectedError("margins", "AUDIT-27", "must be a float32 array")
    if not np.isfinite(margins).all() or (margins < 0).any():
        raise RejectedError("margins", "AUDIT-27", "must be finite and not below 0")
    return np.searchsorted(MARGIN_THRESHOLDS, margins, side="right").astype(np.uint8)


def near_tie_share(histogram: Integer[ndarray, " 256"], *, tolerance: float = NEAR_TIE) -> float:
    """Return the part of margins below a tolerance, which must be one of the thresholds.

    Errors: RejectedError AUDIT-27. Spec: AUDIT-14. Source: this specification.
    """
    tolerance = check_positive("tolerance", tolerance, "AUDIT-27")
    check_array("histogram", histogram, "256", {"256": 256}, "AUDIT-27", kind="i")
    at = np.flatnonzero(MARGIN_THRESHOLDS.astype(np.float64) == tolerance)
    if not len(at):
        raise RejectedError("tolerance", "AUDIT-27", "must be one of the thresholds of the codes")
    if (histogram < 0).any() or not histogram.sum():
        raise RejectedError("histogram", "AUDIT-27", "must be counts, of which one is above 0")
    return float(histogram[: at[0] + 1].sum() / histogram.sum())


# ---- pairs of checkpoints ----------------------------------------------------------------------


def saturation(first: Integer[ndarray, "N K"], second: Integer[ndarray, "N K"]) -> float:
    """Return the mean part of a token's experts that two checkpoints both choose, on the same tokens.

    Of one column: how often the first choice is the same. By chance it is K / E.
    Errors: RejectedError AUDIT-27. Spec: AUDIT-09. Source: OLMoE, section 5.1.
    """
    sizes: dict[str, int] = {}
    for name, array in (("first", first), ("second", second)):
        check_choices(array, np.iinfo(np.int32).max, sizes, name)
    shared = (first[:, :, None] == second[:, None, :]).sum()
    return float(shared / first.size)


def table_divergence(first: Integer[ndarray, "V E K"], second: Integer[ndarray, "V E K"]) -> float:
    """Return how far two checkpoints' shares by token id are apart: Jensen-Shannon divergence in bits.

    Mean over the ids that both have, each weighing its tokens of both; not-a-number where there is none.
    Errors: RejectedError AUDIT-27. Spec: AUDIT-15. Source: Lin 1991.
    """
    sizes: dict[str, int] = {}
    for name, array in (("first", first), ("second", second)):
        check_array(name, array, "V E K", sizes, "AUDIT-27", kind="i")
        check_counts(name, array)
    weight = (tokens_of(first) + tokens_of(second)).astype(np.float64)
    both = (tokens_of(first) > 0) & (tokens_of(second) > 0)
    if not both.any():
        return math.nan
    p, q = choice_shares(first[both]), choice_shares(second[both])
    middle = (p + q) / 2
    apart = _bits(middle) - (_bits(p) + _bits(q)) / 2
    return float((weight[both] * apart).sum() / weight[both].sum())


def _bits(shares: Float64[ndarray, "V E"]) -> Float64[ndarray, " V"]:
    logs = np.log2(np.where(shares > 0, shares, 1))
    return -(shares * logs).sum(axis=-1)


LARGEST_RELABELLING = 16


def overlap(
    first: Integer[ndarray, "V E"], second: Integer[ndarray, "V E"]
) -> Int64[ndarray, "E E"]:
    """Return how many choices of the same ids two experts have in common: the sum of the smaller counts.

    Errors: RejectedError AUDIT-27. Spec: AUDIT-15. Source: this specification.
    """
    sizes: dict[str, int] = {}
    for name, array in (("first", first), ("second", second)):
        check_array(name, array, "V E", sizes, "AUDIT-27", kind="i")
        if (array < 0).any():
            raise RejectedError(name, "AUDIT-27", "must not hold numbers below 0")
    smaller = (np.minimum(one[:, None], second) for one in first.T)
    return np.stack([one.sum(axis=0, dtype=np.int64) for one in smaller])


def relabelling(
    first: Integer[ndarray, "V E"], second: Integer[ndarray, "V E"]
) -> Int64[ndarray, " E"]:
    """Return the expert of `second` for each expert of `first`, so that the overlaps add up to most.

    Where keeping the numbers does as well, they are kept. For up to 16 experts, by trying all.
    Errors: RejectedError AUDIT-27. Spec: AUDIT-15. Source: this specification.
    """
    shared = overlap(first, second)
    experts = len(shared)
    check_integer("first", experts, "AUDIT-27", least=1, most=LARGEST_RELABELLING)
    # Of each set of experts of `second`, the best way to give them to the first experts of `first`.
    best, last = np.full(1 << experts, -1, np.int64), np.zeros(1 << experts, np.int64)
    best[0] = 0
    for taken in range(1 << experts):
        row = int(taken).bit_count()
        for column in range(experts):
            with_it = taken | 1 << column
            if with_it != taken and best[taken] + shared[row, column] > best[with_it]:
                best[with_it], last[with_it] = best[taken] + shared[row, column], column
    if np.trace(shared) == best[-1]:
        return np.arange(experts)
    found, taken = np.zeros(experts, np.int64), (1 << experts) - 1
    for row in reversed(range(experts)):
        found[row] = last[taken]
        taken &= ~(1 << int(last[taken]))
    return found
