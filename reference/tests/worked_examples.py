"""Worked examples: small cases for every clause of arithmetic, answered by the naive form.

`python reference/tests/worked_examples.py` writes the vector set `worked_examples` of the kit. The
answers come from `naive` alone, which shares no code with the reference, and from a copy of the
published configurations made by hand. `test_worked_examples.py` compares the stored set with a new
one: integers exactly, floating point within a bound, since exp and log may differ by an ulp.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import naive
import numpy as np
from numpy import ndarray

from openmoe_spec.records import Decision

FOLDER = Path(__file__).parents[2] / "conformance/openmoe_conformance/vectors/worked_examples"
SOFTMAX_BOUND = {"relative": 2e-6, "of_largest": 1e-7}
LAYER_BOUND = {"relative": 1e-5, "absolute": 1e-5}


@dataclass(frozen=True)
class Example:
    """One call: its clause, arguments and answer (None: the call must be rejected)."""

    id: str
    clause: str
    exercises: str
    function: str
    arguments: dict[str, Any]
    answer: Any = None
    bounds: dict[str, float] = field(default_factory=dict)


def grid(seed: int, *shape: int) -> ndarray:
    """Return multiples of 1/8 in [-1, 1]: products and sums of few of them are exact."""
    return np.random.default_rng(seed).integers(-8, 9, shape).astype(np.float32) / 8


def uneven(seed: int, groups: int, tokens: int, experts: int) -> ndarray:
    """Return float32 probabilities of logits in whole numbers, so with many exact ties."""
    logits = np.random.default_rng(seed).integers(-2, 3, (groups, tokens, experts))
    return naive.softmax(logits.astype(np.float64)).astype(np.float32)


FIELDS = ("expert_index", "gate", "position", "kept")


def record(decision: Decision, fields: tuple[str, ...] = FIELDS) -> dict[str, ndarray]:
    """Return a decision's arrays by name."""
    return {name: getattr(decision, name) for name in fields}


def shown(decision: Decision, clause: str) -> dict[str, ndarray]:
    """Return the fields that a clause speaks of: another clause's bug is not its failure."""
    chosen = clause in ("ROUTE-04", "ROUTE-05", "ROUTE-06", "ROUTE-13", "ROUTE-18")
    return record(decision, ("expert_index",) if chosen else FIELDS)


# ---- configuration and groups --------------------------------------------------------------

# Copied by hand from the configuration files of the training code, not from this project.
_SHARED = {
    "num_selected_experts": 2,
    "vocabulary_size": 256384,
    "train_capacity_factor": 1.25,
    "eval_capacity_factor": 2.0,
    "min_expert_capacity": 4,
    "auxiliary_loss_factor": 0.01,
    "jitter_noise": 0.0,
    "batch_prioritized_routing": False,
    "ignore_padding_tokens": False,
}
_NAMES = (
    *("num_layers", "num_moe_layers", "embed_dim", "num_heads", "head_dim", "mlp_dim"),
    *("num_experts", "max_group_size", "router_z_loss_factor"),
)
_PUBLISHED = {
    "base": (12, 3, 768, 12, 64, 2048, 16, 4096, 1e-4),
    "8b": (24, 4, 2048, 24, 128, 8192, 32, 4096, 1e-4),
    "34b": (32, 8, 3072, 24, 128, 12288, 32, 8192, 1e-3),
}


def configurations() -> list[Example]:
    """Return the published values, and configurations that must be rejected."""
    fields = {n: {**_SHARED, **dict(zip(_NAMES, v, strict=True))} for n, v in _PUBLISHED.items()}
    found = [
        Example(f"configuration_{name}", "CFG-01", name, "configuration", {"name": name}, value)
        for name, value in fields.items()
    ]
    for name, value in (
        ("num_selected_experts", 17),
        ("num_experts", 0),
        ("num_moe_layers", 5),
        ("max_group_size", 2.5),
        ("eval_capacity_factor", 0.0),
        ("router_z_loss_factor", -0.001),
        ("jitter_noise", 1.0),
        ("ignore_padding_tokens", "no"),
    ):
        wrong = {"name": "wrong", **fields["base"], name: value}
        what = f"base with {name} = {value!r}"
        found.append(
            Example(f"illegal_{name}", "CFG-02", what, "validate_configuration", {"fields": wrong})
        )
    return found


