"""Rows are those of the reference, all at once and from a stream that is stopped anywhere."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmoe_production import batching
from openmoe_reference import batching as reference
from openmoe_spec.errors import RejectedError

IDS = st.integers(1, 9) | st.sampled_from([0, 1, 2**31 - 1])


def features_of(length):
    return st.lists(IDS, max_size=length).map(lambda ids: np.array(ids, np.int32))


@st.composite
def given_examples(draw, most=30):
    """Return lengths and examples that fit, with zeros inside and parts that are empty."""
    sizes = {"inputs": draw(st.integers(0, 5)), "targets": draw(st.integers(1, 5))}
    if draw(st.booleans()):
        del sizes["inputs"]
    parts = {name: features_of(length) for name, length in sizes.items()}
    return sizes, draw(st.lists(st.fixed_dictionaries(parts), min_size=1, max_size=most))


def same(found, wanted):
    assert list(found) == list(wanted)
    for name, rows in wanted.items():
        assert found[name].dtype == np.int32
        assert np.array_equal(found[name], rows), name


def refusal(function, *arguments, **options):
    """Return the clause by which a call is refused, None where it is not."""
    try:
        function(*arguments, **options)
    except RejectedError as error:
        return error.clause
    return None


@given(given_examples(), st.booleans(), st.booleans(), st.sampled_from([0, 7]))
def test_rows_are_those_of_the_reference(lengths_and_examples, pack, on_targets, start):
    lengths, examples = lengths_and_examples
    how = {"lengths": lengths, "pack": pack, "loss_on_targets_only": on_targets, "start": start}
    found = batching.decoder_features(examples, **how)
    same(found, reference.decoder_features(examples, **how))
    assert batching.feed_statistics(found) == reference.feed_statistics(found)


@pytest.mark.parametrize("longest", [30, 400, 1024])
@pytest.mark.parametrize("pack", [True, False])
def test_rows_at_the_trained_lengths_are_those_of_the_reference(longest, pack):
    generator = np.random.default_rng(longest)
    examples = [
        {
            name: generator.integers(generator.integers(2), 256_300, size)
            for name, size in zip(("inputs", "targets"), sizes, strict=True)
        }
        for sizes in generator.integers(0, longest, (300, 2))
    ]
    for lengths in ({"inputs": 1024, "targets": 1024}, {"targets": 2048}):
        how = {"lengths": lengths, "pack": pack}
        same(
            batching.decoder_features(examples, **how), reference.decoder_features(examples, **how)
        )


def test_a_batch_of_the_packing_ends_after_as_many_examples_as_a_row_has_positions():
    examples = [{"targets": np.array([i + 1])} for i in range(3)] + [{"targets": np.zeros(0, int)}]
    how = {"lengths": {"targets": 4}, "pack": True}
    found = batching.decoder_features(examples * 3, **how)
    assert found["decoder_target_tokens"].tolist() == [[1, 2, 3, 0]] * 3
    same(found, reference.decoder_features(examples * 3, **how))


def test_examples_may_be_lists_of_any_integers_and_hold_other_features():
    examples = ({"targets": [3, 4], "inputs": np.array([5], np.uint64), "text": "abc"},)
    found = batching.decoder_features(examples, lengths={"targets": 3, "inputs": 2}, pack=True)
    assert found["decoder_target_tokens"].tolist() == [[5, 3, 4, 0, 0]]
    wanted = reference.decoder_features(examples, lengths={"targets": 3, "inputs": 2}, pack=True)
    same(found, wanted)


# ---- from a stream -----------------------------------------------------------------------------


def streamed(packer, examples):
    for one in examples:
        packer.add(one)
    return packer


@given(given_examples(), st.booleans(), st.sampled_from([0, 7]), st.data())
def test_a_stream_gives_the_same_rows_wherever_it_is_stopped(
    lengths_and_examples, on_targets, start, data
):
    lengths, examples = lengths_and_examples
    how = {"lengths": lengths, "loss_on_targets_only": on_targets, "start": start}
    packer = batching.Packer(**how)
    stop = data.draw(st.integers(0, len(examples)))
    first = data.draw(st.integers(0, streamed(packer, examples[:stop]).closed))
    begun = [packer.take(first)] if first else []
    state = packer.state
    text = json.dumps(state)
    assert json.loads(text) == state == pickle.loads(pickle.dumps(state))  # noqa: S301
    ends = [packer, batching.Packer(**how, state=json.loads(text))]
    for one in ends:
        streamed(one, examples[stop:]).close()
    # What was fed behind a state does not change it.
    assert json.dumps(state) == text
    assert ends[0].closed == ends[1].closed
    wanted = reference.decoder_features(examples, pack=True, **how)
    for end in ends:
        parts = begun + ([end.take(end.closed)] if end.closed else [])
        same({name: np.concatenate([one[name] for one in parts]) for name in wanted}, wanted)


@given(given_examples(most=12))
def test_a_row_is_given_as_soon_as_it_is_closed(lengths_and_examples):
    lengths, examples = lengths_and_examples
    length = sum(lengths.values())
    packer = batching.Packer(lengths=lengths)
    for place, one in enumerate(examples):
        packer.add(one)
        so_far = examples[: place + 1]
        whole = reference.decoder_features(so_far, lengths=lengths, pack=True)
        still_open = (place + 1) % length != 0
        assert packer.closed == len(whole["decoder_target_tokens"]) - still_open
        assert bool(packer.state["open"]) == still_open
    closed = packer.closed
    packer.close()
    assert packer.closed == closed + (len(examples) % length != 0)
    packer.close()
    assert len(packer.take(10**6)["decoder_target_tokens"]) == packer.closed + closed + (
        len(examples) % length != 0
    )
    assert refusal(packer.take, 1) == "BATCH-10"


STATE = {"taken": 1, "open": [[[3, 4], 2, 0]], "closed": [[[[5], 1, 0], [[6], 1, 0]]]}


@pytest.mark.parametrize(
    "change",
    [
        {"taken": 4},
        {"taken": -1},
        {"taken": None},
        {"taken": 0},
        {"open": [[[3, 4], 5, 0]]},
        {"open": [[[3, 4], 1, 0]]},
        {"open": [[[3, 4], 2, 3]]},
        {"open": [[[3, 4], 2]]},
        {"open": [[[3, -4], 2, 0]]},
        {"open": [[3, 2, 0]]},
        {"open": [[[3, 4], 2, 0.5]]},
        {"open": None},
        {"taken": 2, "open": [[[1], 3, 0], [[2], 2, 0]]},
        {"closed": None},
        {"closed": [[[[3, 4], 5, 0]]]},
        {"closed": [3]},
    ],
)
def test_a_state_that_never_was_is_refused(change):
    packer = batching.Packer(lengths={"targets": 4}, state=STATE)
    assert packer.state == STATE
    packer.add({"targets": [5, 6, 7]})
    assert packer.take(2)["decoder_target_tokens"].tolist() == [[5, 6, 0, 0], [3, 4, 0, 0]]
    assert refusal(batching.Packer, lengths={"targets": 4}, state=STATE | change) == "BATCH-10"
    assert refusal(batching.Packer, lengths={"targets": 4}, state=[STATE]) == "BATCH-10"


# ---- refusals ----------------------------------------------------------------------------------

PAIR = {"inputs": np.array([1, 2]), "targets": np.array([3])}
WRONG = [
    {"examples": []},
    {"examples": PAIR},
    {"examples": iter([PAIR])},
    {"examples": "text"},
    {"examples": [PAIR, {"inputs": PAIR["inputs"]}]},
    {"examples": [PAIR, None]},
    {"examples": [PAIR | {"targets": np.array([-1])}]},
    {"examples": [PAIR | {"targets": np.array([-1], np.int32)}]},
    {"examples": [PAIR | {"targets": np.array([1.0])}]},
    {"examples": [PAIR | {"targets": np.array([[1]])}]},
    {"examples": [PAIR | {"targets": 1}]},
    {"examples": [PAIR | {"targets": np.array([1, 2, 3])}]},
    {"examples": [PAIR | {"inputs": np.array([1, 2, 3, 4])}]},
    {"lengths": {"inputs": 3}},
    {"lengths": {"inputs": 3, "targets": 0}},
    {"lengths": {"inputs": -1, "targets": 2}},
    {"lengths": {"inputs": 3.0, "targets": 2}},
    {"lengths": {"targets": 2, "other": 2}},
    {"lengths": 5},
    {"start": -1},
    {"start": True},
]


@pytest.mark.parametrize("change", WRONG)
@pytest.mark.parametrize("pack", [True, False])
def test_what_is_no_row_is_refused_by_the_clause_of_the_reference(change, pack):
    call = {"examples": [PAIR], "lengths": {"inputs": 3, "targets": 2}, "pack": pack} | change
    examples = call.pop("examples")
    assert refusal(reference.decoder_features, examples, **call) == "BATCH-10"
    assert refusal(batching.decoder_features, examples, **call) == "BATCH-10"


@pytest.mark.parametrize(
    "features",
    [
        None,
        {},
        {"decoder_target_tokens": np.zeros((1, 2), int)},
        {"decoder_target_tokens": np.zeros(2, int), "decoder_loss_weights": np.zeros(2, int)},
    ],
)
def test_statistics_of_no_rows_are_refused(features):
    for module in (batching, reference):
        assert refusal(module.feed_statistics, features) == "BATCH-10"
