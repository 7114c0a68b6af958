"""Mutants of SPEC.md "The mixture-of-experts layer"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference import moe
from openmoe_spec.records import Decision, ExpertsChoice, LayerResult


@mutant("MOE-01")
class SlotsAreReversed(ReferenceAdapter):
    """An expert's slots are filled from the last to the first."""

    def dispatch(self, inputs: ndarray, decision: Any, *, num_experts: int) -> ndarray:
        return super().dispatch(inputs, decision, num_experts=num_experts)[:, :, ::-1]


@mutant("MOE-01")
class EmptySlotsHoldTokenZero(ReferenceAdapter):
    """A slot that nobody reached holds the group's first token."""

    def dispatch(self, inputs: ndarray, decision: Any, *, num_experts: int) -> ndarray:
        token, _ = moe.slots(decision, num_experts=num_experts)
        return moe.dispatch(inputs, token.clip(0))


@mutant("MOE-01")
class DispatchIsWeighted(ReferenceAdapter):
    """Inputs are multiplied by their gates on the way to the experts."""

    def dispatch(self, inputs: ndarray, decision: Any, *, num_experts: int) -> ndarray:
        _, weight = moe.slots(decision, num_experts=num_experts)
        return super().dispatch(inputs, decision, num_experts=num_experts) * weight[..., None]


class _Expert(ReferenceAdapter):
    """An expert with another product of its projections."""

    def hidden(self, value: ndarray, gate: ndarray, linear: ndarray) -> ndarray:
        raise NotImplementedError

    def expert(
        self, inputs: ndarray, wi_0: ndarray, wi_1: ndarray, wo: ndarray, *, dtype: str = "float32"
    ) -> ndarray:
        super().expert(inputs, wi_0, wi_1, wo, dtype=dtype)
        value, gate = np.split(inputs.astype(np.float32) @ wi_0, 2, axis=-1)
        return self.hidden(value, gate, inputs.astype(np.float32) @ wi_1) @ wo


def _silu(x: ndarray) -> ndarray:
    with np.errstate(over="ignore"):
        return x / (1 + np.exp(-x))


@mutant("MOE-02")
class TextbookSwiGLU(_Expert):
    """The third projection is left out: silu(b) a, then wo."""

    def hidden(self, value: ndarray, gate: ndarray, linear: ndarray) -> ndarray:
        return value * _silu(gate)


@mutant("MOE-02")
class SquareWeightsAreTransposed(ReferenceAdapter):
    """Where D = F, wo is read as [D, F]: a conversion that only checks shapes."""

    def expert(
        self, inputs: ndarray, wi_0: ndarray, wi_1: ndarray, wo: ndarray, *, dtype: str = "float32"
    ) -> ndarray:
        turned = wo.swapaxes(1, 2) if wo.shape[1] == wo.shape[2] else wo
        return super().expert(inputs, wi_0, wi_1, np.ascontiguousarray(turned), dtype=dtype)


@mutant("MOE-02")
class GeluInsteadOfSilu(_Expert):
    """The gate is a tanh-form gelu."""

    def hidden(self, value: ndarray, gate: ndarray, linear: ndarray) -> ndarray:
        inner = np.sqrt(2 / np.pi) * (gate + 0.044715 * gate**3)
        return value * (0.5 * gate * (1 + np.tanh(inner))) * linear


@mutant("MOE-03")
class FirstHalfIsActivated(_Expert):
    """silu is applied to the first half, as loaders for other models do."""

    def hidden(self, value: ndarray, gate: ndarray, linear: ndarray) -> ndarray:
        return _silu(value) * gate * linear


@mutant("MOE-03")
class LinearBranchIsActivated(_Expert):
    """silu is applied to x @ wi_1."""

    def hidden(self, value: ndarray, gate: ndarray, linear: ndarray) -> ndarray:
        return value * gate * _silu(linear)


@mutant("MOE-04")
class OutputsAreNotWeighted(ReferenceAdapter):
    """Expert outputs are summed without their gates."""

    def combine(self, expert_outputs: ndarray, decision: Any, **options: Any) -> ndarray:
        flat = replace(decision, gate=np.ones_like(decision.gate))
        return super().combine(expert_outputs, flat, **options)


@mutant("MOE-05")
class DroppedTokensGetTheFirstSlot(ReferenceAdapter):
    """A token without a slot reads slot 0 of its first choice."""

    def combine(self, expert_outputs: ndarray, decision: Any, **options: Any) -> ndarray:
        output = super().combine(expert_outputs, decision, **options)
        if isinstance(decision, Decision):
            for g, t in np.argwhere(~np.asarray(decision.kept).any(axis=-1)):
                output[g, t] = expert_outputs[g, max(decision.expert_index[g, t, 0], 0), 0]
        return output


@mutant("MOE-06")
class OutputIsBfloat16(ReferenceAdapter):
    """The layer returns the dtype of its input, rounding float32 sums."""

    def moe(
        self, inputs: ndarray, parameters: Mapping[str, ndarray], **options: Any
    ) -> LayerResult:
        result = super().moe(inputs, parameters, **options)
        return replace(result, output=result.output.astype(inputs.dtype))


@mutant("MOE-06")
class Float32ExpertsAreRounded(ReferenceAdapter):
    """Experts compute in bfloat16 even when asked for float32."""

    def expert(
        self, inputs: ndarray, wi_0: ndarray, wi_1: ndarray, wo: ndarray, *, dtype: str = "float32"
    ) -> ndarray:
        narrow = super().expert(inputs, wi_0, wi_1, wo, dtype="bfloat16")
        return narrow.astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else np.float32)


