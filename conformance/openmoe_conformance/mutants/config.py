"""Mutants of SPEC.md "Configuration"."""

from __future__ import annotations

from typing import Any

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter


@mutant("CFG-01")
class PaperFeedForwardWidth(ReferenceAdapter):
    """base has the paper's feed-forward width 3072."""

    def configuration(self, name: str) -> dict[str, Any]:
        fields = super().configuration(name)
        return fields | {"mlp_dim": 3072} if name == "base" else fields


@mutant("CFG-01")
class PaperRouterZLoss(ReferenceAdapter):
    """34b has the paper's router z-loss factor 1e-4."""

    def configuration(self, name: str) -> dict[str, Any]:
        return super().configuration(name) | {"router_z_loss_factor": 1e-4}
