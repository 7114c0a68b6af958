"""The data side as the conformance kit sees it, in dialect `t5x` alone: NumPy in and out, no JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from openmoe_production import batching, documents, draws, noise, objectives
from openmoe_production.data_arguments import ids as checked_ids
from openmoe_production.data_arguments import whole
from openmoe_spec import __version__
from openmoe_spec.data import EMBEDDING_MULTIPLE, END, NUM_SENTINELS, PAD


class DataAdapter:
    """Objectives, documents, batching, draws, and the ids of a vocabulary; usable by itself."""

    name = "openmoe_production.data_adapter"
    version = f"{__version__} (numpy {np.__version__})"
    rejects_invalid_input = True

    # ---- vocabulary ------------------------------------------------------------------------

    def vocabulary(
        self, num_pieces: int, *, num_sentinels: int = NUM_SENTINELS, reverse: bool = True
    ) -> dict[str, Any]:
        """Return sizes and special ids. Errors: RejectedError VOCAB-05. Spec: VOCAB-01, VOCAB-02."""
        first = whole("num_pieces", num_pieces, "VOCAB-05", least=1)
        size = first + whole("num_sentinels", num_sentinels, "VOCAB-05", least=0)
        sentinels = range(size - 1, first - 1, -1) if reverse else range(first, size)
        return {
            "vocabulary_size": size,
            "num_embeddings": -(-size // EMBEDDING_MULTIPLE) * EMBEDDING_MULTIPLE,
            "pad": PAD,
            "end": END,
            "sentinels": list(sentinels),
        }

    def decoded_ids(self, ids: np.ndarray, *, vocabulary_size: int, unknown: int = 3) -> np.ndarray:
        """Return the ids [m] that text is made of. Errors: RejectedError VOCAB-05. Spec: VOCAB-04."""
        size = whole("vocabulary_size", vocabulary_size, "VOCAB-05", least=1)
        unknown = whole("unknown", unknown, "VOCAB-05", least=0, most=size - 1)
        known = checked_ids("ids", ids, "VOCAB-05").copy()
        known[known >= size] = unknown
        ends = np.flatnonzero(known == END)[:1]
        return known[: ends[0] + 1] if ends.size else known

    # ---- objectives ------------------------------------------------------------------------

    noise_counts = staticmethod(noise.noise_counts)
    noise_mask = staticmethod(noise.noise_mask)
    span_lengths = staticmethod(noise.span_lengths)
    prefix_bounds = staticmethod(noise.prefix_bounds)
    replace_noise = staticmethod(objectives.replace_noise)
    split_prefix = staticmethod(objectives.split_prefix)
    finish_example = staticmethod(objectives.finish_example)

    def objectives(self) -> list[dict[str, Any]]:
        """Return the training mixture. Spec: OBJ-01."""
        return [asdict(one) for one in objectives.objectives()]

    def ul2_example(
        self,
        segment: np.ndarray,
        objective: int,
        *,
        inputs_length: int,
        targets_length: int,
        vocabulary_size: int,
        prompt: np.ndarray,
        noise_permutation: np.ndarray | None = None,
        nonnoise_permutation: np.ndarray | None = None,
        split: int | None = None,
        num_sentinels: int = NUM_SENTINELS,
        overflow: str = "rejected",
    ) -> Mapping[str, np.ndarray]:
        """Return the example of a segment. Errors: RejectedError as `ul2_examples`. Spec: OBJ-14."""
        return objectives.ul2_example(
            segment,
            objective,
            inputs_length=inputs_length,
            targets_length=targets_length,
            vocabulary_size=vocabulary_size,
            prompt=prompt,
            noise_permutation=noise_permutation,
            nonnoise_permutation=nonnoise_permutation,
            split=split,
            num_sentinels=num_sentinels,
            overflow=overflow,
        )

    # ---- documents and rows ----------------------------------------------------------------

    num_blocks = staticmethod(documents.num_blocks)
    document_block = staticmethod(documents.document_block)
    join_documents = staticmethod(documents.join_documents)
    objective_groups = staticmethod(documents.objective_groups)
    objective_segments = staticmethod(documents.objective_segments)
    full_lm_segments = staticmethod(documents.full_lm_segments)
    mix_streams = staticmethod(documents.mix_streams)
    mixture = staticmethod(documents.mixture)
    sft_texts = staticmethod(documents.sft_texts)
    decoder_features = staticmethod(batching.decoder_features)
    feed_statistics = staticmethod(batching.feed_statistics)

    # ---- draws -----------------------------------------------------------------------------

    draw_noise_masks = staticmethod(draws.draw_noise_masks)
    draw_splits = staticmethod(draws.draw_splits)
    draw_objectives = staticmethod(draws.draw_objectives)
    draw_blocks = staticmethod(draws.draw_blocks)
    draw_tasks = staticmethod(draws.draw_tasks)
