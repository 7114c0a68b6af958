"""A second, deliberately naive implementation of routing and of the mixture-of-experts layer.

It exists to check the reference and shares nothing with it but the records. Every rule is one
plain loop; NumPy only carries arrays in and out. Shapes use the letters of SPEC.md chapter 2.

Sums of products are taken in exact rational arithmetic and rounded once to float64, so that no
order of summation is involved. Only exp, log and the divisions of softmax are rounded on the way.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

from openmoe_spec.records import Decision, ExpertsChoice

# ---------------------------------------------------------------------------- groups and capacity


def padded_shape(batch: int, length: int, *, multiple: int) -> tuple[int, int]:
    """Return [B, L] after padding, so that B * L is a multiple of `multiple`."""
    extra_rows = 0
    while (batch + extra_rows) * length % multiple != 0:
        extra_rows += 1
    extra_columns = 0
    while batch * (length + extra_columns) % multiple != 0:
        extra_columns += 1
    # A row adds `length` tokens and a column adds `batch` tokens. A tie goes to the columns.
    if extra_rows * length < extra_columns * batch:
        return batch + extra_rows, length
    return batch, length + extra_columns


def num_expert_replicas(
    device_count: int, *, num_expert_partitions: int, num_model_partitions: int
) -> int:
    """Return R, how often all experts fit on the devices, and at least 1."""
    replicas = 0
    while (replicas + 1) * num_expert_partitions * num_model_partitions <= device_count:
        replicas += 1
    return max(replicas, 1)


def num_groups(
    num_tokens: int, *, max_group_size: int, num_experts: int, num_expert_replicas: int = 1
) -> int:
    """Return G for a padded batch of `num_tokens` = G * T tokens."""
    multiple = num_experts * num_expert_replicas
    # The division is floored, so a group may hold more than max_group_size tokens.
    groups = max(num_tokens // max_group_size, multiple)
    while groups <= num_tokens:
        if num_tokens % groups == 0 and groups % multiple == 0:
            return groups
        groups += 1
    raise ValueError(f"{num_tokens} tokens do not divide into a multiple of {multiple} groups")


def expert_capacity(
    tokens_per_group: int,
    *,
    num_experts: int,
    capacity_factor: float,
    min_expert_capacity: int = 4,
) -> int:
    """Return C, the slots that each of the E experts has for one group of T tokens."""
    # These two float64 operations are rounded, and their order is part of the rule.
    raw = Fraction(float(capacity_factor) * tokens_per_group / num_experts)
    below = raw.numerator // raw.denominator
    rest = raw - below
    if rest > Fraction(1, 2) or (rest == Fraction(1, 2) and below % 2 == 1):
        rounded = below + 1
    else:
        rounded = below
    return max(rounded, min_expert_capacity)


def to_groups(inputs: np.ndarray, *, padded: tuple[int, int], num_groups: int) -> np.ndarray:
    """Return the groups [G, T, D] of inputs [B, L, D] padded with zeros to [B', L', D]."""
    batch, length, width = inputs.shape
    tokens = padded[0] * padded[1] // num_groups
    grouped = np.zeros((num_groups, tokens, width), inputs.dtype)
    for b in range(batch):
        for i in range(length):
            # The padded columns of earlier rows stand before this token.
            place = b * padded[1] + i
            for d in range(width):
                grouped[place // tokens, place % tokens, d] = inputs[b, i, d]
    return grouped


def from_groups(
    outputs: np.ndarray, *, padded: tuple[int, int], shape: tuple[int, int]
) -> np.ndarray:
    """Return [B, L, D] of outputs [G, T, D]: each token from the place `to_groups` put it at."""
    _, tokens, width = outputs.shape
    batch = np.zeros((*shape, width), outputs.dtype)
    for b in range(shape[0]):
        for i in range(shape[1]):
            place = b * padded[1] + i
            for d in range(width):
                batch[b, i, d] = outputs[place // tokens, place % tokens, d]
    return batch


# ---------------------------------------------------------------------------- probabilities


def router_logits(
    inputs: np.ndarray, kernel: np.ndarray, *, noise: np.ndarray | None = None
) -> np.ndarray:
    """Return float64 logits [G, T, E] of inputs [G, T, D], kernel [D, E] and noise [G, T, D]."""
    groups, tokens, width = inputs.shape
    num_experts = kernel.shape[1]
    x = np.asarray(inputs, np.float32).tolist()
    w = np.asarray(kernel, np.float32).tolist()
    if noise is not None:
        jitter = np.asarray(noise, np.float32).tolist()
        for g in range(groups):
            for t in range(tokens):
                for d in range(width):
                    # float64 holds a product of two float32 exactly: it is rounded only once.
                    x[g][t][d] = float(np.float32(x[g][t][d] * jitter[g][t][d]))
    columns = [[w[d][e] for d in range(width)] for e in range(num_experts)]
    logits = np.zeros((groups, tokens, num_experts))
    for g in range(groups):
        for t in range(tokens):
            for e in range(num_experts):
                logits[g, t, e] = _dot(x[g][t], columns[e])
    return logits


def softmax(logits: np.ndarray) -> np.ndarray:
    """Return float64 probabilities [..., E] of logits [..., E]."""
    rows = []
    for row in np.asarray(logits, np.float64).reshape(-1, logits.shape[-1]).tolist():
        largest = max(row)  # subtracted so that exp cannot overflow
        powers = [math.exp(logit - largest) for logit in row]
        total = math.fsum(powers)
        rows.append([power / total for power in powers])
    return np.array(rows, np.float64).reshape(logits.shape)


def padding_mask(inputs: np.ndarray) -> np.ndarray:
    """Return bool [G, T] of inputs [G, T, D]: True for a real token, False for padding."""
    groups, tokens, _ = inputs.shape
    mask = np.zeros((groups, tokens), bool)
    for g in range(groups):
        for t in range(tokens):
            for value in inputs[g, t]:
                if abs(float(value)) >= 2.0**-126:
                    mask[g, t] = True
    return mask


# ---------------------------------------------------------------------------- decisions


def decide(
    probabilities: np.ndarray,
    *,
    k: int,
    capacity: int,
    padding_mask: np.ndarray | None = None,
    batch_prioritized: bool = False,
) -> Decision:
    """Return the masked router's Decision [G, T, K] for probabilities float32 [G, T, E].

    With `padding_mask` [G, T] (True: real token) a padding token has no expert.
    """
    p = np.asarray(probabilities, np.float32).tolist()
    chosen: list[list[list[int]]] = []
    gates: list[list[list[float]]] = []
    for g in range(len(p)):
        chosen.append([])
        gates.append([])
        for t in range(len(p[g])):
            if padding_mask is not None and not padding_mask[g][t]:
                chosen[g].append([-1] * k)
                gates[g].append([0.0] * k)
            else:
                experts = _largest(p[g][t], k)
                chosen[g].append(experts)
                gates[g].append([p[g][t][e] for e in experts])
    return _queue(chosen, gates, probabilities.shape[2], capacity, batch_prioritized)


def decide_scatter(
    probabilities: np.ndarray,
    *,
    k: int,
    capacity: int,
    padding_mask: np.ndarray | None = None,
    batch_prioritized: bool = False,
) -> Decision:
    """Return the scatter router's Decision [G, T, K] for probabilities float32 [G, T, E].

    With `padding_mask` [G, T] (True: real token) a padding token chooses with probabilities 0.
    """
    p = np.asarray(probabilities, np.float32).tolist()
    chosen: list[list[list[int]]] = []
    gates: list[list[list[float]]] = []
    for g in range(len(p)):
        chosen.append([])
        gates.append([])
        for t in range(len(p[g])):
            row = p[g][t]
            if padding_mask is not None and not padding_mask[g][t]:
                # All tie at 0, so the choice falls on experts 0 ... K-1, and takes their slots.
                row = [0.0] * len(row)
            experts = _largest(row, k)
            chosen[g].append(experts)
            gates[g].append([row[e] for e in experts])
    return _queue(chosen, gates, probabilities.shape[2], capacity, batch_prioritized)


def experts_choose(
    probabilities: np.ndarray, *, capacity: int, padding_mask: np.ndarray | None = None
) -> ExpertsChoice:
    """Return the ExpertsChoice [G, E, C] for probabilities float32 [G, T, E] and a mask [G, T]."""
    groups, tokens, num_experts = probabilities.shape
    if capacity > tokens:
        raise ValueError(f"an expert cannot choose {capacity} of {tokens} tokens")
    p = np.asarray(probabilities, np.float32).tolist()
    token_index = np.zeros((groups, num_experts, capacity), np.int32)
    gate = np.zeros((groups, num_experts, capacity), np.float32)
    for g in range(groups):
        for e in range(num_experts):
            column = []
            for t in range(tokens):
                # Padding is not excluded, only weighed with 0: it may still fill a slot.
                real = padding_mask is None or padding_mask[g][t]
                column.append(p[g][t][e] if real else 0.0)
            for c, t in enumerate(_largest(column, capacity)):
                token_index[g, e, c] = t
                gate[g, e, c] = column[t]
    return ExpertsChoice(token_index=token_index, gate=gate)


def _largest(values: Sequence[float], count: int) -> list[int]:
    """Return the places [count] of the largest values [N], best first, the lower place on a tie."""
    found: list[int] = []
    taken = [False] * len(values)
    for _ in range(count):
        best = -1
        for place in range(len(values)):
            # Strictly greater: a later equal value does not replace an earlier one.
            if not taken[place] and (best == -1 or _size(values[place]) > _size(values[best])):
                best = place
        taken[best] = True
        found.append(best)
    return found


def _size(value: float) -> float:
    """Return a probability, 0 where it is a float32 subnormal."""
    return value if value >= 2.0**-126 else 0.0


def _queue(
    chosen: list[list[list[int]]],
    gates: list[list[list[float]]],
    num_experts: int,
    capacity: int,
    batch_prioritized: bool,
) -> Decision:
    """Return the Decision [G, T, K] of chosen experts and gates [G][T][K]."""
    groups, tokens, k = len(chosen), len(chosen[0]), len(chosen[0][0])
    expert_index = np.full((groups, tokens, k), -1, np.int32)
    gate = np.zeros((groups, tokens, k), np.float32)
    position = np.full((groups, tokens, k), -1, np.int32)
    kept = np.zeros((groups, tokens, k), bool)
    for g in range(groups):
        order = list(range(tokens))
        if batch_prioritized:
            order = _largest([gates[g][t][0] for t in range(tokens)], tokens)
        queues: list[list[int]] = [[] for _ in range(num_experts)]
        # All first choices come before any second choice.
        for choice in range(k):
            for t in order:
                e = chosen[g][t][choice]
                expert_index[g, t, choice] = e
                gate[g, t, choice] = gates[g][t][choice]
                if e == -1:
                    continue
                # The queue goes on growing after the last slot: dropped choices count too.
                position[g, t, choice] = len(queues[e])
                kept[g, t, choice] = len(queues[e]) < capacity
                queues[e].append(t)
    return Decision(
        expert_index=expert_index, gate=gate, position=position, kept=kept, capacity=capacity
    )


# ---------------------------------------------------------------------------- the layer


def dispatch(
    inputs: np.ndarray, decision: Decision | ExpertsChoice, *, num_experts: int
) -> np.ndarray:
    """Return the slots [G, E, C, D] filled from inputs [G, T, D]; unused slots are zeros."""
    groups, tokens, width = inputs.shape
    if isinstance(decision, ExpertsChoice):
        capacity = decision.token_index.shape[2]
    else:
        capacity = decision.capacity
    slots = np.zeros((groups, num_experts, capacity, width), inputs.dtype)
    for g in range(groups):
        for t in range(tokens):
            for e, c, _ in _slots_of(decision, g, t):
                for d in range(width):
                    slots[g, e, c, d] = inputs[g, t, d]
    return slots


def expert(inputs: np.ndarray, wi_0: np.ndarray, wi_1: np.ndarray, wo: np.ndarray) -> np.ndarray:
    """Return float64 [E, S, D] of inputs [E, S, D], wi_0 [E, D, 2F], wi_1 [E, D, F], wo [E, F, D].

    Each expert multiplies three projections: first half of wi_0, silu of its second half, wi_1.
    """
    num_experts, slots, width = inputs.shape
    hidden_width = wi_1.shape[2]
    outputs = np.zeros((num_experts, slots, width))
    for e in range(num_experts):
        first = _columns(wi_0[e])
        second = _columns(wi_1[e])
        last = _columns(wo[e])
        for s in range(slots):
            x = [float(value) for value in inputs[e, s]]
            hidden = []
            for f in range(hidden_width):
                a = _dot(x, first[f])
                b = _dot(x, first[hidden_width + f])
                hidden.append(a * _silu(b) * _dot(x, second[f]))
            for d in range(width):
                outputs[e, s, d] = _dot(hidden, last[d])
    return outputs


def combine(
    expert_outputs: np.ndarray,
    decision: Decision | ExpertsChoice,
    *,
    tokens_per_group: int | None = None,
) -> np.ndarray:
    """Return float64 [G, T, D], the gated sums of expert_outputs [G, E, C, D].

    `tokens_per_group` (T) is needed for an ExpertsChoice, which does not record it.
    """
    groups, width = expert_outputs.shape[0], expert_outputs.shape[3]
    tokens = _tokens(decision, tokens_per_group)
    outputs = np.zeros((groups, tokens, width))
    for g in range(groups):
        for t in range(tokens):
            held = _slots_of(decision, g, t)
            for d in range(width):
                outputs[g, t, d] = _dot(
                    [gate for _, _, gate in held],
                    [float(expert_outputs[g, e, c, d]) for e, c, _ in held],
                )
    return outputs


def _slots_of(decision: Decision | ExpertsChoice, g: int, t: int) -> list[tuple[int, int, float]]:
    """Return (expert, slot, gate) of every slot that token t of group g holds."""
    if isinstance(decision, ExpertsChoice):
        _, num_experts, capacity = decision.token_index.shape
        return [
            (e, c, float(decision.gate[g, e, c]))
            for e in range(num_experts)
            for c in range(capacity)
            if decision.token_index[g, e, c] == t
        ]
    return [
        (
            int(decision.expert_index[g, t, choice]),
            int(decision.position[g, t, choice]),
            float(decision.gate[g, t, choice]),
        )
        for choice in range(decision.kept.shape[2])
        if decision.kept[g, t, choice]
    ]


def _tokens(decision: Decision | ExpertsChoice, tokens_per_group: int | None) -> int:
    """Return T from the record [G, T, K], or as given for a record [G, E, C]."""
    if not isinstance(decision, ExpertsChoice):
        return int(decision.expert_index.shape[1])
    if tokens_per_group is None:
        raise ValueError("an ExpertsChoice does not record T: pass tokens_per_group")
    return tokens_per_group


def _dot(left: Sequence[float], right: Sequence[float]) -> float:
    """Return the exact dot product of left [N] and right [N], rounded once to float64."""
    total = Fraction(0)
    for a, b in zip(left, right, strict=True):
        total += Fraction(a) * Fraction(b)
    return float(total)


def _columns(matrix: np.ndarray) -> list[list[float]]:
    """Return the columns of a matrix [M, N] as N lists of M floats."""
    rows, columns = matrix.shape
    return [[float(matrix[row, column]) for row in range(rows)] for column in range(columns)]


def _silu(x: float) -> float:
    """Return x * sigmoid(x), written so that exp cannot overflow."""
    if x >= 0:
        return x / (1 + math.exp(-x))
    return x * math.exp(x) / (1 + math.exp(x))


# ---------------------------------------------------------------------------- losses and metrics


def balance_loss(
    probabilities: np.ndarray,
    expert_index: np.ndarray,
    *,
    padding_mask: np.ndarray | None = None,
) -> float:
    """Return the balance loss of probabilities [G, T, E], choices [G, T, K] and a mask [G, T]."""
    groups, tokens, num_experts = probabilities.shape
    total = Fraction(0)
    for g in range(groups):
        for e in range(num_experts):
            choosers = 0
            probability = Fraction(0)
            for t in range(tokens):
                # Choices of -1 never equal an expert, so they are not counted.
                if e in expert_index[g, t].tolist():
                    choosers += 1
                if padding_mask is None or padding_mask[g][t]:
                    probability += Fraction(float(probabilities[g, t, e]))
            # Both shares are of all tokens of the group, ignored padding included.
            total += Fraction(choosers, tokens) * (probability / tokens)
    mean = total / (groups * num_experts)
    return float(num_experts * num_experts * mean)


def router_z_loss(logits: np.ndarray, *, padding_mask: np.ndarray | None = None) -> float:
    """Return the router z-loss of logits [G, T, E] and a mask [G, T]."""
    groups, tokens, num_experts = logits.shape
    squares = []
    for g in range(groups):
        for t in range(tokens):
            row = [float(logit) for logit in logits[g, t]]
            if padding_mask is not None and not padding_mask[g][t]:
                # Ignored padding still adds the square of log E and counts in the divisor.
                row = [0.0] * num_experts
            largest = max(row)
            log_sum = largest + math.log(math.fsum(math.exp(logit - largest) for logit in row))
            squares.append(log_sum**2)
    return float(math.fsum(squares) / (groups * tokens))


def metrics(
    decision: Decision | ExpertsChoice,
    *,
    num_experts: int,
    padding_mask: np.ndarray | None = None,
    scatter: bool = False,
    tokens_per_group: int | None = None,
) -> dict[str, float]:
    """Return the three metrics of a Decision [G, T, K] or an ExpertsChoice [G, E, C].

    `padding_mask` [G, T] is given where padding is ignored; `scatter` says that the scatter router
    decided. For an ExpertsChoice T comes from the mask or from `tokens_per_group`.
    """
    groups = decision.gate.shape[0]
    if tokens_per_group is None and padding_mask is not None:
        tokens_per_group = padding_mask.shape[1]
    tokens = _tokens(decision, tokens_per_group)

    dispatched_tokens = 0
    dispatched_choices = 0
    gate_sum = Fraction(0)
    for g in range(groups):
        for t in range(tokens):
            held = _slots_of(decision, g, t)
            if held:
                dispatched_tokens += 1
            for _, _, gate in held:
                dispatched_choices += 1
                gate_sum += Fraction(gate)
    counted_tokens = groups * tokens
    if padding_mask is not None:
        # A defect of the original: its scatter router counts inputs repeated once per choice.
        counted_tokens = _count(padding_mask) * (decision.gate.shape[2] if scatter else 1)

    left_behind = 1 - _quotient(dispatched_tokens, counted_tokens)
    confidence = _quotient(gate_sum, dispatched_choices)
    usage = 1.0  # experts that choose tokens fill every slot
    if not isinstance(decision, ExpertsChoice):
        usage = float(Fraction(dispatched_choices, num_experts * decision.capacity * groups))
    return {
        "fraction_tokens_left_behind": left_behind,
        "router_confidence": confidence,
        "expert_usage": usage,
    }


def _quotient(above: Fraction | int, below: int) -> float:
    """Return above / below as floating-point arithmetic does when `below` is 0."""
    if below == 0:
        return math.nan if above == 0 else math.inf
    return float(Fraction(above) / below)


def _count(mask: np.ndarray) -> int:
    """Return how many entries of a mask [G, T] are true."""
    true = 0
    for row in mask.tolist():
        for entry in row:
            if entry:
                true += 1
    return true
