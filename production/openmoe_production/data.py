"""The pipeline from documents to batches, on Grain: same rows for the same seed, stopped anywhere.

documents, in an order of each pass -> groups of 128, read and tokenised ahead -> examples of each
objective -> mixed by drawn objectives -> packed rows -> batches. What is fed depends neither on the
number of threads nor on how far ahead they are, so a state may be taken up with others.
Needs the package grain (extra `data`).
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import islice
from multiprocessing import resource_tracker
from typing import Any, Self

import grain  # type: ignore[import-untyped, unused-ignore]
import numpy as np
from absl import flags
from numpy import ndarray

from openmoe_production import data_arguments
from openmoe_production.batching import Packer
from openmoe_production.data_statistics import Statistics, Stopwatch
from openmoe_production.sources import Task
from openmoe_production.streams import MODES, Encode, Mixed, Settings, Stream, streams_of
from openmoe_production.vocabulary import Vocabulary
from openmoe_spec.data import OBJECTIVES, SFT_ENDS
from openmoe_spec.errors import RejectedError

Features = dict[str, ndarray]

_MOST_PROCESSES = 2**20
_COMPARED = 64
"""Documents of each task of which a state's pipeline is told by their content."""


class Pipeline:
    """An iterator of batches int32 [B, L] by feature; the last ones of a single pass may be fewer rows.

    tasks       documents with their shares
    vocabulary  cuts texts; documents of ids need none
    threads     how many read and tokenise ahead in each stream; 0: when they are needed
    ahead       batches made ahead in a process of its own; 0: in this one, when they are needed
    statistics  what was fed since it was made
    A process of its own begins as multiprocessing's `spawn` does: a script that makes one guards what
    it does by `if __name__ == "__main__"`, and ends with `close`.
    Errors: RejectedError DATA-11. Spec: DATA-01..DATA-14, BATCH-06.
    """

    def __init__(
        self,
        tasks: Sequence[Task],
        settings: Settings,
        *,
        batch_size: int,
        vocabulary: Vocabulary | None = None,
        threads: int = 0,
        ahead: int = 0,
    ) -> None:
        _check(tasks, settings)
        data_arguments.whole("batch_size", batch_size, "DATA-11", least=1)
        self.lengths = settings.lengths
        self.streams = _streams(tasks, settings, vocabulary.encode_many if vocabulary else _no_text)
        self.statistics = Statistics(len(self.streams))
        self._digest = _digest(tasks, settings, vocabulary)
        mixed: Any = Mixed(self.streams, threads=threads)
        if settings.shuffle_buffer:
            mixed = grain.experimental.WindowShuffleIterDataset(
                mixed, window_size=settings.shuffle_buffer, seed=settings.seed % 2**32
            )
        self._rows = _Rows(mixed, settings.lengths, batch_size)
        self._ahead = ahead
        self._state: dict[str, Any] | None = None
        self._iterator: Any = None

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Features:
        begins = self._iterator is None
        if begins:
            self._iterator = self._begin()
        with _unheard_by_children() if begins and self._ahead else nullcontext():
            features, note = next(self._iterator)
        self._state = note.state
        self.statistics.add(features, note.origins, note.seconds)
        return dict(features)

    def get_state(self) -> dict[str, Any]:
        """Return where it is, for JSON: what the next batch follows from. Spec: DATA-12."""
        return {"pipeline": self._digest, "state": self._state}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """Go on from a state of a pipeline of the same documents and settings.

        Errors: RejectedError DATA-11. Spec: DATA-12.
        """
        if not isinstance(state, Mapping) or set(state) != {"pipeline", "state"}:
            raise RejectedError("state", "DATA-11", "is no state of a pipeline")
        if state["pipeline"] != self._digest:
            raise RejectedError(
                "state",
                "DATA-11",
                "is one of other documents or settings (compared are settings, vocabulary, sizes of "
                f"documents and the content of {_COMPARED} of them)",
            )
        self.close()
        self._state = None if state["state"] is None else dict(state["state"])

    def close(self) -> None:
        """End what reads ahead; the next batch begins it anew."""
        if self._iterator is not None:
            self._iterator.close()
            self._iterator = None

    def _begin(self) -> Iterator[tuple[Features, _Note]]:
        self._rows.begin = self._state
        dataset: Any = self._rows
        if self._ahead:
            if not flags.FLAGS.is_parsed():
                flags.FLAGS.mark_as_parsed()  # Grain reads some, which only a main program parses
            # In shared memory batches would last no longer than Grain's objects, and outlive them.
            piped = grain.experimental.DatasetOptions(min_shm_size=sys.maxsize)
            dataset = grain.experimental.WithOptionsIterDataset(dataset, piped)
            dataset = dataset.mp_prefetch(
                grain.MultiprocessingOptions(num_workers=1, per_worker_buffer_size=self._ahead),
                worker_init_fn=_end_with_parent,
            )
        return dataset.__iter__()


