"""SPEC.md "Documents": a whole pipeline, from documents to the rows a model is fed.

Everything drawn follows from the seed and the place of what it is drawn for, so a pipeline is where it
is: a state is the number of rows fed, and going on is beginning anew and passing over that many.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import count as count_up
from itertools import islice

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from openmoe_reference import draws
from openmoe_reference.arguments import check_ids, check_integer
from openmoe_reference.batching import Features, decoder_features
from openmoe_reference.documents import (
    Documents,
    document_block,
    join_documents,
    num_blocks,
    objective_groups,
    objective_segments,
)
from openmoe_reference.noise import noise_counts, prefix_bounds
from openmoe_reference.objectives import Example, ul2_example
from openmoe_spec.data import GROUP_OF_DOCUMENTS, NUM_SENTINELS, OBJECTIVES
from openmoe_spec.errors import RejectedError

Prompts = Sequence[Int[ndarray, " _"]]
"""Ids of the mode of each objective."""


def feed(
    documents: Documents,
    *,
    count: int,
    seed: int,
    inputs_length: int,
    targets_length: int,
    vocabulary_size: int,
    prompts: Prompts,
    state: int | None = None,
    process: int = 0,
    num_processes: int = 1,
) -> tuple[Features, int]:
    """Return `count` packed rows of the training mixture, and the state to go on from.

    Errors: RejectedError DATA-11, also when the documents make no example.
    Spec: DATA-12, DATA-13, DATA-14. Source: preprocessors.py::ul2_objective.
    """
    count = check_integer("count", count, "DATA-11", least=1)
    seed = check_integer("seed", seed, "DATA-11", least=0)
    done = check_integer("state", 0 if state is None else state, "DATA-11", least=0)
    processes = check_integer("num_processes", num_processes, "DATA-11", least=1)
    process = check_integer("process", process, "DATA-11", least=0, most=processes - 1)
    join_documents(documents)  # refuses what is no document
    if not isinstance(prompts, Sequence) or len(prompts) != len(OBJECTIVES):
        raise RejectedError("prompts", "DATA-11", f"must be {len(OBJECTIVES)}, one an objective")
    lengths = {
        "inputs": check_integer("inputs_length", inputs_length, "DATA-11", least=3),
        "targets": check_integer("targets_length", targets_length, "DATA-11", least=2),
    }
    check_integer("vocabulary_size", vocabulary_size, "DATA-11", least=NUM_SENTINELS + 1)
    modes = [check_ids(f"prompts[{i}]", one, "DATA-11") for i, one in enumerate(prompts)]
    own = [one for one in list(documents)[process::processes] if np.count_nonzero(one)]
    groups = [own[i : i + GROUP_OF_DOCUMENTS] for i in range(0, len(own), GROUP_OF_DOCUMENTS)]

    def stream(objective: int) -> Iterator[Example]:
        """Yield the examples of an objective for ever; none when it has no group."""
        mine = objective_groups(len(groups), objective)
        for turn in count_up() if mine else ():
            for group in mine:
                place = (seed, process, objective, turn, group)
                yield from _examples(
                    *(groups[group], objective, place),
                    inputs_length=inputs_length,
                    targets_length=targets_length,
                    vocabulary_size=vocabulary_size,
                    prompt=modes[objective],
                )

    fed = [i for i in range(len(OBJECTIVES)) if objective_groups(len(groups), i)]
    if not fed:
        raise RejectedError("documents", "DATA-11", "hold no token")
    # A batch of the packing is as many examples as a row has positions (BATCH-06).
    size = sum(lengths.values())
    mixed = _mixed([stream(i) for i in range(len(OBJECTIVES))], fed, seed)
    rows: list[Features] = []
    wanted = done + count
    while sum(len(one["decoder_target_tokens"]) for one in rows) < wanted:
        rows.append(decoder_features(list(islice(mixed, size)), lengths=lengths, pack=True))
    whole = {name: np.concatenate([one[name] for one in rows]) for name in rows[0]}
    return {name: array[done:wanted] for name, array in whole.items()}, wanted


def _mixed(
    streams: Sequence[Iterator[Example]], fed: Sequence[int], seed: int
) -> Iterator[Example]:
    """Yield examples as drawn objectives say; a draw of one that has no group is passed over."""
    for turn in count_up():
        for objective in draws.draw_objectives(1024, seed=_seed(seed, turn)).tolist():
            if objective in fed:
                yield next(streams[objective])


def _examples(
    documents: Documents,
    objective: int,
    place: tuple[int, ...],
    *,
    inputs_length: int,
    targets_length: int,
    vocabulary_size: int,
    prompt: Int[ndarray, " P"],
) -> Iterator[Example]:
    """Yield an objective's examples of one group; `place` is what the draws follow from."""
    generator = np.random.default_rng(place)
    blocks = [_drawn_block(one, generator) for one in documents]
    joined = join_documents(blocks)
    block = int(generator.integers(max(num_blocks(len(joined)), 1)))
    segments = objective_segments(blocks, objective, inputs_length=inputs_length, block=block)
    made = OBJECTIVES[objective]
    for segment in segments:
        drawn: dict[str, object] = {}
        if made.mean_noise_span_length is None:
            drawn["split"] = int(generator.integers(*prefix_bounds(len(segment)), endpoint=True))
        else:
            counts = noise_counts(
                len(segment),
                noise_density=made.noise_density,
                mean_noise_span_length=made.mean_noise_span_length,
            )
            drawn |= draws.permutations(generator, counts)
        yield ul2_example(
            *(segment, objective),
            inputs_length=inputs_length,
            targets_length=targets_length,
            vocabulary_size=vocabulary_size,
            prompt=prompt,
            **drawn,  # type: ignore[arg-type]
        )


def _drawn_block(document: Int[ndarray, " n"], generator: np.random.Generator) -> ndarray:
    return document_block(document, int(generator.integers(num_blocks(len(document)))))


def _seed(seed: int, turn: int) -> int:
    return int(np.random.SeedSequence((seed, turn)).generate_state(1, np.uint64)[0])
