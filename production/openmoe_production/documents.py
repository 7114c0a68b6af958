"""From documents to segments, streams and mixtures of them; segments are views of one array."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from openmoe_production.data_arguments import MOST, id_array, ids, largest, one_of, sequence, whole
from openmoe_production.noise import span_lengths
from openmoe_spec.data import (
    END,
    GROUP_OF_DOCUMENTS,
    MAX_DOCUMENT_LENGTH,
    MIXTURES,
    OBJECTIVES,
    SFT_ENDS,
)
from openmoe_spec.errors import RejectedError


def num_blocks(length: int, *, max_length: int = MAX_DOCUMENT_LENGTH) -> int:
    """Return how many aligned blocks a document has. Errors: RejectedError DATA-11. Spec: DATA-01."""
    length = whole("length", length, "DATA-11", least=0)
    max_length = whole("max_length", max_length, "DATA-11", least=1)
    return int(np.ceil(np.float32(length) / np.float32(max_length)))  # float32 as it was trained


def document_block(
    tokens: np.ndarray, block: int, *, max_length: int = MAX_DOCUMENT_LENGTH
) -> np.ndarray:
    """Return one aligned block of a document [n]: a view.

    Errors: RejectedError DATA-11. Spec: DATA-01.
    """
    tokens = ids("tokens", tokens, "DATA-11")
    count = num_blocks(len(tokens), max_length=max_length)
    first = whole("block", block, "DATA-11", least=0, most=count - 1) * max_length
    return tokens[first : first + max_length]


def join_documents(documents: Sequence[np.ndarray], *, end: int | None = None) -> np.ndarray:
    """Return documents in one [n], each followed by `end` where it is given, without any id 0.

    Errors: RejectedError DATA-11. Spec: DATA-03.
    """
    parts = [
        id_array(f"documents[{place}]", one, "DATA-11")
        for place, one in enumerate(sequence("documents", documents, "DATA-11"))
    ]
    if end is not None:
        close = np.array([whole("end", end, "DATA-11", least=0, most=MOST)], np.int32)
        parts = [part for one in parts if len(one) for part in (one, close)]
    joined = np.concatenate([np.zeros(0, np.int32), *parts])
    largest("documents", joined, "DATA-11")
    return joined if joined.all() else joined[joined != 0]


def objective_groups(num_groups: int, objective: int) -> tuple[int, ...]:
    """Return which groups an objective gets. Errors: RejectedError DATA-11. Spec: DATA-04."""
    num_groups = whole("num_groups", num_groups, "DATA-11", least=0)
    return tuple(range(_objective(objective), num_groups, len(OBJECTIVES)))


def objective_segments(
    documents: Sequence[np.ndarray],
    objective: int,
    *,
    inputs_length: int,
    block: int = 0,
    max_length: int = MAX_DOCUMENT_LENGTH,
) -> list[np.ndarray]:
    """Return the segments that an objective makes of one group; PrefixLM looks at one block of it.

    Errors: RejectedError DATA-11, OBJ-06. Spec: DATA-05.
    """
    joined = join_documents(documents)
    if len(documents) > GROUP_OF_DOCUMENTS:
        raise RejectedError("documents", "DATA-11", f"are a group of {GROUP_OF_DOCUMENTS} at most")
    inputs_length = whole("inputs_length", inputs_length, "DATA-11", least=2)
    made = OBJECTIVES[_objective(objective)]
    if made.mean_noise_span_length is not None:
        longest = span_lengths(
            inputs_length,
            noise_density=made.noise_density,
            mean_noise_span_length=made.mean_noise_span_length,
        )
        return _cut(joined, longest["tokens_length"])
    if len(joined):
        joined = document_block(joined, block, max_length=max_length)
    return _cut(joined, inputs_length - 1)


def full_lm_segments(documents: Sequence[np.ndarray], *, length: int) -> list[np.ndarray]:
    """Return the segments of one group's causal stream; each ends in the end id.

    Errors: RejectedError DATA-11. Spec: DATA-06.
    """
    length = whole("length", length, "DATA-11", least=2)
    joined = join_documents(documents, end=END)
    if len(joined) % length:
        joined = np.append(joined, np.int32(END))
    joined[length - 1 :: length] = END  # a whole segment's last token is lost
    return _cut(joined, length)


def _cut(tokens: np.ndarray, length: int) -> list[np.ndarray]:
    return [tokens[first : first + length] for first in range(0, len(tokens), length)]


def mix_streams(lengths: Sequence[int], choices: np.ndarray) -> np.ndarray:
    """Return (stream, place in it), int64 [m, 2], of each example that a sequence of choices takes.

    Errors: RejectedError DATA-11. Spec: DATA-07.
    """
    left = np.array([whole("lengths", one, "DATA-11", least=0) for one in _listed(lengths)])
    streams = ids("choices", choices, "DATA-11", most=len(left) - 1)
    # Sorted by stream, each choice's place is how far it lies behind the first of its stream.
    order = streams.argsort(kind="stable")
    counts = np.bincount(streams, minlength=len(left))
    places = np.empty(len(streams), np.int64)
    places[order] = np.arange(len(streams)) - np.repeat(counts.cumsum() - counts, counts)
    taken = places < left[streams]
    return np.stack([streams[taken], places[taken]], axis=1)


def mixture(name: str) -> Mapping[str, float]:
    """Return the shares of a published mixture by task. Errors: RejectedError DATA-11.

    Spec: DATA-08.
    """
    rates = MIXTURES[one_of("name", name, tuple(MIXTURES), "DATA-11")]
    total = sum(rates.values())
    return {task: rate / total for task, rate in rates.items()}


def sft_texts(task: str, fields: Mapping[str, str]) -> Mapping[str, str]:
    """Return the texts of inputs and targets of a fine-tuning example.

    Errors: RejectedError DATA-11. Spec: DATA-10.
    """
    one_of("task", task, tuple(SFT_ENDS), "DATA-11")

    def text(name: str) -> str:
        found = fields.get(name) if isinstance(fields, Mapping) else None
        if not isinstance(found, str):
            raise RejectedError("fields", "DATA-11", f"must hold a text {name}")
        return found

    if task == "wildchat_gpt4_sft":
        return {"inputs": text("input"), "targets": text("output")}
    asked = f"{text('system_prompt')}USER: {text('question')}ASSISTANT: "
    return {"inputs": asked, "targets": text("response")}


def _listed(lengths: Any) -> Sequence[Any]:
    if isinstance(lengths, np.ndarray):
        lengths = lengths.tolist()
    if not sequence("lengths", lengths, "DATA-11"):
        raise RejectedError("lengths", "DATA-11", "must be of at least one stream")
    return lengths


def _objective(value: Any) -> int:
    return whole("objective", value, "DATA-11", least=0, most=len(OBJECTIVES) - 1)
