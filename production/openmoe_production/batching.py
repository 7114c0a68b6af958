"""From examples to the rows that a model is fed, int32: all at once, or row by row from a stream.

Which row an example goes to follows from sizes alone, by a loop over whole numbers. A row is then
runs of tokens and runs of equal numbers, its padding one of them, so all rows are laid end to end.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from typing import Any, NamedTuple

import numpy as np

from openmoe_production.data_arguments import MOST, id_array, ids, largest, sequence, whole
from openmoe_spec.data import PAD
from openmoe_spec.errors import RejectedError

Features = dict[str, np.ndarray]
"""Rows int32 [B, L] by feature, each name with `decoder_` in front."""


def decoder_features(
    examples: Sequence[Mapping[str, np.ndarray]],
    *,
    lengths: Mapping[str, int],
    pack: bool,
    loss_on_targets_only: bool = True,
    start: int = PAD,
) -> Features:
    """Return rows [B, L]; L is the sum of the lengths of `inputs`, if any, and `targets`.

    Errors: RejectedError BATCH-10. Spec: BATCH-01 to BATCH-09.
    """
    form = _form(lengths, pack, loss_on_targets_only, start)
    if not sequence("examples", examples, "BATCH-10"):
        raise RejectedError("examples", "BATCH-10", "must be at least one")
    laid = [form.laid(one, f"examples[{place}]") for place, one in enumerate(examples)]
    if not pack:
        return form.features([[one] for one in laid])
    opened = _Opened(form.length)
    rows = [row for one in laid for row in opened.add(one)]
    return form.features(rows + opened.close())


class Packer:
    """Packs a stream of examples, one at a time, into the rows of `decoder_features`.

    `state` is where it stands, whole numbers and lists of them: a packer that is made with it goes
    on from there. Errors: RejectedError BATCH-10. Spec: BATCH-06 to BATCH-09.
    """

    def __init__(
        self,
        *,
        lengths: Mapping[str, int],
        loss_on_targets_only: bool = True,
        start: int = PAD,
        state: Mapping[str, Any] | None = None,
    ) -> None:
        self._form = _form(lengths, True, loss_on_targets_only, start)
        self._opened = _Opened(self._form.length)
        self._closed: list[list[_Laid]] = []
        if state is not None:
            self._restore(state)

    @property
    def closed(self) -> int:
        """How many rows can be taken."""
        return len(self._closed)

    @property
    def state(self) -> dict[str, Any]:
        """What the open row and closed ones hold, and how many examples of the batch there were."""
        return {
            "taken": self._opened.taken,
            "open": [one.plain() for one in self._opened.row],
            "closed": [[one.plain() for one in row] for row in self._closed],
        }

    def add(self, example: Mapping[str, np.ndarray]) -> None:
        """Lay an example into the open row; where it does not fit, into the next one."""
        self._closed += self._opened.add(self._form.laid(example, "example"))

    def close(self) -> None:
        """Close the open row, if any, as the stream has ended."""
        self._closed += self._opened.close()

    def take(self, count: int) -> Features:
        """Return the first closed rows [B, L], `count` of them at most, of at least one."""
        if not self._closed:
            raise RejectedError("count", "BATCH-10", "no row is closed")
        rows, self._closed = self._closed[:count], self._closed[count:]
        return self._form.features(rows)

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Errors: RejectedError BATCH-10 on what was never returned as one."""
        given = state if isinstance(state, Mapping) else {}
        length = self._form.length
        taken = whole("taken", given.get("taken"), "BATCH-10", least=0, most=length - 1)
        row = _row("open", given.get("open"), length)
        if len(row) > taken:
            raise RejectedError("open", "BATCH-10", f"holds more than the {taken} that were taken")
        closed = sequence("closed", given.get("closed"), "BATCH-10")
        self._closed = [_row(f"closed[{i}]", one, length) for i, one in enumerate(closed)]
        self._opened = _Opened(length, row, taken)


