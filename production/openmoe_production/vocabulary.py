"""A SentencePiece model file with the sentinels behind its pieces: text to ids and back.

Needs the package sentencepiece (extra `data` or `text`).
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy import ndarray

from openmoe_production import vocabulary_ids
from openmoe_spec.data import (
    END,
    NUM_PIECES,
    NUM_SENTINELS,
    OBJECTIVES,
    PAD,
    UMT5_TEXTS,
)
from openmoe_spec.errors import RejectedError

UMT5 = {"pieces": NUM_PIECES, "pad": PAD, "end": END, "start": 2, "unknown": 3}
"""What umT5's model file is known to have (VOCAB-01, VOCAB-06); its bytes stand for rare characters."""

_FIRST_OF_A_SENTINEL = "▁<extra_id_".encode()
_LENGTH_DELIMITED = 2
_PIECES, _NORMALIZER = 1, 3
"""Numbers of the fields of a serialised model that every whole one has, the first and the last."""


@dataclass(frozen=True)
class Vocabulary:
    """A loaded model with sentinels; it can be pickled, and shared by threads.

    num_pieces  pieces of the model file, without sentinels
    processor   SentencePiece's own object, sentinels included
    """

    processor: Any
    num_pieces: int
    num_sentinels: int
    reverse: bool

    @cached_property
    def _ids(self) -> dict[str, Any]:
        return vocabulary_ids.vocabulary(
            self.num_pieces, num_sentinels=self.num_sentinels, reverse=self.reverse
        )

    @property
    def size(self) -> int:
        """Ids there are. Spec: VOCAB-01."""
        return int(self._ids["vocabulary_size"])

    @property
    def num_embeddings(self) -> int:
        """Rows of the embedding table. Spec: VOCAB-01."""
        return int(self._ids["num_embeddings"])

    @property
    def unknown(self) -> int:
        """Id of what has no piece. Spec: VOCAB-06."""
        return int(self.processor.unk_id())

    @property
    def start(self) -> int:
        """Id of the model's own start piece, -1 without one; the decoder starts with padding."""
        return int(self.processor.bos_id())

    @property
    def byte_fallback(self) -> bool:
        """Whether bytes stand for what has no piece. Spec: VOCAB-06."""
        return bool(self.processor.is_byte(self.processor.piece_to_id("<0x00>")))

    @cached_property
    def modes(self) -> tuple[ndarray, ...]:
        """Ids int32 of each objective's mode. Spec: OBJ-01, OBJ-13."""
        return tuple(self.encode(one.mode) for one in OBJECTIVES)

    def sentinel(self, number: int) -> int:
        """Return the id of a sentinel. Spec: VOCAB-02."""
        return int(self._ids["sentinels"][number])

    def sentinel_number(self, token: int) -> int | None:
        """Return which sentinel an id is, None for a piece. Spec: VOCAB-02."""
        known = self._ids["sentinels"]
        return known.index(token) if token in known else None

    def pieces(self, ids: ndarray | Sequence[int]) -> list[str]:
        """Return the piece of each id, as the model writes it: ▁ for a space."""
        return [str(self.processor.id_to_piece(int(one))) for one in ids]

    def encode(self, text: str | bytes) -> ndarray:
        """Return ids int32 [n] of a text, without an end.

        Errors: RejectedError VOCAB-05 at the first byte that is no UTF-8. Spec: VOCAB-03.
        """
        return np.asarray(self.processor.encode(checked_text(text)), np.int32)

    def encode_many(self, texts: Iterable[str | bytes]) -> list[ndarray]:
        """Return the ids of each text; threads may do this at the same time.

        Errors: RejectedError VOCAB-05. Spec: VOCAB-03.
        """
        return [self.encode(one) for one in texts]

    def decode(self, ids: ndarray | Sequence[int]) -> str:
        """Return the text of ids up to the first end; ids that there are not show as unknown.

        Errors: RejectedError VOCAB-05 on a negative id. Spec: VOCAB-04.
        """
        known = vocabulary_ids.decoded_ids(ids, vocabulary_size=self.size, unknown=self.unknown)
        return str(self.processor.decode(known.tolist()))

    def differences_from_umt5(self) -> dict[str, tuple[Any, Any]]:
        """Return what is not as umT5's model has it, as (found, umT5's) by name.

        Where its form fits, the published ids of a few texts are compared too.
        Spec: VOCAB-01, VOCAB-03, VOCAB-06.
        """
        found: dict[str, Any] = {
            "pieces": self.num_pieces,
            "pad": self.processor.pad_id(),
            "end": self.processor.eos_id(),
            "start": self.start,
            "unknown": self.unknown,
            "byte fallback": self.byte_fallback,
        }
        wanted: dict[str, Any] = UMT5 | {"byte fallback": True}
        if found == wanted:
            wanted = {f"ids of {text!r}": list(ids) for text, ids in UMT5_TEXTS.items()}
            found = {f"ids of {text!r}": [*self.encode(text).tolist(), END] for text in UMT5_TEXTS}
        return {name: (found[name], wanted[name]) for name in wanted if found[name] != wanted[name]}


