"""Worked examples of what becomes of a segment and its noise, answered by the naive form."""

from __future__ import annotations

from collections.abc import Iterator

from worked_data import Cases, answered, orders, rejected
from worked_example import Example

# ---- sentinels ---------------------------------------------------------------------------------

SOME = {
    "tokens": [11, 12, 13, 14, 15, 16, 17, 18],
    "noise_mask": [0, 1, 1, 0, 0, 1, 0, 1],
    "vocabulary_size": 40,
    "num_sentinels": 10,
}
UNIQUE = tuple(f"{kind}_span_to_unique_sentinel" for kind in ("noise", "nonnoise"))


def sentinels() -> Iterator[Example]:
    """Yield replacements of noise, and those that must be rejected."""
    begins = SOME | {"noise_mask": [1, 0, 0, 1, 1, 1, 0, 0]}
    in_text = SOME | {"tokens": [39, 12, 39, 38, 15, 16, 39, 18]}
    cases = {}
    for part, transform in zip(("inputs", "targets"), UNIQUE, strict=True):
        for name, what, arguments in (
            ("spans", "sentinels count from 0 down, no last one", SOME),
            ("spans_first", "a mask that begins with noise", begins),
            ("spans_in_text", "sentinels of the text are tokens", in_text),
        ):
            cases[f"{part}_of_{name}"] = (what, arguments | {"transform": transform})
    yield from answered("replace_noise", "OBJ-07", cases)
    cases = {
        transform: (what, begins | {"transform": transform})
        for transform, what in (
            ("noise_span_to_sentinel", "one sentinel for every run of noise"),
            ("nonnoise_span_to_sentinel", "one sentinel for every other run"),
            ("noise_token_to_sentinel", "a sentinel for every token of noise"),
            ("drop_noise_tokens", "what is no noise"),
            ("drop_nonnoise_tokens", "the noise"),
        )
    }
    yield from answered("replace_noise", "OBJ-08", cases)
    legal = SOME | {"transform": UNIQUE[0]}
    changes: Cases = {
        "too_few_sentinels": ("3 runs, 2 sentinels", {"num_sentinels": 2}),
        "token_of_v": ("an id of V", {"tokens": [11, 12, 13, 40, 15, 16, 17, 18]}),
        "negative_token": ("a negative id", {"tokens": [11, 12, 13, -1, 15, 16, 17, 18]}),
        "longer_mask": ("a mask of 9", {"noise_mask": [0, 1, 1, 0, 0, 1, 0, 1, 0]}),
    }
    yield from rejected("replace_noise", "OBJ-09", legal, changes)
    over = {"overflow": "runs_on", "transform": UNIQUE[0]}
    cases = {
        "runs_on": ("pieces below the sentinels", SOME | over | {"num_sentinels": 1}),
        "runs_below_0": (
            "three runs, two ids",
            {"tokens": [0, 1, 0, 1, 0], "noise_mask": [1, 0, 1, 0, 1], "vocabulary_size": 2}
            | over
            | {"num_sentinels": 2},
        ),
    }
    yield from answered("replace_noise", "OBJ-10", cases)


# ---- PrefixLM and finishing --------------------------------------------------------------------


def prefixes() -> Iterator[Example]:
    """Yield bounds of a prefix and splits, and those that must be rejected."""
    cases = {
        "prefix_of_1": ("nothing is left for a prefix", {"length": 1}),
        "prefix_of_2": ("one token, one token", {"length": 2}),
        "prefix_of_11": ("1 to 10", {"length": 11}),
        "prefix_at_a_quarter": ("2.5 is 2", {"length": 6, "noise_density": 0.25}),
        "prefix_at_a_quarter_of_8": ("3.5 is 4", {"length": 8, "noise_density": 0.25}),
        "prefix_in_float32": ("0.1 x 25 is 2", {"length": 26, "noise_density": 0.45}),
        "prefix_of_all": ("density 0: all but one", {"length": 7, "noise_density": 0.0}),
    }
    yield from answered("prefix_bounds", "OBJ-11", cases)
    tokens = [11, 12, 13, 14, 15]
    cases = {"split_prefix": ("the prefix is the inputs", {"tokens": tokens, "split": 2})}
    yield from answered("split_prefix", "OBJ-11", cases)
    changes: Cases = {
        "prefix_too_dense": ("density 0.6", {"noise_density": 0.6}),
        "prefix_below_0": ("density -0.1", {"noise_density": -0.1}),
        "prefix_of_none": ("no token", {"length": 0}),
    }
    yield from rejected("prefix_bounds", "OBJ-12", {"length": 11}, changes)
    changes = {
        "split_too_long": ("6 of 5 tokens", {"split": 6}),
        "split_of_nothing": ("an empty text", {"tokens": [], "split": 0}),
    }
    yield from rejected("split_prefix", "OBJ-12", {"tokens": tokens, "split": 2}, changes)


