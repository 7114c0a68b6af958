"""Checks of SPEC.md "Routing": probabilities, selection, queues, padding, the other routers."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance import strategies
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import close, judge_choices, logit_band, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import routing
from openmoe_spec.records import Decision

# ---- probabilities -------------------------------------------------------------------------


def _random_tokens(profile: Profile) -> Iterator[Case]:
    """Random tokens, 512 wide, representable in bfloat16, in groups of 512, E = 32."""
    generator = np.random.default_rng(20240202)
    for _ in range(profile.random_tokens // 2048):
        inputs = generator.normal(size=(4, 512, 512)).astype(np.float32)
        inputs = _bfloat16(inputs)
        kernel = _bfloat16(generator.normal(scale=0.02, size=(512, 32)).astype(np.float32))
        yield {"inputs": inputs, "kernel": kernel, "k": 2, "capacity": 20}


def _bfloat16(values: ndarray) -> ndarray:
    """Cut float32 values to the 8 significant bits of bfloat16, so that products are exact."""
    return (values.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)


@check("ROUTE-02", "probabilities", cases=_random_tokens)
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


def _options(case: Case) -> dict[str, Any]:
    names = ("k", "capacity", "padding_mask", "batch_prioritized")
    return {name: case[name] for name in names if name in case}


@check("ROUTE-04", "decide", cases=strategies.probabilities())
def largest_probabilities_ties_to_lower_index(subject: Subject, case: Case, _: Evidence) -> None:
    """The K largest float32 probabilities are chosen; equals by lower expert index."""
    got = subject.decide(case["probabilities"], **_options(case))
    wanted = routing.decide(case["probabilities"], **_options(case))
    # Sorted: which experts, not in which order (that is ROUTE-06).
    same("expert_index (sorted)", np.sort(got.expert_index), np.sort(wanted.expert_index))


@check("ROUTE-04", "route", cases=strategies.hidden_states())
def exact_ties_from_hidden_states(subject: Subject, case: Case, _: Evidence) -> None:
    """On the dyadic grid logits are exact, and so are the ties the router must break."""
    got = subject.route(**_hidden(case))
    wanted = _routed(case)
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
    got = subject.decide(case["probabilities"], **_options(case))
    wanted = routing.decide(case["probabilities"], **_options(case))
    same("expert_index", got.expert_index, wanted.expert_index)


# ---- queues --------------------------------------------------------------------------------


def queue(expert_index: ndarray, *, first_gate: ndarray | None = None) -> ndarray:
    """Return the positions that the choices must have: the rule of ROUTE-07 and ROUTE-08 in loops.

    With `first_gate` [G, T] tokens queue by it, descending and stable (ROUTE-14).
    """
    groups, tokens, k = expert_index.shape
    position = np.full(expert_index.shape, -1, np.int64)
    for g in range(groups):
        gate = np.zeros(tokens) if first_gate is None else first_gate[g]
        order = np.argsort(-gate, kind="stable").tolist()
        waiting: dict[int, int] = {}
        for j in range(k):
            for t in order:
                e = int(expert_index[g, t, j])
                if e >= 0:
                    position[g, t, j] = waiting.get(e, 0)
                    waiting[e] = position[g, t, j] + 1
    return position


def compare_queue(got: Decision, position: ndarray, capacity: int) -> None:
    """Require the kept choices and their positions to be those of `position`.

    A dropped choice may show its running count or -1 (ROUTE-01).
    """
    kept = (position >= 0) & (position < capacity)
    same("kept", got.kept, kept)
    shown = kept | (got.position != -1)
    same("position", np.where(shown, got.position, -1), np.where(shown, position, -1))


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
    got = subject.decide(case["probabilities"], **_options(case))
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
    got = subject.decide(case["probabilities"], **_options(case))
    compare_queue(got, queue(got.expert_index), case["capacity"])


@check("ROUTE-10", "decide", cases=strategies.probabilities())
def gates_are_raw_probabilities(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The gate of a kept choice is the float32 probability itself."""
    got = subject.decide(case["probabilities"], **_options(case))
    wanted = np.take_along_axis(case["probabilities"], got.expert_index.clip(0), axis=-1)
    # A coarser declared arithmetic may store gates in its own dtype.
    if subject.arithmetic.probabilities <= 2.0**-24:
        same("gate", got.gate[got.kept], wanted[got.kept])
    else:
        rounding = subject.arithmetic.probabilities
        close("gate", got.gate[got.kept], wanted[got.kept], evidence, relative=rounding)


# ---- padding -------------------------------------------------------------------------------


def _hidden(case: Case, **more: Any) -> dict[str, Any]:
    names = ("inputs", "kernel", "k", "capacity")
    return {name: case[name] for name in names} | more


def _routed(case: Case, *, ignore_padding: bool = False, **options: Any) -> Decision:
    mask = routing.padding_mask(case["inputs"]) if ignore_padding else None
    return routing.decide(
        routing.probabilities(case["inputs"], case["kernel"]),
        k=case["k"],
        capacity=case["capacity"],
        padding_mask=mask,
        **options,
    )


