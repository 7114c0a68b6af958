"""The surprises of SPEC.md chapter 25, of GROUP-10 and of the training data, as examples that run.

The router's weights are the unit matrix, so a token's inputs are its logits; experts are fixed.
"""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from numpy import ndarray

from openmoe_reference import batching, documents, draws, grouping, moe, noise, objectives
from openmoe_spec import clauses
from openmoe_spec.config import BASE, LARGE, XL
from openmoe_spec.data import OBJECTIVES
from openmoe_spec.records import LayerResult

HIDDEN = 2  # F of the experts


def parameters(experts: int, seed: int = 0) -> dict[str, ndarray]:
    """Return weights of a layer whose logits are its inputs: D = E."""
    generator = np.random.default_rng(seed)
    return {
        "router": np.eye(experts, dtype=np.float32),
        "wi_0": generator.normal(size=(experts, experts, 2 * HIDDEN)).astype(np.float32),
        "wi_1": generator.normal(size=(experts, experts, HIDDEN)).astype(np.float32),
        "wo": generator.normal(size=(experts, HIDDEN, experts)).astype(np.float32),
    }


def tokens_that_choose(*choices: tuple[int, ...], experts: int) -> ndarray:
    """Return one token [D] a tuple of experts, best first; every other expert is worse."""
    rows = np.zeros((len(choices), experts), np.float32)
    for row, chosen in zip(rows, choices, strict=True):
        row[list(chosen)] = np.arange(len(chosen), 0, -1)
    return rows


def run(inputs: ndarray, *, k: int, capacity: int, **options: Any) -> LayerResult:
    """Apply the layer to one group of tokens [T, D]."""
    experts = inputs.shape[-1]
    return moe.moe(inputs[None], parameters(experts), k=k, capacity=capacity, **options)


# ---------------------------------------------------------------------------- SURP-01: not causal

FIRST = (0, 1)  # the earlier token's first and second choice
RIVAL = (1, 2)  # a later token whose first choice is the earlier one's second
STRANGER = (2, 3)  # a later token that chooses other experts


def test_a_later_first_choice_takes_the_slot_of_an_earlier_second_choice():
    before = run(tokens_that_choose(FIRST, STRANGER, experts=4), k=2, capacity=1)
    after = run(tokens_that_choose(FIRST, RIVAL, experts=4), k=2, capacity=1)
    assert before.decision.expert_index[0, 0].tolist() == [0, 1]
    assert before.decision.kept[0, 0].tolist() == [True, True]
    assert after.decision.expert_index[0, 0].tolist() == [0, 1]
    assert after.decision.kept[0, 0].tolist() == [True, False]
    assert after.decision.position[0, 0].tolist() == [0, 1]
    assert (before.output[0, 0] != after.output[0, 0]).any()


def test_with_ample_capacity_a_later_token_changes_nothing_before_it():
    before = run(tokens_that_choose(FIRST, STRANGER, experts=4), k=2, capacity=2)
    after = run(tokens_that_choose(FIRST, RIVAL, experts=4), k=2, capacity=2)
    assert after.decision.kept.all()
    assert after.decision.position[0, 0].tolist() == [0, 1]  # it stands behind, but has a slot
    np.testing.assert_array_equal(before.output[0, 0], after.output[0, 0])


def test_a_later_token_takes_no_slot_of_an_earlier_first_choice():
    crowd = [FIRST] * 2 + [(0, 2)] * 4
    quiet = [FIRST] * 2 + [STRANGER] * 4
    for choices in (crowd, quiet):
        decision = run(tokens_that_choose(*choices, experts=4), k=2, capacity=2).decision
        assert decision.kept[0, :2, 0].all()
        assert decision.position[0, :2, 0].tolist() == [0, 1]


