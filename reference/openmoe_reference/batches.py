"""What a model refuses before it computes: parameters and batches that do not fit it."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy import ndarray

from openmoe_reference.arguments import check_array, check_within
from openmoe_reference.masks import check_segments
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.parameters import parameters as tree
from openmoe_spec.records import BATCH


def check_parameters(
    parameters: Mapping[str, ndarray], configuration: Configuration, *, doubled_gate: bool = True
) -> None:
    """Refuse a tree with a missing, extra or misshaped leaf, or one that is not float32.

    float64 leaves are accepted, for oracles. Spec: MODEL-09.
    """
    if not isinstance(parameters, Mapping):
        kind = type(parameters).__name__
        raise RejectedError("parameters", "MODEL-09", f"must be a mapping, got {kind}")
    wanted = {one.name: one.shape for one in tree(configuration, doubled_gate=doubled_gate)}
    for name, shape in wanted.items():
        if name not in parameters:
            raise RejectedError(f"parameters[{name!r}]", "MODEL-09", f"is missing, shape {shape}")
        leaf = parameters[name]
        got = getattr(leaf, "shape", None)
        if got != shape:
            raise RejectedError(
                f"parameters[{name!r}]", "MODEL-09", f"must have shape {shape}, got {got}"
            )
        if leaf.dtype not in {np.dtype(np.float32), np.dtype(np.float64)}:
            raise RejectedError(
                f"parameters[{name!r}]", "MODEL-09", f"must be float32, got {leaf.dtype}"
            )
    for name in parameters:
        if name not in wanted:
            got = getattr(parameters[name], "shape", None)
            raise RejectedError(
                f"parameters[{name!r}]", "MODEL-09", f"is no leaf of this model, shape {got}"
            )


def check_batch(batch: Mapping[str, ndarray], configuration: Configuration) -> dict[str, int]:
    """Refuse a batch that is empty, too long, of unknown ids, or with a row of only padding.

    Spec: MODEL-10.
    """
    if not isinstance(batch, Mapping):
        raise RejectedError("batch", "MODEL-10", f"must be a mapping, got {type(batch).__name__}")
    for name in batch:
        if name not in BATCH:
            raise RejectedError("batch", "MODEL-10", f"must hold {', '.join(BATCH)}; got {name!r}")
    if "decoder_input_tokens" not in batch:
        raise RejectedError("batch", "MODEL-10", "must hold decoder_input_tokens")
    sizes: dict[str, int] = {}
    for name in ("decoder_input_tokens", *batch):
        _check_feature(name, batch[name], sizes, configuration)
    if sizes["L"] > configuration.max_length:
        raise RejectedError(
            "batch['decoder_input_tokens']",
            "MODEL-10",
            f"must not be longer than {configuration.max_length}, got {sizes['L']}",
        )
    if "decoder_segment_ids" in batch:
        check_segments(batch["decoder_segment_ids"], sizes)
    return sizes


def _check_feature(
    name: str, value: object, sizes: dict[str, int], configuration: Configuration
) -> None:
    place = f"batch[{name!r}]"
    weighs = (
        name == "decoder_loss_weights" and isinstance(value, ndarray) and value.dtype.kind == "f"
    )
    array = check_array(place, value, "B L", sizes, "MODEL-10", kind="f" if weighs else "i")
    if name in ("decoder_input_tokens", "decoder_target_tokens"):
        check_within(place, array, "MODEL-10", 0, configuration.vocabulary_size - 1)
    if name in ("decoder_target_tokens", "attention_mask"):
        empty = np.flatnonzero((array <= 0).all(axis=1))
        if empty.size:
            raise RejectedError(place, "MODEL-10", f"row {empty[0]} holds only padding")
