"""What a model refuses before it computes: parameters and batches that do not fit it.

Names and shapes are looked at always, values only outside a trace. Spec: MODEL-09, MODEL-10.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from openmoe_production import stacking
from openmoe_production.arguments import require_floats, require_integers, require_shape
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import BATCH


def require_parameters(parameters: Mapping[str, Any], configuration: Configuration) -> None:
    """Refuse a tree, in any form of `stacking`, with a missing, extra or misshaped leaf, or not float32.

    Spec: MODEL-09.
    """
    if not isinstance(parameters, Mapping):
        kind = type(parameters).__name__
        raise RejectedError("parameters", "MODEL-09", f"must be a mapping, got {kind}")
    wanted = stacking.held(configuration, stacking.form(parameters))
    for name, one in wanted.items():
        shape = one.shape
        place = f"parameters[{name!r}]"
        if name not in parameters:
            raise RejectedError(place, "MODEL-09", f"is missing, shape {shape}")
        leaf = parameters[name]
        got = getattr(leaf, "shape", None)
        if got != shape:
            raise RejectedError(place, "MODEL-09", f"must have shape {shape}, got {got}")
        if leaf.dtype != jnp.float32:
            raise RejectedError(place, "MODEL-09", f"must be float32, got {leaf.dtype}")
    for name in parameters:
        if name not in wanted:
            got = getattr(parameters[name], "shape", None)
            raise RejectedError(
                f"parameters[{name!r}]", "MODEL-09", f"is no leaf of this model, shape {got}"
            )


def require_batch(batch: Mapping[str, Any], configuration: Configuration) -> None:
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
    sizes: dict[str, int | None] = {"B": None, "L": None}
    for name in ("decoder_input_tokens", *batch):
        _require_feature(name, batch[name], sizes, configuration)
        sizes = dict(zip("BL", batch[name].shape, strict=True))
    length = batch["decoder_input_tokens"].shape[1]
    if length > configuration.max_length:
        raise RejectedError(
            "batch['decoder_input_tokens']",
            "MODEL-10",
            f"must not be longer than {configuration.max_length}, got {length}",
        )
    if "decoder_segment_ids" in batch:
        require_segments("batch['decoder_segment_ids']", batch["decoder_segment_ids"], "MODEL-10")


def _require_feature(
    name: str, array: Any, sizes: Mapping[str, int | None], configuration: Configuration
) -> None:
    place = f"batch[{name!r}]"
    if not hasattr(array, "shape"):
        raise RejectedError(place, "MODEL-10", f"must be an array, got {type(array).__name__}")
    require_shape(place, array, sizes, "MODEL-10")
    if name == "decoder_loss_weights" and jnp.issubdtype(array.dtype, jnp.floating):
        require_floats(place, array, "MODEL-10")
        return
    least, most = -(2**31), 2**31 - 1
    if name in ("decoder_input_tokens", "decoder_target_tokens"):
        least, most = 0, configuration.vocabulary_size - 1
    require_integers(place, array, "MODEL-10", least=least, most=most)
    if name in ("decoder_target_tokens", "attention_mask") and _is_known(array):
        empty = np.flatnonzero((np.asarray(array) <= 0).all(axis=1))
        if empty.size:
            raise RejectedError(place, "MODEL-10", f"row {empty[0]} holds only padding")


def require_segments(name: str, segment_ids: Any, clause: str) -> None:
    """Refuse segments [B, L] whose tokens do not stand together. Spec: ATTN-12, MODEL-10."""
    require_integers(name, segment_ids, clause, least=-(2**31), most=2**31 - 1)
    if not _is_known(segment_ids):
        return
    for row in np.asarray(segment_ids).astype(np.int64):
        runs = row[np.flatnonzero(np.diff(row, prepend=row[0] - 1))]  # the id of each run
        ids, times = np.unique(runs, return_counts=True)
        again = ids[(times > 1) & (ids != 0)]
        if again.size:
            raise RejectedError(name, clause, f"segments must not interleave, {again[0]} does")


def _is_known(array: Any) -> bool:
    return not isinstance(array, jax.core.Tracer)
