"""SPEC.md "Documents": from documents to segments, streams and mixtures of them.

Line-comparable to t5 preprocessors.py::select_random_chunk, reduce_concat_tokens, split_tokens,
prefix_lm, full_lm@3eb38e6, seqio preprocessors.py::append_eos_after_trim@b898b9f.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from openmoe_reference.arguments import check_choice, check_ids, check_integer
from openmoe_reference.noise import span_lengths
from openmoe_spec.data import (
    END,
    GROUP_OF_DOCUMENTS,
    MAX_DOCUMENT_LENGTH,
    MIXTURES,
    OBJECTIVES,
    PAD,
)
from openmoe_spec.errors import RejectedError

Documents = Sequence[Int[ndarray, " _"]]


def num_blocks(length: int, *, max_length: int = MAX_DOCUMENT_LENGTH) -> int:
    """Return how many aligned blocks a document has; an empty one has none.

    Errors: RejectedError DATA-11. Spec: DATA-01. Source: preprocessors.py::select_random_chunk.
    """
    length = check_integer("length", length, "DATA-11", least=0)
    max_length = check_integer("max_length", max_length, "DATA-11", least=1)
    # float32: beyond 2^24 tokens the last few may lie in no block.
    return int(np.ceil(np.float32(length) / np.float32(max_length)))


def document_block(
    tokens: Int[ndarray, " n"], block: int, *, max_length: int = MAX_DOCUMENT_LENGTH
) -> Int[ndarray, " m"]:
    """Return one aligned block of a document. Errors: RejectedError DATA-11. Spec: DATA-01.

    Source: preprocessors.py::select_random_chunk.
    """
    tokens = check_ids("tokens", tokens, "DATA-11")
    most = num_blocks(len(tokens), max_length=max_length) - 1
    block = check_integer("block", block, "DATA-11", least=0, most=most)
    return tokens[block * max_length : (block + 1) * max_length]


def join_documents(documents: Documents, *, end: int | None = None) -> Int[ndarray, " n"]:
    """Return documents in one, each followed by `end` where it is given, without any id 0.

    Errors: RejectedError DATA-11. Spec: DATA-03. Source: preprocessors.py::reduce_concat_tokens.
    """
    if isinstance(documents, ndarray) or not isinstance(documents, Sequence):
        raise RejectedError("documents", "DATA-11", "must be a sequence of arrays")
    if end is not None:
        end = check_integer("end", end, "DATA-11", least=0)
    parts = [check_ids(f"documents[{i}]", one, "DATA-11") for i, one in enumerate(documents)]
    if end is not None:
        parts = [np.append(one, end) for one in parts if len(one)]
    joined = np.concatenate([np.zeros(0, np.int64), *parts])
    return joined[joined != PAD]


def objective_groups(num_groups: int, objective: int) -> tuple[int, ...]:
    """Return which groups of 128 documents an objective gets.

    Errors: RejectedError DATA-11. Spec: DATA-04. Source: preprocessors.py::ul2_objective.
    """
    num_groups = check_integer("num_groups", num_groups, "DATA-11", least=0)
    return tuple(range(_objective(objective), num_groups, len(OBJECTIVES)))


def split_tokens(tokens: Int[ndarray, " n"], length: int) -> list[Int[ndarray, " _"]]:
    """Return tokens in segments in turn, the last one shorter. Spec: DATA-05.

    Source: preprocessors.py::split_tokens.
    """
    return [tokens[i : i + length] for i in range(0, len(tokens), length)]


def objective_segments(
    documents: Documents,
    objective: int,
    *,
    inputs_length: int,
    block: int = 0,
    max_length: int = MAX_DOCUMENT_LENGTH,
) -> list[Int[ndarray, " _"]]:
    """Return the segments that an objective makes of one group of documents.

    `block` is the one of the joined group that PrefixLM looks at; spans look at all of it.
    Errors: RejectedError DATA-11, OBJ-06. Spec: DATA-05.
    Source: preprocessors.py::ul2_objective, prefix_lm.
    """
    joined = join_documents(documents)
    inputs_length = check_integer("inputs_length", inputs_length, "DATA-11", least=2)
    if len(documents) > GROUP_OF_DOCUMENTS:
        raise RejectedError("documents", "DATA-11", f"are a group of {GROUP_OF_DOCUMENTS} at most")
    made = OBJECTIVES[_objective(objective)]
    if made.mean_noise_span_length is None:
        length = inputs_length - 1
        joined = document_block(joined, block, max_length=max_length) if len(joined) else joined
    else:
        lengths = span_lengths(
            inputs_length,
            noise_density=made.noise_density,
            mean_noise_span_length=made.mean_noise_span_length,
        )
        length = lengths["tokens_length"]
    return split_tokens(joined, length)


def full_lm_segments(documents: Documents, *, length: int) -> list[Int[ndarray, " _"]]:
    """Return the segments of one group's causal stream; each ends in the end id.

    Errors: RejectedError DATA-11. Spec: DATA-06. Source: preprocessors.py::full_lm.
    """
    length = check_integer("length", length, "DATA-11", least=2)
    joined = join_documents(documents, end=END)
    return [np.append(one[: length - 1], END) for one in split_tokens(joined, length)]


def mix_streams(lengths: Sequence[int], choices: Int[ndarray, " n"]) -> Int[ndarray, "m 2"]:
    """Return (stream, place in it) of each example that a sequence of choices takes.

    Errors: RejectedError DATA-11. Spec: DATA-07. Source: tf.data sample_from_datasets.
    """
    if not isinstance(lengths, Sequence) or not lengths:
        raise RejectedError("lengths", "DATA-11", "must be of at least one stream")
    left = [check_integer("lengths", one, "DATA-11", least=0) for one in lengths]
    taken, order = [0] * len(left), []
    for stream in check_ids("choices", choices, "DATA-11", below=len(left)).tolist():
        if taken[stream] < left[stream]:
            order.append((stream, taken[stream]))
            taken[stream] += 1
    return np.array(order, np.int64).reshape(-1, 2)


def mixture(name: str) -> Mapping[str, float]:
    """Return the shares of a published mixture by task; they add up to 1.

    Errors: RejectedError DATA-11. Spec: DATA-08. Source: t5 mixtures.py.
    """
    check_choice("name", name, tuple(MIXTURES), "DATA-11")
    total = sum(MIXTURES[name].values())
    return {task: rate / total for task, rate in MIXTURES[name].items()}


_SFT_FIELDS = {
    "wildchat_gpt4_sft": ("input", "output"),
    "orca_sft": ("system_prompt", "question", "response"),
}


def sft_texts(task: str, fields: Mapping[str, str]) -> Mapping[str, str]:
    """Return the texts of inputs and targets of a fine-tuning example.

    Errors: RejectedError DATA-11. Spec: DATA-10. Source: preprocessors.py::wildchat_sft, orca_sft.
    """
    check_choice("task", task, tuple(_SFT_FIELDS), "DATA-11")
    for name in _SFT_FIELDS[task]:
        if not isinstance(fields, Mapping) or not isinstance(fields.get(name), str):
            raise RejectedError("fields", "DATA-11", f"must hold a text {name}")
    if task == "wildchat_gpt4_sft":
        return {"inputs": fields["input"], "targets": fields["output"]}
    asked = f"{fields['system_prompt']}USER: {fields['question']}ASSISTANT: "
    return {"inputs": asked, "targets": fields["response"]}


def _objective(value: object) -> int:
    return check_integer("objective", value, "DATA-11", least=0, most=len(OBJECTIVES) - 1)
