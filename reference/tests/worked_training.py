"""Worked examples of cross entropy, Adafactor and microbatches, answered by the naive form."""

from __future__ import annotations

from typing import Any

import naive_training
import numpy as np
from naive_model import Model
from numpy import ndarray
from worked_example import Example, grid
from worked_loss import GRADIENT_BOUND, LOSS_BOUND
from worked_model import batch, fields, run, weights

from openmoe_spec.config import Configuration

UPDATE_BOUND = {"relative": 2e-6, "absolute": 1e-7}
STATE_BOUND = {"relative": 2e-6}

# ---- cross entropy ---------------------------------------------------------------------------


def texts() -> list[Example]:
    """Return losses and gradients of given logits."""
    logits, targets = grid(60, 2, 3, 5) * 4, np.array([[1, 4, 0], [2, 2, 0]], np.int32)
    weighed = {"weights": np.array([[1, 0.5, 0], [2, 1, 0]], np.float32), "normalizing_factor": 4.5}
    smooth = {"label_smoothing": 0.125}
    certain = np.full((1, 1, 5), -200, np.float32)
    certain[0, 0, 3] = 200
    soft = np.log(np.array([[[0.025, 0.025, 0.025, 0.9, 0.025]]])).astype(np.float32)
    one = np.array([[3]], np.int32)
    losses: tuple[tuple[str, str, str, ndarray, ndarray, dict[str, Any]], ...] = (
        ("every_position", "LOSS-15", "no weights: padding counts", logits, targets, {}),
        ("weighed", "LOSS-15", "weights and a factor", logits, targets, weighed),
        ("certain", "LOSS-15", "logits of 200", certain, one - 1, {}),
        ("with_z_loss", "LOSS-16", "z-loss", logits, targets, weighed | {"z_loss": 0.125}),
        ("smoothed", "LOSS-17", "smoothed", logits, targets, weighed | smooth),
        ("perfect", "LOSS-17", "costs 0", soft, one, {"label_smoothing": 0.1}),
    )
    found = [
        Example(
            *(name, clause, what, "cross_entropy"),
            {"logits": given, "targets": ids, **options},
            {
                part: np.float64(value)
                for part, value in naive_training.cross_entropy(given, ids, **options).items()
            },
            LOSS_BOUND if name != "perfect" else {"absolute": 1e-6},
        )
        for name, clause, what, given, ids, options in losses
    ]
    every = weighed | smooth | {"z_loss": 0.125}
    return [
        *found,
        Example(
            *("text_gradient", "LOSS-18", "of weights, z-loss and smoothing"),
            "cross_entropy_gradient",
            {"logits": logits, "targets": targets, **every},
            naive_training.cross_entropy_gradient(logits, targets, **every),
            LOSS_BOUND,
        ),
    ]


def normalizers() -> list[Example]:
    """Return normalising factors and weights."""
    ids = np.array([[3, 4, 5, 6, 0], [2, 0, 0, 0, 0]], np.int32)
    plain = {"decoder_target_tokens": ids}
    weighed = plain | {
        "decoder_loss_weights": np.array([[0, 1, 1, 1, 0], [1, 0, 0, 0, 0]], np.int32)
    }
    packed = weighed | {
        "decoder_segment_ids": np.array([[1, 1, 2, 2, 0], [1, 0, 0, 0, 0]], np.int32)
    }
    found = []
    for name, clause, what, kind, given in (
        ("real_tokens", "LOSS-19", "targets above 0", "NUM_REAL_TARGET_TOKENS", plain),
        ("sum_of_weights", "LOSS-19", "weights are given", "NUM_REAL_TARGET_TOKENS", weighed),
        ("all_tokens", "LOSS-20", "B x L", "NUM_TOTAL_TARGET_TOKENS", weighed),
        ("average_of_rows", "LOSS-20", "rows are sequences", "AVERAGE_PER_SEQUENCE", weighed),
        ("average_of_segments", "LOSS-20", "segments are", "AVERAGE_PER_SEQUENCE", packed),
    ):
        factor, weights_ = naive_training.normalizer(kind, given)
        found.append(
            Example(
                *(name, clause, what, "normalizer"),
                {"name": kind, "batch": given},
                {"factor": np.float64(factor), "weights": weights_},
                LOSS_BOUND,
            )
        )
    return found


