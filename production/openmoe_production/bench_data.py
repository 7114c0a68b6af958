"""How fast segments become examples and rows on one core: `python -m openmoe_production.bench_data`.

Another implementation, `--against` a package with modules `objectives` and `batching` of the same
functions, runs in turns in the same process: ratios travel to other machines, rates do not.
"""

from __future__ import annotations

import argparse
import importlib
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from openmoe_production import batching, objectives
from openmoe_production.bench_timing import seconds, table
from openmoe_production.draws import segment_draws
from openmoe_production.noise import span_lengths
from openmoe_spec.data import NUM_PIECES, NUM_SENTINELS, OBJECTIVES

MIXTURE = "examples of the mixture"
RATIO_TARGET = 3.0
"""The mixture's rate over the other implementation's, at least."""

_LENGTHS = {"inputs": 1024, "targets": 1024}
_HOW: Mapping[str, Any] = {
    "inputs_length": _LENGTHS["inputs"],
    "targets_length": _LENGTHS["targets"],
    "vocabulary_size": NUM_PIECES + NUM_SENTINELS,
    "prompt": np.arange(5, 10, dtype=np.int32),
}

Program = Callable[[], Any]


class Row(NamedTuple):
    """How many of something are made in a second, here and by the other implementation, if any."""

    what: str
    rate: float
    other: float | None


class _Case(NamedTuple):
    """A program that makes a number of something, and the other implementation's."""

    what: str
    number: int
    program: Program
    other: Program | None


class _Work(NamedTuple):
    """Whole segments of one objective; what is drawn for all of them, and for each."""

    objective: int
    segments: list[np.ndarray]
    draws: Mapping[str, Any]
    each: Sequence[Mapping[str, Any]]


def report(*, against: str | None = None, examples: int = 64, rounds: int = 20) -> list[Row]:
    """Return what was measured, medians of interleaved rounds.

    against   package to compare with
    examples  of each objective in one run; of the mixture ten times as many
    """
    rows = []
    for what, number, program, other in _cases(against, examples):
        programs = {"here": partial(_run, program)}
        if other:
            programs["there"] = partial(_run, other)
        taken = seconds(programs, rounds)
        rates = {name: number / statistics.median(times) for name, times in taken.items()}
        rows.append(Row(what, rates["here"], rates.get("there")))
    return rows


def page(rows: Sequence[Row]) -> str:
    """Return the report as a section of a Markdown page."""
    cells = []
    for what, rate, other in rows:
        compared = ["", "", ""]
        if other is not None:
            ratio = rate / other
            verdict = "met" if ratio >= RATIO_TARGET else "missed"
            target = f">= {RATIO_TARGET:.2f}: {verdict}" if what == MIXTURE else ""
            compared = [f"{other:.0f}", f"{ratio:.2f}", target]
        cells.append([what, f"{rate:.0f}", *compared])
    return f"""## Examples and rows

A second on one core, at {_LENGTHS["inputs"]} + {_LENGTHS["targets"]}: medians of interleaved rounds, and their ratio to
the implementation that is compared with, which makes one example a call. Draws are given, where
they are not named; only whole segments, so that no two examples fit one row.

{table(("what", "here", "there", "ratio", "target"), cells)}
"""


# ---- what is run -------------------------------------------------------------------------------


def _cases(against: str | None, examples: int) -> list[_Case]:
    counts = [round(10 * one.rate) * examples for one in OBJECTIVES]
    mixture = [_work(objective, count) for objective, count in enumerate(counts)]
    works = {
        f"examples of objective {objective}": [_work(objective, examples)]
        for objective in range(len(OBJECTIVES))
    } | {MIXTURE: mixture}
    made = _made(mixture)
    order = np.random.default_rng(0).permutation(len(made))
    mixed = [made[place] for place in order]
    rows = partial(batching.decoder_features, mixed, lengths=_LENGTHS, pack=True)
    num_rows = len(rows()["decoder_positions"])

    def there(module: str, function: Callable[..., Any], *arguments: Any) -> Program | None:
        if against is None:
            return None
        return partial(function, importlib.import_module(f"{against}.{module}"), *arguments)

    rows_there = there("batching", _packed, mixed)
    return [
        *(
            _Case(
                what,
                sum(len(one.segments) for one in work),
                partial(_made, work),
                there("objectives", _made_one_by_one, work),
            )
            for what, work in works.items()
        ),
        _Case(f"{MIXTURE}, draws too", len(made), partial(_drawn_and_made, mixture), None),
        _Case("packed rows", num_rows, rows, rows_there),
        _Case("packed rows of a stream", num_rows, partial(_streamed, mixed), rows_there),
    ]


def _work(objective: int, count: int) -> _Work:
    made = OBJECTIVES[objective]
    length = _LENGTHS["inputs"] - 1
    if made.mean_noise_span_length is not None:
        length = span_lengths(
            _LENGTHS["inputs"],
            noise_density=made.noise_density,
            mean_noise_span_length=made.mean_noise_span_length,
        )["tokens_length"]
    generator = np.random.default_rng(objective)
    tokens = generator.integers(2, NUM_PIECES, (count, length), np.int32)
    drawn = segment_draws(objective, [length] * count, generator)
    names = [name.removesuffix("s") for name in drawn]
    each = [dict(zip(names, one, strict=True)) for one in zip(*drawn.values(), strict=True)]
    return _Work(objective, list(tokens), drawn, each)


def _run(program: Program) -> None:
    """Run a program and give up what it makes, which nobody waits for."""
    program()


def _made(works: Sequence[_Work]) -> list[objectives.Example]:
    return [
        example
        for one in works
        for example in objectives.ul2_examples(one.segments, one.objective, **one.draws, **_HOW)
    ]


def _drawn_and_made(works: Sequence[_Work]) -> None:
    generator = np.random.default_rng(0)
    for one in works:
        drawn = segment_draws(one.objective, list(map(len, one.segments)), generator)
        objectives.ul2_examples(one.segments, one.objective, **drawn, **_HOW)


def _made_one_by_one(module: Any, works: Sequence[_Work]) -> list[Any]:
    return [
        module.ul2_example(segment, one.objective, **draws, **_HOW)
        for one in works
        for segment, draws in zip(one.segments, one.each, strict=True)
    ]


_BATCH = 16
"""Rows that are taken from a stream at once."""


def _streamed(examples: Sequence[objectives.Example]) -> list[batching.Features]:
    packer, batches = batching.Packer(lengths=_LENGTHS), []
    for one in examples:
        packer.add(one)
        if packer.closed >= _BATCH:
            batches.append(packer.take(_BATCH))
    packer.close()
    return [*batches, packer.take(packer.closed)]


def _packed(module: Any, examples: Sequence[objectives.Example]) -> Any:
    return module.decoder_features(examples, lengths=_LENGTHS, pack=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure and print the section."""
    parser = argparse.ArgumentParser(
        prog="python -m openmoe_production.bench_data",
        description="Count examples and rows a second on one core.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--against", help="package to compare with")
    parser.add_argument("--examples", type=int, default=64, help="of each objective in one run")
    parser.add_argument("--rounds", type=int, default=20, help="timed runs of each program")
    options = parser.parse_args(arguments)
    if min(options.examples, options.rounds) < 1:
        parser.error("--examples and --rounds must be 1 or more")
    rows = report(against=options.against, examples=options.examples, rounds=options.rounds)
    print(page(rows))


if __name__ == "__main__":
    main()