@contextmanager
def _unheard_by_children() -> Iterator[None]:
    """Keep an interrupt from a keyboard, which goes to children too, from those that begin meanwhile.

    They take over what is blocked, from their first moment on; whoever began them ends them.
    """
    resource_tracker.ensure_running()  # it would end the blocking if it began later
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent(*_: int) -> None:
    """End this process when the one that it works for has been killed, and can no longer end it."""

    def wait() -> None:
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


# ---- rows on Grain -----------------------------------------------------------------------------


class _Note:
    """What is told with a batch: where its examples are from, time by stage, the state behind it.

    No tuple and no dataclass: to Grain it is one thing, which it hands on.
    """

    def __init__(
        self,
        origins: list[tuple[int, bool]],
        seconds: Mapping[str, float],
        state: dict[str, Any],
    ) -> None:
        self.origins, self.seconds, self.state = origins, seconds, state


class _Rows(grain.IterDataset):  # type: ignore[misc, unused-ignore]
    """Batches of packed rows, each with a note.

    With its state a batch can wait anywhere, ahead of what was fed, and still say where to go on.
    """

    begin: dict[str, Any] | None = None

    def __init__(self, parent: Any, lengths: Mapping[str, int], batch_size: int) -> None:
        super().__init__(parent)
        self._lengths, self._batch_size = dict(lengths), batch_size

    def __iter__(self) -> _RowsIterator:
        made = _RowsIterator(self._parent.__iter__(), self._lengths, self._batch_size)
        if self.begin is not None:
            made.set_state(self.begin)
        return made


