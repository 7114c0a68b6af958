"""The reference's data side equals `naive_data.py`, the same rules written as loops over lists.

Everything here is whole numbers, so all comparisons are exact. Draws and the pipeline, whose numbers
are the reference's own, are held to what SPEC.md says of them: ranges, equal chances, form.
"""

from __future__ import annotations

import itertools
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import naive_data
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_reference import (
    batching,
    documents,
    draws,
    expectations,
    feeding,
    noise,
    objectives,
    vocabulary,
)
from openmoe_spec.data import MIXTURES, TRANSFORMS
from openmoe_spec.errors import RejectedError

often = settings(derandomize=True, deadline=None, database=None, max_examples=200)
sometimes = settings(often, max_examples=80)

V, SENTINELS = 60, 20  # ids of a small vocabulary, and how many of the last are sentinels


def plain(value: Any) -> Any:
    """Return a result as lists, mappings of lists and numbers of Python."""
    if isinstance(value, Mapping):
        return {name: plain(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [plain(one) for one in value]
    return value.tolist() if isinstance(value, ndarray | np.generic) else value


def array(ids: Iterable[int]) -> ndarray:
    """Return ids as the reference takes them."""
    return np.array(list(ids), np.int32)


# ---------------------------------------------------------------------------- values

densities = st.sampled_from([0.15, 0.5, 0.3, 0.45, 0.85]) | st.floats(0, 1)
means = st.sampled_from([3.0, 8.0, 64.0, 1.0, 1.5]) | st.floats(1, 20)
booleans = st.booleans()


def ids(least: int, most: int, *, length: int = 30) -> st.SearchStrategy[list[int]]:
    """Draw up to `length` whole numbers."""
    return st.lists(st.integers(least, most), max_size=length)


def permutations(size: int) -> st.SearchStrategy[list[int]]:
    """Draw a permutation."""
    return st.permutations(range(size))


@st.composite
def masked(draw: st.DrawFn, length: int, how: Mapping[str, float]) -> dict[str, list[int]]:
    """Draw both permutations of a mask."""
    counts = naive_data.noise_counts(length, **how)
    return {
        f"{kind}_permutation": draw(permutations(counts[f"num_{kind}_tokens"] - 1))
        for kind in ("noise", "nonnoise")
    }


def arrays(drawn: Mapping[str, list[int]]) -> dict[str, ndarray]:
    """Return permutations as the reference takes them."""
    return {name: array(value) for name, value in drawn.items()}


# ---------------------------------------------------------------------------- vocabulary


@often
@given(st.integers(1, 700), st.integers(0, 300), booleans)
def test_a_vocabulary_is_the_naive_one(pieces, sentinels, reverse):
    options = {"num_sentinels": sentinels, "reverse": reverse}
    got = vocabulary.vocabulary(pieces, **options)
    assert plain(got) == naive_data.vocabulary(pieces, **options)


@often
@given(ids(0, 12), st.integers(4, 12), st.integers(0, 3))
def test_decoded_ids_are_the_naive_ones(given_ids, size, unknown):
    options = {"vocabulary_size": size, "unknown": unknown}
    got = vocabulary.decoded_ids(array(given_ids), **options)
    assert plain(got) == naive_data.decoded_ids(given_ids, **options)


# ---------------------------------------------------------------------------- noise


@settings(often, max_examples=500)
@given(st.integers(1, 3000), densities, means | st.floats(0.25, 1))
def test_noise_counts_are_the_naive_ones(length, density, mean):
    how = {"noise_density": density, "mean_noise_span_length": mean}
    wanted = naive_data.noise_counts(length, **how)
    fewest = min(wanted["num_noise_tokens"], wanted["num_nonnoise_tokens"])
    if wanted["num_noise_spans"] > fewest:
        with pytest.raises(RejectedError, match="OBJ-06"):
            noise.noise_counts(length, **how)
    else:
        assert noise.noise_counts(length, **how) == wanted


@often
@given(st.data(), st.integers(1, 20))
def test_run_lengths_are_the_naive_ones(data, tokens):
    runs, order = data.draw(st.integers(1, tokens)), data.draw(permutations(tokens - 1))
    got = noise.run_lengths(tokens, runs, array(order))
    assert plain(got) == naive_data.run_lengths(tokens, runs, order)


@often
@given(st.data(), st.integers(1, 40), st.sampled_from([0.0, 0.15, 0.5, 0.3]), st.floats(1.5, 10))
def test_a_noise_mask_is_the_naive_one(data, length, density, mean):
    how = {"noise_density": density, "mean_noise_span_length": mean}
    drawn, roll = data.draw(masked(length, how)), data.draw(st.integers(0, length))
    got = noise.noise_mask(length, **how, **arrays(drawn), roll=roll)
    assert plain(got) == naive_data.noise_mask(length, **how, **drawn, roll=roll)


@often
@given(
    st.integers(1, 1024),
    st.sampled_from([0.15, 0.5]) | st.floats(0, 0.9),
    means,
    st.integers(0, 1),
    st.integers(0, 2),
)
def test_span_lengths_are_the_naive_ones(inputs_length, density, mean, of_inputs, of_targets):
    options = {
        "noise_density": density,
        "mean_noise_span_length": mean,
        "extra_tokens_per_span_inputs": of_inputs,
        "extra_tokens_per_span_targets": of_targets,
    }
    wanted = naive_data.span_lengths(inputs_length, **options)
    assert noise.span_lengths(inputs_length, **options) == wanted


# ---------------------------------------------------------------------------- objectives


@often
@given(
    st.lists(st.tuples(st.integers(0, V - 1), booleans), max_size=30),
    st.sampled_from(TRANSFORMS),
)
def test_replaced_noise_is_the_naive_one(pairs, transform):
    tokens, mask = [token for token, _ in pairs], [noise for _, noise in pairs]
    wanted = naive_data.replace_noise(tokens, mask, transform=transform, vocabulary_size=V)
    got = objectives.replace_noise(
        array(tokens),
        np.array(mask, bool),
        transform=transform,
        vocabulary_size=V,
        num_sentinels=SENTINELS,
    )
    assert plain(got) == wanted


@often
@given(st.lists(st.tuples(st.integers(0, 3), booleans), max_size=30), booleans, st.integers(0, 4))
def test_more_runs_than_sentinels_are_rejected_or_run_on(pairs, of_noise, sentinels):
    tokens, mask = [token for token, _ in pairs], [noise for _, noise in pairs]
    transform = f"{'' if of_noise else 'non'}noise_span_to_unique_sentinel"
    options = {"transform": transform, "vocabulary_size": 4}
    wanted = naive_data.replace_noise(tokens, mask, **options)

    def got(overflow: str) -> Any:
        found = objectives.replace_noise(
            array(tokens),
            np.array(mask, bool),
            **options,
            num_sentinels=sentinels,
            overflow=overflow,
        )
        return plain(found)

    assert got("runs_on") == wanted
    runs = sum(1 for noise, _ in itertools.groupby(mask) if noise == of_noise)
    if runs > sentinels:
        with pytest.raises(RejectedError, match="OBJ-09"):
            got("rejected")
    else:
        assert got("rejected") == wanted


@often
@given(st.integers(1, 3000), st.sampled_from([0.15, 0.45, 0.5]) | st.floats(0, 0.5))
def test_prefix_bounds_are_the_naive_ones(length, density):
    wanted = naive_data.prefix_bounds(length, noise_density=density)
    assert noise.prefix_bounds(length, noise_density=density) == wanted


@often
@given(ids(0, V - 1).filter(bool), st.data())
def test_a_split_is_the_naive_one(tokens, data):
    split = data.draw(st.integers(0, len(tokens)))
    got = objectives.split_prefix(array(tokens), split)
    assert plain(got) == naive_data.split_prefix(tokens, split)


@often
@given(
    st.tuples(ids(0, V - 1, length=8), ids(0, V - 1, length=8)),
    st.tuples(st.integers(2, 9), st.integers(2, 9)),
    st.none() | ids(2, 9, length=4),
    st.lists(st.sampled_from(["inputs", "targets"]), unique=True),
)
def test_a_finished_example_is_the_naive_one(parts, sizes, prompt, ends):
    options = {"inputs_length": sizes[0], "targets_length": sizes[1], "ends": tuple(ends)}
    mode = None if prompt is None else array(prompt)
    got = objectives.finish_example(*map(array, parts), **options, prompt=mode)
    assert plain(got) == naive_data.finish_example(*parts, **options, prompt=prompt)


@often
@given(st.data(), ids(0, V - 1, length=50).filter(bool), st.integers(0, 5), booleans)
def test_an_example_is_the_naive_one(data, segment, objective, paper):
    sizes = {"inputs_length": data.draw(st.integers(2, 40)), "vocabulary_size": V}
    sizes |= {"targets_length": data.draw(st.integers(2, 40))}
    prompt, dialect = data.draw(ids(2, V - 1, length=4)), "paper" if paper else "t5x"
    split, drawn = None, {}
    if objective == 5:
        fewest, most = naive_data.prefix_bounds(len(segment))
        split = None if paper else data.draw(st.integers(fewest, most))
    else:
        mean, density = naive_data.SPANS[objective]
        how = {"noise_density": density, "mean_noise_span_length": mean}
        drawn = data.draw(masked(len(segment), how))
    options = {**sizes, "split": split, "dialect": dialect}
    got = objectives.ul2_example(
        array(segment),
        objective,
        **options,
        **arrays(drawn),
        prompt=array(prompt),
        num_sentinels=SENTINELS,
    )
    wanted = naive_data.ul2_example(segment, objective, **options, **drawn, prompt=prompt)
    assert plain(got) == wanted


# ---------------------------------------------------------------------------- documents

several = st.lists(ids(0, 9, length=12), max_size=8)


@often
@given(st.integers(0, 400), st.integers(1, 70))
def test_blocks_are_counted_as_the_naive_ones(length, most):
    wanted = naive_data.num_blocks(length, max_length=most)
    assert documents.num_blocks(length, max_length=most) == wanted


@pytest.mark.parametrize(
    "length", [0, 1, 65_536, 65_537, 2**24 - 1, 2**24 + 1, 2**28 + 1, 2**31 + 65_537]
)
def test_blocks_of_long_documents_are_counted_in_float32(length):
    assert documents.num_blocks(length) == naive_data.num_blocks(length)


@often
@given(ids(0, 9).filter(bool), st.integers(1, 12), st.data())
def test_a_block_is_the_naive_one(tokens, most, data):
    last = naive_data.num_blocks(len(tokens), max_length=most) - 1
    block = data.draw(st.integers(0, last))
    got = documents.document_block(array(tokens), block, max_length=most)
    assert plain(got) == naive_data.document_block(tokens, block, max_length=most)


@often
@given(several, st.none() | st.integers(1, 9), st.integers(2, 9))
def test_joined_documents_and_the_causal_stream_are_the_naive_ones(given_ids, end, length):
    texts = [array(one) for one in given_ids]
    got = documents.join_documents(texts, end=end)
    assert plain(got) == naive_data.join_documents(given_ids, end=end)
    made = documents.full_lm_segments(texts, length=length)
    assert plain(made) == naive_data.full_lm_segments(given_ids, length=length)


@often
@given(st.integers(0, 40), st.integers(0, 5))
def test_the_groups_of_an_objective_are_the_naive_ones(count, objective):
    got = documents.objective_groups(count, objective)
    assert list(got) == naive_data.objective_groups(count, objective)


@often
@given(several, st.integers(0, 5), st.integers(3, 12), st.integers(3, 20), st.data())
def test_the_segments_of_an_objective_are_the_naive_ones(texts, objective, length, most, data):
    blocks = naive_data.num_blocks(len(naive_data.join_documents(texts)), max_length=most)
    block = data.draw(st.integers(0, max(blocks - 1, 0)))
    options = {"inputs_length": length, "block": block, "max_length": most}
    got = documents.objective_segments([array(one) for one in texts], objective, **options)
    assert plain(got) == naive_data.objective_segments(texts, objective, **options)


@often
@given(st.lists(st.integers(0, 5), min_size=1, max_size=4), st.data())
def test_mixed_streams_are_the_naive_ones(lengths, data):
    choices = data.draw(ids(0, len(lengths) - 1))
    got = documents.mix_streams(lengths, array(choices))
    assert plain(got) == naive_data.mix_streams(lengths, choices)


@pytest.mark.parametrize("name", MIXTURES)
def test_a_mixture_is_the_naive_one(name):
    assert documents.mixture(name) == naive_data.mixture(name)
    assert math.fsum(naive_data.mixture(name).values()) == pytest.approx(1, abs=1e-15)


texts = st.text(max_size=5)


@often
@given(
    st.fixed_dictionaries({"input": texts, "output": texts}),
    st.fixed_dictionaries({"system_prompt": texts, "question": texts, "response": texts}),
)
def test_fine_tuning_texts_are_the_naive_ones(wildchat, orca):
    for task, fields in (("wildchat_gpt4_sft", wildchat), ("orca_sft", orca)):
        assert documents.sft_texts(task, fields) == naive_data.sft_texts(task, fields)


# ---------------------------------------------------------------------------- batching


@st.composite
def batches(
    draw: st.DrawFn, *, least: int = 0
) -> tuple[list[dict[str, list[int]]], dict[str, Any]]:
    """Draw short examples and the keywords of `decoder_features`; lengths leave little room."""
    lengths = {"targets": draw(st.integers(1, 5))}
    if draw(booleans):
        lengths["inputs"] = draw(st.integers(0, 5))
    parts = {name: ids(least, 4, length=length) for name, length in lengths.items()}
    examples = draw(st.lists(st.fixed_dictionaries(parts), min_size=1, max_size=12))
    options = {"lengths": lengths, "pack": draw(booleans), "start": draw(st.integers(0, 3))}
    return examples, options | {"loss_on_targets_only": draw(booleans)}


def converted(examples: list[dict[str, list[int]]], options: dict[str, Any]) -> dict[str, ndarray]:
    """Return the reference's features."""
    given_ids = [{name: array(one) for name, one in example.items()} for example in examples]
    return dict(batching.decoder_features(given_ids, **options))


@settings(often, max_examples=1000)
@given(batches())
def test_features_are_the_naive_ones(drawn):
    got = converted(*drawn)
    assert {feature.dtype for feature in got.values()} == {np.dtype(np.int32)}
    examples, options = drawn
    assert plain(got) == naive_data.decoder_features(examples, **options)


@often
@given(batches(least=1))
def test_statistics_are_the_naive_ones(drawn):
    # Without any id 0: of an example that begins with one, its segment may be seen nowhere.
    got = converted(*drawn)
    assert batching.feed_statistics(got) == naive_data.feed_statistics(plain(got))


# ---------------------------------------------------------------------------- expectations


@pytest.mark.parametrize("objective", range(6))
@pytest.mark.parametrize(
    "sizes", [(8, 8, 2), (16, 9, 0), (33, 64, 5), (64, 16, 70), (1024, 1024, 5)], ids=str
)
def test_expectations_are_those_of_all_equally_likely_examples(objective, sizes):
    names = "inputs_length", "targets_length", "prompt_length"
    keywords = dict(zip(names, sizes, strict=True))
    got = expectations.of_objective(objective, **keywords)
    wanted = naive_data.expectation(objective, **keywords)
    # A sum of whole numbers is exact, and so is the nearest float of its quotient.
    assert got.tokens == float(wanted["tokens"])
    assert got.loss_positions == float(wanted["loss"])
    assert got.tokens_variance == pytest.approx(float(wanted["tokens_variance"]), rel=1e-12)
    assert got.loss_variance == pytest.approx(float(wanted["loss_variance"]), rel=1e-12)


@pytest.mark.parametrize("sizes", [(16, 9, 2), (64, 64, 5), (1024, 1024, 5)], ids=str)
def test_expectations_of_the_mixture_are_the_naive_ones(sizes):
    names = "inputs_length", "targets_length", "prompt_length"
    keywords = dict(zip(names, sizes, strict=True))
    wanted = naive_data.mixture_expectation(**keywords)
    got = expectations.of_mixture(**keywords)
    assert got == pytest.approx({name: float(one) for name, one in wanted.items()}, rel=1e-14)


# ---------------------------------------------------------------------------- draws


@pytest.mark.parametrize("tokens", range(1, 7))
def test_all_permutations_together_make_every_cut_equally_often(tokens):
    for runs in range(1, tokens + 1):
        found = Counter(
            tuple(noise.run_lengths(tokens, runs, array(order)).tolist())
            for order in itertools.permutations(range(tokens - 1))
        )
        assert len(found) == math.comb(tokens - 1, runs - 1)
        assert len(set(found.values())) == 1
        assert all(len(cut) == runs and sum(cut) == tokens and min(cut) > 0 for cut in found)


def test_drawn_permutations_are_some_of_both_sizes():
    counts = {"num_noise_tokens": 5, "num_nonnoise_tokens": 3}
    found = set()
    for seed in range(200):
        drawn = draws.permutations(np.random.default_rng(seed), counts)
        assert sorted(drawn["noise_permutation"].tolist()) == [0, 1, 2, 3]
        assert sorted(drawn["nonnoise_permutation"].tolist()) == [0, 1]
        found.add(tuple(drawn["noise_permutation"].tolist()))
    assert len(found) == 24


def test_drawn_masks_are_all_that_there_are():
    how = {"noise_density": 0.5, "mean_noise_span_length": 3.0}
    orders = [list(order) for order in itertools.permutations(range(5))]
    known = {
        tuple(naive_data.noise_mask(12, **how, noise_permutation=one, nonnoise_permutation=other))
        for one in orders
        for other in orders
    }
    assert len(known) == 25
    drawn = draws.draw_noise_masks(12, **how, count=400, seed=3)
    assert (drawn.shape, drawn.dtype) == ((400, 12), np.dtype(bool))
    assert {tuple(mask) for mask in drawn.tolist()} == known


DRAWN = {
    "splits": (lambda **how: draws.draw_splits(7, **how), range(1, 7)),
    "splits of one token": (lambda **how: draws.draw_splits(1, **how), [0]),
    "splits of two tokens": (lambda **how: draws.draw_splits(2, **how), [1]),
    "objectives": (draws.draw_objectives, range(6)),
    "blocks": (lambda **how: draws.draw_blocks(21, max_length=5, **how), range(5)),
    "blocks of a whole document": (lambda **how: draws.draw_blocks(65_536, **how), [0]),
    "tasks": (
        lambda **how: draws.draw_tasks("mix_ul2_v2", **how),
        naive_data.mixture("mix_ul2_v2"),
    ),
}


@pytest.mark.parametrize("name", DRAWN)
def test_seeded_draws_reach_all_of_their_range_and_nothing_else(name):
    draw, wanted = DRAWN[name]
    found = plain(draw(count=1000, seed=5))
    assert len(found) == 1000
    assert set(found) == set(wanted)
    assert plain(draw(count=1000, seed=5)) == found
    if len(set(wanted)) > 1:
        assert plain(draw(count=1000, seed=6)) != found


# ---------------------------------------------------------------------------- the pipeline

PROMPTS = [array([2, 10 + objective]) for objective in range(6)]
SIZES = {"inputs_length": 16, "targets_length": 16, "vocabulary_size": 5000}
FIRST, FIRST_SENTINEL = 100, 4700  # documents begin behind the prompts and end before sentinels


def corpus(count: int) -> list[ndarray]:
    """Return documents of 3 to 7 tokens, the id of document d at each being FIRST + d."""
    return [np.full(3 + d % 5, FIRST + d, np.int32) for d in range(count)]


def fed(count: int, rows: int, **options: Any) -> tuple[dict[str, ndarray], int]:
    """Return rows fed from a corpus of `count` documents."""
    keywords = {"seed": 4, "prompts": PROMPTS, **SIZES} | options
    features, state = feeding.feed(corpus(count), count=rows, **keywords)
    return dict(features), state


def examples_of(features: Mapping[str, ndarray]) -> list[tuple[list[int], list[int]]]:
    """Return inputs and targets of every example in the rows, in order."""
    found = []
    for targets, segment, loss in zip(
        *(features[f"decoder_{name}"] for name in ("target_tokens", "segment_ids", "loss_weights")),
        strict=True,
    ):
        for number in range(1, segment.max() + 1):
            of_it = segment == number
            parts = targets[of_it & (loss == 0)], targets[of_it & (loss == 1)]
            found.append((parts[0].tolist(), parts[1].tolist()))
    return found


MANY = 6 * 128  # documents that make a group for each objective


def test_a_stopped_pipeline_goes_on_with_the_row_it_would_have_fed():
    # More rows than one batch of the packing has examples.
    rows = 40
    whole, end = fed(MANY, rows)
    assert end == rows
    for stop in (1, 13, 32, 39):
        head, state = fed(MANY, stop)
        tail, last = fed(MANY, rows - stop, state=state)
        assert last == end
        for name, wanted in whole.items():
            np.testing.assert_array_equal(np.concatenate([head[name], tail[name]]), wanted)


def test_the_seed_decides_what_is_fed():
    one, same, other = (fed(MANY, 12, seed=seed)[0] for seed in (4, 4, 5))
    assert plain(one) == plain(same)
    assert plain(one) != plain(other)


def texts_of(features: Mapping[str, ndarray]) -> set[int]:
    """Return the documents that rows hold something of."""
    tokens = np.unique(features["decoder_target_tokens"])
    return set((tokens[(tokens >= FIRST) & (tokens < FIRST_SENTINEL)] - FIRST).tolist())


def test_processes_see_documents_of_their_own_and_together_all():
    count, processes = 3 * MANY, 3
    seen = [
        texts_of(fed(count, 900, process=process, num_processes=processes)[0])
        for process in range(processes)
    ]
    assert [{document % processes for document in one} for one in seen] == [{0}, {1}, {2}]
    assert set.union(*seen) == set(range(count))


def test_every_example_has_the_form_of_its_objective():
    features, _ = fed(MANY, 200)
    objectives_seen = Counter()
    for inputs, targets in examples_of(features):
        objective = inputs[1] - 10
        objectives_seen[objective] += 1
        assert inputs[:2] == PROMPTS[objective].tolist()
        assert inputs[-1] == targets[-1] == 1
        assert max(len(inputs), len(targets)) <= 16
        sentinels = [token for token in inputs + targets if token >= FIRST_SENTINEL]
        if objective == 5:
            assert not sentinels
            assert 1 <= len(inputs) - 3 + len(targets) - 1 <= 15
        else:
            assert targets[0] == 4999
            of_targets = [token for token in targets if token >= FIRST_SENTINEL]
            assert of_targets == [4999 - j for j in range(len(of_targets))]
        # Objective i is fed from groups i, i + 6 ... of 128 documents.
        texts = {token - FIRST for token in inputs + targets if FIRST <= token < FIRST_SENTINEL}
        assert {text // 128 % 6 for text in texts} <= {objective}
    assert set(objectives_seen) == set(range(6))
    assert objectives_seen[5] > sum(objectives_seen.values()) / 3


def test_an_objective_whose_groups_have_ended_begins_anew_with_them():
    # One group, so one objective; without prompts nothing is cut off a segment of spans.
    features, _ = fed(40, 60, prompts=[array([])] * 6)
    mean, density = naive_data.SPANS[0]
    length = naive_data.span_lengths(16, noise_density=density, mean_noise_span_length=mean)
    joined = naive_data.join_documents([one.tolist() for one in corpus(40)])
    wanted = naive_data.segments(joined, length["tokens_length"])
    found = [
        sorted(token for token in inputs + targets if FIRST <= token < FIRST_SENTINEL)
        for inputs, targets in examples_of(features)
    ]
    assert len(found) > 2 * len(wanted)
    assert found == [wanted[place % len(wanted)] for place in range(len(found))]


def test_an_objective_without_any_group_is_passed_over():
    features, _ = fed(3 * 128, 40)
    assert {inputs[1] - 10 for inputs, _ in examples_of(features)} == {0, 1, 2}
