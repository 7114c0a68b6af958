"""Mutants of SPEC.md "Meshes": whole models on meshes, and meshes that should be refused."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.mutants.meshes import Together, first_part, summed_twice, unsummed
from openmoe_conformance.protocol import Mesh
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import meshes, model, routing
from openmoe_reference.mesh_models import total_loss
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Decision, ForwardResult


@mutant("MESH-04")
class HeadsAreNotAdded(Together, add=first_part):
    """A share goes on with the output of its own heads and widths."""


def _moved_by_the_mesh(mesh: Mesh) -> Callable[..., Any]:
    def decide(probabilities: ndarray, **options: Any) -> Decision:
        # Nobody's rounding: 2^-10 more on every second expert.
        tilt = 1 + 2.0**-10 * (np.arange(probabilities.shape[-1]) % 2) * (np.prod(mesh) > 1)
        return routing.decide((probabilities * tilt).astype(np.float32), **options)

    return decide


@mutant("MESH-04")
class RoutersAreCoarserOnMeshes(Together, decide=_moved_by_the_mesh):
    """More than near-ties is decided otherwise where there is more than one device."""


@mutant("MESH-04")
class DisplacedTokensKeepTheirSlots(ReferenceAdapter):
    """A near-tie flips where sums are cut, and positions and drops stay those of one device."""

    def forward(self, *arguments: Any, mesh: Mesh | None = None, **options: Any) -> ForwardResult:
        found = super().forward(*arguments, mesh=mesh, **options)
        if mesh is None or mesh[2] == 1:
            return found
        assert found.activations is not None
        layer, decision = next(iter(found.decisions.items()))
        logits = found.activations[f"decoder/layers_{layer}/mlp/router/router_weights"]
        order = np.argsort(-logits, axis=-1, kind="stable")
        ranked = np.take_along_axis(logits, order, axis=-1)
        gap = np.where(logits.any(axis=-1), ranked[..., 1] - ranked[..., 2], np.inf)
        place = np.unravel_index(gap.argmin(), gap.shape)
        index = decision.expert_index.copy()
        index[place][1] = order[place][2]
        flipped = {layer: replace(decision, expert_index=index)}
        return replace(found, decisions={**found.decisions, **flipped})


@mutant("MESH-05")
class ScalesAreNotSummed(Together, add_gradients=unsummed):
    """Norms and routers get the gradient of the first share's rows."""


@mutant("MESH-05")
class ScalesAreSummedTwice(Together, add_gradients=summed_twice):
    """Gradients of norms are added up over shares of widths that have them alike."""


@mutant("MESH-05")
class LossesAreAveragedOverShares(ReferenceAdapter):
    """Every share divides by its own weights, and the losses are averaged."""

    def loss_on_mesh(
        self,
        logits: ndarray,
        batch: Mapping[str, ndarray],
        metrics: Mapping[int, Any],
        configuration: Configuration,
        mesh: Mesh,
    ) -> dict[str, Any]:
        shares = mesh[0] * mesh[1]
        each = [
            total_loss(
                np.split(logits, shares)[i],
                {name: np.split(value, shares)[i] for name, value in batch.items()},
                metrics,
                configuration,
                meshes.Mesh(),
            )
            for i in range(shares)
        ]
        return {name: np.mean([one[name] for one in each]) for name in each[0]}


@mutant("MESH-05")
class EachVocabularyShareHasItsOwnSoftmax(ReferenceAdapter):
    """Logits are shifted by the largest of a share's own ids."""

    def rules_on_mesh(self, mesh: Mesh, configuration: Configuration, rows: int) -> model.Rules:
        right = super().rules_on_mesh(mesh, configuration, rows)

        def output_logits(*arguments: Any, **options: Any) -> ndarray:
            parts = np.split(right.output_logits(*arguments, **options), mesh[2], axis=-1)
            tops = [part.max(axis=-1, keepdims=True) for part in parts]
            shifted = [part - top + tops[0] for part, top in zip(parts, tops, strict=True)]
            return np.concatenate(shifted, axis=-1)

        return replace(right, output_logits=output_logits)


# ---- microbatches --------------------------------------------------------------------------


@mutant("MESH-07")
class MicrobatchesAreCutInEachShare(ReferenceAdapter):
    """A microbatch holds a slice of every share's rows."""

    def accumulated_on_mesh(
        self, of_batch: Any, batch: Mapping[str, ndarray], mesh: Mesh, *, num_microbatches: int
    ) -> Any:
        shares = mesh[0] * mesh[1]
        rows = np.arange(len(batch["decoder_input_tokens"])).reshape(shares, num_microbatches, -1)
        order = rows.swapaxes(0, 1).reshape(-1)
        dealt = {name: value[order] for name, value in batch.items()}
        return super().accumulated_on_mesh(of_batch, dealt, mesh, num_microbatches=num_microbatches)


@mutant("MESH-07")
class TheMeshIsSplitFirst(ReferenceAdapter):
    """One pass over the whole batch, whose gradient is multiplied by the microbatches."""

    def accumulated_on_mesh(
        self, of_batch: Any, batch: Mapping[str, ndarray], mesh: Mesh, *, num_microbatches: int
    ) -> Any:
        losses, found = super().accumulated_on_mesh(of_batch, batch, mesh, num_microbatches=1)
        return (
            {name: value * num_microbatches for name, value in losses.items()},
            {name: value * num_microbatches for name, value in found.items()},
        )


# ---- what must be refused ------------------------------------------------------------------


class _OnFewer(ReferenceAdapter):
    """What a mesh does not fit runs on one device."""

    def _tried(self, run: Callable[[Mesh], Any], mesh: Mesh) -> Any:
        try:
            return run(mesh)
        except RejectedError as refusal:
            return self._refused(refusal, run)

    def _refused(self, refusal: RejectedError, run: Callable[[Mesh], Any]) -> Any:
        del refusal
        return run((1, 1, 1))

    def moe(self, *arguments: Any, mesh: Mesh | None = None, **options: Any) -> Any:
        def run(on: Mesh | None) -> Any:
            return super(_OnFewer, self).moe(*arguments, mesh=on, **options)

        return run(None) if mesh is None else self._tried(run, mesh)

    def forward(self, *arguments: Any, mesh: Mesh | None = None, **options: Any) -> Any:
        def run(on: Mesh | None) -> Any:
            return super(_OnFewer, self).forward(*arguments, mesh=on, **options)

        return run(None) if mesh is None else self._tried(run, mesh)


@mutant("MESH-06")
class IndivisibleLayoutsRunElsewhere(_OnFewer):
    """What a mesh cannot cut evenly runs on one device, and nobody is told."""


@mutant("MESH-06")
class TheRefusalSaysNoNumber(_OnFewer):
    """The message says that something does not fit, and not what would."""

    def _refused(self, refusal: RejectedError, run: Callable[[Mesh], Any]) -> Any:
        raise RejectedError(refusal.argument, refusal.clause, "does not fit the mesh")
