"""The reference's simulated meshes as an implementation: what its functions do with a `mesh`.

The mesh is that of `openmoe_reference.meshes`; `collectives()` is what planted bugs exchange.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from numpy import ndarray

from openmoe_conformance.adapter import UnsupportedError
from openmoe_conformance.protocol import MESHES
from openmoe_conformance.protocol import Mesh as Devices
from openmoe_reference import mesh_layers, mesh_models, model, optimizer, routing
from openmoe_reference.meshes import Collectives, Mesh
from openmoe_spec.config import Configuration
from openmoe_spec.records import Decision, LayerResult

Tree = Mapping[str, ndarray]


class ReferenceMeshAdapter:
    """Layers, passes, losses and gradients share by share."""

    def meshes(self) -> tuple[Devices, ...]:
        return MESHES

    def collectives(self, mesh: Devices) -> Collectives:
        """Return what shares do together; mutants exchange some."""
        del mesh
        return Collectives()

    def _shared(self, mesh: Devices) -> dict[str, Any]:
        return {"mesh": Mesh(*mesh), "collectives": self.collectives(mesh)}

    def layer_on_mesh(
        self,
        function: Callable[..., LayerResult],
        inputs: ndarray,
        parameters: Tree,
        mesh: Devices,
        *,
        router: str = "masked",
        noise: ndarray | None = None,
        **options: Any,
    ) -> LayerResult:
        if router != "masked" or noise is not None:
            raise UnsupportedError("a simulated mesh knows the masked router alone, without noise")
        return function(inputs, parameters, **self._shared(mesh), **options)

    def layer_gradients_on_mesh(
        self,
        inputs: ndarray,
        parameters: Tree,
        cotangent: ndarray,
        mesh: Devices,
        *,
        balance: float,
        z: float,
        ignore_padding: bool = False,
        **options: Any,
    ) -> dict[str, ndarray]:
        options["ignore_padding"] = ignore_padding
        found = self.layer_on_mesh(mesh_layers.moe, inputs, parameters, mesh, **options)
        assert isinstance(found.decision, Decision)
        return mesh_layers.layer_gradients(
            inputs,
            parameters,
            cotangent,
            found.decision,
            balance=balance,
            z=z,
            padding_mask=routing.padding_mask(inputs) if ignore_padding else None,
            **self._shared(mesh),
        )

    def rules_on_mesh(self, mesh: Devices, configuration: Configuration, rows: int) -> model.Rules:
        """Return the rules of a pass of so many rows, or refuse what the mesh would not cut evenly."""
        mesh_models.check_model(configuration, Mesh(*mesh), rows=rows)
        return mesh_models.rules(**self._shared(mesh))

    def loss_on_mesh(
        self,
        logits: ndarray,
        batch: Tree,
        metrics: Mapping[int, Any],
        configuration: Configuration,
        mesh: Devices,
    ) -> dict[str, Any]:
        shared = self._shared(mesh)
        return dict(mesh_models.total_loss(logits, batch, metrics, configuration, **shared))

    def gradients_on_mesh(
        self,
        parameters: Tree,
        batch: Tree,
        configuration: Configuration,
        mesh: Devices,
        call: model.Call,
    ) -> dict[str, ndarray]:
        c = configuration
        rows, length = batch["decoder_input_tokens"].shape
        if not mesh_models.shares_stand_alone(
            rows,
            length,
            Mesh(*mesh),
            max_group_size=c.max_group_size,
            num_experts=c.num_experts,
            num_expert_replicas=call.num_expert_replicas,
        ):
            raise UnsupportedError("simulated shares would make other groups by themselves")
        return mesh_models.tensor_gradients(parameters, batch, c, call=call, **self._shared(mesh))

    def accumulated_on_mesh(
        self, of_batch: optimizer.Gradients, batch: Tree, mesh: Devices, *, num_microbatches: int
    ) -> tuple[dict[str, Any], dict[str, ndarray]]:
        return mesh_models.accumulated(
            of_batch, batch, Mesh(*mesh), num_microbatches=num_microbatches
        )
