"""Loss and accuracy of a model on held-out text: what the paper's first figures show. Spec: RUN-07."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from itertools import islice
from typing import NamedTuple

import jax
import numpy as np
from numpy import ndarray

from openmoe_production import model, run_data
from openmoe_production.data import Features
from openmoe_production.run_settings import RunSettings
from openmoe_production.settings_sections import Stage, Task
from openmoe_production.sharding import Layout
from openmoe_production.vocabulary import Vocabulary
from openmoe_spec.data import OBJECTIVES


class Evaluated(NamedTuple):
    """What a model makes of one set of rows: nats and shares for each position with a loss.

    tokens    positions with a loss
    loss      cross entropy in nats, without z-loss and router losses
    accuracy  share of positions whose likeliest id is the target
    unigram   entropy of the targets' own frequencies: no model that knows these alone has a lower loss
    """

    tokens: int
    loss: float
    accuracy: float
    unigram: float


class Evaluator:
    """A compiled evaluation pass: capacity is that of evaluation, nothing is dropped out."""

    def __init__(self, settings: RunSettings, layout: Layout) -> None:
        self._layout = layout
        self._losses = jax.jit(
            partial(
                model.loss_fn,
                configuration=settings.model,
                layout=layout,
                num_expert_replicas=settings.mesh.num_expert_replicas,
                dtype=settings.arithmetic.dtype,
            )
        )

    def __call__(
        self,
        parameters: Mapping[str, jax.Array],
        batches: Iterable[Features],
        heard: Callable[[], None] = lambda: None,
    ) -> Evaluated | None:
        """Return the means over all batches, None where no position has a loss; `heard` a batch."""
        tokens, loss, right = 0.0, 0.0, 0.0
        targets: Counter[int] = Counter()
        for features in batches:
            counted = features["decoder_loss_weights"] > 0
            if not counted.any():
                continue
            targets.update(features["decoder_target_tokens"][counted].tolist())
            batch = run_data.on_mesh(features, self._layout)
            _, parts = self._losses(parameters, batch)
            found = {name: float(value) for name, value in jax.device_get(parts).items()}
            tokens += found["weight_sum"]
            loss += found["weight_sum"] * found["cross_entropy"]
            right += found["weight_sum"] * found["accuracy"]
            heard()
        if not targets:
            return None
        counts = np.array(list(targets.values()))
        return Evaluated(round(tokens), loss / tokens, right / tokens, entropy(counts))


def entropy(counts: ndarray) -> float:
    """Return the entropy in nats of frequencies, of which counts above 0 are given."""
    shares = counts / counts.sum()
    return float(-(shares * np.log(shares)).sum())


def by_objective(
    settings: RunSettings, stage: Stage, task: Task, pieces: Vocabulary, *, batches: int | None
) -> dict[str, Iterable[Features]]:
    """Return the rows of a task by what is asked of them: each objective of ul2 alone, or the mode.

    An objective sees all documents of the task. Errors: as `run_data.one_pass`.
    """
    kinds: dict[str, int | None] = {stage.mode: None}
    if stage.mode == "ul2":
        kinds = {objective_name(i): i for i in range(len(OBJECTIVES))}
    return {
        name: islice(run_data.one_pass(settings, stage, task, pieces, objective=objective), batches)
        for name, objective in kinds.items()
    }


def objective_name(objective: int) -> str:
    """Return an objective in words, by the mean length and the share of its noise."""
    one = OBJECTIVES[objective]
    if one.mean_noise_span_length is None:
        return "prefix"
    return f"spans of {one.mean_noise_span_length:g}, {one.noise_density:.0%} noise"
