"""Models of which all but one part is silent, and small batches for them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import ml_dtypes
import numpy as np
from numpy import ndarray

from openmoe_conformance.adapter import call
from openmoe_conformance.answers import numbers
from openmoe_conformance.compare import fields_of
from openmoe_conformance.probes import Known
from openmoe_spec.config import Configuration
from openmoe_spec.parameters import parameters as tree

WIDTH, HIDDEN, VOCABULARY = 8, 6, 13


def fields_with(**changes: Any) -> dict[str, Any]:
    """Return the configuration of a small model, of one sparse layer with room for all choices."""
    fields: dict[str, Any] = {
        "name": "probe",
        "num_layers": 1,
        "num_moe_layers": 1,
        "embed_dim": WIDTH,
        "num_heads": 2,
        "head_dim": 4,
        "mlp_dim": HIDDEN,
        "num_experts": 4,
        "vocabulary_size": VOCABULARY,
        "eval_capacity_factor": 64.0,
        "max_length": 64,
    }
    return asdict(Configuration(**fields | changes))


def silent_model(
    fields: Mapping[str, Any], known: Known, *, loud: tuple[str, ...] = (), seed: int = 0
) -> dict[str, ndarray]:
    """Return weights of which only sublayers whose name contains a word of `loud` add anything."""
    generator = np.random.default_rng(seed)
    doubled = known.get("feed_forward", "cubic") == "cubic"
    made = {}
    for one in tree(Configuration(**fields), doubled_gate=doubled):
        drawn = generator.normal(size=one.shape).astype(np.float32)
        if one.name.endswith("scale"):
            drawn = np.ones(one.shape, np.float32)
        elif one.name.endswith(("out/kernel", "wo/kernel")):
            drawn *= any(f"/{word}" in one.name for word in loud)
        made[one.name] = drawn
    return made


def batch_of(inputs: Any, targets: Any = None, attention_mask: Any = None) -> dict[str, ndarray]:
    """Return a batch that every dialect can read: targets above 0 and an open mask by default."""
    ids = np.asarray(inputs, np.int32)
    seen = np.ones_like(ids) if attention_mask is None else np.asarray(attention_mask, np.int32)
    wanted = np.roll(np.maximum(ids, 1), -1, axis=1) if targets is None else targets
    return {
        "decoder_input_tokens": ids,
        "decoder_target_tokens": np.asarray(wanted, np.int32),
        "attention_mask": seen,
    }


def logits_of(adapter: Any, weights: Any, batch: Any, fields: Any, **options: Any) -> ndarray:
    """Return the logits of `forward`. Errors: Disagreement on another shape."""
    answer = forward_of(adapter, weights, batch, fields, **options)
    found = fields_of(answer, ("logits",))["logits"]
    shape = (*batch["decoder_input_tokens"].shape, fields["vocabulary_size"])
    return numbers("forward", answer if found is None else found, shape)


def forward_of(adapter: Any, weights: Any, batch: Any, fields: Any, **options: Any) -> Any:
    """Return what `forward` answers."""
    return call(adapter, "forward", weights, batch, configuration=fields, **options)


def representable(values: Any) -> float:
    """Return the share of values that bfloat16 holds exactly."""
    wide = np.asarray(values).astype(np.float32)
    return float((wide == wide.astype(ml_dtypes.bfloat16).astype(np.float32)).mean())


SOME = [[3, 7, 1, 9, 4, 11], [5, 2, 12, 6, 10, 8]]
