"""Mutants of SPEC.md "Configuration"."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from openmoe_conformance.mutants import mutant
from openmoe_conformance.reference_adapter import ReferenceAdapter
from openmoe_spec.config import MODEL_FIELDS, PUBLISHED, Configuration
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


@mutant("CFG-04")
class PaperZLoss(ReferenceAdapter):
    """The z-loss has the paper's weight 0.001."""

    def configuration(self, name: str, **options: Any) -> dict[str, Any]:
        return super().configuration(name, **options) | {"z_loss_factor": 1e-3}


@mutant("CFG-04")
class PrefixesAreBidirectional(ReferenceAdapter):
    """The published models are said to have an open prefix."""

    def configuration(self, name: str, **options: Any) -> dict[str, Any]:
        return super().configuration(name, **options) | {"inputs_bidirectional_attention": True}


@mutant("CFG-05")
class ModelFieldsAreNotLookedAt(ReferenceAdapter):
    """Fields of the whole model are accepted whatever they hold."""

    def validate_configuration(self, fields: Mapping[str, Any]) -> None:
        Configuration(**{name: v for name, v in fields.items() if name not in MODEL_FIELDS})


@mutant("CFG-05")
class AnyNumberOfKeyHeads(ReferenceAdapter):
    """Heads of keys need not divide the heads."""

    def validate_configuration(self, fields: Mapping[str, Any]) -> None:
        heads = fields.get("num_kv_heads")
        counted = isinstance(heads, int) and heads >= 1
        Configuration(**{**fields, "num_kv_heads": 1} if counted else fields)


@mutant("CFG-05")
class OddHeadsAreAccepted(ReferenceAdapter):
    """A head width need not be even."""

    def validate_configuration(self, fields: Mapping[str, Any]) -> None:
        Configuration(**{**fields, "head_dim": 2 * fields["head_dim"]})


@mutant("CFG-05")
class ExpertsMustBeDense(ReferenceAdapter):
    """An expert's width must be that of the dense layers."""

    def validate_configuration(self, fields: Mapping[str, Any]) -> None:
        Configuration(**fields)
        if fields.get("expert_mlp_dim") not in (None, fields["mlp_dim"]):
            raise RejectedError("expert_mlp_dim", "CFG-05", "must be mlp_dim")
