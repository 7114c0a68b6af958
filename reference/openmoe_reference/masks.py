"""SPEC.md "Attention": who may see whom, and what is added to the logits.

Line-comparable to flaxformer dense_attention.py@c5bdc41 and t5x models.py@3234135.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from jaxtyping import Bool, Float, Int
from numpy import ndarray

from openmoe_reference.arguments import check_array
from openmoe_spec.errors import RejectedError

MASKED = -1e10
"""What is added to the logit of a key that may not be seen: finite, unlike -infinity."""


def decoder_mask(
    target_ids: Int[ndarray, "B L"],
    *,
    segment_ids: Int[ndarray, "B L"] | None = None,
    causal_attention: Int[ndarray, "B L"] | None = None,
) -> Bool[ndarray, "B L L"]:
    """Return which key (last axis) each query may see, from TARGET ids: 0 is padding.

    `causal_attention` (1 on a prefix) opens the prefix both ways; OpenMoE passes none.
    Errors: RejectedError ATTN-12 on shapes, dtypes, or segments that interleave.
    Spec: ATTN-01, ATTN-02, ATTN-03. Source: dense_attention.py::make_decoder_mask.
    """
    sizes: dict[str, int] = {}
    check_array("target_ids", target_ids, "B L", sizes, "ATTN-12", kind="i")
    place = np.arange(sizes["L"])
    seen = np.broadcast_to(place[:, None] >= place, (sizes["B"], sizes["L"], sizes["L"]))
    if causal_attention is not None:
        check_array("causal_attention", causal_attention, "B L", sizes, "ATTN-12", kind="i")
        prefix = causal_attention > 0
        seen = seen | (prefix[:, :, None] & prefix[:, None, :])
    real = target_ids > 0
    seen = seen & real[:, :, None] & real[:, None, :]
    if segment_ids is not None:
        check_segments(segment_ids, sizes)
        seen = seen & (segment_ids[:, :, None] == segment_ids[:, None, :])
    return np.asarray(seen)


def check_segments(segment_ids: ndarray, sizes: dict[str, int]) -> None:
    """Refuse segments whose tokens do not stand together. Spec: ATTN-12."""
    check_array("segment_ids", segment_ids, "B L", sizes, "ATTN-12", kind="i")
    for row in segment_ids:
        ids = row.astype(np.int64)
        runs = ids[np.flatnonzero(np.diff(ids, prepend=ids[0] - 1))]  # the id of each run
        again = [int(one) for one in np.unique(runs) if one != 0 and (runs == one).sum() > 1]
        if again:
            raise RejectedError(
                "segment_ids", "ATTN-12", f"segments must not interleave, {again[0]} does"
            )


def visible_by_targets(
    batch: Mapping[str, ndarray], *, bidirectional: bool = False
) -> tuple[Bool[ndarray, "B L L"], ...]:
    """Return the mask of a training batch: from its targets, segments and, if asked, its prefix.

    Errors: RejectedError ATTN-12 on a batch without targets.
    Spec: ATTN-01, ATTN-02, ATTN-03. Source: t5_architecture.py::DecoderOnly.
    """
    if "decoder_target_tokens" not in batch:
        raise RejectedError("batch", "ATTN-12", "must hold decoder_target_tokens")
    prefix = batch.get("decoder_causal_attention") if bidirectional else None
    mask = decoder_mask(
        batch["decoder_target_tokens"],
        segment_ids=batch.get("decoder_segment_ids"),
        causal_attention=prefix,
    )
    return (mask,)


def visible_by_user(
    batch: Mapping[str, ndarray], *, bidirectional: bool = False
) -> tuple[Bool[ndarray, "B L L"], ...]:
    """Return the port's two reasons: causal order, and the caller's mask of keys. Spec: DIAL-02.

    Source: modeling_openmoe.py::_prepare_decoder_attention_mask@95e3378e.
    """
    del bidirectional
    shape = batch["decoder_input_tokens"].shape
    place = np.arange(shape[1])
    causal = np.broadcast_to(place[:, None] >= place, (shape[0], shape[1], shape[1]))
    if "attention_mask" not in batch:
        return (causal,)
    return causal, np.broadcast_to((batch["attention_mask"] > 0)[:, None, :], causal.shape)


def finite_bias(reasons: tuple[Bool[ndarray, "B Q L"], ...]) -> Float[ndarray, "B Q L"]:
    """Return 0 where a key may be seen, -1e10 elsewhere. Spec: ATTN-08.

    Source: dense_attention.py::MultiHeadDotProductAttention.
    """
    return np.where(np.logical_and.reduce(reasons), 0.0, MASKED)


def first_key_open_bias(reasons: tuple[Bool[ndarray, "B Q L"], ...]) -> Float[ndarray, "B Q L"]:
    """Return the least float32 for each reason against a key, and 0 for key 0 whatever the mask.

    Spec: DIAL-02. Source: modeling_openmoe.py::OpenMoeAttention.forward@95e3378e.
    """
    least = np.finfo(np.float32).min
    bias = np.zeros(reasons[0].shape, np.float32)
    with np.errstate(over="ignore"):  # two reasons make -infinity
        for reason in reasons:
            bias += np.where(reason, np.float32(0), least)
    bias[:, :, 0] = 0
    return bias
