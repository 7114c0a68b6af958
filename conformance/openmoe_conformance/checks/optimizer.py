"""Checks of SPEC.md "Training": learning rate and Adafactor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.checks import Case, check
from openmoe_conformance.compare import close, fields_of, same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import optimizer

STATE_BOUND = {"relative": 2e-6}
PARAMETER_BOUND = {"relative": 2e-6, "absolute": 1e-7}  # OPT-09

EXACT_STEP = 31
"""A step whose new moments weigh 32^-0.8, exactly 1 / 16: no rounding of the weight is blown up."""

PLAIN = (
    ((7,), ("embed",)),
    ((300,), ("embed",)),
    ((5, 9), ("mlp_embed", "mlp")),
    ((127, 300), ("mlp_embed", "mlp")),
    ((300, 127), ("mlp", "mlp_embed")),
    ((128, 128), ("embed", "joined_kv")),
    ((128, 160), ("mlp_embed", "mlp")),
    ((160, 128), ("embed", "vocab")),
    ((160, 128), ("mlp", "mlp_embed")),
)
"""Tensors without experts: of one axis, small, narrow; then square, wide and tall ones, factored."""

OF_EXPERTS = (
    ((4, 6, 10), ("expert", "mlp_embed", "expert_mlp")),
    ((4, 10, 6), ("expert", "expert_mlp", "mlp_embed")),
    ((3, 9, 4), ("expert", "mlp_embed", "expert_mlp")),
)
"""Tensors of experts: up and down, and deeper than wide."""

LARGE_EXPERTS = (((2, 160, 130), ("expert", "mlp_embed", "expert_mlp")),)
"""Experts that would be factored without their axis too. Not for means of 160 equal squares: in
float32 those err by as much as the bound."""


# ---- learning rate and the form of the state ---------------------------------------------------


@check(
    "OPT-01",
    "learning_rate",
    cases=lambda _: iter(
        [{"step": step} for step in (0, 1, 10, 9_999, 10_000, 10_001, 100_000, 500_000)]
    ),
)
def the_rate_is_flat_and_then_falls(subject: Subject, case: Case, evidence: Evidence) -> None:
    """0.01 up to step 10,000, then 1 / sqrt(step)."""
    wanted = 1 / np.sqrt(max(case["step"], optimizer.WARMUP))
    got = subject.scalar("learning_rate", case["step"])
    close(f"learning_rate({case['step']})", got, wanted, evidence, relative=2e-6)


def _tensors(*groups: tuple[tuple[tuple[int, ...], tuple[str, ...]], ...]) -> Any:
    """Return cases of every tensor of the groups, each with one seed or a few."""

    def cases(profile: Profile) -> Iterator[Case]:
        for seed in range(profile.examples // 25):
            for group in groups:
                for shape, axes in group:
                    yield {"shape": shape, "axes": axes, "seed": seed}

    return cases


def _initial_state(case: Case) -> dict[str, ndarray]:
    shape, axes = tuple(case["shape"]), tuple(case["axes"])
    return optimizer.initial_state(shape, optimizer.factoring(shape, axes))


def _compare_initial_state(subject: Subject, case: Case) -> None:
    """Require zeros of the reference's shapes, which say what is factored and by which axis."""
    wanted = _initial_state(case)
    shapes = {name: slot.shape for name, slot in wanted.items()}
    arguments = tuple(case["shape"]), tuple(case["axes"])
    got = subject.named("optimizer_state", shapes, *arguments)
    for name, slot in wanted.items():
        same(f"optimizer_state[{name}]", got[name], slot)


@check("OPT-02", "optimizer_state", cases=_tensors(PLAIN))
def the_smaller_axis_decides_and_is_the_row(subject: Subject, case: Case, _: Evidence) -> None:
    """From 128 on the smaller axis makes a tensor factored, whatever the axes are called."""
    _compare_initial_state(subject, case)


@check("OPT-03", "optimizer_state", cases=_tensors(OF_EXPERTS, LARGE_EXPERTS))
def experts_are_always_factored(subject: Subject, case: Case, _: Evidence) -> None:
    """v_row is [E, mlp_embed] and v_col [E, expert_mlp] of small experts and of large ones."""
    _compare_initial_state(subject, case)


@check("OPT-04", "optimizer_state", cases=_tensors(PLAIN, OF_EXPERTS, LARGE_EXPERTS))
def state_begins_as_zeros(subject: Subject, case: Case, _: Evidence) -> None:
    """Every slot is zeros, one that is not used of shape (1,)."""
    _compare_initial_state(subject, case)


# ---- one update --------------------------------------------------------------------------------


def _normal(case: Case, size: str, stream: int) -> ndarray:
    """Return numbers of a case's `size`; of experts the first ones are smaller by powers of 8."""
    generator = np.random.default_rng((case["seed"], stream))
    drawn = generator.normal(size=case["shape"]) * case[size]
    if "expert" in case["axes"]:
        drawn *= 8.0 ** -np.arange(len(drawn))[::-1, None, None]
    return drawn.astype(np.float32)


