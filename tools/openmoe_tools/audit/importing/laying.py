"""Where recorded tokens stand: their ids, documents, rows and positions. Spec: AUDIT-27.

What is not known is not made up: without documents every token is a row of its own, at position 0, so that
nothing is taken for a neighbour.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.counting.routed import Routed
from openmoe_tools.audit.importing import stores
from openmoe_tools.audit.importing.recordings import Options, Recording, checked
from openmoe_tools.audit.trace.reading import part

TOKENS = 1 << 16
"""Tokens that are given at once, about: whole rows."""


class Part(NamedTuple):
    """Some tokens, and what `Tables.add_probabilities` adds for them: int64 [L, E], [L, 2]; None: not known."""

    routed: Routed
    sums: tuple[ndarray, ndarray] | None


class Document(NamedTuple):
    """A document of `--documents`."""

    tokens: int
    name: str | None
    slice: str | None


@dataclass
class Laid:
    """Tokens of recordings in their places, and what was seen of them so far.

    slices, names  of slices and documents, by number; slice_of: numbers of the documents' slices
    tokens, vocabulary, length  how many, the largest id and position plus 1
    known  of `tokens`, `positions`, `documents`: what all recordings told
    """

    options: Options
    slices: dict[str, int] = field(default_factory=dict)
    names: list[str] = field(default_factory=list)
    slice_of: list[int] = field(default_factory=list)
    tokens: int = 0
    rows: int = 0
    vocabulary: int = 1
    length: int = 1
    known: set[str] = field(default_factory=lambda: {"tokens", "positions", "documents"})

    def __post_init__(self) -> None:
        options = self.options
        self._numbers: dict[str, int] = {}
        self._ids = (
            None
            if options.tokens is None
            else stores.integers(options.tokens, ["tokens", "token", "input_ids"])
        )
        if self._ids is not None and self._ids.size and self._ids.min() < 0:
            raise UsageError(f"{options.tokens}: id {self._ids.min()} is below 0")
        self._given = None if options.documents is None else _given(options.documents)

    def lay(self, recordings: Iterable[Recording]) -> Iterator[Part]:
        """Yield the tokens of recordings, whole rows at a time. Errors: UsageError."""
        for one in recordings:
            whole = self._placed(checked(one))
            sums = one.sums
            for start, stop in _cuts(whole.row):
                yield Part(part(whole, start, stop), sums)
                sums = None
            self.tokens += len(whole.token)
        if self._ids is not None and len(self._ids) != self.tokens:
            raise UsageError(
                f"{self.options.tokens}: has {len(self._ids)} ids, and the routing has {self.tokens} "
                "tokens (engines record nothing of a request's last token: leave its id out)"
            )
        if self._given:
            left = sum(one.tokens for one in self._given)
            raise UsageError(
                f"{self.options.documents}: names {left} tokens more than the routing has"
            )

    def _placed(self, recording: Recording) -> Routed:
        n = len(recording.expert)
        document, slice_of = self._documents(recording)
        row, position = self._rows(recording, document)
        token = recording.token
        if self._ids is not None:
            token = self._ids[self.tokens : self.tokens + n]
            token = np.concatenate(
                [token, np.zeros(n - len(token), np.int64)]
            )  # refused in the end
        if token is None:
            self.known.discard("tokens")
            token = np.zeros(n, np.int64)
        self.vocabulary = max(self.vocabulary, int(token.max()) + 1)
        self.length = max(self.length, int(position.max()) + 1)
        self.rows = int(row[-1]) + 1
        for what, most in (("token", self.vocabulary), ("position", self.length)):
            if most > 1 << 31:
                raise UsageError(f"{recording.where}: {what} {most - 1} is too large")
        return Routed(
            row=row,
            position=position.astype(np.int32),
            token=token.astype(np.int32),
            slice=slice_of.astype(np.int16),
            document=document.astype(np.int32),
            expert=recording.expert.astype(np.uint16),
            documents=self.names,
            dropped=recording.dropped,
            margin=recording.margin,
            gate=recording.gate,
            entropy=recording.entropy,
        )

    # ---- documents -------------------------------------------------------------------------------

    def _documents(self, recording: Recording) -> tuple[ndarray, ndarray]:
        """Return the number of each token's document, and of its slice."""
        n = len(recording.expert)
        if self._given is not None:
            return self._of_lengths(recording.where, n)
        if recording.slice is None:
            slice_of = np.full(n, self._slice(self.options.slice), np.int64)
        else:
            slice_of = np.array([self._slice(one) for one in recording.slices])[recording.slice]
        if recording.document is not None:
            _, first = np.unique(recording.document, return_index=True)
            numbers = [
                self._document(name, int(slice_of[at]))
                for name, at in zip(recording.documents, first, strict=True)
            ]
            return np.array(numbers)[recording.document], slice_of
        if recording.request:
            name = f"{self.options.slice}/{len(self.names)}"
        else:
            self.known.discard("documents")
            name = f"{self.options.slice}/0"
        return np.full(n, self._document(name, int(slice_of[0])), np.int64), slice_of

    def _of_lengths(self, where: str, n: int) -> tuple[ndarray, ndarray]:
        """Take the next documents of `--documents` for the tokens of a recording."""
        assert self._given is not None, where
        numbers, lengths = [], []
        left = n
        while left:
            if not self._given:
                raise UsageError(
                    f"{self.options.documents}: ends {left} tokens before the end of {where}"
                )
            one = self._given.popleft()
            if one.tokens > left:
                raise UsageError(
                    f"{self.options.documents}: document {len(self.names)} has {one.tokens} tokens, "
                    f"and {where} ends after {left} of them"
                )
            slice_name = one.slice or self.options.slice
            name = one.name or f"{slice_name}/{len(self.names)}"
            if name in self._numbers:
                raise UsageError(f"{self.options.documents}: names {name!r} twice")
            numbers.append(self._document(name, self._slice(slice_name)))
            lengths.append(one.tokens)
            left -= one.tokens
        slices = np.array([self.slice_of[number] for number in numbers])
        return np.repeat(numbers, lengths), np.repeat(slices, lengths)

    def _document(self, name: str, slice_number: int) -> int:
        number = self._numbers.setdefault(name, len(self.names))
        if number == len(self.names):
            self.names.append(name)
            self.slice_of.append(slice_number)
        return number

    def _slice(self, name: str) -> int:
        number = self.slices.setdefault(name, len(self.slices))
        if number >= 1 << 15:
            raise UsageError(f"{len(self.slices)} slices are too many")
        return number

    # ---- rows ------------------------------------------------------------------------------------

    def _rows(self, recording: Recording, document: ndarray) -> tuple[ndarray, ndarray]:
        """Return rows, numbered on, and positions."""
        n = len(document)
        given = recording.position
        told = self._given is not None or recording.document is not None or recording.request
        if given is None and recording.row is None and not told:
            self.known.discard("positions")
            return self.rows + np.arange(n), np.zeros(n, np.int64)
        begins = np.ones(n, bool)
        begins[1:] = document[1:] != document[:-1]
        if recording.row is not None:
            begins[1:] |= recording.row[1:] != recording.row[:-1]
        if given is not None:
            begins[1:] |= given[1:] != given[:-1].astype(np.int64) + 1
        row = self.rows + np.cumsum(begins) - 1
        starts = np.flatnonzero(begins)
        counted = np.arange(n) - np.repeat(starts, np.diff(np.append(starts, n)))
        return row, counted if given is None else given.astype(np.int64)


