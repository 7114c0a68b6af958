"""The model as a Flax NNX module; the mathematics stays in `model`, which knows no Flax."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Self

import jax
from flax import nnx

from openmoe_production import model, stacking
from openmoe_production.batches import require_parameters
from openmoe_production.initialisation import initialise
from openmoe_spec.config import Configuration
from openmoe_spec.records import ForwardResult


class OpenMoE(nnx.Module):
    """A model that holds its tensors as `nnx.Param`, nested by the parts of their names.

    `remat` and `stacked` change no result: layers are computed again in the backward pass, and
    those that repeat are held together and run in a scan (`model.stack`).
    """

    def __init__(
        self,
        configuration: Configuration,
        *,
        rngs: nnx.Rngs,
        remat: bool = False,
        stacked: bool = False,
    ) -> None:
        """Draw the tensors from the stream `params` of `rngs`. Spec: INIT-01..INIT-04."""
        self.configuration = configuration
        self.remat = remat
        tensors = initialise(configuration, rngs.params())
        if stacked:
            tensors = stacking.stack(tensors, configuration)
        for name, value in tensors.items():
            *path, leaf = name.split("/")
            holder: Any = self
            for part in path:
                if not hasattr(holder, part):
                    setattr(holder, part, nnx.Dict())
                holder = getattr(holder, part)
            setattr(holder, leaf, nnx.Param(value))

    @classmethod
    def from_parameters(
        cls,
        parameters: Mapping[str, jax.Array],
        configuration: Configuration,
        *,
        remat: bool = False,
    ) -> Self:
        """Return a module that holds the given tensors in the layout, flat or stacked, they are in.

        Errors: RejectedError MODEL-09.
        """
        require_parameters(parameters, configuration)
        stacked = stacking.is_stacked(parameters)
        abstract = nnx.eval_shape(
            lambda: cls(configuration, rngs=nnx.Rngs(0), remat=remat, stacked=stacked)
        )
        graph, state = nnx.split(abstract)
        leaves = [
            (path, variable.replace(parameters[_name(path)]))
            for path, variable in nnx.to_flat_state(state)
        ]
        return nnx.merge(graph, nnx.from_flat_state(leaves))

    def parameters(self) -> dict[str, jax.Array]:
        """Return the tensors by name, for the functions of `model`."""
        state = nnx.to_flat_state(nnx.state(self, nnx.Param))
        return {_name(path): variable.get_value() for path, variable in state}

    def __call__(
        self, batch: Mapping[str, jax.Array], *, training: bool = False, **options: Any
    ) -> ForwardResult:
        """Return logits, decisions and metrics of a batch; other options are those of `model.run`.

        Errors: as `model.forward`. Spec: MODEL-01.
        """
        options = {"training": training, "remat": self.remat, **options}
        return model.forward(self.parameters(), batch, self.configuration, **options)

    def loss(
        self, batch: Mapping[str, jax.Array], *, training: bool = False, **options: Any
    ) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Return the total loss of a batch and its parts. Errors: as `model.loss_fn`."""
        options = {"training": training, "remat": self.remat, **options}
        return model.loss_fn(self.parameters(), batch, self.configuration, **options)


def _name(path: tuple[Any, ...]) -> str:
    return "/".join(map(str, path))
