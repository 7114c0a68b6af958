"""Documents and tokenisers that a command is given: opened, or refused in one line."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from openmoe_conformance.outcome import UsageError
from openmoe_spec.errors import RejectedError
from openmoe_tools.data import tokenizer
from openmoe_tools.data.corpus import CorpusError, Document, standard_library_functions

if TYPE_CHECKING:  # the extra `data` may be missing
    from openmoe_production.sources import Documents
    from openmoe_production.vocabulary import Vocabulary


class EmptyError(UsageError):
    """Files that hold no document, or only empty ones."""


def require(command: str, *packages: str, extra: str = "data") -> None:
    """Refuse a command whose packages are not installed. Errors: UsageError."""
    for name in packages:
        if importlib.util.find_spec(name) is None:
            raise UsageError(f"{command} needs {name}: pip install 'openmoe-spec[{extra}]'")


def explained(error: RejectedError, inputs_length: int) -> str:
    """Return a refusal with the option that it is about."""
    if error.argument in {"noise_density", "noise_mask"}:
        return f"--inputs-length {inputs_length}: is too long for an objective ({error.reason})"
    return f"--{error.argument.replace('_', '-')}: {error.reason}"


def documents(paths: Sequence[Path], *, field: str, standard_library: bool) -> Documents:
    """Return documents of files and folders, or of the standard library.

    Errors: UsageError, EmptyError when there is no document that is not empty.
    """
    from openmoe_production import sources  # noqa: PLC0415

    if standard_library:
        if paths:
            raise UsageError("--standard-library: goes without FILES")
        return sources.Texts([one.text for one in functions()])
    if not paths:
        raise UsageError("FILES: none are given; name some, or give --standard-library")
    for path in paths:
        if path.suffix.lower() == ".parquet":
            require(str(path), "pyarrow")
    try:
        return sources.open_documents(paths, field=field)
    except sources.EmptyError as error:
        raise EmptyError(str(error)) from error
    except sources.SourceError as error:
        raise UsageError(str(error)) from error


def functions() -> list[Document]:
    """Return the documented functions of the standard library. Errors: UsageError."""
    try:
        return standard_library_functions()
    except CorpusError as error:
        raise UsageError(str(error)) from error


def texts(given: Documents, *, max_bytes: int) -> Iterator[str]:
    """Yield texts of documents that a seed draws, about `max_bytes` of them. Errors: UsageError."""
    from openmoe_production.sources import SourceError  # noqa: PLC0415

    filled = np.flatnonzero(given.sizes)
    size = 0
    for number in np.random.default_rng(0).permutation(filled).tolist():
        if size >= max_bytes:
            return
        try:
            text = str(given[number])
        except SourceError as error:
            raise UsageError(str(error)) from error
        size += len(text.encode())
        yield text


def trained(
    given: Documents,
    *,
    pieces: int,
    max_bytes: int = tokenizer.TRAINING_BYTES,
    exact: bool = True,
) -> bytes:
    """Return a SentencePiece model trained on documents. Errors: UsageError."""
    # Read before: the trainer would tell an error within its own as one of its own.
    sample = list(texts(given, max_bytes=max_bytes))
    try:
        return tokenizer.train(sample, vocabulary_size=pieces, max_bytes=max_bytes, exact=exact)
    except (tokenizer.TokenizerError, tokenizer.MissingExtraError) as error:
        raise UsageError(str(error)) from error


def vocabulary(model: Path | bytes) -> Vocabulary:
    """Return the vocabulary of a SentencePiece model. Errors: UsageError."""
    from openmoe_production import vocabulary as loading  # noqa: PLC0415

    try:
        return loading.load(model)
    except RejectedError as error:
        name = "the model" if isinstance(model, bytes) else model
        raise UsageError(f"{name}: {error.reason} [{error.clause}]") from error
