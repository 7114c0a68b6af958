"""How far two passes are apart: logits, activations, and the noise floor that judges both."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy import ndarray

from openmoe_tools.checkpoints.function.sides import ROUTER, router_of

MULTIPLE = 8.0
"""How many times the noise floor two passes may differ by: another order of sums makes another error."""

CAST_MULTIPLE = 2.0
"""How many times the effect of a declared cast: the same cast has the same effect."""

ULPS = 4.0
"""Units in the last place of the largest value, where the floor is 0."""

TOP = (1, 5, 10)
"""Of how many best ids the shares are taken."""

_PROBABILITIES = "/probabilities"
"""What a router's probabilities are called, behind the name of its logits."""

_BLOCK, _PIECE = 1 << 25, 1 << 19
"""Elements of logits that are made at once, and of those that are measured at once, in the cache.

With a vocabulary of 256,384 a row of full length has 2 GB of them.
"""


@dataclass(frozen=True)
class LogitsDifference:
    """How far two models' logits are apart, over all compared tokens.

    maximum, mean, p99     of the absolute difference of single logits
    kl_forward, kl_back    nats a token, of the second from the first and the reverse: mean, largest
    top                    by k: share of the first's k best that are among the second's
    quarters               of the longest row, first to last: largest and mean absolute difference;
                           None where no token stands
    not_finite             tokens with a logit that is no finite number; they are not in the rest
    """

    tokens: int
    not_finite: int
    maximum: float
    mean: float
    p99: float
    kl_forward: tuple[float, float]
    kl_back: tuple[float, float]
    top: Mapping[int, float]
    quarters: tuple[tuple[float, float] | None, ...]
    largest: float


