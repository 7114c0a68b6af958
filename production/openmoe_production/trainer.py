"""A training run: from its settings to steps, records and checkpoints, stopped and resumed anywhere.

Nothing here prints, and nothing reads a signal: whoever runs a `Trainer` does. Spec: RUN-02..RUN-06.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils

from openmoe_production import grouping, model, optimizer, run_data, stacking, training
from openmoe_production.checkpoints import Checkpoints, restored_parameters
from openmoe_production.data import Pipeline
from openmoe_production.dropout import Dropout
from openmoe_production.initialisation import initialise
from openmoe_production.run_settings import RunSettings
from openmoe_production.sharding import PARAMETERS_OVER_DATA, RULES, Layout, make_mesh
from openmoe_spec.config import Configuration


class NotFiniteError(Exception):
    """A loss or gradient is not a number or infinite: the run cannot go on from this step."""

    def __init__(self, step: int, what: str, good: int | None) -> None:
        self.step, self.what, self.good = step, what, good
        kept = "no step was saved before it" if good is None else f"step {good} is saved and good"
        super().__init__(f"step {step}: {what} is not finite; {kept}")


class Record(NamedTuple):
    """What is known of one step, in plain numbers; `step` counts updates, this one included.

    losses          by the names of `records.LOSSES`
    metrics, loads  by sparse layer: those of `records.METRICS`, and lists [E] of choices
    gradient_norms  by the names of `training.PARTS`, and `all`
    tokens          positions with a loss
    """

    step: int
    stage: int
    mode: str
    rate: float
    losses: dict[str, float]
    metrics: dict[int, dict[str, float]]
    loads: dict[int, dict[str, list[int]]]
    gradient_norms: dict[str, float]
    tokens: int


class Trainer:
    """One run in a folder: `checkpoints/` of it, and where it stands.

    step      updates made
    stopping  set to end the run behind the step that is being made
    Errors: RejectedError RUN-02, MESH-06; CheckpointError; SourceError; OSError.
    """

    def __init__(
        self, settings: RunSettings, folder: Path, *, warn: Callable[[str], None] = print
    ) -> None:
        self.settings = settings
        self.layout = layout_of(settings)
        self.stopping = False
        self.vocabulary = run_data.vocabulary(settings)
        self.checkpoints = Checkpoints(
            folder / "checkpoints",
            settings.fixed(),
            keep=settings.checkpoints.keep,
            keep_steps=settings.checkpoints.early,
            warn=warn,
        )
        self._pipeline: tuple[int, Pipeline] | None = None
        self._saved = self.checkpoints.latest()
        self.step = self._saved or 0
        self.parameters, self.state = (
            self._begin() if self._saved is None else self._resume(self._saved)
        )
        options: dict[str, Any] = {
            "configuration": settings.model,
            "layout": self.layout,
            "rate": rate_of(settings),
            "num_microbatches": settings.optimizer.num_microbatches,
            "averaged": settings.optimizer.averaged,
            "num_expert_partitions": settings.optimizer.num_expert_partitions,
            "num_expert_replicas": settings.mesh.num_expert_replicas,
            "dtype": settings.arithmetic.dtype,
            "remat": settings.arithmetic.remat,
            "dropout": dropout_of(settings),
        }
        self._step = jax.jit(partial(training.train_step, **options), donate_argnums=(0, 1))

    # ---- where a run begins --------------------------------------------------------------------

    def _begin(self) -> tuple[dict[str, jax.Array], optimizer.State]:
        shapes = abstract_state(self.settings, self.layout)
        placed = jax.tree.map(lambda one: one.sharding, shapes)
        start = self.settings.start
        if start is None:
            draw = partial(_drawn, configuration=self.settings.model)
            key = jax.random.key(self.settings.seed)
            parameters = jax.jit(draw, out_shardings=placed["parameters"])(key)
        else:
            parameters = restored_parameters(start.checkpoint, start.step, shapes["parameters"])
        state = optimizer.State(**placed["optimizer"])
        return parameters, jax.jit(rule_of(self.settings).init, out_shardings=state)(parameters)

    def _resume(self, step: int) -> tuple[dict[str, jax.Array], optimizer.State]:
        found, data = self.checkpoints.restore(step, abstract_state(self.settings, self.layout))
        stage, begins = self.settings.stage_at(step)
        if data["stage"] == stage and step != begins:
            self._open(stage).set_state(data["pipeline"])
        return found["parameters"], optimizer.State(**found["optimizer"])

    def _open(self, stage: int) -> Pipeline:
        """Return the pipeline of a stage, which is the open one as long as the stage lasts."""
        if self._pipeline is None or self._pipeline[0] != stage:
            self._close_pipeline()
            one = self.settings.stage[stage]
            self._pipeline = stage, run_data.stage_pipeline(self.settings, one, self.vocabulary)
        return self._pipeline[1]

    # ---- the steps -----------------------------------------------------------------------------

    def run(self) -> Iterator[Record]:
        """Make the steps that are left, and yield the record of each as soon as it is known.

        A record is looked at while devices make the next step. The steps that are due are saved, and
        the last one, also when the run is stopped.
        Errors: NotFiniteError, of a step that is not saved; CheckpointError; SourceError.
        """
        waiting: _Made | None = None
        while self.step < self.settings.total_steps and not self._stops():
            made = self._make()
            if waiting is not None:
                yield self._record(waiting)
            waiting = made
            if self._is_due():
                yield self._record(made)
                waiting = None
                self.save()
        if waiting is not None:
            yield self._record(waiting)
            self.save()

    def _make(self) -> _Made:
        stage, _ = self.settings.stage_at(self.step)
        features = next(self._open(stage))
        batch = run_data.on_mesh(features, self.layout)
        made = self._step(self.parameters, self.state, batch)
        self.parameters, self.state = made.parameters, made.state
        self.step += 1
        return _Made(self.step, stage, made.shown, made.gradient_norms)

    def _is_due(self) -> bool:
        checkpoints = self.settings.checkpoints
        return self.step % checkpoints.every == 0 or self.step in checkpoints.early

    def _stops(self) -> bool:
        """Return whether to stop here, as all processes do or none; JAX hears their SIGTERM."""
        if jax.process_count() > 1:
            self.stopping = multihost_utils.reached_preemption_sync_point(self.step)
        return self.stopping

    def _record(self, made: _Made) -> Record:
        """Return the record of a step, which is waited for. Errors: NotFiniteError."""
        shown, norms = jax.device_get((made.shown, made.gradient_norms))
        settings = self.settings.optimizer
        slices = 1 if settings.averaged else settings.num_microbatches
        losses = {name: float(value) / slices for name, value in shown.losses.items()}
        record = Record(
            step=made.step,
            stage=made.stage,
            mode=self.settings.stage[made.stage].mode,
            rate=float(rate_of(self.settings)(jnp.int32(made.step - 1))),
            losses=losses,
            metrics={
                i: {name: float(value) for name, value in one.items()}
                for i, one in shown.metrics.items()
            },
            loads={
                i: {name: value.tolist() for name, value in one.items()}
                for i, one in shown.loads.items()
            },
            gradient_norms={name: float(value) for name, value in norms.items()},
            tokens=round(losses["weight_sum"] * settings.num_microbatches),
        )
        for what, value in (
            ("the loss", record.losses["total"]),
            ("the gradients' norm", record.gradient_norms["all"]),
        ):
            if not math.isfinite(value):
                self.checkpoints.wait()  # what is being written is good
                raise NotFiniteError(made.step, what, self.checkpoints.latest())
        return record

    # ---- what stays ----------------------------------------------------------------------------

    def save(self) -> None:
        """Save the state behind the last step; it is written while the next ones are made.

        Errors: CheckpointError, also of an earlier step's writing.
        """
        if self.step == self._saved:
            return
        pipeline = None if self._pipeline is None else self._pipeline[1].get_state()
        stage, _ = self.settings.stage_at(self.step - 1)
        self.checkpoints.save(
            self.step,
            {"parameters": self.parameters, "optimizer": self.state._asdict()},
            {"stage": stage, "pipeline": pipeline},
        )
        self._saved = self.step

    def close(self) -> None:
        """Wait for what is being written, and end what reads ahead. Errors: CheckpointError."""
        self._close_pipeline()
        self.checkpoints.close()

    def _close_pipeline(self) -> None:
        if self._pipeline is not None:
            self._pipeline[1].close()
            self._pipeline = None


class _Made(NamedTuple):
    """A step on its way: what it will show."""

    step: int
    stage: int
    shown: model.Shown
    gradient_norms: dict[str, jax.Array]


# ---- what settings mean --------------------------------------------------------------------------


def layout_of(settings: RunSettings) -> Layout:
    """Return the mesh of a run, or refuse what does not fit it. Errors: RejectedError MESH-06, RUN-02."""
    mesh, rows = settings.mesh, settings.data.batch_size // settings.optimizer.num_microbatches
    rules = PARAMETERS_OVER_DATA if mesh.parameters_over_data else RULES
    layout = Layout(make_mesh(mesh.data, mesh.expert, mesh.model), rules)
    layout.require(settings.model)
    layout.require_divisible("rows of a microbatch", rows, "batch")
    for stage in settings.stage:
        grouping.share_of_groups(
            rows // layout.size("batch"),
            stage.row_length,
            shares=layout.size("batch"),
            max_group_size=settings.model.max_group_size,
            num_experts=settings.model.num_experts,
            num_expert_replicas=mesh.num_expert_replicas,
        )
    return layout


def rate_of(settings: RunSettings) -> optimizer.Rate:
    """Return the learning rate's schedule."""
    chosen = settings.optimizer
    if chosen.schedule == "constant":
        assert chosen.rate is not None
        return optimizer.constant_rate(chosen.rate)
    return optimizer.learning_rate


