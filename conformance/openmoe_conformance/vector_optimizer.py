"""Comparisons of stored training: Adafactor on single tensors, and whole steps of a model."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.compare import close, fields_of, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.subject import Subject
from openmoe_conformance.vector_cases import (
    Arrays,
    Comparison,
    Kind,
    Run,
    VectorCase,
    below,
    once,
)
from openmoe_conformance.vector_passes import batch, compare_gradients
from openmoe_reference import optimizer
from openmoe_spec.config import Configuration
from openmoe_spec.parameters import parameters as tree

STATE_BOUND = {"relative": 2e-6}
PARAMETER_BOUND = {"relative": 2e-6, "absolute": 1e-7}
TRAINED_BOUND = {"relative": 5e-4, "absolute": 2e-5}
TRAINED_STATE_BOUND = {"relative": 5e-4, "of_largest": 5e-5}  # squares of gradients within 1e-4
TRAINED_LOSS_BOUND = {"relative": 1e-5}

State = Mapping[str, ndarray]


def _steps(arrays: Arrays) -> list[int]:
    found = (re.match(r"step(\d+)/", name) for name in arrays)
    return sorted({int(match[1]) for match in found if match})


def _before(arrays: Arrays, step: int, name: str) -> ndarray:
    """Return a parameter as it was stored before a step."""
    return arrays[f"step{step - 1}/params/{name}" if step else f"params0/{name}"]


def _slots(name: str, answer: Any) -> dict[str, Any]:
    found = fields_of(answer, optimizer.SLOTS)
    if lacking := [slot for slot, value in found.items() if value is None]:
        raise Disagreement(f"state of {name}: lacks {', '.join(lacking)}")
    return found


# ---- single tensors ----------------------------------------------------------------------------


def _axes(case: VectorCase, *, experts: bool | None = None) -> dict[str, tuple[str, ...]]:
    """Return the logical axes of tensors by name: of all, or of those with or without experts."""
    return {
        name: tuple(axes)
        for name, axes in case.config["logical_axes"].items()
        if experts is None or ("expert" in axes) == experts
    }


def _initial_state(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    for name, axes in _axes(case).items():
        answer = s.call("optimizer_state", arrays[f"params0/{name}"].shape, axes)
        for slot, value in _slots(name, answer).items():
            zeros = np.zeros(arrays[f"step0/state/{name}/{slot}"].shape)
            same(f"{slot} of {name} before the first step", value, zeros)


def _factoring(*, experts: bool) -> Run:
    def run(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
        for name, axes in _axes(case, experts=experts).items():
            answer = s.call("optimizer_state", arrays[f"params0/{name}"].shape, axes)
            for slot, value in _slots(name, answer).items():
                wanted = arrays[f"step0/state/{name}/{slot}"].shape
                same(f"shape of {slot} of {name}", np.shape(value), wanted)

    return run


def _updated(s: Subject, case: VectorCase, arrays: Arrays) -> dict[tuple[int, str], Any]:
    """Return the update of each tensor in each step from what is stored before it, made once."""

    def run() -> dict[tuple[int, str], Any]:
        return {
            (step, name): s.call(
                "adafactor",
                _before(arrays, step, name),
                arrays[f"step{step}/grads/{name}"],
                _state(arrays, step, name, axes),
                axes=axes,
                step=step,
                rate=float(arrays[f"step{step}/lr"]),
            )
            for step in _steps(arrays)
            for name, axes in _axes(case).items()
        }

    return once(s, case, "adafactor", run)


def _state(arrays: Arrays, step: int, name: str, axes: tuple[str, ...]) -> dict[str, ndarray]:
    if step:
        return below(arrays, f"step{step - 1}/state/{name}/")
    shape = arrays[f"params0/{name}"].shape
    return optimizer.initial_state(shape, optimizer.factoring(shape, axes))


def _moments(*, experts: bool) -> Run:
    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        tensors = _axes(case, experts=experts)
        for (step, name), answer in _updated(s, case, arrays).items():
            if name in tensors:
                found = _slots(name, fields_of(answer, ("state",))["state"])
                for slot, value in found.items():
                    wanted = arrays[f"step{step}/state/{name}/{slot}"]
                    what = f"{slot} of {name} after step {step}"
                    got = answers.numbers(what, value, wanted.shape)
                    close(what, got, wanted, evidence, **STATE_BOUND)

    return run


def _parameters(*, experts: bool) -> Run:
    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        tensors = _axes(case, experts=experts)
        for (step, name), answer in _updated(s, case, arrays).items():
            if name in tensors:
                wanted = arrays[f"step{step}/params/{name}"]
                got = answers.named("adafactor", answer, {"parameter": wanted.shape})["parameter"]
                close(f"{name} after step {step}", got, wanted, evidence, **PARAMETER_BOUND)

    return run


# ---- whole steps -------------------------------------------------------------------------------


def _learning_rate(s: Subject, _: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    for step in _steps(arrays):
        got, wanted = s.scalar("learning_rate", step), arrays[f"step{step}/lr"]
        close(f"learning rate of step {step}", got, wanted, evidence, **STATE_BOUND)


def _accumulated(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    """From the stored parameters of each step, before experts' gradients are multiplied."""
    for step in _steps(arrays):
        wanted = below(arrays, f"step{step}/grads_accum/")
        answer = s.call(
            "accumulated_gradients",
            {name: _before(arrays, step, name) for name in wanted},
            batch(arrays, f"step{step}/batch/"),
            configuration=case.config["configuration"],
            num_microbatches=case.config["num_microbatches"],
        )
        gradients = fields_of(answer, ("gradients",))["gradients"]
        shapes = {name: array.shape for name, array in wanted.items()}
        got = answers.named("accumulated_gradients", gradients, shapes)
        compare_gradients(got, wanted, evidence)


