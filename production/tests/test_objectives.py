"""Examples made many at once are those that the reference makes one by one, to the last bit."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from openmoe_production import draws, noise, objectives
from openmoe_reference import noise as reference_noise
from openmoe_reference import objectives as reference
from openmoe_spec.data import OBJECTIVES, TRANSFORMS
from openmoe_spec.errors import RejectedError

SIZE = 1000
DENSITIES = st.sampled_from([0.15, 0.5, 0.0, 1.0, 0.3, 1e-9]) | st.floats(0, 1)
MEANS = st.sampled_from([3.0, 8.0, 64.0, 1.0, 2]) | st.floats(0.5, 100)
SEEDS = st.integers(0, 2**32)


def same(found, wanted):
    """Two arrays, or examples of arrays, equal; ids are int32."""
    if isinstance(wanted, dict):
        assert list(found) == list(wanted)
        for name, one in wanted.items():
            same(found[name], one)
        return
    assert found.dtype == (bool if wanted.dtype == bool else np.int32)
    assert np.array_equal(found, wanted)


def refusal(function, *arguments, **options):
    """Return the clause by which a call is refused, None where it is not."""
    try:
        function(*arguments, **options)
    except RejectedError as error:
        return error.clause
    return None


def drawn(seed, objective, lengths):
    """Return segments, and what is drawn for each, as the reference takes it."""
    generator = np.random.default_rng(seed)
    segments = [generator.integers(0, SIZE, n).astype(np.int32) for n in lengths]
    given = draws.segment_draws(objective, lengths, generator)
    each = [
        {name.removesuffix("s"): one for name, one in zip(given, of_one, strict=True)}
        for of_one in zip(*given.values(), strict=True)
    ]
    return segments, given, each


def options(inputs_length=1024, targets_length=1024, prompt=(5, 6, 7)):
    return {
        "inputs_length": inputs_length,
        "targets_length": targets_length,
        "vocabulary_size": SIZE,
        "prompt": np.array(prompt, np.int32),
    }


# ---- noise -------------------------------------------------------------------------------------


@given(st.integers(1, 3000), DENSITIES, MEANS)
def test_counts_and_spans_are_those_of_the_reference(length, density, mean):
    how = {"noise_density": density, "mean_noise_span_length": mean}
    clause = refusal(reference_noise.noise_counts, length, **how)
    assert refusal(noise.noise_counts, length, **how) == clause
    if clause is None:
        assert noise.noise_counts(length, **how) == reference_noise.noise_counts(length, **how)


@given(st.integers(1, 2000), DENSITIES.filter(lambda d: d < 0.99), MEANS, st.integers(0, 2), SEEDS)
def test_the_longest_segments_are_those_of_the_reference(length, density, mean, extra, seed):
    how = {
        "noise_density": density,
        "mean_noise_span_length": mean,
        "extra_tokens_per_span_inputs": extra,
        "extra_tokens_per_span_targets": seed % 3,
    }
    assert noise.span_lengths(length, **how) == reference_noise.span_lengths(length, **how)


def test_a_search_goes_on_beyond_the_segments_that_are_looked_at_together():
    how = {"noise_density": 0.97, "mean_noise_span_length": 50.0}
    found = noise.span_lengths(900, **how)
    assert found["tokens_length"] > 900 + 2 * noise._LOOK
    assert found == reference_noise.span_lengths(900, **how)


def test_a_density_of_one_ends_where_the_reference_does():
    how = {"noise_density": 1.0, "mean_noise_span_length": 3.0}
    assert noise.span_lengths(100, **how) == reference_noise.span_lengths(100, **how)
    for module in (noise, reference_noise):
        assert refusal(module.span_lengths, 9, **how, extra_tokens_per_span_inputs=0) == "OBJ-06"


@given(st.integers(1, 5000), st.sampled_from([0.0, 0.15, 0.5, 0.49]) | st.floats(0, 0.5))
def test_a_prefix_has_the_bounds_of_the_reference(length, density):
    found = noise.prefix_bounds(length, noise_density=density)
    assert found == reference_noise.prefix_bounds(length, noise_density=density)


@given(
    st.integers(1, 300) | st.sampled_from([1, 2, 3, 1137]),
    DENSITIES,
    MEANS,
    st.integers(1, 5),
    SEEDS,
)
def test_masks_of_many_are_those_of_each(length, density, mean, count, seed):
    how = {"noise_density": density, "mean_noise_span_length": mean}
    if refusal(noise.noise_counts, length, **how) is not None:
        return
    generator = np.random.default_rng(seed)
    given = draws.permutations(noise.noise_counts(length, **how), count, generator)
    roll = int(generator.integers(length + 1))
    found = noise.noise_masks(length, **how, **given, roll=roll)
    for i, mask in enumerate(found):
        one = {name.removesuffix("s"): rows[i] for name, rows in given.items()}
        same(mask, reference_noise.noise_mask(length, **how, **one, roll=roll))
        same(noise.noise_mask(length, **how, **one, roll=roll), mask)


@pytest.mark.parametrize("mean", [1e300, 1e-300])
@pytest.mark.parametrize("module", [noise, reference_noise])
def test_a_mean_that_float32_cannot_hold_is_refused(module, mean):
    how = {"noise_density": 0.5, "mean_noise_span_length": mean}
    assert refusal(module.noise_counts, 9, **how) == "OBJ-06"


# ---- parts -------------------------------------------------------------------------------------


@given(st.data(), st.integers(0, 40), st.sampled_from(TRANSFORMS), st.sampled_from([0, 3, 300]))
def test_replaced_noise_is_that_of_the_reference(data, length, transform, num_sentinels):
    tokens = np.array(data.draw(st.lists(st.integers(0, SIZE - 1), min_size=length)), np.int32)
    mask = np.array(
        data.draw(st.lists(st.booleans(), min_size=len(tokens), max_size=len(tokens))), bool
    )
    how = {
        "transform": transform,
        "vocabulary_size": SIZE,
        "num_sentinels": num_sentinels,
        "overflow": data.draw(st.sampled_from(["rejected", "runs_on"])),
    }
    clause = refusal(reference.replace_noise, tokens, mask, **how)
    assert refusal(objectives.replace_noise, tokens, mask, **how) == clause
    if clause is None:
        before = tokens.copy()
        same(
            objectives.replace_noise(tokens, mask, **how),
            reference.replace_noise(tokens, mask, **how),
        )
        assert np.array_equal(tokens, before)


def test_more_runs_than_ids_go_below_zero():
    tokens, mask = np.zeros(8, np.int32), np.arange(8) % 2 == 0
    how = {"transform": TRANSFORMS[0], "num_sentinels": 0, "overflow": "runs_on"}
    found = objectives.replace_noise(tokens, mask, vocabulary_size=2, **how)
    assert found.tolist() == [1, 0, 0, 0, -1, 0, -2, 0]


@given(
    st.lists(st.integers(0, SIZE), max_size=12),
    st.lists(st.integers(0, SIZE), max_size=12),
    st.tuples(st.integers(2, 12), st.integers(2, 12)),
    st.none() | st.lists(st.integers(0, SIZE), max_size=14),
    st.sampled_from([(), ("inputs",), ("targets",), ("targets", "inputs")]),
)
def test_finished_examples_are_those_of_the_reference(inputs, targets, room, prompt, ends):
    how = {
        "inputs_length": room[0],
        "targets_length": room[1],
        "prompt": prompt,
        "ends": ends,
    }
    found = objectives.finish_example(inputs, targets, **how)
    same(found, reference.finish_example(inputs, targets, **how))


@given(st.lists(st.integers(0, SIZE), min_size=1, max_size=9), st.data())
def test_a_split_prefix_is_that_of_the_reference(tokens, data):
    split = data.draw(st.integers(0, len(tokens)))
    same(objectives.split_prefix(tokens, split), reference.split_prefix(tokens, split))


# ---- the whole ---------------------------------------------------------------------------------


@given(
    st.integers(0, 5),
    st.lists(st.integers(1, 60) | st.sampled_from([1, 2, 7]), min_size=1, max_size=40),
    st.tuples(st.integers(2, 70), st.integers(2, 70)),
    st.lists(st.integers(2, 9), max_size=6),
    SEEDS,
)
def test_many_examples_are_those_of_the_reference(objective, lengths, room, prompt, seed):
    segments, given, each = drawn(seed, objective, lengths)
    how = options(*room, prompt)
    found = objectives.ul2_examples(segments, objective, **how, **given)
    assert len(found) == len(segments)
    for segment, made, draw in zip(segments, found, each, strict=True):
        same(made, reference.ul2_example(segment, objective, **how, **draw))
        same(objectives.ul2_example(segment, objective, **how, **draw), made)


@pytest.mark.parametrize("objective", range(len(OBJECTIVES)))
def test_a_group_at_the_trained_lengths_is_that_of_the_reference(objective):
    made = OBJECTIVES[objective]
    length = 1023
    if not made.is_prefix:
        how = {
            "noise_density": made.noise_density,
            "mean_noise_span_length": made.mean_noise_span_length,
        }
        length = noise.span_lengths(1024, **how)["tokens_length"]
    # More than two blocks of equals, and a last one that is shorter.
    segments, given, each = drawn(objective, objective, [length] * 37 + [length // 3])
    found = objectives.ul2_examples(segments, objective, **options(), **given)
    for segment, one, draw in zip(segments, found, each, strict=True):
        same(one, reference.ul2_example(segment, objective, **options(), **draw))


def test_draws_may_be_arrays():
    segments, given, _ = drawn(3, 2, [100] * 20)
    arrays = {name: np.stack(rows).astype(np.uint64) for name, rows in given.items()}
    wanted = objectives.ul2_examples(segments, 2, **options(), **given)
    for one, other in zip(
        objectives.ul2_examples(segments, 2, **options(), **arrays), wanted, strict=True
    ):
        same(one, other)


@pytest.mark.parametrize("objective", [0, 5])
def test_the_mode_and_the_split_of_the_paper_are_those_of_the_reference(objective):
    segments, given, each = drawn(1, objective, [1, 2, 9, 10])
    if objective == 5:
        given, each = {}, [{}] * 4
    for dialect in ("paper", "torch_port", {"prefix_split": "half"}):
        if objective == 5 and dialect == "torch_port":
            continue
        found = objectives.ul2_examples(segments, objective, **options(), **given, dialect=dialect)
        for segment, one, draw in zip(segments, found, each, strict=True):
            same(
                one,
                reference.ul2_example(segment, objective, **options(), **draw, dialect=dialect),
            )
    assert objectives.objectives("paper") == reference.objectives("paper")
    assert objectives.objectives() == reference.objectives() == OBJECTIVES


def test_no_segment_makes_no_example():
    assert objectives.ul2_examples([], 5, **options(), splits=np.zeros(0, int)) == []


def test_arguments_are_not_written_to():
    segments, given, _ = drawn(5, 4, [200, 200, 1])
    before = [one.copy() for one in segments]
    found = objectives.ul2_examples(segments, 4, **options(), **given)
    for one in found:
        one["inputs"][:] = one["targets"][:] = -1
    assert all(map(np.array_equal, segments, before))


# ---- refusals ----------------------------------------------------------------------------------

IDS = np.arange(10, dtype=np.int32)
SPANS = {"noise_permutation": np.arange(1), "nonnoise_permutation": np.arange(7)}
WRONG = {
    "an objective beyond": {"objective": 6},
    "a negative objective": {"objective": -1},
    "an objective that is true": {"objective": True},
    "no text": {"segment": IDS[:0]},
    "text of two axes": {"segment": IDS[None]},
    "text of numbers with fractions": {"segment": IDS / 2},
    "no array": {"segment": "text"},
    "negative ids": {"segment": IDS - 1},
    "ids beyond the vocabulary": {"segment": IDS + SIZE},
    "inputs of one": {"inputs_length": 1},
    "targets of one": {"targets_length": 1},
    "a length with a fraction": {"inputs_length": 9.0},
    "a negative prompt": {"prompt": [-1]},
    "a prompt of two axes": {"prompt": IDS[None]},
    "no vocabulary": {"vocabulary_size": 0},
    "more sentinels than ids": {"num_sentinels": SIZE + 1},
    "too few sentinels": {"num_sentinels": 0},
    "an unknown overflow": {"overflow": "wraps"},
    "an unknown dialect": {"dialect": "none"},
    "an unknown point": {"dialect": {"nothing": "none"}},
    "no permutation of noise": {"noise_permutation": None},
    "no permutation of others": {"nonnoise_permutation": None},
    "a permutation that is too short": {"nonnoise_permutation": np.arange(6)},
    "a permutation with a place twice": {"nonnoise_permutation": np.zeros(7, int)},
    "a permutation from one on": {"nonnoise_permutation": np.arange(7) + 1},
    "a permutation from minus one on": {"nonnoise_permutation": np.arange(7) - 1},
    "a permutation with fractions": {"nonnoise_permutation": np.arange(7.0)},
    "permutations in two axes": {"nonnoise_permutation": np.arange(7)[None]},
    "no split": {"objective": 5},
    "a split of nothing": {"objective": 5, "split": 0},
    "a split of everything": {"objective": 5, "split": 10},
    "a split with a fraction": {"objective": 5, "split": 2.0},
    "a split that is true": {"objective": 5, "split": True},
    "a split in a word": {"objective": 5, "split": "2"},
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_example_is_refused_by_the_clause_of_the_reference(name):
    call = {"segment": IDS, "objective": 0, **options(), **SPANS, **WRONG[name]}
    segment, objective = call.pop("segment"), call.pop("objective")
    clause = refusal(reference.ul2_example, segment, objective, **call)
    assert clause is not None
    assert refusal(objectives.ul2_example, segment, objective, **call) == clause


def test_draws_of_one_segment_fewer_are_refused():
    segments, given, _ = drawn(0, 0, [10, 10])
    for name, rows in given.items():
        changed = given | {name: rows[:1]}
        assert refusal(objectives.ul2_examples, segments, 0, **options(), **changed) == "OBJ-15"
    assert refusal(objectives.ul2_examples, segments, 5, **options(), splits=[1]) == "OBJ-15"
    assert refusal(objectives.ul2_examples, segments, 5, **options(), splits=1) == "OBJ-15"


def test_permutations_that_are_one_only_together_are_refused():
    rows = np.array([[0, 1, 2, 3, 4, 5, 7], [-1, 0, 1, 2, 3, 4, 5]])
    how = {"noise_density": 0.15, "mean_noise_span_length": 3.0}
    given = {"noise_permutations": np.zeros((2, 1), int), "nonnoise_permutations": rows}
    assert refusal(noise.noise_masks, 10, **how, **given) == "OBJ-06"


PARTS = [
    ("noise_counts", (0,), {"noise_density": 0.5, "mean_noise_span_length": 3.0}),
    ("noise_counts", (9,), {"noise_density": -0.1, "mean_noise_span_length": 3.0}),
    ("noise_counts", (9,), {"noise_density": np.nan, "mean_noise_span_length": 3.0}),
    ("noise_counts", (9,), {"noise_density": 10**400, "mean_noise_span_length": 3.0}),
    ("noise_counts", (9,), {"noise_density": 0.5, "mean_noise_span_length": 0.0}),
    ("noise_counts", (9,), {"noise_density": 0.5, "mean_noise_span_length": "3"}),
    ("noise_counts", (9,), {"noise_density": 0.9, "mean_noise_span_length": 1.0}),
    ("span_lengths", (0,), {"noise_density": 0.5, "mean_noise_span_length": 3.0}),
    ("span_lengths", (9,), {"noise_density": 1.1, "mean_noise_span_length": 3.0}),
    ("prefix_bounds", (0,), {}),
    ("prefix_bounds", (9,), {"noise_density": 0.6}),
    ("prefix_bounds", (9,), {"noise_density": True}),
    ("split_prefix", ([], 0), {}),
    ("split_prefix", ([1, 2], 3), {}),
    ("split_prefix", ([1, 2], 1.0), {}),
    ("split_prefix", ([-1, 2], 1), {}),
    ("finish_example", (IDS, IDS), {"inputs_length": 1, "targets_length": 9}),
    ("finish_example", (IDS, -IDS), {"inputs_length": 9, "targets_length": 9}),
    ("finish_example", (IDS, IDS), {"inputs_length": 9, "targets_length": 9, "ends": "inputs"}),
    ("finish_example", (IDS, IDS), {"inputs_length": 9, "targets_length": 9, "ends": ["both"]}),
    ("objectives", ("nobody's",), {}),
]
PARTS += [
    ("replace_noise", (IDS, mask), {"transform": TRANSFORMS[0], "vocabulary_size": SIZE})
    for mask in (IDS, IDS[:3] > 1, IDS[None] > 1, [True] * 10)
]
PARTS += [
    ("replace_noise", (tokens, IDS > 3), {"transform": transform, "vocabulary_size": size})
    for tokens, transform, size in (
        (IDS, "shuffle", SIZE),
        (IDS, TRANSFORMS[0], 9),
        (-IDS, TRANSFORMS[0], 9),
        (IDS, None, SIZE),
        (IDS, TRANSFORMS[0], 1.0),
    )
]


@pytest.mark.parametrize(("name", "arguments", "how"), PARTS)
def test_parts_refuse_by_the_clause_of_the_reference(name, arguments, how):
    ours, theirs = (
        getattr(one, name, None) or getattr(other, name)
        for one, other in ((noise, objectives), (reference_noise, reference))
    )
    clause = refusal(theirs, *arguments, **how)
    assert clause is not None
    assert refusal(ours, *arguments, **how) == clause


@pytest.mark.parametrize("ends", [5, None, [["inputs"]]])
def test_ends_that_are_no_names_are_refused(ends):
    how = {"inputs_length": 9, "targets_length": 9, "ends": ends}
    assert refusal(objectives.finish_example, IDS, IDS, **how) == "OBJ-15"


def test_a_ragged_list_and_ids_that_no_int32_holds_are_refused():
    for text in ([1, [2, 3]], np.array([2**31]), np.array([2**64 - 1], np.uint64)):
        found = refusal(objectives.ul2_example, text, 5, **options(), split=0)
        assert found == "OBJ-09"
