"""Worked examples of a model's gradients and losses, and of what it must reject."""

from __future__ import annotations

from typing import Any

import naive_training
import numpy as np
from naive_model import Model
from numpy import ndarray
from worked_example import Example
from worked_model import FULL, batch, fields, run, weights

from openmoe_spec.config import Configuration

LOSS_BOUND = {"relative": 2e-6, "of_largest": 1e-7}
GRADIENT_BOUND = {"relative": 1e-4, "of_largest": 1e-5}
FACTORS = {"auxiliary_loss_factor": 0.5, "router_z_loss_factor": 0.25, "z_loss_factor": 0.125}


def gradients() -> list[Example]:
    """Return the gradients of models whose every query sees a key."""
    crowded = {"num_selected_experts": 2, "min_expert_capacity": 1}
    small = fields(vocabulary_size=5, **FACTORS, **crowded)
    deep = fields(num_layers=2, num_moe_layers=2, **FACTORS)
    of_small, of_deep = weights(small, 9), weights(deep, 9)
    routers = [name for name in of_deep if "router" in name]
    four_ids = batch([[0, 3, 1, 4]], [[3, 1, 4, 2]])
    found = []
    for name, what, configuration, parameters, names in (
        ("model_gradients", "every tensor; all losses weigh", small, of_small, list(of_small)),
        ("router_gradients", "the router losses are means of two layers", deep, of_deep, routers),
    ):
        run(configuration, parameters, four_ids, training=True)
        model = Model(parameters, Configuration(**configuration))
        answer = naive_training.model_gradients(model, four_ids, names)
        arguments = {"configuration": configuration, "parameters": parameters, "batch": four_ids}
        found.append(
            Example(
                *(name, "MODEL-08", what, "model_gradients"),
                arguments | {"training": True},
                answer,
                GRADIENT_BOUND,
            )
        )
    return found


def losses() -> list[Example]:
    """Return the loss of a model, in parts."""
    one = fields(num_selected_experts=2, min_expert_capacity=1, **FACTORS)
    two = one | {"num_layers": 2, "num_moe_layers": 2}
    weighed = FULL | {"decoder_loss_weights": np.array([[0, 1, 1, 0, 1, 1]], np.int32)}
    text = ("total", "cross_entropy", "z_loss")
    router = ("auxiliary_loss", "router_z_loss")
    found = []
    for name, clause, what, parts, configuration, given, training in (
        ("total", "LOSS-21", "the total of four parts", text, one, weighed, True),
        ("accuracy", "LOSS-22", "weighted", ("accuracy", "weight_sum"), one, guessed(one), False),
        ("router_losses", "LOSS-23", "means of two layers", router, two, FULL, True),
        ("trained", "LOSS-24", "training drops choices", ("total",), one, FULL, True),
        ("evaluated", "LOSS-24", "evaluation drops none", ("total",), one, FULL, False),
    ):
        parameters = weights(configuration, 9)
        model = Model(parameters, Configuration(**configuration))
        passed = run(configuration, parameters, given, training=training)
        assert passed.decisions[0].kept.all() != training
        answer = naive_training.total_loss(model, given, passed)
        arguments = {"configuration": configuration, "parameters": parameters, "batch": given}
        found.append(
            Example(
                *(name, clause, what, "loss"),
                arguments | {"training": training},
                {part: np.float64(answer[part]) for part in parts},
                LOSS_BOUND,
            )
        )
    return found


def guessed(configuration: dict[str, Any]) -> dict[str, ndarray]:
    """Return a batch whose targets are right where they weigh 1, 0, and 4: there all logits are 0."""
    ids = [[0, 3, 5, 0, 0, 0]]
    given = batch(ids, [[1, 1, 1, 1, 1, 1]], loss_weights=[[1, 1, 0, 1, 4, 1]])
    logits = run(configuration, weights(configuration, 9), given).logits[0]
    assert not logits[4].any()
    best = logits.argmax(axis=-1)
    targets = np.where([1, 0, 1, 0, 1, 0], best, (best + 1) % logits.shape[-1])
    return given | {"decoder_target_tokens": np.maximum(targets, [1, 1, 1, 1, 0, 1])[None]}


def rejected() -> list[Example]:
    """Return parameters and batches that must be rejected."""
    name, whole = "decoder/layers_0/extra_mlp/wi_0/kernel", weights(fields(), 9)
    call = {"configuration": fields(), "parameters": whole, "batch": FULL}
    unknown, padding = FULL["decoder_input_tokens"].copy(), FULL["decoder_target_tokens"] * 0
    unknown[0, 2] = 7
    missing = {key: value for key, value in whole.items() if key != name}
    turned = whole | {name: np.ascontiguousarray(whole[name].T)}
    narrow = whole | {name: whole[name].astype(np.float16)}
    extra = whole | {"decoder/logits_dense/bias": np.zeros(7, np.float32)}
    mixed = FULL | {"decoder_segment_ids": np.array([[1, 1, 2, 2, 1, 1]], np.int32)}
    long = batch([[0, *[1] * 8]], [[1] * 9])
    empty = batch(np.zeros((1, 0)), np.zeros((1, 0)))
    calls: tuple[tuple[str, str, str, dict[str, Any]], ...] = (
        ("missing_leaf", "MODEL-09", "no extra wi_0", {"parameters": missing}),
        ("turned_leaf", "MODEL-09", "the extra wi_0 transposed", {"parameters": turned}),
        ("narrow_leaf", "MODEL-09", "the extra wi_0 in float16", {"parameters": narrow}),
        ("extra_leaf", "MODEL-09", "a bias", {"parameters": extra}),
        ("id_7", "MODEL-10", "an id of V", {"batch": FULL | {"decoder_input_tokens": unknown}}),
        ("nine_ids", "MODEL-10", "longer than max_length", {"batch": long}),
        ("no_id", "MODEL-10", "no position", {"batch": empty}),
        ("mixed_segments", "MODEL-10", "segments 1 2 1", {"batch": mixed}),
        ("no_target", "MODEL-10", "padding", {"batch": FULL | {"decoder_target_tokens": padding}}),
    )
    return [Example(*words, "forward", call | change) for *words, change in calls]


def examples() -> list[Example]:
    """Return the examples of losses, gradients and rejections, in the order of SPEC.md."""
    return [*gradients(), *rejected(), *losses()]