def rejected_texts() -> list[Example]:
    """Return arguments of the loss that must be rejected."""
    targets, ones = np.array([[1, 4, 0]], np.int32), np.ones((1, 3), np.float32)
    call = {"logits": grid(60, 1, 3, 5), "targets": targets}
    changes: tuple[tuple[str, str, dict[str, Any]], ...] = (
        ("target_of_v", "a target of V", {"targets": targets + 1}),
        ("target_below_0", "the port's -100", {"targets": targets - 101}),
        ("negative_weight", "a negative weight", {"weights": ones - 2}),
        ("factor_of_0", "a factor of 0", {"normalizing_factor": 0.0}),
        ("smoothing_of_1", "smoothing of 1", {"label_smoothing": 1.0}),
        ("infinite_logits", "infinite logits", {"logits": np.full((1, 3, 5), np.inf, np.float32)}),
        ("short_targets", "targets of 2 positions", {"targets": targets[:, :2].copy()}),
    )
    nothing = {"decoder_target_tokens": targets, "decoder_loss_weights": targets * 0}
    return [
        *(
            Example(name, "LOSS-25", what, "cross_entropy", call | change)
            for name, what, change in changes
        ),
        Example(
            *("no_weight", "LOSS-25", "weights that add up to 0", "normalizer"),
            {"name": "NUM_REAL_TARGET_TOKENS", "batch": nothing},
        ),
    ]


# ---- Adafactor -------------------------------------------------------------------------------

UP, DOWN = ("expert", "mlp_embed", "expert_mlp"), ("expert", "expert_mlp", "mlp_embed")


def rates_and_states() -> list[Example]:
    """Return learning rates, and which moments a tensor has."""
    found = [
        Example(
            *(f"rate_{step}", "OPT-01", f"step {step}", "learning_rate"),
            {"step": step},
            np.float64(naive_training.learning_rate(step)),
            {"relative": 2e-6},
        )
        for step in (0, 1, 9_999, 10_001, 500_000)
    ]
    for name, clause, what, shape, axes in (
        ("both_wide", "OPT-02", "rows are the smaller axis", (130, 128), ("embed", "vocab")),
        ("both_equal", "OPT-02", "the first axis of equals", (128, 128), ("joined_kv", "embed")),
        ("one_narrow", "OPT-02", "127 is too small", (127, 400), ("embed", "mlp")),
        ("expert_up", "OPT-03", "whatever the sizes", (2, 3, 8), UP),
        ("expert_wide", "OPT-03", "a width above the hidden one", (2, 8, 3), UP),
        ("expert_down", "OPT-03", "rows are the width", (2, 8, 3), DOWN),
        ("vector", "OPT-04", "zeros, and slots of one element", (300,), ("embed",)),
    ):
        answer = naive_training.initial_state(shape, axes)
        arguments = {"shape": list(shape), "axes": list(axes)}
        found.append(Example(name, clause, what, "optimizer_state", arguments, answer))
    return found


def update(
    axes: tuple[str, ...], parameter: ndarray, gradient: ndarray, step: int
) -> dict[str, Any]:
    """Return the arguments of an update whose moments are not 0, but in step 0."""
    state = naive_training.initial_state(parameter.shape, axes)
    for i, (name, slot) in enumerate(state.items()):
        used = slot.size > 1 and step > 0
        state[name] = (np.abs(grid(70 + i, *slot.shape)) + used * 0.125) * used
    return {
        "parameter": parameter,
        "gradient": gradient,
        "state": {name: slot.astype(np.float32) for name, slot in state.items()},
        "axes": list(axes),
        "step": step,
        "rate": 0.25,
    }


def updates() -> list[Example]:
    """Return single updates, each shown by what its clause speaks of."""
    expert, gradient = grid(80, 2, 3, 4), grid(81, 2, 3, 4)
    expert[1] *= 8  # another size in each expert
    uneven = gradient * np.array([1, 16], np.float32)[:, None, None]
    dense, slope = grid(82, 3, 5), grid(83, 3, 5)
    zeros = np.zeros((3, 5), np.float32)
    slope[0, 0] = 0
    # Repeated rows and columns, so that the largest example is stored in a few bytes.
    square = [np.tile(grid(84 + i, 2, 4), (64, 32)) for i in range(2)]
    found = []
    for name, clause, what, shown, arguments in (
        (
            "first_moments",
            "OPT-05",
            "step 0 forgets",
            "state",
            update(("embed", "kv"), dense, slope, 0),
        ),
        ("moments", "OPT-05", "step 3", "state", update(("embed", "kv"), dense, slope, 3)),
        ("expert_moments", "OPT-05", "factored, step 3", "state", update(UP, expert, gradient, 3)),
        ("direction", "OPT-06", "factored", "parameter", update(UP, expert, gradient / 8, 3)),
        (
            *("square", "OPT-02", "rows are the first axis", "parameter"),
            update(("embed", "kv"), *square, 3),
        ),
        (
            *("unfactored_direction", "OPT-06", "an element by itself", "parameter"),
            update(("a", "b"), dense, slope / 8, 3),
        ),
        (
            "turned_direction",
            "OPT-06",
            "rows last",
            "parameter",
            update(DOWN, expert, gradient / 8, 3),
        ),
        (
            "clipped",
            "OPT-07",
            "the whole tensor",
            "parameter",
            update(("a", "b"), dense, slope * 8, 3),
        ),
        (
            "clipped_experts",
            "OPT-07",
            "each expert by itself",
            "parameter",
            update(UP, expert, uneven, 3),
        ),
        (
            "scaled_experts",
            "OPT-08",
            "each expert by itself",
            "parameter",
            update(UP, expert, gradient, 0),
        ),
        ("from_zeros", "OPT-08", "zeros move", "parameter", update(("a", "b"), zeros, slope, 0)),
        (
            "no_momentum",
            "OPT-09",
            "nothing else moves it",
            "parameter",
            update(("a",), dense[0], slope[0], 7),
        ),
    ):
        answer = naive_training.adafactor(**arguments)
        bound = STATE_BOUND if shown == "state" else UPDATE_BOUND
        found.append(
            Example(name, clause, what, "adafactor", arguments, {shown: answer[shown]}, bound)
        )
    return found


