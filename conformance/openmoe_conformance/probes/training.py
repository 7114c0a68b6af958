"""Probes of losses, gradients and the learning rate."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from openmoe_conformance.adapter import UnsupportedError, call
from openmoe_conformance.compare import fields_of
from openmoe_conformance.probes import Known, probe
from openmoe_conformance.probes.silent import (
    SOME,
    batch_of,
    fields_with,
    forward_of,
    silent_model,
)


@probe("balance_loss", "balance", what="two groups that each crowd another expert")
def _(adapter: Any, _: Known) -> Any:
    probabilities = np.full((2, 4, 4), 0.1, np.float32)
    probabilities[0, :, 0] = probabilities[1, :, 3] = 0.7
    index = np.broadcast_to(np.array([0, 3], np.int32)[:, None, None], (2, 4, 1))
    return call(adapter, "balance_loss", probabilities, np.ascontiguousarray(index))


@probe("forward", "balance", what="two kinds of tokens, each in groups of its own")
def _(adapter: Any, known: Known) -> Any:
    fields = fields_with()
    weights = silent_model(fields, known)
    answer = forward_of(adapter, weights, batch_of([[3] * 16 + [4] * 16]), fields)
    shown = fields_of(answer, ("metrics",))["metrics"]
    if not shown:
        raise UnsupportedError("forward() shows no metrics")
    one = next(iter(shown.values())) if isinstance(shown, Mapping) else shown[0]
    return np.asarray(one["auxiliary_loss"])


@probe("loss", "cross_entropy", what="total loss of two rows")
def _(adapter: Any, known: Known) -> Any:
    fields = fields_with()
    weights = silent_model(fields, known)
    found = call(adapter, "loss", weights, batch_of(SOME), configuration=fields)
    return np.asarray(found["total"] if isinstance(found, Mapping) else found)


@probe("part_gradients", "start_embedding", what="is the gradient of row 0 other than 0?")
def _(adapter: Any, _: Known) -> Any:
    ids, cotangent = np.array([[0, 2]], np.int32), np.ones((1, 2, 3), np.float32)
    found = call(adapter, "part_gradients", "embed", ids, {}, cotangent, size=4)
    return (np.asarray(found["table"])[[0, 2]] != 0).any(axis=-1)


@probe(
    "model_gradients",
    "start_embedding",
    what="is the gradient of row 0 other than 0?",
    alone=True,
)
def _(adapter: Any, known: Known) -> Any:
    fields = fields_with()
    batch = batch_of([[0, 7, 1, 9, 4, 11]])
    found = call(
        adapter, "model_gradients", silent_model(fields, known), batch, configuration=fields
    )
    return (np.asarray(found["token_embedder/embedding"])[[0, 7]] != 0).any(axis=-1)


@probe("learning_rate", "warmup", what="step 100")
def _(adapter: Any, _: Known) -> Any:
    return call(adapter, "learning_rate", 100)
