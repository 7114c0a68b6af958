"""Worked examples of the vocabulary and of noise, answered by the naive form."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any

import naive_data
from worked_example import Example

Cases = Mapping[str, tuple[str, dict[str, Any]]]
"""What an example is for, and its arguments or changes of some, by its name."""


def answered(function: str, clause: str, cases: Cases) -> Iterator[Example]:
    """Yield examples that the naive form answers."""
    for name, (what, arguments) in cases.items():
        # The naive form does not ask whether there are enough sentinels.
        naive = getattr(naive_data, function)
        known = inspect.signature(naive).parameters
        answer = naive(**{key: value for key, value in arguments.items() if key in known})
        yield Example(name, clause, what, function, arguments, answer)


def rejected(function: str, clause: str, legal: dict[str, Any], cases: Cases) -> Iterator[Example]:
    """Yield examples that change legal arguments and must be rejected."""
    for name, (what, changes) in cases.items():
        yield Example(name, clause, what, function, legal | changes)


# ---- vocabulary --------------------------------------------------------------------------------


def vocabularies() -> Iterator[Example]:
    """Yield vocabularies and ids before they are turned into text."""
    published = naive_data.vocabulary(256_000)
    del published["sentinels"]
    yield Example(
        *("vocabulary_umt5", "VOCAB-01", "umT5, padding and end", "vocabulary"),
        {"num_pieces": 256_000, "num_sentinels": 300},
        published,
    )
    cases = {
        "vocabulary_of_whole_rows": ("128 ids: not a row more", {"num_pieces": 100}),
        "vocabulary_of_one_id_more": ("129 ids: 256 rows", {"num_pieces": 101}),
    }
    for _, arguments in cases.values():
        arguments["num_sentinels"] = 28
    yield from answered("vocabulary", "VOCAB-01", cases)
    small = {"num_pieces": 10, "num_sentinels": 4}
    cases = {
        "sentinels_down": ("the first sentinel is the last id", small),
        "sentinels_up": ("not reverse: the first is behind the pieces", small | {"reverse": False}),
        "no_sentinel": ("none: pieces alone", {"num_pieces": 10, "num_sentinels": 0}),
    }
    yield from answered("vocabulary", "VOCAB-02", cases)
    ids = {
        "decoded_beyond": ("the vocabulary's size is unknown, the last id is not", [5, 10, 9, 12]),
        "decoded_end": ("cut behind the first of two ends", [5, 1, 6, 1, 7]),
        "decoded_beyond_end": ("nothing behind the end, unknown or not", [10, 1, 11]),
        "decoded_padding": ("padding stays, without an end too", [0, 5, 0, 6, 0]),
        "decoded_none": ("no id", []),
    }
    cases = {n: (what, {"ids": i, "vocabulary_size": 10}) for n, (what, i) in ids.items()}
    other = {"ids": [5, 10, 3], "vocabulary_size": 10, "unknown": 2}
    cases["decoded_unknown"] = ("unknown is id 2", other)
    yield from answered("decoded_ids", "VOCAB-04", cases)
    changes: Cases = {
        "no_piece": ("no piece", {"num_pieces": 0}),
        "sentinels_below_0": ("-1 sentinels", {"num_sentinels": -1}),
        "half_a_piece": ("2.5 pieces", {"num_pieces": 2.5}),
    }
    yield from rejected("vocabulary", "VOCAB-05", small, changes)
    changes = {"decoded_below_0": ("a negative id", {"ids": [5, -1, 6]})}
    yield from rejected("decoded_ids", "VOCAB-05", other, changes)


def mixtures_of_objectives() -> Iterator[Example]:
    """Yield the training mixture, copied by hand from the training code."""
    modes = ("[NLU] ", "[NLU] ", "[NLG] ", "[NLG] ", "[NLG] ", "[S2S] ")
    spans = (*naive_data.SPANS, (None, 0.5))
    for name, clause, what, arguments in (
        ("objectives", "OBJ-01", "six, with their modes", {}),
        ("paper_objectives", "DIAL-01", "without modes", {"dialect": "paper"}),
    ):
        wanted = [
            {
                "rate": rate,
                "mean_noise_span_length": mean,
                "noise_density": density,
                "mode": "" if arguments else mode,
            }
            for rate, (mean, density), mode in zip(naive_data.RATES, spans, modes, strict=True)
        ]
        yield Example(name, clause, what, "objectives", arguments, wanted)


# ---- noise -------------------------------------------------------------------------------------


def how(density: float, mean: float) -> dict[str, float]:
    """Return the two numbers of a noise by their names."""
    return {"noise_density": density, "mean_noise_span_length": mean}


def orders(noise: list[int], nonnoise: list[int]) -> dict[str, list[int]]:
    """Return two permutations by their names."""
    return {"noise_permutation": noise, "nonnoise_permutation": nonnoise}


TWELVE = {"length": 12, **how(0.5, 3.0), **orders([1, 2, 0, 4, 3], [3, 0, 4, 2, 1])}
"""Two runs of noise, and permutations that are not their own inverses."""


def masks() -> Iterator[Example]:
    """Yield counts of noise and masks."""
    cases = {
        "counts_float32": ("29 in float32, 28 in float64", 190, 0.15, 3.0),
        "counts_half_down": ("2.5 is 2", 5, 0.5, 3.0),
        "counts_half_up": ("3.5 is 4", 7, 0.5, 3.0),
        "counts_one_token": ("counted as two", 1, 0.5, 3.0),
        "counts_no_noise": ("moved up to 1", 3, 0.15, 3.0),
        "counts_all_noise": ("moved down to L - 1", 9, 1.0, 8.0),
        "counts_spans_half_down": ("5 / 2 is 2", 10, 0.5, 2.0),
        "counts_spans_half_up": ("7 / 2 is 4", 14, 0.5, 2.0),
        "counts_spans_float32": ("7 spans in float32, 8 in float64", 18, 0.5, 1.2),
        "counts_one_span": ("no span would be left", 20, 0.5, 64.0),
        "counts_whole_segment": ("as many spans as in training", 1534, 0.5, 3.0),
    }
    yield from answered(
        "noise_counts",
        "OBJ-02",
        {n: (w, {"length": length, **how(d, m)}) for n, (w, length, d, m) in cases.items()},
    )
    cases = {
        "mask_cuts": ("entry i is the one at p_i, not the other way round", TWELVE),
        "mask_of_many_runs": (
            "three runs, other cuts of noise and of the rest",
            {"length": 20, **how(0.3, 2.0), **orders([4, 1, 3, 0, 2], [*range(12, -1, -1)])},
        ),
    }
    yield from answered("noise_mask", "OBJ-03", cases)
    cases = {
        "mask_of_no_density": ("density 0", {"length": 5, **how(0, 3.0), **orders([], [])}),
        "mask_of_one_token": ("cut to one", {"length": 1, **how(0.5, 3.0), **orders([], [])}),
        "mask_of_two_tokens": ("the second", {"length": 2, **how(0.5, 3.0), **orders([], [])}),
        "mask_rolled": ("to the right, at the end", TWELVE | {"roll": 2}),
    }
    yield from answered("noise_mask", "OBJ-04", cases)
    fifth = how(0.15, 3.0)
    half = how(0.5, 3.0)
    cases = {
        f"span_lengths_of_{i}": (
            f"objective {i} at 1024",
            {"inputs_length": 1024, **how(density, mean)},
        )
        for i, (mean, density) in enumerate(naive_data.SPANS)
    } | {
        "span_lengths_small": ("of 16, without a bound on spans", {"inputs_length": 16, **fifth}),
        "span_lengths_no_span": ("noise too short for a span", {"inputs_length": 4, **fifth}),
        "span_lengths_half": ("targets longer, so one less", {"inputs_length": 9, **half}),
        "span_lengths_not_longer": ("targets as long", {"inputs_length": 10, **half}),
        "span_lengths_near_half": (
            "longer targets at 0.55 stay",
            {"inputs_length": 9, **how(0.55, 3.0)},
        ),
        "span_lengths_extra": (
            "two sentinels a span of targets, none of inputs",
            {
                "inputs_length": 12,
                **how(0.3, 2.0),
                "extra_tokens_per_span_inputs": 0,
                "extra_tokens_per_span_targets": 2,
            },
        ),
    }
    yield from answered("span_lengths", "OBJ-05", cases)


def masks_that_there_are_not() -> Iterator[Example]:
    """Yield noise that must be rejected."""
    for function, legal in (
        ("noise_counts", {"length": 12, **how(0.5, 3.0)}),
        ("span_lengths", {"inputs_length": 12, **how(0.5, 3.0)}),
    ):
        changes: Cases = {
            f"{function}_of_no_token": ("length 0", {next(iter(legal)): 0}),
            f"{function}_below_no_noise": ("density -0.1", {"noise_density": -0.1}),
            f"{function}_above_all_noise": ("density 1.5", {"noise_density": 1.5}),
            f"{function}_no_mean": ("spans of 0", {"mean_noise_span_length": 0.0}),
            f"{function}_negative_mean": ("spans of -3", {"mean_noise_span_length": -3.0}),
        }
        yield from rejected(function, "OBJ-06", legal, changes)
    crowded: Cases = {
        "more_spans_than_noise": ("12 spans, 6 tokens of noise", how(0.5, 0.5)),
        "more_spans_than_rest": ("11 spans, 1 other token", how(1.0, 1.0)),
    }
    yield from rejected("noise_counts", "OBJ-06", {"length": 12, **how(0.5, 3.0)}, crowded)
    changes = {
        "permutation_too_short": ("four places of five", {"noise_permutation": [1, 2, 0, 3]}),
        "permutation_with_a_double": ("no permutation", {"nonnoise_permutation": [3, 0, 4, 2, 2]}),
        "permutation_from_1": ("from 1 to 5", {"noise_permutation": [1, 2, 3, 4, 5]}),
    }
    yield from rejected("noise_mask", "OBJ-06", TWELVE, changes)


def examples() -> list[Example]:
    """Return the examples of both, in the order of SPEC.md."""
    return [
        *vocabularies(),
        *mixtures_of_objectives(),
        *masks(),
        *masks_that_there_are_not(),
    ]
