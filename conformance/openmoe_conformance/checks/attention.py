"""Checks of SPEC.md "Attention": mixing and gradients."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance import strategies
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rotary import turned
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.strategies import normal
from openmoe_conformance.subject import Subject
from openmoe_reference import attention, masks, part_gradients

ATTENTION_BOUND = {"relative": 1e-5, "absolute": 1e-6}  # ATTN-11
GRADIENT_BOUND = {"relative": 1e-5, "of_largest": 1e-5}  # ATTN-13
BFLOAT16_BOUND = {"relative": 2e-2, "absolute": 2e-2}  # ATTN-10


# ---- mixing, seen through weights --------------------------------------------------------------

LENGTH = 8


def _weights(subject: Subject, queries: ndarray, keys: ndarray, mask: ndarray | None) -> ndarray:
    """Return the weights [L, L] of an attention whose queries and keys [L, N] are given.

    Inputs are one-hot, so kernels are looked up; values and output are identities.
    """
    one_hot = np.eye(LENGTH, dtype=np.float32)
    kernels = {"query": queries, "key": keys, "value": one_hot, "out": one_hot}
    visible = None if mask is None else mask[None]
    shape = (1, LENGTH, LENGTH)
    return subject.array("attention", shape, one_hot[None], kernels, visible, num_heads=1)[0]


def _softmax(logits: ndarray) -> ndarray:
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


@st.composite
def _logits(draw: st.DrawFn) -> Case:
    """Draw queries and keys [L, N] and a causal mask some of whose rows see nothing."""
    seed = draw(st.integers(0, 2**16))
    blind = draw(strategies.small_integers((LENGTH,), 0, 1)).astype(bool)
    return {
        "queries": normal(seed, LENGTH, LENGTH),
        "keys": normal(seed + 1, LENGTH, LENGTH),
        "mask": np.tri(LENGTH, dtype=bool) & ~blind[:, None],
    }


def _true_logits(case: Case) -> ndarray:
    places = np.arange(LENGTH)
    queries, keys = (turned(case[name][:, None], places)[:, 0] for name in ("queries", "keys"))
    return queries @ keys.T


@check("ATTN-07", "attention", cases=_logits())
def logits_are_not_divided(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Without a mask weights are the softmax of q . k over the keys."""
    got = _weights(subject, case["queries"], case["keys"], None)
    close("weights", got, _softmax(_true_logits(case)), evidence, **ATTENTION_BOUND)


