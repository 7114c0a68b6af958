"""Planted bugs: implementations that are the reference with one thing wrong.

Each names the clause it breaks; the kit is sound when that clause's checks catch it. A mutant is an
adapter like any other, so `--implementation openmoe_conformance.mutants.routing:TiesToHigherIndex`
runs one on its own.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

CHAPTERS = (
    *("config", "parameters", "layers", "masks", "rotary", "attention"),
    *("layer_rejections", "part_gradients"),
    *("grouping", "routing", "routing_options", "other_routers", "moe", "model"),
    *("model_numerics", "model_rejections"),
    *(
        "losses",
        "cross_entropy",
        "total_loss",
        "optimizer",
        "adafactor",
        "microbatches",
        "initialisation",
        "decoding",
        "decoding_steps",
        "sampling",
    ),
    *("vocabulary", "noise", "prefixes", "objectives", "examples", "documents", "draws", "feeding"),
    *("batching", "packing", "meshes", "mesh_models", "checkpoints"),
    *("audit", "audit_spreads", "audit_measures", "audit_loads", "audit_pairs", "audit_drops"),
    *("audit_inference", "audit_intervals", "audit_rejections", "audit_measure_rejections"),
    *("dialects",),
)
"""Modules of mutants, in the order of SPEC.md."""

_T = TypeVar("_T", bound=type)


@dataclass(frozen=True)
class Mutant:
    """One planted bug: the adapter class, the clause it breaks, the bug in a sentence."""

    name: str
    clause: str
    bug: str
    adapter: Callable[[], Any]

    @property
    def implementation(self) -> str:
        """Return the name that `--implementation` takes."""
        return f"{self.adapter.__module__}:{self.name.rpartition('.')[2]}"


_REGISTRY: dict[str, Mutant] = {}


def mutant(clause: str) -> Callable[[_T], _T]:
    """Register a class as a mutant of `clause`; its docstring is the bug."""

    def register(adapter: _T) -> _T:
        name = f"{adapter.__module__.rpartition('.')[2]}.{adapter.__name__}"
        assert name not in _REGISTRY, f"mutant {name} stands twice"
        bug = " ".join((adapter.__doc__ or "").split())
        _REGISTRY[name] = Mutant(name, clause, bug, adapter)
        return adapter

    return register


def all_mutants() -> list[Mutant]:
    """Return every mutant, in the order of the chapters and their text."""
    for chapter in CHAPTERS:
        importlib.import_module(f"openmoe_conformance.mutants.{chapter}")
    return list(_REGISTRY.values())
