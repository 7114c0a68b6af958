"""The real-input pass: text that lies on the machine through a Base-sized router and layer.

Token ids come from outside (the kit has no tokeniser). They are embedded with the initialisers of
the models, normalised, cut into groups of 4096 and given to the implementation. Its choices are
judged token by token, its positions and drops recomputed from its own choices and compared exactly,
its outputs compared with the reference run on those choices. Spec: JUDGE-01..JUDGE-05.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.adapter import describe
from openmoe_conformance.checks.moe import LAYER_BOUND
from openmoe_conformance.compare import close, judge_choices, logit_band
from openmoe_conformance.outcome import (
    UNDECIDED_BUDGET,
    Disagreement,
    Evidence,
    Outcome,
    Result,
    Source,
)
from openmoe_conformance.queues import compare_queue, queue
from openmoe_conformance.subject import Subject, UnsupportedError
from openmoe_reference import grouping, moe, routing
from openmoe_spec.config import BASE

GROUP_SIZE = 4096
PASSES = (
    ("eval", BASE.eval_capacity_factor),
    ("train", BASE.train_capacity_factor),
)
ITEMS = {"choices": "ROUTE-19", "queues": "ROUTE-09", "gates": "ROUTE-10", "outputs": "MOE-07"}
"""What each pass decides, and the clause."""
_ANSWER = "answer"  # the call itself, before anything is compared

Progress = Callable[[str, int, int], None]
"""Called with the pass's name, groups done and groups in all."""


def count_items() -> int:
    """Return the number of results a real-input pass owes the ledger."""
    return len(PASSES) * len(ITEMS)


@dataclass
class _Pass:
    """What one pass has gathered so far."""

    name: str
    factor: float
    capacity: int
    evidence: dict[str, Evidence] = field(default_factory=lambda: {i: Evidence() for i in ITEMS})
    outcome: dict[str, tuple[Outcome, str]] = field(default_factory=dict)
    undecided_tokens: list[int] = field(default_factory=list)
    kept: list[ndarray] = field(default_factory=list)
    seconds: float = 0.0

    def settle(self, item: str, action: Callable[[], None]) -> None:
        """Run one comparison; the first thing that goes wrong decides the item."""
        if item in self.outcome:
            return
        try:
            action()
        except UnsupportedError as reason:
            self.outcome[item] = Outcome.SKIPPED, str(reason)
        except Disagreement as finding:
            self.outcome[item] = Outcome.FAIL, str(finding)
        except Exception as error:  # noqa: BLE001 - an adapter may raise anything
            self.outcome[item] = Outcome.ERROR, describe(error)


def base_layer(vocabulary_size: int, seed: int = 0) -> tuple[ndarray, dict[str, ndarray]]:
    """Return an embedding [V, D] and a Base-sized layer's weights, by the models' initialisers.

    Embedding N(0, 1); router N(0, 0.02); experts variance scaling 0.1 over the fan-in.
    """
    generator = np.random.default_rng(seed)
    width, hidden, experts = BASE.embed_dim, BASE.mlp_dim, BASE.num_experts

    def normal(scale: float, *shape: int) -> ndarray:
        return generator.normal(scale=scale, size=shape).astype(np.float32)

    inner, outer = np.sqrt(0.1 / width), np.sqrt(0.1 / hidden)
    weights = {
        "router": normal(0.02, width, experts),
        "wi_0": normal(inner, experts, width, 2 * hidden),
        "wi_1": normal(inner, experts, width, hidden),
        "wo": normal(outer, experts, hidden, width),
    }
    return normal(1.0, vocabulary_size, width), weights


def hidden_states(token_ids: ndarray, embedding: ndarray) -> ndarray:
    """Return embedded tokens divided by their root mean square, float32 [tokens, D]."""
    rows = embedding[token_ids]
    return rows / np.sqrt((rows**2).mean(axis=-1, keepdims=True) + np.float32(1e-6))


def run(
    subject: Subject,
    token_ids: ndarray,
    vocabulary_size: int,
    progress: Progress = lambda *_: None,
) -> tuple[list[Result], list[dict[str, Any]]]:
    """Return the results and the figures of each pass. `token_ids` fill whole groups of 4096."""
    embedding, weights = base_layer(vocabulary_size)
    passes = []
    for name, factor in PASSES:
        capacity = grouping.expert_capacity(
            GROUP_SIZE, num_experts=BASE.num_experts, capacity_factor=factor
        )
        state = _Pass(f"{name}, factor {factor}", factor, capacity)
        started = time.perf_counter()
        groups = len(token_ids) // GROUP_SIZE
        for number, ids in enumerate(token_ids[: groups * GROUP_SIZE].reshape(groups, -1)):
            inputs = hidden_states(ids, embedding)[None]
            group = _Group(subject, inputs, weights, capacity, number * GROUP_SIZE)
            _one_group(group, state)
            progress(state.name, number + 1, groups)
        state.seconds = time.perf_counter() - started
        passes.append((state, groups))
    results = [result for state, _ in passes for result in _results(state)]
    return results, [_figures(state, groups) for state, groups in passes]


