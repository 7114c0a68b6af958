"""What two models are asked when their functions are compared: rows of ids, and what they exercise.

Ids come from a seed alone: no tokeniser is needed, and the same rows are drawn everywhere.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_reference import dialects, grouping
from openmoe_spec.config import Configuration
from openmoe_spec.data import EMBEDDING_MULTIPLE, NUM_PIECES, NUM_SENTINELS
from openmoe_spec.parameters import count, sparse_layers
from openmoe_spec.records import Decision

SEED = 20240202
START = 0
"""The id that every row begins with; it stands nowhere else, since it is padding too."""

LONGEST = 2048
"""Positions of the longest row: those that the models were trained with."""

BUDGET = 4096
"""Tokens of all rows together; those that are drawn to reach experts come last."""

LIMIT = 1_000_000_000
"""Elements of a model up to which a row of full length is asked for: more would take hours."""

_ROW = 64
"""Positions of the rows that need not be long."""

_LOWEST = 260
"""Ids below it: control pieces and the 256 byte pieces of umT5, which begin at id 3 or 4."""

Passes = Iterable[tuple[ndarray, Mapping[int, Decision]]]
"""Ids [B, L] with what each sparse layer decided on them."""

Decide = Callable[[ndarray], Mapping[int, Decision]]
"""A model's decisions on ids [B, L], by sparse layer."""


@dataclass(frozen=True, eq=False)
class Probe:
    """One batch of ids, int32 [B, L], and what it is there for."""

    ids: ndarray
    what: str


def full_length(configuration: Configuration) -> int:
    """Return the positions of the longest row that a model is asked for."""
    return min(configuration.max_length, LONGEST)


