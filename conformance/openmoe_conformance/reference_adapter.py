"""The reference as an implementation: every function of the adapter, composed of its own parts.

`moe` and `route` call the other methods, so a mutant that overrides one of them is wrong wherever
that one is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.protocol import Mesh
from openmoe_conformance.reference_audit_adapter import ReferenceAuditAdapter
from openmoe_conformance.reference_checkpoint_adapter import ReferenceCheckpointAdapter
from openmoe_conformance.reference_data_adapter import ReferenceDataAdapter
from openmoe_conformance.reference_model_adapter import Dialect
from openmoe_conformance.reference_training_adapter import ReferenceTrainingAdapter
from openmoe_reference import (
    feed_forward,
    gradients,
    grouping,
    losses,
    mesh_layers,
    moe,
    routing,
)
from openmoe_reference.dialects import steps as layer_steps
from openmoe_spec import SPEC_VERSION, config, dialects
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import ROUTERS, Decision, ExpertsChoice, LayerResult


class ReferenceAdapter(
    ReferenceTrainingAdapter,
    ReferenceDataAdapter,
    ReferenceCheckpointAdapter,
    ReferenceAuditAdapter,
):
    """The NumPy reference behind the adapter's functions."""

    name = "openmoe_reference"
    version = SPEC_VERSION
    arithmetic = "float32"
    rejects_invalid_input = True

    def configuration(self, name: str, *, dialect: Dialect | None = None) -> dict[str, Any]:
        wanted = self.native if dialect is None else dialect
        return asdict(dialects.configuration(wanted if isinstance(wanted, str) else "t5x", name))

    def validate_configuration(self, fields: Mapping[str, Any]) -> None:
        config.Configuration(**fields)

    def num_expert_replicas(self, device_count: int, **options: int) -> int:
        return grouping.num_expert_replicas(device_count, **options)

    def padded_shape(self, batch: int, length: int, *, multiple: int) -> tuple[int, int]:
        return grouping.padded_shape(batch, length, multiple=multiple)

    def num_groups(self, num_tokens: int, **options: int) -> int:
        return grouping.num_groups(num_tokens, **options)

    def expert_capacity(
        self, tokens_per_group: int, *, k: int = 2, dialect: Dialect | None = None, **options: Any
    ) -> int:
        if dialect is None:
            return grouping.expert_capacity(tokens_per_group, **options)
        return layer_steps(dialect).capacity(tokens_per_group, k=k, **options)

    def capacity_factor(self, *, training: bool, train: float, evaluate: float) -> float:
        return grouping.capacity_factor(
            training=training, train_capacity_factor=train, eval_capacity_factor=evaluate
        )

    def group_tokens(self, inputs: ndarray, *, group_size: int, multiple: int = 1) -> ndarray:
        padded = self.padded_shape(inputs.shape[0], inputs.shape[1], multiple=multiple)
        tokens = padded[0] * padded[1]
        if group_size < 1 or tokens % group_size:
            raise RejectedError(
                "group_size", "GROUP-09", f"must divide the {tokens} tokens, got {group_size}"
            )
        return grouping.to_groups(inputs, padded=padded, num_groups=tokens // group_size)

    def ungroup(self, outputs: ndarray, padded: tuple[int, int], shape: tuple[int, int]) -> ndarray:
        return grouping.from_groups(outputs, padded=padded, shape=shape)

    def logits(self, inputs: ndarray, kernel: ndarray, noise: ndarray | None = None) -> ndarray:
        return routing.router_logits(inputs, kernel, noise=noise)

    def softmax(self, logits: ndarray) -> ndarray:
        return routing.softmax(logits)

    def probabilities(
        self, inputs: ndarray, kernel: ndarray, *, noise: ndarray | None = None
    ) -> ndarray:
        return self.softmax(self.logits(inputs, kernel, noise))

    def padding_mask(self, inputs: ndarray) -> ndarray:
        return routing.padding_mask(inputs)

    def decide(
        self,
        probabilities: ndarray,
        *,
        k: int,
        capacity: int,
        padding_mask: ndarray | None = None,
        batch_prioritized: bool = False,
    ) -> Decision:
        return routing.decide(
            probabilities,
            k=k,
            capacity=capacity,
            padding_mask=padding_mask,
            batch_prioritized=batch_prioritized,
        )

    def decide_scatter(self, probabilities: ndarray, **options: Any) -> Decision:
        return routing.decide_scatter(probabilities, **options)

    def experts_choose(self, probabilities: ndarray, **options: Any) -> ExpertsChoice:
        return routing.experts_choose(probabilities, **options)

    def route(
        self,
        inputs: ndarray,
        kernel: ndarray,
        *,
        ignore_padding: bool = False,
        noise: ndarray | None = None,
        **options: Any,
    ) -> Decision:
        mask = self.padding_mask(inputs) if ignore_padding else None
        return self.decide(
            self.probabilities(inputs, kernel, noise=noise), padding_mask=mask, **options
        )

    def dispatch(
        self, inputs: ndarray, decision: Decision | ExpertsChoice, *, num_experts: int
    ) -> ndarray:
        token, _ = moe.slots(decision, num_experts=num_experts)
        return moe.dispatch(inputs, token)

    def expert(
        self, inputs: ndarray, wi_0: ndarray, wi_1: ndarray, wo: ndarray, *, dtype: str = "float32"
    ) -> ndarray:
        return feed_forward.gated_mlp(inputs, wi_0, wi_1, wo, dtype=dtype)

    def combine(
        self,
        expert_outputs: ndarray,
        decision: Decision | ExpertsChoice,
        *,
        num_experts: int,
        tokens: int | None = None,
    ) -> ndarray:
        token, weight = moe.slots(decision, num_experts=num_experts)
        if isinstance(decision, Decision):
            tokens = decision.expert_index.shape[1]
        assert tokens is not None
        return moe.combine(expert_outputs, token, weight, tokens=tokens)

    def moe(
        self,
        inputs: ndarray,
        parameters: Mapping[str, ndarray],
        *,
        k: int,
        capacity: int,
        router: str = "masked",
        ignore_padding: bool = False,
        batch_prioritized: bool = False,
        expert_dtype: str = "float32",
        noise: ndarray | None = None,
        mesh: Mesh | None = None,
    ) -> LayerResult:
        if mesh is not None:
            return self.layer_on_mesh(
                mesh_layers.moe,
                *(inputs, parameters, mesh),
                k=k,
                capacity=capacity,
                router=router,
                ignore_padding=ignore_padding,
                batch_prioritized=batch_prioritized,
                expert_dtype=expert_dtype,
                noise=noise,
            )
        moe.check_layer(inputs, parameters, router, expert_dtype)
        assert router in ROUTERS
        mask = self.padding_mask(inputs) if ignore_padding else None
        logits = self.logits(inputs, parameters["router"], noise)
        probabilities = self.softmax(logits)
        decision: Decision | ExpertsChoice
        if router == "experts_choose":
            decision = self.experts_choose(probabilities, capacity=capacity, padding_mask=mask)
        else:
            rule = self.decide if router == "masked" else self.decide_scatter
            decision = rule(
                probabilities,
                k=k,
                capacity=capacity,
                padding_mask=mask,
                batch_prioritized=batch_prioritized,
            )
        experts = probabilities.shape[-1]
        slots = self.dispatch(inputs, decision, num_experts=experts)
        weights = [parameters[name] for name in ("wi_0", "wi_1", "wo")]
        outputs = np.stack([self.expert(group, *weights, dtype=expert_dtype) for group in slots])
        output = self.combine(
            outputs.astype(inputs.dtype), decision, num_experts=experts, tokens=inputs.shape[1]
        )
        metrics = self.metrics(
            logits, probabilities, decision, padding_mask=mask, scatter=router == "scatter"
        )
        return LayerResult(output, decision, metrics)

    def moe_layer(
        self,
        inputs: ndarray,
        parameters: Mapping[str, ndarray],
        *,
        training: bool,
        k: int = 2,
        train_capacity_factor: float = 1.25,
        eval_capacity_factor: float = 2.0,
        min_expert_capacity: int = 4,
        max_group_size: int = 4096,
        num_expert_replicas: int = 1,
        mesh: Mesh | None = None,
        **options: Any,
    ) -> LayerResult:
        if mesh is not None:
            return self.layer_on_mesh(
                mesh_layers.moe_layer,
                *(inputs, parameters, mesh),
                training=training,
                k=k,
                train_capacity_factor=train_capacity_factor,
                eval_capacity_factor=eval_capacity_factor,
                min_expert_capacity=min_expert_capacity,
                max_group_size=max_group_size,
                num_expert_replicas=num_expert_replicas,
                **options,
            )
        batch, length, _ = inputs.shape
        experts = parameters["router"].shape[1]
        multiple = experts * num_expert_replicas
        padded = self.padded_shape(batch, length, multiple=multiple)
        groups = self.num_groups(
            padded[0] * padded[1],
            max_group_size=max_group_size,
            num_experts=experts,
            num_expert_replicas=num_expert_replicas,
        )
        size = padded[0] * padded[1] // groups
        grouped = self.group_tokens(inputs, group_size=size, multiple=multiple)
        capacity = self.layer_capacity(
            size,
            num_experts=experts,
            k=k,
            capacity_factor=self.capacity_factor(
                training=training, train=train_capacity_factor, evaluate=eval_capacity_factor
            ),
            min_expert_capacity=min_expert_capacity,
        )
        result = self.moe(grouped, parameters, k=k, capacity=capacity, **options)
        output = self.ungroup(result.output, padded, (batch, length))
        return LayerResult(output, result.decision, result.metrics)

    def moe_gradients(
        self,
        inputs: ndarray,
        parameters: Mapping[str, ndarray],
        cotangent: ndarray,
        *,
        auxiliary_loss_factor: float = 0.0,
        router_z_loss_factor: float = 0.0,
        ignore_padding: bool = False,
        mesh: Mesh | None = None,
        **options: Any,
    ) -> dict[str, ndarray]:
        if mesh is not None:
            return self.layer_gradients_on_mesh(
                *(inputs, parameters, cotangent, mesh),
                balance=auxiliary_loss_factor,
                z=router_z_loss_factor,
                ignore_padding=ignore_padding,
                **options,
            )
        decision = self.moe(inputs, parameters, ignore_padding=ignore_padding, **options).decision
        assert decision is not None
        return gradients.layer_gradients(
            inputs,
            parameters,
            cotangent,
            decision,
            balance=auxiliary_loss_factor,
            z=router_z_loss_factor,
            padding_mask=self.padding_mask(inputs) if ignore_padding else None,
        )

    def route_gradients(
        self,
        inputs: ndarray,
        kernel: ndarray,
        gate_cotangent: ndarray,
        *,
        auxiliary_loss_factor: float = 0.0,
        router_z_loss_factor: float = 0.0,
        ignore_padding: bool = False,
        **options: Any,
    ) -> dict[str, ndarray]:
        decision = self.route(inputs, kernel, ignore_padding=ignore_padding, **options)
        of_gates = np.zeros(gate_cotangent.shape)
        for g, t, j in np.argwhere(decision.kept):
            e = decision.expert_index[g, t, j]
            of_gates[g, t, e] = gate_cotangent[g, t, e]
        of_balance, d_logits = gradients.loss_cotangents(
            inputs,
            kernel,
            decision.expert_index,
            balance=auxiliary_loss_factor,
            z=router_z_loss_factor,
            padding_mask=self.padding_mask(inputs) if ignore_padding else None,
        )
        d_inputs, d_kernel = gradients.router_gradients(
            inputs, kernel, of_gates + of_balance, d_logits
        )
        return {"inputs": d_inputs, "router": d_kernel}

    def layer_capacity(self, tokens_per_group: int, *, k: int, **options: Any) -> int:
        """Return the capacity; a method of its own so that a mutant may let K into it."""
        del k
        return self.expert_capacity(tokens_per_group, **options)

    def balance_loss(
        self,
        probabilities: ndarray,
        expert_index: ndarray,
        *,
        padding_mask: ndarray | None = None,
    ) -> Any:
        return losses.balance_loss(probabilities, expert_index, padding_mask=padding_mask)

    def router_z_loss(self, logits: ndarray, *, padding_mask: ndarray | None = None) -> Any:
        return losses.router_z_loss(logits, padding_mask=padding_mask)

    def metrics(
        self,
        logits: ndarray,
        probabilities: ndarray,
        decision: Decision | ExpertsChoice,
        *,
        padding_mask: ndarray | None = None,
        scatter: bool = False,
    ) -> dict[str, Any]:
        sown = dict(
            losses.metrics(
                logits, probabilities, decision, padding_mask=padding_mask, scatter=scatter
            )
        )
        sown["router_z_loss"] = self.router_z_loss(logits, padding_mask=padding_mask)
        if isinstance(decision, Decision):
            sown["auxiliary_loss"] = self.balance_loss(
                probabilities, decision.expert_index, padding_mask=padding_mask
            )
        return sown