class _RowsIterator(grain.DatasetIterator):  # type: ignore[misc, unused-ignore]
    def __init__(self, parent: Any, lengths: Mapping[str, int], batch_size: int) -> None:
        super().__init__(parent)
        self._lengths, self._batch_size = lengths, batch_size
        self._packer = Packer(lengths=lengths)
        self._waiting: list[tuple[int, bool]] = []

    def __next__(self) -> tuple[Features, _Note]:
        watch = Stopwatch()
        seconds: dict[str, float] = {}
        while (wanted := self._batch_size - self._packer.closed) > 0:
            # A row holds an example or more: so many can be asked for, and none too many is.
            some = list(islice(self._parent, wanted))
            with watch.stage("packing"):
                for one in some:
                    self._packer.add(one.example)
            for one in some:
                if any(map(len, one.example.values())):  # a row shows nothing of an empty one
                    self._waiting.append((one.stream, one.ends_group))
                for stage, taken in one.seconds.items():
                    seconds[stage] = seconds.get(stage, 0.0) + taken
            if len(some) < wanted:
                self._packer.close()
                break
        if not self._packer.closed:
            raise StopIteration
        with watch.stage("packing"):
            features = self._packer.take(self._batch_size)
        examples = int(features["decoder_segment_ids"].max(axis=1).sum())
        origins, self._waiting = self._waiting[:examples], self._waiting[examples:]
        return features, _Note(origins, seconds | watch.seconds, self.get_state())

    def get_state(self) -> dict[str, Any]:
        return {
            "examples": self._parent.get_state(),
            "packer": self._packer.state,
            "waiting": [list(one) for one in self._waiting],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._parent.set_state(state["examples"])
        self._packer = Packer(lengths=self._lengths, state=state["packer"])
        self._waiting = [(stream, ends) for stream, ends in state["waiting"]]


# ---- what is given -----------------------------------------------------------------------------


def _check(tasks: Sequence[Task], settings: Settings) -> None:
    """Refuse what no pipeline can be made of. Errors: RejectedError DATA-11."""
    whole = data_arguments.whole
    data_arguments.one_of("mode", settings.mode, MODES, "DATA-11")
    whole("seed", settings.seed, "DATA-11", least=0)
    for name in settings.lengths:
        whole(f"{name}_length", settings.lengths[name], "DATA-11", least=2)
    whole("shuffle_buffer", settings.shuffle_buffer, "DATA-11", least=0)
    processes = whole(
        "num_processes", settings.num_processes, "DATA-11", least=1, most=_MOST_PROCESSES
    )
    whole("process", settings.process, "DATA-11", least=0, most=processes - 1)
    if settings.mode == "ul2" and len(settings.prompts) != len(OBJECTIVES):
        raise RejectedError("prompts", "DATA-11", f"must be {len(OBJECTIVES)}, one an objective")
    for objective in settings.objectives:
        whole("objectives", objective, "DATA-11", least=0, most=len(OBJECTIVES) - 1)
    if not settings.objectives or len(set(settings.objectives)) < len(settings.objectives):
        raise RejectedError("objectives", "DATA-11", "must be some of the objectives, each once")
    for i, one in enumerate(settings.prompts):
        data_arguments.ids(f"prompts[{i}]", one, "DATA-11", most=settings.vocabulary_size - 1)
    for task in tasks:
        data_arguments.finite("rate", task.rate, "DATA-11", least=sys.float_info.min)
        if settings.mode == "sft":
            data_arguments.one_of("task", task.name, tuple(SFT_ENDS), "DATA-11")


def _streams(tasks: Sequence[Task], settings: Settings, encode: Encode) -> list[Stream]:
    """Return the streams of all tasks. Errors: RejectedError DATA-11 when there is none."""
    found: list[Stream] = []
    for place, task in enumerate(tasks):
        found += streams_of(len(found), place, task, settings, encode)
    if not found:
        raise RejectedError("documents", "DATA-11", "hold no token")
    return found


def _no_text(_: Sequence[str]) -> list[ndarray]:
    raise RejectedError("vocabulary", "DATA-11", "must be given for documents of text")


def _digest(tasks: Sequence[Task], settings: Settings, vocabulary: Vocabulary | None) -> str:
    """Return a number for everything that what is fed follows from.

    Documents count by all their sizes and by the content of a few that are spread evenly: to read all
    of them would take as long as a pass. Times of files do not count, which a copy has not.
    """
    made = hashlib.sha256()
    chosen = {**vars(settings), "prompts": [one.tolist() for one in settings.prompts]}
    made.update(json.dumps(chosen, sort_keys=True).encode())
    for task in tasks:
        made.update(f"{task.name} {task.rate}".encode())
        made.update(np.ascontiguousarray(task.documents.sizes, np.int64).tobytes())
        filled = np.flatnonzero(task.documents.sizes)
        places = np.linspace(0, len(filled) - 1, min(len(filled), _COMPARED)).astype(np.intp)
        for number in filled[places].tolist():
            one = task.documents[number]
            shown = one.tolist() if isinstance(one, ndarray) else one
            made.update(json.dumps(shown, sort_keys=True).encode())
    if vocabulary is not None:
        made.update(vocabulary.processor.serialized_model_proto())
    return made.hexdigest()
