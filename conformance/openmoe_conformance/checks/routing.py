"""Checks of SPEC.md "Routing": probabilities, selection, queues, padding, priorities."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from hypothesis import strategies as st

from openmoe_conformance import strategies
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.routing_cases import (
    compare_records,
    decision_options,
    random_tokens,
    reference_decision,
    router_arguments,
)
from openmoe_conformance.compare import close, logit_band, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.queues import compare_queue, queue
from openmoe_conformance.subject import Subject
from openmoe_reference import routing

# ---- probabilities -------------------------------------------------------------------------


@check("ROUTE-02", "probabilities", cases=random_tokens)
def logits_lie_in_the_band(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Ratios of probabilities are those of exact logits within the band of float32."""
    got = subject.probabilities(case["inputs"], case["kernel"]).astype(np.float64)
    logits, half = logit_band(case["inputs"], case["kernel"], subject.arithmetic)
    if (got <= 0).any():
        raise Disagreement("probabilities: not above 0 though all logits are near 0")
    # log p_e - log p_first removes the normaliser: what is left are logits.
    first = logits.argmax(axis=-1)[..., None]
    log = np.log(got)
    ratio = log - np.take_along_axis(log, first, axis=-1)
    wanted = logits - np.take_along_axis(logits, first, axis=-1)
    limit = half + np.take_along_axis(half, first, axis=-1)
    excess = np.abs(ratio - wanted) / limit
    evidence.measured(float(excess.max()))
    evidence.examples += excess[..., 0].size
    if (excess > 1).any():
        place = np.unravel_index(excess.argmax(), excess.shape)
        raise Disagreement(
            f"probabilities at {[int(i) for i in place]}: log ratio {ratio[place]:.9g}, expected "
            f"{wanted[place]:.9g}, {excess[place]:.3g} x the band"
        )


