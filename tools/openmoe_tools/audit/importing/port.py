"""The published port's own dump: `analysis/colossalai_replace/layer.py` of OpenMoE. Spec: AUDIT-27.

A file is a layer; a line is a call of it, an object of gate_output [N, E] (logits), used_capacity,
dispatch_mask [N, E, C] and combine_score [N, E, C], the probabilities of what was not dropped. As it is
published every layer writes into one file, over the others: each must have been given its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.importing import choosing, stores
from openmoe_tools.audit.importing.choosing import Chosen
from openmoe_tools.audit.importing.recordings import Options, Recording, refuse_not_finite

RULE = "torch_port"
_CLOSE = 1e-6
"""Probabilities that another arithmetic may order otherwise."""
_UNTOLD = "the dump does not tell the choices of dropped tokens; gate_output [N, E] does"


class _Layer(NamedTuple):
    where: str
    experts: int
    expert: ndarray
    dropped: ndarray
    gate: ndarray
    chosen: Chosen | None
    logits: bool


def read(paths: Sequence[Path], options: Options) -> Iterator[Recording]:
    """Yield the calls of a model, whose layers are files in order. Errors: UsageError."""
    files = [stores.lines(path) for path in paths]
    while True:
        calls = [next(one, None) for one in files]
        there = [one for one in calls if one is not None]
        if not there:
            return
        if len(there) < len(calls):
            path = paths[calls.index(None)]
            raise UsageError(f"{path}: has fewer calls than the other layers")
        yield _call([_layer(where, told, m, options) for m, (where, told) in enumerate(there)])


def _call(layers: Sequence[_Layer]) -> Recording:
    first = layers[0]
    for one in layers:
        if one.experts != first.experts or one.expert.shape != first.expert.shape:
            raise UsageError(
                f"{one.where}: is of {list(one.expert.shape)} choices of {one.experts} experts, and "
                f"{first.where} of {list(first.expert.shape)} of {first.experts}: --choices, or another call"
            )
    chosen = [one.chosen for one in layers if one.chosen is not None]
    known = len(chosen) == len(layers)
    margins = [one.margin for one in chosen if one.margin is not None]
    return Recording(
        first.where,
        np.stack([one.expert for one in layers], axis=1),
        first.experts,
        rules=(RULE,),
        dropped=np.stack([one.dropped for one in layers], axis=1)[None],
        gate=np.stack([one.gate for one in layers], axis=1),
        margin=np.stack(margins, axis=-1) if len(margins) == len(layers) else None,
        entropy=np.stack([one.entropy for one in chosen], axis=-1) if known else None,
        sums=_sums(chosen) if known and all(one.logits for one in layers) else None,
    )


def _sums(chosen: Sequence[Chosen]) -> tuple[ndarray, ndarray]:
    return np.stack([one.probability for one in chosen]), np.stack([one.log_sum for one in chosen])


def _layer(where: str, told: Mapping[str, Any], m: int, options: Options) -> _Layer:
    """Return a layer's call. Errors: UsageError."""
    for name in ("dispatch_mask", "combine_score"):
        if name not in told:
            raise UsageError(f"{where}: has no {name}; a dump of the port's layer.py does")
    mask = stores.as_array(told["dispatch_mask"], f"{where}: dispatch_mask", np.float32) != 0
    score = stores.as_array(told["combine_score"], f"{where}: combine_score", np.float32)
    if mask.ndim != 3 or mask.shape != score.shape:
        raise UsageError(
            f"{where}: dispatch_mask {list(mask.shape)} and combine_score {list(score.shape)} are not "
            "[N, E, C]; the port's kernel writes others, so record without it"
        )
    refuse_not_finite(score, where, m)
    slots, scores = mask.any(axis=2), score.max(axis=2, initial=0)  # [N, E]
    if mask.shape[0] and (mask.sum(axis=2) > 1).any():
        token = int(np.argwhere(mask.sum(axis=2) > 1)[0, 0])
        raise UsageError(f"{where}: token {token}, layer {m}: has two slots of one expert")
    k = options.choices or max(int(slots.sum(axis=1).max(initial=0)), 1)
    gate_output = stores.as_array(told.get("gate_output", []), f"{where}: gate_output", np.float32)
    if gate_output.shape != slots.shape:
        return _by_scores(where, m, k, slots, scores)
    return _by_gates(where, m, k, slots, gate_output)


def _by_scores(where: str, m: int, k: int, slots: ndarray, scores: ndarray) -> _Layer:
    """Return choices by what is combined: the first is the larger."""
    had = slots.sum(axis=1)
    if (had != k).any():
        token = int(np.flatnonzero(had != k)[0])
        raise UsageError(
            f"{where}: token {token}, layer {m}: has {had[token]} slots for {k} choices: {_UNTOLD}"
        )
    ranked = np.where(slots, scores, -1)
    expert = np.argsort(-ranked, axis=1, kind="stable")[:, :k]
    gate = np.take_along_axis(scores, expert, axis=1)
    return _Layer(
        where, slots.shape[1], expert, np.zeros(expert.shape, bool), gate, None, logits=False
    )


def _by_gates(where: str, m: int, k: int, slots: ndarray, given: ndarray) -> _Layer:
    """Return choices by gate_output, which must be of the experts that the token has slots of."""
    refuse_not_finite(given, where, m)
    # Logits as published; probabilities where somebody has changed that: then their logarithms will do.
    likely = bool((given >= 0).all() and (np.abs(given.sum(axis=1) - 1) < 1e-3).all())
    logits = np.log(np.maximum(given, np.finfo(np.float32).tiny)) if likely else given
    chosen = choosing.choose(logits, k, where)
    rows = np.arange(len(slots))[:, None]
    outside = slots.copy()
    outside[rows, chosen.expert] = False
    if outside.any():
        # The port may have ordered near-ties otherwise than this arithmetic does; its slots tell.
        wrong = outside.any(axis=1)
        nearly = logits[wrong] + np.where(slots[wrong], _CLOSE, 0).astype(np.float32)
        chosen.expert[wrong] = choosing.choose(nearly, k, where).expert
        outside[rows, chosen.expert] = False
    if outside.any():
        token, expert = (int(one) for one in np.argwhere(outside)[0])
        raise UsageError(
            f"{where}: token {token}, layer {m}: has a slot of expert {expert}, which is none of its {k} "
            "choices by gate_output (--choices, or files of different calls)"
        )
    return _Layer(
        where,
        slots.shape[1],
        chosen.expert,
        ~slots[rows, chosen.expert],
        chosen.gate,
        chosen,
        not likely,
    )
