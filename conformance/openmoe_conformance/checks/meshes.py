"""Checks of SPEC.md "Meshes": the layer of one device, on meshes of 1, 2, 4 and 8.

A case holds the meshes that it is run on, of which an implementation runs those that it has. What is
right on a mesh is what is right without one, so bodies of other chapters' checks are used on it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from openmoe_conformance import strategies
from openmoe_conformance.adapter import UnsupportedError
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.gradients import GRADIENT_BOUND
from openmoe_conformance.checks.moe import LAYER_BOUND, compare_decisions, compare_layer
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.protocol import MESHES, Mesh
from openmoe_conformance.subject import Subject
from openmoe_reference import gradients, moe
from openmoe_spec.records import Decision, LayerResult

METRIC_BOUND = {"relative": 5e-6, "of_largest": 1e-6, "absolute": 1e-6}
RECORD = ("expert_index", "gate", "position", "kept")

_EIGHT = tuple(mesh for mesh in MESHES if np.prod(mesh) == 8)
_MESHES: dict[str, tuple[Mesh, ...]] = {
    "quick": ((2, 1, 1), (1, 4, 2), (2, 2, 2)),
    "standard": (*_EIGHT, (1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2), (1, 2, 2)),
}


def meshes_of(profile: Profile) -> list[list[int]]:
    """Return the meshes of a profile as a case holds them; exhaustive: all of 1, 2, 4 and 8 devices."""
    return [list(mesh) for mesh in _MESHES.get(profile.name, MESHES)]


def cases_of(profile: Profile) -> int:
    """Return how many cases of a kind a profile has."""
    return 1 if profile.name in _MESHES else 4


def on_each(
    subject: Subject, case: Case, evidence: Evidence, body: Callable[[Subject], None]
) -> None:
    """Run a body on every mesh of the case that the implementation has; what differs names it."""
    there = subject.meshes()
    runs = [mesh for mesh in map(tuple, case["meshes"]) if mesh in there]
    if not runs:
        raise UnsupportedError("has none of the meshes of the check")
    for mesh in runs:
        name = " x ".join(map(str, mesh))
        try:
            body(subject.on(mesh))
        except Disagreement as finding:
            raise Disagreement(f"on a mesh of {name}: {finding}") from finding
        evidence.examples += 1
        evidence.details.setdefault("meshes", []).append(name)


# ---- the layer -----------------------------------------------------------------------------

GROUPS, TOKENS, EXPERTS, WIDTH, HIDDEN = 8, 16, 8, 8, 8
SIZES: dict[str, Any] = {"k": 2, "capacity": 3}


def _layer(seed: int, *shape: int, exact: bool) -> Case:
    """Return inputs of a shape and a layer; with `exact` sums, ties, equal tokens and padding rows."""
    generator = np.random.default_rng(seed)
    inputs = generator.normal(size=(*shape, WIDTH)).astype(np.float32)
    kernel = generator.normal(size=(WIDTH, EXPERTS)).astype(np.float32)
    if exact:
        inputs = (generator.integers(-4, 5, inputs.shape) / 8).astype(np.float32)
        kernel = (generator.integers(-8, 9, kernel.shape) / 16).astype(np.float32)
        kernel[:, [5, 7]] = kernel[:, [2, 0]]
        inputs[:, 3::4] = inputs[:, 2:-1:4]
        inputs[1::3, -5:] = 0
        inputs[0] = inputs[0, 0]  # a group of one token, repeated
        inputs[len(inputs) // 2 :] *= 2  # other gates in the second half of the shares
    weights = strategies.expert_weights(seed, EXPERTS, width=WIDTH, hidden=HIDDEN)
    return {"inputs": inputs, "kernel": kernel, "exact": exact, **SIZES, **weights}


def _layers(*, exact: bool | None = None) -> Callable[[Profile], Iterator[Case]]:
    def cases(profile: Profile) -> Iterator[Case]:
        for seed in range(2 * cases_of(profile)):
            kind = seed % 2 == 0 if exact is None else exact
            case = _layer(seed, GROUPS, TOKENS, exact=kind)
            yield case | {"meshes": meshes_of(profile)}

    return cases


def _moe(subject: Subject, case: Case) -> LayerResult:
    return subject.moe(case["inputs"], strategies.parameters(case), **SIZES)


def _shown(found: LayerResult) -> Decision:
    if not isinstance(found.decision, Decision):
        raise UnsupportedError("moe() shows no decisions")
    return found.decision


@check("MESH-01", "moe(mesh)", "meshes", cases=_layers())
def the_layers_record_is_the_same(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Bit for bit that of one device: exact ties, equal tokens and padding rows, and plain numbers."""
    alone = _shown(_moe(subject, case))
    if case["exact"]:
        compare_decisions(
            alone, moe.moe(case["inputs"], strategies.parameters(case), **SIZES).decision
        )

    def body(on: Subject) -> None:
        got = _shown(_moe(on, case))
        for name in RECORD:
            same(name, getattr(got, name), getattr(alone, name))

    on_each(subject, case, evidence, body)


