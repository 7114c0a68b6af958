"""Real text that lies on every machine with Python: the sources of its standard library."""

from __future__ import annotations

import sysconfig
from dataclasses import dataclass
from pathlib import Path

import numpy as np

_LEFT_OUT = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__")
)


class CorpusError(Exception):
    """The machine has not the text that was asked for; the message says what and where."""


@dataclass(frozen=True)
class Document:
    """One file: its path below the library's folder, with slashes, and its text."""

    name: str
    text: str


def standard_library_documents(*, max_bytes: int) -> list[Document]:
    """Return Python sources of the standard library, at most about `max_bytes` of UTF-8.

    The order is fixed by a seed, so that the first files are not all of one package.
    Errors: CorpusError when there is no source at all.
    """
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(
        path
        for path in root.rglob("*.py")
        if not _LEFT_OUT.intersection(path.relative_to(root).parts)
    )
    documents: list[Document] = []
    size = 0
    for number in np.random.default_rng(0).permutation(len(paths)):
        if size >= max_bytes:
            break
        path = paths[number]
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # a few files are in other encodings on purpose
        if text.strip():
            documents.append(Document(path.relative_to(root).as_posix(), text))
            size += len(text.encode())
    if not documents:
        raise CorpusError(f"{root}: holds no Python sources to read as text")
    return documents
