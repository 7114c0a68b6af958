"""Mutants of SPEC.md "Parameters"."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_conformance.reference_model_adapter import Fields, Tree
from openmoe_spec import layouts


@mutant("CFG-04")
class ExpertsAreAsWideAsTheModel(ReferenceAdapter):
    """Without a width of their own experts get that of the residual stream."""

    def parameters(self, configuration: Fields) -> dict[str, Any]:
        if configuration["expert_mlp_dim"] is None:
            configuration = {**configuration, "expert_mlp_dim": configuration["embed_dim"]}
        return super().parameters(configuration)


@mutant("PARAM-01")
class TheHeadIsNotListed(ReferenceAdapter):
    """The output projection is the embedding: a list of a tied model."""

    def parameters(self, configuration: Fields) -> dict[str, Any]:
        found = super().parameters(configuration)
        del found["decoder/logits_dense/kernel"]
        return found


@mutant("PARAM-01")
class TheGateIsSingle(ReferenceAdapter):
    """wi_0 is as wide as wi_1, as in a textbook SwiGLU."""

    def parameters(self, configuration: Fields) -> dict[str, Any]:
        found = super().parameters(configuration)
        for name, one in found.items():
            if name.endswith("wi_0/kernel"):
                found[name] = one | {"shape": (*one["shape"][:-1], one["shape"][-1] // 2)}
        return found


@mutant("PARAM-01")
class ExpertsHaveTheDenseAxes(ReferenceAdapter):
    """The hidden axis of an expert is called mlp."""

    def parameters(self, configuration: Fields) -> dict[str, Any]:
        found = super().parameters(configuration)
        for one in found.values():
            one["axes"] = tuple("mlp" if axis == "expert_mlp" else axis for axis in one["axes"])
        return found


@mutant("PARAM-01")
class TiedTotal(ReferenceAdapter):
    """The total has one vocabulary matrix."""

    def count_parameters(self, configuration: Fields) -> dict[str, int]:
        found = super().count_parameters(configuration)
        return found | {"total": found["total"] - found["vocabulary"]}


@mutant("PARAM-02")
class TheFirstOfAnIntervalIsSparse(ReferenceAdapter):
    """Layer i is sparse where i mod (n / s) = 0."""

    def sparse_layers(
        self, num_layers: int, num_sparse: int, *, layout: str = "MIXED"
    ) -> tuple[int, ...]:
        found = super().sparse_layers(num_layers, num_sparse, layout=layout)
        if layout != "MIXED":
            return found
        return tuple(i - num_layers // num_sparse + 1 for i in found)


@mutant("PARAM-02")
class MiddleIsRoundedUp(ReferenceAdapter):
    """MIDDLE begins at the half of n - s, rounded down."""

    def sparse_layers(
        self, num_layers: int, num_sparse: int, *, layout: str = "MIXED"
    ) -> tuple[int, ...]:
        if layout == "MIDDLE":
            first = (num_layers - num_sparse) // 2
            return tuple(range(first, first + num_sparse))
        return super().sparse_layers(num_layers, num_sparse, layout=layout)


@mutant("PARAM-03")
class EveryExpertIsActivated(ReferenceAdapter):
    """A token counts as using all experts."""

    def count_parameters(self, configuration: Fields) -> dict[str, int]:
        found = super().count_parameters(configuration)
        return found | {"activated": found["total"] - 2 * found["vocabulary"]}


@mutant("PARAM-03")
class OneVocabularyIsActivated(ReferenceAdapter):
    """One vocabulary matrix counts among what a token uses."""

    def count_parameters(self, configuration: Fields) -> dict[str, int]:
        found = super().count_parameters(configuration)
        return found | {"activated": found["activated"] + found["vocabulary"]}


@mutant("PARAM-05")
class ExpertKernelsAreTransposed(ReferenceAdapter):
    """The port's experts are written like its linear layers, [E, out, in]."""

    def port_parameters(self, parameters: Tree) -> dict[str, ndarray]:
        found = super().port_parameters(parameters)
        return {n: v.swapaxes(1, 2) if ".experts." in n else v for n, v in found.items()}


@mutant("PARAM-05")
class SquareKernelsStayAsTheyAre(ReferenceAdapter):
    """Only what would not fit is transposed."""

    def port_parameters(self, parameters: Tree) -> dict[str, ndarray]:
        found = super().port_parameters(parameters)
        square = {n for n, v in found.items() if v.ndim == 2 and len(set(v.shape)) == 1}
        return {n: np.ascontiguousarray(v.T) if n in square else v for n, v in found.items()}


@mutant("PARAM-05")
class UnknownNamesAreIgnored(ReferenceAdapter):
    """Tensors without a counterpart are left out in silence."""

    def port_parameters(self, parameters: Tree) -> dict[str, ndarray]:
        known = {name: one for name, one in parameters.items() if layouts.port_name(name)}
        return super().port_parameters(known)
