"""One call of the model, and what its routers decided: by production, or by the reference.

Spec: ROUTE-01, MODEL-11.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_reference.model import Call as ReferenceCall
from openmoe_reference.model import forward
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Decision
from openmoe_tools.audit.passing.model import Audited

BACKENDS = ("production", "reference")
_LOGITS = "decoder/layers_{}/mlp/router/router_weights"


@dataclass(frozen=True)
class Recorded:
    """What the routers of one call decided; n sparse layers, groups as the training code makes them.

    expert    int32 [n, G, T, K]
    gate      float32 [n, G, T, K]
    position  int32 [n, G, T, K]
    kept      bool [n, G, T, K]
    logits    float32 [n, G, T, E]
    """

    expert: ndarray
    gate: ndarray
    position: ndarray
    kept: ndarray
    logits: ndarray


Recorder = Callable[[ndarray, ndarray], Recorded]
"""From inputs and targets [B, L] to what was decided."""


@dataclass(frozen=True)
class How:
    """How calls are run.

    mesh      devices along data, expert and model, of production alone
    training  the training capacity factor is in force, nothing is dropped out
    """

    backend: str = "production"
    mesh: tuple[int, int, int] | None = None
    dtype: str = "float32"
    training: bool = False
    replicas: int = 1


class Machine:
    """What runs calls: compiled once for all checkpoints of one configuration."""

    def __init__(self, how: How, model: Audited) -> None:
        self._how, self._configuration = how, model.configuration
        self._layers = model.layers
        self._layout: Any = None
        if how.backend == "production":
            self._compile()

    def recorder(self, model: Audited) -> Recorder:
        """Return the recorder of a checkpoint. Errors: UsageError on another configuration."""
        if _but_name(model.configuration) != _but_name(self._configuration):
            raise UsageError(
                f"{model.path}: is of another configuration; checkpoints of one are compared"
            )
        run = self._with_production if self._how.backend == "production" else self._with_reference
        return partial(_refused, model, run(model))

    def _with_reference(self, model: Audited) -> Recorder:
        how = self._how
        call = ReferenceCall(
            training=how.training, dtype=how.dtype, num_expert_replicas=how.replicas
        )

        def record(ids: ndarray, targets: ndarray) -> Recorded:
            batch = {"decoder_input_tokens": ids, "decoder_target_tokens": targets}
            found = forward(model.weights, batch, model.configuration, call=call)
            seen: Mapping[str, Any] = found.activations or {}
            logits = [seen[_LOGITS.format(i)] for i in self._layers]
            return _stacked([found.decisions[i] for i in self._layers], logits)

        return record

    def _compile(self) -> None:
        import jax  # noqa: PLC0415 - an optional extra

        from openmoe_production import sharding  # noqa: PLC0415
        from openmoe_production.model import forward as run  # noqa: PLC0415

        how, configuration, layers = self._how, self._configuration, self._layers
        if how.mesh is not None:
            self._layout = sharding.Layout(sharding.make_mesh(*how.mesh))

        def routed(tensors: Any, batch: Any) -> Any:
            found = run(
                tensors,
                batch,
                configuration,
                trace=True,
                training=how.training,
                dtype=how.dtype,
                num_expert_replicas=how.replicas,
                layout=self._layout,
            )
            seen: Mapping[str, Any] = found.activations or {}
            # What is not returned is not computed: the output projection, for one.
            return [found.decisions[i] for i in layers], [seen[_LOGITS.format(i)] for i in layers]

        self._program = jax.jit(routed)

    def _with_production(self, model: Audited) -> Recorder:
        import jax  # noqa: PLC0415

        from openmoe_production.model import stack  # noqa: PLC0415

        tensors = stack(model.weights, model.configuration)
        if self._layout is not None:
            tensors = self._layout.place(tensors, model.configuration)

        def record(ids: ndarray, targets: ndarray) -> Recorded:
            batch: Any = {"decoder_input_tokens": ids, "decoder_target_tokens": targets}
            if self._layout is not None:
                from openmoe_production import run_data  # noqa: PLC0415

                batch = run_data.on_mesh(batch, self._layout)
            decisions, logits = jax.device_get(self._program(tensors, batch))
            return _stacked(decisions, logits)

        return record


def _but_name(configuration: Any) -> dict[str, Any]:
    return {name: one for name, one in vars(configuration).items() if name != "name"}


def _stacked(decisions: list[Decision], logits: list[ndarray]) -> Recorded:
    fields = ("expert_index", "gate", "position", "kept")
    expert, gate, position, kept = (
        np.stack([np.asarray(getattr(one, name)) for one in decisions]) for name in fields
    )
    return Recorded(expert, gate, position, kept, np.stack([np.asarray(one) for one in logits]))


def _refused(model: Audited, record: Recorder, ids: ndarray, targets: ndarray) -> Recorded:
    """Record a call; a model that cannot be run, or that gives no numbers, is one line."""
    try:
        found = record(ids, targets)
    except RejectedError as error:
        what = "--rows and --mesh" if error.clause == "MESH-06" else model.path
        raise UsageError(f"{what}: {error.reason} [{error.clause}]") from error
    if not np.isfinite(found.logits).all():
        layer = model.layers[int(np.argwhere(~np.isfinite(found.logits))[0, 0])]
        raise UsageError(
            f"{model.path}: the router of layer {layer} gives logits that are not finite"
        )
    return found
