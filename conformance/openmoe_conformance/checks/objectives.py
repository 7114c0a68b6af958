"""Checks of SPEC.md "Objectives": sentinels, prefixes, whole examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.noise import cut, given
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import same
from openmoe_conformance.data_answers import FEATURES, fields, same_example, same_ids
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import noise, objectives
from openmoe_spec.data import OBJECTIVES, TRANSFORMS, Objective

VOCABULARY, SENTINELS = 1100, 300
SIZES = {"vocabulary_size": VOCABULARY}
_UNIQUE = TRANSFORMS[:2]


def tokens_of(seed: int, length: int, below: int = VOCABULARY - SENTINELS) -> ndarray:
    """Return ids of ordinary pieces."""
    return np.random.default_rng(seed).integers(4, below, length).astype(np.int32)


# ---- the mixture -------------------------------------------------------------------------------

_FIELDS = tuple(asdict(OBJECTIVES[0]))


def _compare_objectives(answer: Any, wanted: tuple[Objective, ...]) -> None:
    try:
        found = list(answer)
    except TypeError as error:
        raise Disagreement("objectives: must be a sequence") from error
    same("number of objectives", len(found), len(wanted))
    for place, (one, other) in enumerate(zip(found, wanted, strict=True)):
        for field, value in asdict(other).items():
            got = one.get(field) if isinstance(one, Mapping) else getattr(one, field, None)
            if got != value:
                raise Disagreement(f"objectives[{place}].{field}: got {got!r}, expected {value!r}")


@check("OBJ-01", "objectives", cases=lambda _: iter([{}]))
def the_training_mixture(subject: Subject, _: Case, __: Evidence) -> None:
    """Six objectives, their rates, spans, densities and modes."""
    _compare_objectives(subject.call("objectives"), OBJECTIVES)


@check("OBJ-01", "objectives(dialect)", cases=lambda _: iter([{}]))
def the_paper_names_no_modes(subject: Subject, _: Case, __: Evidence) -> None:
    """In dialect `paper` there is no text in front of the inputs."""
    answer = subject.call("objectives", dialect="paper")
    _compare_objectives(answer, objectives.objectives("paper"))


# ---- sentinels ---------------------------------------------------------------------------------


@st.composite
def _masked(draw: st.DrawFn) -> Case:
    """Draw tokens and a mask of any form: beginning or ending in noise, empty, all noise."""
    mask = draw(st.lists(st.booleans(), max_size=40) | st.sampled_from(_MASKS))
    return {
        "tokens": tokens_of(draw(st.integers(0, 999)), len(mask)),
        "noise_mask": np.array(mask, bool),
    }


_MASKS: tuple[list[bool], ...] = (
    [],
    [True],
    [False],
    [True] * 5,
    [False] * 5,
    [True, False] * 4,
    [False, True] * 4,
)


def _replaced(subject: Subject, case: Case, transform: str, **options: Any) -> Any:
    mask = case["noise_mask"].astype(bool)
    return subject.call("replace_noise", case["tokens"], mask, transform=transform, **options)


def _compare_replaced(
    subject: Subject, case: Case, transforms: tuple[str, ...], **options: Any
) -> None:
    for name in transforms:
        wanted = objectives.replace_noise(
            case["tokens"], case["noise_mask"].astype(bool), transform=name, **options
        )
        same_ids(name, _replaced(subject, case, name, **options), wanted)


@check("OBJ-07", "replace_noise", cases=_masked())
def runs_become_sentinels_in_turn(subject: Subject, case: Case, _: Evidence) -> None:
    """Runs of noise in the inputs, runs of other tokens in the targets."""
    _compare_replaced(subject, case, _UNIQUE, **SIZES)


@check("OBJ-07", "replace_noise", cases=_masked())
def nothing_is_lost(subject: Subject, case: Case, _: Evidence) -> None:
    """What is no sentinel of inputs and targets is the segment, each token once."""
    found = [np.asarray(_replaced(subject, case, name, **SIZES)) for name in _UNIQUE]
    left = np.concatenate([one[one < VOCABULARY - SENTINELS] for one in found])
    same("tokens in inputs and targets", np.sort(left), np.sort(case["tokens"]))


@check(
    "OBJ-07",
    "replace_noise",
    cases=lambda _: iter(
        [{"tokens": np.array([5, 1099, 6, 7, 8]), "noise_mask": np.array([0, 0, 0, 1, 1], bool)}]
    ),
)
def a_sentinel_of_the_text_is_a_token(subject: Subject, case: Case, _: Evidence) -> None:
    """It is neither refused nor renumbered."""
    _compare_replaced(subject, case, _UNIQUE, **SIZES)


@check("OBJ-08", "replace_noise", cases=_masked())
def the_other_replacements(subject: Subject, case: Case, _: Evidence) -> None:
    """One sentinel for all, a sentinel a token, and leaving out."""
    _compare_replaced(subject, case, TRANSFORMS[2:], **SIZES)


@st.composite
def _crowded(draw: st.DrawFn) -> Case:
    """Draw more runs than there are sentinels, some of them more than there are ids."""
    sentinels, size = draw(st.sampled_from(((3, 40), (0, 12), (10, 40), (10, 20))))
    runs = draw(st.integers(sentinels + 1, sentinels + 30))
    mask = np.tile([False, True], runs)
    return {
        "tokens": tokens_of(draw(st.integers(0, 99)), len(mask), below=max(size - sentinels, 5)),
        "noise_mask": mask,
        "vocabulary_size": size,
        "num_sentinels": sentinels,
    }


def _counted(case: Case) -> dict[str, int]:
    return {name: case[name] for name in ("vocabulary_size", "num_sentinels")}


@check(
    "OBJ-09",
    "rejects_invalid_input",
    "replace_noise(num_sentinels)",
    cases=_crowded(),
)
def too_many_runs_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Unless running on is asked for."""
    what = f"{case['noise_mask'].sum()} runs for {case['num_sentinels']} sentinels"
    for name in _UNIQUE:
        must_reject(what, partial(_replaced, subject, case, name, **_counted(case)))


def _ill_masked(_: Profile) -> Iterator[Case]:
    tokens = tokens_of(0, 6)
    for length in (0, 5, 7):
        yield {"tokens": tokens, "noise_mask": np.zeros(length, bool), "transform": _UNIQUE[0]}
    for wrong in (-1, VOCABULARY, VOCABULARY + 5):
        for name in (_UNIQUE[0], TRANSFORMS[5]):
            changed = np.where(np.arange(6) == 2, wrong, tokens)
            yield {"tokens": changed, "noise_mask": np.zeros(6, bool), "transform": name}
    yield {"tokens": tokens, "noise_mask": np.zeros(6, bool), "transform": "noise_to_nothing"}


@check("OBJ-09", "rejects_invalid_input", "replace_noise", cases=_ill_masked)
def illegal_tokens_and_masks_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """A mask of another length, ids outside the vocabulary, an unknown replacement."""
    must_reject("noise", lambda: _replaced(subject, case, case["transform"], **SIZES))


@check("OBJ-10", "replace_noise(overflow)", "replace_noise(num_sentinels)", cases=_crowded())
def sentinels_run_on(subject: Subject, case: Case, _: Evidence) -> None:
    """Into ordinary pieces, and below 0."""
    _compare_replaced(subject, case, _UNIQUE, **_counted(case), overflow="runs_on")


# ---- PrefixLM ----------------------------------------------------------------------------------


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
