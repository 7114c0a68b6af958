"""An implementation's answers in one form: NumPy arrays of the right shape, records of the spec.

What is malformed is a Disagreement that says what came instead, so that a check fails and says so.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.compare import fields_of
from openmoe_conformance.outcome import Disagreement
from openmoe_spec.parameters import sparse_layers
from openmoe_spec.records import METRICS, Decision, ExpertsChoice, ForwardResult, LayerResult


def array(name: str, answer: Any) -> ndarray:
    """Return the answer as an array of numbers of any shape."""
    try:
        found = np.asarray(answer)
    except (TypeError, ValueError) as error:
        raise Disagreement(f"{name}: is no array but {_kind(answer)}") from error
    if found.dtype.kind not in "fiub" and found.dtype.name != "bfloat16":
        raise Disagreement(f"{name}: must hold numbers, got {_kind(answer)}")
    return found


def numbers(name: str, answer: Any, shape: tuple[int, ...]) -> ndarray:
    """Return the answer as an array of real numbers of the given shape."""
    found = array(name, answer)
    if found.shape != shape:
        raise Disagreement(f"{name}: shape {list(found.shape)}, expected {list(shape)}")
    if found.dtype.kind == "b":
        raise Disagreement(f"{name}: must hold numbers, got booleans")
    return found


def whole(name: str, answer: Any, shape: tuple[int, ...], *, below: int | None = None) -> ndarray:
    """Return the answer as int64 of the given shape, none of them `below` or more."""
    found = numbers(name, answer, shape)
    if found.dtype.kind not in "iu":
        raise Disagreement(f"{name}: must hold integers, got {found.dtype}")
    found = found.astype(np.int64)
    if below is not None and (found >= below).any():
        place = [int(i) for i in np.argwhere(found >= below)[0]]
        raise Disagreement(f"{name} at {place}: {found[tuple(place)]}, must be below {below}")
    return found


def decision(
    name: str, answer: Any, shape: tuple[int, ...], *, experts: int, capacity: int
) -> Decision:
    """Return a record [G, T, K]; `kept` may be left out, then a slot is a position below C."""
    found = _fields(name, answer, ("expert_index", "gate", "position"), ("kept",))
    position = whole(f"{name}: position", found["position"], shape)
    kept = (position >= 0) & (position < capacity)
    if found["kept"] is not None:
        kept = array(f"{name}: kept", found["kept"])
        if kept.shape != shape or kept.dtype.kind not in "bui":
            got = f"{kept.dtype} {list(kept.shape)}"
            raise Disagreement(f"{name}: kept must be booleans {list(shape)}, got {got}")
    return Decision(
        whole(f"{name}: expert_index", found["expert_index"], shape, below=experts),
        numbers(f"{name}: gate", found["gate"], shape),
        position,
        kept.astype(bool),
        capacity,
    )


def experts_choice(name: str, answer: Any, shape: tuple[int, ...], *, tokens: int) -> ExpertsChoice:
    """Return a record [G, E, C]."""
    found = _fields(name, answer, ("token_index", "gate"))
    return ExpertsChoice(
        whole(f"{name}: token_index", found["token_index"], shape, below=tokens),
        numbers(f"{name}: gate", found["gate"], shape),
    )


def layer_result(
    name: str,
    answer: Any,
    shape: tuple[int, ...],
    *,
    groups: tuple[int, ...],
    sizes: Mapping[str, int],
) -> LayerResult:
    """Return output of `shape`, and decision and metrics where they are shown.

    `groups` is [G, T] of the decision; `sizes` has its k, capacity and experts.
    """
    if isinstance(answer, Mapping) or hasattr(answer, "output"):
        found = _fields(name, answer, ("output",), ("decision", "metrics"))
    else:  # the output alone
        found = {"output": answer, "decision": None, "metrics": None}
    output = numbers(f"{name}: output", found["output"], shape)
    record: Any = found["decision"]
    experts, capacity = sizes["experts"], sizes["capacity"]
    if record is not None:
        if fields_of(record, ("token_index",))["token_index"] is not None:
            slots = (groups[0], experts, capacity)
            record = experts_choice(name, record, slots, tokens=groups[1])
        else:
            choices = (*groups, sizes["k"])
            record = decision(name, record, choices, experts=experts, capacity=capacity)
    return LayerResult(output, record, _metrics(name, found["metrics"]))


def named(name: str, answer: Any, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, ndarray]:
    """Return the named arrays of a mapping, each of its shape; others are left out."""
    found = _fields(name, answer, tuple(shapes))
    return {key: numbers(f"{name}[{key}]", found[key], shape) for key, shape in shapes.items()}


def forward_result(
    name: str,
    answer: Any,
    shape: tuple[int, int],
    *,
    configuration: Mapping[str, Any],
) -> ForwardResult:
    """Return logits [B, L, V]; decisions and metrics by layer and activations where shown.

    Decisions may come as a mapping from layer index or as a sequence in the order of sparse layers.
    """
    if not isinstance(answer, Mapping) and not hasattr(answer, "logits"):
        answer = {"logits": answer}
    found = _fields(name, answer, ("logits",), ("decisions", "metrics", "activations"))
    logits = numbers(f"{name}: logits", found["logits"], (*shape, configuration["vocabulary_size"]))
    sparse = sparse_layers(configuration["num_layers"], configuration["num_moe_layers"])
    records = _by_layer(f"{name}: decisions", found["decisions"], sparse)
    metrics = _by_layer(f"{name}: metrics", found["metrics"], sparse)
    decisions = {
        i: _layer_decision(f"{name}: decisions[{i}]", one, configuration)
        for i, one in records.items()
    }
    return ForwardResult(
        logits,
        decisions,
        {i: _metrics(f"{name}: metrics[{i}]", one) or {} for i, one in metrics.items()},
        found["activations"],
    )


def _by_layer(name: str, answer: Any, sparse: tuple[int, ...]) -> dict[int, Any]:
    if answer is None:
        return {}
    if not isinstance(answer, Mapping):
        try:
            answer = dict(zip(sparse, answer, strict=True))
        except (TypeError, ValueError) as error:
            raise Disagreement(f"{name}: must be one a sparse layer, {list(sparse)}") from error
    if answer and set(answer) != set(sparse):
        raise Disagreement(f"{name}: of layers {sorted(answer)}, expected {list(sparse)}")
    return dict(answer)


def _layer_decision(
    name: str,
    answer: Any,
    configuration: Mapping[str, Any],
) -> Decision:
    """Return a layer's record; the shape of the answer says how the batch was grouped."""
    experts, k = configuration["num_experts"], configuration["num_selected_experts"]
    index = array(f"{name}: expert_index", fields_of(answer, ("expert_index",))["expert_index"])
    if index.ndim != 3 or index.shape[2] != k:
        raise Disagreement(
            f"{name}: expert_index of shape {list(index.shape)}, expected [G, T, {k}]"
        )
    capacity = fields_of(answer, ("capacity",))["capacity"]
    if capacity is None:
        raise Disagreement(f"{name}: lacks capacity")
    return decision(name, answer, index.shape, experts=experts, capacity=int(capacity))


