"""A whole model's answer and the reference run on the same decisions: what is compared with what.

A legitimate flip of one choice moves the slots of later tokens and every layer behind, so nothing of
a model is compared before the reference has been run on the implementation's own decisions.
Spec: JUDGE-01, JUDGE-02, JUDGE-04, JUDGE-05, MODEL-05.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import answers, model_cases
from openmoe_conformance.adapter import UnsupportedError
from openmoe_conformance.checks import Case
from openmoe_conformance.compare import Arithmetic, judge_choices, logit_band, same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.queues import compare_queue, queue
from openmoe_conformance.subject import Subject
from openmoe_reference import grouping, model, model_gradients, moe, routing
from openmoe_spec.config import Configuration
from openmoe_spec.records import Decision, ForwardResult, LayerResult

OF_LARGEST = 1e-5
"""How far a float32 model may be from the float64 reference, in units of a tensor's largest."""

Decisions = Mapping[int, Decision]
"""What each sparse layer decided, by its index."""


@dataclass(frozen=True)
class Given:
    """One input of a whole model.

    fields   configuration
    options  keywords that the reference's pass takes too: `training`, `num_expert_replicas`
    """

    fields: Mapping[str, Any]
    parameters: Mapping[str, ndarray]
    batch: Mapping[str, ndarray]
    options: Mapping[str, Any] = field(default_factory=dict)

    @property
    def configuration(self) -> Configuration:
        """Return the fields as a record."""
        return Configuration(**self.fields)

    def arguments(self, **more: Any) -> dict[str, Any]:
        """Return the keywords of `forward`, `loss` and `model_gradients`."""
        return {"configuration": self.fields, **self.options, **more}


def given(case: Case, **changes: Any) -> Given:
    """Return the input of a case of `model_cases`, some fields of its configuration changed."""
    return Given(*model_cases.build(case, **changes), options={"training": case["training"]})


@dataclass(frozen=True)
class Forced:
    """The reference's pass on given decisions, and what its routers read: [G, T, D] by layer."""

    result: ForwardResult
    router_inputs: Mapping[int, ndarray]


def forced(one: Given, decisions: Decisions, *, dtype: str = "float64") -> Forced:
    """Return the reference's pass; layers without a decision decide themselves. Spec: JUDGE-04."""
    c, read = one.configuration, list[ndarray]()

    def listening(x: ndarray, weights: Mapping[str, ndarray], **options: Any) -> LayerResult:
        padded, groups = _groups(one)
        read.append(grouping.to_groups(x, padded=padded, num_groups=groups))
        return moe.moe_layer(x, weights, **options)

    call = model.Call(dtype=dtype, decisions=decisions, **one.options)
    rules = replace(model.Rules(), moe=listening)
    result = model.forward(one.parameters, one.batch, c, call=call, rules=rules)
    return Forced(result, dict(zip(result.decisions, read, strict=True)))


def _groups(one: Given) -> tuple[tuple[int, int], int]:
    c = one.configuration
    return grouping.groups_by_experts(
        *one.batch["decoder_input_tokens"].shape,
        max_group_size=c.max_group_size,
        num_experts=c.num_experts,
        num_expert_replicas=one.options.get("num_expert_replicas", 1),
    )


def check_queues(decisions: Decisions, one: Given) -> None:
    """Require groups and capacity of chapter 7, and the positions and drops of the choices."""
    c = one.configuration
    (rows, columns), groups = _groups(one)
    tokens = rows * columns // groups
    factor = grouping.capacity_factor(
        training=one.options.get("training", False),
        train_capacity_factor=c.train_capacity_factor,
        eval_capacity_factor=c.eval_capacity_factor,
    )
    capacity = grouping.expert_capacity(
        tokens,
        num_experts=c.num_experts,
        capacity_factor=factor,
        min_expert_capacity=c.min_expert_capacity,
    )
    for layer, decision in decisions.items():
        shape = decision.expert_index.shape[:2]
        same(f"layer {layer}: groups and tokens in a group", shape, (groups, tokens))
        same(f"layer {layer}: capacity", decision.capacity, capacity)
        compare_queue(decision, queue(decision.expert_index), capacity)


@dataclass(frozen=True)
class Band:
    """Where a layer's router logits may lie, [G, T, E], and the reference's own choices there."""

    logits: ndarray
    half: ndarray
    choices: ndarray

    @property
    def decided(self) -> ndarray:
        """Return which tokens [G, T] have one answer."""
        return judge_choices(self.choices, self.logits, self.half, self.choices)