@pytest.mark.parametrize("seed", range(8))
def test_random_later_tokens_matter_exactly_when_something_is_dropped(seed):
    generator = np.random.default_rng(seed)
    early = generator.normal(size=(6, 4)).astype(np.float32)
    late = [generator.normal(size=(6, 4)).astype(np.float32) for _ in range(2)]
    ample = [run(np.concatenate([early, more]), k=2, capacity=12) for more in late]
    assert all(result.decision.kept.all() for result in ample)
    np.testing.assert_array_equal(ample[0].output[0, :6], ample[1].output[0, :6])
    scarce = [run(np.concatenate([early, more]), k=2, capacity=3) for more in late]
    assert not any(result.decision.kept[0, :6].all() for result in scarce)
    same = (scarce[0].decision.kept[0, :6] == scarce[1].decision.kept[0, :6]).all(axis=-1)
    np.testing.assert_array_equal(
        (scarce[0].output[0, :6] == scarce[1].output[0, :6]).all(axis=-1), same
    )
    first = [result.decision.kept[0, :6, 0] for result in scarce]
    np.testing.assert_array_equal(first[0], first[1])


def test_one_of_those_random_tokens_is_changed_by_what_comes_after_it():
    generator = np.random.default_rng(0)
    early = generator.normal(size=(6, 4)).astype(np.float32)
    late = [generator.normal(size=(6, 4)).astype(np.float32) for _ in range(2)]
    outputs = [run(np.concatenate([early, more]), k=2, capacity=3).output for more in late]
    assert (outputs[0][0, :6] != outputs[1][0, :6]).any()


# ---------------------------------------------------------------------------- SURP-02: the hardware


def test_the_same_batch_drops_other_tokens_on_another_number_of_replicas():
    # One row: four tokens of expert 0, then four of expert 1, twice.
    row = tokens_that_choose(*[(0,)] * 4, *[(1,)] * 4, experts=2)
    batch = np.concatenate([row, row])[None]
    options = {
        "training": True,
        "k": 1,
        "train_capacity_factor": 1.0,
        "min_expert_capacity": 1,
        "max_group_size": 8,
    }
    one = moe.moe_layer(batch, parameters(2), num_expert_replicas=1, **options)
    two = moe.moe_layer(batch, parameters(2), num_expert_replicas=2, **options)
    assert one.decision.kept.shape == (2, 8, 1)
    assert two.decision.kept.shape == (4, 4, 1)
    assert (one.decision.capacity, two.decision.capacity) == (4, 2)
    assert one.decision.kept.all()  # four tokens an expert, four slots
    kept = two.decision.kept.ravel()  # four tokens of one expert, two slots
    assert kept.tolist() == [True, True, False, False] * 4
    assert (two.output[0][~kept] == 0).all()
    assert (one.output[0][~kept] != 0).any(axis=-1).all()
    np.testing.assert_array_equal(one.output[0][kept], two.output[0][kept])


def test_replicas_follow_from_the_number_of_devices():
    partitions = {"num_expert_partitions": 4, "num_model_partitions": 2}
    replicas = [grouping.num_expert_replicas(devices, **partitions) for devices in (8, 16)]
    assert replicas == [1, 2]
    groups = [
        grouping.num_groups(16, max_group_size=8, num_experts=2, num_expert_replicas=count)
        for count in replicas
    ]
    assert groups == [2, 4]


# ---------------------------------------------------------------------------- SURP-03: padding


def padded_rows(padding: int, **options: Any) -> LayerResult:
    """Return the layer of four rows of four real tokens with `padding` zeros behind each."""
    text = tokens_that_choose(*[(2, 0)] * 4, experts=4)
    row = np.concatenate([text, np.zeros((padding, 4), np.float32)])
    return moe.moe_layer(
        np.stack([row] * 4), parameters(4), training=False, max_group_size=8, **options
    )


