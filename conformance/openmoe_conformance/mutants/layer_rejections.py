"""Mutants of SPEC.md "Layers" and "Attention": what must be rejected is accepted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.mutants.exchanging import Exchanged
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import attention, layers
from openmoe_spec.errors import RejectedError


def _zeros_embed(table: ndarray, ids: ndarray, *, dtype: str = "float32") -> ndarray:
    try:
        return layers.embed(table, ids, dtype=dtype)
    except RejectedError:
        return np.zeros((*ids.shape, table.shape[-1]), np.float32)


@mutant("LAYER-08")
class AcceptsAnyIds(Exchanged, embed=_zeros_embed):
    """Tables, ids and dtypes that are none give embeddings of zeros."""


def _broadcast_norm(inputs: ndarray, scale: ndarray, *, dtype: str = "float32") -> ndarray:
    if scale.shape == (1,):
        scale = np.repeat(scale, inputs.shape[-1])
    return layers.rms_norm(inputs, scale, dtype=dtype)


@mutant("LAYER-08")
class ScalesAreBroadcast(Exchanged, norm=_broadcast_norm):
    """A scale of one element is spread over D."""


def _finite_logits(inputs: ndarray, kernel: ndarray, **options: Any) -> ndarray:
    return layers.output_logits(np.nan_to_num(inputs), np.nan_to_num(kernel), **options)


@mutant("LAYER-08")
class LogitsOfNotANumber(Exchanged, output_logits=_finite_logits):
    """Not-a-number and infinity are projected as if they were numbers."""


def _zeros_attention(
    inputs: ndarray, kernels: Mapping[str, ndarray], bias: ndarray | None, **options: Any
) -> tuple[ndarray, ndarray, ndarray]:
    try:
        return attention.attention(inputs, kernels, bias, **options)
    except RejectedError:
        return inputs, inputs, inputs


@mutant("ATTN-12")
class AcceptsAnyKernels(Exchanged, attention=_zeros_attention):
    """Where kernels, mask and heads do not fit, attention is left out."""


@mutant("ATTN-12")
class SegmentsMayInterleave(ReferenceAdapter):
    """Segments that interleave are told apart by their ids alone."""

    def decoder_mask(
        self, target_ids: ndarray, *, segment_ids: ndarray | None = None, **options: Any
    ) -> ndarray:
        mask = super().decoder_mask(target_ids, **options)
        if segment_ids is None:
            return mask
        if segment_ids.shape != target_ids.shape:
            raise RejectedError("segment_ids", "ATTN-12", "must have the shape of target_ids")
        return mask & (segment_ids[:, :, None] == segment_ids[:, None, :])


@mutant("ATTN-12")
class PositionsBelowZero(ReferenceAdapter):
    """A position below 0 counts as 0."""

    def rotary_tables(self, positions: ndarray, *, head_dim: int) -> tuple[ndarray, ndarray]:
        return super().rotary_tables(positions.clip(0), head_dim=head_dim)
