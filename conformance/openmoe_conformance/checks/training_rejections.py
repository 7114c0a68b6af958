"""Checks of SPEC.md "Training": what it must reject."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from openmoe_conformance import model_cases
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import optimizer


@check(
    "OPT-12",
    "rejects_invalid_input",
    "learning_rate",
    cases=lambda _: iter([{"step": -1}, {"step": -10_000}]),
)
def steps_below_zero_have_no_rate(subject: Subject, case: Case, _: Evidence) -> None:
    """The learning rate of a step below 0 raises."""
    must_reject(
        f"learning_rate of step {case['step']}",
        lambda: subject.call("learning_rate", case["step"]),
    )


def _unfit_axes(_: Profile) -> Iterator[Case]:
    yield {"shape": (3, 4), "axes": ("embed",)}
    yield {"shape": (3,), "axes": ("embed", "vocab")}
    yield {"shape": (3, 4, 5), "axes": ("expert", "mlp_embed")}
    yield {"shape": (3, 4, 5), "axes": ("heads", "mlp_embed", "mlp")}
    yield {"shape": (200, 200, 200), "axes": ("layers", "embed", "joined_kv")}


@check("OPT-12", "rejects_invalid_input", "optimizer_state", cases=_unfit_axes)
def unfit_axes_have_no_state(subject: Subject, case: Case, _: Evidence) -> None:
    """Axes that do not name the shape, and three axes without experts, raise."""
    must_reject(
        f"optimizer_state of {case['axes']} and shape {case['shape']}",
        lambda: subject.call("optimizer_state", tuple(case["shape"]), tuple(case["axes"])),
    )


def _illegal_updates(_: Profile) -> Iterator[Case]:
    for value in (np.nan, np.inf, -np.inf):
        yield {"wrong": "gradient", "value": value}
    yield {"wrong": "step", "value": -1}
    yield {"wrong": "axes", "value": ("embed",)}
    yield {"wrong": "axes", "value": ("embed", "joined_kv", "embed")}


@check("OPT-12", "rejects_invalid_input", "adafactor", cases=_illegal_updates)
def illegal_updates_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """A gradient that is not finite, a step below 0 and axes of another tensor raise."""
    axes = ("embed", "joined_kv")
    gradient = np.ones((3, 4), np.float32)
    options: dict[str, Any] = {"axes": axes, "step": 0, "rate": 0.01}
    if case["wrong"] == "gradient":
        gradient[1, 2] = case["value"]
    elif case["wrong"] == "axes":
        options["axes"] = tuple(case["value"])
    else:
        options["step"] = case["value"]
    state = optimizer.initial_state(gradient.shape, optimizer.factoring(gradient.shape, axes))
    must_reject(
        f"adafactor with {case['wrong']} {case['value']}",
        lambda: subject.call("adafactor", np.ones_like(gradient), gradient, state, **options),
    )


@check(
    "OPT-12",
    "rejects_invalid_input",
    "accumulated_gradients",
    cases=lambda _: iter([{"num_microbatches": count} for count in (3, 8, 0, -2)]),
)
def microbatches_must_divide_the_rows(subject: Subject, case: Case, _: Evidence) -> None:
    """Four rows cannot be split into 3, into 8, nor into none."""
    fields, parameters, batch = model_cases.build(model_cases.fixed(rows=4))
    count = case["num_microbatches"]
    must_reject(
        f"4 rows in {count} microbatches",
        lambda: subject.call(
            "accumulated_gradients",
            parameters,
            batch,
            configuration=fields,
            num_microbatches=count,
        ),
    )
