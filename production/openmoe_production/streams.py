"""Endless streams of examples that can be stopped anywhere: groups of documents, drawn from in turn.

A group's examples follow from its number alone: (seed, process, task, stream, pass, group). So groups
may be read and tokenised ahead, by any number of threads, and a state is where each stream stands.
Needs the package grain (extra `data`).
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import islice
from typing import Any, NamedTuple

import grain  # type: ignore[import-untyped, unused-ignore]
import numpy as np
from numpy import ndarray

from openmoe_production import documents as parts
from openmoe_production.data_statistics import Stopwatch
from openmoe_production.draws import document_blocks, segment_draws
from openmoe_production.objectives import Example, finish_example, ul2_examples
from openmoe_production.sources import Task
from openmoe_spec.data import GROUP_OF_DOCUMENTS, OBJECTIVES, SFT_ENDS
from openmoe_spec.errors import RejectedError

Encode = Callable[[Sequence[str]], list[ndarray]]
"""Texts to ids, for any thread."""

MODES = ("ul2", "full_lm", "sft")


@dataclass(frozen=True)
class Settings:
    """What is fed: two pipelines of equal settings and documents feed the same rows.

    mode            ul2, full_lm or sft
    inputs_length   of ul2 and sft alone
    prompts         ids of each objective's mode, of ul2 alone
    objectives      of ul2 those that are fed; a single one takes every group
    repeat          begin anew with the groups of a stream that has ended, for ever (DATA-14)
    shuffle         take the documents of each pass in an order of its own
    shuffle_buffer  examples among which the next one is drawn; 0: they come as they are drawn
    """

    mode: str
    seed: int
    inputs_length: int
    targets_length: int
    vocabulary_size: int
    prompts: tuple[ndarray, ...] = ()
    objectives: tuple[int, ...] = tuple(range(len(OBJECTIVES)))
    repeat: bool = True
    shuffle: bool = True
    shuffle_buffer: int = 0
    process: int = 0
    num_processes: int = 1

    @property
    def lengths(self) -> dict[str, int]:
        """The length of each feature."""
        inputs = {} if self.mode == "full_lm" else {"inputs": self.inputs_length}
        return inputs | {"targets": self.targets_length}


class Fed(NamedTuple):
    """An example on its way, and where it is from.

    stream      its place among the streams
    ends_group  whether it is the last of its group: its segment may be shorter than others
    seconds     processor time by stage that its group took, told with the group's last example
    """

    example: Example
    stream: int
    ends_group: bool
    seconds: Mapping[str, float]


def generator(seed: int, *place: int) -> np.random.Generator:
    """Return the generator of a place in the pipeline, independent of any other place's."""
    return np.random.default_rng(np.random.SeedSequence(seed, spawn_key=place))


@dataclass(frozen=True)
class Stream:
    """The examples of one objective of one task, by group: what Grain calls a source.

    number     its place among the streams
    place      that of its task
    objective  of ul2 alone, else 0
    rate       its share of the examples, any number above 0
    own        numbers of this process's documents that are not empty
    groups     those of a pass, by number
    """

    number: int
    place: int
    task: Task
    objective: int
    rate: float
    own: ndarray = field(repr=False)
    groups: Sequence[int] = field(repr=False)
    settings: Settings
    encode: Encode = field(repr=False)

    def __len__(self) -> int:
        passes = sys.maxsize // len(self.groups) if self.settings.repeat else 1
        return passes * len(self.groups)

    def __getitem__(self, number: int) -> list[Fed]:
        """Return the examples of a group; numbers beyond the first pass begin anew."""
        turn, place = divmod(number, len(self.groups))
        group = self.groups[place]
        watch = Stopwatch()
        with watch.stage("reading"):
            read: list[Any] = [self.task.documents[i] for i in self._numbers(turn, group)]
        settings = self.settings
        of_group = (settings.process, self.place, self.objective, turn, group)
        draws = generator(settings.seed, _GROUPS, *of_group)
        make = self._answers if settings.mode == "sft" else self._of_text
        made = make(read, draws, watch)
        if not made:
            raise RejectedError("documents", "DATA-11", f"hold no token in group {group}")
        last = len(made) - 1
        return [
            Fed(one, self.number, i == last, watch.seconds if i == last else {})
            for i, one in enumerate(made)
        ]

    def _numbers(self, turn: int, group: int) -> list[int]:
        count, first = len(self.own), GROUP_OF_DOCUMENTS * group
        places = np.arange(first, min(first + GROUP_OF_DOCUMENTS, count))
        if self.settings.shuffle:
            of_pass = (self.settings.process, self.place, turn)
            places = _order(count, self.settings.seed, *of_pass)[places]
        return self.own[places].tolist()

    def _of_text(
        self, read: Sequence[Any], draws: np.random.Generator, watch: Stopwatch
    ) -> list[Example]:
        """Return the examples of documents joined into one, of ul2 or of the causal stream."""
        settings = self.settings
        if isinstance(read[0], str):
            with watch.stage("tokenising"):
                read = self.encode(read)
        with watch.stage("objectives"):
            blocks = document_blocks(read, draws)
            if settings.mode == "full_lm":
                segments = parts.full_lm_segments(blocks, length=settings.targets_length)
                return [{"targets": one} for one in segments]
            joined = sum(map(np.count_nonzero, blocks))
            segments = parts.objective_segments(
                blocks,
                self.objective,
                inputs_length=settings.inputs_length,
                block=int(draws.integers(max(parts.num_blocks(joined), 1))),
            )
            drawn = segment_draws(self.objective, [len(one) for one in segments], draws)
            return ul2_examples(
                segments,
                self.objective,
                inputs_length=settings.inputs_length,
                targets_length=settings.targets_length,
                vocabulary_size=settings.vocabulary_size,
                prompt=settings.prompts[self.objective],
                **drawn,
            )

    def _answers(
        self, read: Sequence[Any], _: np.random.Generator, watch: Stopwatch
    ) -> list[Example]:
        """Return the examples of records of fields, one each."""
        settings, name = self.settings, self.task.name
        texts = [parts.sft_texts(name, one) for one in read]
        with watch.stage("tokenising"):
            inputs, targets = (
                self.encode([one[feature] for one in texts]) for feature in ("inputs", "targets")
            )
        with watch.stage("objectives"):
            return [
                finish_example(
                    *pair,
                    inputs_length=settings.inputs_length,
                    targets_length=settings.targets_length,
                    ends=SFT_ENDS[name],
                )
                for pair in zip(inputs, targets, strict=True)
            ]


