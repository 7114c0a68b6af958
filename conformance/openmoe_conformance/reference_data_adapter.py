"""The reference's data side as an implementation: vocabulary, objectives, documents, batching.

Composite functions call the other methods, so a mutant that overrides one of them is wrong wherever
that one is used. Pieces of text are SentencePiece's: without that package those functions are SKIPPED.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.adapter import UnsupportedError
from openmoe_conformance.reference_model_adapter import Dialect, ReferenceModelAdapter
from openmoe_reference import (
    batching,
    documents,
    draws,
    feeding,
    noise,
    objectives,
    vocabulary,
)
from openmoe_spec.data import END, MAX_DOCUMENT_LENGTH, PAD
from openmoe_spec.errors import RejectedError

Example = Mapping[str, ndarray]


class ReferenceDataAdapter(ReferenceModelAdapter):
    """Functions of the data side over the NumPy reference."""

    # ---- vocabulary ------------------------------------------------------------------------

    def vocabulary(self, num_pieces: int, **options: Any) -> Mapping[str, Any]:
        return vocabulary.vocabulary(num_pieces, **options)

    def decoded_ids(self, ids: ndarray, **options: int) -> ndarray:
        return vocabulary.decoded_ids(ids, **options)

    def encode_text(self, text: str | bytes, *, model: str, **options: Any) -> ndarray:
        return np.asarray(self.processor(model, **options).encode(vocabulary.utf8(text)), np.int32)

    def decode_text(self, ids: ndarray, *, model: str, **options: Any) -> str:
        processor = self.processor(model, **options)
        known = self.decoded_ids(
            ids, vocabulary_size=processor.vocab_size(), unknown=processor.unk_id()
        )
        text: str = processor.decode(known.tolist())
        return text

    def processor(self, model: str, *, num_sentinels: int = 300, reverse: bool = True) -> Any:
        """Return the SentencePiece processor of a file with the sentinels added."""
        return _processor(self.pieces(Path(model).read_bytes(), num_sentinels, reverse=reverse))

    def pieces(self, model: bytes, num_sentinels: int, *, reverse: bool) -> bytes:
        """Return a model with sentinels; a method of its own for mutants."""
        return vocabulary.with_sentinels(model, num_sentinels=num_sentinels, reverse=reverse)

    # ---- objectives ------------------------------------------------------------------------

    def objectives(self, *, dialect: Dialect | None = None) -> list[dict[str, Any]]:
        rules = {"mode_tokens": self.choice("mode_tokens", dialect)}
        return [asdict(one) for one in objectives.objectives(rules)]

    def noise_counts(self, length: int, **how: float) -> Mapping[str, int]:
        return noise.noise_counts(length, **how)

    def noise_mask(self, length: int, **options: Any) -> ndarray:
        return noise.noise_mask(length, **options)

    def span_lengths(self, inputs_length: int, **options: Any) -> Mapping[str, int]:
        return noise.span_lengths(inputs_length, **options)

    def replace_noise(self, tokens: ndarray, noise_mask: ndarray, **options: Any) -> ndarray:
        return objectives.replace_noise(tokens, noise_mask, **options)

    def prefix_bounds(self, length: int, *, noise_density: float = 0.5) -> tuple[int, int]:
        return noise.prefix_bounds(length, noise_density=noise_density)

    def split_prefix(self, tokens: ndarray, split: int) -> Example:
        return objectives.split_prefix(tokens, split)

    def finish_example(self, inputs: ndarray, targets: ndarray, **options: Any) -> Example:
        return objectives.finish_example(inputs, targets, **options)

    def ul2_example(
        self, segment: ndarray, objective: int, *, dialect: Dialect | None = None, **options: Any
    ) -> Example:
        rules = {p: self.choice(p, dialect) for p in ("mode_tokens", "prefix_split")}
        return objectives.ul2_example(segment, objective, dialect=rules, **options)

    # ---- documents -------------------------------------------------------------------------

    def num_blocks(self, length: int, *, max_length: int = MAX_DOCUMENT_LENGTH) -> int:
        return documents.num_blocks(length, max_length=max_length)

    def document_block(
        self, tokens: ndarray, block: int, *, max_length: int = MAX_DOCUMENT_LENGTH
    ) -> ndarray:
        return documents.document_block(tokens, block, max_length=max_length)

    def join_documents(self, given: Sequence[ndarray], *, end: int | None = None) -> ndarray:
        return documents.join_documents(given, end=end)

    def objective_groups(self, num_groups: int, objective: int) -> tuple[int, ...]:
        return documents.objective_groups(num_groups, objective)

    def objective_segments(
        self, given: Sequence[ndarray], objective: int, **options: int
    ) -> list[ndarray]:
        return documents.objective_segments(given, objective, **options)

    def full_lm_segments(self, given: Sequence[ndarray], *, length: int) -> list[ndarray]:
        return documents.full_lm_segments(given, length=length)

    def mix_streams(self, lengths: Sequence[int], choices: ndarray) -> ndarray:
        return documents.mix_streams(lengths, choices)

    def mixture(self, name: str) -> Mapping[str, float]:
        return documents.mixture(name)

    def sft_texts(self, task: str, fields: Mapping[str, str]) -> Mapping[str, str]:
        return documents.sft_texts(task, fields)

    # ---- batching --------------------------------------------------------------------------

    def decoder_features(self, examples: Sequence[Example], **options: Any) -> batching.Features:
        return batching.decoder_features(examples, **options)

    def feed_statistics(self, features: batching.Features) -> Mapping[str, int]:
        return batching.feed_statistics(features)

    # ---- draws -----------------------------------------------------------------------------

    def draw_noise_masks(self, length: int, *, count: int, seed: int, **how: float) -> ndarray:
        return draws.draw_noise_masks(length, count=count, seed=seed, **how)

    def draw_splits(self, length: int, *, count: int, seed: int) -> ndarray:
        return draws.draw_splits(length, count=count, seed=seed)

    def draw_objectives(self, count: int, *, seed: int) -> ndarray:
        return draws.draw_objectives(count, seed=seed)

    def draw_blocks(self, length: int, *, count: int, seed: int, **options: int) -> ndarray:
        return draws.draw_blocks(length, count=count, seed=seed, **options)

    def draw_tasks(self, mixture: str, count: int, *, seed: int) -> tuple[str, ...]:
        return draws.draw_tasks(mixture, count, seed=seed)

    def feed(self, given: Sequence[ndarray], **options: Any) -> dict[str, Any]:
        features, state = feeding.feed(given, **options)
        return {"features": features, "state": state}


@lru_cache(maxsize=8)
def _processor(model: bytes) -> Any:
    try:
        import sentencepiece  # noqa: PLC0415 - an optional extra
    except ImportError:
        raise UnsupportedError("the package sentencepiece is not installed") from None
    try:
        found = sentencepiece.SentencePieceProcessor(model_proto=model)
    except (RuntimeError, TypeError) as error:
        raise RejectedError("model", "VOCAB-05", "is no whole SentencePiece model") from error
    if (found.pad_id(), found.eos_id()) != (PAD, END):
        raise RejectedError("model", "VOCAB-05", f"must have padding {PAD} and end {END}")
    return found