def _cuts(row: ndarray) -> Iterator[tuple[int, int]]:
    """Yield ranges of whole rows, of about TOKENS tokens each."""
    ends = np.append(np.flatnonzero(row[1:] != row[:-1]) + 1, len(row))
    start = 0
    while start < len(row):
        at = int(np.searchsorted(ends, start + TOKENS, side="right"))
        stop = int(ends[max(at - 1, 0)])
        if stop <= start:  # one row is longer
            stop = int(ends[at])
        yield start, stop
        start = stop


def _given(path: Path) -> deque[Document]:
    """Return the documents of a file. Errors: UsageError."""
    if path.suffix != ".json":
        lengths = stores.integers(path, ["documents", "lengths"])
        return deque(_document(int(one), path) for one in lengths)
    with stores.explained(path):
        told = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(told, list):
        raise UsageError(f'{path}: is no list of lengths, or of {{"tokens", "name", "slice"}}')
    return deque(_document(one, path) for one in told)


def _document(told: Any, path: Path) -> Document:
    found = told if isinstance(told, dict) else {"tokens": told}
    tokens, name, slice_name = (found.get(one) for one in ("tokens", "name", "slice"))
    texts = all(one is None or isinstance(one, str) for one in (name, slice_name))
    if type(tokens) is not int or tokens < 1 or not texts:
        raise UsageError(f"{path}: {told!r} is no document: a length above 0, or one with texts")
    return Document(tokens, name, slice_name)
