"""What the data side refuses: vocabulary, noise, objectives, documents, batching, draws, the pipeline."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from rejections import (
    LEGAL,
    NOT_COUNTS,
    NOT_FACTORS,
    NOT_WORDS,
    Row,
    changed,
    not_boolean,
    not_whole,
    rows_of_values,
)
from rejections_decoding import NOT_DIALECTS

from openmoe_spec.data import OBJECTIVES

TOKENS = np.arange(11, 23)
MASK = np.array([0, 1, 1, 0, 0, 1, 0, 0, 1, 0, 0, 1], bool)
TEXTS = [np.array([11, 12, 13]), np.array([21, 22])]
EXAMPLES = [{"inputs": TEXTS[0], "targets": TEXTS[1]}]
ROWS_FED = {
    "decoder_target_tokens": np.array([[11, 12, 1], [13, 1, 0]], np.int32),
    "decoder_loss_weights": np.array([[0, 1, 1], [1, 1, 0]], np.int32),
    "decoder_segment_ids": np.array([[1, 1, 1], [1, 1, 0]], np.int32),
}
NOISE = {"noise_density": 0.5, "mean_noise_span_length": 3.0}
ORDERS = {"noise_permutation": np.array([1, 2, 0, 4, 3]), "nonnoise_permutation": np.arange(5)}
SIZES = {"inputs_length": 16, "targets_length": 16}
REPLACED = {"vocabulary_size": 60, "num_sentinels": 20, "overflow": "rejected"}
DRAWN = {"count": 3, "seed": 1}

LEGAL.update(
    {
        "vocabulary.vocabulary": {"num_pieces": 10, "num_sentinels": 4, "reverse": True},
        "vocabulary.decoded_ids": {"ids": TOKENS, "vocabulary_size": 20, "unknown": 3},
        "vocabulary.utf8": {"text": "naïve".encode()},
        "vocabulary.with_sentinels": {"model": b"\n\0", "num_sentinels": 4, "reverse": True},
        "noise.noise_counts": {"length": 12, **NOISE},
        "noise.run_lengths": {"num_tokens": 6, "num_runs": 2, "permutation": np.arange(5)},
        "noise.noise_mask": {"length": 12, **NOISE, **ORDERS, "roll": 0},
        "noise.span_lengths": {
            "inputs_length": 16,
            **NOISE,
            "extra_tokens_per_span_inputs": 1,
            "extra_tokens_per_span_targets": 1,
        },
        "noise.prefix_bounds": {"length": 12, "noise_density": 0.5},
        "objectives.objectives": {"dialect": "t5x"},
        "objectives.replace_noise": {
            "tokens": TOKENS,
            "noise_mask": MASK,
            "transform": "noise_span_to_unique_sentinel",
            **REPLACED,
        },
        "objectives.denoise": {"tokens": TOKENS, "noise_mask": MASK, **REPLACED},
        "objectives.split_prefix": {"tokens": TOKENS, "split": 5},
        "objectives.finish_example": {
            "inputs": TOKENS,
            "targets": TOKENS,
            **SIZES,
            "prompt": np.array([2, 3]),
            "ends": ("inputs", "targets"),
        },
        "objectives.ul2_example": {
            "segment": TOKENS,
            "objective": 2,
            **SIZES,
            "prompt": np.array([2, 3]),
            **ORDERS,
            "split": None,
            **REPLACED,
            "dialect": "t5x",
        },
        "documents.num_blocks": {"length": 12, "max_length": 5},
        "documents.document_block": {"tokens": TOKENS, "block": 1, "max_length": 5},
        "documents.join_documents": {"documents": TEXTS, "end": 1},
        "documents.objective_groups": {"num_groups": 8, "objective": 1},
        "documents.split_tokens": {"tokens": TOKENS, "length": 5},
        "documents.objective_segments": {
            "documents": TEXTS,
            "objective": 5,
            "inputs_length": 4,
            "block": 1,
            "max_length": 3,
        },
        "documents.full_lm_segments": {"documents": TEXTS, "length": 4},
        "documents.mix_streams": {"lengths": [2, 1], "choices": np.array([0, 1, 1, 0])},
        "documents.mixture": {"name": "mix_ul2"},
        "documents.sft_texts": {
            "task": "orca_sft",
            "fields": {"system_prompt": "Be kind.", "question": "Who?", "response": "I."},
        },
        "batching.decoder_features": {
            "examples": EXAMPLES,
            "lengths": {"inputs": 4, "targets": 3},
            "pack": True,
            "loss_on_targets_only": True,
            "start": 0,
        },
        "batching.shifted": {
            "targets": ROWS_FED["decoder_target_tokens"],
            "segment_ids": ROWS_FED["decoder_segment_ids"],
            "start": 0,
        },
        "batching.packed": {
            "examples": [
                {"targets": TEXTS[0], "widths": np.full(3, 1), "widths_and_one": np.full(3, 2)}
            ],
            "length": 4,
        },
        "batching.feed_statistics": {"features": ROWS_FED},
        "draws.permutations": {
            "generator": np.random.default_rng(0),
            "counts": {"num_noise_tokens": 3, "num_nonnoise_tokens": 2},
        },
        "draws.draw_noise_masks": {"length": 12, **NOISE, **DRAWN},
        "draws.draw_splits": {"length": 12, **DRAWN},
        "draws.draw_objectives": DRAWN,
        "draws.draw_blocks": {"length": 12, "max_length": 5, **DRAWN},
        "draws.draw_tasks": {"mixture": "mix_ul2", **DRAWN},
        "feeding.feed": {
            "documents": TEXTS,
            **DRAWN,
            **SIZES,
            "vocabulary_size": 400,
            "prompts": [np.array([2, 3])] * len(OBJECTIVES),
            "state": 1,
            "process": 0,
            "num_processes": 1,
        },
        "expectations.of_objective": {"objective": 5, **SIZES, "prompt_length": 2},
        "expectations.of_mixture": {**SIZES, "prompt_length": 2},
    }
)

# ---------------------------------------------------------------------------- illegal values

NOT_NUMBERS = {what: value for what, value in NOT_COUNTS.items() if what != "zero"}
"""What is no whole number of 0 or more."""
NOT_DENSITIES = {what: value for what, value in NOT_FACTORS.items() if "zero" not in what}
NOT_MEANS = NOT_FACTORS | {"below every float32": 1e-46, "above every float32": 1e39}
NOT_LENGTHS = NOT_COUNTS | {"one": 1}


def not_ids(array: np.ndarray) -> Iterator[tuple[str, Any]]:
    """Yield what is no array of ids."""
    yield "nothing", None
    yield "one axis more", array[None]
    yield "a number", 1.5
    yield "a word", "nonsense"
    yield "a dictionary", {}
    yield "a ragged list", [[1], [1, 2]]
    yield "a list of halves", [1.5, 2.5]
    yield "a negative id", changed(array, (0,), -1)
    yield "an id beyond int64", changed(array.astype(np.uint64), (0,), 2**63)
    yield from not_whole(array)


def rows_of_ids(
    function: str, argument: str, *clauses: str, optional: bool = False, **other: Any
) -> Iterator[Row]:
    """Yield rows of an argument that is no array of ids, `other` being the values besides."""
    values = dict(not_ids(LEGAL[function][argument]))
    if optional:
        del values["nothing"]
    yield from rows_of_values(function, argument, values | other, *clauses)


def rows_of_permutation(function: str, argument: str, *clauses: str) -> Iterator[Row]:
    """Yield rows of an argument that is no permutation of its size."""
    array = np.asarray(LEGAL[function][argument])
    others = {"one place less": array[:-1], "a place twice": changed(array, (0,), array[1])}
    others |= {"from 1 on": array + 1, "no place": array[:0]}
    yield from rows_of_ids(function, argument, *clauses, **others)


def not_documents() -> Iterator[tuple[str, Any]]:
    """Yield what is no sequence of documents."""
    yield "nothing", None
    yield "a number", 2
    yield "a word", "nonsense"
    yield "an array", np.stack([TOKENS, TOKENS])
    yield "a mapping", {"first": TOKENS}
    for what, one in not_ids(TOKENS):
        yield f"a document is {what}", [TEXTS[0], one]


def rows_of_noise(function: str) -> Iterator[Row]:
    """Yield rows of a density and of a mean."""
    yield from rows_of_values(
        function, "noise_density", NOT_DENSITIES | {"above one": 1.5}, "OBJ-06"
    )
    yield from rows_of_values(function, "mean_noise_span_length", NOT_MEANS, "OBJ-06")


def rows_of_draws(function: str, clause: str) -> Iterator[Row]:
    """Yield rows of how many are drawn from what seed."""
    yield from rows_of_values(function, "count", NOT_COUNTS, clause)
    yield from rows_of_values(function, "seed", NOT_NUMBERS, clause)


# ---------------------------------------------------------------------------- the chapters


def vocabulary_rows() -> Iterator[Row]:
    """Yield the illegal calls of the vocabulary."""
    clause = "VOCAB-05"
    yield from rows_of_values("vocabulary.vocabulary", "num_pieces", NOT_COUNTS, clause)
    for name in ("vocabulary", "with_sentinels"):
        yield from rows_of_values(f"vocabulary.{name}", "num_sentinels", NOT_NUMBERS, clause)
    function = "vocabulary.decoded_ids"
    yield from rows_of_ids(function, "ids", clause)
    yield from rows_of_values(function, "vocabulary_size", NOT_COUNTS, clause)
    unknown = NOT_NUMBERS | {"beyond the vocabulary": 20}
    yield from rows_of_values(function, "unknown", unknown, clause)
    texts = {
        "a lone byte": b"na\xefve",
        "half a character": "naïve".encode()[:3],
        "half a pair": "\ud800",
        "nothing": None,
        "a number": 1,
        "a list": ["naive"],
    }
    yield from rows_of_values("vocabulary.utf8", "text", texts, clause)
    models = {
        "text": "model",
        "nothing": None,
        "a list": [1],
        "a model with sentinels": "…▁<extra_id_0>…".encode(),
        "a model with the second sentinel": "…▁<extra_id_1>…".encode(),
    }
    yield from rows_of_values("vocabulary.with_sentinels", "model", models, clause)


def noise_rows() -> Iterator[Row]:
    """Yield the illegal calls of noise."""
    for function in ("noise.noise_counts", "noise.noise_mask", "draws.draw_noise_masks"):
        yield from rows_of_values(function, "length", NOT_COUNTS, "OBJ-06")
        yield from rows_of_noise(function)
        crowded = {"more spans than noise": 0.5}
        yield from rows_of_values(function, "mean_noise_span_length", crowded, "OBJ-06")
        dense = {"noise_density": 1.0, "mean_noise_span_length": 1.0}
        arguments = ("mean_noise_span_length", "noise_density")
        yield Row(function, "more spans than others", dense, arguments, ("OBJ-06",))
    function = "noise.run_lengths"
    yield from rows_of_values(function, "num_tokens", NOT_COUNTS, "OBJ-06")
    yield from rows_of_values(function, "num_runs", NOT_COUNTS | {"more than tokens": 7}, "OBJ-06")
    yield from rows_of_permutation(function, "permutation", "OBJ-06")
    function = "noise.noise_mask"
    for argument in ORDERS:
        values = rows_of_permutation(function, argument, "OBJ-06")
        yield from (row._replace(arguments=(argument, "permutation")) for row in values)
    yield from rows_of_values(function, "roll", NOT_NUMBERS | {"beyond L": 13}, "OBJ-06")
    function = "noise.span_lengths"
    long = {"beyond every segment": 2**21}
    yield from rows_of_values(function, "inputs_length", NOT_COUNTS | long, "OBJ-06")
    yield from rows_of_noise(function)
    for part in ("inputs", "targets"):
        extra = f"extra_tokens_per_span_{part}"
        yield from rows_of_values(function, extra, NOT_NUMBERS, "OBJ-06")
    for what, of_inputs, mean in (("no sentinel", 0, 3.0), ("one sentinel", 1, 1e30)):
        endless = {"noise_density": 1.0, "mean_noise_span_length": mean}
        endless["extra_tokens_per_span_inputs"] = of_inputs
        yield Row(
            *(function, f"noise alone, {what} in inputs", endless, tuple(endless)), ("OBJ-06",)
        )
    function = "noise.prefix_bounds"
    yield from rows_of_values(function, "length", NOT_COUNTS, "OBJ-12")
    dense = NOT_DENSITIES | {"above a half": 0.51}
    yield from rows_of_values(function, "noise_density", dense, "OBJ-12")


def objective_rows() -> Iterator[Row]:
    """Yield the illegal calls of the objectives."""
    yield from rows_of_values("objectives.objectives", "dialect", NOT_DIALECTS, "DIAL-01")
    for name in ("replace_noise", "denoise"):
        function = f"objectives.{name}"
        of_v = {"an id of V": changed(TOKENS, (3,), 60)}
        yield from rows_of_ids(function, "tokens", "OBJ-09", **of_v)
        masks = dict(not_boolean(MASK)) | {"nothing": None, "longer": np.append(MASK, True)}
        masks |= {"shorter": MASK[:-1], "one axis more": MASK[None], "a word": "nonsense"}
        yield from rows_of_values(function, "noise_mask", masks, "OBJ-09")
        yield from replaced_rows(function, "noise_mask")
    yield from rows_of_values("objectives.replace_noise", "transform", NOT_WORDS, "OBJ-09")
    function = "objectives.split_prefix"
    yield from rows_of_ids(function, "tokens", "OBJ-12", empty=TOKENS[:0])
    yield from rows_of_values(function, "split", NOT_NUMBERS | {"beyond L": 13}, "OBJ-12")
    function = "objectives.finish_example"
    for argument in ("inputs", "targets"):
        yield from rows_of_ids(function, argument, "OBJ-15")
        yield from rows_of_values(function, f"{argument}_length", NOT_LENGTHS, "OBJ-15")
    yield from rows_of_ids(function, "prompt", "OBJ-15", optional=True)
    ends = {"a word": "inputs", "nothing": None, "a number": 1, "another feature": ("input",)}
    yield from rows_of_values(function, "ends", ends | {"numbers": (1,)}, "OBJ-15")
    yield from example_rows("objectives.ul2_example")


def replaced_rows(function: str, of_runs: str) -> Iterator[Row]:
    """Yield rows of the ids and sentinels that there are; `of_runs` may be named for too many."""
    yield from rows_of_values(function, "vocabulary_size", NOT_COUNTS, "OBJ-09")
    beyond = {"more than ids": 61}
    yield from rows_of_values(function, "num_sentinels", NOT_NUMBERS | beyond, "OBJ-09")
    few = {"num_sentinels": 1}
    yield Row(function, "too few sentinels", few, ("num_sentinels", of_runs), ("OBJ-09",))
    yield from rows_of_values(function, "overflow", NOT_WORDS, "OBJ-09")


def example_rows(function: str) -> Iterator[Row]:
    """Yield rows of whole examples, of spans and of a prefix."""
    others = {"empty": TOKENS[:0], "an id of V": changed(TOKENS, (3,), 60)}
    yield from rows_of_ids(function, "segment", "OBJ-15", "OBJ-09", **others)
    seventh = NOT_NUMBERS | {"the seventh": 6}
    yield from rows_of_values(function, "objective", seventh, "OBJ-15")
    for part in ("inputs", "targets"):
        yield from rows_of_values(function, f"{part}_length", NOT_LENGTHS, "OBJ-15")
    yield from rows_of_ids(function, "prompt", "OBJ-15", optional=True)
    yield from replaced_rows(function, "noise_mask")
    for argument in ORDERS:
        for row in rows_of_permutation(function, argument, "OBJ-06", "OBJ-15"):
            # Which of both is missing is not said.
            lacking = "noise_permutation" if row.what == "nothing" else "permutation"
            yield row._replace(arguments=(argument, lacking))
    splits = NOT_COUNTS | {"all tokens": 12}
    for row in rows_of_values(function, "split", splits, "OBJ-15", "OBJ-12"):
        yield row._replace(changes=row.changes | {"objective": 5})
    beyond = {"objective": 5, "split": 5, "segment": changed(TOKENS, (3,), 60)}
    yield Row(function, "a prefix beyond V", beyond, ("segment",), ("OBJ-15", "OBJ-09"))
    yield from rows_of_values(function, "dialect", NOT_DIALECTS, "DIAL-01", "OBJ-15")


def document_rows() -> Iterator[Row]:
    """Yield the illegal calls of documents."""
    clause = "DATA-11"
    of_objective = NOT_NUMBERS | {"the seventh": 6}
    for name in ("num_blocks", "document_block", "objective_segments"):
        yield from rows_of_values(f"documents.{name}", "max_length", NOT_COUNTS, clause)
    yield from rows_of_values("documents.num_blocks", "length", NOT_NUMBERS, clause)
    function = "documents.document_block"
    # An empty document has no block at all.
    values = rows_of_ids(function, "tokens", clause, empty=TOKENS[:0])
    yield from (row._replace(arguments=("tokens", "block")) for row in values)
    beyond = NOT_NUMBERS | {"beyond the last": 3}
    yield from rows_of_values(function, "block", beyond, clause)
    for name in ("join_documents", "objective_segments", "full_lm_segments"):
        yield from rows_of_values(f"documents.{name}", "documents", dict(not_documents()), clause)
    ends = {what: value for what, value in NOT_NUMBERS.items() if what != "nothing"}
    yield from rows_of_values("documents.join_documents", "end", ends, clause)
    function = "documents.objective_groups"
    yield from rows_of_values(function, "num_groups", NOT_NUMBERS, clause)
    yield from rows_of_values(function, "objective", of_objective, clause)
    function = "documents.objective_segments"
    yield from rows_of_values(function, "documents", {"more than 128": TEXTS * 65}, clause)
    yield from rows_of_values(function, "objective", of_objective, clause)
    yield from rows_of_values(function, "block", NOT_NUMBERS | {"beyond the last": 2}, clause)
    clauses = (clause, "OBJ-06", "OBJ-15")
    for objective in range(len(OBJECTIVES)):
        for row in rows_of_values(function, "inputs_length", NOT_LENGTHS, *clauses):
            yield row._replace(
                what=f"{row.what}, objective {objective}",
                changes=row.changes | {"objective": objective},
            )
    yield from rows_of_values("documents.full_lm_segments", "length", NOT_LENGTHS, clause)
    function = "documents.mix_streams"
    lengths = {"nothing": None, "a number": 2, "no stream": [], "a word": "nonsense"}
    lengths |= {f"one is {what}": [2, value] for what, value in NOT_NUMBERS.items()}
    yield from rows_of_values(function, "lengths", lengths, clause)
    yield from rows_of_ids(function, "choices", clause, beyond=np.array([0, 2]))
    yield from rows_of_values("documents.mixture", "name", NOT_WORDS, clause)
    function = "documents.sft_texts"
    yield from rows_of_values(function, "task", NOT_WORDS, clause)
    legal = LEGAL[function]["fields"]
    fields: dict[str, Any] = {"nothing": None, "a list": list(legal), "a word": "question"}
    for name in legal:
        fields[f"without {name}"] = {key: legal[key] for key in legal if key != name}
        fields[f"{name} is a number"] = legal | {name: 1}
    yield from rows_of_values(function, "fields", fields, clause)


def batching_rows() -> Iterator[Row]:
    """Yield the illegal calls of batching."""
    function, clause = "batching.decoder_features", "BATCH-10"
    one = EXAMPLES[0]
    values: dict[str, Any] = {
        "nothing": None,
        "a number": 1,
        "a word": "nonsense",
        "a mapping": one,
        "none": [],
        "an example is a list": [list(one.values())],
        "an example is nothing": [None],
        "longer inputs": [one | {"inputs": np.arange(11, 16)}],
        "longer targets": [one | {"targets": np.arange(11, 15)}],
    }
    for feature in one:
        values[f"without {feature}"] = [{key: one[key] for key in one if key != feature}]
        values[f"{feature} beyond int32"] = [one | {feature: np.array([2**31])}]
        for what, value in not_ids(one[feature]):
            values[f"{feature}: {what}"] = [one | {feature: value}]
    yield from rows_of_values(function, "examples", values, clause)
    lengths: dict[str, Any] = {
        "nothing": None,
        "a number": 7,
        "a list": [4, 3],
        "without targets": {"inputs": 4},
        "another feature": {"inputs": 4, "targets": 3, "suffixes": 2},
        "targets of 0": {"inputs": 4, "targets": 0},
    }
    for what, value in NOT_NUMBERS.items():
        lengths[f"inputs: {what}"] = {"inputs": value, "targets": 3}
        lengths[f"targets: {what}"] = {"inputs": 4, "targets": value}
    yield from rows_of_values(function, "lengths", lengths, clause)
    yield from rows_of_values(function, "start", NOT_NUMBERS | {"beyond int32": 2**31}, clause)
    function = "batching.feed_statistics"
    features: dict[str, Any] = {
        "nothing": None,
        "a list": list(ROWS_FED.values()),
        "no feature": {},
    }
    for name, rows in ROWS_FED.items():
        if name != "decoder_segment_ids":
            features[f"without {name}"] = {k: v for k, v in ROWS_FED.items() if k != name}
        for what, value in (
            ("nothing", None),
            ("one row", rows[0]),
            ("a row less", rows[:1]),
            ("lists", rows.tolist()),
            ("words", rows.astype(str)),
        ):
            features[f"{name}: {what}"] = ROWS_FED | {name: value}
    yield from rows_of_values(function, "features", features, clause)


def drawing_rows() -> Iterator[Row]:
    """Yield the illegal calls of draws, expectations and the pipeline."""
    for name, clause in (
        ("draw_noise_masks", "OBJ-06"),
        ("draw_splits", "OBJ-12"),
        ("draw_objectives", "OBJ-15"),
        ("draw_blocks", "DATA-11"),
        ("draw_tasks", "DATA-11"),
    ):
        yield from rows_of_draws(f"draws.{name}", clause)
    yield from rows_of_values("draws.draw_splits", "length", NOT_COUNTS, "OBJ-12")
    yield from rows_of_values("draws.draw_blocks", "length", NOT_COUNTS, "DATA-11")
    yield from rows_of_values("draws.draw_blocks", "max_length", NOT_COUNTS, "DATA-11")
    for row in rows_of_values("draws.draw_tasks", "mixture", NOT_WORDS, "DATA-11"):
        yield row._replace(arguments=("mixture", "name"))
    for name in ("of_objective", "of_mixture"):
        function = f"expectations.{name}"
        short = NOT_LENGTHS | {"two": 2}
        yield from rows_of_values(function, "inputs_length", short, "OBJ-15")
        yield from rows_of_values(function, "targets_length", NOT_LENGTHS, "OBJ-15")
        yield from rows_of_values(function, "prompt_length", NOT_NUMBERS, "OBJ-15")
    seventh = NOT_NUMBERS | {"the seventh": 6}
    yield from rows_of_values("expectations.of_objective", "objective", seventh, "OBJ-15")
    function, clause = "feeding.feed", "DATA-11"
    yield from rows_of_draws(function, clause)
    documents = dict(not_documents()) | {"none": [], "empty ones": [TOKENS[:0], np.zeros(3, int)]}
    yield from rows_of_values(function, "documents", documents, clause)
    states = {what: value for what, value in NOT_NUMBERS.items() if what != "nothing"}
    yield from rows_of_values(function, "state", states, clause)
    yield from rows_of_values(function, "num_processes", NOT_COUNTS, clause)
    yield from rows_of_values(function, "process", NOT_NUMBERS | {"beyond": 1}, clause)
    for part in ("inputs", "targets"):
        yield from rows_of_values(
            function, f"{part}_length", NOT_LENGTHS, clause, "OBJ-15", "OBJ-06"
        )
    sizes = rows_of_values(
        function, "vocabulary_size", NOT_COUNTS | {"below a token": 12}, clause, "OBJ-09"
    )
    yield from (row._replace(arguments=("vocabulary_size", "documents")) for row in sizes)
    legal = LEGAL[function]["prompts"]
    prompts = {"nothing": None, "a number": 6, "one less": legal[1:], "a word": "prompts"}
    for what, value in not_ids(legal[0]):
        prompts[f"one is {what}"] = [*legal[1:], value]
    yield from rows_of_values(function, "prompts", prompts, clause)


ROWS = [
    *vocabulary_rows(),
    *noise_rows(),
    *objective_rows(),
    *document_rows(),
    *batching_rows(),
    *drawing_rows(),
]