def warm_state(case: Case) -> dict[str, ndarray]:
    """Return a state as earlier gradients of size `state` would have left it."""
    generator = np.random.default_rng((case["seed"], 2))
    return {
        name: slot
        if slot.shape == (1,)
        else (case["state"] ** 2 * generator.uniform(0.5, 1.5, slot.shape)).astype(np.float32)
        for name, slot in _initial_state(case).items()
    }


def _compare_update(
    subject: Subject,
    case: Case,
    evidence: Evidence,
    arrays: tuple[ndarray, ndarray, dict[str, ndarray]],
    step: int,
) -> tuple[ndarray, dict[str, ndarray]]:
    """Compare one update and return the reference's, which the next one may start from."""
    shape, axes = tuple(case["shape"]), tuple(case["axes"])
    how = optimizer.factoring(shape, axes)
    wanted, state = optimizer.update(*arrays, how, step=step, rate=case["rate"])
    answer = subject.call("adafactor", *arrays, axes=axes, step=step, rate=case["rate"])
    found = fields_of(answer, ("parameter", "state"))
    shapes = {name: slot.shape for name, slot in state.items()}
    shown = answers.named("adafactor: state", found["state"], shapes)
    for name, slot in state.items():
        close(f"{name} after step {step}", shown[name], slot, evidence, **STATE_BOUND)
    got = answers.numbers("adafactor: parameter", found["parameter"], shape)
    close(f"parameter after step {step}", got, wanted, evidence, **PARAMETER_BOUND)
    return wanted, state


def _compare_warm_update(subject: Subject, case: Case, evidence: Evidence, **sizes: float) -> None:
    """Compare an update late in training; a rate of 1 shows the direction in the parameter."""
    case = {"rate": 1.0, "parameter": 0.05, "gradient": 1e-2, "state": 3e-2} | case | sizes
    arrays = _normal(case, "parameter", 0), _normal(case, "gradient", 1), warm_state(case)
    _compare_update(subject, case, evidence, arrays, EXACT_STEP)


@check("OPT-02", "adafactor", cases=_tensors(PLAIN[-4:]))
def a_square_tensors_rows_are_its_first_axis(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """The moments of factored tensors, the square one's too, are means over the right axis."""
    _compare_warm_update(subject, case, evidence)


@check("OPT-05", "adafactor", cases=_tensors(PLAIN, OF_EXPERTS))
def moments_forget_by_a_power_of_the_step(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The old moments weigh 1 - (s + 1)^-0.8: nothing in the first update; g^2 gets 1e-30."""
    case = case | {"rate": 0.01, "parameter": 0.05, "gradient": 1e-2, "state": 3e-2}
    gradient = _normal(case, "gradient", 1)
    gradient[:1] = 0  # in a first update these moments are 1e-30 alone, or nearly
    arrays = _normal(case, "parameter", 0), gradient, warm_state(case)
    for step in (0, 1, 2, EXACT_STEP, 32_767):
        _compare_update(subject, case, evidence, arrays, step)


@check("OPT-06", "adafactor", cases=_tensors(PLAIN, OF_EXPERTS, LARGE_EXPERTS))
def the_direction_is_the_scaled_gradient(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The gradient over sqrt(v), or by rows and columns, with the mean over the rows of one expert."""
    _compare_warm_update(subject, case, evidence)


@check("OPT-07", "adafactor", cases=_tensors(PLAIN, OF_EXPERTS, LARGE_EXPERTS))
def large_directions_are_clipped_by_expert(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """A direction above 1 is scaled down, one below stays; beside large experts small ones stay."""
    _compare_warm_update(subject, case, evidence, state=1e-3)
    _compare_warm_update(subject, case, evidence, state=3e-2)


@check("OPT-08", "adafactor", cases=_tensors(PLAIN, OF_EXPERTS, LARGE_EXPERTS))
def steps_scale_with_the_parameter(subject: Subject, case: Case, evidence: Evidence) -> None:
    """By the root mean square of a tensor or of one expert, and 1e-3 below that: zeros move."""
    for size in (0.05, 2e-4, 0.0):
        _compare_warm_update(subject, case, evidence, parameter=size)


def _kinds_of_gradients(profile: Profile) -> Iterator[Case]:
    for case in _tensors(PLAIN, OF_EXPERTS)(profile):
        for kind in ("ordinary", "tiny", "huge", "half of it zero"):
            yield case | {"kind": kind}


@check("OPT-09", "adafactor", cases=_kinds_of_gradients)
def a_few_updates_from_the_start(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Four updates from zero state: nothing but rate, scale and direction moves a parameter."""
    sizes = {"ordinary": 1e-2, "tiny": 1e-15, "huge": 1e6, "half of it zero": 1e-2}
    case = case | {"parameter": 0.05, "gradient": sizes[case["kind"]], "rate": 0.01}
    parameter, state = _normal(case, "parameter", 0), _initial_state(case)
    for step in range(4):
        gradient = _normal(case, "gradient", 10 + step)
        if case["kind"] == "half of it zero":
            gradient[: len(gradient) // 2] = 0  # half the experts saw no token
        parameter, state = _compare_update(
            subject, case, evidence, (parameter, gradient, state), step
        )
