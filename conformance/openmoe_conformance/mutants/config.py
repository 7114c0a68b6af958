"""Mutants of SPEC.md "Configuration"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_spec.config import PUBLISHED, Configuration
from openmoe_spec.errors import RejectedError


@mutant("CFG-01")
class PaperFeedForwardWidth(ReferenceAdapter):
    """base has the paper's feed-forward width 3072."""

    def configuration(self, name: str, **options: Any) -> dict[str, Any]:
        fields = super().configuration(name, **options)
        return fields | {"mlp_dim": 3072} if name == "base" else fields


@mutant("CFG-01")
class PaperRouterZLoss(ReferenceAdapter):
    """34b has the paper's router z-loss factor 1e-4."""

    def configuration(self, name: str, **options: Any) -> dict[str, Any]:
        return super().configuration(name, **options) | {"router_z_loss_factor": 1e-4}


@mutant("CFG-02")
class AcceptsAnyConfiguration(ReferenceAdapter):
    """Values outside their ranges are replaced by the published ones."""

    def validate_configuration(self, fields: Mapping[str, Any]) -> None:
        try:
            Configuration(**fields)
        except RejectedError:
            Configuration(**vars(PUBLISHED["base"]))


@mutant("CFG-02")
class AnyNumberOfMoeLayers(ReferenceAdapter):
    """The MoE layers need not divide the layers."""

    def validate_configuration(self, fields: Mapping[str, Any]) -> None:
        layers, sparse = fields["num_layers"], fields["num_moe_layers"]
        uneven = isinstance(sparse, int) and 1 <= sparse <= layers and layers % sparse
        Configuration(**{**fields, "num_moe_layers": 1} if uneven else fields)