def test_more_padding_changes_the_outputs_of_real_tokens():
    tight, loose = padded_rows(0), padded_rows(4)
    # Both lay one row in a group and have the minimum of four slots.
    assert tight.decision.kept.shape == (4, 4, 2)
    assert loose.decision.kept.shape == (4, 8, 2)
    assert (tight.decision.capacity, loose.decision.capacity) == (4, 4)
    assert tight.decision.kept.all()
    assert loose.decision.expert_index[:, 4:].tolist() == [[[0, 1]] * 4] * 4
    assert loose.decision.kept[:, :4].tolist() == [[[True, False]] * 4] * 4
    assert (tight.output != loose.output[:, :4]).any(axis=-1).all()
    assert (loose.output[:, 4:] == 0).all()


def test_padding_that_is_ignored_changes_nothing():
    tight, loose = padded_rows(0, ignore_padding=True), padded_rows(4, ignore_padding=True)
    assert loose.decision.kept[:, :4].all()
    assert not loose.decision.kept[:, 4:].any()
    np.testing.assert_array_equal(tight.output, loose.output[:, :4])


# ---------------------------------------------------------------------------- SURP-04: decoding


def test_decoding_never_drops_what_a_full_forward_pass_drops():
    # 64 tokens that all want expert 3, then expert 1: groups of 16 with 8 slots an expert.
    text = tokens_that_choose(*[(3, 1)] * 64, experts=4)
    text *= np.linspace(0.5, 1.5, 64, dtype=np.float32)[:, None]
    weights = parameters(4)
    full = moe.moe_layer(text[None], weights, training=False)
    assert full.decision.kept.shape == (4, 16, 2)
    assert full.decision.capacity == 8
    kept = full.decision.kept.reshape(64, 2)
    assert kept.tolist() == ([[True] * 2] * 8 + [[False] * 2] * 8) * 4

    steps = [moe.moe_layer(token[None, None], weights, training=False) for token in text]
    for step in steps:
        # The token and three of padding, each alone in its group.
        assert step.decision.kept.shape == (4, 1, 2)
        assert step.decision.kept.all()
    decoded = np.concatenate([step.output[0] for step in steps])
    whole = kept.all(axis=-1)
    np.testing.assert_allclose(decoded[whole], full.output[0][whole], rtol=1e-6, atol=1e-6)
    assert (full.output[0][~whole] == 0).all()
    assert (decoded[~whole] != 0).any(axis=-1).all()


# ---------------------------------------------------------------------------- GROUP-10


def groups(tokens: int, most: int, experts: int, replicas: int) -> int:
    """Return the number of groups as SPEC.md writes it."""
    return grouping.num_groups(
        tokens, max_group_size=most, num_experts=experts, num_expert_replicas=replicas
    )


def capacity(tokens: int, experts: int, factor: float) -> int:
    """Return the capacity as SPEC.md writes it."""
    return grouping.expert_capacity(tokens, num_experts=experts, capacity_factor=factor)


def padded(batch: int, length: int, multiple: int) -> tuple[int, int]:
    """Return the padded shape as SPEC.md writes it."""
    return grouping.padded_shape(batch, length, multiple=multiple)


COMPUTED = {
    "64 * 2048": 64 * 2048,
    "groups(131072, 8192, 32, 1)": groups(131072, 8192, 32, 1),
    "131072 // 32": 131072 // 32,
    "131072 // groups(131072, 8192, 32, 2)": 131072 // groups(131072, 8192, 32, 2),
    "groups(2048, 4096, 32, 1)": groups(2048, 4096, 32, 1),
    "capacity(64, 32, 2.0)": capacity(64, 32, 2.0),
    "padded(1, 1, 16)[1]": padded(1, 1, 16)[1],
}


def test_the_numbers_of_group_10_are_those_of_the_reference():
    text = clauses.load()["GROUP-10"].text
    stated = dict(re.findall(r"`([^`]+)` \(= (\d+)\)", text))
    assert stated == {expression: str(value) for expression, value in COMPUTED.items()}


