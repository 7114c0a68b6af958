"""What the checks of routing share: cases, their options, and the reference's answer to them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.checks import Case
from openmoe_conformance.compare import same
from openmoe_conformance.profile import Profile
from openmoe_conformance.queues import compare_queue
from openmoe_reference import routing
from openmoe_spec.records import Decision


def decision_options(case: Case) -> dict[str, Any]:
    """Return the keywords of `decide` that the case has."""
    names = ("k", "capacity", "padding_mask", "batch_prioritized")
    return {name: case[name] for name in names if name in case}


def router_arguments(case: Case, **more: Any) -> dict[str, Any]:
    """Return the arguments of `route`, with `more` keywords."""
    names = ("inputs", "kernel", "k", "capacity")
    return {name: case[name] for name in names} | more


def reference_decision(case: Case, *, ignore_padding: bool = False, **options: Any) -> Decision:
    """Return what the reference decides from the case's hidden states."""
    mask = routing.padding_mask(case["inputs"]) if ignore_padding else None
    return routing.decide(
        routing.probabilities(case["inputs"], case["kernel"]),
        k=case["k"],
        capacity=case["capacity"],
        padding_mask=mask,
        **options,
    )


def compare_records(got: Decision, wanted: Decision) -> None:
    """Require equal choices, drops and positions; a dropped position may be -1."""
    same("expert_index", got.expert_index, wanted.expert_index)
    compare_queue(got, wanted.position.astype(np.int64), wanted.capacity)


def random_tokens(profile: Profile) -> Iterator[Case]:
    """Random tokens, 512 wide, representable in bfloat16, in groups of 512, E = 32."""
    generator = np.random.default_rng(20240202)
    for _ in range(profile.random_tokens // 2048):
        inputs = generator.normal(size=(4, 512, 512)).astype(np.float32)
        inputs = _bfloat16(inputs)
        kernel = _bfloat16(generator.normal(scale=0.02, size=(512, 32)).astype(np.float32))
        yield {"inputs": inputs, "kernel": kernel, "k": 2, "capacity": 20}


def _bfloat16(values: ndarray) -> ndarray:
    """Cut float32 values to the 8 significant bits of bfloat16, so that products are exact."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
