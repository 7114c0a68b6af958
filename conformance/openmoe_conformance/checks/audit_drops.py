"""Checks of SPEC.md "Routing audits": choices that found no slot, by key and under other capacities."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.audit import SIZES
from openmoe_conformance.checks.audit_spreads import BOUND
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.subject import Subject


@st.composite
def _drops(draw: st.DrawFn) -> Case:
    tokens, k, num_keys = (draw(st.integers(1, most)) for most in (12, 3, 4))
    keys = hnp.arrays(np.int32, tokens, elements=st.integers(-1, num_keys - 1))
    return {
        "dropped": draw(hnp.arrays(bool, (tokens, k))),
        "keys": draw(keys),
        "num_keys": num_keys,
    }


@check("AUDIT-16", "drop_counts", cases=_drops())
def drops_by_key(subject: Subject, case: Case, _: Evidence) -> None:
    """Tokens, and those whose first, second, any and every choice was dropped, each counted once."""
    wanted = np.zeros((case["num_keys"], 5), np.int64)
    for choices, key in zip(case["dropped"].tolist(), case["keys"].tolist(), strict=True):
        if key == -1:
            continue
        wanted[key, 0] += 1
        wanted[key, 1] += choices[0]
        wanted[key, 2] += len(choices) > 1 and choices[1]
        wanted[key, 3] += True in choices
        wanted[key, 4] += False not in choices
    answer = subject.call("drop_counts", case["dropped"], case["keys"], num_keys=case["num_keys"])
    same("drop_counts", answers.whole("drop_counts", answer, wanted.shape), wanted)


@st.composite
def _gates(draw: st.DrawFn) -> Case:
    shape = draw(st.integers(1, 12)), draw(st.integers(1, 3))
    elements = st.floats(0, 1, width=32, allow_subnormal=False)
    gate = draw(hnp.arrays(np.float32, shape, elements=elements).filter(lambda one: one.any()))
    return {"gate": gate, "dropped": draw(hnp.arrays(bool, shape))}


@check("AUDIT-17", "lost_gate_share", cases=_gates())
def gates_of_dropped_choices(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The gates of dropped choices are summed, and divided by the sum of all."""
    lost = total = Fraction(0)
    for gates, drops in zip(case["gate"].tolist(), case["dropped"].tolist(), strict=True):
        for gate, dropped in zip(gates, drops, strict=True):
            total += Fraction(gate)
            lost += Fraction(gate) if dropped else 0
    answer = subject.call("lost_gate_share", case["gate"], case["dropped"])
    got = answers.numbers("lost_gate_share", answer, ())
    close("lost_gate_share", got, float(lost / total), evidence, **BOUND)


@st.composite
def _recorded(draw: st.DrawFn) -> Case:
    """Draw choices of groups, some of them none, that fall on few experts, and gates with ties."""
    experts, k = draw(st.sampled_from(SIZES))
    shape = draw(st.integers(1, 3)), draw(st.sampled_from([1, 3, 6, 8, 10, 12])), k
    draws = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    # A few experts, the last one among them, so that each is asked for often.
    few = np.append(draws.permutation(experts - 1)[: min(k, experts - 1)], experts - 1)
    index = draws.permuted(np.broadcast_to(few, (*shape[:2], len(few))), axis=2)[..., :k]
    none = draws.random(shape) < draw(st.sampled_from([0.0, 0.2, 0.4]))
    return {
        "expert_index": np.where(none, -1, index).astype(np.int32),
        "gate": draws.choice(np.array([0.25, 0.5, 0.5 + 2**-24], np.float32), shape),
        "num_experts": experts,
        "capacity": draw(st.sampled_from([1, 1, 2, 3, 4])),
    }


def _replayed(case: Case, priority: str) -> ndarray:
    """Return what finds `capacity` choices of its expert before it: one walk a group."""
    groups, tokens, ranks = case["expert_index"].shape
    dropped = np.zeros((groups, tokens, ranks), bool)
    for group in range(groups):
        first = case["gate"][group, :, 0].tolist()
        line = sorted(range(tokens), key=lambda t: -first[t] if priority == "gates" else t)
        walk = [(token, rank) for rank in range(ranks) for token in line]
        if priority == "tokens":
            walk = [(token, rank) for token in line for rank in range(ranks)]
        before = [0] * case["num_experts"]
        for token, rank in walk:
            expert = int(case["expert_index"][group, token, rank])
            if expert != -1:
                dropped[group, token, rank] = before[expert] >= case["capacity"]
                before[expert] += 1
    return dropped


def _replay(subject: Subject, case: Case, priority: str, **option: ndarray) -> None:
    sizes = {name: case[name] for name in ("num_experts", "capacity")}
    answer = subject.call(
        "replay_choices", case["expert_index"], **sizes, priority=priority, **option
    )
    name = f"replay_choices by {priority}"
    same(name, answers.array(name, answer), _replayed(case, priority))


@check("AUDIT-18", "replay_choices", cases=_recorded())
def replay_by_choices(subject: Subject, case: Case, _: Evidence) -> None:
    """All first choices of a group stand before all second ones, in token order."""
    _replay(subject, case, "choices")


@check("AUDIT-18", "replay_choices", cases=_recorded())
def replay_by_tokens(subject: Subject, case: Case, _: Evidence) -> None:
    """A token's choices stand before the next token's."""
    _replay(subject, case, "tokens")


@check("AUDIT-18", "replay_choices(gate)", cases=_recorded())
def replay_by_gates(subject: Subject, case: Case, _: Evidence) -> None:
    """Tokens with a larger first gate come first, equals in token order."""
    _replay(subject, case, "gates", gate=case["gate"])