def _metrics(name: str, answer: Any) -> dict[str, ndarray] | None:
    if answer is None:
        return None
    shown = [metric for metric in METRICS if metric in answer] if _is_mapping(answer) else []
    if not shown:
        names = f" with {', '.join(map(str, answer))}" if _is_mapping(answer) else ""
        raise Disagreement(
            f"{name}: metrics must be a mapping with any of {', '.join(METRICS)}, got "
            f"{_kind(answer)}{names}"
        )
    return {metric: numbers(f"{name}: {metric}", answer[metric], ()) for metric in shown}


def _is_mapping(answer: Any) -> bool:
    return isinstance(answer, Mapping)


def _fields(
    name: str, answer: Any, required: tuple[str, ...], optional: tuple[str, ...] = ()
) -> dict[str, Any]:
    found = fields_of(answer, (*required, *optional))
    lacking = [field for field in required if found[field] is None]
    if lacking:
        has = f" with {', '.join(map(str, answer))}" if _is_mapping(answer) else ""
        raise Disagreement(
            f"{name}: must return an object or a mapping with {', '.join(required)}; lacks "
            f"{', '.join(lacking)}, got {_kind(answer)}{has}"
        )
    return found


def _kind(answer: Any) -> str:
    return "None" if answer is None else type(answer).__name__
