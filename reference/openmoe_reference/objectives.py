"""SPEC.md "Objectives": from a segment of text and its draws to the inputs and targets of an example.

Line-comparable to t5 preprocessors.py::ul2_objective, single_example_denoise@3eb38e6.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from jaxtyping import Bool, Int
from numpy import ndarray

from openmoe_reference.arguments import (
    check_array,
    check_choice,
    check_ids,
    check_integer,
)
from openmoe_reference.noise import noise_mask, prefix_bounds
from openmoe_spec.data import END, NUM_SENTINELS, OBJECTIVES, OVERFLOWS, TRANSFORMS, Objective
from openmoe_spec.dialects import choices
from openmoe_spec.errors import RejectedError

Example = Mapping[str, Int[ndarray, " _"]]
"""Ids of `inputs` and `targets`."""


def objectives(dialect: str | Mapping[str, str] = "t5x") -> tuple[Objective, ...]:
    """Return the training mixture. Spec: OBJ-01. Source: preprocessors.py::ul2_objective.

    Errors: RejectedError DIAL-01 on an unknown dialect.
    """
    if choices(dialect)["mode_tokens"] == "none":
        return tuple(
            Objective(one.rate, one.mean_noise_span_length, one.noise_density, "")
            for one in OBJECTIVES
        )
    return OBJECTIVES


# ---- noise -------------------------------------------------------------------------------------


def replace_noise(
    tokens: Int[ndarray, " n"],
    noise_mask: Bool[ndarray, " n"],
    *,
    transform: str,
    vocabulary_size: int,
    num_sentinels: int = NUM_SENTINELS,
    overflow: str = "rejected",
) -> Int[ndarray, " m"]:
    """Return tokens with their noise, or what is none, left out or put into sentinels.

    Errors: RejectedError OBJ-09, on more runs than sentinels unless overflow is `runs_on`.
    Spec: OBJ-07, OBJ-08, OBJ-10.
    Source: preprocessors.py::noise_span_to_unique_sentinel and its neighbours.
    """
    check_choice("transform", transform, TRANSFORMS, "OBJ-09")
    check_choice("overflow", overflow, OVERFLOWS, "OBJ-09")
    size = check_integer("vocabulary_size", vocabulary_size, "OBJ-09", least=1)
    sentinels = check_integer("num_sentinels", num_sentinels, "OBJ-09", least=0, most=size)
    tokens = check_ids("tokens", tokens, "OBJ-09", below=size)
    mask = _mask(noise_mask, len(tokens))
    if transform == "drop_noise_tokens":
        return tokens[~mask]
    if transform == "drop_nonnoise_tokens":
        return tokens[mask]
    replaced = ~mask if transform.startswith("nonnoise") else mask
    if transform == "noise_token_to_sentinel":
        return np.where(replaced, size - 1, tokens)
    begins = replaced & ~np.concatenate([[False], replaced[:-1]])
    runs = begins.cumsum()
    if "unique" not in transform:
        runs = np.ones_like(runs)
    elif overflow == "rejected" and begins.sum() > sentinels:
        raise RejectedError(
            "noise_mask", "OBJ-09", f"has {begins.sum()} runs for {sentinels} sentinels"
        )
    return np.where(begins, size - runs, tokens)[begins | ~replaced]


def denoise(
    tokens: Int[ndarray, " n"],
    noise_mask: Bool[ndarray, " n"],
    *,
    vocabulary_size: int,
    num_sentinels: int = NUM_SENTINELS,
    overflow: str = "rejected",
) -> Example:
    """Return inputs without noise and targets without anything else, sentinels in its place.

    Errors: RejectedError OBJ-09. Spec: OBJ-07. Source: preprocessors.py::single_example_denoise.
    """
    inputs, targets = (
        replace_noise(
            *(tokens, noise_mask),
            transform=transform,
            vocabulary_size=vocabulary_size,
            num_sentinels=num_sentinels,
            overflow=overflow,
        )
        for transform in ("noise_span_to_unique_sentinel", "nonnoise_span_to_unique_sentinel")
    )
    return {"inputs": inputs, "targets": targets}


# ---- PrefixLM ----------------------------------------------------------------------------------


def split_prefix(tokens: Int[ndarray, " n"], split: int) -> Example:
    """Return the first `split` tokens as inputs, the others as targets.

    Errors: RejectedError OBJ-12. Spec: OBJ-11. Source: preprocessors.py::drop_nonnoise_tokens.
    """
    tokens = check_ids("tokens", tokens, "OBJ-12")
    if not len(tokens):
        raise RejectedError("tokens", "OBJ-12", "must not be empty")
    split = check_integer("split", split, "OBJ-12", least=0, most=len(tokens))
    return {"inputs": tokens[:split], "targets": tokens[split:]}


# ---- the whole ---------------------------------------------------------------------------------


def finish_example(
    inputs: Int[ndarray, " n"],
    targets: Int[ndarray, " m"],
    *,
    inputs_length: int,
    targets_length: int,
    prompt: Int[ndarray, " P"] | None = None,
    ends: Sequence[str] = ("inputs", "targets"),
) -> Example:
    """Return a mode's ids and inputs, and targets, cut so that an end id fits where `ends` names it.

    Errors: RejectedError OBJ-15. Spec: OBJ-13, DATA-10.
    Source: preprocessors.py::prepend_prompt, seqio preprocessors.py::append_eos_after_trim.
    """
    lengths = {
        "inputs": check_integer("inputs_length", inputs_length, "OBJ-15", least=2),
        "targets": check_integer("targets_length", targets_length, "OBJ-15", least=2),
    }
    if not isinstance(ends, tuple | list) or any(name not in lengths for name in ends):
        raise RejectedError("ends", "OBJ-15", f"must name features, got {ends!r}")
    mode = check_ids("prompt", () if prompt is None else prompt, "OBJ-15")
    inputs = np.concatenate([mode, check_ids("inputs", inputs, "OBJ-15")])
    whole = {"inputs": inputs, "targets": check_ids("targets", targets, "OBJ-15")}
    return {
        name: np.append(ids[: lengths[name] - 1], END) if name in ends else ids[: lengths[name]]
        for name, ids in whole.items()
    }


def ul2_example(
    segment: Int[ndarray, " n"],
    objective: int,
    *,
    inputs_length: int,
    targets_length: int,
    vocabulary_size: int,
    prompt: Int[ndarray, " P"],
    noise_permutation: Int[ndarray, " k"] | None = None,
    nonnoise_permutation: Int[ndarray, " m"] | None = None,
    split: int | None = None,
    num_sentinels: int = NUM_SENTINELS,
    overflow: str = "rejected",
    dialect: str | Mapping[str, str] = "t5x",
) -> Example:
    """Return the example that an objective makes of a segment; `prompt` is its mode's ids.

    Errors: RejectedError OBJ-15, OBJ-06, OBJ-09, OBJ-12, DIAL-01. Spec: OBJ-14.
    Source: preprocessors.py::ul2_objective.
    """
    index = check_integer("objective", objective, "OBJ-15", least=0, most=len(OBJECTIVES) - 1)
    size = check_integer("vocabulary_size", vocabulary_size, "OBJ-09", least=1)
    check_integer("num_sentinels", num_sentinels, "OBJ-09", least=0, most=size)
    check_choice("overflow", overflow, OVERFLOWS, "OBJ-09")
    tokens = check_ids("segment", segment, "OBJ-09", below=size)
    if not len(tokens):
        raise RejectedError("segment", "OBJ-15", "must not be empty")
    chosen = choices(dialect)
    made = OBJECTIVES[index]
    if made.mean_noise_span_length is None:
        example = split_prefix(tokens, _split(split, len(tokens), chosen["prefix_split"]))
    else:
        if noise_permutation is None or nonnoise_permutation is None:
            raise RejectedError("noise_permutation", "OBJ-15", "both must be given for spans")
        mask = noise_mask(
            len(tokens),
            noise_density=made.noise_density,
            mean_noise_span_length=made.mean_noise_span_length,
            noise_permutation=noise_permutation,
            nonnoise_permutation=nonnoise_permutation,
        )
        example = denoise(
            *(tokens, mask),
            vocabulary_size=vocabulary_size,
            num_sentinels=num_sentinels,
            overflow=overflow,
        )
    return finish_example(
        example["inputs"],
        example["targets"],
        inputs_length=inputs_length,
        targets_length=targets_length,
        prompt=prompt if chosen["mode_tokens"] == "prepended" else None,
    )


def _split(split: int | None, length: int, rule: str) -> int:
    if rule == "half":
        return length // 2
    if split is None:
        raise RejectedError("split", "OBJ-15", "must be given for PrefixLM")
    least, most = prefix_bounds(length)
    return check_integer("split", split, "OBJ-15", least=least, most=most)


def _mask(value: object, length: int) -> ndarray:
    if length == 0 and isinstance(value, ndarray) and value.shape == (0,):
        return np.zeros(0, bool)
    return check_array("noise_mask", value, "n", {"n": length}, "OBJ-09", kind="b")