class Meter:
    """What `LogitsDifference` is made of: logits come a block at a time, and none are kept."""

    def __init__(self, longest: int) -> None:
        self.longest = longest
        self.not_finite = 0
        self.largest = 0.0
        self.bins = np.zeros(1 << 15, np.int64)
        self.rows: list[ndarray] = []  # of each token: place, largest, mean, two KL, top shares

    def add(self, a: ndarray, b: ndarray, places: ndarray) -> None:
        """Take in logits [n, V] of two models at places [n] of their row."""
        step = max(1, _PIECE // a.shape[-1])
        for start in range(0, len(a), step):
            at = slice(start, start + step)
            self._add(a[at], b[at], places[at])

    def _add(self, a: ndarray, b: ndarray, places: ndarray) -> None:
        known = finite(a, b)
        if not known.any():
            return
        a, b, places = a[known].astype(np.float64), b[known].astype(np.float64), places[known]
        apart = np.abs(a - b)
        self.largest = max(self.largest, float(np.abs(a).max()))
        # Floats above 0 are ordered as their bits are: 7 bits of the mantissa are within 1 %.
        bits = apart.astype(np.float32).view(np.uint32) >> np.uint32(16)
        self.bins += np.bincount(bits.reshape(-1), minlength=len(self.bins))
        p, q = _log_softmax(a), _log_softmax(b)
        forward = np.maximum((np.exp(p) * (p - q)).sum(axis=-1), 0)
        back = np.maximum((np.exp(q) * (q - p)).sum(axis=-1), 0)
        tops = [_shared(a, b, k) for k in TOP if k <= a.shape[-1]]
        self.rows.append(
            np.stack([places, apart.max(axis=-1), apart.mean(axis=-1), forward, back, *tops])
        )

    def close(self) -> LogitsDifference | None:
        """Return the numbers; None where nothing finite came."""
        if not self.rows:
            return None
        places, largest, mean, forward, back, *tops = np.concatenate(self.rows, axis=1)
        quarter = (places * 4 // self.longest).astype(int)
        reached = np.searchsorted(self.bins.cumsum(), 0.99 * self.bins.sum())
        edge = np.array((int(reached) + 1) << 16, np.uint32).view(np.float32)
        return LogitsDifference(
            len(places),
            self.not_finite,
            float(largest.max()),
            float(mean.mean()),
            min(float(edge), float(largest.max())) if reached else 0.0,
            (float(forward.mean()), float(forward.max())),
            (float(back.mean()), float(back.max())),
            {k: float(share.mean()) for k, share in zip(TOP, tops, strict=False)},
            tuple(
                (float(largest[at].max()), float(mean[at].mean())) if at.any() else None
                for at in (quarter == i for i in range(4))
            ),
            self.largest,
        )


def finite(a: ndarray, b: ndarray) -> ndarray:
    """Return at which places [...] both logits [..., V] are finite throughout."""
    return np.isfinite(a).all(axis=-1) & np.isfinite(b).all(axis=-1)


def _log_softmax(x: ndarray) -> ndarray:
    """Return logarithms of softmax over the last axis."""
    shifted = x - x.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def router_probabilities(logits: ndarray) -> ndarray:
    """Return float64 probabilities [..., E]; unlike the reference's softmax it refuses no value."""
    return np.exp(_log_softmax(logits.astype(np.float64)))


def _shared(a: ndarray, b: ndarray, k: int) -> ndarray:
    best = [np.argpartition(-x, k - 1, axis=-1)[:, :k] for x in (a, b)]
    return (best[0][:, :, None] == best[1][:, None, :]).any(axis=-1).mean(axis=-1)


def logit_blocks(shape: tuple[int, ...], vocabulary_size: int) -> Iterator[tuple[int, slice]]:
    """Yield rows and ranges of positions [B, L], of about a block's logits each."""
    step = max(1, _BLOCK // vocabulary_size)
    for row in range(shape[0]):
        for start in range(0, shape[1], step):
            yield row, slice(start, min(start + step, shape[1]))


@dataclass
class Apart:
    """The largest absolute difference of each activation and router, and the largest value."""

    differences: dict[str, float] = field(default_factory=dict)
    scales: dict[str, float] = field(default_factory=dict)

    def add(self, a: Mapping[str, ndarray], b: Mapping[str, ndarray], judged: ndarray) -> None:
        """Take in activations of two passes at the tokens [B, L] that are judged."""
        if not judged.any():
            return
        for name in a.keys() & b.keys():
            self._add(name, a[name][judged].astype(np.float64), b[name][judged].astype(np.float64))
            if name.endswith(ROUTER):
                pair = (router_probabilities(x[name][judged]) for x in (a, b))
                self._add(name + _PROBABILITIES, *pair)

    def _add(self, name: str, a: ndarray, b: ndarray) -> None:
        found = float(np.abs(a - b).max())
        found = found if math.isfinite(found) else math.inf
        self.differences[name] = max(self.differences.get(name, 0.0), found)
        self.scales[name] = max(self.scales.get(name, 0.0), float(np.abs(a).max()))


@dataclass(frozen=True)
class Floor:
    """What rounding does to the first model, and what a declared cast does to it."""

    arithmetic: Apart
    cast: Apart
    logits: LogitsDifference | None
    logits_of_cast: LogitsDifference | None
    epsilon: float

    def allowed(self, name: str) -> float:
        """Return how far two passes may be apart at an activation."""
        return (
            MULTIPLE * self.arithmetic.differences.get(name, 0.0)
            + CAST_MULTIPLE * self.cast.differences.get(name, 0.0)
            + ULPS * self.epsilon * self.arithmetic.scales.get(name, 0.0)
        )

    def margin(self, layer: int) -> float:
        """Return how far apart two experts' probabilities may be for rounding to swap them."""
        return 2 * self.allowed(router_of(layer) + _PROBABILITIES)

    def of(self, name: str) -> float:
        """Return the measured floor at an activation, a cast's effect included."""
        return max(self.arithmetic.differences.get(name, 0.0), self.cast.differences.get(name, 0.0))

    @property
    def allowed_logits(self) -> float:
        """Return how far two logits may be apart."""
        if self.logits is None:
            return 0.0
        cast = 0.0 if self.logits_of_cast is None else self.logits_of_cast.maximum
        own = MULTIPLE * self.logits.maximum + ULPS * self.epsilon * self.logits.largest
        return own + CAST_MULTIPLE * cast
