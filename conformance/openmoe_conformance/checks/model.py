"""Checks of SPEC.md "The model".

Logits, activations and gradients of float32 models are within 1e-5 of a tensor's largest value of the
float64 reference, which is run on the implementation's own decisions (JUDGE-04).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_conformance import answers, model_cases
from openmoe_conformance.adapter import UnsupportedError
from openmoe_conformance.checks import Case, check
from openmoe_conformance.compare import close, same
from openmoe_conformance.model_judging import (
    OF_LARGEST,
    Decisions,
    Given,
    answered,
    by_hand,
    cancelling,
    check_queues,
    forced,
    given,
    is_steady,
    judge_routing,
    settled,
    shown_activations,
)
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import cross_entropy, layers
from openmoe_spec.parameters import sparse_layers

BOUND = {"relative": 0.0, "of_largest": OF_LARGEST}


def _compare_logits(subject: Subject, one: Given, evidence: Evidence) -> None:
    both = answered(subject, one, evidence)
    if both is not None:
        close("logits", both[0].logits, both[1].result.logits, evidence, **BOUND)


@check("MODEL-01", "forward(training)", cases=model_cases.models(), whole_model=True)
def logits_of_drawn_models(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Logits of a drawn configuration and batch, within 1e-5 of the largest."""
    _compare_logits(subject, given(case), evidence)


def _kinds(_: Profile) -> Iterator[Case]:
    for seed, kind in enumerate(model_cases.KINDS):
        yield model_cases.fixed(kind=kind, seed=seed, training=False)


