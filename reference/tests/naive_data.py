"""Deliberately naive data side: vocabulary, objectives, documents, batching, expectations.

Written from SPEC.md chapters 15 to 18 as plain loops over lists of whole numbers, sharing nothing with
the reference, constants included. NumPy is here for float32 arithmetic alone. Arguments are legal ones:
nothing is refused here.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

Ids = list[int]
Example = dict[str, Ids]

SPANS = ((3.0, 0.15), (8.0, 0.15), (3.0, 0.5), (8.0, 0.5), (64.0, 0.5))
"""Mean span and density of objectives 0 to 4; objective 5 is PrefixLM."""

RATES = (0.1, 0.1, 0.1, 0.1, 0.1, 0.5)

# ---------------------------------------------------------------------------- vocabulary


def vocabulary(
    num_pieces: int, *, num_sentinels: int = 300, reverse: bool = True
) -> dict[str, Any]:
    """Return the numbers of ids and of rows, and the ids that have a meaning of their own."""
    rows = num_pieces + num_sentinels
    while rows % 128 != 0:
        rows += 1
    upwards = [num_pieces + j for j in range(num_sentinels)]
    return {
        "vocabulary_size": num_pieces + num_sentinels,
        "num_embeddings": rows,
        "pad": 0,
        "end": 1,
        "sentinels": upwards[::-1] if reverse else upwards,
    }


def decoded_ids(ids: Ids, *, vocabulary_size: int, unknown: int = 3) -> Ids:
    """Return ids as they are turned into text, up to and with the first end."""
    found = []
    for given in ids:
        found.append(unknown if given >= vocabulary_size else given)
        if found[-1] == 1:
            break
    return found


# ---------------------------------------------------------------------------- noise


def noise_counts(
    length: int, *, noise_density: float, mean_noise_span_length: float
) -> dict[str, int]:
    """Return how many tokens are noise, in how many spans, and how many are not."""
    tokens = max(length, 2)
    # Python's round goes half to even, and a float32 is a float64 unchanged.
    noise = round(float(np.float32(tokens) * np.float32(noise_density)))
    noise = min(max(noise, 1), tokens - 1)
    spans = round(float(np.float32(noise) / np.float32(mean_noise_span_length)))
    return {
        "num_noise_tokens": noise,
        "num_noise_spans": max(spans, 1),
        "num_nonnoise_tokens": tokens - noise,
    }


def run_lengths(num_tokens: int, num_runs: int, permutation: Ids) -> Ids:
    """Return the lengths of the runs that begin where a permuted list of marks says."""
    marks = [1] * (num_runs - 1) + [0] * (num_tokens - num_runs)
    lengths = [1]
    for place in permutation:
        if marks[place]:
            lengths.append(1)
        else:
            lengths[-1] += 1
    return lengths


def noise_mask(
    length: int,
    *,
    noise_density: float,
    mean_noise_span_length: float,
    noise_permutation: Ids,
    nonnoise_permutation: Ids,
    roll: int = 0,
) -> list[bool]:
    """Return which tokens are noise."""
    if noise_density == 0:
        return [False] * length
    counts = noise_counts(
        length, noise_density=noise_density, mean_noise_span_length=mean_noise_span_length
    )
    spans = counts["num_noise_spans"]
    noise = run_lengths(counts["num_noise_tokens"], spans, noise_permutation)
    others = run_lengths(counts["num_nonnoise_tokens"], spans, nonnoise_permutation)
    mask: list[bool] = []
    for j in range(spans):
        mask += [False] * others[j] + [True] * noise[j]
    mask = mask[:length]
    return [mask[(place - roll) % length] for place in range(length)]


def span_lengths(
    inputs_length: int,
    *,
    noise_density: float,
    mean_noise_span_length: float,
    extra_tokens_per_span_inputs: int = 1,
    extra_tokens_per_span_targets: int = 1,
) -> dict[str, int]:
    """Return the longest segment whose inputs fit, and the length of its targets."""

    def counted(tokens: int) -> tuple[int, int]:
        noise = round(tokens * noise_density)
        spans = round(noise / mean_noise_span_length)
        inputs = tokens - noise + spans * extra_tokens_per_span_inputs + 1
        return inputs, noise + spans * extra_tokens_per_span_targets + 1

    tokens = 0
    # A longer segment has no shorter inputs, so the first that does not fit ends the search.
    while counted(tokens + 1)[0] <= inputs_length:
        tokens += 1
    inputs, targets = counted(tokens)
    less = 1 if noise_density == 0.5 and targets > inputs else 0
    return {"tokens_length": tokens - less, "targets_length": targets - less}


# ---------------------------------------------------------------------------- objectives


def replace_noise(
    tokens: Ids, noise_mask: Sequence[bool | int], *, transform: str, vocabulary_size: int
) -> Ids:
    """Return tokens after one of the seven replacements; run j becomes V - 1 - j whatever it is."""
    replaced = [bool(noise) for noise in noise_mask]
    if "nonnoise" in transform:
        replaced = [not noise for noise in replaced]
    first = vocabulary_size - 1
    result, runs = [], 0
    for place, token in enumerate(tokens):
        begins = place == 0 or not replaced[place - 1]
        if not replaced[place]:
            result.append(token)
        elif transform == "noise_token_to_sentinel":
            result.append(first)
        elif begins and transform.endswith("to_unique_sentinel"):
            result.append(first - runs)
            runs += 1
        elif begins and transform.endswith("span_to_sentinel"):
            result.append(first)
    return result


def prefix_bounds(length: int, *, noise_density: float = 0.5) -> tuple[int, int]:
    """Return the fewest and the most tokens of a prefix."""
    fewest = round(float(np.float32(1 - 2 * noise_density) * np.float32(length - 1)))
    return min(length - 1, max(1, fewest)), length - 1


def split_prefix(tokens: Ids, split: int) -> Example:
    """Return the prefix as inputs and the rest as targets."""
    inputs, targets = [], []
    for place, token in enumerate(tokens):
        (inputs if place < split else targets).append(token)
    return {"inputs": inputs, "targets": targets}


def finish_example(
    inputs: Ids,
    targets: Ids,
    *,
    inputs_length: int,
    targets_length: int,
    prompt: Ids | None = None,
    ends: Sequence[str] = ("inputs", "targets"),
) -> Example:
    """Return an example with its mode in front, cut so that its ends fit."""
    parts = {"inputs": (prompt or []) + inputs, "targets": targets}
    lengths = {"inputs": inputs_length, "targets": targets_length}
    finished = {}
    for name, ids in parts.items():
        end = [1] if name in ends else []
        finished[name] = ids[: lengths[name] - len(end)] + end
    return finished


def ul2_example(
    segment: Ids,
    objective: int,
    *,
    inputs_length: int,
    targets_length: int,
    vocabulary_size: int,
    prompt: Ids,
    noise_permutation: Ids | None = None,
    nonnoise_permutation: Ids | None = None,
    split: int | None = None,
    dialect: str = "t5x",
) -> Example:
    """Return the example that an objective makes of a segment."""
    if objective == 5:
        made = split_prefix(segment, len(segment) // 2 if dialect == "paper" else split)
    else:
        mean, density = SPANS[objective]
        mask = noise_mask(
            len(segment),
            noise_density=density,
            mean_noise_span_length=mean,
            noise_permutation=noise_permutation,
            nonnoise_permutation=nonnoise_permutation,
        )
        made = {
            name: replace_noise(
                segment,
                mask,
                transform=f"{kind}_span_to_unique_sentinel",
                vocabulary_size=vocabulary_size,
            )
            for name, kind in (("inputs", "noise"), ("targets", "nonnoise"))
        }
    return finish_example(
        made["inputs"],
        made["targets"],
        inputs_length=inputs_length,
        targets_length=targets_length,
        prompt=[] if dialect == "paper" else prompt,
    )


# ---------------------------------------------------------------------------- documents


def num_blocks(length: int, *, max_length: int = 65_536) -> int:
    """Return how many aligned blocks a document has."""
    return math.ceil(np.float32(length) / np.float32(max_length))


def document_block(tokens: Ids, block: int, *, max_length: int = 65_536) -> Ids:
    """Return one aligned block."""
    return [token for place, token in enumerate(tokens) if place // max_length == block]


def join_documents(documents: Sequence[Ids], *, end: int | None = None) -> Ids:
    """Return documents in one; one without any token is dropped, its end too."""
    joined: Ids = []
    for document in documents:
        joined += [token for token in document if token != 0]
        if end is not None and document:
            joined.append(end)
    return joined


def objective_groups(num_groups: int, objective: int) -> list[int]:
    """Return which groups an objective gets."""
    return [group for group in range(num_groups) if group % 6 == objective]


def segments(tokens: Ids, length: int) -> list[Ids]:
    """Return tokens in segments in turn, the last one shorter."""
    found: list[Ids] = []
    for place, token in enumerate(tokens):
        if place % length == 0:
            found.append([])
        found[-1].append(token)
    return found


def objective_segments(
    documents: Sequence[Ids],
    objective: int,
    *,
    inputs_length: int,
    block: int = 0,
    max_length: int = 65_536,
) -> list[Ids]:
    """Return the segments that an objective makes of one group."""
    joined = join_documents(documents)
    if objective == 5:
        return segments(document_block(joined, block, max_length=max_length), inputs_length - 1)
    mean, density = SPANS[objective]
    length = span_lengths(inputs_length, noise_density=density, mean_noise_span_length=mean)
    return segments(joined, length["tokens_length"])


def full_lm_segments(documents: Sequence[Ids], *, length: int) -> list[Ids]:
    """Return the segments of the causal stream."""
    joined = join_documents(documents, end=1)
    return [[*segment[: length - 1], 1] for segment in segments(joined, length)]


def mix_streams(lengths: Sequence[int], choices: Ids) -> list[list[int]]:
    """Return (stream, place in it) of each example taken."""
    taken = [0] * len(lengths)
    found = []
    for stream in choices:
        if taken[stream] < lengths[stream]:
            found.append([stream, taken[stream]])
            taken[stream] += 1
    return found


_COLUMNS = {
    "mix_ul2": (0, "ul2"),
    "mix_ul2_noprefix": (0, "ul2"),
    "mix_full_lm": (0, "full_lm"),
    "mix_lesscode_ul2": (1, "ul2"),
    "mix_ul2_stage2": (2, "ul2"),
    "mix_full_lm_stage2": (2, "full_lm"),
    "mix_ul2_v2": (3, "ul2"),
    "mix_full_lm_v2": (3, "full_lm"),
}
_TABLE = (
    ("redpajama_c4", 15, 15, 15, 15),
    ("redpajama_wikipedia", 4.5, 4.5, 6.5, 4.5),
    ("wikipedia", 0, 0, 6.5, 2.5),
    ("redpajama_stackexchange", 2, 2, 2.5, 1),
    ("redpajama_arxiv", 2.5, 2.5, 4.5, 4.5),
    ("redpajama_book", 4.5, 4.5, 6.5, 4.5),
    ("redpajama_github", 4.5, 4.5, 5, 5),
    ("redpajama_common_crawl", 67, 67, 43.5, 33),
    ("the_stack_dedup", 100, 0, 10, 30),
)


def mixture(name: str) -> dict[str, float]:
    """Return the shares of a published mixture by task."""
    column, suffix = _COLUMNS[name]
    rates = {f"{row[0]}_{suffix}": row[1 + column] for row in _TABLE if row[1 + column] > 0}
    whole = sum(rates.values())
    return {task: rate / whole for task, rate in rates.items()}


def sft_texts(task: str, fields: Mapping[str, str]) -> dict[str, str]:
    """Return the texts of a fine-tuning example."""
    if task == "wildchat_gpt4_sft":
        return {"inputs": fields["input"], "targets": fields["output"]}
    asked = fields["system_prompt"] + "USER: " + fields["question"] + "ASSISTANT: "
    return {"inputs": asked, "targets": fields["response"]}


# ---------------------------------------------------------------------------- batching


def decoder_features(
    examples: Sequence[Mapping[str, Ids]],
    *,
    lengths: Mapping[str, int],
    pack: bool,
    loss_on_targets_only: bool = True,
    start: int = 0,
) -> dict[str, list[list[int]]]:
    """Return rows of every feature, an example or several a row."""
    with_inputs, length = "inputs" in lengths, sum(lengths.values())
    features: dict[str, list[list[int]]] = {}
    for row in _rows(examples, length, with_inputs=with_inputs, pack=pack):
        made = _features(
            row, length, with_inputs=with_inputs, by_width=with_inputs and loss_on_targets_only
        )
        packing = {name: made.pop(name) for name in ("decoder_segment_ids", "decoder_positions")}
        # Without packing nothing but the row itself begins.
        segment = packing["decoder_segment_ids"] if pack else [1] * length
        made["decoder_input_tokens"] = _shifted(made["decoder_target_tokens"], segment, start)
        made |= packing if pack else {}
        for name, values in made.items():
            features.setdefault(name, []).append(values)
    return features


Part = tuple[Ids, Ids, int, int]
"""Of one example in a row: ids, their positions, its number among lengths, and length of inputs."""


def _rows(
    examples: Sequence[Mapping[str, Ids]], length: int, *, with_inputs: bool, pack: bool
) -> Iterator[list[Part]]:
    row: list[Part] = []
    for number, example in enumerate(examples):
        width = len(example["inputs"]) if with_inputs else 0
        ids = list(example["inputs"]) if with_inputs else []
        ids += example["targets"] or ([0] if with_inputs else [])
        widths = len(ids) if with_inputs else 0
        if pack:
            ids = ids[: sum(1 for token in ids if token != 0)]
        used = sum(len(part[0]) for part in row), sum(part[2] for part in row)
        full = used[0] + len(ids) > length or used[1] + widths > length
        # A batch has as many examples as a row has positions, and packing begins anew with it.
        if number and (not pack or full or number % length == 0):
            yield row
            row = []
        row.append((ids, list(range(len(ids))), widths, width))
    yield row


def _features(
    row: list[Part], length: int, *, with_inputs: bool, by_width: bool
) -> dict[str, list[int]]:
    targets, positions, widths, segment = [], [], [], []
    number = 0
    for ids, places, many, width in row:
        number += 1 if ids else 0
        targets += ids
        positions += places
        segment += [number if token != 0 else 0 for token in ids]
        widths += [width] * many
    padded = [values + [0] * (length - len(values)) for values in (targets, positions, segment)]
    weights, causal = [], []
    for place, (token, position) in enumerate(zip(padded[0], padded[1], strict=True)):
        of_inputs = by_width and place < len(widths) and position < widths[place]
        weights.append(int(of_inputs != (token != 0)))
        causal.append(int(place < len(widths) and position <= widths[place]))
    made = {
        "decoder_target_tokens": padded[0],
        "decoder_loss_weights": weights,
        "decoder_segment_ids": padded[2],
        "decoder_positions": padded[1],
    }
    return made | ({"decoder_causal_attention": causal} if with_inputs else {})


def _shifted(targets: Ids, segment: Ids, start: int) -> Ids:
    fed = []
    for place in range(len(targets)):
        begins = place == 0 or segment[place] != segment[place - 1]
        fed.append(start if begins else targets[place - 1])
    return fed


def feed_statistics(features: Mapping[str, list[list[int]]]) -> dict[str, int]:
    """Return what was fed, counted."""
    found = {"rows": 0, "positions": 0, "tokens": 0, "loss_positions": 0, "examples": 0}
    for number, targets in enumerate(features["decoder_target_tokens"]):
        held = [token for token in targets if token != 0]
        found["rows"] += 1
        found["positions"] += len(targets)
        found["tokens"] += len(held)
        found["loss_positions"] += sum(w != 0 for w in features["decoder_loss_weights"][number])
        if "decoder_segment_ids" in features:
            found["examples"] += len(set(features["decoder_segment_ids"][number]) - {0})
        else:
            found["examples"] += 1 if held else 0
    return found


# ---------------------------------------------------------------------------- expectations


def lengths_of_examples(
    objective: int, *, inputs_length: int, targets_length: int, prompt_length: int
) -> list[tuple[int, int]]:
    """Return the lengths of inputs and targets of a whole segment's example, by equal chances."""
    size = {"inputs_length": inputs_length, "targets_length": targets_length}
    size |= {"vocabulary_size": 1000, "prompt": [2] * prompt_length}
    if objective == 5:
        segment = [7] * (inputs_length - 1)
        fewest, most = prefix_bounds(len(segment))
        draws: list[dict[str, Any]] = [{"split": split} for split in range(fewest, most + 1)]
    else:
        mean, density = SPANS[objective]
        how = {"noise_density": density, "mean_noise_span_length": mean}
        segment = [7] * span_lengths(inputs_length, **how)["tokens_length"]
        counts = noise_counts(len(segment), **how)
        # Lengths are the same whatever the permutations are.
        draws = [
            {
                "noise_permutation": list(range(counts["num_noise_tokens"] - 1)),
                "nonnoise_permutation": list(range(counts["num_nonnoise_tokens"] - 1)),
            }
        ]
    made = [ul2_example(segment, objective, **size, **draw) for draw in draws]
    return [(len(example["inputs"]), len(example["targets"])) for example in made]


def expectation(objective: int, **sizes: int) -> dict[str, Fraction]:
    """Return mean and variance of the tokens and of the loss positions of one example."""
    lengths = lengths_of_examples(objective, **sizes)
    found = {}
    for name, values in (
        ("tokens", [inputs + targets for inputs, targets in lengths]),
        ("loss", [targets for _, targets in lengths]),
    ):
        mean = Fraction(sum(values), len(values))
        squares = [(value - mean) ** 2 for value in values]
        found[name], found[f"{name}_variance"] = mean, sum(squares) / len(values)
    return found


def mixture_expectation(**sizes: int) -> dict[str, Fraction]:
    """Return the shares of positions that hold a token and a loss, one example a row."""
    positions = sizes["inputs_length"] + sizes["targets_length"]
    found = {"fill": Fraction(0), "loss": Fraction(0)}
    for objective, rate in enumerate(RATES):
        one = expectation(objective, **sizes)
        share = Fraction(str(rate)) / positions
        found["fill"] += share * one["tokens"]
        found["loss"] += share * one["loss"]
    return found
