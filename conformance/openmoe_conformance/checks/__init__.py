"""The checks: one module a chapter, one clause a check.

A check takes the implementation, one case (named arrays and numbers, so that a failing one can be
saved and replayed) and the evidence it adds to; it raises Disagreement when the clause is broken.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from hypothesis.strategies import SearchStrategy

from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject

Case = dict[str, Any]
"""Named inputs of a check: NumPy arrays, numbers, booleans, strings."""

Body = Callable[[Subject, Case, Evidence], None]
Cases = SearchStrategy[Case] | Callable[[Profile], Iterator[Case]]


@dataclass(frozen=True)
class Check:
    """One executable statement of one clause.

    name   chapter.function, unique
    needs  what the implementation must offer, else the check is SKIPPED
    cases  a Hypothesis strategy (drawn, shrunk) or a function from profile to fixed cases
    whole_model  an example takes seconds: the profile's `models` are drawn, not its `examples`
    """

    name: str
    clause: str
    needs: tuple[str, ...]
    cases: Cases
    body: Body
    sentence: str
    whole_model: bool = False


CHAPTERS = (
    *("config", "parameters", "layers", "masks", "rotary", "attention", "layer_rejections"),
    *("grouping", "routing", "invariance", "resolution", "other_routers"),
    *("parts", "moe", "moe_rejections", "model", "model_rejections"),
    *(
        "losses",
        "cross_entropy",
        "total_loss",
        "gradients",
        "optimizer",
        "microbatches",
        "initialisation",
    ),
    *("training_rejections", "decoding", "sampling", "decoding_rejections"),
    *("vocabulary", "noise", "prefixes", "objectives", "examples", "documents", "draws"),
    *("feeding", "fed_examples", "batching"),
    *("meshes", "mesh_models", "mesh_rejections", "checkpoints"),
    *("audit", "audit_spreads", "audit_measures", "audit_pairs", "audit_drops"),
    *("audit_inference", "audit_intervals", "audit_rejections", "audit_measure_rejections"),
    *("dialects", "programs", "mesh_programs"),
)
"""Modules of checks, in the order of SPEC.md."""

_REGISTRY: dict[str, Check] = {}


def check(
    clause: str, *needs: str, cases: Cases, whole_model: bool = False
) -> Callable[[Body], Body]:
    """Register a function as a check of `clause`."""

    def register(body: Body) -> Body:
        name = f"{body.__module__.rpartition('.')[2]}.{body.__name__}"
        assert name not in _REGISTRY, f"check {name} stands twice"
        sentence = " ".join((body.__doc__ or "").split())
        _REGISTRY[name] = Check(name, clause, needs, cases, body, sentence, whole_model)
        return body

    return register


def all_checks() -> list[Check]:
    """Return every check, in the order of the chapters and their text."""
    for chapter in CHAPTERS:
        importlib.import_module(f"openmoe_conformance.checks.{chapter}")
    return list(_REGISTRY.values())
