"""Checks of SPEC.md "Attention": who may see whom, and at which position.

Whole models have one expert and room for every token, so that nothing hangs on a decision.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance import answers, model_cases, strategies
from openmoe_conformance.checks import Case, check
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import model
from openmoe_spec.config import Configuration

LOGIT_BOUND = {"relative": 2e-5, "absolute": 2e-5}  # MODEL-01
BFLOAT16_BOUND = {"relative": 2e-2, "absolute": 2e-2}  # ATTN-10


# ---- the mask alone ----------------------------------------------------------------------------


@st.composite
def _rows(draw: st.DrawFn) -> Case:
    """Draw targets with padding anywhere, prefixes, and segments that stand together."""
    shape = (2, 7)
    begins = draw(strategies.small_integers(shape, 0, 1))
    names = np.array(draw(st.permutations(range(1, shape[1] + 2))))
    return {
        "targets": draw(strategies.small_integers(shape, 0, 2)).astype(np.int32),
        "prefix": draw(strategies.small_integers(shape, 0, 1)).astype(np.int32),
        "segments": names[np.cumsum(begins, axis=1)].astype(np.int32),
    }


def _compare_mask(
    subject: Subject,
    targets: ndarray,
    segments: ndarray | None = None,
    prefix: ndarray | None = None,
) -> None:
    rows, length = targets.shape
    wanted = np.zeros((rows, length, length), bool)
    for b, q, k in np.ndindex(*wanted.shape):
        seen = k <= q or (prefix is not None and prefix[b, q] > 0 and prefix[b, k] > 0)
        together = segments is None or segments[b, q] == segments[b, k]
        wanted[b, q, k] = seen and together and targets[b, q] > 0 and targets[b, k] > 0
    answer = subject.call("decoder_mask", targets, segment_ids=segments, causal_attention=prefix)
    same("decoder_mask", answers.array("decoder_mask", answer), wanted)


@check("ATTN-01", "decoder_mask", cases=_rows())
def queries_see_earlier_real_keys(subject: Subject, case: Case, _: Evidence) -> None:
    """A query sees itself and what is before it, where both targets are above 0."""
    _compare_mask(subject, case["targets"])


@check("ATTN-02", "decoder_mask(segment_ids)", cases=_rows())
def queries_see_their_own_segment(subject: Subject, case: Case, _: Evidence) -> None:
    """In a packed row the segment ids of both are the same, whatever their order."""
    _compare_mask(subject, case["targets"], case["segments"])


@check("ATTN-03", "decoder_mask(causal_attention)", "decoder_mask(segment_ids)", cases=_rows())
def prefixes_see_one_another(subject: Subject, case: Case, _: Evidence) -> None:
    """Both of a prefix see one another when it is asked for, never padding or another segment."""
    _compare_mask(subject, case["targets"], prefix=case["prefix"])
    _compare_mask(subject, case["targets"], case["segments"], case["prefix"])


# ---- in a whole model --------------------------------------------------------------------------


def _models(*kinds: str) -> Callable[[Profile], Iterator[Case]]:
    sizes = {"blocks": 1, "experts": 1, "k": 1, "length": 12, "training": False}

    def cases(profile: Profile) -> Iterator[Case]:
        for kind in kinds:
            for seed in range(profile.models):
                yield model_cases.fixed(kind=kind, seed=seed, **sizes)

    return cases


def _compare_logits(
    subject: Subject,
    fields: dict[str, Any],
    weights: dict[str, ndarray],
    batch: dict[str, ndarray],
    evidence: Evidence,
) -> None:
    wanted = model.forward(
        weights, batch, Configuration(**fields), call=model.Call(dtype="float64")
    ).logits
    got = subject.forward(weights, batch, configuration=fields).logits
    close("logits", got, wanted, evidence, **LOGIT_BOUND)
    evidence.examples += 1


@check("ATTN-01", "forward", cases=_models("full"))
def padding_is_told_from_targets(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Where only the target is 0 a key is hidden; where only the input is 0 it is seen."""
    fields, weights, batch = model_cases.build(case)
    batch["decoder_target_tokens"][:, [3, 10]] = 0
    batch["decoder_input_tokens"][:, [5, 8]] = 0
    _compare_logits(subject, fields, weights, batch, evidence)


