"""Small discriminating inputs: what an implementation answers to them tells its choices apart.

A probe asks one function of an adapter for one answer. Models are silent but for the part that is
asked about, so that one choice, or two that hang together, decides. The dialect is never named to the
implementation: what it does of itself is what is found out. Spec: DIAL-01.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Known = Mapping[str, str]
"""Choices found so far; a probe whose model needs one uses it."""


@dataclass(frozen=True)
class Probe:
    """One question: the function it calls, the points that its answer tells apart.

    ask    from an adapter and the choices known so far to numbers
    what   the input in words, for the evidence
    alone  the answer depends on no other choice
    faint  options differ by rounding alone: an answer near none of them tells nothing
    share  of the distance to the next option that an answer may be off, in coarse arithmetic
    by_option  the question itself is another under each option
    """

    function: str
    points: tuple[str, ...]
    what: str
    ask: Callable[[Any, Known], Any]
    alone: bool = False
    faint: bool = False
    share: float = 0.0
    by_option: bool = False


CHAPTERS = ("attention", "experts", "training", "decoding", "data")
"""Modules of probes; earlier ones settle what later ones build on."""

_REGISTRY: list[Probe] = []

Ask = Callable[[Any, Known], Any]


def probe(function: str, *points: str, what: str, **more: Any) -> Callable[[Ask], Ask]:
    """Register a function as the probe of one function and some points."""

    def register(ask: Ask) -> Ask:
        _REGISTRY.append(Probe(function, points, what, ask, **more))
        return ask

    return register


def all_probes() -> list[Probe]:
    """Return every probe, in the order of the chapters and their text."""
    for chapter in CHAPTERS:
        importlib.import_module(f"openmoe_conformance.probes.{chapter}")
    return _REGISTRY
