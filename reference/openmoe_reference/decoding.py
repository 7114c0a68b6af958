"""SPEC.md "Decoding": prefill, cached steps, and the loop that generates.

Line-comparable to t5x models.py::DecoderOnlyModel, decoding.py@3234135 and flaxformer
dense_attention.py@c5bdc41.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from openmoe_reference import batches, masks, model
from openmoe_reference.arguments import check_array, check_integer, check_within
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Cache, ForwardResult

END = 1
"""The id that ends a sequence."""


def prompt(batch: Mapping[str, ndarray]) -> tuple[Int[ndarray, "B L"], Int[ndarray, " B"]]:
    """Return a batch's inputs cut to the prompt, and how many tokens follow the start token.

    Ids of 0 inside a prompt are not counted, as where it was trained.
    Errors: RejectedError DEC-09 on a batch without causal attention.
    Spec: DEC-01. Source: models.py::DecoderOnlyModel.predict_batch_with_aux.
    """
    sizes: dict[str, int] = {}
    for name in ("decoder_input_tokens", "decoder_causal_attention"):
        if name not in batch:
            raise RejectedError("batch", "DEC-09", f"must hold {name}")
        check_array(f"batch[{name!r}]", batch[name], "B L", sizes, "DEC-09", kind="i")
    inputs = batch["decoder_input_tokens"] * batch["decoder_causal_attention"]
    return inputs, (inputs[:, 1:] != 0).sum(axis=1).astype(np.int32)


def prefill(
    parameters: Mapping[str, ndarray],
    batch: Mapping[str, ndarray],
    configuration: Configuration,
    *,
    call: model.Call | None = None,
    rules: model.Rules | None = None,
    end: Int[ndarray, " B"] | None = None,
) -> tuple[Cache, ForwardResult]:
    """Return the cache after one pass over the prompt, all L positions of it.

    The last prompt token is NOT cached unless `end` says that more positions are: it is fed again as
    the first step. The pass may drop tokens.
    Errors: RejectedError DEC-09, MODEL-09, MODEL-10.
    Spec: DEC-01, DEC-02, DEC-03. Source: models.py::DecoderOnlyModel.predict_batch_with_aux.
    """
    rules = model.Rules() if rules is None else rules
    inputs, index = prompt(batch)
    index = index if end is None else end
    fed = {
        "decoder_input_tokens": inputs,
        "decoder_target_tokens": batch["decoder_causal_attention"],  # stands for the targets
        "decoder_causal_attention": batch["decoder_causal_attention"],
    }
    batches.check_parameters(
        parameters, configuration, doubled_gate=rules.activations[0] == "swiglu"
    )
    batches.check_batch(fed, configuration)
    reasons = rules.visible(fed, bidirectional=configuration.inputs_bidirectional_attention)
    bias = rules.bias(reasons)
    call = replace(call or model.Call(), training=False)
    passed = model.run(parameters, inputs, bias, configuration, call=call, rules=rules)
    cached = (np.arange(inputs.shape[1]) < index[:, None])[None, :, :, None, None]
    zero = np.zeros((), passed.keys.dtype)
    keys, values = (np.where(cached, one, zero) for one in (passed.keys, passed.values))
    return Cache(keys, values, index), passed.result


def step(
    parameters: Mapping[str, ndarray],
    tokens: Int[ndarray, " B"],
    cache: Cache,
    configuration: Configuration,
    *,
    call: model.Call | None = None,
    rules: model.Rules | None = None,
) -> tuple[Cache, ForwardResult]:
    """Return logits [B, 1, V] after one more token a row, and the cache that holds it.

    A query sees the slots up to its own, without a padding mask; keys are cached un-rotated and all
    are rotated in each step. A row whose cache is full keeps nothing: its logits have no meaning.
    Errors: RejectedError DEC-09 on tokens or a cache of other shapes, MODEL-09.
    Spec: DEC-04, DEC-05, DEC-06. Source: dense_attention.py::MultiHeadDotProductAttention.
    """
    rules = model.Rules() if rules is None else rules
    length = check_cache(cache, configuration)
    check_array("tokens", tokens, "B", {"B": len(cache.index)}, "DEC-09", kind="i")
    check_within("tokens", tokens, "DEC-09", 0, configuration.vocabulary_size - 1)
    batches.check_parameters(
        parameters, configuration, doubled_gate=rules.activations[0] == "swiglu"
    )
    place = np.minimum(cache.index, length - 1)[:, None]  # [B, 1]
    seen = np.arange(length) <= cache.index[:, None, None]  # [B, 1, L]
    call = replace(call or model.Call(), training=False, positions=place, cache=cache)
    bias = masks.finite_bias((seen,))
    passed = model.run(parameters, tokens[:, None], bias, configuration, call=call, rules=rules)
    return Cache(passed.keys, passed.values, cache.index + 1), passed.result


def check_cache(cache: object, configuration: Configuration) -> int:
    """Refuse a cache that is not one of this model; return its length. Spec: DEC-09."""
    if not isinstance(cache, Cache):
        raise RejectedError("cache", "DEC-09", f"must be a Cache, got {type(cache).__name__}")
    c = configuration
    sizes = {"n": c.num_layers, "H": c.key_value_heads, "N": c.head_dim}
    check_array("cache.keys", cache.keys, "n B L H N", sizes, "DEC-09")
    check_array("cache.values", cache.values, "n B L H N", sizes, "DEC-09")
    check_array("cache.index", cache.index, "B", sizes, "DEC-09", kind="i")
    check_within("cache.index", cache.index, "DEC-09", 0, np.inf)
    return sizes["L"]


def forced_steps(
    parameters: Mapping[str, ndarray],
    batch: Mapping[str, ndarray],
    configuration: Configuration,
    *,
    steps: int,
    call: model.Call | None = None,
    rules: model.Rules | None = None,
) -> tuple[Float[ndarray, "B S V"], Cache, Cache]:
    """Return logits of `steps` steps behind the prompt, fed with the batch's ids, and both caches.

    Step t of row b is fed decoder_input_tokens[b, n_b + t].
    Errors: as `prefill` and `step`; RejectedError DEC-09 on more steps than the cache has room for.
    Spec: DEC-04, DEC-06. Source: decoding.py::temperature_sample, with the ids given.
    """
    first, _ = prefill(parameters, batch, configuration, call=call, rules=rules)
    ids, cache, logits = batch["decoder_input_tokens"], first, []
    room = ids.shape[1] - int(cache.index.max())
    for _ in range(check_integer("steps", steps, "DEC-09", least=1, most=room)):
        tokens = ids[np.arange(len(ids)), cache.index]
        cache, passed = step(parameters, tokens, cache, configuration, call=call, rules=rules)
        logits.append(passed.logits[:, 0])
    return np.stack(logits, axis=1), first, cache


Choose = Callable[[Float[ndarray, "B V"], int], Int[ndarray, " B"]]
"""Picks a token a row from logits and the number of the step."""


def generate(
    parameters: Mapping[str, ndarray],
    batch: Mapping[str, ndarray],
    configuration: Configuration,
    choose: Choose,
    *,
    call: model.Call | None = None,
    rules: model.Rules | None = None,
    feed_again: bool = True,
) -> Int[ndarray, "B L"]:
    """Return generated ids with the prompt removed: each row's up to its end, then zeros.

    A row ends with a new id 1 or when L is reached; what it emits afterwards is 0. An id of the prompt
    that stands behind an id 0 is kept and fed, not replaced. A row that has ended is still fed and still competes for experts until all have. With `feed_again` False the
    prompt's last token is cached too, and the prefill's logits there give the first new id (DIAL-02).
    Errors: as `prefill` and `step`.
    Spec: DEC-07. Source: decoding.py::temperature_sample, models.py::remove_prefix.
    """
    inputs, start = prompt(batch)
    end = start if feed_again else start + 1
    cache, passed = prefill(parameters, batch, configuration, call=call, rules=rules, end=end)
    rows, length = np.arange(len(inputs)), inputs.shape[1]
    # One slot beyond the end takes what ended rows would write.
    sequences = np.pad(inputs, ((0, 0), (0, 2)))
    ends = (sequences == END).sum(axis=1)
    ended, place, tokens = np.zeros(len(inputs), bool), start.copy(), sequences[rows, start]
    logits, number = passed.logits[rows, start], 0
    while not ended.all():
        if feed_again or number:
            cache, passed = step(parameters, tokens, cache, configuration, call=call, rules=rules)
            logits = passed.logits[:, 0]
        place = np.minimum(place, length)
        given = sequences[rows, place + 1]
        tokens = np.where(given != 0, given, choose(logits, number))
        tokens = np.where(ended, 0, tokens)
        sequences[rows, place + 1] = tokens
        ended = ended | ((sequences == END).sum(axis=1) > ends) | (place >= length - 1)
        place, number = place + 1, number + 1
    made = np.arange(length) + start[:, None] + 1  # [B, L]: the first place behind the prompt
    return np.where(made <= length, sequences[rows[:, None], np.minimum(made, length)], 0)
