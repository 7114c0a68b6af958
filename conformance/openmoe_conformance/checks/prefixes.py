"""Checks of SPEC.md "Objectives": PrefixLM."""

from __future__ import annotations

from collections.abc import Iterator

from hypothesis import strategies as st

from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.objectives import tokens_of
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import same
from openmoe_conformance.data_answers import same_example
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import noise, objectives

# ---- bounds ------------------------------------------------------------------------------------


@check(
    "OBJ-11",
    "prefix_bounds(noise_density)",
    cases=st.fixed_dictionaries(
        {
            "length": st.integers(1, 3000),
            "noise_density": st.sampled_from((0.5, 0.25, 0.1, 0.15, 0.0)) | st.floats(0, 0.5),
        }
    ),
)
def prefixes_have_bounds(subject: Subject, case: Case, _: Evidence) -> None:
    """The fewest follow from the density, the most leave one token."""
    density = case["noise_density"]
    answer = subject.call("prefix_bounds", case["length"], noise_density=density)
    same("prefix_bounds", answer, noise.prefix_bounds(case["length"], noise_density=density))


@check(
    "OBJ-11",
    "prefix_bounds",
    cases=lambda _: iter([{"length": length} for length in (1, 2, 3, 11, 1023)]),
)
def half_means_any_prefix(subject: Subject, case: Case, _: Evidence) -> None:
    """At density 0.5 a prefix may have from 1 to all but one token; of one token it has none."""
    length = case["length"]
    answer = subject.call("prefix_bounds", length)
    same("prefix_bounds", answer, (min(1, length - 1), length - 1))


def _prefix_roundings(_: Profile) -> Iterator[Case]:
    """Yield lengths at which float64 would give another shortest prefix."""
    for density in (0.15, 0.1, 0.25, 0.35, 0.45):
        for length in range(3, 2100):
            product = (1 - 2 * density) * (length - 1)
            if max(1, round(product)) != noise.prefix_bounds(length, noise_density=density)[0]:
                yield {"length": length, "noise_density": density}


@check("OBJ-11", "prefix_bounds(noise_density)", cases=_prefix_roundings)
def prefixes_are_counted_in_float32(subject: Subject, case: Case, _: Evidence) -> None:
    """Where float64 gives another number."""
    density = case["noise_density"]
    answer = subject.call("prefix_bounds", case["length"], noise_density=density)
    same("prefix_bounds", answer, noise.prefix_bounds(case["length"], noise_density=density))


@check(
    "OBJ-12",
    "rejects_invalid_input",
    "prefix_bounds(noise_density)",
    cases=lambda _: iter(
        [
            {"length": n, "noise_density": d}
            for n, d in ((10, 0.51), (10, 0.75), (10, 1.0), (10, -0.1), (0, 0.5), (-1, 0.5))
        ]
    ),
)
def impossible_prefixes_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """A density above one half, and an empty text."""
    density = case["noise_density"]
    must_reject(
        f"a prefix of {case}",
        lambda: subject.call("prefix_bounds", case["length"], noise_density=density),
    )


# ---- splits ------------------------------------------------------------------------------------


@check(
    "OBJ-11",
    "split_prefix",
    cases=st.tuples(st.integers(1, 30), st.integers(0, 30), st.integers(0, 99)).map(
        lambda one: {"tokens": tokens_of(one[2], one[0]), "split": min(one[1], one[0])}
    ),
)
def prefixes_are_inputs(subject: Subject, case: Case, _: Evidence) -> None:
    """The first tokens are inputs, the others targets."""
    answer = subject.call("split_prefix", case["tokens"], case["split"])
    same_example("split_prefix", answer, objectives.split_prefix(case["tokens"], case["split"]))


@check(
    "OBJ-12",
    "rejects_invalid_input",
    "split_prefix",
    cases=lambda _: iter([{"length": n, "split": s} for n, s in ((5, 6), (5, -1), (0, 0))]),
)
def impossible_splits_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """A prefix longer than its text, and an empty text."""
    tokens = tokens_of(0, case["length"])
    must_reject(f"split {case}", lambda: subject.call("split_prefix", tokens, case["split"]))
