"""What comparisons of stored models share: what a case gives, the one pass, what is required of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.subject import Subject, UnsupportedError
from openmoe_conformance.vector_cases import Arrays, VectorCase, below, once
from openmoe_spec.layouts import name_from_port
from openmoe_spec.records import Decision, ForwardResult

BFLOAT16_BOUND = {"relative": 3e-2, "of_largest": 3e-2}
GRADIENT_BOUND = {"relative": 1e-4, "of_largest": 1e-5}


def is_bfloat16(case: VectorCase) -> bool:
    """Return whether the activations are bfloat16."""
    return bool(case.config["call"]["dtype"] == "bfloat16")


def parameters(arrays: Arrays, prefix: str = "params/") -> dict[str, ndarray]:
    """Return the weights of a model; the published port's names and layouts are translated."""
    found = {}
    for name, array in below(arrays, prefix).items():
        ours, transposed = name_from_port(name) or (name, False)
        found[ours] = np.ascontiguousarray(array.T) if transposed else array
    return found


def batch(arrays: Arrays, prefix: str = "batch/") -> dict[str, ndarray]:
    """Return a batch; ids and masks as int32."""
    return {
        name: array.astype(np.int32) if array.dtype.kind in "iub" else array
        for name, array in below(arrays, prefix).items()
    }


def forward(
    s: Subject, case: VectorCase, arrays: Arrays, *, what: str = "forward", **more: Any
) -> ForwardResult:
    """Return the pass named `what`, made once; `more` are further keywords of `forward`."""
    return once(
        s,
        case,
        what,
        lambda: s.forward(
            parameters(arrays),
            batch(arrays),
            configuration=case.config["configuration"],
            **case.config["call"],
            **more,
        ),
    )


def shown(activations: Mapping[str, Any] | None, name: str) -> ndarray:
    """Return one activation of a pass. Errors: UnsupportedError where none is shown."""
    if activations is None:
        raise UnsupportedError("forward() shows no activations")
    if name not in activations:
        raise Disagreement(f"activations: lack {name}")
    return answers.array(name, activations[name])


def compare_decisions(name: str, got: Decision, wanted: Mapping[str, ndarray]) -> None:
    """Require equal experts, drops and the slots of what is kept, in groups [G, T, K]."""
    same(f"{name}: kept", got.kept, wanted["kept"])
    same(f"{name}: expert_index", got.expert_index, wanted["expert_index"])
    slots = np.where(wanted["kept"], wanted["position"], -1)
    same(f"{name}: position of what is kept", np.where(got.kept, got.position, -1), slots)


def of_layer(decisions: Mapping[int, Decision], layer: int) -> Decision:
    """Return the decision of a sparse layer. Errors: UnsupportedError where none is shown."""
    if layer not in decisions:
        raise UnsupportedError("forward() shows no decisions")
    return decisions[layer]


def compare_gradients(
    got: Mapping[str, ndarray], wanted: Mapping[str, ndarray], evidence: Evidence
) -> None:
    """Require float32 gradients within their bound (MODEL-08)."""
    for name, array in wanted.items():
        close(f"gradient of {name}", got[name], array, evidence, **GRADIENT_BOUND)