def regions(vocabulary_size: int) -> dict[str, tuple[int, int]]:
    """Return the first id of each region of a vocabulary and the one behind its last.

    Those of umT5 where it is the released models' size, else four equal parts.
    """
    used = NUM_PIECES + NUM_SENTINELS
    if vocabulary_size == math.ceil(used / EMBEDDING_MULTIPLE) * EMBEDDING_MULTIPLE:
        return {
            "control and byte pieces": (1, _LOWEST),
            "ordinary pieces": (_LOWEST, NUM_PIECES),
            "extra ids": (NUM_PIECES, used),
            "padding rows": (used, vocabulary_size),
        }
    ends = [max(1, vocabulary_size * part // 4) for part in range(5)]
    return {
        f"part {part + 1} of 4": (ends[part], ends[part + 1])
        for part in range(4)
        if ends[part] < ends[part + 1]
    }


def probes(
    configuration: Configuration, seed: int = SEED, *, limit: int = LIMIT
) -> tuple[Probe, ...]:
    """Return the rows that every comparison begins with; the same seed gives the same ids.

    A model of more than `limit` elements gets no row of full length, and its coverage says so.
    """
    size, row = configuration.vocabulary_size, min(configuration.max_length, _ROW)
    made = []
    if count(configuration).total <= limit:
        ids = _rows(1, full_length(configuration), size, [seed, 0])
        made.append(Probe(ids, "a row of full length"))
    return (
        *made,
        Probe(_overflowing(configuration, row, seed), "one id in three rows of four"),
        Probe(_everywhere(size, row, seed), "ids of every region of the vocabulary"),
    )


def extend(
    given: tuple[Probe, ...],
    decide: Decide,
    configuration: Configuration,
    *,
    dialect: str = "t5x",
    seed: int = SEED,
    budget: int = BUDGET,
) -> tuple[Probe, ...]:
    """Return `given` and random rows behind them, until each expert was reached or the budget spent.

    Of the drawn batches only those stay in which an expert was reached for the first time.
    """
    passes = [(one.ids, decide(one.ids)) for one in given]
    kept, reached = list(given), cover(passes, configuration, dialect).experts_reached
    wanted = configuration.num_experts * configuration.num_moe_layers
    left = budget - sum(one.ids.size for one in given)
    shape, number = (4, min(configuration.max_length, _ROW)), 0
    while reached < wanted and left >= math.prod(shape):
        number, left = number + 1, left - math.prod(shape)
        ids = _rows(*shape, configuration.vocabulary_size, [seed, 3, number])
        passes.append((ids, decide(ids)))
        now = cover(passes, configuration, dialect).experts_reached
        if now > reached:
            reached = now
            kept.append(Probe(ids, f"random rows, draw {number}"))
    return tuple(kept)


def write(path: Path, asked: Iterable[Probe]) -> None:
    """Write ids as arrays `input_ids_0`, ... of an .npz, for a port of one's own to answer.

    The answer is the same file with `logits_0` [B, L, V], ... added: `sides.read_recorded`.
    """
    named: dict[str, Any] = {f"input_ids_{i}": one.ids for i, one in enumerate(asked)}
    with path.open("wb") as file:  # given a path, NumPy would add a suffix of its own
        np.savez(file, **named)


def _rows(rows: int, length: int, size: int, seed: list[int]) -> ndarray:
    ids = np.random.default_rng(seed).integers(1, size, (rows, length), dtype=np.int32)
    ids[:, 0] = START
    return ids


def _overflowing(c: Configuration, row: int, seed: int) -> ndarray:
    """Return rows of one id and others: equal tokens are routed alike, and more than there are slots.

    A group takes 16 tokens or more, since fewer all have a slot.
    """
    tokens = 16
    while _slots(c, tokens, "t5x") > 0.75 * tokens and tokens < 256:
        tokens *= 2
    fourth = math.ceil(tokens * c.num_experts / row / 4)
    ids = _rows(4 * fourth, row, c.vocabulary_size, [seed, 1])
    ids[: 3 * fourth, 1:] = ids[0, -1]
    return ids


def _everywhere(size: int, row: int, seed: int) -> ndarray:
    """Return rows with up to 63 ids of each region, its first and last among them."""
    generator, rows = np.random.default_rng([seed, 2]), []
    for start, stop in regions(size).values():
        ids = np.unique(np.linspace(start, stop - 1, 63).astype(np.int32))
        rows.append(generator.permutation(ids))
    flat = np.concatenate(rows)
    wide = max(1, row - 1)
    # Whole rows: what is missing in the last one is taken from the first ids again.
    filled = np.resize(flat, (math.ceil(len(flat) / wide), wide))
    return np.pad(filled, ((0, 0), (1, 0)), constant_values=START)[:, :row].astype(np.int32)


def _slots(c: Configuration, tokens: int, dialect: str) -> int:
    return dialects.steps(dialect).capacity(
        tokens,
        num_experts=c.num_experts,
        capacity_factor=c.eval_capacity_factor,
        min_expert_capacity=c.min_expert_capacity,
        k=c.num_selected_experts,
    )


# ---- what was exercised --------------------------------------------------------------------------


@dataclass(frozen=True)
class Coverage:
    """What rows exercised of a model.

    experts       by sparse layer: those that a token chose and had a slot of
    num_experts   of each layer
    overflowed    groups in which an expert had more tokens than slots, of all layers
    may_overflow  whether any group of this configuration can
    longest       positions of the longest row, and those it should have
    regions       by region of the vocabulary: how many of its ids stood in a row, and how many it has
    """

    experts: Mapping[int, tuple[int, ...]]
    num_experts: int
    overflowed: int
    may_overflow: bool
    longest: tuple[int, int]
    regions: Mapping[str, tuple[int, int]]

    @property
    def experts_reached(self) -> int:
        """Return how many experts of all layers were reached."""
        return sum(map(len, self.experts.values()))

    def lacking(self) -> list[str]:
        """Return what was not exercised, a line each; without any a comparison is complete."""
        lines = []
        for layer, reached in self.experts.items():
            missing = sorted(set(range(self.num_experts)) - set(reached))
            if missing:
                named = ", ".join(map(str, missing))
                one = len(missing) == 1
                lines.append(
                    f"{'expert' if one else 'experts'} {named} of layer {layer} "
                    f"{'was' if one else 'were'} never reached"
                )
        if self.may_overflow and not self.overflowed:
            lines.append("no group had more tokens for an expert than it has slots")
        longest, wanted = self.longest
        if longest < wanted:
            lines.append(f"the longest row has {longest} positions, the model takes {wanted}")
        for region, (used, _) in self.regions.items():
            if not used:
                lines.append(f"no id of the vocabulary's {region} stood in a row")
        return lines

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it, `lacking` included."""
        experts = {str(layer): list(reached) for layer, reached in self.experts.items()}
        listed = {name: list(numbers) for name, numbers in self.regions.items()}
        more = {"experts": experts, "regions": listed, "longest": list(self.longest)}
        return asdict(self) | more | {"lacking": self.lacking()}


def cover(passes: Passes, configuration: Configuration, dialect: str = "t5x") -> Coverage:
    """Return what passes exercised; padding, of rows and of groups, reaches nothing."""
    c = configuration
    reached: dict[int, set[int]] = {
        layer: set() for layer in sparse_layers(c.num_layers, c.num_moe_layers)
    }
    overflowed, longest = 0, 0
    seen = np.zeros(c.vocabulary_size, bool)
    for ids, decisions in passes:
        real = real_tokens(ids)
        counted = grouped(real, configuration, dialect)[..., None]
        for layer, one in decisions.items():
            chosen = (one.expert_index >= 0) & counted
            reached[layer] |= set(np.unique(one.expert_index[chosen & one.kept]).tolist())
            overflowed += int((chosen & ~one.kept).any(axis=(1, 2)).sum())
        longest = max(longest, int(real.sum(axis=1).max()))
        seen[ids[real]] = True
    slots = _slots(c, c.max_group_size, dialect)
    return Coverage(
        {layer: tuple(sorted(experts)) for layer, experts in reached.items()},
        c.num_experts,
        overflowed,
        slots < c.max_group_size,
        (longest, full_length(c)),
        {
            name: (int(seen[start:stop].sum()), stop - start)
            for name, (start, stop) in regions(c.vocabulary_size).items()
        },
    )


def real_tokens(ids: ndarray) -> ndarray:
    """Return which positions [B, L] are a row's: its first, and all up to its last id above 0."""
    behind = np.logical_or.accumulate(ids[:, ::-1] > 0, axis=1)[:, ::-1]
    return behind | (np.arange(ids.shape[1]) == 0)


def groups_of(
    shape: tuple[int, int], configuration: Configuration, dialect: str
) -> tuple[tuple[int, int], int]:
    """Return the padded [B, L] and G of a batch in a dialect."""
    return dialects.steps(dialect).groups(
        *shape,
        max_group_size=configuration.max_group_size,
        num_experts=configuration.num_experts,
        num_expert_replicas=1,
    )


def grouped(marks: ndarray, configuration: Configuration, dialect: str) -> ndarray:
    """Return booleans [B, L] as a layer's groups have them, [G, T]; what is padded is False."""
    rows, columns = marks.shape
    padded, groups = groups_of((rows, columns), configuration, dialect)
    return grouping.to_groups(marks[..., None], padded=padded, num_groups=groups)[..., 0]
