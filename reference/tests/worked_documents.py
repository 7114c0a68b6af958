"""Worked examples of documents and of batching, answered by the naive form."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import naive_data
import numpy as np
from worked_data import Cases, answered, rejected
from worked_example import Example

# ---- documents ---------------------------------------------------------------------------------

TEXTS = [[11, 12, 13], [], [21, 0, 22], [0], [31, 32, 33, 34, 35]]


def blocks() -> Iterator[Example]:
    """Yield blocks of a document and their number."""
    cases: Cases = {
        "blocks_of_nothing": ("none", {"length": 0}),
        "blocks_of_one": ("65,536 tokens are one block", {"length": 65_536}),
        "blocks_of_two": ("one token more", {"length": 65_537}),
        "blocks_in_float32": ("2^24 + 1 is no float32", {"length": 2**24 + 1}),
        "blocks_of_three": ("of 5 at most", {"length": 11, "max_length": 5}),
    }
    yield from answered("num_blocks", "DATA-01", cases)
    tokens = {"tokens": [*range(11, 23)], "max_length": 5}
    cases = {
        "first_block": ("aligned", tokens | {"block": 0}),
        "middle_block": ("aligned, whatever its draw", tokens | {"block": 1}),
        "last_block": ("shorter", tokens | {"block": 2}),
    }
    yield from answered("document_block", "DATA-01", cases)
    changes: Cases = {
        "fourth_block_of_three": ("a block that there is not", {"block": 3}),
        "block_below_0": ("block -1", {"block": -1}),
        "block_of_nothing": ("an empty document has none", {"tokens": []}),
        "block_of_a_negative_id": ("a negative id", {"tokens": [11, -1, 12]}),
    }
    yield from rejected("document_block", "DATA-11", tokens | {"block": 0}, changes)


def streams() -> Iterator[Example]:
    """Yield documents in one, their segments, and streams of examples."""
    joined: Cases = {
        "joined": ("nothing between documents, no id 0", {"documents": TEXTS}),
        "joined_with_ends": (
            "an end behind each that is not empty",
            {"documents": TEXTS, "end": 1},
        ),
    }
    yield from answered("join_documents", "DATA-03", joined)
    groups: Cases = {
        f"groups_of_{i}": (f"objective {i} of 14 groups", {"num_groups": 14, "objective": i})
        for i in (0, 1, 2, 5)
    }
    yield from answered("objective_groups", "DATA-04", groups)
    long = {"documents": [[*range(10, 22)], [0, 22, 23], [*range(24, 40)]], "inputs_length": 8}
    segments: Cases = {
        "segments_of_spans": ("all of the group", long | {"objective": 1}),
        "segments_of_half": ("of another length", long | {"objective": 2}),
        "segments_of_prefixes": ("one less than the inputs' length", long | {"objective": 5}),
        "segments_of_one_block": (
            "a block of the group; the rest is lost",
            long | {"objective": 5, "block": 1, "max_length": 10},
        ),
        "segments_of_last_block": (
            "the last block is shorter",
            long | {"objective": 5, "block": 2, "max_length": 12},
        ),
        "spans_see_all_blocks": (
            "spans look at the whole group",
            long | {"objective": 0, "block": 1, "max_length": 10},
        ),
    }
    yield from answered("objective_segments", "DATA-05", segments)
    causal: Cases = {
        "causal": ("the last token of each is lost", {"documents": TEXTS, "length": 4}),
        "causal_exactly": ("whole segments alone", {"documents": [[11, 12, 13]], "length": 2}),
        "causal_short": ("two ends", {"documents": [[11, 12, 13]], "length": 8}),
    }
    yield from answered("full_lm_segments", "DATA-06", causal)
    mixed: Cases = {
        "mixed": (
            "a choice of an ended stream is passed over",
            {"lengths": [2, 0, 3], "choices": [2, 0, 1, 0, 0, 2, 0, 2, 2, 1]},
        ),
    }
    yield from answered("mix_streams", "DATA-07", mixed)


MIXTURES = (
    *("mix_ul2", "mix_ul2_noprefix", "mix_full_lm", "mix_lesscode_ul2"),
    *("mix_ul2_stage2", "mix_full_lm_stage2", "mix_ul2_v2", "mix_full_lm_v2"),
)
WILDCHAT = {"input": "Who? ", "output": "I."}
ORCA = {"system_prompt": "Be kind.", "question": "Who?", "response": "I."}


def mixtures() -> Iterator[Example]:
    """Yield the published mixtures and the texts of fine-tuning."""
    shares: Cases = {f"shares_of_{name}": (name, {"name": name}) for name in MIXTURES}
    yield from answered("mixture", "DATA-08", shares)
    texts: Cases = {
        "wildchat": ("as they are", {"task": "wildchat_gpt4_sft", "fields": WILDCHAT}),
        "orca": ("nothing between the parts", {"task": "orca_sft", "fields": ORCA}),
    }
    yield from answered("sft_texts", "DATA-10", texts)
    pair = {"inputs": [11, 12, 13], "targets": [21, 22, 23], "inputs_length": 3}
    pair["targets_length"] = 3
    ends: Cases = {
        "wildchat_ends": ("no end, so nothing is cut", pair | {"ends": []}),
        "orca_ends": ("an end behind the targets alone", pair | {"ends": ["targets"]}),
    }
    yield from answered("finish_example", "DATA-10", ends)


def no_documents() -> Iterator[Example]:
    """Yield documents, groups and choices that must be rejected."""
    legal: dict[str, Any] = {"documents": [[11, 12], [13]]}
    changes: Cases = {
        "negative_document": ("a negative id", {"documents": [[11, 12], [-1]]}),
        "document_of_floats": ("no whole number", {"documents": [[11, 12], [1.5]]}),
    }
    yield from rejected("join_documents", "DATA-11", legal, changes)
    legal |= {"objective": 5, "inputs_length": 8}
    changes = {
        "segments_of_no_block": ("a block that there is not", {"block": 1}),
        "segments_of_objective_6": ("no objective", {"objective": 6}),
    }
    yield from rejected("objective_segments", "DATA-11", legal, changes)
    yield from rejected(
        *("mixture", "DATA-11", {}),
        {"unknown_mixture": ("no mixture", {"name": "mix_ul3"})},
    )
    changes = {
        "unknown_task": ("no task", {"task": "alpaca_sft"}),
        "missing_question": (
            "a missing field",
            {"fields": {name: text for name, text in ORCA.items() if name != "question"}},
        ),
    }
    yield from rejected("sft_texts", "DATA-11", {"task": "orca_sft", "fields": ORCA}, changes)
    changes = {
        "choice_of_no_stream": ("stream 2 of two", {"choices": [0, 2]}),
        "choice_below_0": ("stream -1", {"choices": [0, -1]}),
    }
    yield from rejected("mix_streams", "DATA-11", {"lengths": [2, 1], "choices": [0]}, changes)


# ---- batching ----------------------------------------------------------------------------------


def pairs(*examples: tuple[list[int], list[int]]) -> list[dict[str, list[int]]]:
    """Return examples of inputs and targets."""
    return [{"inputs": inputs, "targets": targets} for inputs, targets in examples]


SIZES = {"inputs": 5, "targets": 4}
THREE = pairs(([11, 12, 1], [13, 1]), ([21, 1], [22, 23, 1]), ([31, 32, 33, 1], [34, 35, 1]))
ROWS = {"examples": THREE, "lengths": SIZES, "pack": False}
PACKED = ROWS | {"pack": True, "lengths": {"inputs": 6, "targets": 4}}
ALONE = {
    "examples": [{"targets": ids} for ids in ([11, 12, 1], [21, 1], [31, 32, 33, 34])],
    "lengths": {"targets": 5},
}


def rows() -> Iterator[Example]:
    """Yield a row an example; each clause is of one feature."""
    empty = ROWS | {"examples": pairs(([], [13, 1]), ([11, 1], [12]))}
    by_feature = (
        ("BATCH-01", "target_tokens", "inputs, targets, padding", ROWS),
        ("BATCH-02", "input_tokens", "the end of the row before is not fed", ROWS),
        ("BATCH-02", "input_tokens", "another start token", ROWS | {"start": 7}),
        ("BATCH-03", "loss_weights", "on every target, ends too", ROWS),
        ("BATCH-03", "loss_weights", "without inputs", empty),
        ("BATCH-03", "loss_weights", "on inputs too", ROWS | {"loss_on_targets_only": False}),
        ("BATCH-04", "causal_attention", "one position behind the inputs", ROWS),
        ("BATCH-04", "causal_attention", "without inputs the first position", empty),
    )
    for number, (clause, feature, what, arguments) in enumerate(by_feature):
        made = naive_data.decoder_features(**arguments)
        wanted = {f"decoder_{feature}": made[f"decoder_{feature}"]}
        yield Example(f"rows_{number}", clause, what, "decoder_features", arguments, wanted)
    cases: Cases = {
        "rows_of_targets": ("targets alone", ALONE | {"pack": False}),
        "packed_targets": ("targets alone, packed", ALONE | {"pack": True}),
    }
    yield from answered("decoder_features", "BATCH-05", cases)


def packings() -> Iterator[Example]:
    """Yield packed rows, traps among them."""
    many = pairs(([11], [1]), ([12], [1]), ([13], [1]), ([], [1]), ([], [1]))
    fits = pairs(([11, 12, 1], [13, 1]), ([21, 1], [22, 23, 1]), ([31], [32]))
    first = pairs(([11], [12, 1]), ([21, 22, 23, 24, 1], [25, 26, 1]), ([31], [1]))
    zero = pairs(([11, 0, 12, 1], [13, 14, 1]), ([21, 1], [22]))
    cases: Cases = {
        "packed_exactly": ("two fill a row, the third begins one", PACKED | {"examples": fits}),
        "packed_never_back": ("no row is filled up again", PACKED | {"examples": first}),
        "packed_batch": (
            "as many examples as positions close a row",
            {"examples": many, "lengths": {"inputs": 1, "targets": 3}, "pack": True},
        ),
    }
    yield from answered("decoder_features", "BATCH-06", cases)
    cases = {
        "packed_segments": ("segments, positions, and the start token", PACKED | {"start": 7}),
        "packed_all_losses": (
            "weights of each by its own inputs",
            PACKED | {"loss_on_targets_only": False},
        ),
    }
    yield from answered("decoder_features", "BATCH-07", cases)
    zero_of_one = {"examples": [{"targets": ids} for ids in ([5, 0, 6], [7, 8])]}
    zero_of_one["lengths"] = {"targets": 4}
    cases = {
        "zero_inside": ("a weight on the inputs", ROWS | {"examples": zero}),
        "zero_inside_packed": ("the tail is cut", PACKED | {"examples": zero}),
        "zero_inside_targets": ("targets alone fit by their tokens", zero_of_one | {"pack": True}),
    }
    yield from answered("decoder_features", "BATCH-08", cases)
    nothing = pairs(([11, 12, 1], []), ([21, 1], [22, 1]), ([31], [32]))
    both = pairs(([], []), ([21, 1], [22, 1]))
    cases = {
        "empty_targets": ("one id 0", ROWS | {"examples": nothing}),
        "empty_targets_packed": ("later examples one further", PACKED | {"examples": nothing}),
        "empty_example": ("no id at all", PACKED | {"examples": both}),
        "empty_example_alone": ("a row of padding", ROWS | {"examples": both}),
    }
    yield from answered("decoder_features", "BATCH-09", cases)


def no_rows() -> Iterator[Example]:
    """Yield examples that must be rejected."""
    changes: Cases = {
        "too_long_inputs": ("6 of 5", {"examples": pairs(([*range(11, 17)], [1]))}),
        "too_long_targets": ("5 of 4", {"examples": pairs(([11], [*range(11, 16)]))}),
        "without_targets": ("no targets", {"examples": [{"inputs": [11]}]}),
        "without_inputs": ("no inputs", {"examples": [{"targets": [11]}]}),
        "no_example": ("none at all", {"examples": []}),
        "too_long_packed": (
            "cutting is not packing's work",
            {"examples": pairs(([11], [*range(11, 16)])), "pack": True},
        ),
    }
    yield from rejected("decoder_features", "BATCH-10", ROWS, changes)


def counted() -> Iterator[Example]:
    """Yield statistics of rows."""
    for name, what, arguments in (
        ("statistics", "a row that holds a token is an example", ROWS),
        ("statistics_packed", "examples are segments", PACKED),
        (
            "statistics_of_padding",
            "a row of padding is none",
            ROWS | {"examples": pairs(([], []), ([21, 1], [22, 1]))},
        ),
    ):
        made = naive_data.decoder_features(**arguments)
        features = {feature: np.array(ids, np.int32) for feature, ids in made.items()}
        answer = naive_data.feed_statistics(made)
        given = {"features": features}
        yield Example(name, "BATCH-11", what, "feed_statistics", given, answer)


def examples() -> list[Example]:
    """Return the examples of both chapters, in the order of SPEC.md."""
    return [
        *blocks(),
        *streams(),
        *mixtures(),
        *no_documents(),
        *rows(),
        *packings(),
        *no_rows(),
        *counted(),
    ]
