"""What is compared for each kind of stored case.

Inputs, stored intermediates, expected outputs and bounds of every kind are described in
`vectors/README.md`.
"""

from __future__ import annotations

from collections.abc import Mapping

from openmoe_conformance import (
    vector_batching,
    vector_calls,
    vector_components,
    vector_decoding,
    vector_layers,
    vector_models,
    vector_noise,
    vector_optimizer,
    vector_parameters,
    vector_port,
    vector_port_decoding,
    vector_port_routers,
    vector_routers,
    vector_text,
)
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.subject import Subject
from openmoe_conformance.vector_cases import Arrays, Kind, VectorCase

KINDS: Mapping[str, Kind] = {
    **vector_routers.KINDS,
    **vector_layers.KINDS,
    **vector_components.KINDS,
    **vector_models.KINDS,
    **vector_decoding.KINDS,
    **vector_optimizer.KINDS,
    **vector_parameters.KINDS,
    **vector_port_routers.KINDS,
    **vector_port.KINDS,
    **vector_port_decoding.KINDS,
    **vector_text.KINDS,
    **vector_noise.KINDS,
    **vector_batching.KINDS,
    **vector_calls.KINDS,
}
"""Kinds of cases by name."""


def missing(case: VectorCase) -> str:
    """Return what a case lacks, naming file and case; empty when it is whole."""
    where = f"{case.set_name}/index.json, case {case.id}"
    if case.kind not in KINDS:
        return f"{where}: unknown kind {case.kind!r}"
    kind = KINDS[case.kind]
    unknown = sorted(set(case.comparisons) - set(kind.comparisons))
    if unknown:
        return f"{where}: unknown comparison {', '.join(unknown)}"
    lacking = {name for name in kind.arrays if name not in case.names}
    lacking |= {p for name in case.comparisons for p in kind.comparisons[name].lacking(case.names)}
    if lacking:
        return f"{where}: lacks array {', '.join(sorted(lacking))}"
    wanted = {
        *kind.config,
        *(k for name in case.comparisons for k in kind.comparisons[name].config),
    }
    if absent := sorted(wanted - set(case.config)):
        return f"{where}: its config lacks {', '.join(absent)}"
    wrong = vector_calls.malformed(case) if case.kind == "call" else ""
    return f"{where}: {wrong}" if wrong else ""


def compare(
    subject: Subject, case: VectorCase, comparison: str, arrays: Arrays, evidence: Evidence
) -> None:
    """Run one comparison of a case; raise Disagreement where it fails."""
    evidence.examples += 1
    KINDS[case.kind].comparisons[comparison].run(subject, case, arrays, evidence)
