"""Checks of SPEC.md "Decoding": choosing a token, from logits whose every sum is exact.

Logits and noise lie on a dyadic grid, temperatures are powers of two: a token is right or wrong.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.strategies import small_integers
from openmoe_conformance.subject import Subject
from openmoe_reference import sampling

VOCABULARY = 8
LEAST = sampling.LEAST_TEMPERATURE


@st.composite
def _draws(draw: st.DrawFn, *, temperatures: tuple[float, ...] = (0.5, 1.0, 2.0)) -> Case:
    """Draw logits with many ties, noise that decides all others, and a temperature."""
    rows = draw(st.sampled_from((1, 4)))
    logits = draw(small_integers((rows, VOCABULARY), -3, 3)).astype(np.float32) / 2
    noise = draw(small_integers((rows, VOCABULARY), -8, 8)).astype(np.float32) / 2
    # Coarser than 2^-4, what is compared never ties: each id adds its own number of 2^-10.
    noise += np.arange(VOCABULARY, dtype=np.float32) / 1024
    return {
        "logits": logits,
        "noise": noise,
        "temperature": draw(st.sampled_from(temperatures)),
    }


def _sampled(subject: Subject, case: Case, **options: Any) -> ndarray:
    logits = case["logits"]
    answer = subject.call("sample", logits, **options)
    return answers.whole("sample", answer, logits.shape[:1], below=logits.shape[1])


def _compare(subject: Subject, case: Case, **cuts: Any) -> None:
    options = {"noise": case["noise"], "temperature": case["temperature"], **cuts}
    wanted = sampling.sample(case["logits"], **options)
    same("tokens", _sampled(subject, case, **options), wanted)


# ---- greedy ------------------------------------------------------------------------------------


@check("DEC-08", "sample(temperature)", cases=_draws(temperatures=(0.0, 5e-5, LEAST)))
def the_first_of_the_largest_logits_is_taken(subject: Subject, case: Case, _: Evidence) -> None:
    """At a temperature of 1e-4 or less, and without noise."""
    got = _sampled(subject, case, temperature=case["temperature"])
    same("tokens", got, case["logits"].argmax(axis=-1))


@check(
    "DEC-08",
    "sample(noise)",
    "sample(temperature)",
    "sample(top_k)",
    "sample(top_p)",
    cases=_draws(temperatures=(0.0, LEAST)),
)
def greedy_looks_at_nothing_else(subject: Subject, case: Case, _: Evidence) -> None:
    """Noise and cuts change nothing at a temperature of 1e-4 or less."""
    for cut in ({}, {"top_k": 3}, {"top_p": 0.5}):
        options = {"noise": case["noise"], "temperature": case["temperature"], **cut}
        same(f"tokens with {cut}", _sampled(subject, case, **options), case["logits"].argmax(-1))


@check("DEC-08", "sample(noise)", "sample(temperature)", cases=_draws(temperatures=(2.0**-13,)))
def above_the_limit_noise_decides(subject: Subject, case: Case, _: Evidence) -> None:
    """At 1.22e-4 equal logits are told apart by the noise."""
    _compare(subject, case | {"logits": np.zeros_like(case["logits"])})


# ---- noise and cuts ----------------------------------------------------------------------------


@check("DEC-11", "sample(noise)", "sample(temperature)", cases=_draws())
def noise_is_added_to_the_divided_logits(subject: Subject, case: Case, _: Evidence) -> None:
    """The largest logit / temperature + noise."""
    _compare(subject, case)


@check(
    "DEC-12",
    "sample(noise)",
    "sample(temperature)",
    "sample(top_k)",
    cases=st.tuples(_draws(), st.integers(1, VOCABULARY)).map(lambda one: one[0] | {"k": one[1]}),
)
def equals_of_the_kth_largest_stay(subject: Subject, case: Case, _: Evidence) -> None:
    """What is smaller than the k-th largest is hidden from the noise, its equals are not."""
    _compare(subject, case, top_k=case["k"])


PROBABILITIES = (1 / 2, 1 / 4, 1 / 16, 1 / 16, 1 / 16, 1 / 32, 1 / 64, 1 / 64)
"""After the temperature. Cuts lie between their sums, so no rounding of a softmax matters."""

CUTS = (0.25, 0.625, 0.78, 0.85, 0.9, 0.95, 0.975, 0.99)


def _masses(profile: Profile) -> Iterator[Case]:
    for seed in range(profile.examples // 25):
        generator = np.random.default_rng(seed)
        for cut in CUTS:
            for temperature in (0.5, 1.0, 2.0):
                places = np.stack([generator.permutation(VOCABULARY) for _ in range(16)])
                logits = np.log(np.take(PROBABILITIES, places)) * temperature
                noise = generator.uniform(-1, 1, places.shape)
                # One id of each row is tempting: it wins exactly when it is not hidden.
                noise[np.arange(16), np.arange(16) % VOCABULARY] = 30
                yield {
                    "logits": logits.astype(np.float32),
                    "noise": noise.astype(np.float32),
                    "temperature": temperature,
                    "top_p": cut,
                }
        yield _all_in_one()


def _all_in_one() -> Case:
    """Return a row whose first id has all the mass: with top_p 1 that is enough, exactly."""
    noise = np.arange(VOCABULARY, dtype=np.float32)[None] * 1000
    logits = np.where(noise > 0, np.float32(-200), np.float32(0))
    return {"logits": logits, "noise": noise, "temperature": 1.0, "top_p": 1.0}


@check("DEC-13", "sample(noise)", "sample(temperature)", "sample(top_p)", cases=_masses)
def the_fewest_that_hold_the_mass_stay(subject: Subject, case: Case, _: Evidence) -> None:
    """Their mass after the temperature is top_p or more; equals of the least of them stay."""
    _compare(subject, case, top_p=case["top_p"])


# ---- what must be rejected ---------------------------------------------------------------------


def _illegal(_: Profile) -> Iterator[Case]:
    for value in (np.nan, np.inf, -np.inf):
        yield {"wrong": "logit", "value": value}
    for option, values in {
        "temperature": (-1.0, -1e-3, np.nan),
        "top_k": (-1, VOCABULARY + 1),
        "top_p": (-0.1, 1.5, np.nan),
    }.items():
        yield from ({"wrong": option, "value": value} for value in values)
    yield {"wrong": "both cuts", "value": 3}


@check(
    "DEC-10",
    "rejects_invalid_input",
    "sample(noise)",
    "sample(temperature)",
    "sample(top_k)",
    "sample(top_p)",
    cases=_illegal,
)
def illegal_draws_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Logits that are not finite and options outside their ranges raise: none becomes a token."""
    logits = np.zeros((2, VOCABULARY), np.float32)
    options: dict[str, Any] = {"noise": np.zeros_like(logits), "temperature": 1.0}
    if case["wrong"] == "logit":
        logits[1, 5] = case["value"]
    elif case["wrong"] == "both cuts":
        options |= {"top_k": 3, "top_p": 0.5}
    else:
        options[case["wrong"]] = case["value"]
    must_reject(
        f"sample with {case['wrong']} {case['value']}",
        lambda: subject.call("sample", logits, **options),
    )


@check(
    "DEC-10",
    "rejects_invalid_input",
    "sample(temperature)",
    cases=lambda _: iter([{"value": value} for value in (np.nan, np.inf, -np.inf)]),
)
def not_a_number_is_no_greedy_token(subject: Subject, case: Case, _: Evidence) -> None:
    """Nor does a logit that is not finite become one at a temperature of 0."""
    logits = np.zeros((2, VOCABULARY), np.float32)
    logits[0, 3] = case["value"]
    must_reject(
        f"greedy choice with a logit of {case['value']}",
        lambda: subject.call("sample", logits, temperature=0.0),
    )