@mutant("MOE-06")
class ExpertDtypeIsIgnored(ReferenceAdapter):
    """Experts compute in float32 whatever was asked for."""

    def expert(
        self, inputs: ndarray, wi_0: ndarray, wi_1: ndarray, wo: ndarray, *, dtype: str = "float32"
    ) -> ndarray:
        return super().expert(inputs, wi_0, wi_1, wo, dtype="float32")


@mutant("MOE-06")
class OutputIsRoundedAndWidened(ReferenceAdapter):
    """With bfloat16 experts the weighted sum is rounded to bfloat16 and handed out as float32."""

    def moe(
        self, inputs: ndarray, parameters: Mapping[str, ndarray], **options: Any
    ) -> LayerResult:
        result = super().moe(inputs, parameters, **options)
        if options.get("expert_dtype") != "bfloat16":
            return result
        narrow = result.output.astype(ml_dtypes.bfloat16).astype(np.float32)
        return replace(result, output=narrow)


@mutant("MOE-07")
class JitterIsDispatched(ReferenceAdapter):
    """The experts receive the jittered inputs."""

    def moe(
        self, inputs: ndarray, parameters: Mapping[str, ndarray], **options: Any
    ) -> LayerResult:
        noise = options.pop("noise", None)
        return super().moe(inputs if noise is None else inputs * noise, parameters, **options)


@mutant("MOE-07")
class PaddingIsCutFromTheFront(ReferenceAdapter):
    """The layer cuts its padding off the wrong end."""

    def ungroup(self, outputs: ndarray, padded: tuple[int, int], shape: tuple[int, int]) -> ndarray:
        whole = super().ungroup(outputs, padded, padded)
        return whole[padded[0] - shape[0] :, padded[1] - shape[1] :]


@mutant("MOE-08")
class PaddingRowsAreFilled(ReferenceAdapter):
    """Zero rows get the mean output of their group."""

    def moe(
        self, inputs: ndarray, parameters: Mapping[str, ndarray], **options: Any
    ) -> LayerResult:
        result = super().moe(inputs, parameters, **options)
        padding = (inputs == 0).all(axis=-1)[..., None]
        mean = 1 + result.output.mean(axis=1, keepdims=True)
        return replace(result, output=np.where(padding, mean, result.output))


@mutant("MOE-10")
class OnlyTheFirstChoiceRuns(ReferenceAdapter):
    """Second choices are routed but never reach their experts."""

    def combine(self, expert_outputs: ndarray, decision: Any, **options: Any) -> ndarray:
        if isinstance(decision, Decision):
            first = np.arange(decision.kept.shape[-1]) == 0
            decision = replace(decision, kept=decision.kept & first)
        return super().combine(expert_outputs, decision, **options)


@mutant("MOE-11")
class TransposesToFit(ReferenceAdapter):
    """Weights of the wrong shape are cut or transposed until they fit."""

    def moe(
        self, inputs: ndarray, parameters: Mapping[str, ndarray], **options: Any
    ) -> LayerResult:
        try:
            return super().moe(inputs, parameters, **options)
        except ValueError:
            return LayerResult(np.zeros(inputs.shape, np.float32))


@mutant("MOE-14")
class ScatterLayerIsUnweighted(ReferenceAdapter):
    """With the scatter router outputs are summed without their gates."""

    def decide_scatter(self, probabilities: ndarray, **options: Any) -> Decision:
        found = super().decide_scatter(probabilities, **options)
        return replace(found, gate=np.ones_like(found.gate))


@mutant("MOE-11")
class AcceptsBrokenDecisions(ReferenceAdapter):
    """Kept choices without a slot are dropped in silence, and the last of two in one slot wins."""

    def dispatch(self, inputs: ndarray, decision: Any, *, num_experts: int) -> ndarray:
        slots = np.zeros((len(inputs), num_experts, decision.capacity, inputs.shape[2]), np.float32)
        for g, t, j in np.argwhere(decision.kept):
            e, c = decision.expert_index[g, t, j], decision.position[g, t, j]
            if 0 <= e < num_experts and 0 <= c < decision.capacity:
                slots[g, e, c] = inputs[g, t]
        return slots


@mutant("MOE-14")
class ExpertsChooseLastTokens(ReferenceAdapter):
    """With the experts-choose router slots are filled worst first."""

    def experts_choose(self, probabilities: ndarray, **options: Any) -> ExpertsChoice:
        found = super().experts_choose(1 - probabilities, **options)
        return replace(found, gate=1 - found.gate)


@mutant("MOE-09")
class NoGradientThroughGates(ReferenceAdapter):
    """The router learns from its losses alone."""

    def moe_gradients(self, *arguments: Any, **options: Any) -> dict[str, ndarray]:
        found = super().moe_gradients(*arguments, **options)
        inputs, parameters, cotangent = arguments
        nothing = super().moe_gradients(inputs, parameters, 0 * cotangent, **options)
        return found | {"router": nothing["router"]}


@mutant("MOE-09")
class LossesCarryNoGradient(ReferenceAdapter):
    """Balance loss and z-loss are reported but not differentiated."""

    def moe_gradients(self, *arguments: Any, **options: Any) -> dict[str, ndarray]:
        factors = {"auxiliary_loss_factor": 0.0, "router_z_loss_factor": 0.0}
        return super().moe_gradients(*arguments, **options | factors)