def test_the_largest_group_size_of_34b_is_never_reached():
    assert (XL.max_group_size, XL.num_experts) == (8192, 32)
    tokens = 64 * 2048
    for replicas in (1, 2, 4):
        size = tokens // groups(tokens, XL.max_group_size, XL.num_experts, replicas)
        assert size == 4096 // replicas
        assert size < XL.max_group_size


def test_more_replicas_never_make_larger_groups():
    sizes = [131072 // groups(131072, 8192, 32, replicas) for replicas in (1, 2, 4, 8, 16, 32)]
    assert all(smaller < larger for larger, smaller in pairwise(sizes))


@pytest.mark.parametrize("configuration", [LARGE, XL], ids=["8b", "34b"])
def test_one_row_at_evaluation_makes_small_groups_with_the_least_capacity(configuration):
    experts = configuration.num_experts
    count = groups(2048, LARGE.max_group_size, experts, 1)
    assert (count, 2048 // count) == (32, 64)
    slots = capacity(64, experts, configuration.eval_capacity_factor)
    assert slots == configuration.min_expert_capacity == 4


def test_a_decoded_token_of_base_is_alone_in_its_group_and_never_dropped():
    experts = BASE.num_experts
    rows, columns = padded(1, 1, experts)
    assert (rows, columns) == (1, 16)
    count = groups(rows * columns, BASE.max_group_size, experts, 1)
    assert count == 16
    slots = capacity(1, experts, BASE.eval_capacity_factor)
    assert slots == BASE.min_expert_capacity == 4
    for seed in range(4):
        token = np.random.default_rng(seed).normal(size=(1, 1, experts)).astype(np.float32)
        result = moe.moe_layer(
            token, parameters(experts), training=False, k=BASE.num_selected_experts
        )
        assert result.decision.kept.shape == (count, 1, BASE.num_selected_experts)
        assert result.decision.kept.all()
        assert result.decision.capacity == slots


def test_groups_derived_otherwise_drop_otherwise_from_the_same_weights():
    inputs = np.random.default_rng(1).normal(size=(1, 64, 4)).astype(np.float32)
    weights, shared = parameters(4), {"training": True, "min_expert_capacity": 1}
    by_size = [
        moe.moe_layer(inputs, weights, num_expert_replicas=replicas, **shared)
        for replicas in (1, 4)
    ]
    kept = [result.decision.kept.reshape(64, 2) for result in by_size]
    choices = [result.decision.expert_index.reshape(64, 2) for result in by_size]
    np.testing.assert_array_equal(choices[0], choices[1])
    assert (kept[0] != kept[1]).any()
    differ = (kept[0] != kept[1]).any(axis=-1)
    assert (by_size[0].output[0][differ] != by_size[1].output[0][differ]).any(axis=-1).all()


# ---------------------------------------------------------------------------- the training data

SPANS = [i for i, made in enumerate(OBJECTIVES) if not made.is_prefix]
PIECES, VOCABULARY, END = 256_000, 256_300, 1  # ids of sentinels begin where pieces end
LENGTH = 1024  # of inputs and of targets


def text(tokens: int, seed: int = 0) -> ndarray:
    """Return ids of text, none of them with a meaning of its own."""
    return np.random.default_rng(seed).integers(4, PIECES, tokens)


def whole_segment(objective: int) -> int:
    """Return the length of a whole segment of an objective."""
    (segment, *_) = documents.objective_segments([text(3000)], objective, inputs_length=LENGTH)
    return len(segment)


def example(
    objective: int, prompt: int, seed: int, tokens: int | None = None
) -> dict[str, ndarray]:
    """Return a drawn example of an objective, by default of a whole segment."""
    made, generator = OBJECTIVES[objective], np.random.default_rng(seed)
    tokens = tokens or whole_segment(objective)
    if made.is_prefix:
        drawn = {"split": int(generator.integers(1, tokens))}
    else:
        counts = noise.noise_counts(
            tokens,
            noise_density=made.noise_density,
            mean_noise_span_length=made.mean_noise_span_length,
        )
        drawn = draws.permutations(generator, counts)
    found = objectives.ul2_example(
        *(text(tokens, seed), objective),
        inputs_length=LENGTH,
        targets_length=LENGTH,
        vocabulary_size=VOCABULARY,
        prompt=text(prompt),
        **drawn,
    )
    return dict(found)


def sentinels(ids: ndarray) -> list[int]:
    """Return the sentinels among ids, in order, by number."""
    return [VOCABULARY - 1 - token for token in ids.tolist() if token >= PIECES]


@pytest.mark.parametrize("objective", SPANS)
@pytest.mark.parametrize("prompt", [1, 5])
def test_the_last_sentinel_of_a_whole_span_segment_is_missing_from_the_inputs(objective, prompt):
    for seed in range(4):
        made = example(objective, prompt, seed)
        asked, answered = sentinels(made["inputs"]), sentinels(made["targets"])
        assert len(made["inputs"]) == LENGTH
        assert asked == list(range(len(asked)))
        assert answered == list(range(len(answered)))
        # Text without noise comes first, so the targets' first sentinel is no span of noise.
        assert len(asked) < len(answered)
        assert made["targets"][-2] < PIECES  # noise of the last span, before the end
    # Without a mode nothing is cut off, so every span has its sentinel.
    made = example(objective, 0, 0)
    assert len(made["inputs"]) == LENGTH
    assert len(sentinels(made["inputs"])) == len(sentinels(made["targets"]))


def test_the_last_sentinel_of_a_short_segment_stays():
    for objective in SPANS:
        made = example(objective, 5, 0, tokens=200)
        assert len(sentinels(made["inputs"])) == len(sentinels(made["targets"]))


def test_packing_never_joins_two_whole_examples():
    lengths = {"inputs": LENGTH, "targets": LENGTH}
    several = [example(objective, 5, seed) for objective in range(6) for seed in range(3)]
    shortest = min(len(one["inputs"]) + len(one["targets"]) for one in several)
    assert 2 * shortest > 2 * LENGTH
    features = batching.decoder_features(several, lengths=lengths, pack=True)
    statistics = batching.feed_statistics(features)
    assert statistics["rows"] == statistics["examples"] == len(several)
    # Short ends of groups are joined.
    ends = [example(objective, 5, 0, tokens=200) for objective in range(6)]
    joined = batching.decoder_features(ends, lengths=lengths, pack=True)
    statistics = batching.feed_statistics(joined)
    assert (statistics["rows"], statistics["examples"]) == (1, 6)


def test_the_2048th_token_of_every_whole_causal_segment_is_lost():
    texts = [text(1500, 1), text(4000, 2), text(2000, 3)]
    stream = np.concatenate([np.append(one, END) for one in texts])
    found = documents.full_lm_segments(texts, length=2048)
    assert [len(one) for one in found] == [2048, 2048, 2048, 1360]
    for place, one in enumerate(found[:3]):
        wanted = stream[2048 * place : 2048 * (place + 1)]
        np.testing.assert_array_equal(one, np.append(wanted[:-1], END))
        assert wanted[-1] != END
    # The last one is not whole: it loses nothing and has two ends.
    np.testing.assert_array_equal(found[3], np.append(stream[3 * 2048 :], END))
    assert found[3][-2:].tolist() == [END, END]


def test_prefixes_lose_what_a_group_holds_beyond_one_block():
    group = [text(700, seed) for seed in range(128)]
    joined = documents.join_documents(group)
    assert documents.num_blocks(len(joined)) == 2
    blocks = joined[:65_536], joined[65_536:]
    for number, block in enumerate(blocks):
        seen = documents.objective_segments(group, 5, inputs_length=LENGTH, block=number)
        np.testing.assert_array_equal(np.concatenate(seen), block)
    for objective in SPANS:
        seen = documents.objective_segments(group, objective, inputs_length=LENGTH)
        np.testing.assert_array_equal(np.concatenate(seen), joined)