_GROUPS, _ORDER, _CHOICES = range(3)
"""What the first number of a generator's place stands for."""


@lru_cache(maxsize=2 * len(OBJECTIVES))  # streams of a task are in passes of their own
def _order(count: int, seed: int, *of_pass: int) -> ndarray:
    """Return the order of the documents of a task in one pass."""
    return generator(seed, _ORDER, *of_pass).permutation(np.arange(count, dtype=np.uint32))


def streams_of(
    number: int, place: int, task: Task, settings: Settings, encode: Encode
) -> list[Stream]:
    """Return the streams of a task that have a group, the first of them being `number`.

    Spec: DATA-01, DATA-04, DATA-13.
    """
    sizes = task.documents.sizes
    own = np.arange(settings.process, len(sizes), settings.num_processes)
    own = own[sizes[own] > 0]
    num_groups = -(-len(own) // GROUP_OF_DOCUMENTS)
    kinds: list[tuple[int, float, Sequence[int]]] = [(0, 1.0, range(num_groups))]
    if settings.mode == "ul2":
        alone = len(settings.objectives) == 1
        kinds = [
            (
                i,
                OBJECTIVES[i].rate,
                range(num_groups) if alone else parts.objective_groups(num_groups, i),
            )
            for i in settings.objectives
        ]
    fed = [kind for kind in kinds if len(kind[2])]
    return [
        Stream(number + i, place, task, objective, task.rate * rate, own, groups, settings, encode)
        for i, (objective, rate, groups) in enumerate(fed)
    ]


# ---- on Grain ----------------------------------------------------------------------------------


class Mixed(grain.IterDataset):  # type: ignore[misc, unused-ignore]
    """Examples of streams as draws by their rates say; a draw of one that has ended is passed over.

    threads  how many read ahead in each stream; 0: groups are made when they are needed
    Spec: DATA-07, DATA-09, OBJ-18.
    """

    def __init__(self, streams: Sequence[Stream], *, threads: int) -> None:
        options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
        super().__init__([grain.MapDataset.source(one).to_iter_dataset(options) for one in streams])
        rates = np.array([one.rate for one in streams])
        self._rates = rates / rates.sum()
        self._settings = streams[0].settings

    def __iter__(self) -> _MixedIterator:
        iterators = [one.__iter__() for one in self.parents]
        return _MixedIterator(iterators, self._rates, self._settings)


class _Group:
    """The group of a stream that is taken apart, and where it began."""

    def __init__(self, iterator: Any) -> None:
        self._iterator = iterator
        self._begin, self._place = iterator.get_state(), 0
        self._left: Iterator[Fed] = iter(())

    def __next__(self) -> Fed:
        found = next(self._left, None)
        while found is None:
            self._begin, self._place = self._iterator.get_state(), 0
            self._left = iter(next(self._iterator))
            found = next(self._left, None)
        self._place += 1
        return found

    def get_state(self) -> dict[str, Any]:
        return {"group": self._begin, "place": self._place}

    def set_state(self, state: dict[str, Any]) -> None:
        self._begin, self._place = state["group"], state["place"]
        self._iterator.set_state(self._begin)
        # A group that was begun is made again, up to where it was.
        self._left = islice(next(self._iterator), self._place, None) if self._place else iter(())


class _MixedIterator(grain.DatasetIterator):  # type: ignore[misc, unused-ignore]
    def __init__(self, iterators: Sequence[Any], rates: ndarray, settings: Settings) -> None:
        super().__init__(iterators)
        self._groups = [_Group(one) for one in iterators]
        self._rates, self._settings = rates, settings
        self._drawn = 0
        self._ended: set[int] = set()
        self._choices: tuple[int, list[int]] = (-1, [])

    def __next__(self) -> Fed:
        while len(self._ended) < len(self._groups):
            stream = self._choice(self._drawn)
            self._drawn += 1
            try:
                return next(self._groups[stream])
            except StopIteration:
                self._ended.add(stream)
        raise StopIteration

    def _choice(self, number: int) -> int:
        """Return one draw of many, which are made a thousand at a time."""
        turn, place = divmod(number, _CHOICES_AT_ONCE)
        if self._choices[0] != turn:
            draws = generator(self._settings.seed, _CHOICES, self._settings.process, turn)
            drawn = draws.choice(len(self._rates), _CHOICES_AT_ONCE, p=self._rates)
            self._choices = (turn, drawn.tolist())
        return self._choices[1][place]

    def get_state(self) -> dict[str, Any]:
        return {
            "drawn": self._drawn,
            "ended": sorted(self._ended),
            "streams": [one.get_state() for one in self._groups],
        }

    def set_state(self, state: dict[str, Any]) -> None:
        self._drawn, self._ended = state["drawn"], set(state["ended"])
        for one, its in zip(self._groups, state["streams"], strict=True):
            one.set_state(its)


_CHOICES_AT_ONCE = 1024