@check("ATTN-02", "forward", cases=_models("packed"))
def segments_of_a_packed_row_are_apart(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A model's packed rows: no token sees another segment."""
    _compare_logits(subject, *model_cases.build(case), evidence)


@check("ATTN-03", "forward", cases=_models("prefix", "prefix_packed"))
def prefixes_are_causal_unless_asked_for(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A marked prefix changes nothing, and opens when inputs_bidirectional_attention is set."""
    for asked in (False, True):
        built = model_cases.build(case, inputs_bidirectional_attention=asked)
        _compare_logits(subject, *built, evidence)


@check("ATTN-09", "forward", cases=_models("full"))
def padding_queries_go_on(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The first padding of a row still reads a token: it attends to all keys, and has logits."""
    fields, weights, batch = model_cases.build(case)
    batch["decoder_target_tokens"][:, 8:] = 0
    batch["decoder_input_tokens"][:, 9:] = 0
    _compare_logits(subject, fields, weights, batch, evidence)


@check("ATTN-06", "forward", cases=_models("packed", "prefix_packed"))
def decoder_positions_are_not_looked_at(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Logits of a packed row are the same with other decoder_positions."""
    fields, weights, batch = model_cases.build(case)
    _compare_logits(subject, fields, weights, batch, evidence)
    length = batch["decoder_positions"].shape[1]
    others = np.broadcast_to(np.arange(length)[::-1] // 2, batch["decoder_positions"].shape)
    once, again = (
        subject.forward(
            weights, batch | {"decoder_positions": positions}, configuration=fields
        ).logits
        for positions in (batch["decoder_positions"], others.astype(np.int32))
    )
    same("logits with other decoder_positions", again, once)


def _long_segment(_: Profile) -> Iterator[Case]:
    one = dict.fromkeys(("blocks", "interval", "heads", "experts", "k", "rows"), 1)
    yield model_cases.fixed(head_dim=2, width=4, length=26, kind="full", training=False, **one)


@check("ATTN-06", "forward(dtype)", cases=_long_segment)
def segments_are_not_counted_anew(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Rounded tables tell positions 13 and 24 from 0 and 11, which are as far apart."""
    # A key of 32 at 13, a query of 16 at 24, all other keys 0: the logit is 512 (cos cos + sin sin)
    # of two rows of the tables, 1.81 there and 2.27 at 0 and 11. No product is rounded.
    fields, weights, _ = model_cases.build(case)
    for name, one in weights.items():
        one[...] = 1 if name.endswith("scale") else 0
    attention, logits = "decoder/layers_0/self_attention", "decoder/logits_dense"
    table = weights["token_embedder/embedding"]
    table[...] = [1, -1, 1, 1]
    table[2] = 1  # the one token whose key and value are not 0
    weights[f"{attention}/query/kernel"][0, 0] = 16
    weights[f"{attention}/key/kernel"][:2, 0] = 16
    weights[f"{attention}/value/kernel"][:2, 0] = 0.5
    weights[f"{attention}/out/kernel"][0, 3] = -2
    weights[f"{logits}/kernel"][3, 1] = 1
    ids = np.ones((1, 26), np.int32)
    ids[0, 13] = 2
    batch = {
        "decoder_input_tokens": ids,
        "decoder_target_tokens": np.ones_like(ids),
        "decoder_segment_ids": 1 + (np.arange(26) >= 13).astype(np.int32)[None],
        "decoder_positions": np.concatenate([np.arange(13)] * 2).astype(np.int32)[None],
    }
    wanted = model.forward(
        weights, batch, Configuration(**fields), call=model.Call(dtype="bfloat16")
    ).logits
    got = subject.forward(weights, batch, configuration=fields, dtype="bfloat16").logits
    close("logits", got[:, 24], wanted[:, 24], evidence, **BFLOAT16_BOUND)
    evidence.examples += 1