def dropout_of(settings: RunSettings) -> Dropout | None:
    """Return the dropout of a run, whose draws are none of those of the initialisation."""
    if not settings.dropout.rate:
        return None
    key = jax.random.fold_in(jax.random.key(settings.seed), _DROPOUT)
    return Dropout(key, settings.dropout.rate)


_DROPOUT = 1
"""What the run's key is folded with for dropout; the key itself is that of the initialisation."""


def rule_of(settings: RunSettings) -> optimizer.GradientTransformation:
    """Return the optimizer of a run, whose gates are split."""
    return training.adafactor(settings.model, rate_of(settings), form=SPLIT)


SPLIT = stacking.Form(split=True)
"""How a run holds its tensors."""


def abstract_state(settings: RunSettings, layout: Layout) -> dict[str, Any]:
    """Return shape, dtype and place of each array that a run holds: `parameters` and `optimizer`."""
    held = stacking.held(settings.model, SPLIT)
    axes = {name: one.axes for name, one in held.items()}

    def place(shape: tuple[int, ...], dtype: Any, logical: tuple[str | None, ...]) -> Any:
        placed = layout.sharding(*logical)
        return jax.ShapeDtypeStruct(shape, dtype, sharding=placed)  # type: ignore[no-untyped-call]

    parameters = {name: place(one.shape, jnp.float32, one.axes) for name, one in held.items()}
    state = jax.eval_shape(rule_of(settings).init, parameters)
    of_slots = optimizer.slot_axes(parameters, axes)
    slots = {
        name: {
            slot: place(array.shape, array.dtype, of_slots[name][slot])
            for slot, array in one.items()
        }
        for name, one in state.slots.items()
    }
    return {
        "parameters": parameters,
        "optimizer": {"step": place((), jnp.int32, ()), "slots": slots},
    }


def _drawn(key: jax.Array, *, configuration: Configuration) -> dict[str, jax.Array]:
    return stacking.split_gates(initialise(configuration, key))
