"""Comparisons of stored routers and capacities of the published PyTorch port."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy import ndarray

from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.subject import Subject, UnsupportedError
from openmoe_conformance.vector_cases import Arrays, Comparison, Kind, VectorCase
from openmoe_conformance.vector_port import DIALECT, same_decision
from openmoe_conformance.vector_routers import ROUTER_BOUND
from openmoe_spec.records import Decision

Z_LOSS_BOUND = {"relative": 5e-6}


def _grouped(array: ndarray, rank: int) -> ndarray:
    """Return an array with groups in front: all tokens of a call are one, where none are stored."""
    return array if array.ndim == rank else array[None]


def _probabilities(s: Subject, _: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    """Through a kernel of ones on the diagonal: every logit is exact."""
    logits, wanted = (_grouped(arrays[name], 3) for name in ("logits", "probs"))
    got = s.probabilities(logits, np.eye(logits.shape[-1], dtype=np.float32))
    close("probs", got, wanted, evidence, **ROUTER_BOUND)


def _ranks_by_logits(case: VectorCase, arrays: Arrays) -> bool:
    """Return whether K = 1 and the best logit is not the best probability: the port takes it."""
    best = (arrays[name].argmax(axis=-1) for name in ("logits", "probs"))
    return bool(case.config["k"] == 1 and np.not_equal(*best).any())


def _decide(s: Subject, case: VectorCase, arrays: Arrays) -> Decision:
    """Return the decision from stored probabilities, or from numbers in the order of the logits."""
    ranked = _grouped(arrays["probs"], 3)
    if _ranks_by_logits(case, arrays):
        logits = _grouped(arrays["logits"], 3)
        smaller = (logits[..., None, :] < logits[..., None]).sum(axis=-1)
        ranked = (smaller / logits.shape[-1]).astype(np.float32)
    return s.decide(ranked, k=case.config["k"], capacity=case.config["capacity"])


def _slots(decision: Decision, case: VectorCase, values: ndarray) -> ndarray:
    """Return [G, T, E, C]: the value of each kept choice in its slot, else 0."""
    shape = (*values.shape[:2], case.config["num_experts"], case.config["capacity"])
    made = np.zeros(shape, values.dtype)
    g, t, j = np.nonzero(decision.kept)
    made[g, t, decision.expert_index[g, t, j], decision.position[g, t, j]] = values[g, t, j]
    return made


def _router_decision(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    got = _decide(s, case, arrays)
    if "topk_index" in arrays:
        same("topk_index", got.expert_index, arrays["topk_index"])
    else:
        same_decision("decide", got, arrays)
        same("kept choices", int(got.kept.sum()), case.config["kept"])
        same("dropped choices", int((~got.kept).sum()), case.config["dropped"])
    same("dispatch", _slots(got, case, got.kept), _grouped(arrays["dispatch"], 4))


def _router_gates(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    if _ranks_by_logits(case, arrays):
        raise UnsupportedError("no function of the adapter ranks logits and answers probabilities")
    got = _decide(s, case, arrays)
    combined = _slots(got, case, np.where(got.kept, got.gate, 0))
    close("combine", combined, _grouped(arrays["combine"], 4), evidence, **ROUTER_BOUND)
    if "gate" in arrays:
        gate = np.where(got.kept, got.gate, 0)[0]
        close("gate", gate, arrays["gate"], evidence, **ROUTER_BOUND)
    if "zero_weight_but_dispatched" in case.config:
        zeros = int((got.kept & (got.gate == 0)).sum())
        same("kept choices of gate 0", zeros, case.config["zero_weight_but_dispatched"])


def _balance_loss(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    index = _grouped(arrays["topk_index" if "topk_index" in arrays else "expert_index"], 3)
    got = s.scalar("balance_loss", _grouped(arrays["probs"], 3), index)
    close("aux_loss", got, case.config["aux_loss"], evidence, **ROUTER_BOUND)


def _router_z_loss(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    got = s.scalar("router_z_loss", _grouped(arrays["logits"], 3))
    close("z_loss", got, case.config["z_loss"], evidence, **Z_LOSS_BOUND)


def _capacity_of(s: Subject, case: VectorCase, least: int) -> int:
    config = case.config
    return s.integer(
        "expert_capacity",
        config["tokens"],
        num_experts=config["num_experts"],
        capacity_factor=config["capacity_factor"],
        min_expert_capacity=least,
        k=config["k"],
        dialect=DIALECT,
    )


def _capacity(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    """A minimum of 0, which no configuration has (CFG-02), is one of 1 where it is not reached."""
    got = _capacity_of(s, case, max(1, case.config["min_capacity"]))
    same("capacity", got, case.config["capacity"])


def _capacity_rejected(s: Subject, case: VectorCase, _: Arrays, __: Evidence) -> None:
    """Where the original asserts that the capacity is positive."""
    if not s.rejects_invalid_input:
        raise UnsupportedError("does not declare rejects_invalid_input")
    least = case.config["min_capacity"]
    must_reject(case.config["error"], lambda: _capacity_of(s, case, least))


KINDS: Mapping[str, Kind] = {
    "port_router": Kind(
        {
            "probabilities": Comparison(_probabilities),
            "decision": Comparison(_router_decision, ("dispatch",)),
            "gates": Comparison(_router_gates, ("combine",)),
            "capacity": Comparison(_capacity),
            "balance_loss": Comparison(_balance_loss),
            "router_z_loss": Comparison(_router_z_loss),
        },
        ("logits", "probs"),
        ("num_experts", "k", "capacity"),
    ),
    "port_capacity": Kind(
        {"capacity": Comparison(_capacity), "rejected": Comparison(_capacity_rejected)},
        (),
        ("tokens", "num_experts", "k", "capacity_factor", "min_capacity"),
    ),
}
"""Kinds of the port's routers by name."""
