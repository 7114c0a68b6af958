"""Mutants of SPEC.md "Batching": packing, and the traps of ids 0 and empty targets."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.mutants.batching import Examples, Features, other, tokens
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import batching

PACKED, SHIFTED = batching.packed, batching.shifted
"""The reference's own, for mutants that put others in their places."""


# ---- packed ------------------------------------------------------------------------------------


class _OtherPacking(ReferenceAdapter):
    """Rows that are packed in another way."""

    def packed(self, examples: Sequence[batching.Parts], length: int) -> dict[str, ndarray]:
        raise NotImplementedError

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        with patch.object(batching, "packed", self.packed):
            return super().decoder_features(examples, **options)


@mutant("BATCH-06")
class RowsAreFilledUpAgain(_OtherPacking):
    """An example goes into the first row that has room."""

    def packed(self, examples: Sequence[batching.Parts], length: int) -> dict[str, ndarray]:
        rows: list[list[batching.Parts]] = []
        for one in examples:
            size = np.count_nonzero(one["targets"])
            for row in rows:
                if sum(np.count_nonzero(o["targets"]) for o in row) + size <= length:
                    row.append(one)
                    break
            else:
                rows.append([one])
        made = [PACKED(row, length) for row in rows]
        return {name: np.concatenate([one[name] for one in made]) for name in made[0]}


@mutant("BATCH-06")
class BatchesAreNeverClosed(_OtherPacking):
    """A row stays open however many examples came."""

    def packed(self, examples: Sequence[batching.Parts], length: int) -> dict[str, ndarray]:
        kept: list[list[batching.Parts]] = [[]]
        used = 0
        for one in examples:
            size = max(int(np.count_nonzero(part)) for part in one.values())
            if used + size > length:
                kept.append([])
                used = 0
            kept[-1].append(one)
            used += size
        found = [
            {n: a[:, :length] for n, a in PACKED(row, max(len(row), length)).items()}
            for row in kept
            if row
        ]
        return {name: np.concatenate([one[name] for one in found]) for name in found[0]}


@mutant("BATCH-06")
class OneExampleARow(_OtherPacking):
    """Nothing is packed."""

    def packed(self, examples: Sequence[batching.Parts], length: int) -> dict[str, ndarray]:
        made = [PACKED([one], length) for one in examples]
        return {name: np.concatenate([one[name] for one in made]) for name in made[0]}


@mutant("BATCH-07")
class PositionsRunOn(ReferenceAdapter):
    """Positions count from 0 in the row, not in each example."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        right = super().decoder_features(examples, **options)
        if not options["pack"]:
            return right
        real = right["decoder_segment_ids"] > 0
        return other(right, "positions", np.arange(real.shape[1]) * real)


@mutant("BATCH-07")
class SegmentsCountFrom0(ReferenceAdapter):
    """The first example of a row is segment 0, as padding is."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        right = super().decoder_features(examples, **options)
        if not options["pack"]:
            return right
        return other(right, "segment_ids", np.maximum(right["decoder_segment_ids"] - 1, 0))


@mutant("BATCH-07")
class ExamplesBeginWithTheEndBefore(ReferenceAdapter):
    """An example in the middle of a row is fed the last id of the one before it."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        def running(targets: ndarray, _: ndarray | None = None, *, start: int) -> ndarray:
            return SHIFTED(targets, None, start=start)

        with patch.object(batching, "shifted", running):
            return super().decoder_features(examples, **options)


@mutant("BATCH-07")
class OnlyRowsBeginWithTheStart(ReferenceAdapter):
    """An example in the middle of a row begins with 0, whatever the start token is."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        right = super().decoder_features(examples, **options)
        fed, segments = right["decoder_input_tokens"], right.get("decoder_segment_ids")
        if segments is None:
            return right
        begins = np.diff(segments, axis=1, prepend=segments[:, :1]) != 0
        return other(right, "input_tokens", np.where(begins, 0, fed))


# ---- traps -------------------------------------------------------------------------------------


@mutant("BATCH-08")
class PaddingNeverHasAWeight(ReferenceAdapter):
    """Weights are those of targets that are not 0: what one would write without looking."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        right = super().decoder_features(examples, **options)
        return other(right, "loss_weights", right["decoder_loss_weights"] * (tokens(right) != 0))


@mutant("BATCH-08")
class ExamplesAreAsLongAsTheyAre(_OtherPacking):
    """An id 0 inside a packed example takes a position."""

    def packed(self, examples: Sequence[batching.Parts], length: int) -> dict[str, ndarray]:
        marked = [
            {n: np.where((n == "targets") & (a == 0), -7, a) for n, a in one.items()}
            for one in examples
        ]
        rows = PACKED(marked, length)
        return {**rows, "targets": np.where(rows["targets"] == -7, 0, rows["targets"])}


@mutant("BATCH-08")
class CausalRowsCountEveryId(_OtherPacking):
    """A causal example takes as many places as it has ids, those of 0 too."""

    def packed(self, examples: Sequence[batching.Parts], length: int) -> dict[str, ndarray]:
        if "widths" in examples[0]:
            return PACKED(examples, length)
        sized = [{**one, "sizes": np.ones(len(one["targets"]), np.int64)} for one in examples]
        return PACKED(sized, length)


@mutant("BATCH-09")
class EmptyTargetsStayEmpty(ReferenceAdapter):
    """No id is put in their place."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        laid_out = batching._laid_out  # noqa: SLF001 - the one place where it is put

        def bare(example: Any, sizes: Mapping[str, int], name: str) -> batching.Parts:
            parts = laid_out(example, sizes, name)
            if "inputs" in sizes and not len(example["targets"]):
                return {n: a[:-1] for n, a in parts.items()}
            return parts

        with patch.object(batching, "_laid_out", bare):
            return super().decoder_features(examples, **options)


@mutant("BATCH-09")
class EmptyTargetsAreAnEnd(ReferenceAdapter):
    """An example without targets learns to end."""

    def decoder_features(self, examples: Examples, **options: Any) -> Features:
        if "inputs" in options["lengths"] and all("targets" in one for one in examples):
            examples = [
                {**one, "targets": one["targets"] if len(one["targets"]) else np.array([1])}
                for one in examples
            ]
        return super().decoder_features(examples, **options)
