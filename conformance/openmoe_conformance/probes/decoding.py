"""Probes of decoding."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.adapter import UnsupportedError, call, offers
from openmoe_conformance.compare import fields_of
from openmoe_conformance.probes import Known, probe
from openmoe_conformance.probes.silent import (
    batch_of,
    fields_with,
    silent_model,
)


@probe("cached_calls", "decode_position", what="left padding, position ids counted from the mask")
def _(adapter: Any, known: Known) -> Any:
    fields = fields_with()
    weights = silent_model(fields, known, loud=("self_attention",))
    batch = batch_of([[0, 0, 3, 7, 1, 9, 4]], attention_mask=[[0, 0, 1, 1, 1, 1, 1]])
    options = {"prefill": 4, "positions_from_mask": True}
    answer = call(adapter, "cached_calls", weights, batch, configuration=fields, **options)
    return np.asarray(fields_of(answer, ("logits",))["logits"])[:, 4:]


def _crowded_prompt(known: Known) -> tuple[dict[str, Any], dict[str, ndarray]]:
    """Return a model with one slot an expert: the prompt's last token is dropped unless fed alone."""
    fields = fields_with(
        num_selected_experts=1, eval_capacity_factor=1e-3, min_expert_capacity=1, num_experts=2
    )
    weights = silent_model(fields, known, loud=("mlp/expert",))
    weights["decoder/layers_0/mlp/expert/wo/kernel"] *= 8
    return fields, weights


@probe("generate", "prompt_end", what="first new token behind a prompt whose last token is dropped")
def _(adapter: Any, known: Known) -> Any:
    fields, weights = _crowded_prompt(known)
    batch = batch_of([[0, 7, 7, 7, 7, 7, 7, 7]]) | {
        "decoder_causal_attention": np.array([[1, 1, 1, 1, 1, 1, 0, 0]], np.int32)
    }
    return np.asarray(call(adapter, "generate", weights, batch, configuration=fields))[:, 0]


@probe("greedy", "prompt_end", what="first new token behind a prompt whose last token is dropped")
def _(adapter: Any, known: Known) -> Any:
    if offers(adapter, "generate") is None:
        raise UnsupportedError("generate() tells")
    fields, weights = _crowded_prompt(known)
    ids = np.array([[7, 7, 7, 7, 7]], np.int32)
    return np.asarray(call(adapter, "greedy", weights, ids, configuration=fields, new_tokens=1))[
        :, 5
    ]
