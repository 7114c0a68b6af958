"""Checks of SPEC.md "Batching": every feature of rows, packed and not, and the traps in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import same
from openmoe_conformance.data_answers import numbers, rows
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import batching

_PLAIN = st.lists(st.integers(2, 99), max_size=7)
_FULL = st.lists(st.integers(2, 99), min_size=1, max_size=7)
"""Ids of a feature; with neither an id 0 nor emptiness, but where a check is about them."""


def _examples(
    inputs: st.SearchStrategy[list[int]] = _PLAIN,
    targets: st.SearchStrategy[list[int]] = _FULL,
    *,
    most: int = 8,
) -> st.SearchStrategy[Case]:
    """Draw examples of inputs and targets, the lengths of which fit into 7 and 7 or a little more."""
    one = st.fixed_dictionaries({"inputs": inputs, "targets": targets})
    return st.fixed_dictionaries(
        {
            "examples": st.lists(one, min_size=1, max_size=most),
            "inputs": st.integers(7, 9),
            "targets": st.integers(7, 9),
        }
    )


Examples = list[dict[str, ndarray]]


def examples_of(case: Case) -> Examples:
    """Return a case's examples as arrays."""
    return [
        {name: np.array(ids, np.int32) for name, ids in one.items()} for one in case["examples"]
    ]


def _compare(
    subject: Subject, case: Case, *features: str, pack: bool, causal: bool = False, **options: Any
) -> dict[str, ndarray]:
    """Compare named features of rows; `causal` leaves out the inputs."""
    names = [f"decoder_{feature}" for feature in features]
    given = examples_of(case)
    lengths = {"targets": case["targets"]}
    if causal:
        given = [{"targets": one["targets"]} for one in given]
    else:
        lengths = {"inputs": case["inputs"], **lengths}
    answer = subject.call("decoder_features", given, lengths=lengths, pack=pack, **options)
    wanted = batching.decoder_features(given, lengths=lengths, pack=pack, **options)
    found = rows("decoder_features", answer, names)
    for name in names:
        same(name, found[name], wanted[name])
    return found


# ---- not packed --------------------------------------------------------------------------------


@check("BATCH-01", "decoder_features", cases=_examples())
def targets_follow_inputs(subject: Subject, case: Case, _: Evidence) -> None:
    """Nothing between them, padding behind both."""
    _compare(subject, case, "target_tokens", pack=False)


@check("BATCH-02", "decoder_features", cases=_examples())
def rows_are_fed_shifted(subject: Subject, case: Case, _: Evidence) -> None:
    """By one, the last target once more in the first padding."""
    _compare(subject, case, "input_tokens", pack=False)


@check("BATCH-02", "decoder_features(start)", cases=_examples())
def rows_begin_with_the_start_token(subject: Subject, case: Case, _: Evidence) -> None:
    """Whatever its id is."""
    _compare(subject, case, "input_tokens", pack=False, start=2)


@check("BATCH-03", "decoder_features", cases=_examples())
def only_targets_have_weights(subject: Subject, case: Case, _: Evidence) -> None:
    """None of the inputs, each of the targets."""
    _compare(subject, case, "loss_weights", pack=False)


@check("BATCH-03", "decoder_features(loss_on_targets_only)", cases=_examples())
def inputs_may_have_weights_too(subject: Subject, case: Case, _: Evidence) -> None:
    """All that is not padding has one."""
    _compare(subject, case, "loss_weights", pack=False, loss_on_targets_only=False)


@check("BATCH-04", "decoder_features", cases=_examples())
def one_position_behind_the_inputs_is_marked(subject: Subject, case: Case, _: Evidence) -> None:
    """Inputs, and the position that is fed their last id."""
    _compare(subject, case, "causal_attention", pack=False)


@check("BATCH-05", "decoder_features", cases=_examples(targets=_PLAIN))
def causal_rows_are_targets_alone(subject: Subject, case: Case, _: Evidence) -> None:
    """Without the feature of prefixes."""
    features = ("target_tokens", "input_tokens", "loss_weights")
    _compare(subject, case, *features, pack=False, causal=True)
    given = [{"targets": one["targets"]} for one in examples_of(case)]
    lengths = {"targets": case["targets"]}
    answer = subject.call("decoder_features", given, lengths=lengths, pack=False)
    if isinstance(answer, Mapping) and "decoder_causal_attention" in answer:
        raise Disagreement("decoder_features: a causal row has decoder_causal_attention")


@check("BATCH-05", "decoder_features(pack)", cases=_examples(targets=_PLAIN, most=20))
def causal_rows_are_packed(subject: Subject, case: Case, _: Evidence) -> None:
    """As others are."""
    features = ("target_tokens", "input_tokens", "loss_weights", "segment_ids", "positions")
    _compare(subject, case, *features, pack=True, causal=True)


# ---- packed ------------------------------------------------------------------------------------


@check("BATCH-06", "decoder_features(pack)", cases=_examples(most=40))
def rows_are_packed_in_order(subject: Subject, case: Case, _: Evidence) -> None:
    """Greedy, one open row, which closes after as many examples as a row has positions."""
    _compare(subject, case, "target_tokens", pack=True)


