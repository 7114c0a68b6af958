"""The tables of an audit: counted, merged, kept in a file.

Everything is a sum of integers, so that parts of a text give the same tables in any order, however
they are divided among batches, processes and merges. Spec: AUDIT-02, AUDIT-21.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import fields
from pathlib import Path

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.counting import adding, table_files
from openmoe_tools.audit.counting.admitting import check_array
from openmoe_tools.audit.counting.cells import check_room, drop_marks, increase
from openmoe_tools.audit.counting.layout import Sizes, forms
from openmoe_tools.audit.counting.routed import Groups, Routed
from openmoe_tools.audit.counting.weighing import folds_of

_PIECE = 1 << 17
"""Cells of a table that are merged at once."""


class Tables:
    """The tables of `layout.forms`, by name in `arrays`; memory is taken where something is counted."""

    def __init__(self, sizes: Sizes) -> None:
        """Make tables that have counted nothing. Errors: UsageError on sizes that cannot be."""
        table_files.check_sizes(sizes)
        self.sizes = sizes
        self.arrays: dict[str, ndarray] = {
            name: np.zeros(form.shape, form.dtype) for name, form in forms(sizes).items()
        }

    def add(self, routed: Routed, groups: Sequence[Sequence[Groups]] = ()) -> None:
        """Count routed tokens, and whole groups by rule, or refuse them and change nothing.

        A row's tokens must be given together: neighbours are looked for among what is given at once.
        What is not known of the tokens leaves its tables as they are.
        Errors: UsageError. Spec: AUDIT-02, AUDIT-10, AUDIT-12 to AUDIT-14, AUDIT-16, AUDIT-17, AUDIT-25.
        """
        adding.count(self.arrays, self.sizes, routed, groups)

    def add_what_if(self, index: int, dropped: ndarray, position: ndarray) -> None:
        """Count what tokens would have lost under one of the sizes' `what_if`.

        dropped   bool [N, L, K]
        position  integers [N], of the tokens in their rows
        Errors: UsageError. Spec: AUDIT-18.
        """
        sizes, tokens = self.sizes, len(position)
        shape = (tokens, sizes.layers, sizes.choices)
        check_array("replayed drops", dropped, "b", shape)
        check_array("positions", position, "iu", (tokens,), sizes.length - 1)
        keys = adding.position_bins(position, sizes.length)
        found = drop_marks(np.ascontiguousarray(dropped.transpose(1, 2, 0)))
        adding.mark(self.arrays["what_if"][index], keys, found)

    def add_probabilities(self, sums: ndarray, log_sums: ndarray) -> None:
        """Add sums of the router's probabilities, in units of 2^-FIXED_POINT.

        sums      int64 [L, E]
        log_sums  int64 [L, 2]: tokens, and sums of squared log-sum-exps of the logits
        Errors: UsageError. Spec: AUDIT-13.
        """
        for name, more in {"probability": sums, "log_sum": log_sums}.items():
            check_array(f"sums of {name}", more, "i", self.arrays[name].shape)
            check_room(name, self.arrays[name], more)
        self.arrays["probability"] += sums
        self.arrays["log_sum"] += log_sums

    def count_documents(self, names: Sequence[str], slices: ndarray) -> None:
        """Count documents, each once, in their folds and slices.

        slices  integers [N], of the N names
        Errors: UsageError. Spec: AUDIT-25.
        """
        check_array("slices of documents", slices, "iu", (len(names),), self.sizes.slices - 1)
        cells = folds_of(names) * self.sizes.slices + slices
        increase(self.arrays["documents"], cells)

    def merge(self, other: Tables) -> None:
        """Add the tables of another part of the text, or refuse them and change nothing.

        Errors: UsageError where sizes differ, or a cell would not hold the sum. Spec: AUDIT-21.
        """
        for field in fields(Sizes):
            ours, theirs = getattr(self.sizes, field.name), getattr(other.sizes, field.name)
            if ours != theirs:
                raise UsageError(
                    f"tables: {field.name} {_shown(ours)} and {_shown(theirs)} cannot be merged; "
                    "the parts must be audited with the same model and recipe"
                )
        for name, mine, more in self._pieces(other):
            check_room(name, mine, more)
        for _, mine, more in self._pieces(other):
            np.add(mine, more, out=mine)

    def _pieces(self, other: Tables) -> Iterator[tuple[str, ndarray, ndarray]]:
        """Yield the pieces of tables in which the other has counted something, with our own."""
        for name, table in self.arrays.items():
            mine, more = table.reshape(-1), other.arrays[name].reshape(-1)
            for start in range(0, len(more), _PIECE):
                piece = more[start : start + _PIECE]
                if piece.any():  # nothing is written, and no memory taken, for zeros
                    yield name, mine[start : start + _PIECE], piece

    def save(self, path: Path) -> None:
        """Write the tables as an npz file; the same tables are the same bytes. Errors: UsageError."""
        table_files.write(path, self.sizes, self.arrays)

    @classmethod
    def load(cls, path: Path) -> Tables:
        """Return the tables of a file, or refuse one that is damaged or of another kind.

        Errors: UsageError.
        """
        found = cls.__new__(cls)
        found.sizes, found.arrays = table_files.read(path)
        return found


def _shown(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(map(str, value)) + ")"
    return str(value)