@check("ATTN-08", "attention", cases=_logits())
def hidden_keys_weigh_nothing(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A query that sees some keys gives the others exactly 0."""
    mask = case["mask"]
    wanted = _softmax(np.where(mask, _true_logits(case), -1e10))
    got = _weights(subject, case["queries"], case["keys"], mask)
    sees = mask.any(axis=-1)
    same("weights of hidden keys", got[sees][~mask[sees]], np.zeros((~mask[sees]).sum()))
    close("weights", got[sees], wanted[sees], evidence, **ATTENTION_BOUND)


def _extreme_logits(_: Profile) -> Iterator[Case]:
    for seen, hidden in ((-2e10, 0.0), (-0.5e10, 0.0), (0.0, 2e10), (0.0, 0.5e10)):
        yield {"seen": seen, "hidden": hidden}


@check("ATTN-08", "attention", cases=_extreme_logits)
def a_finite_number_is_added(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A hidden key is attended to exactly when its logit is more than 1e10 above those seen."""
    slow = LENGTH // 2 - 1  # the pair that 8 positions hardly turn
    mask = np.tile(np.arange(LENGTH) % 2 == 0, (LENGTH, 1))
    queries, keys = np.zeros((2, LENGTH, LENGTH), np.float32)
    queries[:, slow] = 1e5
    keys[:, slow] = np.where(mask[0], case["seen"] / 1e5, case["hidden"] / 1e5)
    got = _weights(subject, queries, keys, mask)
    wins = case["hidden"] - 1e10 > case["seen"]
    wanted = np.full(LENGTH, float(wins))
    close("weight of hidden keys", (got * ~mask).sum(-1), wanted, evidence, **ATTENTION_BOUND)
    evidence.examples += 1


@check("ATTN-09", "attention", cases=_logits())
def blind_queries_attend_to_all_keys(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A query that sees no key has weight 1 / L for every key, later ones too."""
    mask = case["mask"] & (np.arange(LENGTH) != 2)[:, None]
    got = _weights(subject, case["queries"], case["keys"], mask)
    blind = got[~mask.any(axis=-1)]
    close("weights", blind, np.full(blind.shape, 1 / LENGTH), evidence, **ATTENTION_BOUND)


# ---- bfloat16 ----------------------------------------------------------------------------------


@st.composite
def _large_logits(draw: st.DrawFn) -> Case:
    """Draw 128 + b a key, b a number of sixteenths below 4 that is clear of any half."""
    clear = [n for n in range(64) if n % 16 not in (7, 8, 9)]
    return {"sixteenths": np.array([draw(st.sampled_from(clear)) for _ in range(LENGTH)])}


@check("ATTN-10", "attention(dtype)", cases=_large_logits())
def logits_are_rounded(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Logits between 128 and 132 become whole numbers before the softmax."""
    offset = case["sixteenths"] / 16
    one_hot = np.eye(LENGTH, 32, dtype=np.float32)
    kernels = {name: np.zeros((LENGTH, 32), np.float32) for name in ("query", "key")}
    # In the last two pairs of 32: so slow that 8 positions do not turn them.
    kernels["query"][:, [14, 15]] = [16, 1]
    kernels["key"][:, 14], kernels["key"][:, 15] = 8, offset
    kernels |= {"value": 8 * one_hot, "out": one_hot.T}
    mask = np.tri(LENGTH, dtype=bool)
    shape = (1, LENGTH, LENGTH)
    inputs = one_hot[None, :, :LENGTH]
    got = subject.array(
        "attention", shape, inputs, kernels, mask[None], num_heads=1, dtype="bfloat16"
    )
    wanted = 8 * _softmax(np.where(mask, np.round(offset), -np.inf))
    close("attention(bfloat16)", got[0], wanted, evidence, **BFLOAT16_BOUND)


def _long_rows(_: Profile) -> Iterator[Case]:
    yield {"length": 320}


@check("ATTN-10", "attention(dtype)", cases=_long_rows)
def sums_do_not_stand_still(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A softmax over more than 256 equal keys adds up to 1, and so does its product with ones."""
    inputs = np.ones((1, case["length"], 2), np.float32)
    half, nothing = np.full((2, 2), 0.5, np.float32), np.zeros((2, 2), np.float32)
    kernels = {"query": nothing, "key": nothing, "value": half, "out": half}
    got = subject.array(
        "attention", inputs.shape, inputs, kernels, None, num_heads=1, dtype="bfloat16"
    )
    close("attention(bfloat16)", got, inputs, evidence, **BFLOAT16_BOUND)
    evidence.examples += 1


# ---- the whole ---------------------------------------------------------------------------------


@st.composite
def _attentions(draw: st.DrawFn) -> Case:
    """Draw inputs, kernels with H N = D and not, and the mask of targets with padding anywhere."""
    rows, length, width, heads, head_dim = draw(
        st.sampled_from(((2, 5, 6, 2, 4), (1, 7, 8, 2, 4), (1, 6, 5, 3, 2)))
    )
    targets = draw(strategies.small_integers((rows, length), 0, 2)).astype(np.int32)
    seed, inner = draw(st.integers(0, 2**16)), heads * head_dim
    root = np.float32(1 / np.sqrt(width))
    return {
        "inputs": normal(seed, rows, length, width),
        "query": root * normal(seed + 1, width, inner) / 2,
        "key": root * normal(seed + 2, width, inner),
        "value": root * normal(seed + 3, width, inner),
        "out": root * normal(seed + 4, inner, width) / 2,
        "mask": masks.decoder_mask(targets),
        "cotangent": normal(seed + 5, rows, length, width),
        "num_heads": heads,
    }


def _kernels(case: Case) -> dict[str, ndarray]:
    return {name: case[name] for name in attention.KERNELS}


@check("ATTN-11", "attention", cases=_attentions())
def heads_are_rotated_and_mixed(subject: Subject, case: Case, evidence: Evidence) -> None:
    """First head first: queries and keys are rotated, values are not, and out joins them."""
    for mask in (case["mask"], None):
        wanted, _, _ = attention.attention(
            case["inputs"],
            _kernels(case),
            None if mask is None else masks.finite_bias((mask,)),
            num_heads=case["num_heads"],
            dtype="float64",
        )
        got = subject.array(
            "attention",
            wanted.shape,
            *(case["inputs"], _kernels(case), mask),
            num_heads=case["num_heads"],
        )
        close("attention", got, wanted, evidence, **ATTENTION_BOUND)


@check("ATTN-13", "part_gradients(mask)", cases=_attentions())
def attention_is_differentiated(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Through softmax and rotation, and where a query sees no key too."""
    wanted = part_gradients.attention_gradients(
        case["inputs"],
        _kernels(case),
        masks.finite_bias((case["mask"],)),
        case["cotangent"],
        num_heads=case["num_heads"],
    )
    got = subject.named(
        "part_gradients",
        {name: value.shape for name, value in wanted.items()},
        *("attention", case["inputs"], _kernels(case), case["cotangent"]),
        mask=case["mask"],
        num_heads=case["num_heads"],
    )
    for name, value in wanted.items():
        close(f"gradient of {name}", got[name], value, evidence, **GRADIENT_BOUND)
