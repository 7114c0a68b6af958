"""Checks of gradients: directional derivatives against differences of the float64 reference.

Along a random direction v the implementation's <gradient, v> must equal the central difference of
the reference's loss, its decision held fixed. The reference runs in float64, so the difference
errs by about 1e-9, far below the bound.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import strategies
from openmoe_conformance.checks import Case, check
from openmoe_conformance.compare import close
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import losses, moe, routing
from openmoe_spec.records import Decision, ExpertsChoice

STEP = 1e-5
GRADIENT_BOUND = {"relative": 2e-5, "absolute": 2e-5}


def _cases(profile: Profile) -> Iterator[Case]:
    """Layers whose router margins are at least 1e-3: no step crosses a tie."""
    for seed in range(3):
        generator = np.random.default_rng(seed)
        shape = (2, 12, 6)
        while True:
            inputs = generator.normal(size=shape).astype(np.float32)
            kernel = generator.normal(scale=0.5, size=(6, 4)).astype(np.float32)
            ranked = np.sort(inputs.astype(np.float64) @ kernel, axis=-1)
            if np.diff(ranked, axis=-1).min() > 1e-3:
                break
        yield {
            "inputs": inputs,
            "kernel": kernel,
            "k": 2,
            "capacity": 4,
            "directions": profile.gradient_directions,
            "seed": seed,
        } | strategies.expert_weights(seed, 4, width=6, hidden=5)


def _compare_directions(
    gradients: Mapping[str, ndarray],
    loss: Callable[[dict[str, ndarray]], float],
    at: dict[str, ndarray],
    case: Case,
    evidence: Evidence,
) -> None:
    generator = np.random.default_rng(case["seed"])
    for _ in range(case["directions"]):
        for name, value in at.items():
            direction = generator.normal(size=value.shape)
            direction /= np.linalg.norm(direction)
            up = loss(at | {name: value + STEP * direction})
            down = loss(at | {name: value - STEP * direction})
            slope = float((gradients[name].astype(np.float64) * direction).sum())
            wanted = (up - down) / (2 * STEP)
            close(f"derivative along {name}", slope, wanted, evidence, **GRADIENT_BOUND)
            evidence.examples += 1


def layer_loss(
    at: dict[str, ndarray],
    *,
    cotangent: ndarray,
    factors: tuple[float, float],
    k: int,
    capacity: int,
    decision: Decision | ExpertsChoice,
    **options: Any,
) -> float:
    """Return sum(output x cotangent) + a x balance loss + z x router z-loss in float64."""
    weights = {name: value for name, value in at.items() if name != "inputs"}
    result = moe.moe(
        at["inputs"].astype(np.float64),
        weights,
        k=k,
        capacity=capacity,
        expert_dtype="float64",
        decision=decision,
        **options,
    )
    assert result.metrics is not None
    return float(
        (result.output * cotangent).sum()
        + factors[0] * result.metrics["auxiliary_loss"]
        + factors[1] * result.metrics["router_z_loss"]
    )


def _compare_layer_gradients(
    subject: Subject, case: Case, evidence: Evidence, **options: Any
) -> None:
    weights = strategies.parameters(case)
    sizes = {"k": case["k"], "capacity": case["capacity"]}
    cotangent = np.random.default_rng(1).normal(size=case["inputs"].shape).astype(np.float32)
    factors = (0.5, 0.25)
    gradients = subject.gradients(
        "moe_gradients",
        (case["inputs"], weights, cotangent),
        auxiliary_loss_factor=factors[0],
        router_z_loss_factor=factors[1],
        **sizes,
        **options,
    )
    decision = moe.moe(case["inputs"], weights, **sizes, **options).decision
    assert decision is not None

    def loss(at: dict[str, ndarray]) -> float:
        return layer_loss(
            at, cotangent=cotangent, factors=factors, decision=decision, **sizes, **options
        )

    at = {
        name: np.asarray(v, np.float64) for name, v in {"inputs": case["inputs"], **weights}.items()
    }
    _compare_directions(gradients, loss, at, case, evidence)


@check("MOE-09", "moe_gradients", cases=_cases)
def layer_gradients(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Through gates and expert outputs, with decisions constant and both losses added."""
    _compare_layer_gradients(subject, case, evidence)