@check("MODEL-01", "forward", cases=_kinds)
def logits_of_every_kind_of_batch(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Full, padded and packed rows, with a prompt and without."""
    _compare_logits(subject, given(case), evidence)
    evidence.examples += 1


@check("MODEL-01", "forward", cases=_kinds)
def activations_of_every_kind_of_batch(subject: Subject, case: Case, evidence: Evidence) -> None:
    """What modules put out, masked positions of the residual stream included: it is never masked."""
    both = answered(subject, given(case), evidence)
    if both is not None:
        wanted = both[1].result.activations
        assert wanted is not None
        for name, value in shown_activations(both[0], wanted).items():
            close(name, value, wanted[name], evidence, **BOUND)
    evidence.examples += 1


# ---- one layer at a time -------------------------------------------------------------------


def _silenced(one: Given, *parts: str) -> Given:
    """Return the input with sublayers that put out zeros: those whose kernel has a name with a part."""
    quiet = {
        name: np.zeros_like(value)
        for name, value in one.parameters.items()
        if name.endswith(("out/kernel", "wo/kernel")) and any(part in name for part in parts)
    }
    return replace(one, parameters={**one.parameters, **quiet})


def _compare_silenced(
    subject: Subject, case: Case, evidence: Evidence, *parts: str, **changes: Any
) -> None:
    fixed = model_cases.fixed(kind="padded", training=False, seed=case["seed"], **changes)
    _compare_logits(subject, _silenced(given(fixed), *parts), evidence)
    evidence.examples += 1


def _sublayers(*names: str) -> Any:
    """Return cases in which all, then all but one of the named sublayers are heard."""
    heard = ["", *names]
    return lambda _: iter([{"silent": one, "seed": seed} for seed, one in enumerate(heard)])


@check("MODEL-02", "forward", cases=_sublayers("layers_0/self_attention", "layers_0/mlp"))
def a_dense_layer(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Attention, then feed-forward, each added to what it read the norm of; layer 1 is silent."""
    parts = ("layers_1/", case["silent"]) if case["silent"] else ("layers_1/",)
    _compare_silenced(subject, case, evidence, *parts, blocks=1, interval=2)


@check("MODEL-03", "forward", cases=_sublayers("self_attention", "mlp/expert", "extra_mlp"))
def a_sparse_layer(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Attention, experts, then the extra feed-forward behind a norm of its own, in sequence."""
    parts = (case["silent"],) if case["silent"] else ()
    _compare_silenced(subject, case, evidence, *parts, blocks=1, interval=1)


@check("MODEL-04", "forward", cases=_sublayers("layers_0/mlp", "layers_1/extra_mlp"))
def a_feed_forward_has_three_projections(subject: Subject, case: Case, evidence: Evidence) -> None:
    """That of a dense layer and the extra one, both and alone; attention and experts are silent."""
    parts = ("self_attention", "mlp/expert", *([case["silent"]] if case["silent"] else []))
    _compare_silenced(subject, case, evidence, *parts, blocks=1, interval=2)


# ---- routing -------------------------------------------------------------------------------


@check("MODEL-05", "forward(training)", cases=model_cases.models(), whole_model=True)
def routing_of_drawn_models(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Choices by the interval rule; groups, capacity, positions and drops exactly."""
    judge_routing(subject, given(case), evidence)


def _crowds(_: Profile) -> Iterator[Case]:
    for seed, (training, experts, largest) in enumerate(
        ((False, 4, 4096), (True, 4, 4096), (False, 8, 64), (True, 8, 64))
    ):
        shape = {"rows": 16, "length": 64, "experts": experts, "max_group_size": largest}
        yield model_cases.fixed(training=training, seed=seed, **shape)


@check("MODEL-05", "forward(training)", cases=_crowds)
def routing_of_many_tokens(subject: Subject, case: Case, evidence: Evidence) -> None:
    """1024 tokens in training and evaluation, whose capacities differ and bind."""
    judge_routing(subject, given(case), evidence)
    evidence.examples += 1


@check(
    "MODEL-05",
    "forward(num_expert_replicas)",
    cases=lambda _: iter([{"num_expert_replicas": replicas} for replicas in (2, 3)]),
)
def routing_on_replicas(subject: Subject, case: Case, evidence: Evidence) -> None:
    """More groups where each expert has replicas."""
    one = given(model_cases.fixed(rows=3, training=False))
    judge_routing(subject, replace(one, options=case), evidence)
    evidence.examples += 1


@check("MODEL-05", "forward", cases=_kinds)
def masked_positions_choose_the_first_experts(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """A masked position is a zero row to its router and goes to experts 0 ... K - 1."""
    one = given(case)
    decisions = judge_routing(subject, one, evidence)
    found = forced(one, decisions)
    for layer, decision in decisions.items():
        empty = ~found.router_inputs[layer].any(axis=-1)
        first = np.broadcast_to(np.arange(case["k"]), decision.expert_index.shape)
        index = decision.expert_index
        same(f"layer {layer}: choices of masked positions", index[empty], first[empty])
    evidence.examples += 1


# ---- bfloat16 ------------------------------------------------------------------------------


def _narrow(values: ndarray) -> ndarray:
    """Return the nearest bfloat16 of each value, as float64."""
    return values.astype(np.float32).astype(ml_dtypes.bfloat16).astype(np.float64)


def _require(what: str, values: ndarray, *, narrow: bool) -> None:
    wide = values.astype(np.float64)
    if bool((wide == _narrow(wide)).all()) != narrow:
        found, wanted = ("float32", "bfloat16") if narrow else ("bfloat16", "float32")
        raise Disagreement(f"{what}: holds {found} values, expected {wanted}")


def _bfloat16_models(_: Profile) -> Iterator[Case]:
    for interval in (1, 3):
        yield model_cases.fixed(interval=interval, training=False, seed=interval)


@check("MODEL-06", "forward(dtype)", cases=_bfloat16_models)
def the_stream_widens_at_the_first_experts(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """Each module's output, and the stream behind it, is bfloat16 or float32 by its place."""
    one = given(case)
    got = subject.forward(one.parameters, one.batch, **one.arguments(dtype="bfloat16"))
    wanted = forced(one, got.decisions).result.activations
    assert wanted is not None
    shown = shown_activations(got, wanted)
    c = one.configuration
    sparse = sparse_layers(c.num_layers, c.num_moe_layers)
    for name, value in shown.items():
        layer = int(name.split("/")[1].removeprefix("layers_")) if "/layers_" in name else -1
        ends = ("router_weights", *(f"layers_{i}/mlp" for i in sparse))
        stream = name == f"decoder/layers_{layer}" and layer >= sparse[0]
        _require(name, value, narrow=not (stream or name.endswith(ends)))
    _compare_joint(shown, f"decoder/layers_{sparse[0]}")
    evidence.examples += 1


def _compare_joint(shown: Mapping[str, ndarray], name: str) -> None:
    """Require the stream that the first experts are added to to be bfloat16: it is the difference."""
    if name in shown and f"{name}/mlp" in shown:
        after, experts = (shown[one].astype(np.float64) for one in (name, f"{name}/mlp"))
        before = _narrow(after - experts)
        error = np.abs(before + experts - after)
        if (error > 2.0**-23 * (np.abs(after) + np.abs(experts))).any():
            raise Disagreement(f"{name}: the experts were added to float32 values")


@check("MODEL-07", "forward(dtype)", cases=_bfloat16_models)
def bfloat16_logits_are_float32_products(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The masked last norm is multiplied in float32: within 1e-5 of the largest product."""
    one = given(case)
    got = subject.forward(one.parameters, one.batch, **one.arguments(dtype="bfloat16"))
    _require("logits", got.logits, narrow=False)
    normed = "decoder/decoder_norm"
    shape = (*one.batch["decoder_input_tokens"].shape, one.configuration.embed_dim)
    if normed in (got.activations or {}):
        shown = answers.numbers(normed, (got.activations or {})[normed], shape).astype(np.float64)
        kernel = one.parameters["decoder/logits_dense/kernel"].astype(np.float64)
        mask = layers.token_mask(one.batch["decoder_input_tokens"])
        wanted = layers.output_logits(shown, kernel, mask=mask, dtype="float64")
        close("logits of the shown norm", got.logits, wanted, evidence, **BOUND)
    evidence.examples += 1


def _many_bfloat16_models(_: Profile) -> Iterator[Case]:
    for interval, heads, experts in ((2, 2, 4), (1, 3, 8)):
        shape = {"interval": interval, "heads": heads, "experts": experts, "width": 16}
        yield model_cases.fixed(training=False, models=6, **shape)


@check("MODEL-07", "forward(dtype)", cases=_many_bfloat16_models)
def bfloat16_errs_at_most_twice_as_much(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Root mean square distance to float64 over six models, in units of that of the emulation."""
    squares = {"got": 0.0, "emulated": 0.0}
    for seed in range(case["models"]):
        one = given(case | {"seed": seed})
        got = subject.forward(one.parameters, one.batch, **one.arguments(dtype="bfloat16"))
        if not got.decisions:
            raise UnsupportedError("forward() shows no decisions, which bfloat16 cannot do without")
        check_queues(got.decisions, one)
        wide = forced(one, got.decisions).result.logits
        emulated = forced(one, got.decisions, dtype="bfloat16").result.logits
        for name, logits in (("got", got.logits), ("emulated", emulated)):
            distance = (logits.astype(np.float64) - wide) / np.abs(wide).max()
            squares[name] += float((distance**2).mean())
    ratio = float(np.sqrt(squares["got"] / squares["emulated"]))
    evidence.measured(ratio / 2)
    if not ratio <= 2:
        raise Disagreement(
            f"logits: {ratio:.3g} x the distance of the emulation, must be at most 2"
        )
    evidence.examples += 1


# ---- gradients -----------------------------------------------------------------------------


def _gradients(subject: Subject, one: Given) -> dict[str, ndarray]:
    shapes = {name: value.shape for name, value in one.parameters.items()}
    return subject.named("model_gradients", shapes, one.parameters, one.batch, **one.arguments())


@check(
    "MODEL-08",
    "model_gradients(training)",
    cases=model_cases.models().filter(is_steady),
    whole_model=True,
)
def gradients_of_drawn_models(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Every tensor's gradient within 1e-5 of its largest, plus 8 x 2^-24 of the largest of all."""
    one = given(case)
    decisions = settled(subject, one, evidence)
    if decisions is None:
        return
    got, wanted = _gradients(subject, one), by_hand(one, decisions)
    limit = {**BOUND, "absolute": cancelling(wanted)}
    for name, value in got.items():
        close(f"gradient of {name}", value, wanted[name], evidence, **limit)


def _steep(profile: Profile) -> Iterator[Case]:
    # Full rows: a query that sees no key attends alike whatever its logits are (ATTN-09), and yet
    # gradients flow to them, so no difference can show those.
    yield model_cases.fixed(kind="full", rows=4, directions=profile.gradient_directions // 2)


STEP = 1e-5


@check("MODEL-08", "model_gradients(training)", cases=_steep)
def gradients_are_slopes_of_the_loss(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Along a direction in each tensor: the central difference of the float64 loss, decisions fixed."""
    one = given(case, auxiliary_loss_factor=0.5, router_z_loss_factor=0.25, z_loss_factor=0.01)
    decisions = settled(subject, one, evidence)
    if decisions is None:
        return
    got = _gradients(subject, one)
    generator = np.random.default_rng(case["seed"])
    for _ in range(case["directions"]):
        for name, value in one.parameters.items():
            direction = generator.normal(size=value.shape)
            direction /= np.linalg.norm(direction)
            up, down = (
                _loss(replace(one, parameters={**one.parameters, name: value + step}), decisions)
                for step in (STEP * direction, -STEP * direction)
            )
            slope = float((got[name].astype(np.float64) * direction).sum())
            wanted = (up - down) / (2 * STEP)
            close(f"slope along {name}", slope, wanted, evidence, relative=2e-5, absolute=2e-5)
    evidence.examples += 1


def _loss(one: Given, decisions: Decisions) -> float:
    result = forced(one, decisions).result
    parts = cross_entropy.total_loss(result.logits, one.batch, result.metrics, one.configuration)
    return float(parts["total"])
