"""The production port as the conformance kit sees it: NumPy in, NumPy out, everything jitted."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from openmoe_production import (
    grouping,
    layers,
    losses,
    mesh_adapter,
    mesh_layer,
    moe,
    part_gradients,
    programs,
    routing,
)
from openmoe_production.arguments import require_floats, require_integers
from openmoe_production.calling import as_numpy, call
from openmoe_production.data_adapter import DataAdapter
from openmoe_production.mesh_adapter import Mesh
from openmoe_production.model_adapter import ModelAdapter
from openmoe_production.text_adapter import TextAdapter
from openmoe_production.training_adapter import TrainingAdapter
from openmoe_spec import __version__, config
from openmoe_spec.records import Decision, ExpertsChoice, LayerResult


class Adapter(ModelAdapter, TrainingAdapter, DataAdapter, TextAdapter):
    """Every chapter of this version, in float32 at full precision, on one device or on a mesh."""

    name = "openmoe_production"
    version = f"{__version__} (jax {jax.__version__})"
    arithmetic = "float32"
    rejects_invalid_input = True

    def __init__(self, mesh: str = "") -> None:
        super().__init__(mesh)
        if mesh:
            self.name = f"{self.name} on a mesh of {mesh}"
        self._last: tuple[dict[str, np.ndarray], dict[str, jax.Array]] = ({}, {})

    num_expert_replicas = staticmethod(grouping.num_expert_replicas)
    padded_shape = staticmethod(grouping.padded_shape)
    num_groups = staticmethod(grouping.num_groups)
    expert_capacity = staticmethod(grouping.expert_capacity)

    def configuration(self, name: str) -> Mapping[str, Any]:
        """Return the fields of a published configuration. Spec: CFG-01."""
        return vars(config.PUBLISHED[name])

    def validate_configuration(self, fields: Mapping[str, Any]) -> None:
        """Refuse an illegal configuration. Spec: CFG-02."""
        config.Configuration(**fields)

    def operations(
        self,
        program: str,
        *,
        groups: int,
        tokens: int,
        width: int,
        hidden: int,
        experts: int,
        k: int,
        capacity: int,
        router: str = "masked",
        mesh: Mesh | None = None,
    ) -> list[dict[str, Any]]:
        """Return the operations of one of this port's programs; on a mesh those of one device.

        Spec: ROUTE-27, MOE-12, MOE-13, MESH-08.
        """

        def shape(*sizes: int) -> jax.ShapeDtypeStruct:
            return jax.ShapeDtypeStruct(sizes, jnp.float32)  # type: ignore[no-untyped-call]

        inputs, kernel = shape(groups, tokens, width), shape(width, experts)
        parameters = {
            "router": kernel,
            "wi_0": shape(experts, width, 2 * hidden),
            "wi_1": shape(experts, width, hidden),
            "wo": shape(experts, hidden, width),
        }
        options: dict[str, Any] = {"k": k, "capacity": capacity}
        traced: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
            "route": (_route, (inputs, kernel)),
            "moe": (mesh_layer.layer, (inputs, parameters)),
            "moe_gradients": (
                part_gradients.layer_gradients,
                (inputs, parameters, inputs, (0.5, 0.25)),
            ),
        }
        function, arguments = traced[program]
        if program != "route":
            options["router"] = router
            options |= self.on(mesh, mesh_adapter.of_layer(parameters, groups))
        return programs.operations(partial(function, **options), *arguments)

    def group_tokens(self, inputs: np.ndarray, *, group_size: int, multiple: int = 1) -> np.ndarray:
        """Return [B, L, D] padded to a multiple and cut into groups. Spec: GROUP-03, GROUP-05."""
        padded = grouping.padded_shape(inputs.shape[0], inputs.shape[1], multiple=multiple)
        return np.asarray(
            grouping.to_groups(jnp.asarray(inputs), padded=padded, group_size=group_size)
        )

    def probabilities(
        self, inputs: np.ndarray, kernel: np.ndarray, *, noise: np.ndarray | None = None
    ) -> np.ndarray:
        """Return float32 probabilities [G, T, E]."""
        arrays = {"inputs": inputs, "kernel": kernel, "noise": noise}
        return np.asarray(
            call(routing.logits_and_probabilities, "ROUTE-20", arrays, by_group=True)[1]
        )

    def decide(
        self, probabilities: np.ndarray, *, padding_mask: np.ndarray | None = None, **options: Any
    ) -> Decision:
        """Return the masked router's decision."""
        arrays = {"probabilities": probabilities, "padding_mask": padding_mask}
        return as_numpy(call(routing.decide, "ROUTE-20", arrays, **options))

    def decide_scatter(
        self, probabilities: np.ndarray, *, padding_mask: np.ndarray | None = None, **options: Any
    ) -> Decision:
        """Return the scatter router's decision."""
        arrays = {"probabilities": probabilities, "padding_mask": padding_mask}
        return as_numpy(call(routing.decide_scatter, "ROUTE-20", arrays, **options))

    def experts_choose(
        self,
        probabilities: np.ndarray,
        *,
        capacity: int,
        padding_mask: np.ndarray | None = None,
    ) -> ExpertsChoice:
        """Return the experts' choice."""
        arrays = {"probabilities": probabilities, "padding_mask": padding_mask}
        return as_numpy(call(routing.experts_choose, "ROUTE-20", arrays, capacity=capacity))

    def route(
        self,
        inputs: np.ndarray,
        kernel: np.ndarray,
        *,
        noise: np.ndarray | None = None,
        **options: Any,
    ) -> Decision:
        """Return the masked router's decision from hidden states."""
        arrays = {"inputs": inputs, "kernel": kernel, "noise": noise}
        return as_numpy(call(_route, "ROUTE-20", arrays, by_group=True, **options))

    def dispatch(
        self, inputs: np.ndarray, decision: Decision | ExpertsChoice, *, num_experts: int
    ) -> np.ndarray:
        """Return the slots' contents [G, E, C, D]."""
        slots = moe.dispatch(jnp.asarray(inputs), *_ways(decision, inputs.shape[1], num_experts))
        groups, _, width = inputs.shape
        return np.asarray(slots.reshape(groups, num_experts, -1, width))

    def expert(
        self,
        inputs: np.ndarray,
        wi_0: np.ndarray,
        wi_1: np.ndarray,
        wo: np.ndarray,
        *,
        dtype: str = "float32",
    ) -> np.ndarray:
        """Return the experts' feed-forward on [E, S, D]."""
        cast = jnp.asarray(inputs).astype(layers.DTYPES[dtype])
        arrays = {"inputs": cast, "wi_0": wi_0, "wi_1": wi_1, "wo": wo}
        return np.asarray(call(layers.gated_mlp, "MOE-11", arrays))

    def combine(
        self, expert_outputs: np.ndarray, decision: Decision, *, num_experts: int
    ) -> np.ndarray:
        """Return [G, T, D] of expert outputs [G, E, C, D]."""
        groups, _, _, width = expert_outputs.shape
        slot, inverse = _ways(decision, decision.expert_index.shape[1], num_experts)
        weight = jnp.where(jnp.asarray(decision.kept), jnp.asarray(decision.gate), 0)
        flat = jnp.asarray(expert_outputs).reshape(groups, -1, width)
        return np.asarray(moe.combine(flat, weight, slot, inverse))

    def moe(
        self,
        inputs: np.ndarray,
        parameters: Mapping[str, np.ndarray],
        *,
        noise: np.ndarray | None = None,
        mesh: Mesh | None = None,
        **options: Any,
    ) -> LayerResult:
        """Return the layer's result on whole groups [G, T, D]."""
        options |= self.on(mesh, mesh_adapter.of_layer(parameters, len(inputs)))
        arrays = {"inputs": inputs, "parameters": self._on_device(parameters), "noise": noise}
        return as_numpy(call(mesh_layer.layer, "MOE-11", arrays, by_group=True, **options))

    def _on_device(self, parameters: Mapping[str, np.ndarray]) -> dict[str, jax.Array]:
        """Return checked device copies; the last ones are kept, for a layer is called often."""
        held, moved = self._last
        if list(held) != list(parameters) or any(held[n] is not parameters[n] for n in held):
            moved = {name: jnp.asarray(array) for name, array in parameters.items()}
            for name, array in moved.items():
                require_floats(f"parameters[{name!r}]", array, "MOE-11")
            self._last = dict(parameters), moved
        return moved

    def moe_layer(
        self,
        inputs: np.ndarray,
        parameters: Mapping[str, np.ndarray],
        *,
        mesh: Mesh | None = None,
        max_group_size: int = 4096,
        num_expert_replicas: int = 1,
        **options: Any,
    ) -> LayerResult:
        """Return the layer's result on a batch [B, L, D], grouped as the training run did."""
        sizes = {"max_group_size": max_group_size, "num_expert_replicas": num_expert_replicas}
        require = mesh_adapter.of_layer_of_batch(parameters, inputs, **sizes)
        options |= sizes | self.on(mesh, require)
        arrays = {"inputs": inputs, "parameters": dict(parameters)}
        return as_numpy(call(mesh_layer.layer_of_batch, "MOE-11", arrays, **options))

    def moe_gradients(
        self,
        inputs: np.ndarray,
        parameters: Mapping[str, np.ndarray],
        cotangent: np.ndarray,
        *,
        auxiliary_loss_factor: float = 0.0,
        router_z_loss_factor: float = 0.0,
        mesh: Mesh | None = None,
        **options: Any,
    ) -> dict[str, np.ndarray]:
        """Return gradients by name: `inputs` and the four parameters."""
        options |= self.on(mesh, mesh_adapter.of_layer(parameters, len(inputs)))
        arrays = {
            "inputs": inputs,
            "parameters": dict(parameters),
            "cotangent": cotangent,
            "loss_factors": (float(auxiliary_loss_factor), float(router_z_loss_factor)),
        }
        d_inputs, d_parameters = call(part_gradients.layer_gradients, "MOE-11", arrays, **options)
        return as_numpy({"inputs": d_inputs, **d_parameters})

    def route_gradients(
        self,
        inputs: np.ndarray,
        kernel: np.ndarray,
        gate_cotangent: np.ndarray,
        *,
        auxiliary_loss_factor: float = 0.0,
        router_z_loss_factor: float = 0.0,
        **options: Any,
    ) -> dict[str, np.ndarray]:
        """Return gradients `inputs` and `router` of sum(weight x cotangent of expert) + losses."""
        arrays = {
            "inputs": inputs,
            "kernel": kernel,
            "gate_cotangent": gate_cotangent,
            "loss_factors": (float(auxiliary_loss_factor), float(router_z_loss_factor)),
        }
        d_inputs, d_kernel = call(part_gradients.router_gradients, "ROUTE-20", arrays, **options)
        return as_numpy({"inputs": d_inputs, "router": d_kernel})

    def balance_loss(
        self,
        probabilities: np.ndarray,
        expert_index: np.ndarray,
        *,
        padding_mask: np.ndarray | None = None,
    ) -> float:
        """Return the balance loss."""
        arrays = {
            "probabilities": probabilities,
            "expert_index": expert_index,
            "padding_mask": padding_mask,
        }
        most = probabilities.shape[-1] - 1
        index = jnp.asarray(expert_index)
        require_integers("expert_index", index, "LOSS-13", least=-1, most=most)
        return float(call(losses.balance_loss, "LOSS-13", arrays))

    def router_z_loss(self, logits: np.ndarray, *, padding_mask: np.ndarray | None = None) -> float:
        """Return the router z-loss."""
        arrays = {"logits": logits, "padding_mask": padding_mask}
        return float(call(losses.router_z_loss, "LOSS-13", arrays))


def _route(
    inputs: jax.Array,
    kernel: jax.Array,
    noise: jax.Array | None = None,
    *,
    ignore_padding: bool = False,
    **options: Any,
) -> Decision:
    mask = routing.padding_mask(inputs) if ignore_padding else None
    _, probabilities = routing.logits_and_probabilities(inputs, kernel, noise=noise)
    return routing.decide(probabilities, padding_mask=mask, **options)


def _ways(
    decision: Decision | ExpertsChoice, tokens: int, num_experts: int
) -> tuple[jax.Array, jax.Array]:
    on_device = jax.tree.map(jnp.asarray, decision)
    if isinstance(decision, ExpertsChoice):
        groups = decision.token_index.shape[0]
        ones = jnp.ones((groups, tokens, num_experts), jnp.float32)
        slot, inverse, _ = moe.ways_of_experts(on_device, ones, None)
        return slot, inverse
    return moe.ways_of_tokens(on_device, num_experts)
