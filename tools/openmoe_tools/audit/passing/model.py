"""The model that is audited: its configuration and weights, its digest, and what a certificate says of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_reference.checkpoints import model_digest
from openmoe_spec.config import Configuration
from openmoe_spec.parameters import sparse_layers
from openmoe_tools.checkpoints import digests, loading, working
from openmoe_tools.checkpoints.containers.opening import Checkpoint, open_checkpoint
from openmoe_tools.checkpoints.verification import certificate
from openmoe_tools.checkpoints.verification.findings import HOLDS

if TYPE_CHECKING:  # an optional extra
    from openmoe_production.vocabulary import Vocabulary


@dataclass(frozen=True)
class Audited:
    """A model with its weights, float32, by the names of PARAM-01."""

    path: Path
    configuration: Configuration
    weights: Mapping[str, ndarray]
    step: int | None
    digest: str

    @property
    def layers(self) -> list[int]:
        """Numbers of the sparse layers."""
        one = self.configuration
        return list(sparse_layers(one.num_layers, one.num_moe_layers))

    def manifest(self) -> dict[str, Any]:
        """Return what a report says of it."""
        one = self.configuration
        return {
            "name": one.name,
            "path": self.path.name,
            "step": self.step,
            "digest": self.digest,
            "layers": self.layers,
            "experts": one.num_experts,
            "choices": one.num_selected_experts,
            "vocabulary_size": one.vocabulary_size,
        }


def load(path: Path) -> Audited:
    """Return the model of a checkpoint, of a run's folder the newest step. Errors: UsageError."""
    checkpoint = open_checkpoint(path)
    if not any("router" in name for name in checkpoint.tensors):
        raise UsageError(f"{path}: has no mixture-of-experts layer; there is no routing to audit")
    loaded = loading.load_opened(checkpoint)  # not opened again: a run may save a newer step
    return Audited(path, loaded.model, loaded.weights, loaded.step, digest_of(checkpoint))


def digest_of(checkpoint: Checkpoint) -> str:
    """Return the digest of a checkpoint as its files have it. Spec: CKPT-02."""
    budget = working.Budget.of(working.memory("2GB"), 0)
    found = digests.all_digests(checkpoint, budget)
    return model_digest({name: one.digest for name, one in found.items()})


def certified(path: Path | None, digest: str) -> dict[str, Any]:
    """Return what a certificate says of a model: whether its conversion was proven, and by what.

    Errors: UsageError on a file that is no certificate.
    """
    if path is None:
        return {"status": "none", "file": None}
    predicate = certificate.read(path)
    sides = {
        side: predicate[side]["model_digest"] for side in (certificate.SOURCE, certificate.TARGET)
    }
    if digest not in sides.values():
        return {"status": "of another model", "file": path.name}
    verdicts = {tier: one["verdict"] for tier, one in predicate["verdicts"].items()}
    proven = all(one == HOLDS for one in verdicts.values())
    return {
        "status": "holds" if proven else "does not hold",
        "file": path.name,
        "side": next(side for side, found in sides.items() if found == digest),
        "source": sides[certificate.SOURCE],
        "verdicts": verdicts,
    }


def require_fitting(pieces: Vocabulary, model: Audited, file: Path) -> None:
    """Refuse a tokeniser that cannot be the model's: it has more ids than the embedding has rows.

    Errors: UsageError.
    """
    rows = model.configuration.vocabulary_size
    if pieces.size > rows:
        raise UsageError(
            f"{file}: has {pieces.size:,} ids with its sentinels, and {model.path} has {rows:,} rows of "
            "embedding; it is not this model's tokeniser (--tokenizer names one)"
        )
