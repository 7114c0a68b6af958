"""Checks of SPEC.md "Meshes": what the program of one device of a mesh is made of."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod, sqrt

from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.meshes import meshes_of, on_each
from openmoe_conformance.checks.programs import Operation, operations_of
from openmoe_conformance.compare import same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.protocol import Mesh
from openmoe_conformance.subject import Subject

GATHERS = ("all_gather", "all_to_all", "ppermute", "reduce_scatter")
"""Beginnings of the names of operations that bring other devices' numbers as they are."""

PASSES = {"moe": 1, "moe_gradients": 2}
"""How often slots go through the experts and back; products are one in three forward."""


def _programs(profile: Profile) -> Iterator[Case]:
    # Sizes whose parts are told apart in any shape.
    sizes = {"groups": 8, "tokens": 10, "width": 24, "hidden": 56, "experts": 8}
    for program in PASSES:
        yield {
            "program": program,
            **sizes,
            "k": 2,
            "capacity": 5,
            "meshes": meshes_of(profile),
        }


def _weights(case: Case, mesh: Mesh) -> set[tuple[int, ...]]:
    """Return the shapes, sorted, of a device's parts of experts' weights, gates joined or in halves."""
    _, expert, model = mesh
    experts, width = case["experts"] // expert, case["width"]
    hidden = case["hidden"] // model
    shapes = (experts, width, hidden), (experts, width, 2 * hidden), (experts, width, 2, hidden)
    return {tuple(sorted(shape)) for shape in shapes}


def _touches(row: Operation, shapes: set[tuple[int, ...]], *sides: str) -> bool:
    return any(tuple(sorted(shape)) in shapes for side in sides for shape, _ in row[side])


def _products(operations: list[Operation], case: Case, mesh: Mesh) -> float:
    """Return the multiplications of all products with experts' weights or for their gradients."""
    weights, batch = _weights(case, mesh), case["experts"] // mesh[1]
    sizes = [
        [prod(shape) for side in ("inputs", "outputs") for shape, _ in row[side]]
        for row in operations
        if row["name"] == "dot_general" and _touches(row, weights, "inputs", "outputs")
    ]
    # The sizes of [b, m, k] x [b, k, n] -> [b, m, n] multiply to b (b m k n)^2.
    return sum(sqrt(prod(three) / batch) for three in sizes)


@check("MESH-08", "operations(mesh)", "meshes", cases=_programs)
def no_experts_work_is_done_twice(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The products with experts' weights of one device are the layer's divided by the devices."""
    slots = case["groups"] * case["experts"] * case["capacity"]
    forward = 4 * slots * case["width"] * case["hidden"]  # the doubled, the single one and the last
    whole = forward * {"moe": 1, "moe_gradients": 3}[case["program"]]

    def body(on: Subject) -> None:
        assert on.mesh is not None
        found = _products(operations_of(on, case), case, on.mesh)
        same("multiplications of one device", round(found), whole // prod(on.mesh))

    on_each(subject, case, evidence, body)


@check("MESH-08", "operations(mesh)", "meshes", cases=_programs)
def slots_travel_and_experts_stay(subject: Subject, case: Case, evidence: Evidence) -> None:
    """No operation gathers an expert's weights; slots cross once each way, in parts of their width."""
    slots = case["groups"] * case["experts"] * case["capacity"]

    def body(on: Subject) -> None:
        assert on.mesh is not None
        operations = operations_of(on, case)
        for row in operations:
            moved = row["name"].startswith(GATHERS)
            if moved and _touches(row, _weights(case, on.mesh), "inputs"):
                raise Disagreement(f"{row['name']} moves weights of experts {row['inputs']}")
        crossed = sum(
            prod(shape)
            for row in operations
            if row["name"].startswith("all_to_all")
            for shape, _ in row["outputs"]
        )
        each_way = slots * case["width"] // prod(on.mesh) if on.mesh[1] > 1 else 0
        wanted = 2 * PASSES[case["program"]] * each_way
        same("elements that cross the experts' axis on one device", crossed, wanted)

    on_each(subject, case, evidence, body)
