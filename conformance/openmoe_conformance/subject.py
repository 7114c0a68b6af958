"""The implementation under test, with its answers brought into one form.

A malformed answer (wrong shape, a missing field) is a Disagreement, so that a check fails and says
so; what the implementation raises itself passes through and becomes ERROR.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.adapter import FUNCTIONS, UnsupportedError, call, offers
from openmoe_conformance.compare import NAMED_ARITHMETIC, Arithmetic, fields_of
from openmoe_conformance.outcome import Disagreement, UsageError
from openmoe_spec.records import METRICS, PARAMETERS, Decision, ExpertsChoice, LayerResult


class Subject:
    """An adapter behind one face: every method takes and returns NumPy arrays."""

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        self.name = str(getattr(adapter, "name", None) or type(adapter).__name__)
        self.version = str(getattr(adapter, "version", "") or "")
        self.url = str(getattr(adapter, "url", "") or "")
        self.arithmetic = _arithmetic(getattr(adapter, "arithmetic", "float32"))
        self.rejects_invalid_input = bool(getattr(adapter, "rejects_invalid_input", False))
        self.functions = tuple(name for name in FUNCTIONS if offers(adapter, name) is None)

    def lacks(self, needs: tuple[str, ...]) -> str | None:
        """Return why the implementation lacks one of `needs`, or None. `route` may be composed."""
        for need in needs:
            if need == "rejects_invalid_input":
                if not self.rejects_invalid_input:
                    return "does not declare rejects_invalid_input"
            elif (reason := offers(self.adapter, need)) and not self._composes(need):
                return reason
        return None

    def _composes(self, need: str) -> bool:
        parts = {
            "route": ("probabilities", "decide"),
            "route(ignore_padding)": ("probabilities", "decide(padding_mask)"),
            "route(batch_prioritized)": ("probabilities", "decide(batch_prioritized)"),
            "route(noise)": ("probabilities(noise)", "decide"),
        }.get(need, ())
        whole = offers(self.adapter, need.partition("(")[0]) is None
        return not whole and bool(parts) and all(offers(self.adapter, p) is None for p in parts)

    def call(self, function: str, *arguments: Any, **keywords: Any) -> Any:
        """Return the implementation's own answer, untouched."""
        return call(self.adapter, function, *arguments, **keywords)

    def integer(self, function: str, *arguments: Any, **keywords: Any) -> int:
        """Return a whole number answered by `function`."""
        answer = np.asarray(self.call(function, *arguments, **keywords))
        if answer.ndim or answer.dtype.kind not in "iu":
            raise Disagreement(f"{function}: must return a whole number, got {answer!r}")
        return int(answer)

    def scalar(self, function: str, *arguments: Any, **keywords: Any) -> float:
        """Return a real number answered by `function`."""
        return float(_numbers(function, self.call(function, *arguments, **keywords), ()))

    def probabilities(
        self, inputs: ndarray, kernel: ndarray, *, noise: ndarray | None = None
    ) -> ndarray:
        """Return probabilities [G, T, E]."""
        answer = self.call("probabilities", inputs, kernel, noise=noise)
        return _numbers("probabilities", answer, (*inputs.shape[:2], kernel.shape[1]))

    def decide(
        self, probabilities: ndarray, *, function: str = "decide", k: int, **options: Any
    ) -> Decision:
        """Return the record of `decide` or `decide_scatter`."""
        answer = self.call(function, probabilities, k=k, **options)
        return _decision(function, answer, (*probabilities.shape[:2], k), options["capacity"])

    def experts_choose(
        self, probabilities: ndarray, *, capacity: int, padding_mask: ndarray | None = None
    ) -> ExpertsChoice:
        """Return the experts' choice."""
        answer = self.call(
            "experts_choose", probabilities, capacity=capacity, padding_mask=padding_mask
        )
        groups, _, experts = probabilities.shape
        return _experts_choice("experts_choose", answer, (groups, experts, capacity))

    def route(
        self,
        inputs: ndarray,
        kernel: ndarray,
        *,
        k: int,
        capacity: int,
        ignore_padding: bool = False,
        batch_prioritized: bool = False,
        noise: ndarray | None = None,
    ) -> Decision:
        """Return the decision from hidden states; composed of its parts where there is no route."""
        if offers(self.adapter, "route"):
            mask = (inputs != 0).any(axis=-1) if ignore_padding else None
            return self.decide(
                self.probabilities(inputs, kernel, noise=noise).astype(np.float32),
                k=k,
                capacity=capacity,
                padding_mask=mask,
                batch_prioritized=batch_prioritized,
            )
        answer = self.call(
            "route",
            inputs,
            kernel,
            k=k,
            capacity=capacity,
            ignore_padding=ignore_padding,
            batch_prioritized=batch_prioritized,
            noise=noise,
        )
        return _decision("route", answer, (*inputs.shape[:2], k), capacity)

    def array(
        self, function: str, shape: tuple[int, ...], *arguments: Any, **keywords: Any
    ) -> ndarray:
        """Return an array of numbers of the given shape."""
        return _numbers(function, self.call(function, *arguments, **keywords), shape)

    def moe(
        self, inputs: ndarray, parameters: Mapping[str, ndarray], **options: Any
    ) -> LayerResult:
        """Return the layer's result on whole groups."""
        answer = self.call("moe", inputs, parameters, **options)
        shape = inputs.shape[:2], options["k"], options["capacity"]
        return _layer_result("moe", answer, inputs.shape, shape, parameters["router"].shape[1])

    def moe_layer(
        self,
        inputs: ndarray,
        parameters: Mapping[str, ndarray],
        *,
        groups: tuple[int, int],
        capacity: int,
        k: int = 2,
        **options: Any,
    ) -> LayerResult:
        """Return the layer's result on a batch; `groups` and `capacity` are what it must derive."""
        answer = self.call("moe_layer", inputs, parameters, k=k, **options)
        experts = parameters["router"].shape[1]
        return _layer_result("moe_layer", answer, inputs.shape, (groups, k, capacity), experts)

    def gradients(
        self, function: str, arrays: tuple[Any, ...], **options: Any
    ) -> dict[str, ndarray]:
        """Return named gradients of `moe_gradients` or `route_gradients`."""
        answer = self.call(function, *arrays, **options)
        if not isinstance(answer, Mapping):
            raise Disagreement(f"{function}: must return a mapping, got {type(answer).__name__}")
        names = ("inputs", "router") if function == "route_gradients" else ("inputs", *PARAMETERS)
        missing = [name for name in names if name not in answer]
        if missing:
            raise Disagreement(f"{function}: lacks the gradient of {', '.join(missing)}")
        shapes = {"inputs": arrays[0].shape}
        if function == "route_gradients":
            shapes["router"] = arrays[1].shape
        else:
            shapes |= {name: arrays[1][name].shape for name in PARAMETERS}
        return {name: _numbers(f"{function}[{name}]", answer[name], shapes[name]) for name in names}