@dataclass
class _Group:
    """One group of tokens, and what the implementation answered for it."""

    subject: Subject
    inputs: ndarray
    weights: dict[str, ndarray]
    capacity: int
    first_token: int
    output: ndarray | None = None
    decision: Any = None

    def __post_init__(self) -> None:
        self.sizes: dict[str, Any] = {"k": BASE.num_selected_experts, "capacity": self.capacity}
        self.logits, self.half = logit_band(
            self.inputs, self.weights["router"], self.subject.arithmetic
        )
        probabilities = routing.softmax(self.logits).astype(np.float32)
        self.wanted = routing.decide(probabilities, **self.sizes)

    def ask(self) -> None:
        """Get output and decision; a layer that shows no decision may have a router beside it."""
        if callable(getattr(self.subject.adapter, "moe", None)):
            result = self.subject.moe(self.inputs, self.weights, **self.sizes)
            self.output, self.decision = result.output, result.decision
        if self.decision is None and self.subject.lacks(("route",)) is None:
            self.decision = self.subject.route(self.inputs, self.weights["router"], **self.sizes)

    @property
    def shown(self) -> Any:
        """Return the implementation's decision. Errors: UnsupportedError when it shows none."""
        if self.decision is None:
            raise UnsupportedError("shows no decision: neither route() nor in what moe() returns")
        return self.decision

    def _decided(self, expert_index: ndarray) -> ndarray:
        return judge_choices(expert_index, self.logits, self.half, self.wanted.expert_index)

    def choices(self, state: _Pass) -> None:
        """Judge every token's choices by the near-tie rule; list the undecided."""
        evidence = state.evidence["choices"]
        decided = self._decided(self.shown.expert_index)
        evidence.examples += decided.size
        evidence.judged(decided.size, int((~decided).sum()))
        undecided = self.first_token + np.flatnonzero(~decided[0])
        state.undecided_tokens.extend(undecided.tolist())

    def queues(self, state: _Pass) -> None:
        """Recompute positions and drops from the implementation's own choices."""
        compare_queue(self.shown, queue(self.shown.expert_index), self.capacity)
        state.evidence["queues"].examples += GROUP_SIZE
        state.kept.append(self.shown.kept[0])

    def gates(self, state: _Pass) -> None:
        """Compare the gates of kept choices with the exact softmax."""
        exact = routing.softmax(self.logits)
        chosen = np.take_along_axis(exact, self.shown.expert_index, axis=-1)
        rounding = float(2e-5 + 8 * (self.subject.arithmetic.probabilities + self.half.max()))
        kept, evidence = self.shown.kept, state.evidence["gates"]
        close("gate", self.shown.gate[kept], chosen[kept], evidence, relative=rounding)
        evidence.examples += GROUP_SIZE

    def outputs(self, state: _Pass) -> None:
        """Compare outputs with the reference run on the implementation's choices."""
        if self.output is None:
            raise UnsupportedError("offers no moe()")
        if self.decision is None and not self._decided(self.wanted.expert_index).all():
            return  # a black box is compared on wholly decided groups
        wanted = moe.moe(self.inputs, self.weights, decision=self.decision, **self.sizes)
        evidence = state.evidence["outputs"]
        close("output", self.output, wanted.output, evidence, **LAYER_BOUND)
        evidence.examples += GROUP_SIZE


def _one_group(group: _Group, state: _Pass) -> None:
    state.settle(_ANSWER, group.ask)
    if _ANSWER in state.outcome:
        for item in ITEMS:
            state.outcome.setdefault(item, state.outcome[_ANSWER])
        return
    for item in ITEMS:
        state.settle(item, partial(getattr(group, item), state))


def _results(state: _Pass) -> Iterator[Result]:
    for item, clause in ITEMS.items():
        evidence = state.evidence[item]
        outcome, message = state.outcome.get(item, (Outcome.PASS, ""))
        if outcome is Outcome.PASS and not evidence.examples:
            outcome, message = Outcome.INCONCLUSIVE, "no group had every token decided"
        elif outcome is Outcome.PASS and evidence.tokens:
            share = evidence.undecided / evidence.tokens
            if share > UNDECIDED_BUDGET:
                outcome = Outcome.INCONCLUSIVE
                message = f"{share:.2%} of {evidence.tokens} tokens undecided, budget 1 %"
        yield Result(
            f"real input:{state.name}/{item}",
            clause,
            outcome,
            Source.REAL_INPUT,
            examples=evidence.examples,
            error=evidence.error,
            tokens=evidence.tokens,
            undecided=evidence.undecided,
            seconds=state.seconds / len(ITEMS),
            message=message,
        )


def _figures(state: _Pass, groups: int) -> dict[str, Any]:
    figures: dict[str, Any] = {
        "name": state.name,
        "groups": groups,
        "tokens_per_group": GROUP_SIZE,
        "capacity": state.capacity,
        "tokens": groups * GROUP_SIZE,
        "undecided": len(state.undecided_tokens),
        "undecided_tokens": state.undecided_tokens[:1000],
        "worst_output_error": state.evidence["outputs"].error,
        "seconds": state.seconds,
    }
    if state.kept:
        kept = np.stack(state.kept)  # [groups, T, K]
        tenths = np.array_split(kept, 10, axis=1)
        figures |= {
            "kept_first": float(kept[..., 0].mean()),
            "kept_second": float(kept[..., 1].mean()),
            "dropped_all": float((~kept.any(axis=-1)).mean()),
            "drop_share_by_position": [float(1 - part.mean()) for part in tenths],
            "drop_share_first": [float(1 - part[..., 0].mean()) for part in tenths],
            "drop_share_second": [float(1 - part[..., 1].mean()) for part in tenths],
        }
    return figures