@check("MOE-09", "moe_gradients(router)", cases=_cases)
def experts_choose_gradients(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The same through the experts-choose router."""
    _compare_layer_gradients(subject, case, evidence, router="experts_choose")


@check("MOE-09", "moe_gradients(router)", cases=_cases)
def scatter_gradients(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The same through the scatter router."""
    _compare_layer_gradients(subject, case, evidence, router="scatter")


@check("MOE-09", "moe_gradients(batch_prioritized)", cases=_cases)
def prioritised_gradients(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The same with batch-prioritised routing."""
    _compare_layer_gradients(subject, case, evidence, batch_prioritized=True)


@check("MOE-09", "moe_gradients(ignore_padding)", cases=_cases)
def gradients_with_ignored_padding(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Ignored padding carries no gradient through gates and the balance loss."""
    inputs = case["inputs"].copy()
    inputs[:, ::3] = 0
    weights = strategies.parameters(case)
    sizes = {"k": case["k"], "capacity": case["capacity"]}
    cotangent = np.random.default_rng(1).normal(size=inputs.shape).astype(np.float32)
    gradients = subject.gradients(
        "moe_gradients",
        (inputs, weights, cotangent),
        ignore_padding=True,
        auxiliary_loss_factor=0.5,
        router_z_loss_factor=0.25,
        **sizes,
    )
    decision = moe.moe(inputs, weights, ignore_padding=True, **sizes).decision
    assert decision is not None

    def loss(at: dict[str, ndarray]) -> float:
        everything = {"inputs": inputs.astype(np.float64), **at}
        return layer_loss(
            everything,
            cotangent=cotangent,
            factors=(0.5, 0.25),
            decision=decision,
            ignore_padding=True,
            **sizes,
        )

    # Along the weights only: a step of the inputs would make padding real.
    at = {name: value.astype(np.float64) for name, value in weights.items()}
    _compare_directions(gradients, loss, at, case, evidence)


def _compare_router_gradients(
    subject: Subject,
    case: Case,
    evidence: Evidence,
    *,
    gates: float = 0.0,
    balance: float = 0.0,
    z: float = 0.0,
) -> None:
    shape = (*case["inputs"].shape[:2], case["kernel"].shape[1])
    cotangent = (gates * np.random.default_rng(2).normal(size=shape)).astype(np.float32)
    options = {"k": case["k"], "capacity": case["capacity"]}
    decision = routing.decide(routing.probabilities(case["inputs"], case["kernel"]), **options)
    gradients = subject.gradients(
        "route_gradients",
        (case["inputs"], case["kernel"], cotangent),
        auxiliary_loss_factor=balance,
        router_z_loss_factor=z,
        **options,
    )

    def loss(at: dict[str, ndarray]) -> float:
        logits = routing.router_logits(at["inputs"], at["router"], dtype=np.float64)
        probabilities = routing.softmax(logits)
        chosen = np.take_along_axis(probabilities * cotangent, decision.expert_index, axis=-1)
        return float(
            chosen[decision.kept].sum()
            + balance * losses.balance_loss(probabilities, decision.expert_index)
            + z * losses.router_z_loss(logits)
        )

    at = {
        "inputs": case["inputs"].astype(np.float64),
        "router": case["kernel"].astype(np.float64),
    }
    _compare_directions(gradients, loss, at, case, evidence)


@check("ROUTE-26", "route_gradients", cases=_cases)
def gates_differentiate_the_full_softmax(subject: Subject, case: Case, evidence: Evidence) -> None:
    """All E terms of the softmax carry gradient; dropped choices carry none."""
    _compare_router_gradients(subject, case, evidence, gates=1.0)


@check("LOSS-12", "route_gradients", cases=_cases)
def the_balance_loss_differentiates_p_alone(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """F is constant, P carries the gradient."""
    _compare_router_gradients(subject, case, evidence, balance=1.0)


@check("LOSS-12", "route_gradients", cases=_cases)
def the_z_loss_differentiates_the_logits(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The z-loss through logsumexp."""
    _compare_router_gradients(subject, case, evidence, z=1.0)