@check("ROUTE-02", "probabilities", cases=strategies.hidden_states())
def no_bias_is_added(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A zero row has the uniform distribution, whatever the weights."""
    zeros = np.zeros_like(case["inputs"])
    experts = case["kernel"].shape[1]
    got = subject.probabilities(zeros, case["kernel"])
    close(
        "probabilities of zero rows", got, np.full(got.shape, 1 / experts), evidence, relative=1e-6
    )


@check("ROUTE-03", "probabilities", cases=strategies.hidden_states())
def softmax_over_all_experts(subject: Subject, case: Case, evidence: Evidence) -> None:
    """With exact logits the probabilities are their softmax over all E experts."""
    logits = case["inputs"].astype(np.float64) @ case["kernel"].astype(np.float64)
    got = subject.probabilities(case["inputs"], case["kernel"])
    rounding = max(2e-6, 8 * subject.arithmetic.probabilities, 8 * subject.arithmetic.logits)
    close("probabilities", got, routing.softmax(logits), evidence, relative=rounding)


@check("ROUTE-16", "probabilities(noise)", cases=strategies.hidden_states())
def jitter_multiplies_the_router_input(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Noise multiplies each input element before the product; ones change nothing."""
    shape = case["inputs"].shape
    noise = 1 + np.arange(-8, 8, dtype=np.float32)[np.arange(np.prod(shape)) % 16] / 64
    noise = noise.reshape(shape)
    exact = case["inputs"].astype(np.float64) * noise
    wanted = routing.softmax(exact @ case["kernel"].astype(np.float64))
    got = subject.probabilities(case["inputs"], case["kernel"], noise=noise)
    close("probabilities with noise", got, wanted, evidence, relative=2e-6)


# ---- selection -----------------------------------------------------------------------------


@check("ROUTE-04", "decide", cases=strategies.probabilities())
def largest_probabilities_ties_to_lower_index(subject: Subject, case: Case, _: Evidence) -> None:
    """The K largest float32 probabilities are chosen; equals by lower expert index."""
    got = subject.decide(case["probabilities"], **decision_options(case))
    wanted = routing.decide(case["probabilities"], **decision_options(case))
    # Sorted: which experts, not in which order (that is ROUTE-06).
    same("expert_index (sorted)", np.sort(got.expert_index), np.sort(wanted.expert_index))


@check("ROUTE-04", "route", cases=strategies.hidden_states())
def exact_ties_from_hidden_states(subject: Subject, case: Case, _: Evidence) -> None:
    """On the dyadic grid logits are exact, and so are the ties the router must break."""
    got = subject.route(**router_arguments(case))
    wanted = reference_decision(case)
    same("expert_index (sorted)", np.sort(got.expert_index), np.sort(wanted.expert_index))


@check("ROUTE-04", "decide", cases=strategies.probabilities())
def probabilities_are_not_perturbed(subject: Subject, case: Case, _: Evidence) -> None:
    """One last bit decides: the next float32 above a tie wins, whatever its index."""
    probabilities = case["probabilities"].copy()
    last = probabilities.shape[-1] - 1
    largest = probabilities.max(axis=-1)
    probabilities[..., last] = np.nextafter(largest, np.float32(2), dtype=np.float32)
    got = subject.decide(probabilities, k=1, capacity=case["capacity"])
    same("expert_index", got.expert_index[..., 0], np.full(largest.shape, last))


def _saturated(_: Profile) -> Iterator[Case]:
    for logits in (
        (110, 0, 1, -1, 2),
        (0, 2, 300, 1, 0),
        (-300, 0, -200, 2, -250),
        (128, 256, 0, 384, 640),
    ):
        yield {"logits": np.array([[logits]], np.float32), "k": 3, "capacity": 4}


@check("ROUTE-05", "decide", cases=_saturated)
def underflowed_probabilities_tie(subject: Subject, case: Case, _: Evidence) -> None:
    """Probabilities that underflowed to 0 are equal: index order decides, not the logits."""
    probabilities = routing.softmax(case["logits"])
    options = {"k": case["k"], "capacity": case["capacity"]}
    got = subject.decide(probabilities, **options)
    same("expert_index", got.expert_index, routing.decide(probabilities, **options).expert_index)


@check("ROUTE-05", "route", cases=_saturated)
def logits_do_not_rank_underflowed_experts(subject: Subject, case: Case, _: Evidence) -> None:
    """The same from hidden states: the choice is made on probabilities."""
    experts = case["logits"].shape[-1]
    options = {"k": case["k"], "capacity": case["capacity"]}
    got = subject.route(case["logits"], np.eye(experts, dtype=np.float32), **options)
    wanted = routing.decide(routing.softmax(case["logits"]), **options)
    same("expert_index", got.expert_index, wanted.expert_index)


@check("ROUTE-06", "decide", cases=strategies.distinct_probabilities())
def choices_stand_best_first(subject: Subject, case: Case, _: Evidence) -> None:
    """Choice 0 has the largest probability, choice 1 the next, and so on."""
    got = subject.decide(case["probabilities"], **decision_options(case))
    wanted = routing.decide(case["probabilities"], **decision_options(case))
    same("expert_index", got.expert_index, wanted.expert_index)


# ---- queues --------------------------------------------------------------------------------


@check("ROUTE-07", "decide", cases=strategies.probabilities())
def first_choices_queue_before_second(subject: Subject, case: Case, _: Evidence) -> None:
    """With room for all, positions follow the order: all first choices, then all second."""
    room = case["probabilities"].shape[1] * case["k"]
    got = subject.decide(case["probabilities"], k=case["k"], capacity=room)
    same("position", got.position, queue(got.expert_index))


@check("ROUTE-08", "decide", cases=strategies.probabilities())
def positions_count_dropped_choices_too(subject: Subject, case: Case, _: Evidence) -> None:
    """With one slot an expert, the slot goes to the head of the queue and the count runs on."""
    got = subject.decide(case["probabilities"], k=case["k"], capacity=1)
    position = queue(got.expert_index)
    same("kept", got.kept, position == 0)
    shown = got.position != -1
    same("position", got.position[shown], position[shown])


@check("ROUTE-09", "decide", cases=strategies.probabilities())
def kept_exactly_below_the_capacity(subject: Subject, case: Case, _: Evidence) -> None:
    """A choice is kept iff its position is below C, each choice of a token on its own."""
    got = subject.decide(case["probabilities"], **decision_options(case))
    compare_queue(got, queue(got.expert_index), case["capacity"])


@st.composite
def _edges(draw: st.DrawFn) -> Case:
    """Draw C and C - 1, C, C + 1 tokens that all want one expert."""
    capacity = draw(st.sampled_from((1, 2, 4)))
    tokens = 4
    wanting = draw(st.integers(max(capacity - 1, 0), min(capacity + 1, tokens)))
    level = np.zeros((1, tokens, 4), np.float32)
    level[0, :, 3] = np.where(np.arange(tokens) < wanting, 4, -4)
    return {"probabilities": routing.softmax(level), "k": 1, "capacity": capacity}


@check("ROUTE-09", "decide", cases=_edges())
def the_edge_of_the_capacity(subject: Subject, case: Case, _: Evidence) -> None:
    """Position C - 1 is kept and position C is dropped."""
    got = subject.decide(case["probabilities"], **decision_options(case))
    compare_queue(got, queue(got.expert_index), case["capacity"])


@check("ROUTE-10", "decide", cases=strategies.probabilities())
def gates_are_raw_probabilities(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The gate of a kept choice is the float32 probability itself."""
    got = subject.decide(case["probabilities"], **decision_options(case))
    wanted = np.take_along_axis(case["probabilities"], got.expert_index.clip(0), axis=-1)
    # A coarser declared arithmetic may store gates in its own dtype.
    if subject.arithmetic.probabilities <= 2.0**-24:
        same("gate", got.gate[got.kept], wanted[got.kept])
    else:
        rounding = subject.arithmetic.probabilities
        close("gate", got.gate[got.kept], wanted[got.kept], evidence, relative=rounding)


# ---- padding -------------------------------------------------------------------------------


@check("ROUTE-11", "route", cases=strategies.hidden_states(zero_rows=True))
def padding_rows_take_slots(subject: Subject, case: Case, _: Evidence) -> None:
    """Zero rows choose experts 0 ... K-1 and stand in their queues."""
    compare_records(subject.route(**router_arguments(case)), reference_decision(case))


@check("ROUTE-12", "decide(padding_mask)", cases=strategies.probabilities(masked=True))
def ignored_padding_has_no_expert(subject: Subject, case: Case, _: Evidence) -> None:
    """Ignored tokens keep nothing and push nobody back."""
    got = subject.decide(case["probabilities"], **decision_options(case))
    wanted = routing.decide(case["probabilities"], **decision_options(case))
    real = case["padding_mask"]
    same("kept", got.kept, wanted.kept)
    same("expert_index of real tokens", got.expert_index[real], wanted.expert_index[real])
    same("position of kept choices", got.position[got.kept], wanted.position[got.kept])
    same("expert_index of padding < 0", got.expert_index[~real] < 0, wanted.expert_index[~real] < 0)


def _nearly_zero(_: Profile) -> Iterator[Case]:
    rows = np.zeros((1, 6, 4), np.float32)
    rows[0, 1] = (0.5, -0.5, 0, 0)  # sums to 0, and is not padding
    rows[0, 2] = (2.0**-60, 0, 0, 0)
    rows[0, 3] = (0, 0, 0, -1)  # not above 0, and is not padding
    rows[0, 5] = (-0.0, 0, 0, 0)  # padding
    kernel = np.eye(4, dtype=np.float32)
    yield {"inputs": rows, "kernel": kernel, "k": 2, "capacity": 2}
    yield {"inputs": rows[:, ::-1].copy(), "kernel": kernel, "k": 2, "capacity": 2}


@check("ROUTE-13", "route(ignore_padding)", cases=_nearly_zero)
def padding_is_an_all_zero_row(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Rows that sum to 0, tiny rows and negative rows are real; -0.0 is not."""
    got = subject.route(**router_arguments(case, ignore_padding=True))
    wanted = reference_decision(case, ignore_padding=True)
    same("tokens without expert", (got.expert_index < 0).all(-1), (wanted.expert_index < 0).all(-1))
    same("kept", got.kept, wanted.kept)
    evidence.examples += 1


@check(
    "ROUTE-13",
    "route(ignore_padding)",
    cases=strategies.hidden_states(zero_rows=True),
)
def ignoring_padding_from_hidden_states(subject: Subject, case: Case, _: Evidence) -> None:
    """The router finds its padding itself and routes the rest as if it were not there."""
    got = subject.route(**router_arguments(case, ignore_padding=True))
    wanted = reference_decision(case, ignore_padding=True)
    same("kept", got.kept, wanted.kept)
    same("position of kept choices", got.position[got.kept], wanted.position[got.kept])


# ---- batch-prioritised routing ---------------------------------------------------------------


@check("ROUTE-14", "decide(batch_prioritized)", cases=strategies.probabilities())
def confident_tokens_queue_first(subject: Subject, case: Case, _: Evidence) -> None:
    """Tokens queue by descending first-choice probability, equals in token order."""
    options = decision_options(case) | {"batch_prioritized": True}
    got = subject.decide(case["probabilities"], **options)
    wanted = routing.decide(case["probabilities"], **options)
    same("expert_index", got.expert_index, wanted.expert_index)
    first = np.take_along_axis(case["probabilities"], got.expert_index[..., :1], axis=-1)[..., 0]
    compare_queue(got, queue(got.expert_index, first_gate=first), case["capacity"])


@check(
    "ROUTE-15",
    "decide_scatter(batch_prioritized)",
    "decide_scatter(padding_mask)",
    cases=strategies.probabilities(masked=True),
)
def ignored_padding_sorts_last(subject: Subject, case: Case, _: Evidence) -> None:
    """The scatter router's padding takes slots, but behind every real token."""
    options = decision_options(case) | {"batch_prioritized": True}
    got = subject.decide(case["probabilities"], function="decide_scatter", **options)
    compare_records(got, routing.decide_scatter(case["probabilities"], **options))


@check(
    "ROUTE-14",
    "decide(batch_prioritized)",
    "decide(padding_mask)",
    cases=strategies.probabilities(masked=True),
)
def real_tokens_queue_by_confidence(subject: Subject, case: Case, _: Evidence) -> None:
    """With padding ignored the real tokens queue as if it were not there."""
    options = decision_options(case) | {"batch_prioritized": True}
    got = subject.decide(case["probabilities"], **options)
    wanted = routing.decide(case["probabilities"], **options)
    same("kept", got.kept, wanted.kept)
    same("position of kept choices", got.position[got.kept], wanted.position[got.kept])
