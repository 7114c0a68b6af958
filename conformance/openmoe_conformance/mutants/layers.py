"""Mutants of SPEC.md "Layers"."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.mutants.exchanging import Exchanged
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.reference_model_adapter import Fields, Tree
from openmoe_reference import layers
from openmoe_spec.records import ForwardResult

# ---- embedding ---------------------------------------------------------------------------------


def _scaled_embed(table: ndarray, ids: ndarray, *, dtype: str = "float32") -> ndarray:
    rows = layers.embed(table, ids, dtype=dtype)
    return rows * np.sqrt(table.shape[1]).astype(rows.dtype)


@mutant("LAYER-01")
class EmbeddingsAreScaled(Exchanged, embed=_scaled_embed):
    """Embeddings are multiplied by sqrt(D), as in the original Transformer."""


def _placed_embed(table: ndarray, ids: ndarray, *, dtype: str = "float32") -> ndarray:
    rows = layers.embed(table, ids, dtype=dtype)
    return rows + np.sin(np.arange(ids.shape[1]))[:, None].astype(rows.dtype)


@mutant("LAYER-01")
class PositionsAreAdded(Exchanged, embed=_placed_embed):
    """A sinusoid of the position is added to every embedding."""


def _float32_embed(table: ndarray, ids: ndarray, *, dtype: str = "float32") -> ndarray:
    del dtype
    return layers.embed(table, ids)


@mutant("LAYER-01")
class EmbeddingsStayFloat32(Exchanged, embed=_float32_embed):
    """Embeddings are not rounded to the activation dtype."""


def _cut_embed(table: ndarray, ids: ndarray, *, dtype: str = "float32") -> ndarray:
    if dtype == "bfloat16":
        table = (table.astype(np.float32).view(np.uint32) & 0xFFFF0000).view(np.float32)
    return layers.embed(table, ids, dtype=dtype)


@mutant("LAYER-01")
class EmbeddingsAreCut(Exchanged, embed=_cut_embed):
    """The lower half of a float32 is cut off instead of rounding to bfloat16."""


def _clamped_embed(table: ndarray, ids: ndarray, *, dtype: str = "float32") -> ndarray:
    return layers.embed(table, ids.clip(0, len(table) - 1), dtype=dtype)


@mutant("LAYER-02")
class UnknownIdsAreClamped(Exchanged, embed=_clamped_embed):
    """An id outside the vocabulary gets the nearest row."""


def _wrapped_embed(table: ndarray, ids: ndarray, *, dtype: str = "float32") -> ndarray:
    return layers.embed(table, ids % len(table), dtype=dtype)


@mutant("LAYER-02")
class UnknownIdsWrap(Exchanged, embed=_wrapped_embed):
    """An id outside the vocabulary counts from its end, as an index of Python's does."""


def _undefined_embed(table: ndarray, ids: ndarray, *, dtype: str = "float32") -> ndarray:
    known = (ids >= 0) & (ids < len(table))
    return np.where(known[..., None], layers.embed(table, ids, dtype=dtype), np.float32(np.nan))


@mutant("LAYER-02")
class UnknownIdsAreNotANumber(Exchanged, embed=_undefined_embed):
    """An id outside the vocabulary gets not-a-number, as a filling gather has it."""


# ---- norm --------------------------------------------------------------------------------------


def _centred_norm(inputs: ndarray, scale: ndarray, *, dtype: str = "float32") -> ndarray:
    mean = inputs.astype(np.float64).mean(axis=-1, keepdims=True)
    return layers.rms_norm((inputs - mean).astype(inputs.dtype), scale, dtype=dtype)


@mutant("LAYER-03")
class MeanIsSubtracted(Exchanged, norm=_centred_norm):
    """The norm is a LayerNorm without bias."""


def _norm_of_offsets(inputs: ndarray, scale: ndarray, *, dtype: str = "float32") -> ndarray:
    return layers.rms_norm(inputs, 1 + scale, dtype=dtype)


@mutant("LAYER-03")
class ScaleIsAnOffset(Exchanged, norm=_norm_of_offsets):
    """The quotient is multiplied with 1 + scale."""


def _norm_of(divisor: Callable[[ndarray], ndarray]) -> Callable[..., ndarray]:
    def norm(inputs: ndarray, scale: ndarray, *, dtype: str = "float32") -> ndarray:
        right = layers.rms_norm(inputs, scale, dtype=dtype)
        mean_square = np.square(inputs.astype(np.float64)).mean(axis=-1, keepdims=True)
        wanted = np.sqrt(mean_square + layers.EPSILON)
        return (right * (wanted / divisor(mean_square))).astype(right.dtype)

    return norm


@mutant("LAYER-03")
class EpsilonIsLarger(Exchanged, norm=_norm_of(lambda mean_square: np.sqrt(mean_square + 1e-5))):
    """Epsilon is 1e-5."""


