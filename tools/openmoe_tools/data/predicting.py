"""What a pipeline must feed, in intervals that right ones leave once in ten thousand times.

Shares of objectives are counts of independent draws: binomial. Tokens and loss positions of whole
segments are fixed or have a known mean, variance and range: Bernstein's inequality, which holds for
any number of examples. The last segment of a group may be shorter by any number of tokens, and short
ones may share a row with another: so totals have room of as many whole examples as groups ended.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from openmoe_reference import expectations
from openmoe_reference.expectations import Expectation

ERROR = 1e-4
"""How often a right pipeline leaves one of the intervals, at most."""


class Counts(Protocol):
    """What was counted of a stream; `whole_` leaves out examples that end a group."""

    @property
    def examples(self) -> int: ...

    @property
    def whole_examples(self) -> int: ...

    @property
    def whole_tokens(self) -> int: ...

    @property
    def whole_loss_positions(self) -> int: ...


@dataclass(frozen=True)
class Predicted:
    """A number that was measured, what is expected, and the interval it must lie in."""

    name: str
    measured: float
    expected: float
    least: float
    most: float

    @property
    def holds(self) -> bool:
        """Whether the measured number lies in the interval; a rounding error is none."""
        room = 1e-9 * max(1.0, abs(self.expected))
        return self.least - room <= self.measured <= self.most + room


@dataclass(frozen=True)
class Form:
    """Lengths that the examples of a pipeline have; an objective of None is the causal stream's."""

    inputs_length: int
    targets_length: int
    prompt_lengths: Sequence[int]

    def positions(self, objective: int | None) -> int:
        """Return the positions of a row."""
        return self.targets_length + (0 if objective is None else self.inputs_length)

    def whole(self, objective: int | None) -> Expectation:
        """Return what an example of a whole segment holds."""
        if objective is None:
            return Expectation(float(self.targets_length), float(self.targets_length))
        return expectations.of_objective(
            objective,
            inputs_length=self.inputs_length,
            targets_length=self.targets_length,
            prompt_length=self.prompt_lengths[objective],
        )

    def spread(self, objective: int | None) -> tuple[int, int]:
        """Return how far tokens and loss positions of whole segments may lie apart, at most."""
        if objective is None:
            return 0, 0
        cut = max(0, self.inputs_length - self.targets_length)
        return self.prompt_lengths[objective] + cut, min(self.inputs_length, self.targets_length)


def binomial(trials: int, chance: float) -> tuple[int, int]:
    """Return the fewest and the most successes, each side left out with half of the error at most."""
    if not 0 < chance < 1 or trials == 0:
        return round(trials * chance), round(trials * chance)
    steps = np.arange(1, trials + 1)
    ratios = np.log((trials - steps + 1) / steps) + math.log(chance / (1 - chance))
    logs = np.concatenate([[0.0], ratios.cumsum()]) + trials * math.log1p(-chance)
    below = np.exp(logs).cumsum()
    least = int(np.searchsorted(below, ERROR / 2, side="right"))
    most = int(np.searchsorted(below, 1 - ERROR / 2))
    return least, min(most, trials)


def bernstein(count: int, variance: float, spread: float) -> float:
    """Return how far the mean of so many bounded numbers may lie from the expected one."""
    if count == 0:
        return math.inf
    bits = math.log(2 / ERROR)
    first = spread * bits / (3 * count)
    return first + math.sqrt(first**2 + 2 * variance * bits / count)


def of_stream(
    name: str, counts: Counts, *, share: float, examples: int, form: Form, objective: int | None
) -> list[Predicted]:
    """Return share, tokens and loss positions of an example, of one stream."""
    least, most = binomial(examples, share)
    # The last example of a run is the one that filled it, which is no independent draw.
    found = [
        Predicted(
            f"{name}: share",
            counts.examples / examples,
            share,
            max(0, least - 1) / examples,
            (most + 1) / examples,
        )
    ]
    if counts.whole_examples == 0:
        return found
    whole, spreads = form.whole(objective), form.spread(objective)
    for what, total, mean, variance, spread in (
        ("tokens/example", counts.whole_tokens, whole.tokens, whole.tokens_variance, spreads[0]),
        (
            "loss/example",
            counts.whole_loss_positions,
            whole.loss_positions,
            whole.loss_variance,
            spreads[1],
        ),
    ):
        room = bernstein(counts.whole_examples, variance, spread)
        room = room if variance else 0.0
        measured = total / counts.whole_examples
        label = f"{name}: {what}"
        found.append(Predicted(label, measured, mean, mean - room, mean + room))
    return found


@dataclass(frozen=True)
class Whole:
    """What was counted of all streams together."""

    positions: int
    tokens: int
    loss_positions: int


def of_rows(
    whole: Whole,
    streams: Sequence[Counts],
    shares: Sequence[float],
    objectives: Sequence[int | None],
    form: Form,
) -> list[Predicted]:
    """Return the shares of positions that hold a token, and that carry a loss.

    None where two whole examples may share a row: how many then do, depends on their order.
    """
    examples = sum(one.examples for one in streams)
    ends = [one.examples - one.whole_examples for one in streams]
    length = form.positions(objectives[0])
    each = [form.whole(objective) for objective in objectives]
    spreads = [form.spread(objective) for objective in objectives]
    least_whole = min(one.tokens - spread[0] for one, spread in zip(each, spreads, strict=True))
    rows_least = examples - sum(ends)  # each whole example has a row of its own
    if 2 * least_whole <= length or not rows_least:
        return []
    found = []
    for what, measured, means, variances in (
        (
            "positions with a token",
            whole.tokens,
            [one.tokens for one in each],
            [one.tokens_variance for one in each],
        ),
        (
            "positions with a loss",
            whole.loss_positions,
            [one.loss_positions for one in each],
            [one.loss_variance for one in each],
        ),
    ):
        mean = float(np.dot(shares, means))
        variance = float(np.dot(shares, np.add(variances, np.square(means)))) - mean**2
        room = examples * bernstein(examples, max(variance, 0.0), length)
        room = room if len(streams) > 1 or variances[0] else 0.0
        lost = float(np.dot(ends, means)) + max(spreads)[0] * sum(ends)
        least = (examples * mean - room - lost) / (examples * length)
        most = (examples * mean + room) / (rows_least * length)
        share = measured / whole.positions
        found.append(Predicted(what, share, mean / length, max(0.0, least), min(1.0, most)))
    return found
