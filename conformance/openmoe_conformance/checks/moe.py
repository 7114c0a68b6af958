"""Checks of SPEC.md "The mixture-of-experts layer"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import ml_dtypes
import numpy as np

from openmoe_conformance import strategies
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.routing_cases import reference_decision
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.queues import compare_queue, queue
from openmoe_conformance.subject import Subject
from openmoe_reference import feed_forward, moe
from openmoe_spec.records import Decision, ExpertsChoice, LayerResult

LAYER_BOUND = {"relative": 1e-5, "absolute": 1e-5}


# ---- the layer on whole groups -----------------------------------------------------------------


def compare_layer(
    got: LayerResult,
    case: Case,
    evidence: Evidence,
    *,
    bound: dict[str, float] | None = None,
    **options: Any,
) -> None:
    """Compare a result on whole groups: decisions exactly, then the output of equal decisions."""
    weights = strategies.parameters(case)
    sizes = {"k": case["k"], "capacity": case["capacity"]}
    wanted = moe.moe(case["inputs"], weights, **sizes, **options)
    compare_decisions(got.decision, wanted.decision)
    close("output", got.output, wanted.output, evidence, **(bound or LAYER_BOUND))


def compare_decisions(
    got: Decision | ExpertsChoice | None, wanted: Decision | ExpertsChoice | None
) -> None:
    """Require the shown decision, if one is shown, to be the wanted one."""
    if isinstance(got, Decision) and isinstance(wanted, Decision):
        has_expert = np.asarray(wanted.expert_index) >= 0
        same("kept", got.kept, wanted.kept)
        same("expert_index", got.expert_index[has_expert], wanted.expert_index[has_expert])
        position = np.asarray(wanted.position, np.int64)
        same("position", got.position[got.kept], position[got.kept])
    elif isinstance(got, ExpertsChoice) and isinstance(wanted, ExpertsChoice):
        same("token_index", got.token_index, wanted.token_index)


def _layer(subject: Subject, case: Case, **options: Any) -> LayerResult:
    return subject.moe(
        case["inputs"],
        strategies.parameters(case),
        k=case["k"],
        capacity=case["capacity"],
        **options,
    )


@check("MOE-07", "moe", cases=strategies.layers(zero_rows=True))
def the_layer_is_the_composition(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Route, dispatch, experts, combine on whole groups."""
    compare_layer(_layer(subject, case), case, evidence)


