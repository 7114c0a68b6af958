"""Columns of a trace to arrays; values that cannot be are refused with their place. Spec: AUDIT-02."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.counting.routed import Routed
from openmoe_tools.audit.trace.columns import Head, Kinds, columns, dropped_columns


class Decoder:
    """What makes `Routed` of batches of a trace's columns."""

    def __init__(self, head: Head, kinds: Kinds, documents: Sequence[str]) -> None:
        self._head, self._kinds, self._documents = head, kinds, documents
        self._dtypes = {one.name: one.dtype for one in columns(head, kinds)}
        self._slices = {name: number for number, name in enumerate(head.slices)}

    def decode(self, batch: Any, path: Path, start: int) -> Routed:
        """Return the tokens of a batch, whose first is token `start` of its file. Errors: UsageError."""
        head = self._head
        found = {name: self._column(batch, name, path) for name in self._dtypes}
        limits = {
            "document": len(self._documents),
            "token": head.vocabulary_size,
            "position": head.length,
            "row": 1 << 31,
        }
        for name, limit in limits.items():
            self._below(found[name], limit, f"{path}: {name}", start)
        expert = self._by_choice(found, "e")
        check_experts(expert, head.experts, str(path), start)
        return Routed(
            row=found["row"].astype(np.int64),
            position=found["position"].astype(np.int32),
            token=found["token"].astype(np.int32),
            slice=self._slice(batch, path, start),
            document=found["document"],
            expert=expert.astype(np.uint16),
            documents=self._documents,
            dropped=self._dropped(found, path, start) if self._kinds.dropped else None,
            place=self._place(found) if self._kinds.places else None,
            margin=self._margin(found) if self._kinds.margin and self._kinds.order else None,
            gate=self._by_choice(found, "g").astype(np.float32) if self._kinds.gates else None,
            entropy=self._by_layer(found, "entropy") if self._kinds.entropy else None,
        )

    # ---- columns -----------------------------------------------------------------------------------

    def _column(self, batch: Any, name: str, path: Path) -> ndarray:
        column = batch.column(batch.schema.get_field_index(name))
        if column.null_count:
            raise UsageError(f"{path}: column {name} has gaps")
        values = column.to_numpy(zero_copy_only=False)
        if values.dtype != self._dtypes[name]:
            raise UsageError(f"{path}: column {name} is {column.type}, not {self._dtypes[name]}")
        return values

    def _slice(self, batch: Any, path: Path, start: int) -> ndarray:
        import pyarrow as pa  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415

        column = batch.column(batch.schema.get_field_index("slice"))
        if pa.types.is_string(column.type):
            column = column.dictionary_encode()
        if column.null_count or not pa.types.is_dictionary(column.type):
            raise UsageError(f"{path}: column slice has gaps, or no names")
        used = column.indices.to_numpy(zero_copy_only=False)
        numbers = [self._slices.get(one, -1) for one in column.dictionary.to_pylist()]
        self._below(used, len(numbers), f"{path}: slice, by number,", start)
        found = np.array(numbers, np.int16)[used]
        if (found < 0).any():
            name = column.dictionary[int(used[found < 0][0])].as_py()
            raise UsageError(f"{path}: has a slice {name!r} that its metadata does not name")
        return found

    def _by_choice(self, found: dict[str, ndarray], letter: str) -> ndarray:
        layers = [
            np.stack([found[f"l{m}_{letter}{r}"] for r in range(self._head.choices)], axis=-1)
            for m in range(len(self._head.layers))
        ]
        return np.stack(layers, axis=1)

    def _by_layer(self, found: dict[str, ndarray], name: str) -> ndarray:
        layers = range(len(self._head.layers))
        return np.stack([found[f"l{m}_{name}"] for m in layers], axis=-1)

    def _margin(self, found: dict[str, ndarray]) -> ndarray:
        return np.stack([self._by_layer(found, "margin"), self._by_layer(found, "order")])

    def _place(self, found: dict[str, ndarray]) -> ndarray:
        return np.stack([found[f"place_{rule}"] for rule in self._head.rules]).astype(np.int32)

    def _dropped(self, found: dict[str, ndarray], path: Path, start: int) -> ndarray:
        layers, choices = len(self._head.layers), self._head.choices
        rules = []
        for rule in self._head.rules:
            flags = []
            for name, bits in dropped_columns(self._head, rule):
                values = found[name].astype(np.uint64)
                if len(bits) < 64:
                    self._below(values, 1 << len(bits), f"{path}: {name}", start)
                flags += [(values >> np.uint64(bit)) & np.uint64(1) for bit in range(len(bits))]
            rules.append(np.stack(flags, axis=-1).astype(bool).reshape(-1, layers, choices))
        return np.stack(rules)

    @staticmethod
    def _below(values: ndarray, limit: int, where: str, start: int) -> None:
        wrong = (values < 0) | (values >= limit)
        if wrong.any():
            at = int(np.flatnonzero(wrong)[0])
            raise UsageError(f"{where} of token {start + at} is {values[at]}, not below {limit}")


def check_experts(expert: ndarray, experts: int, where: str, start: int = 0) -> None:
    """Refuse an expert [N, L, K] that there is not, and one that a token names twice.

    where, start  what is said of the place: a file, and the number of the first token
    Errors: UsageError. Spec: AUDIT-27.
    """
    wrong = (expert < 0) | (expert >= experts)
    if wrong.any():
        n, m, r = (int(one[0]) for one in np.nonzero(wrong))
        raise UsageError(
            f"{where}: token {start + n}, layer {m}: choice {r} is {expert[n, m, r]}, and there are "
            f"{experts} experts, 0 to {experts - 1} (255, 65535 and -1 are what recorders leave "
            "where they recorded nothing)"
        )
    ordered = np.sort(expert, axis=-1)
    twice = ordered[..., 1:] == ordered[..., :-1]
    if twice.any():
        n, m, r = (int(one[0]) for one in np.nonzero(twice))
        raise UsageError(
            f"{where}: token {start + n}, layer {m}: expert {ordered[n, m, r]} is named twice"
        )
