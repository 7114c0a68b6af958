"""Mutants of SPEC.md "Training": initialisation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_reference.initialisation import ROUTER_DEVIATION, TRUNCATED

CUT = ("/mlp/wi_0/", "/mlp/wi_1/", "/mlp/wo/", "/extra_mlp/", "/logits_dense/")
"""What the names of cut kernels hold."""


def _is_cut(name: str) -> bool:
    return any(part in name for part in CUT)


class _Changed(ReferenceAdapter):
    """Initialisation with each drawn tensor changed."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        raise NotImplementedError

    def initialise(self, configuration: Mapping[str, Any], seed: int) -> dict[str, ndarray]:
        drawn = super().initialise(configuration, seed)
        changed = {name: self.change(name, values, configuration) for name, values in drawn.items()}
        return {name: values.astype(np.float32) for name, values in changed.items()}


@mutant("INIT-01")
class FanOut(_Changed):
    """The last axis of a kernel stands for its fan-in."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        if name.endswith(("kernel",)) and "router" not in name:
            return values * np.sqrt(values.shape[-2] / values.shape[-1])
        return values


@mutant("INIT-01")
class ScaleOne(_Changed):
    """Kernels have variance 1 / fan-in, the common default."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        return values * np.sqrt(10) if name.endswith("kernel") and "router" not in name else values


@mutant("INIT-01")
class QueryLikeKey(_Changed):
    """The query's kernel lacks the division by N."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        if name.endswith("query/kernel"):
            return values * np.sqrt(configuration["head_dim"])
        return values


@mutant("INIT-01")
class FanInOfTheWidth(_Changed):
    """The attention's output projection takes D for its fan-in."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        if name.endswith("out/kernel"):
            return values * np.sqrt(values.shape[0] / configuration["embed_dim"])
        return values


@mutant("INIT-01")
class LayersShareADraw(ReferenceAdapter):
    """One random key is used for the tensors of every layer."""

    def initialise(self, configuration: Mapping[str, Any], seed: int) -> dict[str, ndarray]:
        drawn = super().initialise(configuration, seed)
        first = {name: name.replace("layers_1", "layers_0") for name in drawn}
        return {name: drawn.get(first[name], value) for name, value in drawn.items()}


@mutant("INIT-01")
class SeedIsIgnored(ReferenceAdapter):
    """Every seed gives the same model."""

    def initialise(self, configuration: Mapping[str, Any], seed: int) -> dict[str, ndarray]:
        return super().initialise(configuration, 0)


@mutant("INIT-02")
class NothingIsCut(_Changed):
    """Feed-forwards are drawn from a whole normal distribution of the right variance."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        if not _is_cut(name):
            return values
        return np.random.default_rng(values.size).normal(size=values.shape) * values.std()


@mutant("INIT-02")
class CutWithoutWidening(_Changed):
    """The normal distribution that is cut has the wanted variance, and what is left has less."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        return values * TRUNCATED if _is_cut(name) else values


@mutant("INIT-02")
class ClippedInsteadOfCut(_Changed):
    """Values beyond two deviations are set there, not drawn again."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        if not _is_cut(name):
            return values
        drawn = np.random.default_rng(values.size).normal(size=values.shape).clip(-2, 2)
        return drawn / drawn.std() * values.std()


@mutant("INIT-02")
class EverythingIsCut(_Changed):
    """Attention and experts are cut too."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        if not name.endswith("kernel") or "router" in name:
            return values
        bound = values.std() * 2 / TRUNCATED
        outside = np.abs(values) > bound
        return np.where(outside, values / 4, values)


@mutant("INIT-03")
class RouterLikeKernels(_Changed):
    """The router has variance 0.1 / fan-in as the other kernels have."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        if "router_weights" in name:
            return values * np.sqrt(0.1 / values.shape[0]) / ROUTER_DEVIATION
        return values


@mutant("INIT-03")
class RouterVariance(_Changed):
    """0.02 is the variance of the router, not its deviation."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        return values / np.sqrt(ROUTER_DEVIATION) if "router_weights" in name else values


@mutant("INIT-03")
class ScaledEmbedding(_Changed):
    """The embedding is N(0, 1 / D)."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        return values / np.sqrt(values.shape[1]) if name.endswith("embedding") else values


@mutant("INIT-03")
class NormsBeginAtZero(_Changed):
    """Norm scales begin at 0, as where they are used as 1 + scale."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        return values * 0 if name.endswith("scale") else values


@mutant("INIT-04")
class EveryExpertIsTheFirst(_Changed):
    """One expert is drawn and copied, as in upcycling."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        return np.broadcast_to(values[:1], values.shape) if "/expert/" in name else values


@mutant("INIT-04")
class ExpertsInPairs(_Changed):
    """Two experts share a random key."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        return np.repeat(values[::2], 2, axis=0) if "/expert/" in name else values


@mutant("INIT-04")
class FanInCountsTheExperts(_Changed):
    """The fan-in of an expert's kernel is that of all experts together."""

    def change(self, name: str, values: ndarray, configuration: Mapping[str, Any]) -> ndarray:
        return values / np.sqrt(len(values)) if "/expert/" in name else values
