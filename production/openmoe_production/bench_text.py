"""Where the time goes from text to batches, and what workers add: a section of `openmoe bench`.

Ways of running one pipeline take turns in the same process: ratios travel to other machines, rates do
not. Needs the extra `data`.
"""

from __future__ import annotations

import multiprocessing
import statistics
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from typing import NamedTuple

from openmoe_production import sources, vocabulary
from openmoe_production.bench_timing import seconds, table
from openmoe_production.data import Pipeline
from openmoe_production.streams import Settings

SHARE_TARGET = 0.80
"""Tokenising's share of the time from text to batches, at least."""

BATCH = 16
_WARM = 20
"""Batches that are made before the clock starts."""


class Corpus(NamedTuple):
    """Texts, and a SentencePiece model that cuts them."""

    name: str
    texts: Sequence[str]
    model: bytes


class Stages(NamedTuple):
    """Seconds of making some examples: by the clock, and by stage of the processor."""

    corpus: str
    pieces: int
    bytes_a_token: float
    examples: int
    wall: float
    stages: Mapping[str, float]


def pipeline(
    corpus: Corpus, *, process: int = 0, processes: int = 1, threads: int = 0, ahead: int = 0
) -> Pipeline:
    """Return a pipeline of the training mixture at 1024 + 1024."""
    loaded = vocabulary.load(corpus.model)
    settings = Settings(
        mode="ul2",
        seed=0,
        inputs_length=1024,
        targets_length=1024,
        vocabulary_size=loaded.size,
        prompts=loaded.modes,
        process=process,
        num_processes=processes,
    )
    task = sources.Task(sources.Texts(corpus.texts))
    options = {"batch_size": BATCH, "threads": threads, "ahead": ahead}
    return Pipeline([task], settings, vocabulary=loaded, **options)


def stages(corpus: Corpus, *, batches: int, rounds: int) -> Stages:
    """Return the round of median time: one process, nothing made ahead."""
    found = []
    for _ in range(rounds):
        made = pipeline(corpus)
        _take(made, _WARM)
        before = dict(made.statistics.seconds), made.statistics.examples
        start = time.perf_counter()
        _take(made, batches)
        wall = time.perf_counter() - start
        taken = {n: s - before[0].get(n, 0.0) for n, s in made.statistics.seconds.items()}
        found.append((wall, made.statistics.examples - before[1], taken))
    wall, examples, taken = sorted(found, key=lambda one: one[0])[len(found) // 2]
    loaded = vocabulary.load(corpus.model)
    tokens = sum(map(len, loaded.encode_many(corpus.texts[:500])))
    size = sum(len(text.encode()) for text in corpus.texts[:500])
    return Stages(corpus.name, loaded.num_pieces, size / tokens, examples, wall, taken)


WAYS: Mapping[str, Mapping[str, int]] = {
    "as needed": {},
    "1 thread a stream": {"threads": 1},
    "2 threads a stream": {"threads": 2},
    "ahead in a process": {"ahead": 2},
}
"""Ways of running one pipeline, by name."""


def scaling(corpus: Corpus, *, batches: int, rounds: int) -> dict[str, float]:
    """Return batches a second by way of running, and of two processes that share the documents."""
    pipelines = {name: pipeline(corpus, **options) for name, options in WAYS.items()}
    for one in pipelines.values():
        _take(one, _WARM)
    taken = seconds({n: partial(_take, one, batches) for n, one in pipelines.items()}, rounds)
    for one in pipelines.values():
        one.close()
    rates = {name: batches / statistics.median(times) for name, times in taken.items()}
    return rates | {"2 processes": _two_processes(corpus, batches=batches, rounds=rounds)}


def _two_processes(corpus: Corpus, *, batches: int, rounds: int) -> float:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context) as pool:
        rates = []
        for _ in range(1 + rounds):
            jobs = [pool.submit(_timed, corpus, process, batches) for process in range(2)]
            rates.append(sum(batches / job.result() for job in jobs))
    return statistics.median(rates[1:])


def _timed(corpus: Corpus, process: int, batches: int) -> float:
    made = pipeline(corpus, process=process, processes=2)
    _take(made, _WARM)
    start = time.perf_counter()
    _take(made, batches)
    return time.perf_counter() - start


def _take(made: Pipeline, batches: int) -> None:
    for _ in islice(made, batches):
        pass


def section(corpora: Sequence[Corpus], *, batches: int = 200, rounds: int = 5) -> str:
    """Return what was measured as a section of a Markdown page; workers with the first corpus."""
    rows = []
    for corpus in corpora:
        name, pieces, size, examples, wall, taken = stages(corpus, batches=batches, rounds=rounds)
        share = taken["tokenising"] / wall
        target = f">= {SHARE_TARGET:.2f}: {'met' if share >= SHARE_TARGET else 'missed'}"
        each = [f"{1e6 * taken[stage] / examples:.0f}" for stage in _STAGES]
        rest = 1e6 * (wall - sum(taken.values())) / examples
        figures = [name, f"{pieces}", f"{size:.1f}", *each, f"{rest:.0f}", f"{share:.2f}", target]
        rows.append(figures)
    rates = scaling(corpora[0], batches=batches, rounds=rounds)
    base = rates["as needed"]
    ways = [[name, f"{rate:.0f}", f"{rate / base:.2f}"] for name, rate in rates.items()]
    heads = ("text", "pieces", "bytes a token", *_STAGES, "rest", "share", "target")
    return f"""## From text to batches

The whole pipeline at 1024 + 1024, batches of {BATCH} rows; microseconds of the processor an example,
rounds of median time. *Rest* is mixing, counting, and states; *share* is tokenising's of the clock's time.
Every part but tokenising costs the same whatever the text: the more bytes a token has, and the more
pieces the model, the larger the share.

{table(heads, rows)}

Batches a second, interleaved, medians; {corpora[0].name}:

{table(("workers", "batches", "ratio"), ways)}
"""


_STAGES = ("reading", "tokenising", "objectives", "packing")