@check("MOE-07", "moe(noise)", cases=strategies.layers())
def jitter_is_not_dispatched(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Noise moves the routing; experts still receive the inputs as they are."""
    noise = np.resize(np.array([1.25, 0.75, 1.0, 0.5, 1.5], np.float32), case["inputs"].shape)
    compare_layer(_layer(subject, case, noise=noise), case, evidence, noise=noise)


@check("MOE-07", "moe(ignore_padding)", cases=strategies.layers(zero_rows=True))
def the_layer_can_ignore_padding(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The composition with padding ignored."""
    compare_layer(_layer(subject, case, ignore_padding=True), case, evidence, ignore_padding=True)


@check("MOE-08", "moe", cases=strategies.layers(zero_rows=True))
def padding_rows_come_out_as_zeros(subject: Subject, case: Case, _: Evidence) -> None:
    """A zero row's output is exactly zero; the rows beside it are those of the composition."""
    padding = (case["inputs"] == 0).all(axis=-1)
    got = _layer(subject, case).output
    same("output of zero rows", got[padding], np.zeros_like(got[padding]))


@check("MOE-10", "moe", cases=strategies.layers())
def with_room_for_all_it_is_a_dense_mixture(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """Nothing dropped: the sum over the chosen experts, computed token by token."""
    room = case["inputs"].shape[1] * case["k"]
    got = _layer(subject, case | {"capacity": room})
    decision = reference_decision(case | {"capacity": room})
    inputs, experts = case["inputs"].astype(np.float64), case["kernel"].shape[1]
    weights = [case[name].astype(np.float64) for name in ("wi_0", "wi_1", "wo")]
    flat = inputs.reshape(1, -1, strategies.WIDTH)
    every = feed_forward.gated_mlp(np.repeat(flat, experts, axis=0), *weights, dtype="float64")
    every = every.reshape(experts, *inputs.shape)  # [E, G, T, D]
    wanted = np.zeros(inputs.shape)
    for g, t, j in np.ndindex(*decision.expert_index.shape):
        wanted[g, t] += decision.gate[g, t, j] * every[decision.expert_index[g, t, j], g, t]
    close("output", got.output, wanted, evidence, **LAYER_BOUND)


def _bfloat16_layers(_: Profile) -> Iterator[Case]:
    for seed in range(3):
        generator = np.random.default_rng(seed)
        inputs = generator.integers(-8, 9, (2, 16, 8)).astype(np.float32) / 8
        kernel = generator.integers(-8, 9, (8, 4)).astype(np.float32) / 16
        yield {
            "inputs": inputs,
            "kernel": kernel,
            "k": 2,
            "capacity": 5,
        } | strategies.expert_weights(seed, 4, width=8, hidden=12)


@check("MOE-06", "moe(expert_dtype)", cases=_bfloat16_layers)
def bfloat16_experts_give_float32_outputs(subject: Subject, case: Case, evidence: Evidence) -> None:
    """bfloat16 inputs and experts: the output is float32 and within 3e-2."""
    narrow = case | {"inputs": case["inputs"].astype(ml_dtypes.bfloat16)}
    got = _layer(subject, narrow, expert_dtype="bfloat16")
    if got.output.dtype != np.float32:
        raise Disagreement(f"output: dtype {got.output.dtype}, expected float32")
    bound = {"relative": 3e-2, "of_largest": 3e-2}
    compare_layer(got, narrow, evidence, bound=bound, expert_dtype="bfloat16")
    evidence.examples += 1


@check("MOE-06", "moe(expert_dtype)", cases=_bfloat16_layers)
def bfloat16_outputs_are_weighted_in_float32(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """Output / gate of a lone choice is a bfloat16 number: experts are rounded, their sum is not."""
    lone = case | {"k": 1, "capacity": case["inputs"].shape[1]}
    got = _layer(subject, lone, expert_dtype="bfloat16").output.astype(np.float64)
    gate = reference_decision(lone).gate.astype(np.float64)
    ratio = got / gate
    nearest = ratio.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)
    close("output / gate, against the nearest bfloat16", ratio, nearest, evidence, relative=4e-6)
    evidence.examples += 1


@check("MOE-06", "moe", cases=_bfloat16_layers)
def float32_layers_stay_float32(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A float32 layer computes its experts in float32: no value is rounded to bfloat16."""
    got = _layer(subject, case)
    if got.output.dtype != np.float32:
        raise Disagreement(f"output: dtype {got.output.dtype}, expected float32")
    compare_layer(got, case, evidence)
    evidence.examples += 1


@check("MOE-14", "moe(router)", "moe(ignore_padding)", cases=strategies.layers(zero_rows=True))
def the_scatter_layer_ignores_padding(subject: Subject, case: Case, evidence: Evidence) -> None:
    """With padding ignored: it takes slots and weighs nothing, and its choices count in f."""
    options: dict[str, Any] = {"router": "scatter", "ignore_padding": True}
    got = _layer(subject, case, **options)
    compare_layer(got, case, evidence, **options)


@check("MOE-14", "moe(router)", cases=strategies.layers(zero_rows=True))
def the_scatter_layer(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The layer with the scatter router."""
    compare_layer(_layer(subject, case, router="scatter"), case, evidence, router="scatter")


def _without_token_ties(_: Profile) -> Iterator[Case]:
    # A tie between tokens hangs on the last bit of each softmax; these values have none.
    for seed in range(6):
        generator = np.random.default_rng(seed)
        inputs = generator.normal(size=(2, 8, strategies.WIDTH)).astype(np.float32)
        kernel = generator.normal(size=(strategies.WIDTH, 4)).astype(np.float32)
        yield {
            "inputs": inputs,
            "kernel": kernel,
            "k": 2,
            "capacity": 3,
        } | strategies.expert_weights(seed, 4)


@check("MOE-14", "moe(router)", cases=_without_token_ties)
def the_experts_choose_layer(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The layer with the experts-choose router."""
    got = _layer(subject, case, router="experts_choose")
    compare_layer(got, case, evidence, router="experts_choose")
    evidence.examples += 1


@check("MOE-14", "moe(router)", "moe(ignore_padding)", cases=_without_token_ties)
def the_experts_choose_layer_ignores_padding(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """With padding ignored it may fill slots, and weighs nothing there."""
    inputs = case["inputs"].copy()
    inputs[:, ::3] = 0
    padded = case | {"inputs": inputs}
    options: dict[str, Any] = {"router": "experts_choose", "ignore_padding": True}
    got = _layer(subject, padded, **options)
    compare_layer(got, padded, evidence, **options)
    evidence.examples += 1


@check("MOE-07", "moe(batch_prioritized)", cases=_without_token_ties)
def the_layer_can_prioritise(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The composition with batch-prioritised routing."""
    got = _layer(subject, case, batch_prioritized=True)
    compare_layer(got, case, evidence, batch_prioritized=True)
    evidence.examples += 1


# ---- the layer on a batch ----------------------------------------------------------------------


def _derived(case: Case) -> dict[str, Any]:
    names = (
        "k",
        "training",
        "max_group_size",
        "num_expert_replicas",
        "min_expert_capacity",
    )
    return {name: case[name] for name in names if name in case}


def _compare_batch(subject: Subject, case: Case, evidence: Evidence) -> None:
    weights, options = strategies.parameters(case), _derived(case)
    wanted = moe.moe_layer(case["inputs"], weights, **options)
    decision = wanted.decision
    assert isinstance(decision, Decision)
    got = subject.moe_layer(
        case["inputs"],
        weights,
        groups=decision.expert_index.shape[:2],
        capacity=decision.capacity,
        **options,
    )
    if isinstance(got.decision, Decision):
        compare_queue(got.decision, queue(got.decision.expert_index), decision.capacity)
    compare_decisions(got.decision, decision)
    close("output", got.output, wanted.output, evidence, **LAYER_BOUND)


@check("MOE-07", "moe_layer(max_group_size)", cases=strategies.batches())
def batches_are_padded_grouped_and_cut(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A batch [B, L, D]: pad, group, derive the capacity, apply, cut."""
    _compare_batch(subject, case, evidence)


@check(
    "MOE-07",
    "moe_layer(num_expert_replicas)",
    "moe_layer(min_expert_capacity)",
    cases=strategies.batches(strategies.BATCHES[4:]),
)
def batches_on_replicas(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The same with one or two expert replicas and another smallest capacity."""
    _compare_batch(subject, case, evidence)


@check("MOE-08", "moe_layer", cases=strategies.batches(strategies.BATCHES[:2]))
def the_layers_own_padding_takes_slots(subject: Subject, case: Case, evidence: Evidence) -> None:
    """With the published defaults: the layer's padding is routed and counted, then cut off."""
    names = ("inputs", "kernel", "wi_0", "wi_1", "wo", "training", "k")
    _compare_batch(subject, {name: case[name] for name in names}, evidence)