def gradients() -> list[Example]:
    """Return scaled gradients, and gradients of microbatches."""
    names = (
        "decoder/layers_0/mlp/expert/wi_0/kernel",
        "decoder/layers_0/mlp/router/router_weights/w/kernel",
        "decoder/layers_0/mlp/wi_0/kernel",
    )
    given = {name: grid(90 + i, 2, 3) for i, name in enumerate(names)}
    scaled = {name: value * (16 if "expert" in name else 1) for name, value in given.items()}
    configuration = fields(min_expert_capacity=1, num_selected_experts=2, vocabulary_size=5)
    parameters = weights(configuration, 9)
    rows = batch(
        [[0, 3, 1, 4], [0, 2, 4, 2], [0, 1, 1, 3], [0, 4, 3, 2]],
        [[3, 1, 4, 2], [2, 4, 2, 1], [1, 1, 3, 3], [4, 3, 2, 2]],
        loss_weights=[[1, 1, 1, 1], [0, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 1]],
    )
    model = Model(parameters, Configuration(**configuration))
    call = {"parameters": parameters, "batch": rows, "configuration": configuration}
    parts = naive_training.microbatches(rows, 2)
    totals, summed = [], dict[str, ndarray]()
    for part in parts:
        passed = run(configuration, parameters, part, training=True)
        totals.append(naive_training.total_loss(model, part, passed)["total"])
        shown = ("decoder/decoder_norm/scale", names[1])
        for name, value in naive_training.model_gradients(model, part, shown).items():
            summed[name] = summed.get(name, 0) + value
    return [
        Example(
            *("scaled", "OPT-10", "16 partitions: experts alone", "scaled_gradients"),
            {"gradients": given, "num_expert_partitions": 16},
            scaled,
            {"relative": 2e-6},
        ),
        Example(
            *("microbatches", "OPT-11", "four rows, two by two", "accumulated_gradients"),
            call | {"num_microbatches": 2},
            {"loss": {"total": np.float64(sum(totals))}, "gradients": summed},
            GRADIENT_BOUND,
        ),
        Example(
            *("uneven_microbatches", "OPT-12", "four rows in 3 parts", "accumulated_gradients"),
            call | {"num_microbatches": 3},
        ),
    ]


def rejected_updates() -> list[Example]:
    """Return arguments of the optimizer that must be rejected."""
    call = update(("a", "b"), grid(82, 3, 5), grid(83, 3, 5), 3)
    infinite = np.full((3, 5), np.inf, np.float32)
    calls: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
        ("step_below_0", "step -1", "learning_rate", {"step": -1}),
        ("unnamed_axis", "2 axes, one name", "optimizer_state", {"shape": [3, 5], "axes": ["a"]}),
        (
            *("rank_3", "rank 3 without experts", "optimizer_state"),
            {"shape": [2, 3, 5], "axes": ["a", "b", "c"]},
        ),
        ("infinite_gradient", "infinite gradients", "adafactor", call | {"gradient": infinite}),
    )
    return [Example(name, "OPT-12", what, *rest) for name, what, *rest in calls]


def examples() -> list[Example]:
    """Return the examples of losses of text and of training, in the order of SPEC.md."""
    return [
        *texts(),
        *normalizers(),
        *rejected_texts(),
        *rates_and_states(),
        *updates(),
        *gradients(),
        *rejected_updates(),
    ]
