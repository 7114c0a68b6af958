"""Gradients stored from the training code are the slopes of the float64 reference's loss."""

from __future__ import annotations

import numpy as np
import pytest

from openmoe_conformance import vector_sets
from openmoe_conformance.vector_cases import below
from openmoe_conformance.vector_passes import batch, is_bfloat16, parameters
from openmoe_reference import cross_entropy, model
from openmoe_spec.config import Configuration

STEP = 1e-6


def _cases():
    for case in vector_sets.open_set(vector_sets.built_in()):
        if any(name.startswith("grads/decoder") for name in case.arrays) and not is_bfloat16(case):
            yield pytest.param(case, id=case.id)


@pytest.mark.parametrize("case", list(_cases()))
def test_stored_gradients_are_slopes(case):
    arrays = case.load()
    fields = Configuration(**case.config["configuration"])
    wide = {name: value.astype(np.float64) for name, value in parameters(arrays).items()}
    fed = batch(arrays)
    call = model.Call(dtype="float64", training=case.config["training"])
    forced = model.forward(wide, fed, fields, call=call).decisions
    call = model.Call(dtype="float64", training=case.config["training"], decisions=forced)

    def loss(weights):
        passed = model.forward(weights, fed, fields, call=call)
        return cross_entropy.total_loss(passed.logits, fed, passed.metrics, fields)["total"]

    # A query that may see no key sends a gradient through logits that -1e10 swallows (MODEL-08): no
    # difference shows it, so rows with padding are confirmed on what lies behind all attention.
    blind = (fed["decoder_target_tokens"] == 0).any()
    last = fields.num_layers - 1
    behind = ("decoder_norm", "logits_dense", f"layers_{last}/mlp", f"layers_{last}/extra_mlp")
    names = [name for name in wide if not blind or any(part in name for part in behind)]
    stored = below(arrays, "grads/")
    generator = np.random.default_rng(0)
    for _ in range(4):
        way = {name: generator.normal(size=wide[name].shape) for name in names}
        length = np.sqrt(sum((one**2).sum() for one in way.values()))
        way = {name: one / length for name, one in way.items()}
        ahead, behind_ = (
            loss({**wide, **{name: wide[name] + sign * STEP * way[name] for name in names}})
            for sign in (1, -1)
        )
        slope = (ahead - behind_) / (2 * STEP)
        wanted = sum(float((stored[name] * way[name]).sum()) for name in names)
        scale = np.sqrt(sum(float((stored[name] ** 2).sum()) for name in names)) / length
        assert abs(slope - wanted) <= 1e-4 * abs(wanted) + 1e-4 * scale