def _trained(s: Subject, case: VectorCase, arrays: Arrays) -> list[dict[str, Any]]:
    """Return the answers of all steps, each from the one before it, made once."""

    def run() -> list[dict[str, Any]]:
        fields = case.config["configuration"]
        axes = {one.name: one.axes for one in tree(Configuration(**fields))}
        parameters: Any = below(arrays, "params0/")
        state: Any = {
            name: optimizer.initial_state(array.shape, optimizer.factoring(array.shape, axes[name]))
            for name, array in parameters.items()
        }
        found = []
        for step in _steps(arrays):
            answer = s.call(
                "train_step",
                parameters,
                state,
                batch(arrays, f"step{step}/batch/"),
                configuration=fields,
                step=step,
                num_microbatches=case.config["num_microbatches"],
                num_expert_partitions=case.config["num_expert_partitions"],
            )
            found.append(fields_of(answer, ("loss", "parameters", "state")))
            parameters, state = found[-1]["parameters"], found[-1]["state"]
        return found

    return once(s, case, "train", run)


def _loss(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    for step, answer in zip(_steps(arrays), _trained(s, case, arrays), strict=True):
        got = answers.named("train_step: loss", answer["loss"], {"total": ()})["total"]
        wanted = arrays[f"step{step}/loss"]
        close(f"loss before update {step}", got, wanted, evidence, **TRAINED_LOSS_BOUND)


def _trained_parameters(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    for step, answer in zip(_steps(arrays), _trained(s, case, arrays), strict=True):
        wanted = below(arrays, f"step{step}/params/")
        shapes = {name: array.shape for name, array in wanted.items()}
        got = answers.named("train_step: parameters", answer["parameters"], shapes)
        for name, array in wanted.items():
            close(f"{name} after step {step}", got[name], array, evidence, **TRAINED_BOUND)


def _trained_state(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    final = _trained(s, case, arrays)[-1]["state"]
    for name, wanted in below(arrays, "final_state/").items():
        tensor, _, slot = name.rpartition("/")
        value = _slots(tensor, fields_of(final, (tensor,))[tensor])[slot]
        got = answers.numbers(f"{slot} of {tensor}", value, wanted.shape)
        close(f"{slot} of {tensor}", got, wanted, evidence, **TRAINED_STATE_BOUND)


_STATE = (r"params0/.+", r"step0/state/.+")
_UPDATE = (*_STATE, r"step0/grads/.+", "step0/lr")
KINDS: Mapping[str, Kind] = {
    "adafactor": Kind(
        {
            "initial_state": Comparison(_initial_state, _STATE),
            "factoring": Comparison(_factoring(experts=False), _STATE),
            "factoring_of_experts": Comparison(_factoring(experts=True), _STATE),
            "moments": Comparison(_moments(experts=False), _UPDATE),
            "moments_of_experts": Comparison(_moments(experts=True), _UPDATE),
            "parameters": Comparison(_parameters(experts=False), (*_UPDATE, r"step0/params/.+")),
            "parameters_of_experts": Comparison(
                _parameters(experts=True), (*_UPDATE, r"step0/params/.+")
            ),
        },
        (),
        ("logical_axes",),
    ),
    "training": Kind(
        {
            "learning_rate": Comparison(_learning_rate, ("step0/lr",)),
            "gradients": Comparison(_accumulated, (r"step0/grads_accum/.+",)),
            "train_loss": Comparison(_loss, ("step0/loss",)),
            "train_parameters": Comparison(_trained_parameters, (r"step0/params/.+",)),
            "train_state": Comparison(_trained_state, (r"final_state/.+",)),
        },
        ("params0/token_embedder/embedding", "step0/batch/decoder_input_tokens"),
        ("configuration", "num_microbatches", "num_expert_partitions"),
    ),
}
"""Kinds of training by name."""