def _tiny(_: Profile) -> Iterator[Case]:
    for count in (5, 6, 7, 12, 13):
        one = {"inputs": [], "targets": [5]}
        yield {"examples": [one] * count, "inputs": 3, "targets": 3}
    big, small = {"inputs": [7] * 5, "targets": [8] * 5}, {"inputs": [3], "targets": [4]}
    yield {"examples": [small, big, small, big, small, small], "inputs": 6, "targets": 6}


@check("BATCH-06", "decoder_features(pack)", cases=_tiny)
def a_row_closes_with_its_batch(subject: Subject, case: Case, _: Evidence) -> None:
    """Though more would fit; and a row that was closed is not filled up again."""
    _compare(subject, case, "target_tokens", pack=True)


@check("BATCH-07", "decoder_features(pack)", cases=_examples(most=20))
def packed_examples_keep_apart(subject: Subject, case: Case, _: Evidence) -> None:
    """Segments, positions, start tokens, weights and flags of each example are its own."""
    features = ("segment_ids", "positions", "input_tokens", "loss_weights", "causal_attention")
    _compare(subject, case, *features, pack=True)


@check("BATCH-07", "decoder_features(pack)", "decoder_features(start)", cases=_examples(most=20))
def every_packed_example_begins_with_the_start_token(
    subject: Subject, case: Case, _: Evidence
) -> None:
    """So does the padding behind the last one."""
    _compare(subject, case, "input_tokens", pack=True, start=2)


# ---- traps -------------------------------------------------------------------------------------

_ALL = ("target_tokens", "input_tokens", "loss_weights", "causal_attention")
_PACKED = (*_ALL, "segment_ids", "positions")


_ZEROS = _examples(
    inputs=st.lists(st.sampled_from((0, 5, 6)), max_size=7),
    targets=st.lists(st.sampled_from((0, 7, 8)), min_size=1, max_size=7),
)
_EMPTY = _examples(targets=st.lists(st.integers(2, 99), max_size=3), most=12)


@check("BATCH-08", "decoder_features", cases=_ZEROS)
def ids_of_0_among_inputs_get_weights(subject: Subject, case: Case, _: Evidence) -> None:
    """Since weights are an exclusive or."""
    _compare(subject, case, *_ALL, pack=False)


@check("BATCH-08", "decoder_features(pack)", cases=_ZEROS)
def ids_of_0_cut_tails_of_packed_examples(subject: Subject, case: Case, _: Evidence) -> None:
    """Since an example is as long as it has other ids."""
    _compare(subject, case, *_PACKED, pack=True)
    causal = [name for name in _PACKED if name != "causal_attention"]
    _compare(subject, case, *causal, pack=True, causal=True)


@check("BATCH-09", "decoder_features", cases=_EMPTY)
def empty_targets_are_one_id_0(subject: Subject, case: Case, _: Evidence) -> None:
    """Which is seen by the flags alone."""
    _compare(subject, case, *_ALL, pack=False)


@check("BATCH-09", "decoder_features(pack)", cases=_EMPTY)
def empty_targets_shift_what_follows(subject: Subject, case: Case, _: Evidence) -> None:
    """One id 0, which counts in the lengths of the inputs and not among the tokens."""
    _compare(subject, case, *_PACKED, pack=True)


_FITTING = {"inputs": 9, "targets": 9}


def _unfit(_: Profile) -> Iterator[Case]:
    one = {"inputs": [5, 6], "targets": [7, 8]}
    yield {"examples": [one], "lengths": {"inputs": 1, "targets": 9}}
    yield {"examples": [one, one], "lengths": {"inputs": 9, "targets": 1}}
    yield {"examples": [one], "lengths": {"inputs": 9}}
    yield {"examples": [one], "lengths": {"inputs": 9, "targets": 0}}
    yield {"examples": [], "lengths": _FITTING}
    yield from ({"examples": [{name: ids}], "lengths": _FITTING} for name, ids in one.items())


def _reject(subject: Subject, case: Case, **options: Any) -> None:
    given, lengths = examples_of(case), dict(case["lengths"])
    must_reject(
        f"{case['examples']} in {lengths}",
        lambda: subject.call("decoder_features", given, lengths=lengths, **options),
    )


@check("BATCH-10", "rejects_invalid_input", "decoder_features", cases=_unfit)
def examples_that_do_not_fit_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Too long, without a feature, or none at all."""
    _reject(subject, case, pack=False)


@check("BATCH-10", "rejects_invalid_input", "decoder_features(pack)", cases=_unfit)
def nor_are_they_packed(subject: Subject, case: Case, _: Evidence) -> None:
    """Though packing could cut them."""
    _reject(subject, case, pack=True)


# ---- statistics --------------------------------------------------------------------------------


@check("BATCH-11", "feed_statistics", cases=_examples(most=20))
def what_was_fed_is_counted(subject: Subject, case: Case, _: Evidence) -> None:
    """Rows, positions, tokens, loss positions and examples, packed and not."""
    lengths = {"inputs": case["inputs"], "targets": case["targets"]}
    for pack in (False, True):
        features = batching.decoder_features(examples_of(case), lengths=lengths, pack=pack)
        wanted = batching.feed_statistics(features)
        answer = subject.call("feed_statistics", dict(features))
        found = numbers("feed_statistics", answer, tuple(wanted))
        for name, number in wanted.items():
            same(f"{name}, {'packed' if pack else 'not packed'}", found[name], number)
