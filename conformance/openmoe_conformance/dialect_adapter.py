"""The reference speaking another dialect, or a mixture of choices, as its native one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from numpy import ndarray

from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.reference_model_adapter import Dialect
from openmoe_reference import dialects, feed_forward, moe
from openmoe_spec.records import LayerResult


class DialectAdapter(ReferenceAdapter):
    """Every function of the reference under one table of choices. Spec: DIAL-01."""

    def __init__(self, native: Dialect) -> None:
        self.native = native
        self.steps = dialects.steps(native)
        if isinstance(native, str):
            self.dialect = native
            self.name = f"openmoe_reference, dialect {native}"

    def expert_capacity(
        self, tokens_per_group: int, *, k: int = 2, dialect: Dialect | None = None, **options: Any
    ) -> int:
        steps = self.steps if dialect is None else dialects.steps(dialect)
        return steps.capacity(tokens_per_group, k=k, **options)

    def layer_capacity(self, tokens_per_group: int, *, k: int, **options: Any) -> int:
        return self.steps.capacity(tokens_per_group, k=k, **options)

    def num_groups(self, num_tokens: int, **options: int) -> int:
        if self.choice("groups") == "by_experts":
            return super().num_groups(num_tokens, **options)
        options.setdefault("num_expert_replicas", 1)
        return self.steps.groups(1, num_tokens, **options)[1]

    def padded_shape(self, batch: int, length: int, *, multiple: int) -> tuple[int, int]:
        if self.choice("groups") == "by_experts":
            return super().padded_shape(batch, length, multiple=multiple)
        return self.steps.groups(batch, length, max_group_size=1, num_experts=multiple)[0]

    def expert(
        self, inputs: ndarray, wi_0: ndarray, wi_1: ndarray, wo: ndarray, *, dtype: str = "float32"
    ) -> ndarray:
        kernels = {"wi_0": wi_0, "wi_1": wi_1, "wo": wo}
        kinds = self.steps.activations
        return feed_forward.feed_forward(inputs, kernels, activations=kinds, dtype=dtype)

    def moe(
        self, inputs: ndarray, parameters: Mapping[str, ndarray], **options: Any
    ) -> LayerResult:
        return moe.moe(inputs, parameters, steps=self.steps, **options)

    def moe_layer(
        self, inputs: ndarray, parameters: Mapping[str, ndarray], **options: Any
    ) -> LayerResult:
        return moe.moe_layer(inputs, parameters, steps=self.steps, **options)

    def balance_loss(
        self,
        probabilities: ndarray,
        expert_index: ndarray,
        *,
        padding_mask: ndarray | None = None,
    ) -> Any:
        return self.steps.balance_loss(probabilities, expert_index, padding_mask=padding_mask)


class TorchPortAdapter(DialectAdapter):
    """The reference speaking `torch_port`."""

    def __init__(self) -> None:
        super().__init__("torch_port")


class PaperAdapter(DialectAdapter):
    """The reference speaking `paper`."""

    def __init__(self) -> None:
        super().__init__("paper")