def groups() -> list[Example]:
    """Return batches cut into groups, and sizes that must be rejected."""
    rows = np.arange(1, 31, dtype=np.float32).reshape(3, 5, 2)
    flat = np.arange(1, 49, dtype=np.float32).reshape(4, 6, 2)
    found = []
    for name, clause, inputs, multiple, size, what in (
        ("padded_columns", "GROUP-03", rows, 8, 8, "a column of zeros stands behind each row"),
        ("padded_rows", "GROUP-03", rows.swapaxes(0, 1), 12, 8, "rows of zeros stand at the end"),
        ("runs", "GROUP-05", flat, 1, 8, "groups cross the ends of rows"),
    ):
        batch, length, _ = inputs.shape
        padded = naive.padded_shape(batch, length, multiple=multiple)
        wanted = naive.to_groups(inputs, padded=padded, num_groups=padded[0] * padded[1] // size)
        arguments = {"inputs": inputs, "group_size": size, "multiple": multiple}
        found.append(Example(name, clause, what, "group_tokens", arguments, wanted))
    sizes = {"max_group_size": 16, "num_experts": 4}
    capacity = {"tokens_per_group": 64, "num_experts": 4}
    return [
        *found,
        Example(
            "no_multiple",
            "GROUP-09",
            "63 tokens for 4 experts",
            "num_groups",
            {"num_tokens": 63, **sizes},
        ),
        Example(
            "no_factor",
            "GROUP-09",
            "capacity factor 0",
            "expert_capacity",
            {"capacity_factor": 0.0, **capacity},
        ),
        Example(
            "no_divisor",
            "GROUP-09",
            "groups of 5 from 48 tokens",
            "group_tokens",
            {"inputs": flat, "group_size": 5},
        ),
    ]


# ---- routing -------------------------------------------------------------------------------


def decisions() -> list[Example]:
    """Return decisions from float32 probabilities."""
    saturated = np.array([[[110, 0, 1, -1, 2], [0, 2, 300, 1, 0], [-300, 0, -200, 2, -250]]])
    tied, spread = uneven(1, 2, 6, 4), naive.softmax(grid(2, 1, 6, 8) * 4).astype(np.float32)
    last_bit = np.full((1, 2, 4), 0.25, np.float32)
    last_bit[0, :, 3] = np.nextafter(np.float32(0.25), np.float32(1))
    mask = np.array([[1, 0, 1, 1, 0, 1], [1, 1, 1, 0, 1, 1]], bool)
    found = []
    for name, clause, what, function, options in (
        ("ties", "ROUTE-04", "equal probabilities: the lower index", "decide", {"k": 2, "c": 4}),
        ("three_choices", "ROUTE-06", "best first", "decide", {"k": 3, "c": 2, "p": spread}),
        ("one_bit", "ROUTE-04", "one last bit decides", "decide", {"k": 1, "c": 2, "p": last_bit}),
        (
            *("underflow", "ROUTE-05", "probabilities that underflow tie", "decide"),
            {"k": 2, "c": 4, "p": naive.softmax(saturated).astype(np.float32)},
        ),
        (
            "choice_major",
            "ROUTE-07",
            "room for all: the order of queues",
            "decide",
            {"k": 2, "c": 12},
        ),
        ("running_count", "ROUTE-08", "one slot an expert", "decide", {"k": 2, "c": 1}),
        (
            *("masked_priority", "ROUTE-15", "padding queues last", "decide_scatter"),
            {"k": 2, "c": 2, "padding_mask": mask, "batch_prioritized": True},
        ),
    ):
        probabilities = options.pop("p", tied)
        arguments = {"k": options.pop("k"), "capacity": options.pop("c"), **options}
        decision = getattr(naive, function)(probabilities, **arguments)
        arguments["probabilities"] = probabilities
        found.append(Example(name, clause, what, function, arguments, shown(decision, clause)))
    return found


def routes() -> list[Example]:
    """Return decisions and probabilities from hidden states whose logits are exact."""
    rows, kernel = grid(3, 1, 6, 4), grid(4, 4, 8)
    padded = rows.copy()
    padded[0, (1, 4)] = 0
    nearly = np.zeros((1, 4, 4), np.float32)
    nearly[0, 1], nearly[0, 2, 0], nearly[0, 3, 0] = (0.5, -0.5, 0, 0), 2.0**-60, -0.0
    twice = np.concatenate([rows, rows])
    found = []
    for name, clause, what, inputs, ignore in (
        ("padding_rows", "ROUTE-11", "zero rows take slots of experts 0 and 1", padded, False),
        ("sum_of_zero", "ROUTE-13", "a row that sums to 0 is real, -0.0 is not", nearly, True),
        ("two_groups", "ROUTE-17", "equal groups have equal records", twice, False),
    ):
        logits = naive.router_logits(inputs, kernel)
        mask = naive.padding_mask(inputs) if ignore else None
        probabilities = naive.softmax(logits).astype(np.float32)
        decision = naive.decide(probabilities, k=2, capacity=2, padding_mask=mask)
        arguments = {"inputs": inputs, "kernel": kernel, "k": 2, "capacity": 2}
        if ignore:
            arguments["ignore_padding"] = True
        answer = shown(decision, clause)
        found.append(Example(name, clause, what, "route", arguments, answer, SOFTMAX_BOUND))
    noise = 1 + grid(5, 1, 6, 4) / 4
    for name, clause, more in (
        ("logits", "ROUTE-02", {}),
        ("jitter", "ROUTE-16", {"noise": noise}),
    ):
        wanted = naive.softmax(naive.router_logits(rows, kernel, **more))
        arguments = {"inputs": rows, "kernel": kernel, **more}
        found.append(
            Example(
                name, clause, "softmax of x W", "probabilities", arguments, wanted, SOFTMAX_BOUND
            )
        )
    return found + [_rung(exponent) for exponent in (4, 12, 20)] + [_rung(None)]


def _rung(exponent: int | None) -> Example:
    """Return 8 tokens whose second choice hangs on a margin of 2^-exponent (None: on a tie)."""
    rows, kernel = np.full((1, 8, 8), -2, np.float32), np.eye(8, dtype=np.float32)
    wanted = np.zeros((1, 8, 2), np.int32)
    for t in range(8):
        first, winner, loser = t, (t + 3) % 8, (t + 5) % 8
        rows[0, t, first], rows[0, t, winner], rows[0, t, loser] = 2, 1, 1
        if exponent is None:
            winner, loser = min(winner, loser), max(winner, loser)
        else:
            rows[0, t, loser] = 1 - 2.0**-exponent
        wanted[0, t] = first, winner
    decision = naive.decide(
        naive.softmax(rows.astype(np.float64)).astype(np.float32), k=2, capacity=8
    )
    assert (decision.expert_index == wanted).all()
    what = "an exact tie" if exponent is None else f"a margin of 2^-{exponent} in logits"
    arguments = {"inputs": rows, "kernel": kernel, "k": 2, "capacity": 8}
    name = "ladder_tie" if exponent is None else f"ladder_{exponent:02d}"
    answer = shown(decision, "ROUTE-18")
    return Example(name, "ROUTE-18", what, "route", arguments, answer, SOFTMAX_BOUND)


def rejected_routes() -> list[Example]:
    """Return arguments of the router that must be rejected."""
    good = {"probabilities": np.full((1, 3, 4), 0.25, np.float32), "k": 2, "capacity": 2}
    unknown = good["probabilities"].copy()
    unknown[0, 1, 2] = np.nan
    wide = {"probabilities": good["probabilities"].astype(np.float64)}
    infinite = np.full((1, 3, 4), np.inf, np.float32)
    return [
        Example("more_choices", "ROUTE-20", "K = 5 of 4 experts", "decide", {**good, "k": 5}),
        Example("no_capacity", "ROUTE-20", "capacity 0", "decide", {**good, "capacity": 0}),
        Example("fraction", "ROUTE-20", "capacity 1.5", "decide", {**good, "capacity": 1.5}),
        Example(
            "unknown", "ROUTE-20", "not a number", "decide", {**good, "probabilities": unknown}
        ),
        Example("wide", "ROUTE-20", "float64 probabilities", "decide", {**good, **wide}),
        Example(
            *("infinite", "ROUTE-20", "infinite inputs", "probabilities"),
            {"inputs": infinite, "kernel": np.ones((4, 2), np.float32)},
        ),
        Example(
            *("full", "ROUTE-25", "4 slots for 3 tokens", "experts_choose"),
            {"probabilities": good["probabilities"], "capacity": 4},
        ),
    ]


# ---- the layer -----------------------------------------------------------------------------


def weights(seed: int, experts: int, width: int = 4, hidden: int = 3) -> dict[str, ndarray]:
    """Return a layer's parameters."""
    return {
        "router": grid(seed, width, experts),
        "wi_0": grid(seed + 1, experts, width, 2 * hidden),
        "wi_1": grid(seed + 2, experts, width, hidden),
        "wo": grid(seed + 3, experts, hidden, width),
    }


def layer(inputs: ndarray, parameters: dict[str, ndarray], k: int, capacity: int) -> dict[str, Any]:
    """Return the naive layer's output and metrics on whole groups."""
    experts = parameters["router"].shape[1]
    logits = naive.router_logits(inputs, parameters["router"])
    probabilities = naive.softmax(logits).astype(np.float32)
    decision = naive.decide(probabilities, k=k, capacity=capacity)
    slots = naive.dispatch(inputs, decision, num_experts=experts)
    names = ("wi_0", "wi_1", "wo")
    outputs = [naive.expert(group, *(parameters[name] for name in names)) for group in slots]
    sown = {
        "auxiliary_loss": naive.balance_loss(probabilities, decision.expert_index),
        "router_z_loss": naive.router_z_loss(logits),
        **naive.metrics(decision, num_experts=experts),
    }
    sown = {name: np.float64(value) for name, value in sown.items()}
    return {"output": naive.combine(np.stack(outputs), decision), "metrics": sown}


def parts() -> list[Example]:
    """Return dispatch, an expert and combine, each alone."""
    inputs, probabilities = grid(6, 2, 6, 4), uneven(7, 2, 6, 4)
    decision = naive.decide(probabilities, k=2, capacity=2)
    slots = naive.dispatch(inputs, decision, num_experts=4)
    outputs = grid(8, 2, 4, 2, 4)
    given = {"decision": record(decision), "num_experts": 4}
    experts = {name: value for name, value in weights(9, 4).items() if name != "router"}
    rows = grid(13, 4, 3, 4) * 2
    answer = naive.expert(rows, *experts.values())
    dropped = naive.decide(uneven(7, 2, 6, 4)[..., :2].copy(), k=1, capacity=1)
    few = grid(14, 2, 2, 1, 4)
    return [
        Example(
            *("slots", "MOE-01", "copies of tokens, zeros in empty slots", "dispatch"),
            {"inputs": inputs, **given},
            slots,
        ),
        Example(
            *("three_projections", "MOE-02", "a silu(b) (x wi_1), then wo", "expert"),
            {"inputs": rows, **experts},
            answer,
            LAYER_BOUND,
        ),
        Example(
            *("second_half", "MOE-03", "first half negative, second positive", "expert"),
            {"inputs": np.abs(rows), **experts, "wi_0": _signed(experts["wi_0"])},
            naive.expert(np.abs(rows), _signed(experts["wi_0"]), experts["wi_1"], experts["wo"]),
            LAYER_BOUND,
        ),
        Example(
            *("weighted_sum", "MOE-04", "raw gates of kept choices", "combine"),
            {"expert_outputs": outputs, **given},
            naive.combine(outputs, decision),
            LAYER_BOUND,
        ),
        Example(
            *("nothing_kept", "MOE-05", "one slot an expert: most tokens get zeros", "combine"),
            {"expert_outputs": few, "decision": record(dropped), "num_experts": 2},
            naive.combine(few, dropped),
            LAYER_BOUND,
        ),
    ]


def _signed(wi_0: ndarray) -> ndarray:
    first, second = np.split(np.abs(wi_0), 2, axis=-1)
    return np.concatenate([-first, second], axis=-1)


def layers() -> list[Example]:
    """Return whole layers on groups and on batches, and parameters that must be rejected."""
    parameters, inputs = weights(20, 4), grid(24, 2, 6, 4)
    padded = inputs.copy()
    padded[:, 2:4] = 0
    whole = layer(inputs, parameters, 2, 2)
    found = [
        Example(name, clause, what, "moe", {**call, "parameters": parameters}, answer, LAYER_BOUND)
        for name, clause, what, call, answer in (
            (
                *("zero_rows", "MOE-08", "zero rows take slots and come out as zeros"),
                {"inputs": padded, "k": 2, "capacity": 2},
                {"output": layer(padded, parameters, 2, 2)["output"]},
            ),
            (
                *("room_for_all", "MOE-10", "nothing is dropped"),
                {"inputs": inputs, "k": 2, "capacity": 12},
                {"output": layer(inputs, parameters, 2, 12)["output"]},
            ),
            *(
                (
                    *(name, clause, name),
                    {"inputs": inputs, "k": 2, "capacity": 2},
                    {"metrics": {name: whole["metrics"][name]}},
                )
                for name, clause in (("router_confidence", "LOSS-08"), ("expert_usage", "LOSS-09"))
            ),
        )
    ]
    found += [
        _batch(parameters, k, clause, training=training)
        for k, clause, training in (
            (1, "GROUP-07", True),
            (2, "GROUP-07", True),
            (2, "GROUP-08", True),
            (2, "GROUP-08", False),
        )
    ]
    wrong = {**parameters, "wi_0": parameters["wi_0"][..., :-1].copy()}
    turned = {**parameters, "wo": parameters["wo"].swapaxes(1, 2).copy()}
    call = {"inputs": inputs, "k": 2, "capacity": 2}
    return [
        *found,
        Example("odd_gate", "MOE-11", "wi_0 of odd width", "moe", {**call, "parameters": wrong}),
        Example("turned", "MOE-11", "wo transposed", "moe", {**call, "parameters": turned}),
    ]


def _batch(parameters: dict[str, ndarray], k: int, clause: str, *, training: bool) -> Example:
    """Return 4 groups of 36 crowded tokens: the capacity shows in who gets nothing."""
    inputs = np.abs(grid(25, 4, 36, 4)) + np.float32(0.125)
    capacity = naive.expert_capacity(36, num_experts=4, capacity_factor=1.25 if training else 2.0)
    answer = layer(inputs, parameters, k, capacity)["output"]
    what = f"K = {k}, {'training' if training else 'evaluation'}: capacity {capacity}"
    name = f"batch_{clause.lower().replace('-', '_')}_k{k}_{'train' if training else 'eval'}"
    arguments = {"inputs": inputs, "parameters": parameters, "training": training, "k": k}
    return Example(name, clause, what, "moe_layer", arguments, {"output": answer}, LAYER_BOUND)


def losses() -> list[Example]:
    """Return balance losses, and what must be rejected."""
    unlike = np.full((2, 4, 4), 0.125, np.float32)
    unlike[0, :, 0], unlike[1, :, 3] = 0.625, 0.625
    index = naive.decide(unlike, k=1, capacity=4).expert_index
    even = np.full((1, 4, 4), 0.25, np.float32)
    spread = ((np.arange(4)[:, None] + np.arange(2)) % 4)[None].astype(np.int32)
    cases = (
        ("two_groups_apart", "LOSS-02", "each group overloads another expert", unlike, index),
        ("perfect_balance", "LOSS-03", "K = 2 gives 2, not 1", even, spread),
    )
    found = [
        Example(
            *(name, clause, what, "balance_loss"),
            {"probabilities": p, "expert_index": chosen},
            np.float64(naive.balance_loss(p, chosen)),
            {"relative": 5e-6},
        )
        for name, clause, what, p, chosen in cases
    ]
    bad = {"probabilities": even * np.float32(np.nan), "expert_index": spread}
    return [*found, Example("no_number", "LOSS-13", "not a number", "balance_loss", bad)]


# ---- the stored form -----------------------------------------------------------------------


def examples() -> list[Example]:
    """Return every example, in the order of SPEC.md."""
    makers = (configurations, groups, decisions, routes, rejected_routes, parts, layers, losses)
    return [example for maker in makers for example in maker()]


def stored(example: Example) -> tuple[dict[str, Any], dict[str, ndarray]]:
    """Return an example's row of the index and its arrays."""
    arrays: dict[str, ndarray] = {}
    plain = _split("arguments", example.arguments, arrays) or {}
    config: dict[str, Any] = {"function": example.function, "arguments": plain}
    if example.answer is None:
        config["rejected"] = True
    elif (left := _split("expected", example.answer, arrays)) is not None:
        config["expected"] = left
    if "decision" in example.arguments:
        config["capacity"] = _capacity(example)
    if example.bounds:
        config["bounds"] = example.bounds
    row = {
        "id": example.id,
        "kind": "call",
        "exercises": example.exercises,
        "config": config,
        "comparisons": {"answer": example.clause},
        "file": f"{FOLDER.name}.npz" if arrays else None,
        "arrays": sorted(arrays),
    }
    return row, {f"{example.id}/{name}": value for name, value in arrays.items()}


def _split(prefix: str, value: Any, arrays: dict[str, ndarray]) -> Any:
    """Move arrays out of `value`; return what is left of it, None when nothing is."""
    if isinstance(value, np.ndarray | np.generic):
        arrays[prefix] = np.asarray(value)
        return None
    if isinstance(value, dict):
        left = {name: _split(f"{prefix}/{name}", inner, arrays) for name, inner in value.items()}
        return {name: inner for name, inner in left.items() if inner is not None} or None
    return value


def _capacity(example: Example) -> int:
    """Return C of an example that hands over a decision."""
    outputs = example.arguments.get("expert_outputs", example.answer)
    return int(outputs.shape[2])


def index_and_arrays() -> tuple[dict[str, Any], dict[str, ndarray]]:
    """Return the content of `index.json` (without hashes) and of the npz file."""
    rows, arrays = [], dict[str, ndarray]()
    for example in examples():
        row, own = stored(example)
        rows.append(row)
        arrays |= own
    index = {
        "schema": 1,
        "chapter": FOLDER.name,
        "provenance": {
            "program": "reference/tests/naive.py, by reference/tests/worked_examples.py",
            "inputs": "seeded; multiples of 1/8, so that logits are exact",
        },
        "files": {},
        "cases": rows,
    }
    return index, arrays


def main() -> None:
    """Write the set."""
    index, arrays = index_and_arrays()
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{FOLDER.name}.npz"
    np.savez_compressed(path, **arrays)
    data = path.read_bytes()
    index["files"] = {path.name: {"sha256": hashlib.sha256(data).hexdigest(), "bytes": len(data)}}
    text = json.dumps(index, indent=1, ensure_ascii=False) + "\n"
    (FOLDER / "index.json").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