def bands(one: Given, found: Forced, arithmetic: Arithmetic) -> dict[int, Band]:
    """Return the band of each sparse layer around the logits of the forced pass.

    To JUDGE-01's width is added what the router's own input may differ by: each element by
    OF_LARGEST of the largest one, as a float32 model may. A masked row is exactly zero for both.
    """
    c, made = one.configuration, {}
    for layer, x in found.router_inputs.items():
        kernel = one.parameters[f"decoder/layers_{layer}/mlp/router/router_weights/w/kernel"]
        logits, half = logit_band(x, kernel, arithmetic)
        reach = OF_LARGEST * np.abs(x).max() * np.abs(kernel.astype(np.float64)).sum(axis=0)
        half = half + np.where((x != 0).any(axis=-1, keepdims=True), reach, 0.0)
        narrow = routing.softmax(logits).astype(np.float32)
        own = routing.decide(narrow, k=c.num_selected_experts, capacity=1)
        made[layer] = Band(logits, half, own.expert_index)
    return made


def undecided(one: Given, found: Forced, subject: Subject, evidence: Evidence) -> bool:
    """Return whether any token's choice is closer than the band; count those in the evidence."""
    decided = [band.decided for band in bands(one, found, subject.arithmetic).values()]
    tokens = sum(one.size for one in decided)
    open_ = tokens - sum(int(one.sum()) for one in decided)
    evidence.judged(tokens, open_)
    return open_ > 0


def answered(
    subject: Subject, one: Given, evidence: Evidence, **options: Any
) -> tuple[ForwardResult, Forced] | None:
    """Return the implementation's pass and the reference's in float64 on the same decisions.

    Where no decisions are shown the reference's own stand for them, if none of them is a near tie;
    else nothing can be told and None is returned.
    """
    got = subject.forward(one.parameters, one.batch, **one.arguments(**options))
    check_queues(got.decisions, one)
    wanted = forced(one, got.decisions)
    if not got.decisions and undecided(one, wanted, subject, evidence):
        return None
    return got, wanted


def settled(subject: Subject, one: Given, evidence: Evidence) -> Decisions | None:
    """Return the decisions of a loss or gradient, which shows none: those of `forward` beside it.

    Two programs of one implementation may round differently, so None is returned where a token's
    choice is a near tie. Without `forward` the reference's own decisions stand for them.
    """
    decisions: Decisions = {}
    if "forward" in subject.functions:
        decisions = subject.forward(one.parameters, one.batch, **one.arguments()).decisions
        check_queues(decisions, one)
    found = forced(one, decisions)
    return None if undecided(one, found, subject, evidence) else found.result.decisions


def judge_routing(subject: Subject, one: Given, evidence: Evidence) -> Decisions:
    """Judge each sparse layer's choices by the interval rule, the rest exactly; return them."""
    got = subject.forward(one.parameters, one.batch, **one.arguments())
    if not got.decisions:
        raise UnsupportedError("forward() shows no decisions")
    check_queues(got.decisions, one)
    for layer, band in bands(one, forced(one, got.decisions), subject.arithmetic).items():
        index = got.decisions[layer].expert_index
        decided = judge_choices(index, band.logits, band.half, band.choices)
        evidence.judged(decided.size, int((~decided).sum()))
    return got.decisions


def shown_activations(got: ForwardResult, wanted: Mapping[str, ndarray]) -> dict[str, ndarray]:
    """Return the activations that are shown by the names of MODEL-11, of the wanted shapes."""
    shown = got.activations or {}
    found = {
        name: answers.numbers(f"activations[{name}]", shown[name], wanted[name].shape)
        for name in wanted
        if name in shown
    }
    if not found:
        raise UnsupportedError("forward() shows no activations by the names of MODEL-11")
    return found


# ---- gradients -----------------------------------------------------------------------------

STEADY = 0.2
"""Share of its bound that float32 activations alone may move a gradient by in a drawn case.

A float32 program was found to be wrong by up to 3.5 times that: no right one comes near the bound.
"""


def by_hand(one: Given, decisions: Decisions, *, dtype: str = "float64") -> dict[str, ndarray]:
    """Return the reference's gradients in float64, from activations of the given dtype."""
    call = model.Call(dtype=dtype, decisions=decisions, **one.options)
    c = one.configuration
    return model_gradients.model_gradients(one.parameters, one.batch, c, call=call)[1]


def cancelling(gradients: Mapping[str, ndarray]) -> float:
    """Return 8 x 2^-24 of the largest of all tensors: rounding of terms that cancel (JUDGE-07).

    Gradients of queries, keys and routers are differences of much larger terms.
    """
    return 8 * 2.0**-24 * float(max(np.abs(value).max() for value in gradients.values()))


def is_steady(case: Case) -> bool:
    """Return whether rounding hardly moves the gradients of a case, as in 19 models of 20."""
    one = given(case)
    decisions = forced(one, {}).result.decisions
    wide, rounded = (by_hand(one, decisions, dtype=dtype) for dtype in ("float64", "float32"))
    least = cancelling(wide)
    return all(
        np.abs(rounded[name] - value).max() <= STEADY * (OF_LARGEST * np.abs(value).max() + least)
        for name, value in wide.items()
    )
