"""Checks of SPEC.md "Training": initialisation.

A statistic of n draws is compared within 6 of its own standard errors: a right implementation misses
one with a probability of 2e-9, any of the about 170 here with one below 1e-6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from itertools import combinations
from math import erf, exp, pi, sqrt

import numpy as np
from numpy import ndarray

from openmoe_conformance.checks import Case, check
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference.initialisation import TRUNCATED, deviation
from openmoe_spec.config import Configuration
from openmoe_spec.parameters import Parameter, parameters

ERRORS = 6
"""Standard errors within which a statistic must lie."""

LONGEST = 2 / TRUNCATED
"""Largest value of a cut tensor, in its own standard deviations."""

LARGE = Configuration(
    name="large tensors",
    num_layers=2,
    num_moe_layers=1,
    embed_dim=200,
    num_heads=8,
    head_dim=64,
    mlp_dim=520,
    expert_mlp_dim=510,
    num_experts=4,
    vocabulary_size=512,
)
"""A model whose every tensor but router and norms has 100,000 elements or more, by expert."""

MANY = Configuration(
    name="many experts",
    num_layers=2,
    num_moe_layers=1,
    embed_dim=400,
    num_heads=1,
    head_dim=2,
    mlp_dim=1,
    num_experts=256,
    vocabulary_size=2,
)
"""A model whose router has 100,000 elements."""


def _seeds(_: Profile) -> Iterator[Case]:
    yield {"seed": 0}


def _drawn(subject: Subject, configuration: Configuration, seed: int) -> dict[str, ndarray]:
    shapes = {one.name: one.shape for one in parameters(configuration)}
    return subject.named("initialise", shapes, asdict(configuration), seed)


def _kernels(configuration: Configuration) -> Iterator[tuple[Parameter, float, bool]]:
    """Yield every kernel but the router's, with its deviation and whether it is cut."""
    for one in parameters(configuration):
        if one.name.endswith("kernel") and "router" not in one.name:
            yield one, *deviation(one, configuration)


def _compare(
    name: str, got: float, wanted: float, standard_error: float, evidence: Evidence
) -> None:
    close(name, got, wanted, evidence, relative=0.0, absolute=ERRORS * standard_error)


def _compare_moments(
    name: str, values: ndarray, spread: float, evidence: Evidence, *, cut: bool = False
) -> None:
    """Compare mean and variance, whose standard errors follow from the second and fourth moment."""
    wide, count = values.astype(np.float64).ravel() / spread, values.size
    # Of a unit normal cut at 2, whose density there is exp(-2) / sqrt(2 pi) of a mass of erf(sqrt 2).
    edge = 2 * exp(-2) / sqrt(2 * pi) / erf(sqrt(2))
    fourth = (3 - 14 * edge) / (1 - 2 * edge) ** 2 if cut else 3.0
    _compare(f"mean of {name} / deviation", wide.mean(), 0.0, sqrt(1 / count), evidence)
    error = sqrt((fourth - 1) / count)
    _compare(f"variance of {name} / wanted", np.square(wide).mean(), 1.0, error, evidence)


def _compare_shape(
    name: str, values: ndarray, spread: float, evidence: Evidence, *, cut: bool
) -> None:
    """Compare the share beyond one deviation, and whether anything lies beyond the cut."""
    wide, count = np.abs(values.astype(np.float64)).ravel() / spread, values.size
    share = 1 - erf(sqrt(0.5))
    if cut:
        share = 1 - erf(TRUNCATED / sqrt(2)) / erf(sqrt(2))
    error = sqrt(share * (1 - share) / count)
    beyond = (wide > 1).mean()
    _compare(f"share of {name} beyond one deviation", beyond, share, error, evidence)
    largest = wide.max()
    if cut and largest > LONGEST * (1 + 1e-6):
        raise Disagreement(f"{name}: {largest:.6g} deviations, expected at most {LONGEST:.6g}")
    if not cut and largest <= LONGEST:
        raise Disagreement(f"{name}: nothing of {count} draws lies beyond {LONGEST:.6g} deviations")


