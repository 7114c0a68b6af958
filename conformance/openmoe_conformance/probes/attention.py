"""Probes of feed-forward, attention and masks."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_conformance.adapter import call
from openmoe_conformance.probes import Known, probe
from openmoe_conformance.probes.silent import (
    SOME,
    WIDTH,
    batch_of,
    fields_with,
    logits_of,
    silent_model,
)


@probe("feed_forward", "feed_forward", what="one token through kernels that fit", by_option=True)
def _(adapter: Any, known: Known) -> Any:
    generator = np.random.default_rng(1)
    x, wide, narrow, out = (
        generator.normal(size=shape).astype(np.float32)
        for shape in ((2, 4), (4, 6), (4, 3), (3, 4))
    )
    first = wide if known["feed_forward"] == "cubic" else wide[:, :3]
    return call(adapter, "feed_forward", x, {"wi_0": first, "wi_1": narrow, "wo": out})


@probe("forward", "feed_forward", what="a dense feed-forward alone", by_option=True)
def _(adapter: Any, known: Known) -> Any:
    fields = fields_with(num_layers=2, num_moe_layers=1)
    weights = silent_model(fields, known, loud=("layers_0/mlp",))
    return logits_of(adapter, weights, batch_of(SOME), fields)


def _attention_case() -> tuple[ndarray, dict[str, ndarray]]:
    generator = np.random.default_rng(2)
    inputs = generator.normal(size=(1, 5, WIDTH)).astype(np.float32)
    kernels = {
        name: generator.normal(size=(WIDTH, WIDTH)).astype(np.float32)
        for name in ("query", "key", "value", "out")
    }
    return inputs, kernels


@probe("attention", "attention_scale", what="five tokens, all visible")
def _(adapter: Any, _: Known) -> Any:
    return call(adapter, "attention", *_attention_case(), None, num_heads=2)


@probe("forward", "attention_scale", what="attention alone, all visible")
def _(adapter: Any, known: Known) -> Any:
    fields = fields_with()
    weights = silent_model(fields, known, loud=("self_attention",))
    return logits_of(adapter, weights, batch_of(SOME), fields)


@probe("attention", "masked_keys", what="a query that may see no key")
def _(adapter: Any, _: Known) -> Any:
    mask = np.tril(np.ones((1, 5, 5), bool))
    mask[0, 2] = False
    return call(adapter, "attention", *_attention_case(), mask, num_heads=2)


@probe("forward", "attention_mask", what="one key hidden by target ids, another by the caller")
def _(adapter: Any, known: Known) -> Any:
    fields = fields_with()
    weights = silent_model(fields, known, loud=("self_attention",))
    targets = np.array([[7, 0, 9, 4, 11, 2], [3, 12, 6, 0, 8, 5]])
    mask = [[1, 1, 0, 1, 1, 1], [1, 1, 0, 1, 1, 1]]
    logits = logits_of(adapter, weights, batch_of(SOME, targets, mask), fields)
    return logits[targets > 0]  # these queries see key 0 and themselves at least


@probe(
    "forward",
    "attention_mask",
    "masked_keys",
    what="target ids of 0 and an attention mask that disagree",
)
def _(adapter: Any, known: Known) -> Any:
    fields = fields_with()
    weights = silent_model(fields, known, loud=("self_attention",))
    targets = [[7, 0, 9, 4, 11, 2], [0, 12, 6, 0, 8, 3]]
    mask = [[1, 1, 0, 1, 1, 1], [0, 1, 1, 1, 0, 1]]
    return logits_of(adapter, weights, batch_of(SOME, targets, mask), fields)


@probe("attention", "softmax", what="bfloat16, 48 tokens", faint=True, share=0.25)
def _(adapter: Any, _: Known) -> Any:
    kernels = _attention_case()[1]
    inputs = np.random.default_rng(6).normal(size=(1, 48, WIDTH)).astype(ml_dtypes.bfloat16)
    small = {name: kernel / 2 for name, kernel in kernels.items()}
    return call(adapter, "attention", inputs, small, None, num_heads=2, dtype="bfloat16")


@probe("token_mask", "token_mask", what="ids 0 5 0 0 7")
def _(adapter: Any, _: Known) -> Any:
    return call(adapter, "token_mask", np.array([[0, 5, 0, 0, 7]], np.int32))


@probe("forward", "token_mask", what="ids 0 5 0 0 7 3 through embedding, norm and head")
def _(adapter: Any, known: Known) -> Any:
    fields = fields_with()
    return logits_of(adapter, silent_model(fields, known), batch_of([[0, 5, 0, 0, 7, 3]]), fields)
