"""Router logits as Hugging Face models return them, in npz or safetensors. Spec: AUDIT-27.

A file has `layer_0`, `layer_1`, ... [N, E] of the sparse layers, or one `router_logits` [L, N, E].
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.importing import choosing, stores
from openmoe_tools.audit.importing.recordings import Options, Recording, refuse_not_finite
from openmoe_tools.audit.importing.stores import Store

_LAYER = re.compile(r"layer_(\d+)", re.ASCII)


def read(paths: Sequence[Path], options: Options) -> Iterator[Recording]:
    """Yield what each file tells. Errors: UsageError."""
    if options.choices is None:
        raise UsageError("router logits do not tell how many experts a token has: give --choices K")
    for path in paths:
        with stores.opened(path) as store:
            yield _recording(path, store, options.choices)


def _recording(path: Path, store: Store, k: int) -> Recording:
    layers = []
    shape: tuple[int, ...] | None = None
    for m, get in enumerate(_layers(path, store)):
        logits = get()
        if logits.dtype.name == "bfloat16":  # none of NumPy's own
            logits = logits.astype(np.float32)
        if logits.ndim != 2 or not logits.size:
            raise UsageError(
                f"{path}: layer {m} is {list(logits.shape)}, not [tokens, experts] with some of both"
            )
        if shape is not None and logits.shape != shape:
            raise UsageError(f"{path}: layer {m} is {list(logits.shape)}, layer 0 {list(shape)}")
        shape = logits.shape
        refuse_not_finite(logits, str(path), m)
        layers.append(choosing.choose(logits, k, str(path)))
    assert shape is not None, path  # `_layers` yields some
    margins = [one.margin for one in layers if one.margin is not None]
    return Recording(
        str(path),
        np.stack([one.expert for one in layers], axis=1),
        shape[1],
        gate=np.stack([one.gate for one in layers], axis=1),
        margin=np.stack(margins, axis=-1) if margins else None,
        entropy=np.stack([one.entropy for one in layers], axis=-1),
        sums=(
            np.stack([one.probability for one in layers]),
            np.stack([one.log_sum for one in layers]),
        ),
    )


def _layers(path: Path, store: Store) -> Iterator[Callable[[], ndarray]]:
    """Yield what reads each layer's logits, of which one is in memory at a time."""
    numbers = sorted(int(found[1]) for name in store.names if (found := _LAYER.fullmatch(name)))
    if numbers:
        for m in range(numbers[-1] + 1):
            if f"layer_{m}" not in store:
                raise UsageError(
                    f"{path}: has layer_{numbers[-1]} and no layer_{m}; number the sparse layers 0, 1, ..."
                )
            yield lambda m=m: store[f"layer_{m}"]  # type: ignore[misc]
        return
    whole = stores.one_of(store, "router_logits", path)
    if whole.ndim != 3 or not len(whole):
        raise UsageError(
            f"{path}: router_logits is {list(whole.shape)}, not [layers, tokens, experts]"
        )
    for one in whole:
        yield lambda one=one: one  # type: ignore[misc]
