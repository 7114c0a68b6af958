"""Mutants of SPEC.md "Attention": who may see whom, and at which position."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.mutants.exchanging import Exchanged, composed
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.reference_model_adapter import Dialect, Tree
from openmoe_reference import attention, masks, model
from openmoe_spec.records import ForwardResult

Visible = Callable[..., tuple[ndarray, ...]]


def _of_batch(change: Callable[[dict[str, ndarray]], dict[str, ndarray]]) -> Visible:
    """Return the right rule for another batch."""

    def visible(batch: Mapping[str, ndarray], **options: Any) -> tuple[ndarray, ...]:
        return masks.visible_by_targets(change(dict(batch)), **options)

    return visible


def _of_mask(change: Callable[[ndarray, Mapping[str, ndarray], bool], ndarray]) -> Visible:
    """Return the right mask changed."""

    def visible(
        batch: Mapping[str, ndarray], *, bidirectional: bool = False
    ) -> tuple[ndarray, ...]:
        (mask,) = masks.visible_by_targets(batch, bidirectional=bidirectional)
        return (change(mask, batch, bidirectional),)

    return visible


def _causal(batch: Mapping[str, ndarray]) -> ndarray:
    return np.tri(batch["decoder_target_tokens"].shape[1], dtype=bool)


def _both(feature: ndarray) -> ndarray:
    return (feature[:, :, None] > 0) & (feature[:, None, :] > 0)


# ---- targets -----------------------------------------------------------------------------------


def _inputs_as_targets(batch: dict[str, ndarray]) -> dict[str, ndarray]:
    inputs = batch.get("decoder_input_tokens")
    return batch if inputs is None else batch | {"decoder_target_tokens": inputs}


@mutant("ATTN-01")
class PaddingIsToldFromInputs(Exchanged, visible=_of_batch(_inputs_as_targets)):
    """A key is hidden where the input id is 0: the start token too."""


def _of_keys_alone(mask: ndarray, batch: Mapping[str, ndarray], _: bool) -> ndarray:
    real = batch["decoder_target_tokens"] > 0
    return mask | (_causal(batch) & ~real[:, :, None] & real[:, None, :])


@mutant("ATTN-01")
class PaddingQueriesSeeTheText(Exchanged, visible=_of_mask(_of_keys_alone)):
    """Only keys are looked at: a padding query sees the text before it."""


@mutant("ATTN-01")
class QueriesDoNotSeeThemselves(
    Exchanged, visible=_of_mask(lambda mask, _, __: mask & ~np.eye(mask.shape[-1], dtype=bool))
):
    """A query sees only what stands before it."""


@mutant("ATTN-01")
class KeyZeroIsOpen(
    Exchanged, visible=_of_mask(lambda mask, _, __: mask | (np.arange(mask.shape[-1]) == 0))
):
    """Key 0 is visible under any mask."""


# ---- segments and prefixes ---------------------------------------------------------------------


def _without_segments(batch: dict[str, ndarray]) -> dict[str, ndarray]:
    batch.pop("decoder_segment_ids", None)
    return batch


@mutant("ATTN-02")
class SegmentsAreIgnored(Exchanged, visible=_of_batch(_without_segments)):
    """A packed row is read as one text."""


def _lower_segments(mask: ndarray, batch: Mapping[str, ndarray], _: bool) -> ndarray:
    segments = batch.get("decoder_segment_ids")
    if segments is None:
        return mask
    earlier = segments[:, :, None] >= segments[:, None, :]
    return mask | (_causal(batch) & _both(batch["decoder_target_tokens"]) & earlier)


@mutant("ATTN-02")
class LowerSegmentsAreSeen(Exchanged, visible=_of_mask(_lower_segments)):
    """A token sees segments of a lower id."""


def _opened(mask: ndarray, batch: Mapping[str, ndarray], _: bool) -> ndarray:
    if "decoder_causal_attention" not in batch:
        return mask
    return masks.visible_by_targets(batch, bidirectional=True)[0]


@mutant("ATTN-03")
class PrefixesOpenUnasked(Exchanged, visible=_of_mask(_opened)):
    """A marked prefix is bidirectional whatever the configuration says."""


@mutant("ATTN-03")
class PrefixesNeverOpen(
    Exchanged, visible=lambda batch, **_: masks.visible_by_targets(batch, bidirectional=False)
):
    """inputs_bidirectional_attention is not looked at."""


def _open_to_all(mask: ndarray, batch: Mapping[str, ndarray], bidirectional: bool) -> ndarray:
    prefix = batch.get("decoder_causal_attention")
    if prefix is None or not bidirectional:
        return mask
    return mask | (_both(batch["decoder_target_tokens"]) & (prefix[:, None, :] > 0))


@mutant("ATTN-03")
class PrefixesAreOpenToAll(Exchanged, visible=_of_mask(_open_to_all)):
    """Keys of a prefix are visible from everywhere, other segments included."""


# ---- positions ---------------------------------------------------------------------------------


class _Placed(ReferenceAdapter):
    """A model whose queries and keys stand elsewhere."""

    batch: Tree = MappingProxyType({})

    def places(self, index: ndarray) -> ndarray:
        raise NotImplementedError

    def forward(self, parameters: Tree, batch: Tree, **options: Any) -> ForwardResult:
        self.batch = batch
        return super().forward(parameters, batch, **options)

    def rules(self, dialect: Dialect | None = None) -> model.Rules:
        def turn(heads: ndarray, index: ndarray) -> ndarray:
            return attention.rotate(heads, self.places(index))

        return replace(super().rules(dialect), attention=composed(turn=turn))


@mutant("ATTN-06")
class DecoderPositionsAreUsed(_Placed):
    """Tokens are rotated at their decoder_positions."""

    def places(self, index: ndarray) -> ndarray:
        return self.batch.get("decoder_positions", index)


@mutant("ATTN-06")
class SegmentsAreCountedAnew(_Placed):
    """Every segment of a packed row begins at position 0."""

    def places(self, index: ndarray) -> ndarray:
        segments = self.batch.get("decoder_segment_ids")
        if segments is None:
            return index
        first = np.argmax(segments[:, :, None] == segments[:, None, :], axis=-1)
        return index - first


@mutant("ATTN-06")
class QueriesStandOneFurther(
    Exchanged,
    attention=composed(
        turn=lambda heads, index: attention.rotate(heads, index + 1), turn_keys=attention.rotate
    ),
):
    """A query is rotated one position further than its key."""