def _batches(profile: Profile) -> Iterator[Case]:
    # 16 tokens a group; one more column of padding, and two replicas.
    for seed, (length, replicas) in enumerate(((16, 1), (15, 2))):
        yield _layer(seed, GROUPS, length, exact=True) | {
            "meshes": meshes_of(profile),
            "options": {"num_expert_replicas": replicas, "max_group_size": 16},
        }


@check(
    "MESH-01",
    "moe_layer(mesh)",
    "moe_layer(num_expert_replicas)",
    "moe_layer(max_group_size)",
    "moe_layer(min_expert_capacity)",
    "meshes",
    cases=_batches,
)
def groups_follow_from_the_whole_batch(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Group size, capacity and record of a batch are those of all its rows and of R."""
    weights = strategies.parameters(case)
    options: dict[str, Any] = {"training": True, "min_expert_capacity": 1, **case["options"]}
    wanted = moe.moe_layer(case["inputs"], weights, **options)
    assert isinstance(wanted.decision, Decision)
    shape, capacity = wanted.decision.expert_index.shape[:2], wanted.decision.capacity

    def body(on: Subject) -> None:
        got = on.moe_layer(case["inputs"], weights, groups=shape, capacity=capacity, **options)
        compare_decisions(got.decision, wanted.decision)
        close("output", got.output, wanted.output, evidence, **LAYER_BOUND)

    on_each(subject, case, evidence, body)


@check("MESH-02", "moe(mesh)", "meshes", cases=_layers(exact=True))
def the_layers_output_is_the_same(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Hidden widths in parts, experts elsewhere: the output of one device."""
    on_each(subject, case, evidence, lambda on: compare_layer(_moe(on, case), case, evidence))


@check("MESH-02", "moe(mesh)", "meshes", cases=_layers(exact=True))
def metrics_are_those_of_all_groups(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Losses are means over all groups, quotients those of sums over all groups."""
    wanted = moe.moe(case["inputs"], strategies.parameters(case), **SIZES).metrics
    assert wanted is not None

    def body(on: Subject) -> None:
        got = _moe(on, case).metrics
        if got is None:
            raise UnsupportedError("moe() shows no metrics")
        for name, value in got.items():
            close(name, value, wanted[name], evidence, **METRIC_BOUND)

    on_each(subject, case, evidence, body)


@check("MESH-03", "moe_gradients(mesh)", "meshes", cases=_layers(exact=True))
def the_layers_gradients_are_the_same(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Of inputs, router and experts: summed over the shares once, both losses among them."""
    weights = strategies.parameters(case)
    cotangent = strategies.normal(1, *case["inputs"].shape)
    decision = moe.moe(case["inputs"], weights, **SIZES).decision
    assert decision is not None
    arrays = case["inputs"], weights, cotangent
    wanted = gradients.layer_gradients(*arrays, decision, balance=0.5, z=0.25)

    def body(on: Subject) -> None:
        factors = {"auxiliary_loss_factor": 0.5, "router_z_loss_factor": 0.25}
        for name, value in on.gradients("moe_gradients", arrays, **factors, **SIZES).items():
            close(f"gradient of {name}", value, wanted[name], evidence, **GRADIENT_BOUND)

    on_each(subject, case, evidence, body)