def _compare_records(got: Decision, wanted: Decision) -> None:
    same("expert_index", got.expert_index, wanted.expert_index)
    compare_queue(got, wanted.position.astype(np.int64), wanted.capacity)


@check("ROUTE-11", "route", cases=strategies.hidden_states(zero_rows=True))
def padding_rows_take_slots(subject: Subject, case: Case, _: Evidence) -> None:
    """Zero rows choose experts 0 ... K-1 and stand in their queues."""
    _compare_records(subject.route(**_hidden(case)), _routed(case))


@check("ROUTE-12", "decide(padding_mask)", cases=strategies.probabilities(masked=True))
def ignored_padding_has_no_expert(subject: Subject, case: Case, _: Evidence) -> None:
    """Ignored tokens keep nothing and push nobody back."""
    got = subject.decide(case["probabilities"], **_options(case))
    wanted = routing.decide(case["probabilities"], **_options(case))
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
    got = subject.route(**_hidden(case, ignore_padding=True))
    wanted = _routed(case, ignore_padding=True)
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
    got = subject.route(**_hidden(case, ignore_padding=True))
    wanted = _routed(case, ignore_padding=True)
    same("kept", got.kept, wanted.kept)
    same("position of kept choices", got.position[got.kept], wanted.position[got.kept])


# ---- batch-prioritised routing ---------------------------------------------------------------


@check("ROUTE-14", "decide(batch_prioritized)", cases=strategies.probabilities())
def confident_tokens_queue_first(subject: Subject, case: Case, _: Evidence) -> None:
    """Tokens queue by descending first-choice probability, equals in token order."""
    options = _options(case) | {"batch_prioritized": True}
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
    options = _options(case) | {"batch_prioritized": True}
    got = subject.decide(case["probabilities"], function="decide_scatter", **options)
    _compare_records(got, routing.decide_scatter(case["probabilities"], **options))


@check(
    "ROUTE-14",
    "decide(batch_prioritized)",
    "decide(padding_mask)",
    cases=strategies.probabilities(masked=True),
)
def real_tokens_queue_by_confidence(subject: Subject, case: Case, _: Evidence) -> None:
    """With padding ignored the real tokens queue as if it were not there."""
    options = _options(case) | {"batch_prioritized": True}
    got = subject.decide(case["probabilities"], **options)
    wanted = routing.decide(case["probabilities"], **options)
    same("kept", got.kept, wanted.kept)
    same("position of kept choices", got.position[got.kept], wanted.position[got.kept])


# ---- invariance, resolution, rejection ---------------------------------------------------------


