"""Prefill, cached steps, and the loop that generates; all of it runs under one `jit`. Spec: DEC-01..DEC-09."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from openmoe_production import attention, batches, calling, model, sampling
from openmoe_production.arguments import (
    require_count,
    require_floats,
    require_integers,
    require_shape,
)
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Cache, ForwardResult

END = 1
"""The id that ends a sequence."""

Tree = Mapping[str, Any]


def prompt(batch: Tree) -> tuple[jax.Array, jax.Array]:
    """Return inputs [B, L] cut to the prompt, and how many tokens [B] follow the start token.

    Ids of 0 inside a prompt are not counted, as where it was trained.
    Errors: RejectedError DEC-09 on a batch without causal attention.
    Spec: DEC-01. Source: t5x models.py::DecoderOnlyModel.predict_batch_with_aux.
    """
    sizes: dict[str, int | None] = {"B": None, "L": None}
    for name in ("decoder_input_tokens", "decoder_causal_attention"):
        if name not in batch:
            raise RejectedError("batch", "DEC-09", f"must hold {name}")
        place, array = f"batch[{name!r}]", batch[name]
        require_shape(place, array, sizes, "DEC-09")
        require_integers(place, array, "DEC-09", least=-(2**31), most=2**31 - 1)
        sizes = dict(zip("BL", array.shape, strict=True))
    inputs = jnp.asarray(batch["decoder_input_tokens"] * batch["decoder_causal_attention"])
    return inputs, (inputs[:, 1:] != 0).sum(axis=1, dtype=jnp.int32)


def prefill_batch(batch: Tree, configuration: Configuration) -> dict[str, jax.Array]:
    """Return the batch of a prefill, in which the prompt's mask stands for the targets.

    Values are looked at outside a trace, so this comes before a jitted call.
    Errors: RejectedError DEC-09, MODEL-10. Spec: DEC-02.
    """
    inputs, _ = prompt(batch)
    seen = batch["decoder_causal_attention"]
    found = {
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": seen,
        "decoder_causal_attention": seen,
    }
    batches.require_batch(found, configuration)
    return found


def prefill(
    parameters: Tree, batch: Tree, configuration: Configuration, **options: Any
) -> tuple[Cache, ForwardResult]:
    """Return the cache after one pass over the prompt, all L positions of it.

    The last prompt token is NOT cached: it is fed again as the first step. The pass may drop tokens.
    Options here and below are those of `model.run`: dtypes and expert replicas.
    Errors: RejectedError DEC-09, MODEL-09, MODEL-10.
    Spec: DEC-01, DEC-02, DEC-03. Source: t5x models.py::DecoderOnlyModel.predict_batch_with_aux.
    """
    batches.require_parameters(parameters, configuration)
    inputs, index = prompt(batch)
    visible = attention.visible_by_targets(
        prefill_batch(batch, configuration),
        bidirectional=configuration.inputs_bidirectional_attention,
    )
    passed = model.run(parameters, inputs, visible, configuration, **options)
    cached = jnp.arange(inputs.shape[1]) < index[:, None]  # [B, L]
    keys, values = (
        jnp.where(cached[..., None, None], one, 0) for one in (passed.keys, passed.values)
    )
    return Cache(keys, values, index), passed.result


def step(
    parameters: Tree, tokens: jax.Array, cache: Cache, configuration: Configuration, **options: Any
) -> tuple[Cache, ForwardResult]:
    """Return logits [B, 1, V] after one more token [B] a row, and the cache that holds it.

    A query sees the slots up to its own, without a padding mask. A row whose cache is full keeps
    nothing: its logits have no meaning.
    Errors: RejectedError DEC-09 on tokens or a cache of other shapes, MODEL-09.
    Spec: DEC-04, DEC-05, DEC-06.
    Source: flaxformer dense_attention.py::MultiHeadDotProductAttention@c5bdc41.
    """
    length = _require_cache(cache, configuration)
    require_shape("tokens", tokens, {"B": cache.index.shape[0]}, "DEC-09")
    most = configuration.vocabulary_size - 1
    require_integers("tokens", tokens, "DEC-09", least=0, most=most)
    batches.require_parameters(parameters, configuration)
    place = jnp.minimum(cache.index, length - 1)[:, None]  # [B, 1]
    visible = jnp.arange(length) <= cache.index[:, None, None]  # [B, 1, L]
    passed = model.run(
        parameters, tokens[:, None], visible, configuration, positions=place, cache=cache, **options
    )
    return Cache(passed.keys, passed.values, cache.index + 1), passed.result


def _require_cache(cache: Cache, configuration: Configuration) -> int:
    """Refuse a cache that is not one of this model; return its length. Spec: DEC-09."""
    if not isinstance(cache, Cache):
        raise RejectedError("cache", "DEC-09", f"must be a Cache, got {type(cache).__name__}")
    c = configuration
    sizes = {"n": c.num_layers, "B": None, "L": None, "H": c.key_value_heads, "N": c.head_dim}
    require_shape("cache.keys", cache.keys, sizes, "DEC-09")
    sizes = dict(zip(sizes, cache.keys.shape, strict=True))
    require_shape("cache.values", cache.values, sizes, "DEC-09")
    for name in ("keys", "values"):
        require_floats(f"cache.{name}", getattr(cache, name), "DEC-09")
    require_shape("cache.index", cache.index, {"B": sizes["B"]}, "DEC-09")
    require_integers("cache.index", cache.index, "DEC-09", least=0, most=2**31 - 1)
    return cache.keys.shape[2]


def forced_steps(
    parameters: Tree, batch: Tree, configuration: Configuration, *, steps: int, **options: Any
) -> tuple[jax.Array, Cache, Cache]:
    """Return logits [B, S, V] of steps fed with the batch's own ids, and the caches around them.

    Step t of row b is fed decoder_input_tokens[b, n_b + t].
    Errors: as `prefill` and `step`; RejectedError DEC-09 on more steps than there is room for.
    Spec: DEC-04, DEC-06.
    """
    ids = require_steps(batch, configuration, steps)
    first, _ = prefill(parameters, batch, configuration, **options)

    def one(cache: Cache, tokens: jax.Array) -> tuple[Cache, jax.Array]:
        cache, result = step(parameters, tokens, cache, configuration, **options)
        return cache, result.logits[:, 0]

    tokens = _taken(ids, first.index[:, None] + jnp.arange(steps))  # [B, S]
    last, logits = lax.scan(one, first, tokens.T)
    return logits.swapaxes(0, 1), first, last


def require_steps(batch: Tree, configuration: Configuration, steps: int) -> jax.Array:
    """Return the ids that steps are fed with, or refuse them, or more steps than there is room for.

    Values are looked at outside a trace, so this comes before a jitted call. Spec: DEC-09.
    """
    prefill_batch(batch, configuration)
    ids, start = batch["decoder_input_tokens"], prompt(batch)[1]
    room = None if isinstance(start, jax.core.Tracer) else ids.shape[1] - int(start.max())
    require_count("steps", steps, "DEC-09", most=room)
    most = configuration.vocabulary_size - 1
    require_integers("batch['decoder_input_tokens']", ids, "DEC-09", least=0, most=most)
    return jnp.asarray(ids)


class Generation(NamedTuple):
    """A batch whose prompts are being continued.

    cache      keys and values so far; its index is the place of `tokens`
    sequences  int32 [B, L + 2], prompts and what was made; ended rows write into the last slot
    start      int32 [B], where a prompt's last token stands
    ends       int32 [B], how many ids of END the prompt holds
    tokens     int32 [B], made last, and fed next; 0 where a row has ended
    ended      bool [B]
    number     int32 [], steps made
    """

    cache: Cache
    sequences: jax.Array
    start: jax.Array
    ends: jax.Array
    tokens: jax.Array
    ended: jax.Array
    number: jax.Array


def begin(
    parameters: Tree, batch: Tree, configuration: Configuration, **options: Any
) -> Generation:
    """Return a generation before its first step, which feeds each row's last prompt token.

    Errors: as `prefill`. Spec: DEC-07.
    """
    cache, _ = prefill(parameters, batch, configuration, **options)
    inputs, start = prompt(batch)
    sequences = jnp.pad(inputs.astype(jnp.int32), ((0, 0), (0, 2)))
    return Generation(
        cache=cache,
        sequences=sequences,
        start=start,
        ends=(sequences == END).sum(axis=1),
        tokens=_taken(sequences, start[:, None])[:, 0],
        ended=jnp.zeros(start.shape, bool),
        number=jnp.zeros((), jnp.int32),
    )


def advance(
    parameters: Tree,
    generation: Generation,
    configuration: Configuration,
    choose: sampling.Choose,
    **options: Any,
) -> Generation:
    """Return a generation after one more step; a row that has ended still competes for experts.

    An id of the prompt that stands behind an id 0 is kept and fed, not replaced.
    Errors: as `step`. Spec: DEC-07. Source: t5x decoding.py::temperature_sample.
    """
    _, sequences, start, ends, tokens, ended, number = generation
    place = generation.cache.index
    cache, passed = step(parameters, tokens, generation.cache, configuration, **options)
    length = cache.keys.shape[2]
    behind = jnp.minimum(place, length) + 1
    given = _taken(sequences, behind[:, None])[:, 0]  # an id of the prompt, or 0
    made = jnp.where(given != 0, given, choose(passed.logits[:, 0], number))
    tokens = jnp.where(ended, 0, made)
    sequences = sequences.at[jnp.arange(len(start)), behind].set(tokens)
    ended = ended | ((sequences == END).sum(axis=1) > ends) | (place >= length - 1)
    return Generation(cache, sequences, start, ends, tokens, ended, number + 1)


def generate(
    parameters: Tree,
    batch: Tree,
    configuration: Configuration,
    choose: sampling.Choose = sampling.BEST,
    **options: Any,
) -> jax.Array:
    """Return generated ids [B, L] with the prompt removed: each row's up to its end, then zeros.

    Errors: as `begin`. Spec: DEC-07.
    Source: t5x decoding.py::temperature_sample, models.py::remove_prefix.
    """

    def advanced(generation: Generation) -> Generation:
        return advance(parameters, generation, configuration, choose, **options)

    made = lax.while_loop(
        lambda generation: ~generation.ended.all(),
        advanced,
        begin(parameters, batch, configuration, **options),
    )
    length = made.sequences.shape[1] - 2
    places = jnp.arange(length) + made.start[:, None] + 1  # [B, L]: from behind the prompt
    return jnp.where(places <= length, _taken(made.sequences, jnp.minimum(places, length)), 0)


def stream(
    parameters: Tree,
    batch: Tree,
    configuration: Configuration,
    choose: sampling.Choose = sampling.BEST,
    **options: Any,
) -> Iterator[np.ndarray]:
    """Yield the tokens [B] of each step as soon as they are made, until every row has ended.

    Errors: as `begin`; RejectedError DEC-10 when logits are not finite. Spec: DEC-07.
    """
    prefill_batch(batch, configuration)
    fixed = {"configuration": configuration, **options}
    jit = partial(jax.jit, compiler_options=calling.options(plain=False))
    generation = jit(partial(begin, **fixed))(parameters, batch)
    ahead = jit(partial(advance, choose=choose, **fixed), donate_argnames="generation")
    while not generation.ended.all():
        generation = ahead(parameters, generation)
        tokens = np.asarray(generation.tokens)
        sampling.require_tokens(tokens)
        yield tokens


def _taken(sequences: jax.Array, places: jax.Array) -> jax.Array:
    return jnp.take_along_axis(sequences, places, axis=1)