PAIR = {"inputs": [11, 12, 13, 14], "targets": [21, 22], "inputs_length": 5, "targets_length": 4}


def finished() -> Iterator[Example]:
    """Yield finished examples."""
    cases = {
        "finished_exactly": ("inputs fit with their end, targets are shorter", PAIR),
        "finished_with_a_mode": ("the mode in front, the end cut off", PAIR | {"prompt": [2, 3]}),
        "finished_targets": ("targets are cut too", PAIR | {"targets": [21, 22, 23, 24, 25]}),
        "finished_mode_alone": ("a mode longer than inputs", PAIR | {"prompt": [2, 3, 4, 5, 6]}),
        "finished_nothing": ("no token: the ends alone", PAIR | {"inputs": [], "targets": []}),
    }
    yield from answered("finish_example", "OBJ-13", cases)


SPANS = {
    "segment": [*range(10, 27)],
    "objective": 0,
    "inputs_length": 16,
    "targets_length": 16,
    "vocabulary_size": 60,
    "num_sentinels": 20,
    "prompt": [2, 3],
    **orders([1, 0], [*range(12, -1, -1)]),
}
"""A whole segment of objective 0 at 16: one span of three tokens."""
HALF = SPANS | {
    "segment": [*range(10, 32)],
    "objective": 2,
    "prompt": [4],
    **orders([8, 0, 3, 1, 2, 4, 9, 7, 6, 5], [2, 8, 7, 9, 1, 0, 3, 4, 6, 5]),
}
"""A whole segment of objective 2 at 16: four spans of eleven tokens."""
PREFIX = {name: value for name, value in SPANS.items() if "permutation" not in name} | {
    "segment": [*range(10, 21)],
    "objective": 5,
    "prompt": [5, 6],
    "split": 4,
}


def made() -> Iterator[Example]:
    """Yield whole examples, and those that must be rejected."""
    cases = {
        "example_of_spans": ("a whole segment: its last sentinel is cut off", SPANS),
        "example_of_half": ("four spans, one sentinel is cut off", HALF),
        "example_of_a_short_end": (
            "nothing is cut off",
            SPANS | {"segment": [10, 11, 12, 13], **orders([], [1, 0])},
        ),
        "example_of_one_token": ("no noise", SPANS | {"segment": [10], **orders([], [])}),
        "example_of_short_targets": ("targets are cut", HALF | {"targets_length": 6}),
        "example_of_a_prefix": ("an end between prefix and rest", PREFIX),
        "example_of_one_prefix": ("no prefix", PREFIX | {"segment": [10], "split": 0}),
    }
    yield from answered("ul2_example", "OBJ-14", cases)
    without = {name: value for name, value in PREFIX.items() if name != "split"}
    cases = {
        "paper_spans": ("no mode, so the last sentinel stays", SPANS | {"dialect": "paper"}),
        "paper_prefix": ("no mode; five of eleven tokens", without | {"dialect": "paper"}),
    }
    yield from answered("ul2_example", "DIAL-01", cases)
    lone = {name: value for name, value in SPANS.items() if name != "nonnoise_permutation"}
    changes: Cases = {
        "example_of_one_input": ("inputs of 1", {"inputs_length": 1}),
        "example_of_one_target": ("targets of 1", {"targets_length": 1}),
        "seventh_objective": ("objective 6", {"objective": 6}),
        "objective_below_0": ("objective -1", {"objective": -1}),
        "unknown_dialect_of_data": ("no dialect", {"dialect": "nonsense"}),
        "empty_segment": ("no token", {"segment": [], **orders([], [])}),
    }
    yield from rejected("ul2_example", "OBJ-15", SPANS, changes)
    yield from rejected("ul2_example", "OBJ-15", lone, {"missing_draw": ("one draw alone", {})})
    yield from rejected("ul2_example", "OBJ-15", without, {"missing_split": ("no split", {})})
    changes = {
        "half_a_split": ("a split of 2.5", {"split": 2.5}),
        "split_of_all": ("nothing is left", {"split": 11}),
    }
    yield from rejected("ul2_example", "OBJ-15", PREFIX, changes)
    changes = {"finished_of_one": ("inputs of 1", {"inputs_length": 1})}
    yield from rejected("finish_example", "OBJ-15", PAIR, changes)


def examples() -> list[Example]:
    """Return the examples of the objectives, in the order of SPEC.md."""
    return [*sentinels(), *prefixes(), *finished(), *made()]
