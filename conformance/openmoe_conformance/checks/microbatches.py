"""Checks of SPEC.md "Training": gradients of a batch, and a whole step."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import answers, model_cases
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.clear_models import Oracle, clear_cases
from openmoe_conformance.checks.optimizer import PARAMETER_BOUND, STATE_BOUND, warm_state
from openmoe_conformance.compare import close, fields_of
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.subject import Subject
from openmoe_reference import optimizer

GRADIENT_BOUND = {"relative": 1e-4, "of_largest": 1e-5}  # MODEL-08
LOSS_BOUND = {"relative": 5e-6, "absolute": 1e-6}
LOSSES = ("total", "cross_entropy", "z_loss", "auxiliary_loss", "router_z_loss")


@check(
    "OPT-10",
    "scaled_gradients",
    cases=lambda _: iter([{"partitions": partitions} for partitions in (1, 2, 3, 16)]),
)
def gradients_of_experts_are_multiplied(subject: Subject, case: Case, evidence: Evidence) -> None:
    """By the number of partitions, in every tensor of experts; the router's are not."""
    _, gradients, _ = model_cases.build(model_cases.fixed())
    shapes = {name: value.shape for name, value in gradients.items()}
    got = subject.named(
        "scaled_gradients", shapes, gradients, num_expert_partitions=case["partitions"]
    )
    for name, value in gradients.items():
        factor = case["partitions"] if "/expert/" in name else 1
        close(f"gradient of {name}", got[name], value * factor, evidence, relative=1e-6)


def _is_clear(case: Case) -> bool:
    oracle = Oracle()
    _accumulated(oracle, case)
    return oracle.is_clear


def _built(case: Case) -> tuple[dict[str, Any], dict[str, ndarray], dict[str, ndarray]]:
    return model_cases.build(case, min_expert_capacity=1)  # small slices drop choices too


def _accumulated(oracle: Oracle, case: Case) -> dict[str, Any]:
    fields, parameters, batch = _built(case)
    return oracle.accumulated_gradients(
        parameters, batch, configuration=fields, num_microbatches=case["num_microbatches"]
    )


def _shown_gradients(subject: Subject, case: Case) -> tuple[dict[str, ndarray], dict[str, ndarray]]:
    """Return the parts of the loss and the gradients that the implementation accumulates."""
    fields, parameters, batch = _built(case)
    answer = subject.call(
        "accumulated_gradients",
        parameters,
        batch,
        configuration=fields,
        num_microbatches=case["num_microbatches"],
    )
    found = fields_of(answer, ("loss", "gradients"))
    shapes = {name: value.shape for name, value in parameters.items()}
    return (
        answers.named("accumulated_gradients: loss", found["loss"], dict.fromkeys(LOSSES, ())),
        answers.named("accumulated_gradients: gradients", found["gradients"], shapes),
    )


ROWS = model_cases.fixed(rows=4)
"""Rows of unlike numbers of tokens, so that slices differ in divisors and in what they drop."""


@check(
    "OPT-11",
    "accumulated_gradients",
    cases=clear_cases(
        *(ROWS | {"num_microbatches": count} for count in (2, 4, 1)), is_clear=_is_clear
    ),
)
def slices_are_added_up(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Contiguous slices with groups, capacity and divisor of their own, summed and not averaged."""
    wanted = _accumulated(Oracle(), case)
    losses, gradients = _shown_gradients(subject, case)
    for name in LOSSES:
        close(f"loss {name}", losses[name], wanted["loss"][name], evidence, **LOSS_BOUND)
    for name, value in wanted["gradients"].items():
        close(f"gradient of {name}", gradients[name], value, evidence, **GRADIENT_BOUND)


@check(
    "OPT-09",
    "accumulated_gradients",
    "train_step(num_microbatches)",
    "train_step(num_expert_partitions)",
    cases=clear_cases(ROWS | {"num_microbatches": 2}, is_clear=_is_clear),
)
def a_training_step_is_composed(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Accumulate, multiply the experts' gradients, update each tensor at the rate of the step."""
    partitions, step = 4, 32_767  # new moments weigh 2^-12 exactly
    fields, parameters, batch = _built(case)
    losses, gradients = _shown_gradients(subject, case)
    gradients = optimizer.scaled_gradients(gradients, num_expert_partitions=partitions)
    tensors = Oracle().parameters(fields)
    # Earlier moments keep the direction smooth in the gradient: no last bit is blown up.
    before = {
        name: warm_state({"seed": number, "state": 0.2, **tensor})
        for number, (name, tensor) in enumerate(tensors.items())
    }
    answer = subject.call(
        "train_step",
        parameters,
        before,
        batch,
        configuration=fields,
        step=step,
        num_microbatches=case["num_microbatches"],
        num_expert_partitions=partitions,
    )
    found = fields_of(answer, ("loss", "parameters", "state"))
    shapes = {name: value.shape for name, value in parameters.items()}
    after = answers.named("train_step: parameters", found["parameters"], shapes)
    total = answers.named("train_step: loss", found["loss"], {"total": ()})["total"]
    close("loss total", total, losses["total"], evidence, **LOSS_BOUND)
    states = fields_of(found["state"], tuple(tensors))
    for name, tensor in tensors.items():
        wanted, slots = optimizer.update(
            parameters[name],
            gradients[name].astype(np.float32),
            before[name],
            optimizer.factoring(tensor["shape"], tensor["axes"]),
            step=step,
            rate=float(optimizer.learning_rate(step)),
        )
        close(name, after[name], wanted, evidence, **PARAMETER_BOUND)
        shown = answers.named(
            f"train_step: state[{name}]",
            states[name],
            {slot: value.shape for slot, value in slots.items()},
        )
        for slot, value in slots.items():
            close(f"{slot} of {name}", shown[slot], value, evidence, **STATE_BOUND)
