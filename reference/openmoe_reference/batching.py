"""SPEC.md "Batching": from examples to the rows that a model is fed.

Line-comparable to seqio feature_converters.py::DecoderFeatureConverter,
utils.py::trim_and_pack_dataset, make_autoregressive_inputs@b898b9f.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy import ndarray

from openmoe_reference.arguments import check_array, check_ids, check_integer
from openmoe_spec.data import PAD
from openmoe_spec.errors import RejectedError

Features = Mapping[str, Int[ndarray, "B L"]]
"""Rows by feature, each name with `decoder_` in front."""

Parts = Mapping[str, Int[ndarray, " _"]]
"""What is laid out in a row: target ids, and at each of them the length of its inputs."""


def decoder_features(
    examples: Sequence[Parts],
    *,
    lengths: Mapping[str, int],
    pack: bool,
    loss_on_targets_only: bool = True,
    start: int = PAD,
) -> Features:
    """Return rows int32 [B, L]; L is the sum of the lengths of `inputs`, if any, and `targets`.

    Errors: RejectedError BATCH-10.
    Spec: BATCH-01, BATCH-03, BATCH-04, BATCH-05, BATCH-09.
    Source: feature_converters.py::DecoderFeatureConverter.
    """
    sizes = _lengths(lengths)
    start = check_integer("start", start, "BATCH-10", least=0, most=2**31 - 1)
    if isinstance(examples, Mapping) or not isinstance(examples, Sequence) or not examples:
        raise RejectedError("examples", "BATCH-10", "must be a sequence of at least one example")
    laid = [_laid_out(one, sizes, f"examples[{i}]") for i, one in enumerate(examples)]
    length = sum(sizes.values())
    rows = packed(laid, length) if pack else _padded(laid, length)
    targets, positions = rows["targets"], rows["positions"]
    real = targets != PAD
    features = {
        "target_tokens": targets,
        "input_tokens": shifted(targets, rows["segment_ids"] if pack else None, start=start),
        "loss_weights": real,
    }
    if "inputs" in sizes:
        if loss_on_targets_only:
            # An exclusive or, as in the training code: an id 0 among the inputs gets a weight.
            widths = np.where(rows["widths"] == _NO_INPUTS, 0, rows["widths"])
            features["loss_weights"] = (positions < widths) ^ real
        features["causal_attention"] = positions < rows["widths_and_one"]
    if pack:
        features |= {"segment_ids": rows["segment_ids"], "positions": positions}
    return {f"decoder_{name}": array.astype(np.int32) for name, array in features.items()}


def shifted(
    targets: Int[ndarray, "B L"], segment_ids: Int[ndarray, "B L"] | None = None, *, start: int
) -> Int[ndarray, "B L"]:
    """Return what is fed for targets: the id before each, `start` at the first of a row or segment.

    Padding behind a segment begins with `start` too, since its segment is another.
    Spec: BATCH-02, BATCH-07. Source: utils.py::make_autoregressive_inputs.
    """
    before = np.roll(targets, 1, axis=1)
    before[:, 0] = start
    if segment_ids is not None:
        inside = segment_ids[:, 1:] == segment_ids[:, :-1]
        before[:, 1:] = np.where(inside, before[:, 1:], start)
    return before


# ---- laying out --------------------------------------------------------------------------------


def packed(examples: Sequence[Parts], length: int) -> dict[str, Int[ndarray, "B L"]]:
    """Return rows of examples one after another, with segment_ids and positions.

    Each part of an example is as long as it has numbers other than 0, so parts may part company.
    Spec: BATCH-06, BATCH-07, BATCH-08, BATCH-09. Source: utils.py::trim_and_pack_dataset.
    """
    rows: list[dict[str, list[int]]] = []
    for first in range(0, len(examples), length):
        row: dict[str, list[int]] = {}
        for example in examples[first : first + length]:
            parts = {n: a[: np.count_nonzero(a)].tolist() for n, a in example.items()}
            parts["positions"] = list(range(len(parts["targets"])))
            if row and any(len(row[name]) + len(part) > length for name, part in parts.items()):
                rows.append(row)
                row = {}
            row = {name: row.get(name, []) + part for name, part in parts.items()}
        rows.append(row)
    filled = {
        name: np.array([row[name] + [0] * (length - len(row[name])) for row in rows], np.int64)
        for name in rows[0]
    }
    begins = filled["positions"] == 0
    filled["segment_ids"] = begins.cumsum(axis=1) * (filled["targets"] != PAD)
    return filled


def _padded(examples: Sequence[Parts], length: int) -> dict[str, Int[ndarray, "B L"]]:
    rows = {
        name: np.array([np.pad(one[name], (0, length - len(one[name]))) for one in examples])
        for name in examples[0]
    }
    return rows | {"positions": np.arange(length)}


_NO_INPUTS = -1
"""Stands for a length of 0 while examples are laid out: a 0 would not count."""


def _laid_out(example: Any, sizes: Mapping[str, int], name: str) -> Parts:
    if not isinstance(example, Mapping):
        raise RejectedError(name, "BATCH-10", f"must be a mapping, got {type(example).__name__}")
    parts = {}
    for feature, length in sizes.items():
        if feature not in example:
            raise RejectedError(name, "BATCH-10", f"lacks {feature}")
        ids = check_ids(f"{name}[{feature!r}]", example[feature], "BATCH-10")
        if len(ids) > length:
            raise RejectedError(name, "BATCH-10", f"{feature} have {len(ids)} ids, {length} fit")
        parts[feature] = ids
    if "inputs" not in parts:
        return parts
    inputs, targets = parts["inputs"], parts["targets"]
    if not len(targets):
        targets = np.array([PAD])
    ids, width = np.concatenate([inputs, targets]), len(inputs)
    return {
        "targets": ids,
        "widths": np.full(len(ids), width or _NO_INPUTS),
        "widths_and_one": np.full(len(ids), width + 1),
    }


def _lengths(lengths: Any) -> dict[str, int]:
    if not isinstance(lengths, Mapping) or not {"targets"} <= set(lengths) <= {"inputs", "targets"}:
        raise RejectedError("lengths", "BATCH-10", "must be of targets, or of inputs and targets")
    least = {"inputs": 0, "targets": 1}
    return {
        name: check_integer(f"lengths[{name!r}]", lengths[name], "BATCH-10", least=least[name])
        for name in sorted(lengths)
    }


# ---- what was fed ------------------------------------------------------------------------------


def feed_statistics(features: Features) -> Mapping[str, int]:
    """Return rows, positions, tokens, loss_positions and examples of some rows.

    Errors: RejectedError BATCH-10. Spec: BATCH-11.
    """
    if not isinstance(features, Mapping):
        raise RejectedError("features", "BATCH-10", "must be a mapping of rows")
    sizes: dict[str, int] = {}
    for name in ("target_tokens", "loss_weights", "segment_ids"):
        if name != "segment_ids" or f"decoder_{name}" in features:
            found = features.get(f"decoder_{name}")
            check_array(f"features['decoder_{name}']", found, "B L", sizes, "BATCH-10", kind="i")
    real = features["decoder_target_tokens"] != PAD
    segments = features.get("decoder_segment_ids", real)
    return {
        "rows": real.shape[0],
        "positions": real.size,
        "tokens": int(real.sum()),
        "loss_positions": int(np.count_nonzero(features["decoder_loss_weights"])),
        "examples": int(segments.max(axis=1, initial=0).sum()),
    }
