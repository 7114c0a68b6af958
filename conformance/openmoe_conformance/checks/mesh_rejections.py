"""Checks of SPEC.md "Meshes": what must be rejected, and what the message must say."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from openmoe_conformance import model_cases, strategies
from openmoe_conformance.adapter import UnsupportedError
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.mesh_models import MODEL
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.protocol import Mesh
from openmoe_conformance.subject import Subject


def _must_reject(
    what: str, action: Callable[[], Any], *, said: tuple[int, ...], would_do: set[int]
) -> None:
    """Require an error whose message has a number that would do, beside those that were given."""
    try:
        action()
    except UnsupportedError:
        raise
    except Exception as error:  # noqa: BLE001 - which exception is the implementation's own business
        message = re.sub(r"[A-Z]+-\d\d", "", str(error))  # ids of clauses are no numbers
    else:
        raise Disagreement(f"{what}: was accepted")
    numbers = Counter(map(int, re.findall(r"\d+", message))) - Counter(said)
    if not would_do & set(numbers):
        raise Disagreement(
            f"{what}: the message names none of {sorted(would_do)}, which would do: {message}"
        )


def _divisors(size: int) -> set[int]:
    return {n for n in range(1, size + 1) if size % n == 0}


# size of the layer that is changed, its value, the mesh and the parts that it does not have
_LAYERS: tuple[tuple[str, int, Mesh, int], ...] = (
    ("groups", 3, (2, 1, 1), 2),
    ("groups", 6, (2, 2, 1), 4),
    ("experts", 6, (1, 4, 1), 4),
    ("hidden", 5, (1, 1, 2), 2),
    ("width", 6, (1, 1, 4), 4),
)


def _layers(_: Profile) -> Iterator[Case]:
    for name, size, mesh, parts in _LAYERS:
        yield {"name": name, "size": size, "mesh": list(mesh), "parts": parts}


@check("MESH-06", "rejects_invalid_input", "moe(mesh)", "meshes", cases=_layers)
def layers_without_equal_parts_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Groups, experts, hidden width and width that a mesh cuts into unequal parts."""
    sizes = {"groups": 8, "experts": 8, "hidden": 8, "width": 8} | {case["name"]: case["size"]}
    generator = np.random.default_rng(0)
    inputs = generator.normal(size=(sizes["groups"], 4, sizes["width"])).astype(np.float32)
    kernel = generator.normal(size=(sizes["width"], sizes["experts"])).astype(np.float32)
    weights = strategies.expert_weights(0, sizes["experts"], sizes["width"], sizes["hidden"])
    layer = strategies.parameters({"kernel": kernel, **weights})
    _must_reject(
        f"{case['size']} {case['name']} in {case['parts']} parts",
        lambda: subject.call("moe", inputs, layer, k=2, capacity=2, mesh=case["mesh"]),
        said=(case["size"], case["parts"]),
        would_do=_divisors(case["size"]),
    )


# field of the case that is changed, its value, the mesh, the parts that it does not have
_MODELS: tuple[tuple[str, int, Mesh, int], ...] = (
    ("rows", 3, (2, 1, 1), 2),
    ("experts", 6, (1, 4, 1), 4),
    ("heads", 3, (1, 1, 2), 2),
    ("hidden", 5, (1, 1, 2), 2),
    ("expert_hidden", 7, (1, 1, 2), 2),
    ("width", 6, (1, 1, 4), 4),
    ("vocabulary", 31, (1, 1, 2), 2),
)


def _models(_: Profile) -> Iterator[Case]:
    for name, size, mesh, parts in _MODELS:
        case = MODEL | {"rows": 4, "length": 8, "kind": "full", name: size}
        yield case | {"name": name, "mesh": list(mesh), "parts": parts}


def _forward(subject: Subject, case: Case) -> Callable[[], Any]:
    fields, parameters, batch = model_cases.build(case)
    options = {"configuration": fields, "mesh": case["mesh"]}
    return lambda: subject.call("forward", parameters, batch, **options)


@check("MESH-06", "rejects_invalid_input", "forward(mesh)", "meshes", cases=_models)
def models_without_equal_parts_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Rows, experts, heads, widths and ids."""
    size = case[case["name"]]
    _must_reject(
        f"{size} {case['name']} in {case['parts']} parts",
        _forward(subject, case),
        said=(size, case["parts"]),
        would_do=_divisors(size),
    )


def _pieces(_: Profile) -> Iterator[Case]:
    plain = MODEL | {"kind": "full", "max_group_size": 4096}
    # 32 tokens make as many groups as there are experts.
    yield (
        plain
        | {"experts": 2, "rows": 8, "length": 4, "mesh": [4, 1, 1]}
        | {
            "said": [8, 4, 4, 2],
            "would_do": [2],
        }
    )
    # Two rows of padding make 12 tokens 16; more columns would make them 24.
    yield (
        plain
        | {"experts": 8, "rows": 6, "length": 2, "mesh": [2, 1, 1]}
        | {
            "said": [6, 2, 2],
            "would_do": [8],
        }
    )


@check("MESH-06", "rejects_invalid_input", "forward(mesh)", "meshes", cases=_pieces)
def pieces_of_groups_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Groups that would lie on two shares, and rows of padding, which no share has."""
    _must_reject(
        f"{case['rows']} rows of {case['length']} tokens in shares",
        _forward(subject, case),
        said=tuple(case["said"]),
        would_do=set(case["would_do"]),
    )


def _slices(_: Profile) -> Iterator[Case]:
    yield MODEL | {"rows": 4, "kind": "full", "num_microbatches": 2, "mesh": [4, 1, 1]}


@check("MESH-06", "rejects_invalid_input", "accumulated_gradients(mesh)", "meshes", cases=_slices)
def slices_without_equal_parts_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Two rows of a microbatch on four shares, though the batch has four."""
    fields, parameters, batch = model_cases.build(case)
    options = {"num_microbatches": case["num_microbatches"], "mesh": case["mesh"]}
    _must_reject(
        "2 rows of a microbatch in 4 parts",
        lambda: subject.call(
            "accumulated_gradients", parameters, batch, configuration=fields, **options
        ),
        said=(2, 4),
        would_do={1, 2},
    )
