"""The data side as the conformance kit sees it, in dialect `t5x` alone: NumPy in and out, no JAX."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from openmoe_production import batching, documents, draws, noise, objectives, vocabulary_ids
from openmoe_spec import __version__
from openmoe_spec.data import NUM_SENTINELS


class DataAdapter:
    """Objectives, documents, batching, draws, and the ids of a vocabulary; usable by itself."""

    name = "openmoe_production.data_adapter"
    version = f"{__version__} (numpy {np.__version__})"
    rejects_invalid_input = True

    # ---- vocabulary ------------------------------------------------------------------------

    vocabulary = staticmethod(vocabulary_ids.vocabulary)
    decoded_ids = staticmethod(vocabulary_ids.decoded_ids)

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