@mutant("LAYER-03")
class EpsilonOutsideTheRoot(
    Exchanged, norm=_norm_of(lambda mean_square: np.sqrt(mean_square) + 1e-6)
):
    """Epsilon is added to the root instead of the mean of squares."""


def _narrow_norm(inputs: ndarray, scale: ndarray, *, dtype: str = "float32") -> ndarray:
    if dtype != "bfloat16":
        return layers.rms_norm(inputs, scale, dtype=dtype)
    x, kind = inputs.astype(ml_dtypes.bfloat16), ml_dtypes.bfloat16
    squares = np.add.accumulate(x * x, axis=-1, dtype=kind)[..., -1:]
    root = np.sqrt((squares / kind(x.shape[-1]) + kind(layers.EPSILON)).astype(np.float32))
    return x / root.astype(kind) * scale.astype(kind)


@mutant("LAYER-04")
class Bfloat16Statistics(Exchanged, norm=_narrow_norm):
    """The mean of squares is added up in bfloat16."""


def _wide_norm(inputs: ndarray, scale: ndarray, *, dtype: str = "float32") -> ndarray:
    return layers.rms_norm(inputs, scale, dtype="float32" if dtype == "bfloat16" else dtype)


@mutant("LAYER-04")
class NormsStayFloat32(Exchanged, norm=_wide_norm):
    """With bfloat16 activations neither quotient nor scale is rounded."""


# ---- token mask --------------------------------------------------------------------------------


def _mask_of_ids(ids: ndarray) -> ndarray:
    return (ids > 0) | (np.arange(ids.shape[1]) == 0)


@mutant("LAYER-05")
class TheNextIdDoesNotCount(Exchanged, token_mask=_mask_of_ids):
    """Start tokens of later segments are masked: only a position's own id counts."""


def _mask_without_first(ids: ndarray) -> ndarray:
    return (ids > 0) | np.pad(ids[:, 1:] > 0, ((0, 0), (0, 1)))


@mutant("LAYER-05")
class TheFirstPositionDoesNotCount(Exchanged, token_mask=_mask_without_first):
    """A row that begins with two zeros has its first position masked."""


def _mask_that_wraps(ids: ndarray) -> ndarray:
    return _mask_of_ids(ids) | (np.roll(ids, -1, axis=1) > 0)


@mutant("LAYER-05")
class TheLastPositionWraps(Exchanged, token_mask=_mask_that_wraps):
    """After the last position comes the row's first."""


# ---- output projection -------------------------------------------------------------------------


def _divided_logits(inputs: ndarray, kernel: ndarray, **options: Any) -> ndarray:
    logits = layers.output_logits(inputs, kernel, **options)
    return (logits / np.sqrt(inputs.shape[-1])).astype(logits.dtype)


@mutant("LAYER-06")
class LogitsAreDivided(Exchanged, output_logits=_divided_logits):
    """Logits are divided by sqrt(D), as those of a tied head are."""


@mutant("LAYER-06")
class TheHeadIsTied(ReferenceAdapter):
    """The output projection is the embedding's transpose."""

    def forward(
        self, parameters: Tree, batch: Tree, *, configuration: Fields, **options: Any
    ) -> ForwardResult:
        tied = {"decoder/logits_dense/kernel": parameters["token_embedder/embedding"].T}
        return super().forward(
            {**parameters, **tied}, batch, configuration=configuration, **options
        )


def _narrow_logits(inputs: ndarray, kernel: ndarray, **options: Any) -> ndarray:
    if inputs.dtype == ml_dtypes.bfloat16:
        options["dtype"] = "bfloat16"
    return layers.output_logits(inputs, kernel, **options)


@mutant("LAYER-06")
class LogitsAreBfloat16(Exchanged, output_logits=_narrow_logits):
    """With bfloat16 activations the projection is bfloat16 too."""


def _unmasked_logits(
    inputs: ndarray, kernel: ndarray, *, mask: ndarray | None = None, **options: Any
) -> ndarray:
    layers.output_logits(inputs, kernel, mask=mask, **options)
    return layers.output_logits(inputs, kernel, **options)


@mutant("LAYER-07")
class PaddingHasLogits(Exchanged, output_logits=_unmasked_logits):
    """The token mask does not reach the output projection."""


def _hidden_logits(
    inputs: ndarray, kernel: ndarray, *, mask: ndarray | None = None, **options: Any
) -> ndarray:
    logits = layers.output_logits(inputs, kernel, mask=mask, **options)
    return logits if mask is None else np.where(mask[..., None], logits, np.float32(-1e9))


@mutant("LAYER-07")
class MaskedLogitsAreVeryNegative(Exchanged, output_logits=_hidden_logits):
    """Masked positions get logits of -1e9."""