def _many_groups(_: Profile) -> Iterator[Case]:
    generator = np.random.default_rng(7)
    for groups, tokens in ((4, 16), (6, 64)):
        inputs = generator.normal(size=(groups, tokens, 64)).astype(np.float32)
        kernel = generator.normal(scale=0.05, size=(64, 8)).astype(np.float32)
        yield {"inputs": inputs, "kernel": kernel, "k": 2, "capacity": max(4, tokens // 6)}


@check("ROUTE-17", "route", cases=_many_groups)
def groups_do_not_see_each_other(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Routing a batch whole, one group at a time and in two parts gives one record."""
    inputs = case["inputs"]
    whole = subject.route(**_hidden(case))
    cuts = (list(range(1, len(inputs))), [len(inputs) // 2 + 1])
    for cut in cuts:
        parts = [
            subject.route(**_hidden(case | {"inputs": np.ascontiguousarray(part)}))
            for part in np.split(inputs, cut)
        ]
        for name in ("expert_index", "position", "kept"):
            joined = np.concatenate([getattr(part, name) for part in parts])
            same(f"{name} of a batch split at {cut}", joined, getattr(whole, name))
        evidence.examples += 1


@check("ROUTE-17", "decide", cases=strategies.probabilities())
def groups_can_be_permuted(subject: Subject, case: Case, _: Evidence) -> None:
    """Reversing the groups reverses the record and changes nothing else."""
    whole = subject.decide(case["probabilities"], **_options(case))
    turned = case | {"probabilities": np.ascontiguousarray(case["probabilities"][::-1])}
    back = subject.decide(turned["probabilities"], **_options(turned))
    for name in ("expert_index", "position", "kept"):
        same(f"{name} of reversed groups", getattr(back, name)[::-1], getattr(whole, name))


@check("ROUTE-19", "route", cases=_random_tokens)
def choices_from_random_tokens(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Decided choices equal the reference's, others are admissible; queues are exact."""
    got = subject.route(**_hidden(case))
    logits, half = logit_band(case["inputs"], case["kernel"], subject.arithmetic)
    wanted = routing.decide(
        routing.softmax(logits).astype(np.float32), k=case["k"], capacity=case["capacity"]
    )
    decided = judge_choices(got.expert_index, logits, half, wanted.expert_index)
    evidence.judged(decided.size, int((~decided).sum()))
    evidence.examples += decided.size
    # Given the implementation's own choices, its positions and drops are integers.
    compare_queue(got, queue(got.expert_index), case["capacity"])


def _illegal_decisions(_: Profile) -> Iterator[Case]:
    uniform = np.full((1, 3, 4), 0.25, np.float32)
    good: Case = {"probabilities": uniform, "k": 2, "capacity": 2}
    not_a_number = uniform.copy()
    not_a_number[0, 1, 2] = np.nan
    for name, value in (
        ("k", 5),
        ("k", 0),
        ("k", 2.0),
        ("capacity", 0),
        ("capacity", -1),
        ("capacity", 1.5),
        ("probabilities", not_a_number),
        ("probabilities", np.full((1, 3, 4), np.inf, np.float32)),
        ("probabilities", np.full((1, 3, 4), -0.25, np.float32)),
        ("probabilities", np.full((3, 4), 0.25, np.float32)),
        ("probabilities", np.full((1, 3, 4), 0.25, np.float64)),
    ):
        yield good | {name: value, "wrong": name}


@check("ROUTE-20", "rejects_invalid_input", "decide", cases=_illegal_decisions)
def illegal_decisions_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """K outside 1..E, capacity below 1, fractions, non-finite, negative, wrong shape or dtype."""
    must_reject(
        f"decide with a wrong {case['wrong']}",
        lambda: subject.call("decide", case["probabilities"], **_options(case)),
    )


def _illegal_inputs(_: Profile) -> Iterator[Case]:
    inputs, kernel = np.ones((1, 3, 4), np.float32), np.ones((4, 2), np.float32)
    yield {"inputs": inputs * np.nan, "kernel": kernel, "wrong": "inputs"}
    yield {"inputs": inputs * np.inf, "kernel": kernel, "wrong": "inputs"}
    yield {"inputs": inputs, "kernel": kernel * np.inf, "wrong": "kernel"}
    yield {"inputs": inputs, "kernel": np.ones((5, 2), np.float32), "wrong": "kernel"}
    yield {"inputs": inputs[0], "kernel": kernel, "wrong": "inputs"}


@check("ROUTE-20", "rejects_invalid_input", "probabilities", cases=_illegal_inputs)
def illegal_router_inputs_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Values that are not finite and shapes that do not match raise."""
    must_reject(
        f"probabilities with a wrong {case['wrong']}",
        lambda: subject.call("probabilities", case["inputs"], case["kernel"]),
    )


# ---- the other routers -------------------------------------------------------------------------


@check("ROUTE-21", "decide_scatter", cases=strategies.probabilities())
def scatter_decides_as_masked(subject: Subject, case: Case, _: Evidence) -> None:
    """Without ignored padding the scatter router's record is the masked router's."""
    got = subject.decide(case["probabilities"], function="decide_scatter", **_options(case))
    _compare_records(got, routing.decide_scatter(case["probabilities"], **_options(case)))


@check("ROUTE-22", "decide_scatter(padding_mask)", cases=strategies.probabilities(masked=True))
def scatter_padding_still_takes_slots(subject: Subject, case: Case, _: Evidence) -> None:
    """Ignored padding chooses experts 0 ... K-1 with gate 0 and stands in their queues."""
    got = subject.decide(case["probabilities"], function="decide_scatter", **_options(case))
    wanted = routing.decide_scatter(case["probabilities"], **_options(case))
    _compare_records(got, wanted)
    same("gate of kept choices", got.gate[got.kept], wanted.gate[wanted.kept])


@st.composite
def _experts_cases(draw: st.DrawFn, *, masked: bool = False) -> Case:
    case = draw(strategies.probabilities(masked=masked))
    tokens = case["probabilities"].shape[1]
    del case["k"]
    return case | {"capacity": min(case["capacity"], tokens)}


@check("ROUTE-23", "experts_choose", cases=_experts_cases())
def experts_take_their_best_tokens(subject: Subject, case: Case, _: Evidence) -> None:
    """Slot c of an expert is its c-th best token; equals by lower token index."""
    got = subject.experts_choose(**case)
    wanted = routing.experts_choose(**case)
    same("token_index", got.token_index, wanted.token_index)
    same("gate", got.gate, wanted.gate)


@check("ROUTE-24", "experts_choose(padding_mask)", cases=_experts_cases(masked=True))
def experts_see_masked_probabilities(subject: Subject, case: Case, _: Evidence) -> None:
    """Ignored padding has probability 0 before the experts choose; it may still fill slots."""
    got = subject.experts_choose(**case)
    wanted = routing.experts_choose(**case)
    same("token_index", got.token_index, wanted.token_index)
    same("gate", got.gate, wanted.gate)


@check(
    "ROUTE-25",
    "rejects_invalid_input",
    "experts_choose",
    cases=lambda _: iter([{"capacity": capacity} for capacity in (4, 9, 0)]),
)
def more_slots_than_tokens_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Three tokens cannot fill four slots."""
    probabilities = np.full((1, 3, 2), 0.5, np.float32)
    must_reject(
        f"experts_choose with capacity {case['capacity']}, T = 3",
        lambda: subject.call("experts_choose", probabilities, capacity=case["capacity"]),
    )