def load(
    model: Path | bytes, *, num_sentinels: int = NUM_SENTINELS, reverse: bool = True
) -> Vocabulary:
    """Return the vocabulary of a SentencePiece model file, or of its content.

    Errors: RejectedError VOCAB-05; OSError when there is no such file. Spec: VOCAB-01..VOCAB-03.
    Source: seqio vocabularies.py::SentencePieceVocabulary@b898b9f.
    """
    if isinstance(num_sentinels, bool) or not isinstance(num_sentinels, int) or num_sentinels < 0:
        raise RejectedError(
            "num_sentinels", "VOCAB-05", f"must be a whole number, 0 or more, got {num_sentinels!r}"
        )
    content = model if isinstance(model, bytes) else Path(model).read_bytes()
    pieces = _count_pieces(content)
    if num_sentinels and _FIRST_OF_A_SENTINEL in content:
        raise RejectedError("model", "VOCAB-05", "holds sentinels already")
    order = range(num_sentinels)
    added = b"".join(_sentinel_piece(j) for j in (reversed(order) if reverse else order))
    try:
        processor = sentencepiece.SentencePieceProcessor(model_proto=content + added)
    except (RuntimeError, TypeError) as error:
        raise RejectedError("model", "VOCAB-05", "is no whole SentencePiece model") from error
    special = (processor.pad_id(), processor.eos_id())
    if special != (PAD, END):
        raise RejectedError(
            "model", "VOCAB-05", f"must have padding {PAD} and end {END}, has {special}"
        )
    return Vocabulary(processor, pieces, num_sentinels, reverse)


def checked_text(text: str | bytes) -> str:
    """Return text as characters. Errors: RejectedError VOCAB-05 at the first that is no UTF-8."""
    try:
        if isinstance(text, bytes):
            return text.decode("utf-8")
        text.encode("utf-8")
    except UnicodeDecodeError as error:
        raise RejectedError("text", "VOCAB-05", f"byte {error.start} is no UTF-8") from error
    except UnicodeEncodeError as error:
        raise RejectedError(
            "text", "VOCAB-05", f"character {error.start} is no character of UTF-8"
        ) from error
    except AttributeError as error:
        raise RejectedError(
            "text", "VOCAB-05", f"must be text, got {type(text).__name__}"
        ) from error
    return text


# ---- the serialised form -----------------------------------------------------------------------


def _count_pieces(content: bytes) -> int:
    """Return how many pieces a serialised model has. Errors: RejectedError where it is no whole one.

    SentencePiece itself would take a file that was cut between two fields.
    """
    numbers: list[int] = []
    place = 0
    try:
        while place < len(content):
            tag, place = _varint(content, place)
            length, place = _varint(content, place)
            numbers.append(tag >> 3)
            place += length
            if tag & 7 != _LENGTH_DELIMITED:
                break
    except IndexError:
        place = len(content) + 1
    else:
        if place == len(content) and _PIECES in numbers and _NORMALIZER in numbers:
            return numbers.count(_PIECES)
    begun = _PIECES in numbers[:-1] and numbers[0] == _PIECES
    what = "is truncated" if begun else "is no SentencePiece model"
    raise RejectedError("model", "VOCAB-05", what)


def _varint(content: bytes, place: int) -> tuple[int, int]:
    """Return the number at a place, seven bits a byte, the lowest first, and the place behind it."""
    number = shift = 0
    while True:
        byte = content[place]
        number |= (byte & 127) << shift
        place, shift = place + 1, shift + 7
        if byte < 128:
            return number, place


def _sentinel_piece(number: int) -> bytes:
    """Return a user-defined piece as it stands in a serialised model: text, score 0.0, type."""
    text = f"▁<extra_id_{number}>".encode()
    user_defined = 4
    piece = bytes([0x0A, len(text)]) + text + bytes([0x15, 0, 0, 0, 0, 0x18, user_defined])
    return bytes([0x0A, len(piece)]) + piece
