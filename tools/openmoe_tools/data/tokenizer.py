"""Train and load SentencePiece models with the id layout of the OpenMoE vocabulary.

Unigram with byte fallback; pad 0, end of sequence 1, start 2, unknown 3, as in umT5.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_tools.data.corpus import CorpusError, standard_library_documents

PAD, EOS, BOS, UNKNOWN = 0, 1, 2, 3
_LONGEST_LINE = 4192  # characters; longer lines are cut up, since the trainer would leave them out
TRAINING_BYTES = 1_500_000
"""A sample is enough for 8,000 pieces, and keeps training short."""


class TokenizerError(Exception):
    """A tokeniser file that cannot be used; the message says why."""


class MissingExtraError(Exception):
    """An optional package is not installed; the message says which extra brings it."""


def _sentencepiece() -> Any:
    if importlib.util.find_spec("sentencepiece") is None:
        raise MissingExtraError(
            "the package sentencepiece is missing: pip install 'openmoe-spec[text]'"
        )
    import sentencepiece  # noqa: PLC0415 - an optional extra

    return sentencepiece


def train(
    texts: Iterable[str],
    *,
    vocabulary_size: int,
    max_bytes: int = TRAINING_BYTES,
    exact: bool = True,
    blanks: bool = False,
) -> bytes:
    """Return a serialised unigram model of `vocabulary_size` pieces, the same for the same texts.

    It is trained on the first texts alone, about `max_bytes` of them; where it need not be `exact`, it
    has fewer pieces if the texts are few. `blanks`: pieces of several blanks, for text that is indented.
    Errors: MissingExtraError; TokenizerError when the texts are too few for so many pieces.
    """
    library = _sentencepiece()
    model = io.BytesIO()
    try:
        library.SentencePieceTrainer.train(
            sentence_iterator=_lines(texts, max_bytes),
            model_writer=model,
            model_type="unigram",
            vocab_size=vocabulary_size,
            hard_vocab_limit=exact,
            byte_fallback=True,
            pad_id=PAD,
            eos_id=EOS,
            bos_id=BOS,
            unk_id=UNKNOWN,
            character_coverage=0.9995,  # the rest falls back to bytes
            # Source text: spaces are meaning, so they are neither joined nor trimmed.
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=blanks,
            max_sentence_length=4 * _LONGEST_LINE,
            num_threads=1,  # more would make the result depend on their timing
            shuffle_input_sentence=False,
            minloglevel=2,
        )
    except (RuntimeError, OSError) as error:
        reason = " ".join(str(error).split())
        if most := re.search(r"value <= (\d+)", reason):
            reason = f"the text is too short for {vocabulary_size} pieces, at most {most[1]}"
        elif least := re.search(r"smaller than required_chars\. \d+ vs (\d+)", reason):
            reason = f"{vocabulary_size} pieces are too few for the text, at least {least[1]}"
        raise TokenizerError(f"training failed: {reason}") from error
    return model.getvalue()


def _lines(texts: Iterable[str], max_bytes: int) -> Iterable[str]:
    size = 0
    for text in texts:
        for line in text.split("\n"):
            for first in range(0, len(line), _LONGEST_LINE):
                yield line[first : first + _LONGEST_LINE]
            size += len(line)
        if size > max_bytes:
            return


class Tokenizer:
    """A SentencePiece model given by its bytes or its file.

    Errors: TokenizerError when it cannot be read or its special ids are not the layout's.
    """

    def __init__(self, model: bytes | Path) -> None:
        if isinstance(model, Path):
            path = model
            try:
                model = path.read_bytes()
            except OSError as error:
                raise TokenizerError(f"{path}: {error.strerror}") from error
        library = _sentencepiece()
        try:
            self._processor = library.SentencePieceProcessor(model_proto=model)
        except (RuntimeError, TypeError) as error:
            raise TokenizerError("this is no whole SentencePiece model") from error
        self.vocabulary_size: int = self._processor.vocab_size()
        if self.vocabulary_size == 0:
            raise TokenizerError("this is no whole SentencePiece model: it has no pieces")
        wanted = {"pad": PAD, "eos": EOS, "bos": BOS, "unk": UNKNOWN}
        for name, number in wanted.items():
            found = getattr(self._processor, f"{name}_id")()
            if found != number:
                raise TokenizerError(f"the model's {name} id is {found}, must be {number}")

    def encode(self, text: str) -> ndarray:
        """Return token ids int32 [N], without special ids."""
        return np.asarray(self._processor.encode(text), np.int32)

    def decode(self, token_ids: Iterable[int]) -> str:
        """Return the text of token ids."""
        text: str = self._processor.decode([int(number) for number in token_ids])
        return text


@dataclass(frozen=True)
class RealText:
    """Token ids of real text, and where they are from.

    token_ids  int32 [N]; each document ends in the end-of-sequence id
    documents  files read
    """

    token_ids: ndarray
    documents: int
    vocabulary_size: int
    text_sha256: str
    model_sha256: str


def real_token_ids(num_tokens: int, *, vocabulary_size: int = 8000) -> RealText:
    """Return `num_tokens` ids of standard-library sources, by a model trained on those sources.

    Errors: MissingExtraError; CorpusError when the machine has less text than that.
    """
    # A token of source text is about three bytes; five leave room.
    documents = standard_library_documents(max_bytes=max(5 * num_tokens, 2 * TRAINING_BYTES))
    texts = [document.text for document in documents]
    model = train(texts, vocabulary_size=vocabulary_size)
    tokenizer = Tokenizer(model)
    parts: list[ndarray] = []
    digest = hashlib.sha256()
    length = 0
    for text in texts:
        if length >= num_tokens:
            break
        ids = np.append(tokenizer.encode(text), np.int32(EOS))
        parts.append(ids)
        length += len(ids)
        digest.update(text.encode())
    if length < num_tokens:
        raise CorpusError(
            f"the standard library gives {length} tokens, {num_tokens} were asked for"
        )
    return RealText(
        np.concatenate(parts)[:num_tokens].astype(np.int32),
        len(parts),
        tokenizer.vocabulary_size,
        digest.hexdigest(),
        hashlib.sha256(model).hexdigest(),
    )
