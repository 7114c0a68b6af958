"""Ids around those of a SentencePiece model's pieces; NumPy alone, the model is not looked at."""

from __future__ import annotations

from typing import Any

import numpy as np

from openmoe_production.data_arguments import ids as checked_ids
from openmoe_production.data_arguments import whole
from openmoe_spec.data import EMBEDDING_MULTIPLE, END, NUM_SENTINELS, PAD


def vocabulary(
    num_pieces: int, *, num_sentinels: int = NUM_SENTINELS, reverse: bool = True
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


def decoded_ids(ids: Any, *, vocabulary_size: int, unknown: int = 3) -> np.ndarray:
    """Return the ids [m] that text is made of. Errors: RejectedError VOCAB-05. Spec: VOCAB-04."""
    size = whole("vocabulary_size", vocabulary_size, "VOCAB-05", least=1)
    unknown = whole("unknown", unknown, "VOCAB-05", least=0, most=size - 1)
    known = checked_ids("ids", ids, "VOCAB-05").copy()
    known[known >= size] = unknown
    ends = np.flatnonzero(known == END)[:1]
    return known[: ends[0] + 1] if ends.size else known
