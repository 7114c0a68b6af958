"""What the loss of a model, the optimizer and the initialisation refuse."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from rejections import (
    LEGAL,
    NOT_COUNTS,
    NOT_FACTORS,
    NOT_WORDS,
    Row,
    changed,
    rows_of_arrays,
    rows_of_sizes,
    rows_of_values,
)
from rejections_layers import IDS, TARGETS, normal
from rejections_model import BATCH, CONFIGURATION, batch_rows

from openmoe_reference import optimizer
from openmoe_spec.parameters import parameters as tree

V = 7
LOGITS = normal(2, 3, V)
WEIGHTS = np.array([[1, 0.5, 1], [2, 0, 0]], np.float32)
TEXT: dict[str, Any] = {
    "logits": LOGITS,
    "targets": TARGETS,
    "weights": WEIGHTS,
    "normalizing_factor": 2.0,
    "z_loss": 1e-4,
    "label_smoothing": 0.1,
}
METRICS = {1: {"auxiliary_loss": np.float32(2), "router_z_loss": np.float32(1)}}
AXES = ("embed", "joined_kv")
HOW = optimizer.factoring((130, 140), AXES)

LEGAL.update(
    {
        "cross_entropy.cross_entropy": TEXT,
        "part_gradients.cross_entropy_gradient": TEXT,
        "cross_entropy.smoothing": {
            "label_smoothing": 0.1,
            "vocabulary": V,
            "kind": np.dtype(np.float32),
        },
        "cross_entropy.logsumexp": {"logits": LOGITS},
        "cross_entropy.all_ones_loss": {
            "logits": LOGITS,
            "targets": TARGETS,
            "z_loss": 0.01,
            "label_smoothing": 0.001,
            "by_row": False,
        },
        "cross_entropy.normalizer": {"name": "AVERAGE_PER_SEQUENCE", "batch": BATCH},
        "cross_entropy.total_loss": {
            "logits": LOGITS,
            "batch": BATCH,
            "metrics": METRICS,
            "configuration": CONFIGURATION,
        },
        "cross_entropy.router_losses": {
            "metrics": METRICS,
            "configuration": CONFIGURATION,
            "kind": np.dtype(np.float32),
        },
        "cross_entropy.check_targets": {"logits": LOGITS, "targets": TARGETS, "weights": WEIGHTS},
        "cross_entropy.check_weights": {"weights": WEIGHTS, "sizes": {"B": 2, "L": 3}},
        "cross_entropy.check_divisor": {"value": 1.0},
        "optimizer.learning_rate": {"step": 0},
        "optimizer.learning_rate_with_linear_warmup": {"step": 0},
        "optimizer.factoring": {"shape": (130, 140), "axes": AXES},
        "optimizer.initial_state": {"shape": (130, 140), "how": HOW},
        "optimizer.update": {
            "parameter": normal(130, 140),
            "gradient": normal(130, 140),
            "state": optimizer.initial_state((130, 140), HOW),
            "how": HOW,
            "step": 0,
            "rate": 0.01,
        },
        "optimizer.scaled_gradients": {
            "gradients": {"mlp/expert/wo/kernel": normal(2, 3, 4)},
            "num_expert_partitions": 2,
        },
        "optimizer.accumulated": {
            "of_batch": lambda batch: ({"total": 1.0}, {"a": batch["decoder_input_tokens"]}),
            "batch": {"decoder_input_tokens": IDS.repeat(2, axis=0)},
            "num_microbatches": 2,
        },
        "initialisation.deviation": {
            "parameter": tree(CONFIGURATION)[0],
            "configuration": CONFIGURATION,
        },
        "initialisation.initialise": {
            "configuration": CONFIGURATION,
            "generator": np.random.default_rng(0),
        },
    }
)

NOT_FINITE = {
    what: value
    for what, value in NOT_FACTORS.items()
    if "zero" not in what and what != "a negative number"
}
NOT_SHARES = NOT_FINITE | {"one": 1.0, "more than one": 1.5, "a negative number": -0.1}
NOT_STEPS = {what: value for what, value in NOT_COUNTS.items() if what != "zero"}


def loss_rows() -> Iterator[Row]:
    """Yield the illegal calls of the loss of a model."""
    clause = ("LOSS-25",)
    for function in ("cross_entropy.cross_entropy", "part_gradients.cross_entropy_gradient"):
        yield from target_rows(function)
        yield from weight_rows(function)
        yield from rows_of_values(function, "normalizing_factor", NOT_DIVISORS, *clause)
    yield from target_rows("cross_entropy.check_targets")
    for name in ("check_targets", "check_weights"):
        yield from weight_rows(f"cross_entropy.{name}")
    for row in rows_of_values("cross_entropy.check_divisor", "value", NOT_FACTORS, *clause):
        yield row._replace(arguments=("normalizing_factor",))
    yield from target_rows("cross_entropy.all_ones_loss")
    for function in (
        "cross_entropy.cross_entropy",
        "part_gradients.cross_entropy_gradient",
        "cross_entropy.all_ones_loss",
    ):
        yield from rows_of_values(function, "z_loss", NOT_FINITE, *clause)
        yield from rows_of_values(function, "label_smoothing", NOT_SHARES, *clause)
    yield from rows_of_values("cross_entropy.smoothing", "label_smoothing", NOT_SHARES, *clause)
    names = ("decoder_target_tokens", "decoder_loss_weights", "decoder_segment_ids")
    function = "cross_entropy.normalizer"
    yield from rows_of_values(function, "name", NOT_WORDS, *clause)
    yield from batch_rows(function, names, *clause)
    function = "cross_entropy.total_loss"
    yield from rows_of_arrays(function, ("logits",), clause)
    yield from batch_rows(function, names[:2], *clause)
    for function in ("cross_entropy.normalizer", "cross_entropy.total_loss"):
        negative = changed(BATCH["decoder_loss_weights"], (0, 0), -1)
        values = {
            "no targets": {"decoder_input_tokens": IDS},
            "weights that add up to 0": BATCH | {"decoder_loss_weights": np.zeros_like(IDS)},
            "a negative weight": BATCH | {"decoder_loss_weights": negative},
        }
        for what, batch in values.items():
            named = ("batch", "weights", "normalizing_factor")
            yield Row(function, what, {"batch": batch}, named, clause)


NOT_DIVISORS = {what: value for what, value in NOT_FACTORS.items() if what != "nothing"}


def target_rows(function: str) -> Iterator[Row]:
    """Yield rows for logits and targets."""
    clause = ("LOSS-25",)
    yield from rows_of_arrays(function, ("logits", "targets"), clause)
    yield from rows_of_sizes(function, {"logits": (0, 1), "targets": (0, 1)}, clause)
    ids = {"an id of V": V, "a negative id": -1, "the port's -100": -100}
    values = {what: changed(TARGETS, (0, 0), value) for what, value in ids.items()}
    yield from rows_of_values(function, "targets", values, *clause)


def weight_rows(function: str) -> Iterator[Row]:
    """Yield rows for weights of positions."""
    clause = ("LOSS-25",)
    for row in rows_of_arrays(function, ("weights",), clause):
        if row.what != "whole numbers":  # which the training code's are
            yield row
    yield from rows_of_sizes(function, {"weights": (0, 1)}, clause)
    negative = {"a negative weight": changed(WEIGHTS, (0, 0), -1)}
    yield from rows_of_values(function, "weights", negative, *clause)


def optimizer_rows() -> Iterator[Row]:
    """Yield the illegal calls of Adafactor, the learning rate and microbatches."""
    clause = ("OPT-12",)
    for name in ("learning_rate", "learning_rate_with_linear_warmup", "update"):
        yield from rows_of_values(f"optimizer.{name}", "step", NOT_STEPS, *clause)
    function = "optimizer.factoring"
    axes = {
        "one axis less": ("embed",),
        "one axis more": ("embed", "joined_kv", "mlp"),
        "no axis": (),
        "an expert axis without the others": ("expert", "joined_kv"),
    }
    yield from rows_of_values(function, "axes", axes, *clause)
    deep = {"shape": (2, 3, 4), "axes": ("embed", "heads", "kv")}
    yield Row(function, "rank 3 without experts", deep, ("shape", "axes"), clause)
    function = "optimizer.update"
    for row in rows_of_arrays(function, ("parameter", "gradient"), clause):
        yield row._replace(arguments=("parameter", "gradient", "state"))
    yield from rows_of_sizes(function, {"parameter": (0, 1), "gradient": (0, 1)}, clause)
    yield from rows_of_values(function, "rate", NOT_FACTORS, *clause)
    state = LEGAL[function]["state"]
    states = {
        "nothing": None,
        "no slot": {},
        "no v_row": {name: state[name] for name in state if name != "v_row"},
        "v_row of another length": state | {"v_row": np.zeros(140, np.float32)},
        "v_col that is not a number": state | {"v_col": np.full(140, np.nan, np.float32)},
    }
    yield from rows_of_values(function, "state", states, *clause)
    function = "optimizer.scaled_gradients"
    yield from rows_of_values(function, "num_expert_partitions", NOT_COUNTS, *clause)
    broken = {"mlp/expert/wo/kernel": changed(normal(2, 3, 4), (0, 0, 0), np.inf)}
    values = {"infinity": broken, "nothing": None}
    yield from rows_of_values(function, "gradients", values, *clause)
    function = "optimizer.accumulated"
    counts = NOT_COUNTS | {"no divisor": 3, "more than rows": 8}
    yield from rows_of_values(function, "num_microbatches", counts, *clause)


ROWS = [*loss_rows(), *optimizer_rows()]
