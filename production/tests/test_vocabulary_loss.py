"""The loss in chunks beside the plain form: values, gradients, and what is never held."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import PartitionSpec

from openmoe_production import cross_entropy, layers
from openmoe_production.sharding import Layout, make_mesh
from openmoe_production.vocabulary_loss import text_loss

ROWS, LENGTH, WIDTH, VOCABULARY = 8, 21, 16, 64
OPTIONS = [
    {"z_loss_factor": 0.0, "label_smoothing": 0.0},
    {"z_loss_factor": 0.01, "label_smoothing": 0.1},
]


def _drawn():
    draws = np.random.default_rng(0)
    normed = draws.normal(size=(ROWS, LENGTH, WIDTH)).astype(np.float32)
    kernel = draws.normal(size=(WIDTH, VOCABULARY), scale=0.3).astype(np.float32)
    kernel[:, 40] = kernel[:, 3]  # equal logits on two shares of the ids
    targets = draws.integers(1, VOCABULARY, (ROWS, LENGTH)).astype(np.int32)
    targets[:, ::5] = 3
    weights = (draws.random((ROWS, LENGTH)) < 0.6).astype(np.int32)
    mask = draws.random((ROWS, LENGTH)) < 0.9
    batch = {"decoder_target_tokens": targets, "decoder_loss_weights": weights}
    return jax.tree.map(jnp.asarray, (normed, kernel, batch, mask))


NORMED, KERNEL, BATCH, MASK = _drawn()


def plain(normed, kernel, *, z_loss_factor, label_smoothing):
    logits = layers.output_logits(normed, kernel, mask=MASK)
    targets, weights = BATCH["decoder_target_tokens"], BATCH["decoder_loss_weights"]
    found = cross_entropy.cross_entropy(
        logits,
        targets,
        weights=weights,
        normalizing_factor=weights.sum(),
        z_loss=z_loss_factor,
        label_smoothing=label_smoothing,
    )
    right = jnp.where(logits.argmax(axis=-1) == targets, weights, 0).sum() / weights.sum()
    return found.loss, {"z_loss": found.z_loss, "accuracy": right}


def chunked(normed, kernel, *, chunk=None, **options):
    found = text_loss(normed, kernel, BATCH, mask=MASK, chunk=chunk, **options)
    return found["loss"], found


def close(found, wanted):
    for one, other in zip(jax.tree.leaves(found), jax.tree.leaves(wanted), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=1e-5 * float(np.abs(other).max()))


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("chunk", [None, 1, 4, 21, 100])
def test_values_and_gradients_are_those_of_the_plain_form(options, chunk):
    compare = partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    (wanted, parts), gradients = compare(partial(plain, **options))(NORMED, KERNEL)
    (found, told), own = compare(partial(chunked, chunk=chunk, **options))(NORMED, KERNEL)
    close((found, own), (wanted, gradients))
    close(told["z_loss"] + 1, parts["z_loss"] + 1)
    close(told["cross_entropy"], wanted - parts["z_loss"])
    assert float(told["accuracy"]) == pytest.approx(float(parts["accuracy"]), abs=1e-7)
    assert float(told["weight_sum"]) == int(BATCH["decoder_loss_weights"].sum())
    # Without differentiation another program runs.
    close(chunked(NORMED, KERNEL, chunk=chunk, **options)[0], wanted)


@pytest.mark.parametrize("mesh", [(1, 1, 8), (2, 2, 2), (8, 1, 1)])
def test_rows_and_ids_may_be_split(mesh):
    layout, options = Layout(make_mesh(*mesh)), OPTIONS[1]

    def share(normed, kernel, batch, mask, *, shard):
        own = shard.varying("batch", kernel)
        return text_loss(normed, own, batch, mask=mask, shard=shard, chunk=4, **options)

    rows, ids = layout.spec("batch"), layout.spec(None, "vocab")
    spread = layout.spread(share, (rows, ids, rows, rows), PartitionSpec())

    def loss(normed, kernel):
        found = spread(normed, kernel, BATCH, MASK)
        return found["loss"], found

    compare = partial(jax.value_and_grad, argnums=(0, 1), has_aux=True)
    (wanted, parts), gradients = compare(partial(plain, **options))(NORMED, KERNEL)
    (found, told), own = jax.jit(compare(loss))(NORMED, KERNEL)
    close((found, own), (wanted, gradients))
    assert float(told["accuracy"]) == pytest.approx(float(parts["accuracy"]), abs=1e-7)


def _largest(jaxpr):
    """Return the most elements of an array inside a program."""
    sizes = [v.aval.size for one in jaxpr.eqns for v in one.outvars if hasattr(v.aval, "size")]
    inner = [p for one in jaxpr.eqns for p in jaxprs_in_params(one.params)]
    return max([*sizes, *map(_largest, inner)], default=0)


def test_logits_of_all_tokens_are_never_held():
    options = OPTIONS[0]
    own, other = (
        jax.make_jaxpr(jax.grad(lambda x, f=f: f(x, KERNEL, **options)[0]))(NORMED).jaxpr
        for f in (partial(chunked, chunk=2), plain)
    )
    tokens = ROWS * LENGTH
    assert _largest(other) >= tokens * VOCABULARY
    assert _largest(own) < tokens * VOCABULARY / 3
