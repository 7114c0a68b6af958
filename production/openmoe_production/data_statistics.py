"""What a pipeline fed: counts by stream, and processor time by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_production.batching import feed_statistics


class Counts(NamedTuple):
    """Examples with their tokens and loss positions; of whole segments also without the others.

    An example that ends a group is of a segment that may be shorter; every other one is whole.
    """

    examples: int = 0
    tokens: int = 0
    loss_positions: int = 0
    whole_examples: int = 0
    whole_tokens: int = 0
    whole_loss_positions: int = 0


@dataclass
class Statistics:
    """What was fed, altogether and by stream.

    seconds  processor time by stage, of all threads
    Spec: BATCH-11.
    """

    num_streams: int
    rows: int = 0
    positions: int = 0
    tokens: int = 0
    loss_positions: int = 0
    examples: int = 0
    seconds: dict[str, float] = field(default_factory=dict)
    _counts: ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._counts = np.zeros((self.num_streams, len(Counts._fields)), np.int64)

    @property
    def streams(self) -> list[Counts]:
        """What each stream fed."""
        return [Counts(*row) for row in self._counts.tolist()]

    def add(
        self,
        features: Mapping[str, ndarray],
        origins: Sequence[tuple[int, bool]],
        seconds: Mapping[str, float],
    ) -> None:
        """Add a batch; origins are the stream of each example, and whether it ends a group."""
        for name, number in feed_statistics(features).items():
            setattr(self, name, getattr(self, name) + number)
        for stage, taken in seconds.items():
            self.seconds[stage] = self.seconds.get(stage, 0.0) + taken
        streams, ends_group = np.array(origins, np.intp).T
        each = np.stack([np.ones_like(streams), *_by_example(features, len(streams))], axis=1)
        whole = each * (ends_group == 0)[:, None]
        np.add.at(self._counts, streams, np.concatenate([each, whole], axis=1))


def _by_example(features: Mapping[str, ndarray], count: int) -> list[ndarray]:
    """Return tokens and loss positions of each example of some packed rows, in their order."""
    segments = features["decoder_segment_ids"]
    before = np.cumsum([0, *segments.max(axis=1, initial=0)], dtype=np.int32)[:-1]
    numbers = np.where(segments, segments + before[:, None], 0).ravel()  # 0: padding
    begins = np.append(0, np.flatnonzero(numbers[1:] != numbers[:-1]) + 1)
    sizes = np.diff(begins, append=len(numbers))
    losses = np.add.reduceat(features["decoder_loss_weights"].ravel(), begins)
    return [
        np.bincount(numbers[begins], one, count + 1)[1:].astype(np.int64) for one in (sizes, losses)
    ]


class Stopwatch:
    """Processor time of the own thread by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Add what the block takes."""
        start = time.thread_time()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.thread_time() - start
