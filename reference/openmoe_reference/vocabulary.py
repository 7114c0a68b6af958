"""SPEC.md "Vocabulary": ids around those of a SentencePiece model's pieces.

Pieces are SentencePiece's own business: here a model file is bytes to which pieces are appended.
Line-comparable to seqio vocabularies.py@b898b9f.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from openmoe_reference.arguments import check_ids, check_integer
from openmoe_spec.data import EMBEDDING_MULTIPLE, END, NUM_SENTINELS, PAD
from openmoe_spec.errors import RejectedError

USER_DEFINED = 4
"""The type of a piece that is cut out of the text before anything else is."""


def vocabulary(
    num_pieces: int, *, num_sentinels: int = NUM_SENTINELS, reverse: bool = True
) -> Mapping[str, Any]:
    """Return vocabulary_size, num_embeddings, pad, end, and sentinels, their ids in order.

    Errors: RejectedError VOCAB-05. Spec: VOCAB-01, VOCAB-02.
    Source: vocabularies.py::SentencePieceVocabulary.
    """
    num_pieces = check_integer("num_pieces", num_pieces, "VOCAB-05", least=1)
    num_sentinels = check_integer("num_sentinels", num_sentinels, "VOCAB-05", least=0)
    size = num_pieces + num_sentinels
    upwards = list(range(num_pieces, size))
    return {
        "vocabulary_size": size,
        "num_embeddings": -(-size // EMBEDDING_MULTIPLE) * EMBEDDING_MULTIPLE,
        "pad": PAD,
        "end": END,
        "sentinels": upwards[::-1] if reverse else upwards,
    }


def decoded_ids(
    ids: Int[ndarray, " n"], *, vocabulary_size: int, unknown: int = 3
) -> Int[ndarray, " m"]:
    """Return the ids that text is made of: none beyond the vocabulary, none behind the first end.

    Errors: RejectedError VOCAB-05. Spec: VOCAB-04. Source: vocabularies.py::Vocabulary.decode.
    """
    size = check_integer("vocabulary_size", vocabulary_size, "VOCAB-05", least=1)
    unknown = check_integer("unknown", unknown, "VOCAB-05", least=0, most=size - 1)
    known = check_ids("ids", ids, "VOCAB-05")
    known = np.where(known < size, known, unknown)
    ends = np.flatnonzero(known == END)
    return known[: ends[0] + 1] if len(ends) else known


def utf8(text: str | bytes) -> str:
    """Return text as characters. Errors: RejectedError VOCAB-05 at the first byte that is none."""
    if isinstance(text, str):
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:
            raise RejectedError(
                "text", "VOCAB-05", f"character {error.start} is no character of UTF-8"
            ) from error
        return text
    if not isinstance(text, bytes):
        raise RejectedError("text", "VOCAB-05", f"must be text, got {type(text).__name__}")
    try:
        return text.decode("utf-8")
    except UnicodeDecodeError as error:
        raise RejectedError("text", "VOCAB-05", f"byte {error.start} is no UTF-8") from error


def with_sentinels(
    model: bytes, *, num_sentinels: int = NUM_SENTINELS, reverse: bool = True
) -> bytes:
    """Return a serialised SentencePiece model with the sentinels' pieces appended.

    A protocol buffer that is appended to another adds to its repeated fields, of which the pieces are
    field 1: so the model is extended without being taken apart.
    Errors: RejectedError VOCAB-05 when the model holds a sentinel. Spec: VOCAB-03.
    Source: vocabularies.py::SentencePieceVocabulary._load_model.
    """
    num_sentinels = check_integer("num_sentinels", num_sentinels, "VOCAB-05", least=0)
    if not isinstance(model, bytes):
        raise RejectedError("model", "VOCAB-05", f"must be bytes, got {type(model).__name__}")
    if num_sentinels and re.search("▁<extra_id_[0-9]+>".encode(), model):
        raise RejectedError("model", "VOCAB-05", "holds sentinels already")
    order = range(num_sentinels)
    return model + b"".join(_piece(j) for j in (reversed(order) if reverse else order))


def _piece(number: int) -> bytes:
    text = f"▁<extra_id_{number}>".encode()
    score = bytes((2 << 3 | 5, 0, 0, 0, 0))  # field 2, a float: 0.0
    piece = bytes((1 << 3 | 2, len(text))) + text + score + bytes((3 << 3, USER_DEFINED))
    return bytes((1 << 3 | 2, len(piece))) + piece
