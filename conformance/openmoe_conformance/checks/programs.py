"""Checks of class S: what a program is made of, read from the operations that it lists.

Sizes are chosen so that each letter's product is unmistakable in a shape.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

from openmoe_conformance.checks import Case, check
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject

Operation = Mapping[str, Any]

_FLOATS = ("float16", "bfloat16", "float32", "float64")


def _programs(*names: str, tokens: tuple[int, ...] = (50,), routers: tuple[str, ...] = ()) -> Any:
    def cases(_: Profile) -> Iterator[Case]:
        for name in names:
            for number in tokens:
                sizes = {"groups": 1, "tokens": number, "width": 7, "hidden": 3, "experts": 8}
                case = {"program": name, **sizes, "k": 2, "capacity": number // 2}
                if not routers:
                    yield case
                yield from (case | {"router": router} for router in routers)

    return cases


def operations_of(subject: Subject, case: Case) -> list[Operation]:
    """Return the operations that the implementation lists for a case, with shapes as tuples."""
    sizes = {name: value for name, value in case.items() if name not in ("program", "meshes")}
    found = subject.call("operations", case["program"], **sizes)
    try:
        listed: list[Operation] = [
            {
                "name": str(row["name"]),
                "precision": row["precision"],
                "inputs": [(tuple(x["shape"]), str(x["dtype"])) for x in row["inputs"]],
                "outputs": [(tuple(x["shape"]), str(x["dtype"])) for x in row["outputs"]],
            }
            for row in found
        ]
    except (TypeError, KeyError) as error:
        raise Disagreement(f"operations: a row lacks {error}") from error
    if not listed:
        raise Disagreement(f"operations({case['program']}): the list is empty")
    return listed


@check("ROUTE-27", "operations", cases=_programs("route", "moe"))
def router_products_ask_for_full_precision(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """Every matrix product with the router's weights is float32 at the highest precision."""
    weights = sorted((case["width"], case["experts"]))
    products = [
        row
        for row in operations_of(subject, case)
        if row["name"] == "dot_general" and any(sorted(s) == weights for s, _ in row["inputs"])
    ]
    evidence.examples += 1
    if not products:
        raise Disagreement(f"{case['program']}: no product with weights {weights} was found")
    for row in products:
        dtypes = [dtype for _, dtype in (*row["inputs"], *row["outputs"])]
        if row["precision"] != "highest" or set(dtypes) != {"float32"}:
            raise Disagreement(
                f"{case['program']}: the router's product has precision {row['precision']!r} and "
                f"dtypes {dtypes}, expected 'highest' and float32"
            )


def _largest(operations: list[Operation]) -> tuple[int, Operation]:
    sizes = [max((prod(s) for s, _ in row["outputs"]), default=0) for row in operations]
    worst = max(range(len(sizes)), key=sizes.__getitem__)
    return sizes[worst], operations[worst]


@check("MOE-12", "operations", cases=_programs("moe", "moe_gradients", tokens=(48, 192)))
def no_array_of_tokens_by_experts_by_slots(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """No operation yields T x E x C elements or more."""
    size, row = _largest(operations_of(subject, case))
    limit = case["tokens"] * case["experts"] * case["capacity"]
    evidence.examples += 1
    if size >= limit:
        raise Disagreement(
            f"{case['program']}: {row['name']} yields {size} elements {row['outputs']}, "
            f"T x E x C is {limit}"
        )


@check("MOE-12", "operations", cases=_programs("moe", "moe_gradients", tokens=(96,)))
def memory_is_linear_in_tokens(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Twice the tokens and slots at most double the largest array."""
    once, _ = _largest(operations_of(subject, case))
    twice_as_many = {"tokens": 2 * case["tokens"], "capacity": 2 * case["capacity"]}
    twice, row = _largest(operations_of(subject, case | twice_as_many))
    evidence.examples += 1
    if twice > 2 * once:
        raise Disagreement(
            f"{case['program']}: twice the tokens make {row['name']} yield {twice} elements, "
            f"the largest before was {once}"
        )


@check("MOE-13", "operations", cases=_programs("moe", "moe_gradients"))
def only_integers_are_scattered(subject: Subject, case: Case, evidence: Evidence) -> None:
    """No operation scatters floating-point values by index, forward or backward."""
    evidence.examples += 1
    for row in operations_of(subject, case):
        floats = [dtype for _, dtype in row["outputs"] if dtype in _FLOATS]
        if "scatter" in row["name"] and floats:
            raise Disagreement(f"{case['program']}: {row['name']} scatters {floats[0]}")


_OTHERS = ("scatter", "experts_choose")


@check(
    "MOE-12",
    "operations(router)",
    cases=_programs("moe", "moe_gradients", tokens=(192,), routers=_OTHERS),
)
def no_such_array_with_the_other_routers(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The same with the scatter and the experts-choose router."""
    no_array_of_tokens_by_experts_by_slots(subject, case, evidence)


@check("MOE-13", "operations(router)", cases=_programs("moe", "moe_gradients", routers=_OTHERS))
def no_floats_are_scattered_with_the_other_routers(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """The same with the scatter and the experts-choose router."""
    only_integers_are_scattered(subject, case, evidence)
