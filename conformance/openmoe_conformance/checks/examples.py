"""Checks of SPEC.md "Objectives": finishing, and whole examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.noise import cut, given
from openmoe_conformance.checks.objectives import SENTINELS, SIZES, VOCABULARY, tokens_of
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.data_answers import FEATURES, fields, same_example
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import noise, objectives
from openmoe_spec.data import OBJECTIVES

# ---- finishing ---------------------------------------------------------------------------------


@st.composite
def _unfinished(draw: st.DrawFn) -> Case:
    """Draw inputs and targets around their lengths, and a mode."""
    inputs, targets = draw(st.integers(2, 12)), draw(st.integers(2, 12))
    seed = draw(st.integers(0, 99))
    return {
        "inputs": tokens_of(seed, draw(st.integers(0, 14))),
        "targets": tokens_of(seed + 1, draw(st.integers(0, 14))),
        "prompt": tokens_of(seed + 2, draw(st.integers(0, 5))),
        "inputs_length": inputs,
        "targets_length": targets,
    }


def _finish(subject: Subject, case: Case, **options: Any) -> tuple[Any, Mapping[str, ndarray]]:
    arrays = case["inputs"], case["targets"]
    options |= {name: case[name] for name in ("inputs_length", "targets_length", "prompt")}
    answer = subject.call("finish_example", *arrays, **options)
    return answer, objectives.finish_example(*arrays, **options)


@check("OBJ-13", "finish_example(prompt)", cases=_unfinished())
def modes_come_first_and_ends_last(subject: Subject, case: Case, _: Evidence) -> None:
    """The mode in front, both cut so that the end fits."""
    same_example("finish_example", *_finish(subject, case))


@check(
    "DATA-10",
    "finish_example(ends)",
    cases=st.tuples(_unfinished(), st.sampled_from(((), ("targets",), ("inputs",)))).map(
        lambda one: one[0] | {"prompt": np.zeros(0, np.int32), "ends": one[1]}
    ),
)
def ends_stand_only_where_the_task_has_them(subject: Subject, case: Case, _: Evidence) -> None:
    """Without an end a feature is cut to its whole length."""
    same_example("finish_example", *_finish(subject, case, ends=tuple(case["ends"])))


# ---- whole examples ----------------------------------------------------------------------------


@st.composite
def _segments(draw: st.DrawFn) -> Case:
    """Draw a segment of an objective, whole or short, and what is drawn for it."""
    objective = draw(st.integers(0, len(OBJECTIVES) - 1))
    inputs = draw(st.sampled_from((64, 128)))
    return segment_case(
        objective,
        inputs,
        seed=draw(st.integers(0, 2**16)),
        length=draw(st.none() | st.integers(1, inputs)),
        prompt_length=draw(st.integers(0, 6)),
    )


def segment_case(
    objective: int, inputs: int, *, seed: int, length: int | None = None, prompt_length: int = 5
) -> Case:
    """Return a case of `ul2_example`; a length of None is that of a whole segment."""
    made = OBJECTIVES[objective]
    case: Case = {"objective": objective, "inputs_length": inputs, "targets_length": inputs}
    case["prompt"] = tokens_of(seed + 1, prompt_length)
    if made.mean_noise_span_length is None:
        length = length or inputs - 1
        least, most = noise.prefix_bounds(length)
        case["split"] = int(np.random.default_rng(seed).integers(least, most + 1))
    else:
        density, mean = made.noise_density, made.mean_noise_span_length
        longest = noise.span_lengths(inputs, noise_density=density, mean_noise_span_length=mean)
        length = length or longest["tokens_length"]
        drawn = cut(length, density, mean, seed)
        case |= {name: drawn[name] for name in given(drawn) if name.endswith("permutation")}
    return case | {"segment": tokens_of(seed, length)}


def example(subject: Subject, case: Case, **options: Any) -> tuple[Any, Mapping[str, ndarray]]:
    """Return the implementation's example of a case, and the reference's."""
    arrays, named = (case["segment"], case["objective"]), _named(case) | SIZES | options
    answer = subject.call("ul2_example", *arrays, **named)
    return answer, objectives.ul2_example(*arrays, **named)


def _named(case: Case) -> dict[str, Any]:
    return {name: value for name, value in case.items() if name not in ("segment", "objective")}


@check("OBJ-14", "ul2_example", cases=_segments())
def examples_are_made_of_segments(subject: Subject, case: Case, _: Evidence) -> None:
    """Of every objective, of whole segments and of short ones."""
    same_example("ul2_example", *example(subject, case))


def _whole(profile: Profile) -> Iterator[Case]:
    for objective in range(len(OBJECTIVES)):
        for seed in range(max(1, profile.examples // 25)):
            yield segment_case(objective, 1024, seed=seed)
    for length in (190, 670):  # in float64 these have one token of noise less
        yield from (segment_case(objective, 1024, seed=9, length=length) for objective in (0, 1))


@check("OBJ-14", "ul2_example", cases=_whole)
def whole_segments_of_the_training_run(subject: Subject, case: Case, _: Evidence) -> None:
    """At 1024 + 1024: the example, and the last sentinel that spans lack in their inputs."""
    answer, wanted = example(subject, case)
    same_example("ul2_example", answer, wanted)
    if not OBJECTIVES[case["objective"]].is_prefix and len(case["segment"]) > 1024:
        found = fields("ul2_example", answer, FEATURES)
        last = [
            int(np.asarray(found[name])[:-1].min(where=_sentinel(found[name]), initial=9999))
            for name in FEATURES
        ]
        if not last[0] > last[1]:
            raise Disagreement("ul2_example: the last sentinel stands in the inputs")


def _sentinel(ids: Any) -> ndarray:
    return np.asarray(ids)[:-1] >= VOCABULARY - SENTINELS


@check("OBJ-14", "ul2_example(dialect)", cases=_segments())
def the_papers_examples(subject: Subject, case: Case, _: Evidence) -> None:
    """In dialect `paper`: no mode, and a prefix of half of the tokens."""
    same_example("ul2_example", *example(subject, case, dialect="paper"))


def _impossible(_: Profile) -> Iterator[Case]:
    spans, prefix = segment_case(0, 64, seed=0), segment_case(5, 64, seed=0)
    for one in (spans, prefix):
        for name in ("inputs_length", "targets_length"):
            yield one | {name: 1}
        yield one | {"segment": np.zeros(0, np.int32)}
        yield one | {"objective": -1}
        yield one | {"objective": 6}
    for name in ("noise_permutation", "nonnoise_permutation"):
        yield {key: value for key, value in spans.items() if key != name}
    yield {key: value for key, value in prefix.items() if key != "split"}
    for split in (0, 63, 64, -1):
        yield prefix | {"split": split}


@check("OBJ-15", "rejects_invalid_input", "ul2_example", cases=_impossible)
def impossible_examples_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """No room, no segment, no such objective, no draws or illegal ones."""
    arrays, named = (case["segment"], case["objective"]), _named(case)
    what = {name: value for name, value in named.items() if not isinstance(value, ndarray)}
    must_reject(
        f"objective {case['objective']} of {len(case['segment'])} tokens, {what}",
        lambda: subject.call("ul2_example", *arrays, **SIZES, **named),
    )
