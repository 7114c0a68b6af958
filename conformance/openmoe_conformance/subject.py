"""The implementation under test, with its answers brought into one form.

A malformed answer (wrong shape, a missing field) is a Disagreement, so that a check fails and says
so; what the implementation raises itself passes through and becomes ERROR.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.adapter import UnsupportedError, call, misspelt, offers
from openmoe_conformance.compare import NAMED_ARITHMETIC, Arithmetic
from openmoe_conformance.outcome import Disagreement, UsageError
from openmoe_conformance.protocol import FUNCTIONS, Mesh
from openmoe_spec.dialects import DIALECTS, foreign
from openmoe_spec.records import (
    PARAMETERS,
    Decision,
    ExpertsChoice,
    ForwardResult,
    LayerResult,
)


class Subject:
    """An adapter behind one face: every method takes and returns NumPy arrays."""

    def __init__(self, adapter: Any) -> None:
        self.adapter = adapter
        self.name = str(getattr(adapter, "name", None) or type(adapter).__name__)
        self.version = str(getattr(adapter, "version", "") or "")
        self.url = str(getattr(adapter, "url", "") or "")
        self.arithmetic = _arithmetic(getattr(adapter, "arithmetic", "float32"))
        self.rejects_invalid_input = getattr(adapter, "rejects_invalid_input", False)
        if not isinstance(self.rejects_invalid_input, bool):
            declared = self.rejects_invalid_input
            raise UsageError(
                f"adapter.rejects_invalid_input: must be True or False, got {declared!r}"
            )
        self.functions = tuple(name for name in FUNCTIONS if offers(adapter, name) is None)
        self.notes = misspelt(adapter)
        self.mesh: Mesh | None = None
        self.dialect = getattr(adapter, "dialect", "t5x")
        if not isinstance(self.dialect, str) or self.dialect not in DIALECTS:
            raise UsageError(
                f"adapter.dialect: must be one of {', '.join(DIALECTS)}, got {self.dialect!r}"
            )

    def foreign(self, clause: str) -> str | None:
        """Return why a clause is not about this implementation: its native dialect is another."""
        point = foreign(clause, self.dialect)
        return point and f"{self.dialect} chooses otherwise at {point}"

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

    def meshes(self) -> tuple[Mesh, ...]:
        """Return the meshes that the implementation can be run on here."""
        answer = self.call("meshes")
        if not isinstance(answer, list | tuple):
            raise Disagreement(f"meshes: must be a sequence, got {type(answer).__name__}")
        found = [answers.whole("meshes", one, (3,)).tolist() for one in answer]
        return tuple((data, expert, model) for data, expert, model in found)

    def on(self, mesh: Mesh) -> Subject:
        """Return the same implementation, every function of which that knows meshes runs on this one."""
        bound = copy.copy(self)
        bound.mesh = mesh
        return bound

    def call(self, function: str, *arguments: Any, **keywords: Any) -> Any:
        """Return the implementation's own answer, untouched.

        A dialect is asked for by keyword unless it is the implementation's native one, and a mesh only
        where the implementation says that it can be run on it.
        """
        known = FUNCTIONS[function].optional
        mesh = keywords.get("mesh", self.mesh) if "mesh" in known else None
        if mesh is not None:
            keywords["mesh"] = data, expert, model = tuple(mesh)
            if not offers(self.adapter, "meshes") and keywords["mesh"] not in self.meshes():
                raise UnsupportedError(f"runs on no mesh of {data} x {expert} x {model}")
        if "dialect" in known and offers(self.adapter, function) is None:
            wanted = keywords.pop("dialect", known["dialect"])
            if wanted != self.dialect:
                if offers(self.adapter, f"{function}(dialect)"):
                    raise UnsupportedError(f"{function}() speaks {self.dialect}, not {wanted}")
                keywords["dialect"] = wanted
        return call(self.adapter, function, *arguments, **keywords)

    def integer(self, function: str, *arguments: Any, **keywords: Any) -> int:
        """Return a whole number answered by `function`."""
        answer = self.call(function, *arguments, **keywords)
        number = answers.array(function, answer)
        if number.ndim or number.dtype.kind not in "iu":
            raise Disagreement(f"{function}: must return a whole number, got {answer!r}")
        return int(number)

    def scalar(self, function: str, *arguments: Any, **keywords: Any) -> float:
        """Return a real number answered by `function`."""
        return float(answers.numbers(function, self.call(function, *arguments, **keywords), ()))

    def probabilities(
        self, inputs: ndarray, kernel: ndarray, *, noise: ndarray | None = None
    ) -> ndarray:
        """Return probabilities [G, T, E]."""
        answer = self.call("probabilities", inputs, kernel, noise=noise)
        return answers.numbers("probabilities", answer, (*inputs.shape[:2], kernel.shape[1]))

    def decide(
        self, probabilities: ndarray, *, function: str = "decide", k: int, **options: Any
    ) -> Decision:
        """Return the record of `decide` or `decide_scatter`."""
        answer = self.call(function, probabilities, k=k, **options)
        groups, tokens, experts = probabilities.shape
        return answers.decision(
            function, answer, (groups, tokens, k), experts=experts, capacity=options["capacity"]
        )

    def experts_choose(
        self, probabilities: ndarray, *, capacity: int, padding_mask: ndarray | None = None
    ) -> ExpertsChoice:
        """Return the experts' choice."""
        answer = self.call(
            "experts_choose", probabilities, capacity=capacity, padding_mask=padding_mask
        )
        groups, tokens, experts = probabilities.shape
        shape = (groups, experts, capacity)
        return answers.experts_choice("experts_choose", answer, shape, tokens=tokens)

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
        shape, experts = (*inputs.shape[:2], k), kernel.shape[1]
        return answers.decision("route", answer, shape, experts=experts, capacity=capacity)

    def array(
        self, function: str, shape: tuple[int, ...], *arguments: Any, **keywords: Any
    ) -> ndarray:
        """Return an array of numbers of the given shape."""
        return answers.numbers(function, self.call(function, *arguments, **keywords), shape)

    def moe(
        self, inputs: ndarray, parameters: Mapping[str, ndarray], **options: Any
    ) -> LayerResult:
        """Return the layer's result on whole groups."""
        answer = self.call("moe", inputs, parameters, **options)
        sizes = {"k": options["k"], "capacity": options["capacity"]}
        sizes["experts"] = parameters["router"].shape[1]
        groups = inputs.shape[:2]
        return answers.layer_result("moe", answer, inputs.shape, groups=groups, sizes=sizes)

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
        sizes = {"k": k, "capacity": capacity, "experts": parameters["router"].shape[1]}
        return answers.layer_result("moe_layer", answer, inputs.shape, groups=groups, sizes=sizes)

    def forward(
        self,
        parameters: Mapping[str, ndarray],
        batch: Mapping[str, ndarray],
        *,
        configuration: Mapping[str, Any],
        **options: Any,
    ) -> ForwardResult:
        """Return the model's result; decisions and trace where they are shown."""
        answer = self.call("forward", parameters, batch, configuration=configuration, **options)
        return answers.forward_result(
            "forward",
            answer,
            batch["decoder_input_tokens"].shape,
            configuration=configuration,
        )

    def named(
        self, function: str, shapes: Mapping[str, tuple[int, ...]], *arguments: Any, **keywords: Any
    ) -> dict[str, ndarray]:
        """Return a mapping of arrays of numbers; each name of `shapes` must be there."""
        answer = self.call(function, *arguments, **keywords)
        return answers.named(function, answer, shapes)

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
        return {
            name: answers.numbers(f"{function}[{name}]", answer[name], shapes[name])
            for name in names
        }


def _arithmetic(declared: Any) -> Arithmetic:
    if isinstance(declared, str) and declared in NAMED_ARITHMETIC:
        return NAMED_ARITHMETIC[declared]
    names = tuple(asdict(Arithmetic()))
    legal = isinstance(declared, Mapping) and all(
        name in names and isinstance(value, int | float) and 0 <= value < 1
        for name, value in declared.items()
    )
    if not legal:
        raise UsageError(
            f"adapter.arithmetic: {declared!r} is neither one of {', '.join(NAMED_ARITHMETIC)} nor "
            f"a mapping of any of {', '.join(names)} to a unit roundoff in [0, 1)"
        )
    return replace(Arithmetic(), **{name: float(value) for name, value in declared.items()})


__all__ = ["Subject", "UnsupportedError"]
