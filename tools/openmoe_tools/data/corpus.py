"""Real text that lies on every machine with Python: the sources of its standard library."""

from __future__ import annotations

import ast
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent

import numpy as np

_LEFT_OUT = frozenset(
    ("site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__")
)


class CorpusError(Exception):
    """The machine has not the text that was asked for; the message says what and where."""


@dataclass(frozen=True)
class Document:
    """A file or a part of one: its path below the library's folder, with slashes, and its text."""

    name: str
    text: str


def standard_library_documents(*, max_bytes: int) -> list[Document]:
    """Return Python sources of the standard library, at most about `max_bytes` of UTF-8.

    The order is fixed by a seed, so that the first files are not all of one package.
    Errors: CorpusError when there is no source at all.
    """
    documents: list[Document] = []
    size = 0
    for document in _files():
        if size >= max_bytes:
            break
        documents.append(document)
        size += len(document.text.encode())
    return documents


def standard_library_functions(*, count: int | None = None) -> list[Document]:
    """Return functions and methods of the standard library that have a docstring: code with prose.

    A function inside another is part of that one's text. The order is that of `standard_library_documents`,
    so the same on every machine with the same Python; `count` takes the first ones alone.
    Errors: CorpusError when there are fewer than `count`, or none at all.
    """
    documents: list[Document] = []
    for file in _files():
        documents += _documented(file)
        if count is not None and len(documents) >= count:
            return documents[:count]
    if count is not None or not documents:
        root = sysconfig.get_path("stdlib")
        raise CorpusError(
            f"{root}: has {len(documents)} documented functions, {count or 1} were asked for"
        )
    return documents


def _files() -> Iterator[Document]:
    """Yield the library's sources in an order that a seed fixes."""
    root = Path(sysconfig.get_path("stdlib"))
    paths = sorted(
        path
        for path in root.rglob("*.py")
        if not _LEFT_OUT.intersection(path.relative_to(root).parts)
    )
    found = False
    for number in np.random.default_rng(0).permutation(len(paths)):
        path = paths[number]
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError):
            continue  # a few files are in other encodings on purpose
        if text.strip():
            found = True
            yield Document(path.relative_to(root).as_posix(), text)
    if not found:
        raise CorpusError(f"{root}: holds no Python sources to read as text")


def _documented(file: Document) -> Iterator[Document]:
    """Yield the functions of a module and the methods of its classes that have a docstring."""
    lines = file.text.splitlines(keepends=True)

    def within(body: list[ast.stmt], outer: str) -> Iterator[Document]:
        for node in body:
            if isinstance(node, ast.ClassDef):
                yield from within(node.body, f"{outer}{node.name}.")
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and ast.get_docstring(
                node
            ):
                text = "".join(lines[node.lineno - 1 : node.end_lineno])
                yield Document(f"{file.name}::{outer}{node.name}", dedent(text))

    try:
        tree = ast.parse(file.text)
    except SyntaxError:
        return  # code of another version, kept as an example
    yield from within(tree.body, "")
