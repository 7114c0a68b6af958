"""Mutants of SPEC.md "Vocabulary"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import vocabulary
from openmoe_spec.data import END
from openmoe_spec.errors import RejectedError

# ---- ids ---------------------------------------------------------------------------------------


@mutant("VOCAB-01")
class RowsAreNotPadded(ReferenceAdapter):
    """The embedding table has a row for each id and no more."""

    def vocabulary(self, num_pieces: int, **options: Any) -> Mapping[str, Any]:
        right = super().vocabulary(num_pieces, **options)
        return {**right, "num_embeddings": right["vocabulary_size"]}


@mutant("VOCAB-01")
class SentinelsAreAmongThePieces(ReferenceAdapter):
    """The sentinels take the last pieces' ids, so that the size is that of the file."""

    def vocabulary(self, num_pieces: int, **options: Any) -> Mapping[str, Any]:
        right = super().vocabulary(num_pieces, **options)
        return {**right, "vocabulary_size": num_pieces}


@mutant("VOCAB-02")
class SentinelsAreNotReversed(ReferenceAdapter):
    """Sentinel 0 is the first id behind the pieces."""

    def vocabulary(self, num_pieces: int, **options: Any) -> Mapping[str, Any]:
        return super().vocabulary(num_pieces, **options | {"reverse": False})


@mutant("VOCAB-02")
class SentinelsFollowTheRows(ReferenceAdapter):
    """Sentinel 0 is the last row of the padded table."""

    def vocabulary(self, num_pieces: int, **options: Any) -> Mapping[str, Any]:
        right = super().vocabulary(num_pieces, **options)
        shift = right["num_embeddings"] - right["vocabulary_size"]
        return {**right, "sentinels": [one + shift for one in right["sentinels"]]}


# ---- text --------------------------------------------------------------------------------------


@mutant("VOCAB-03")
class SentinelsOfTextsAreText(ReferenceAdapter):
    """A sentinel that stands in a text is spelt out."""

    def encode_text(self, text: str | bytes, *, model: str, **options: Any) -> ndarray:
        return super().encode_text(text, model=model, **options | {"num_sentinels": 0})


@mutant("VOCAB-03")
class TextsEnd(ReferenceAdapter):
    """An end id is added behind every text."""

    def encode_text(self, text: str | bytes, *, model: str, **options: Any) -> ndarray:
        return np.append(super().encode_text(text, model=model, **options), END)


@mutant("VOCAB-03")
class SentinelsAreFoundAnywhere(ReferenceAdapter):
    """A sentinel inside a word is one too."""

    def encode_text(self, text: str | bytes, *, model: str, **options: Any) -> ndarray:
        apart = vocabulary.utf8(text).replace("<extra_id_", " <extra_id_").replace("  <", " <")
        return super().encode_text(apart, model=model, **options)


@mutant("VOCAB-03")
class SentinelsOfTextsCountUpwards(ReferenceAdapter):
    """The pieces of the sentinels are added in the order of their numbers."""

    def pieces(self, model: bytes, num_sentinels: int, *, reverse: bool) -> bytes:
        return super().pieces(model, num_sentinels, reverse=not reverse)


@mutant("VOCAB-04")
class NothingIsCut(ReferenceAdapter):
    """What stands behind the first end is text too."""

    def decoded_ids(self, ids: ndarray, **options: int) -> ndarray:
        right = super().decoded_ids(ids, **options)
        return np.concatenate([right, np.asarray(ids[len(right) :], np.int64)])


@mutant("VOCAB-04")
class TheEndIsCutOffToo(ReferenceAdapter):
    """The first end itself is not among the ids that are left."""

    def decoded_ids(self, ids: ndarray, **options: int) -> ndarray:
        right = super().decoded_ids(ids, **options)
        return right[:-1] if len(right) and right[-1] == END else right


@mutant("VOCAB-04")
class UnknownIdsAreLeftOut(ReferenceAdapter):
    """Ids beyond the vocabulary disappear."""

    def decoded_ids(self, ids: ndarray, **options: int) -> ndarray:
        known = np.asarray(ids, np.int64)
        return super().decoded_ids(known[known < options["vocabulary_size"]], **options)


# ---- what must be rejected ---------------------------------------------------------------------


@mutant("VOCAB-05")
class WrongBytesAreReplaced(ReferenceAdapter):
    """Bytes that are no UTF-8 become the sign for what cannot be shown."""

    def encode_text(self, text: str | bytes, *, model: str, **options: Any) -> ndarray:
        if isinstance(text, bytes):
            text = text.decode("utf-8", errors="replace")
        return super().encode_text(text, model=model, **options)


@mutant("VOCAB-05")
class NegativeIdsAreUnknown(ReferenceAdapter):
    """Ids below 0 become the unknown one."""

    def decoded_ids(self, ids: ndarray, **options: int) -> ndarray:
        known = np.where(np.asarray(ids) < 0, options.get("unknown", 3), ids)
        return super().decoded_ids(known, **options)


@mutant("VOCAB-05")
class AnyFileIsAVocabulary(ReferenceAdapter):
    """Of a file that cannot be used each byte is an id."""

    def encode_text(self, text: str | bytes, *, model: str, **options: Any) -> ndarray:
        right = vocabulary.utf8(text)
        try:
            return super().encode_text(right, model=model, **options)
        except RejectedError:
            return np.frombuffer(right.encode(), np.uint8).astype(np.int32)
