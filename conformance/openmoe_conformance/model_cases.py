"""Small random models and batches, drawn as a few whole numbers and built from them.

A case holds plain numbers alone, so a failing one is saved, shrunk and replayed like any other.
Weights are moderate: rounding is not amplified beyond what a bound of 1e-5 can hold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance.checks import Case
from openmoe_spec.config import Configuration
from openmoe_spec.parameters import parameters as tree

KINDS = ("full", "padded", "packed", "prefix", "prefix_packed")
"""What a batch may be: unpadded rows, rows padded at their ends, packed rows, prompts and targets."""


@st.composite
def models(draw: st.DrawFn, *, kinds: tuple[str, ...] = KINDS) -> Case:
    """Draw a configuration, a batch kind and a seed; `build` makes arrays of them."""
    experts = draw(st.sampled_from((2, 4, 8)))
    return {
        "blocks": draw(st.integers(1, 2)),
        "interval": draw(st.integers(1, 3)),
        "heads": draw(st.sampled_from((1, 2, 3))),
        "head_dim": draw(st.sampled_from((2, 4, 8))),
        "width": draw(st.sampled_from((6, 8, 16))),
        "hidden": draw(st.sampled_from((5, 12))),
        "expert_hidden": draw(st.sampled_from((5, 8))),
        "experts": experts,
        "k": draw(st.integers(1, min(experts, 3))),
        "max_group_size": draw(st.sampled_from((4096, 8))),
        "rows": draw(st.sampled_from((1, 2, 3))),
        "length": draw(st.sampled_from((4, 9, 16))),
        "training": draw(st.booleans()),
        "eval_factor": draw(st.sampled_from((2.0, 1.25, 0.7))),
        "least": draw(st.sampled_from((4, 1))),
        "kind": draw(st.sampled_from(kinds)),
        "seed": draw(st.integers(0, 2**16)),
    }


def fixed(**changes: Any) -> Case:
    """Return one middling case with some numbers changed, for checks that enumerate theirs."""
    return {
        "blocks": 2,
        "interval": 2,
        "heads": 2,
        "head_dim": 4,
        "width": 8,
        "hidden": 12,
        "expert_hidden": 6,
        "experts": 4,
        "k": 2,
        "max_group_size": 4096,
        "rows": 2,
        "length": 16,
        "training": True,
        "eval_factor": 2.0,
        "least": 4,
        "kind": "padded",
        "seed": 0,
    } | changes


def in_eighths(**changes: Any) -> Case:
    """Return a case whose every size has eight parts, so that any mesh of eight devices fits it."""
    sizes = {
        "rows": 16,
        "length": 32,
        "heads": 8,
        "head_dim": 2,
        "hidden": 8,
        "expert_hidden": 8,
        "experts": 8,
        "max_group_size": 8,
        "least": 1,
        "vocabulary": 32,
    }
    return fixed(**sizes | changes)


VOCABULARY = 30


def configuration(case: Case, **changes: Any) -> dict[str, Any]:
    """Return the configuration of a case as a mapping of all fields."""
    fields: dict[str, Any] = {
        "name": "case",
        "num_layers": case["blocks"] * case["interval"],
        "num_moe_layers": case["blocks"],
        "embed_dim": case["width"],
        "num_heads": case["heads"],
        "head_dim": case["head_dim"],
        "mlp_dim": case["hidden"],
        "expert_mlp_dim": case["expert_hidden"],
        "num_experts": case["experts"],
        "num_selected_experts": case["k"],
        "vocabulary_size": case.get("vocabulary", VOCABULARY),
        "max_group_size": case["max_group_size"],
        "eval_capacity_factor": case["eval_factor"],
        "min_expert_capacity": case["least"],
        "max_length": 64,
    }
    return asdict(Configuration(**fields | changes))


def weights(
    fields: Mapping[str, Any], seed: int, *, doubled_gate: bool = True
) -> dict[str, ndarray]:
    """Return float32 tensors of a configuration; norms near 1, kernels of moderate size."""
    generator = np.random.default_rng(seed)
    made = {}
    for one in tree(Configuration(**fields), doubled_gate=doubled_gate):
        drawn = generator.normal(size=one.shape)
        if one.name.endswith("scale"):
            drawn = 1 + 0.2 * drawn
        elif not one.name.endswith("embedding"):
            drawn = drawn * np.sqrt(0.6 / one.shape[-2])
        made[one.name] = drawn.astype(np.float32)
    return made


def batch(case: Case) -> dict[str, ndarray]:
    """Return a batch of a case's kind: int32 arrays [B, L] by the training code's names."""
    generator = np.random.default_rng((case["seed"], 1))
    rows, length, kind = case["rows"], case["length"], case["kind"]
    targets = np.zeros((rows, length), np.int32)
    segments, positions, prefix = (np.zeros_like(targets) for _ in range(3))
    for row in range(rows):
        for number, (first, last) in enumerate(_segments(generator, kind, length), start=1):
            targets[row, first:last] = generator.integers(1, VOCABULARY, last - first)
            segments[row, first:last] = number
            positions[row, first:last] = np.arange(last - first)
            prefix[row, first : first + max(1, (last - first) // 2)] = 1
    inputs = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    made = {"decoder_input_tokens": inputs, "decoder_target_tokens": targets}
    if kind.endswith("packed"):
        begins = np.diff(segments, prepend=0, axis=1) != 0
        made["decoder_input_tokens"] = np.where(begins, 0, inputs).astype(np.int32)
        made |= {"decoder_segment_ids": segments, "decoder_positions": positions}
    if kind.startswith("prefix"):
        # The first position of a segment belongs to the prompt: its input is the start token.
        weights_ = ((targets > 0) & (prefix == 0)).astype(np.int32)
        weights_[:, -1] |= targets[:, -1] > 0
        weights_[~weights_.any(axis=1), 0] = 1
        made |= {"decoder_loss_weights": weights_, "decoder_causal_attention": prefix}
    return made


def _segments(generator: np.random.Generator, kind: str, length: int) -> list[tuple[int, int]]:
    if kind == "full":
        return [(0, length)]
    end = int(generator.integers(max(2, length // 2), length + 1))
    if kind in ("padded", "prefix"):
        return [(0, end)]
    middle = int(generator.integers(1, end))
    return [(0, middle), (middle, end)]


def build(
    case: Case, **changes: Any
) -> tuple[dict[str, Any], dict[str, ndarray], dict[str, ndarray]]:
    """Return configuration, parameters and batch of a case."""
    fields = configuration(case, **changes)
    return fields, weights(fields, case["seed"]), batch(case)
