"""What a pipeline fed: counts by stream, and processor time by stage."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray

from openmoe_production.batching import feed_statistics


@dataclass
class Counts:
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
    streams: list[Counts] = field(init=False)

    def __post_init__(self) -> None:
        self.streams = [Counts() for _ in range(self.num_streams)]

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
        segments = features["decoder_segment_ids"]
        numbers = segments + segments.max(axis=1, initial=0).cumsum()[:, None]
        numbers -= segments.max(axis=1, initial=0)[:, None]  # examples of all rows in turn
        real = segments > 0
        tokens = np.bincount(numbers[real])[1:]
        loss = np.bincount(numbers[real], features["decoder_loss_weights"][real])[1:]
        for (stream, ends_group), *both in zip(origins, tokens, loss, strict=True):
            counts = self.streams[stream]
            counts.examples += 1
            counts.tokens += int(both[0])
            counts.loss_positions += int(both[1])
            if not ends_group:
                counts.whole_examples += 1
                counts.whole_tokens += int(both[0])
                counts.whole_loss_positions += int(both[1])


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