def feed_statistics(features: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Return rows, positions, tokens, loss_positions and examples of some rows [B, L].

    Errors: RejectedError BATCH-10. Spec: BATCH-11.
    """
    targets, weights = (
        features.get(name) if isinstance(features, Mapping) else None
        for name in ("decoder_target_tokens", "decoder_loss_weights")
    )
    if not all(isinstance(one, np.ndarray) and one.ndim == 2 for one in (targets, weights)):
        raise RejectedError("features", "BATCH-10", "must hold targets and weights [B, L]")
    assert targets is not None
    assert weights is not None
    segments = features.get("decoder_segment_ids", targets != PAD)
    return {
        "rows": len(targets),
        "positions": targets.size,
        "tokens": int(np.count_nonzero(targets)),
        "loss_positions": int(np.count_nonzero(weights)),
        "examples": int(segments.max(axis=1, initial=0).sum()),
    }


# ---- which row ---------------------------------------------------------------------------------


class _Laid(NamedTuple):
    """One example as it is laid out.

    ids    of inputs and targets, one after another; packed, as many of them as are not 0
    size   places of a row that it takes: of all its ids, and one where there are no targets
    width  length of its inputs
    """

    ids: np.ndarray
    size: int
    width: int

    def plain(self) -> list[Any]:
        """Return its fields, for JSON."""
        return [self.ids.tolist(), self.size, self.width]


def _row(name: str, given: Any, length: int) -> list[_Laid]:
    """Return a row of a state. Errors: RejectedError BATCH-10."""
    row, used = [], 0
    for one in sequence(name, given, "BATCH-10"):
        if len(sequence(name, one, "BATCH-10")) != len(_Laid._fields):
            raise RejectedError(name, "BATCH-10", "must hold ids, size and width of each example")
        tokens = ids(name, one[0], "BATCH-10")
        size = whole(name, one[1], "BATCH-10", least=len(tokens), most=length - used)
        row.append(_Laid(tokens, size, whole(name, one[2], "BATCH-10", least=0, most=size)))
        used += size
    return row


class _Opened:
    """The row that is being filled, and how many examples of a batch were taken."""

    def __init__(self, length: int, row: Sequence[_Laid] = (), taken: int = 0) -> None:
        self._length = length
        self.row, self.taken = list(row), taken
        self._used = sum(one.size for one in row)

    def add(self, one: _Laid) -> list[list[_Laid]]:
        """Return the rows that one more example closes."""
        closed = []
        if self._used + one.size > self._length:
            closed, self.row, self._used = [self.row], [], 0
        self.row.append(one)
        self._used += one.size
        self.taken += 1
        # A batch of the packing is as many examples as a row has positions.
        return closed + self.close() if self.taken == self._length else closed

    def close(self) -> list[list[_Laid]]:
        """Return the row, if any, at the end of a batch."""
        closed = [self.row] if self.row else []
        self.row, self._used, self.taken = [], 0, 0
        return closed


# ---- laying out --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Form:
    """What rows look like: checked lengths by feature, whether packed, the weights, the start."""

    lengths: Mapping[str, int]
    pack: bool
    loss_on_targets_only: bool
    start: int

    @property
    def length(self) -> int:
        """Positions of a row."""
        return sum(self.lengths.values())

    def laid(self, example: Any, name: str) -> _Laid:
        """Return an example as it is laid out. Errors: RejectedError BATCH-10.

        Spec: BATCH-01, BATCH-08, BATCH-09.
        """
        if not isinstance(example, Mapping) or not self.lengths.keys() <= example.keys():
            raise RejectedError(name, "BATCH-10", f"must be a mapping of {', '.join(self.lengths)}")
        parts = [id_array(f"{name}[{part!r}]", example[part], "BATCH-10") for part in self.lengths]
        for one, length in zip(parts, self.lengths.values(), strict=True):
            if len(one) > length:
                raise RejectedError(name, "BATCH-10", f"has {len(one)} ids where {length} fit")
        joined = np.concatenate(parts)
        largest(name, joined, "BATCH-10")  # refuses negative ones
        is_pair = len(parts) == 2
        size = len(joined) + (is_pair and not len(parts[1]))
        if self.pack:
            joined = joined[: np.count_nonzero(joined)]
        return _Laid(joined, size, len(parts[0])) if is_pair else _Laid(joined, len(joined), 0)

    def features(self, rows: Sequence[Sequence[_Laid]]) -> Features:
        """Return the features of rows of examples. Spec: BATCH-01 to BATCH-05, BATCH-07."""
        steps, padding = np.arange(self.length, dtype=np.int32), np.zeros(self.length, np.int32)
        filled = [(*row, _rest(row, padding)) for row in rows]
        laid = list(chain.from_iterable(filled))
        shape = len(rows), self.length
        targets = np.concatenate([one.ids for one in laid]).reshape(shape)
        real = targets != PAD
        before = np.empty_like(targets)
        before[:, 0] = self.start
        before[:, 1:] = targets[:, :-1]
        features = {"target_tokens": targets, "input_tokens": before, "loss_weights": real}
        positions = steps
        if self.pack:
            counts = [len(one.ids) for one in laid]
            places = [(padding if one.width < 0 else steps)[: len(one.ids)] for one in laid]
            positions = np.concatenate(places).reshape(shape)
            numbers = [accumulate(len(one.ids) > 0 for one in row) for row in filled]
            segments = np.repeat(_int32(chain.from_iterable(numbers)), counts).reshape(shape) * real
            np.copyto(before[:, 1:], self.start, where=segments[:, 1:] != segments[:, :-1])
        if "inputs" in self.lengths:
            behind = np.repeat(_int32(one.width + 1 for one in laid), [one.size for one in laid])
            behind = behind.reshape(shape)
            if self.loss_on_targets_only:
                features["loss_weights"] = (positions < behind - 1) ^ real
            features["causal_attention"] = positions < behind
        if self.pack:
            features |= {"segment_ids": segments, "positions": positions}
        return {
            f"decoder_{name}": array.astype(np.int32, copy=False)
            for name, array in features.items()
        }


def _rest(row: Sequence[_Laid], padding: np.ndarray) -> _Laid:
    """Return a row's padding as if it were an example; its width makes it none."""
    tokens, size = sum(len(one.ids) for one in row), sum(one.size for one in row)
    return _Laid(padding[tokens:], len(padding) - size, -1)


def _int32(numbers: Iterable[int]) -> np.ndarray:
    return np.fromiter(numbers, np.int32)


def _form(lengths: Any, pack: bool, loss_on_targets_only: bool, start: Any) -> _Form:
    names = set(lengths) if isinstance(lengths, Mapping) else set()
    if "targets" not in names or not names <= {"inputs", "targets"}:
        raise RejectedError("lengths", "BATCH-10", "must be of targets, or of inputs and targets")
    checked = {
        name: whole(f"lengths[{name!r}]", lengths[name], "BATCH-10", least=least)
        for name, least in (("inputs", 0), ("targets", 1))
        if name in names
    }
    start = whole("start", start, "BATCH-10", least=0, most=MOST)
    return _Form(checked, pack, loss_on_targets_only, start)
