"""Checks of SPEC.md "The mixture-of-experts layer": dispatch, an expert and combine, each alone."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy import ndarray

from openmoe_conformance import strategies
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.routing_cases import reference_decision
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import feed_forward, moe
from openmoe_spec.records import Decision


@check("MOE-01", "dispatch", cases=strategies.layers())
def slots_hold_copies_of_their_tokens(subject: Subject, case: Case, _: Evidence) -> None:
    """Slot c of expert e is bit for bit its token's input; other slots are zeros."""
    decision, experts = reference_decision(case), case["kernel"].shape[1]
    token, _weight = moe.slots(decision, num_experts=experts)
    wanted = moe.dispatch(case["inputs"], token)
    got = subject.array("dispatch", wanted.shape, case["inputs"], decision, num_experts=experts)
    same("dispatch", got, wanted)


def _expert_inputs(case: Case) -> ndarray:
    experts = case["kernel"].shape[1]
    generator = np.random.default_rng(int(case["capacity"]))
    return generator.normal(size=(experts, 5, strategies.WIDTH)).astype(np.float32)


@check("MOE-02", "expert", cases=strategies.layers())
def experts_multiply_three_projections(subject: Subject, case: Case, evidence: Evidence) -> None:
    """H = a silu(b) (x @ wi_1), then h @ wo."""
    inputs = _expert_inputs(case)
    weights = [case[name] for name in ("wi_0", "wi_1", "wo")]
    wide = [weight.astype(np.float64) for weight in weights]
    wanted = feed_forward.gated_mlp(inputs.astype(np.float64), *wide, dtype="float64")
    got = subject.array("expert", inputs.shape, inputs, *weights)
    close("expert", got, wanted, evidence, relative=1e-5, of_largest=2e-6)


def _square_experts(_: Profile) -> Iterator[Case]:
    # D = F: weights that were transposed or exchanged still fit.
    for seed in range(3):
        inputs = np.random.default_rng(seed).normal(size=(2, 5, 4)).astype(np.float32)
        yield {"inputs": inputs} | strategies.expert_weights(seed, 2, width=4, hidden=4)


@check("MOE-02", "expert", cases=_square_experts)
def square_weights_are_used_as_they_are(subject: Subject, case: Case, evidence: Evidence) -> None:
    """With D = F nothing is transposed, and wi_1 and wo are not exchanged."""
    weights = [case[name] for name in ("wi_0", "wi_1", "wo")]
    wide = [weight.astype(np.float64) for weight in weights]
    wanted = feed_forward.gated_mlp(case["inputs"].astype(np.float64), *wide, dtype="float64")
    got = subject.array("expert", case["inputs"].shape, case["inputs"], *weights)
    close("expert", got, wanted, evidence, relative=1e-5, of_largest=2e-6)
    evidence.examples += 1


@check("MOE-02", "expert", cases=strategies.layers())
def experts_are_cubic_and_have_no_bias(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Far from 0 doubling x multiplies the output by 8 (silu is then linear or 0); 0 gives 0."""
    inputs = np.abs(_expert_inputs(case)) + 1
    wi_0, wi_1, wo = np.abs(case["wi_0"]) + 16, np.abs(case["wi_1"]), np.abs(case["wo"])
    once = subject.array("expert", inputs.shape, inputs, wi_0, wi_1, wo)
    twice = subject.array("expert", inputs.shape, 2 * inputs, wi_0, wi_1, wo)
    close("expert(2 x) / 8", twice / 8, once, evidence, relative=1e-5)
    nothing = subject.array("expert", inputs.shape, 0 * inputs, wi_0, wi_1, wo)
    same("expert(0)", nothing, np.zeros_like(inputs))


@check("MOE-03", "expert", cases=strategies.layers())
def the_second_half_is_activated(subject: Subject, case: Case, evidence: Evidence) -> None:
    """With first half +4 and second half -4 the product is 4 silu(-4), not -4 silu(4)."""
    experts, hidden = case["wi_1"].shape[0], case["wi_1"].shape[2]
    inputs = np.zeros((experts, 2, strategies.WIDTH), np.float32)
    inputs[..., 0] = 1
    wi_0 = np.zeros((experts, strategies.WIDTH, 2 * hidden), np.float32)
    wi_0[:, 0, :hidden], wi_0[:, 0, hidden:] = 4, -4
    wi_1, wo = np.ones_like(case["wi_1"]), case["wo"]
    silu = -4 / (1 + np.exp(4.0))
    wanted = np.broadcast_to(4 * silu * wo.astype(np.float64).sum(1)[:, None], inputs.shape)
    got = subject.array("expert", inputs.shape, inputs, wi_0, wi_1, wo)
    close("expert", got, wanted, evidence, relative=1e-5, of_largest=2e-6)


def _outputs(case: Case) -> tuple[Decision, ndarray]:
    decision, experts = reference_decision(case), case["kernel"].shape[1]
    shape = (case["inputs"].shape[0], experts, case["capacity"], strategies.WIDTH)
    outputs = np.random.default_rng(3).normal(size=shape).astype(np.float32)
    return decision, outputs


@check("MOE-04", "combine", cases=strategies.layers())
def outputs_are_weighted_by_raw_gates(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The sum over kept choices of gate x slot output; slots nobody holds do not matter."""
    decision, outputs = _outputs(case)
    experts, tokens = outputs.shape[1], case["inputs"].shape[1]
    token, weight = moe.slots(decision, num_experts=experts)
    wanted = moe.combine(outputs, token, weight, tokens=tokens)
    got = subject.array("combine", wanted.shape, outputs, decision, num_experts=experts)
    close("combine", got, wanted, evidence, relative=2e-6, of_largest=1e-6)


@check("MOE-05", "combine", cases=strategies.layers())
def dropped_tokens_get_zeros(subject: Subject, case: Case, _: Evidence) -> None:
    """A token none of whose choices was kept gets exact zeros."""
    decision, outputs = _outputs(case)
    shape = case["inputs"].shape
    got = subject.array("combine", shape, outputs, decision, num_experts=outputs.shape[1])
    dropped = ~np.asarray(decision.kept).any(axis=-1)
    same("combine of dropped tokens", got[dropped], np.zeros_like(got[dropped]))
