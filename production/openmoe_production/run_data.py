"""What a training run feeds: the pipelines of its stages and of its evaluation, and rows on a mesh."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import jax
import numpy as np
from numpy import ndarray

from openmoe_production import sources
from openmoe_production.data import Features, Pipeline
from openmoe_production.run_settings import RunSettings
from openmoe_production.settings_sections import Stage, Task
from openmoe_production.sharding import Layout
from openmoe_production.streams import Settings
from openmoe_production.vocabulary import Vocabulary, load
from openmoe_spec.errors import RejectedError


def vocabulary(settings: RunSettings) -> Vocabulary:
    """Return the tokeniser of a run. Errors: RejectedError RUN-02 when it has more ids than the model."""
    found = load(settings.data.tokenizer)
    ids = settings.model.vocabulary_size
    if found.size > ids:
        raise RejectedError(
            "data.tokenizer",
            "RUN-02",
            f"has {found.size} ids with its sentinels, model.vocabulary_size is {ids}; "
            f"make it {found.size} or more",
        )
    return found


def stage_pipeline(settings: RunSettings, stage: Stage, pieces: Vocabulary) -> Pipeline:
    """Return the endless pipeline of a stage: every process of a run has the same.

    A process keeps the rows of its devices, so nothing that is fed depends on how many there are.
    """
    data = settings.data
    return Pipeline(
        [_opened(task, stage) for task in stage.tasks],
        replace(_fed(settings, stage, pieces), shuffle_buffer=data.shuffle_buffer),
        batch_size=data.batch_size,
        vocabulary=pieces,
        threads=data.threads,
        ahead=data.ahead,
    )


def one_pass(
    settings: RunSettings,
    stage: Stage,
    task: Task,
    pieces: Vocabulary,
    *,
    objective: int | None = None,
) -> Iterator[Features]:
    """Yield the batches of one task, each document once, in its order, of a microbatch's rows.

    objective  of ul2: the examples of this one alone, made of all documents
    The last batch is filled up with rows that were fed before, with a loss weight of 0: like real ones
    they take slots of experts, and like padding they count for nothing.
    Errors: RejectedError DATA-11, SourceError.
    """
    fed = replace(_fed(settings, stage, pieces), repeat=False, shuffle=False)
    if objective is not None:
        fed = replace(fed, objectives=(objective,))
    rows = settings.data.batch_size // settings.optimizer.num_microbatches
    pipeline = Pipeline([_opened(task, stage)], fed, batch_size=rows, vocabulary=pieces)
    first: Features = {}
    for features in pipeline:
        first = first or features
        yield filled(features, first, rows)


def filled(features: Features, first: Features, rows: int) -> Features:
    """Return a batch of as many rows as wanted, with earlier ones of weight 0 behind its own."""
    missing = rows - len(features["decoder_target_tokens"])
    if not missing:
        return features
    found = {}
    for name, array in features.items():
        pool = np.concatenate([array, first[name]])
        extra = np.resize(pool, (missing, *array.shape[1:]))
        if name == "decoder_loss_weights":
            extra = np.zeros_like(extra)
        found[name] = np.concatenate([array, extra])
    return found


def _fed(settings: RunSettings, stage: Stage, pieces: Vocabulary) -> Settings:
    return Settings(
        mode=stage.mode,
        seed=settings.data_seed,
        inputs_length=stage.inputs_length or 0,
        targets_length=stage.targets_length,
        vocabulary_size=pieces.size,
        prompts=pieces.modes if stage.mode == "ul2" else (),
    )


def _opened(task: Task, stage: Stage) -> sources.Task:
    field = None if stage.mode == "sft" else task.field or "text"
    documents = sources.open_documents(task.paths, field=field)
    return sources.Task(documents, rate=task.rate, name=task.name)


def on_mesh(features: Mapping[str, ndarray], layout: Layout) -> dict[str, jax.Array]:
    """Return a batch as arrays of the whole mesh; a process moves the rows of its own devices.

    Errors: RejectedError MESH-06 when the rows cannot be split evenly.
    """
    layout.require_divisible("batch_size", len(features["decoder_target_tokens"]), "batch")
    sharding = layout.sharding("batch")

    def moved(array: ndarray) -> Any:
        return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])

    return {name: moved(array) for name, array in features.items()}
