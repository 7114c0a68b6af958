"""Tables by document: in which fold a document counts, and how often in each replicate.

A batch's documents have small tables of their own first; sums over documents, each with its weight,
are matrix products. These are of float64, which is exact: no sum is larger than the largest weight
times the choices of a batch, far below 2^53. Spec: AUDIT-25.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_reference.audit_inference import document_fold, document_weights
from openmoe_spec.errors import RejectedError
from openmoe_tools.audit.counting.cells import Marks, compressed
from openmoe_tools.audit.counting.layout import FOLDS, REPLICATES
from openmoe_tools.audit.counting.routed import Routed

MEMORY = 64 << 20
"""Bytes of the largest table by document, which is held for so many documents at once."""


@lru_cache(maxsize=8192)
def _known(name: str) -> tuple[int, bytes]:
    """Return a document's fold, and its weights as bytes."""
    try:
        fold = document_fold(name, folds=FOLDS)
        weights = document_weights(name, replicates=REPLICATES)
    except (RejectedError, UnicodeEncodeError) as error:
        raise UsageError(f"document {name!r}: is no name; documents are named by text") from error
    return fold, weights.astype(np.uint8).tobytes()


def weights_of(name: str) -> ndarray:
    """Return how often a document counts in each replicate. Errors: UsageError. Spec: AUDIT-25."""
    return np.frombuffer(_known(name)[1], np.uint8).astype(np.int64)


def folds_of(names: Sequence[str]) -> ndarray:
    """Return the folds of documents, int64. Errors: UsageError. Spec: AUDIT-25."""
    return np.array([_known(name)[0] for name in names], np.int64)


@dataclass(frozen=True)
class Block:
    """Documents of a batch, each in one slice: P of them.

    number   int64 [N]   which of them each token of the batch is in; of no other number: in none
    slices   int64 [P]
    folds    int64 [P]
    weights  float64 [P, REPLICATES]
    """

    number: ndarray
    slices: ndarray
    folds: ndarray
    weights: ndarray

    def table(self, found: Marks, cells: int) -> ndarray:
        """Return how often each document has each cell, float64 [P, cells]."""
        number, cell, size = self.number[found.token], found.cell, len(self.slices)
        if len(number) and (number.min() < 0 or number.max() >= size):
            inside = (number >= 0) & (number < size)
            number, cell = number[inside], cell[inside]
        counted = np.bincount(number * cells + cell, minlength=size * cells)
        return counted.reshape(size, cells).astype(np.float64)

    def members(self) -> Iterator[tuple[int, ndarray]]:
        """Yield each slice that there is, and which of the documents are in it."""
        for one in np.unique(self.slices).tolist():
            yield one, np.flatnonzero(self.slices == one)

    def replicated(self, table: ndarray, members: ndarray | slice) -> ndarray:
        """Return the sums over some documents by replicate, int64 [REPLICATES, cells]."""
        return (self.weights[members].T @ table[members]).astype(np.int64)

    def folded(self, table: ndarray, members: ndarray) -> ndarray:
        """Return the sums over some documents by fold, int64 [FOLDS, cells]."""
        inside = self.folds[members] == np.arange(FOLDS)[:, None]
        return (inside.astype(np.float64) @ table[members]).astype(np.int64)


@dataclass(frozen=True)
class Documents:
    """The documents of a batch, once for each slice in which they have tokens.

    number  int64 [N]  which of them each token is in
    fold    int64 [N]  of each token
    """

    number: ndarray
    fold: ndarray
    _names: Sequence[str]
    _slices: ndarray
    _folds: ndarray

    @classmethod
    def of(cls, routed: Routed, slices: int) -> Documents:
        """Return the documents of routed tokens. Errors: UsageError."""
        document, inside = compressed(routed.document, len(routed.documents))
        keys = inside * slices + routed.slice
        pair, number = compressed(keys, len(document) * slices)
        names = [routed.documents[one] for one in document[pair // slices].tolist()]
        folds = folds_of(names)
        return cls(number, folds[number], names, pair % slices, folds)

    def blocks(self, cells: int) -> Iterator[Block]:
        """Yield the documents, as many at once as have tables of so many cells in bounded memory."""
        step = max(1, MEMORY // (8 * cells))
        for first in range(0, len(self._names), step):
            part = slice(first, first + step)
            weights = b"".join(_known(name)[1] for name in self._names[part])
            yield Block(
                self.number - first,
                self._slices[part],
                self._folds[part],
                np.frombuffer(weights, np.uint8).reshape(-1, REPLICATES).astype(np.float64),
            )
