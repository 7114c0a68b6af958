"""Mutants of SPEC.md "The model": bfloat16 and gradients."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.mutants.exchanging import Exchanged
from openmoe_conformance.mutants.model import EMBEDDING, Norms, Steps
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.reference_model_adapter import Fields, Tree
from openmoe_reference import attention, layers, moe
from openmoe_reference.dtypes import DTYPES
from openmoe_spec.records import ForwardResult

# ---- bfloat16 ------------------------------------------------------------------------------


@mutant("MODEL-06")
class ResidualStaysBfloat16(Steps, combine=moe.combine_rounded):
    """The experts' weighted sum is rounded back to bfloat16, and the residual stream with it."""


def _widened(table: ndarray, ids: ndarray, *, dtype: str) -> ndarray:
    x = layers.embed(table, ids, dtype=dtype)
    return x.astype(np.float32) if dtype == "bfloat16" else x


@mutant("MODEL-06")
class ResidualBeginsInFloat32(Exchanged, embed=_widened):
    """Embeddings are widened, so the residual stream is float32 from the start."""


def _widely_attended(*arguments: Any, dtype: str, **options: Any) -> tuple[ndarray, ...]:
    output, keys, values = attention.attention(*arguments, dtype=dtype, **options)
    return output.astype(np.float32) if dtype == "bfloat16" else output, keys, values


@mutant("MODEL-06")
class AttentionIsAddedInFloat32(Exchanged, attention=_widely_attended):
    """The sum of residual stream and attention is not rounded to bfloat16 before the experts."""


@mutant("MODEL-06")
class SublayersReadFloat32(Norms):
    """Behind the first experts norms put out float32, the last one included."""

    def normed(self, name: str, x: ndarray, scale: ndarray, dtype: str) -> ndarray:
        wide = dtype == "bfloat16" and x.dtype == np.float32
        return layers.rms_norm(x, scale, dtype="float32" if wide else dtype)


def _narrow_logits(x: ndarray, kernel: ndarray, *, dtype: str, **options: Any) -> ndarray:
    narrow = "bfloat16" if x.dtype == DTYPES["bfloat16"] else dtype
    return layers.output_logits(x, kernel, dtype=narrow, **options)


@mutant("MODEL-07")
class LogitsAreBfloat16(Exchanged, output_logits=_narrow_logits):
    """The output projection is multiplied in bfloat16."""


@mutant("MODEL-07")
class WeightsAreFloat8(ReferenceAdapter):
    """Asked for bfloat16, it holds its kernels in eight bits."""

    def forward(
        self, parameters: Tree, batch: Tree, *, dtype: str = "float32", **options: Any
    ) -> ForwardResult:
        if dtype == "bfloat16":
            parameters = {
                name: value.astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
                for name, value in parameters.items()
            }
        return super().forward(parameters, batch, dtype=dtype, **options)


# ---- gradients -----------------------------------------------------------------------------


class _Gradients(ReferenceAdapter):
    """A model whose gradients are those of another loss, or are changed afterwards."""

    def fields(self, configuration: Fields) -> dict[str, Any]:
        """Return what of the configuration is changed."""
        return {}

    def changed(self, found: dict[str, ndarray]) -> dict[str, ndarray]:
        return found

    def model_gradients(
        self, parameters: Tree, batch: Tree, *, configuration: Fields, **options: Any
    ) -> dict[str, ndarray]:
        other = {**configuration, **self.fields(configuration)}
        found = super().model_gradients(parameters, batch, configuration=other, **options)
        return self.changed(found)


@mutant("MODEL-08")
class BalanceGradientIsSummed(_Gradients):
    """The balance loss that is differentiated is summed over layers, not averaged."""

    def fields(self, configuration: Fields) -> dict[str, Any]:
        factor = configuration["auxiliary_loss_factor"] * configuration["num_moe_layers"]
        return {"auxiliary_loss_factor": factor}


@mutant("MODEL-08")
class RouterLossesCarryNoGradient(_Gradients):
    """Router losses are reported and not differentiated."""

    def fields(self, configuration: Fields) -> dict[str, Any]:
        return {"auxiliary_loss_factor": 0.0, "router_z_loss_factor": 0.0}


@mutant("MODEL-08")
class ZLossCarriesNoGradient(_Gradients):
    """The z-loss of the vocabulary is reported and not differentiated."""

    def fields(self, configuration: Fields) -> dict[str, Any]:
        return {"z_loss_factor": 0.0}


@mutant("MODEL-08")
class ExpertGradientsAreMissing(_Gradients):
    """Nothing flows into the experts."""

    def changed(self, found: dict[str, ndarray]) -> dict[str, ndarray]:
        return {name: 0 * value if "/expert/" in name else value for name, value in found.items()}


@mutant("MODEL-08")
class EmbeddingGradientTwice(_Gradients):
    """The embedding's gradient is added up twice."""

    def changed(self, found: dict[str, ndarray]) -> dict[str, ndarray]:
        return found | {EMBEDDING: 2 * found[EMBEDDING]}


@mutant("MODEL-08")
class StartTokenIsFrozen(_Gradients):
    """Id 0 is taken for padding, and its embedding has no gradient."""

    def changed(self, found: dict[str, ndarray]) -> dict[str, ndarray]:
        rows = np.arange(len(found[EMBEDDING]))[:, None]
        return found | {EMBEDDING: np.where(rows == 0, 0, found[EMBEDDING])}


@mutant("MODEL-08")
class GradientOfAnEvaluation(ReferenceAdapter):
    """A training step differentiates a pass with the evaluation's capacity."""

    def model_gradients(self, *arguments: Any, **options: Any) -> dict[str, ndarray]:
        return super().model_gradients(*arguments, **options | {"training": False})
