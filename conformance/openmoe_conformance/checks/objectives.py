"""Checks of SPEC.md "Objectives": the mixture, and sentinels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from functools import partial
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import same
from openmoe_conformance.data_answers import same_ids
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import objectives
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