def _arithmetic(declared: Any) -> Arithmetic:
    if isinstance(declared, str) and declared in NAMED_ARITHMETIC:
        return NAMED_ARITHMETIC[declared]
    if isinstance(declared, Mapping):
        try:
            roundoffs = {key: float(value) for key, value in declared.items()}
            found = replace(Arithmetic(), **roundoffs)
        except (TypeError, ValueError) as error:
            raise UsageError(f"adapter.arithmetic: {error}") from error
        if all(0 <= value < 1 for value in roundoffs.values()):
            return found
    raise UsageError(
        f"adapter.arithmetic: {declared!r} is neither one of {', '.join(NAMED_ARITHMETIC)} nor a "
        "mapping of operands, accumulate, logits, probabilities to unit roundoffs in [0, 1)"
    )


def _numbers(name: str, answer: Any, shape: tuple[int, ...]) -> ndarray:
    array = np.asarray(answer)
    if array.shape != shape:
        raise Disagreement(f"{name}: shape {list(array.shape)}, expected {list(shape)}")
    if array.dtype.kind not in "fiu" and array.dtype.name != "bfloat16":
        raise Disagreement(f"{name}: must hold numbers, got {array.dtype}")
    return array


def _whole(name: str, answer: Any, shape: tuple[int, ...]) -> ndarray:
    if answer is None:
        raise Disagreement(f"{name}: is missing from the record")
    array = _numbers(name, answer, shape)
    if array.dtype.kind not in "iu":
        raise Disagreement(f"{name}: must hold integers, got {array.dtype}")
    return array.astype(np.int64)


def _decision(name: str, answer: Any, shape: tuple[int, ...], capacity: int) -> Decision:
    found = fields_of(answer, ("expert_index", "gate", "position", "kept"))
    position = _whole(f"{name}: position", found["position"], shape)
    in_slots = (position >= 0) & (position < capacity)
    kept = in_slots if found["kept"] is None else np.asarray(found["kept"])
    if kept.shape != shape or kept.dtype.kind not in "bui":
        raise Disagreement(
            f"{name}: kept must be booleans {list(shape)}, got {kept.dtype} {list(kept.shape)}"
        )
    if found["gate"] is None:
        raise Disagreement(f"{name}: gate is missing from the record")
    return Decision(
        _whole(f"{name}: expert_index", found["expert_index"], shape),
        _numbers(f"{name}: gate", found["gate"], shape),
        position,
        kept.astype(bool),
        capacity,
    )


def _experts_choice(name: str, answer: Any, shape: tuple[int, ...]) -> ExpertsChoice:
    found = fields_of(answer, ("token_index", "gate"))
    if found["gate"] is None:
        raise Disagreement(f"{name}: gate is missing from the record")
    return ExpertsChoice(
        _whole(f"{name}: token_index", found["token_index"], shape),
        _numbers(f"{name}: gate", found["gate"], shape),
    )


def _layer_result(
    name: str,
    answer: Any,
    shape: tuple[int, ...],
    routed: tuple[tuple[int, ...], int, int],
    experts: int,
) -> LayerResult:
    found = fields_of(answer, ("output", "decision", "metrics"))
    if found["output"] is None:  # a bare array
        found = {"output": answer, "decision": None, "metrics": None}
    output = _numbers(f"{name}: output", found["output"], shape)
    decision: Any = found["decision"]
    (groups, tokens), k, capacity = routed
    if decision is not None:
        if fields_of(decision, ("token_index",))["token_index"] is not None:
            decision = _experts_choice(name, decision, (groups, experts, capacity))
        else:
            decision = _decision(name, decision, (groups, tokens, k), capacity)
    metrics = found["metrics"]
    if metrics is not None:
        metrics = {m: _numbers(f"{name}: {m}", metrics[m], ()) for m in METRICS if m in metrics}
    return LayerResult(output, decision, metrics)


__all__ = ["Subject", "UnsupportedError"]