@check("INIT-01", "initialise", cases=_seeds)
def kernels_vary_by_their_fan_in(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Mean 0 and variance 0.1 / fan-in, for the query divided by N."""
    drawn = _drawn(subject, LARGE, case["seed"])
    for one, spread, cut in _kernels(LARGE):
        _compare_moments(one.name, drawn[one.name], spread, evidence, cut=cut)


@check("INIT-01", "initialise", cases=lambda _: iter([{"seed": 3, "other_seed": 4}]))
def every_tensor_is_drawn_by_itself(subject: Subject, case: Case, evidence: Evidence) -> None:
    """One seed gives one model, another another, and tensors of one shape do not resemble."""
    drawn = _drawn(subject, MANY, case["seed"])
    again = _drawn(subject, MANY, case["seed"])
    other = _drawn(subject, MANY, case["other_seed"])
    names = [one.name for one, _, _ in _kernels(MANY)]
    for name in names:
        same(f"{name} of the same seed", again[name], drawn[name])
        _compare_correlation(f"{name} of two seeds", drawn[name], other[name], evidence)
    for first, second in combinations(names, 2):
        if drawn[first].shape == drawn[second].shape:
            what = f"{first} and {second}"
            _compare_correlation(what, drawn[first], drawn[second], evidence)


def _compare_correlation(name: str, one: ndarray, other: ndarray, evidence: Evidence) -> None:
    found = float(np.corrcoef(one.ravel(), other.ravel())[0, 1])
    _compare(f"correlation of {name}", found, 0.0, sqrt(1 / one.size), evidence)


@check("INIT-02", "initialise", cases=_seeds)
def some_kernels_are_cut(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Those of dense feed-forwards and the output projection at 2 / 0.8796 deviations, no other."""
    drawn = _drawn(subject, LARGE, case["seed"])
    for one, spread, cut in _kernels(LARGE):
        values = drawn[one.name]
        _compare_shape(one.name, values, spread, evidence, cut=cut)
        if cut:
            _compare_moments(one.name, values, spread, evidence, cut=cut)


@check("INIT-03", "initialise", cases=_seeds)
def embedding_router_and_norms(subject: Subject, case: Case, evidence: Evidence) -> None:
    """N(0, 1), N(0, 0.02), and ones."""
    for configuration, part in ((LARGE, "embedding"), (MANY, "router_weights/w/kernel")):
        drawn = _drawn(subject, configuration, case["seed"])
        for one in parameters(configuration):
            values = drawn[one.name]
            if one.name.endswith("scale"):
                same(one.name, values, np.ones(one.shape))
            elif one.name.endswith(part):
                spread, _ = deviation(one, configuration)
                _compare_moments(one.name, values, spread, evidence)
                _compare_shape(one.name, values, spread, evidence, cut=False)


@check("INIT-04", "initialise", cases=_seeds)
def every_expert_is_drawn_by_itself(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Each expert varies by the fan-in of one expert, and no two resemble."""
    drawn = _drawn(subject, LARGE, case["seed"])
    for name, spread in _experts(LARGE).items():
        for e, values in enumerate(drawn[name]):
            _compare_moments(f"{name}[{e}]", values, spread, evidence)
        for a, b in combinations(range(LARGE.num_experts), 2):
            what = f"{name}[{a}] and [{b}]"
            _compare_correlation(what, drawn[name][a], drawn[name][b], evidence)


@check("INIT-04", "initialise", cases=_seeds)
def many_experts_are_drawn_one_by_one(subject: Subject, case: Case, _: Evidence) -> None:
    """No two of 256 small experts are equal."""
    drawn = _drawn(subject, MANY, case["seed"])
    for name in _experts(MANY):
        flat = drawn[name].reshape(MANY.num_experts, -1)
        same(f"{name}: unequal experts", len(np.unique(flat, axis=0)), MANY.num_experts)


def _experts(configuration: Configuration) -> Mapping[str, float]:
    return {one.name: spread for one, spread, _ in _kernels(configuration) if "expert" in one.axes}
