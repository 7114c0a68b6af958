"""Documents to segments and streams as the reference makes them, and draws as they are distributed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmoe_production import documents, draws, noise, objectives
from openmoe_reference import documents as reference
from openmoe_spec.data import MIXTURES, OBJECTIVES, SFT_ENDS
from openmoe_spec.errors import RejectedError

DOCUMENT = st.lists(st.integers(0, 6) | st.integers(0, 2**31 - 1), max_size=12).map(
    lambda ids: np.array(ids, np.int32)
)
DOCUMENTS = st.lists(DOCUMENT, max_size=12)


def same(found, wanted):
    if isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            same(one, other)
        return
    assert found.dtype == np.int32
    assert np.array_equal(found, wanted)


def refusal(function, *arguments, **options):
    """Return the clause by which a call is refused, None where it is not."""
    try:
        function(*arguments, **options)
    except RejectedError as error:
        return error.clause
    return None


@given(DOCUMENTS, st.none() | st.integers(0, 2))
def test_documents_are_joined_as_the_reference_joins_them(given_documents, end):
    before = [one.copy() for one in given_documents]
    found = documents.join_documents(given_documents, end=end)
    same(found, reference.join_documents(given_documents, end=end))
    assert all(map(np.array_equal, given_documents, before))


def test_documents_of_other_integers_and_lists_are_joined():
    given_documents = [[], (1, 2), np.array([3, 4]), np.array([5], np.uint64), np.zeros(0)]
    assert documents.join_documents(given_documents).tolist() == [1, 2, 3, 4, 5]


@given(DOCUMENT, st.integers(1, 15))
def test_blocks_are_those_of_the_reference(tokens, max_length):
    count = documents.num_blocks(len(tokens), max_length=max_length)
    assert count == reference.num_blocks(len(tokens), max_length=max_length)
    for block in range(count):
        same(
            documents.document_block(tokens, block, max_length=max_length),
            reference.document_block(tokens, block, max_length=max_length),
        )
    for block in (-1, count):
        for module in (documents, reference):
            found = refusal(module.document_block, tokens, block, max_length=max_length)
            assert found == "DATA-11"


@pytest.mark.parametrize("length", [2**24, 2**24 + 1, 65536 * 512 + 1, 10**9])
def test_blocks_of_the_longest_documents_are_counted_in_float32(length):
    assert documents.num_blocks(length) == reference.num_blocks(length)


@given(DOCUMENTS, st.integers(0, 5), st.integers(3, 12), st.integers(1, 40), st.data())
def test_segments_are_those_of_the_reference(
    given_documents, objective, inputs_length, max_length, data
):
    joined = np.concatenate([np.zeros(0, int), *given_documents])
    blocks = documents.num_blocks(np.count_nonzero(joined), max_length=max_length)
    how = {
        "inputs_length": inputs_length,
        "block": data.draw(st.integers(0, max(blocks - 1, 0))),
        "max_length": max_length,
    }
    same(
        documents.objective_segments(given_documents, objective, **how),
        reference.objective_segments(given_documents, objective, **how),
    )


@given(DOCUMENTS, st.integers(2, 15))
def test_the_causal_stream_is_that_of_the_reference(given_documents, length):
    same(
        documents.full_lm_segments(given_documents, length=length),
        reference.full_lm_segments(given_documents, length=length),
    )


def test_segments_share_the_memory_of_the_joined_documents():
    text = [np.arange(1, 4000, dtype=np.int32)]
    for found in (
        documents.objective_segments(text, 2, inputs_length=1024),
        documents.full_lm_segments(text, length=1024),
    ):
        assert len(found) > 1
        assert found[0].base is not None
        assert all(one.base is found[0].base for one in found)


@given(st.integers(0, 40), st.integers(0, 5))
def test_groups_are_those_of_the_reference(num_groups, objective):
    found = documents.objective_groups(num_groups, objective)
    assert found == reference.objective_groups(num_groups, objective)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=5), st.data())
def test_streams_are_mixed_as_the_reference_mixes_them(lengths, data):
    choices = data.draw(st.lists(st.integers(0, len(lengths) - 1), max_size=30))
    found = documents.mix_streams(lengths, np.array(choices, np.int32))
    wanted = reference.mix_streams(lengths, choices)
    assert found.dtype == wanted.dtype
    assert found.shape == wanted.shape
    assert np.array_equal(found, wanted)
    assert np.array_equal(documents.mix_streams(np.array(lengths), choices), wanted)


def test_mixtures_are_those_of_the_reference():
    for name in MIXTURES:
        found = documents.mixture(name)
        assert list(found.items()) == list(reference.mixture(name).items())


FIELDS = {"input": "a", "output": "b", "system_prompt": "c", "question": "d", "response": "e"}


@pytest.mark.parametrize("task", SFT_ENDS)
def test_texts_of_fine_tuning_are_those_of_the_reference(task):
    assert documents.sft_texts(task, FIELDS) == reference.sft_texts(task, FIELDS)


# ---- refusals ----------------------------------------------------------------------------------

ONE = [np.arange(5, dtype=np.int32)]
WRONG = [
    ("num_blocks", (-1,), {}),
    ("num_blocks", (5,), {"max_length": 0}),
    ("num_blocks", (5.0,), {}),
    ("document_block", (ONE[0] / 2, 0), {}),
    ("document_block", (ONE[0], True), {}),
    ("document_block", (ONE[0][:0], 0), {}),
    ("join_documents", (ONE[0],), {}),
    ("join_documents", (iter(ONE),), {}),
    ("join_documents", ([ONE],), {}),
    ("join_documents", ([-ONE[0]],), {}),
    ("join_documents", (["text"],), {}),
    ("join_documents", ([ONE[0] > 2],), {}),
    ("join_documents", (ONE,), {"end": -1}),
    ("join_documents", (ONE,), {"end": 1.0}),
    ("objective_groups", (-1, 0), {}),
    ("objective_groups", (9, 6), {}),
    ("objective_segments", (ONE * 129, 0), {"inputs_length": 9}),
    ("objective_segments", (ONE, -1), {"inputs_length": 9}),
    ("objective_segments", (ONE, 0), {"inputs_length": 0}),
    ("objective_segments", (ONE, 5), {"inputs_length": 1}),
    ("objective_segments", (ONE, 5), {"inputs_length": 9, "block": 1}),
    ("objective_segments", (ONE, 5), {"inputs_length": 9, "max_length": 0}),
    ("full_lm_segments", (ONE,), {"length": 1}),
    ("full_lm_segments", ("text",), {"length": 9}),
    ("mix_streams", ([], [0]), {}),
    ("mix_streams", ([1, -1], [0]), {}),
    ("mix_streams", ([1, 2.0], [0]), {}),
    ("mix_streams", ([1, 2], [2]), {}),
    ("mix_streams", ([1, 2], [-1]), {}),
    ("mix_streams", ([1, 2], [0.5]), {}),
    ("mixture", ("mix_all",), {}),
    ("sft_texts", ("alpaca", FIELDS), {}),
    ("sft_texts", ("orca_sft", {"question": "d"}), {}),
    ("sft_texts", ("orca_sft", FIELDS | {"response": 1}), {}),
    ("sft_texts", ("wildchat_gpt4_sft", "text"), {}),
]


@pytest.mark.parametrize(("name", "arguments", "how"), WRONG)
def test_calls_are_refused_by_the_clause_of_the_reference(name, arguments, how):
    clause = refusal(getattr(reference, name), *arguments, **how)
    assert clause is not None
    assert refusal(getattr(documents, name), *arguments, **how) == clause


def test_what_the_reference_stumbles_over_is_refused():
    assert refusal(documents.mixture, ["mix_ul2"]) == "DATA-11"
    assert refusal(documents.mix_streams, 3, [0]) == "DATA-11"
    assert refusal(documents.join_documents, [[1, [2]]]) == "DATA-11"
    assert refusal(documents.join_documents, [np.array([2**31])]) == "DATA-11"


# ---- draws -------------------------------------------------------------------------------------


@given(
    st.integers(0, 5),
    st.lists(st.integers(1, 30), max_size=12),
    st.integers(0, 2**32),
)
def test_draws_of_segments_fit_them_and_follow_from_the_generator(objective, lengths, seed):
    first, second = (
        draws.segment_draws(objective, lengths, np.random.default_rng(seed)) for _ in range(2)
    )
    assert str(first) == str(second)
    assert all(len(one) == len(lengths) for one in first.values())
    objectives.ul2_examples(
        [np.ones(length, np.int32) for length in lengths],
        objective,
        inputs_length=9,
        targets_length=9,
        vocabulary_size=999,
        prompt=[],
        **first,
    )


HOW = {"noise_density": 0.5, "mean_noise_span_length": 3.0}


def evenly(counts, number):
    """Return whether `counts` of equally likely things are within six deviations of their mean."""
    share = 1 / number
    deviation = np.sqrt(counts.sum() * share * (1 - share))
    return len(counts) == number and (abs(counts - counts.sum() * share) < 6 * deviation).all()


def test_masks_are_drawn_uniformly_from_all_pairs_of_cuts():
    masks = draws.draw_noise_masks(12, **HOW, count=20_000, seed=3)
    assert masks.shape == (20_000, 12)
    assert evenly(np.unique(masks, axis=0, return_counts=True)[1], 25)
    # Drawn in segments they are the same ones: two spans of noise that end at any place but the last.
    given = draws.segment_draws(2, [12] * 20_000, np.random.default_rng(3))
    again = noise.noise_masks(12, **HOW, **given)
    assert np.array_equal(masks, again)


def test_splits_blocks_and_objectives_are_drawn_by_their_shares():
    splits = draws.draw_splits(7, count=20_000, seed=1)
    assert evenly(np.bincount(splits)[1:], 6)
    given = draws.segment_draws(5, [7] * 20_000, np.random.default_rng(1))
    assert evenly(np.bincount(given["splits"])[1:], 6)
    blocks = draws.draw_blocks(41, count=20_000, seed=1, max_length=10)
    assert evenly(np.bincount(blocks), 5)
    drawn = np.bincount(draws.draw_objectives(20_000, seed=1), minlength=6) / 20_000
    assert abs(drawn - [one.rate for one in OBJECTIVES]).max() < 0.02


def test_tasks_are_drawn_by_the_shares_of_their_mixture():
    tasks = draws.draw_tasks("mix_ul2_v2", 20_000, seed=1)
    assert isinstance(tasks, tuple)
    for task, share in documents.mixture("mix_ul2_v2").items():
        assert abs(tasks.count(task) / 20_000 - share) < 0.02


@pytest.mark.parametrize(
    ("name", "arguments", "how", "clause"),
    [
        ("draw_noise_masks", (0,), HOW, "OBJ-06"),
        ("draw_splits", (0,), {}, "OBJ-12"),
        ("draw_objectives", (), {}, "OBJ-15"),
        ("draw_blocks", (0,), {}, "DATA-11"),
        ("draw_blocks", (9,), {"max_length": 0}, "DATA-11"),
        ("draw_tasks", ("none",), {}, "DATA-11"),
    ],
)
def test_draws_refuse_wrong_counts_and_seeds(name, arguments, how, clause):
    good = tuple(one or 9 if one != "none" else "mix_ul2" for one in arguments)
    calls = [(good, {"count": 0, "seed": 1}), (good, {"count": 1, "seed": -1})]
    if arguments:
        calls.append((arguments, {"count": 1, "seed": 1}))
    for given_arguments, wrong in calls:
        assert refusal(getattr(draws, name), *given_arguments, **how, **wrong) == clause


def test_seeds_repeat_and_differ():
    for name, arguments, how in (
        ("draw_noise_masks", (30,), HOW),
        ("draw_splits", (1000,), {}),
        ("draw_objectives", (), {}),
        ("draw_blocks", (10**8,), {}),
        ("draw_tasks", ("mix_ul2",), {}),
    ):
        function = getattr(draws, name)
        first, again, other = (
            np.asarray(function(*arguments, **how, count=50, seed=seed)) for seed in (5, 5, 6)
        )
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)
