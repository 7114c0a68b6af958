"""SPEC.md "Dialects": cached calls and greedy generation of the published PyTorch port, as they are.

Every call routes only its own tokens, in one group. Keys are rotated by slot; a query's position is
taken from its position id when it is alone, and counted from 0 again otherwise.
Line-comparable to modeling_openmoe.py@95e3378e.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from jaxtyping import Float, Int
from numpy import ndarray

from openmoe_reference import batches, dialects, model
from openmoe_reference.arguments import (
    check_array,
    check_choice,
    check_integer,
    check_within,
)
from openmoe_reference.decoding import check_cache
from openmoe_spec.config import Configuration
from openmoe_spec.errors import RejectedError
from openmoe_spec.records import Cache, ForwardResult

POSITIONS = ("cache_index", "position_ids", "position_ids_plus_one")
"""Where a cached call's query is rotated: the options of the point `decode_position`."""


def empty_cache(configuration: Configuration, batch: int, length: int) -> Cache:
    """Return a cache of `length` slots that holds nothing."""
    c = configuration
    shape = (c.num_layers, batch, length, c.key_value_heads, c.head_dim)
    zeros = np.zeros(shape, np.float32)
    return Cache(zeros, zeros, np.zeros(batch, np.int32))


def cached_call(
    parameters: Mapping[str, ndarray],
    tokens: Int[ndarray, "B Q"],
    cache: Cache,
    configuration: Configuration,
    *,
    attention_mask: Int[ndarray, "B L"] | None = None,
    position_ids: Int[ndarray, "B Q"] | None = None,
    call: model.Call | None = None,
    rules: model.Rules | None = None,
    decode_position: str = "position_ids",
) -> tuple[Cache, ForwardResult]:
    """Return logits [B, Q, V] of Q more tokens a row, and the cache that holds them.

    Without position ids they count on from the cache. `attention_mask` covers all slots so far.
    Errors: RejectedError DEC-09 on shapes, a full cache, a position outside the rotary table.
    Spec: DIAL-02. Source: modeling_openmoe.py::OpenMoeAttention.forward.
    """
    rules = dialects.rules("torch_port") if rules is None else rules
    check_choice("decode_position", decode_position, POSITIONS, "DEC-09")
    batches.check_parameters(
        parameters, configuration, doubled_gate=rules.activations[0] == "swiglu"
    )
    check_cache(cache, configuration)
    sizes = {"B": len(cache.index)}
    check_array("tokens", tokens, "B Q", sizes, "DEC-09", kind="i")
    check_within("tokens", tokens, "DEC-09", 0, configuration.vocabulary_size - 1)
    if position_ids is not None:
        check_array("position_ids", position_ids, "B Q", sizes, "DEC-09", kind="i")
    rows, count = tokens.shape
    past = int(cache.index[0])
    length = past + count
    if length > cache.keys.shape[2]:
        raise RejectedError(
            "tokens", "DEC-09", f"{length} slots do not fit in {cache.keys.shape[2]}"
        )
    place = past + np.arange(count)
    causal = np.broadcast_to(place[:, None] >= np.arange(length), (rows, count, length))
    reasons: tuple[ndarray, ...] = (causal,)
    if attention_mask is not None:
        sizes["L"] = length
        check_array("attention_mask", attention_mask, "B L", sizes, "DEC-09", kind="i")
        reasons = causal, np.broadcast_to(attention_mask[:, None, :] > 0, causal.shape)
    filled = Cache(cache.keys[:, :, :length], cache.values[:, :, :length], cache.index)
    positions = _positions(place, rows, position_ids, decode_position, length)
    call = replace(call or model.Call(), positions=positions, cache=filled)
    bias = rules.bias(reasons)
    passed = model.run(parameters, tokens, bias, configuration, call=call, rules=rules)
    keys, values = cache.keys.astype(passed.keys.dtype), cache.values.astype(passed.keys.dtype)
    keys[:, :, :length], values[:, :, :length] = passed.keys, passed.values
    return Cache(keys, values, cache.index + np.int32(count)), passed.result


def _positions(
    place: ndarray, rows: int, position_ids: ndarray | None, rule: str, length: int
) -> ndarray:
    if rule == "cache_index":
        return np.broadcast_to(place, (rows, len(place)))
    if len(place) > 1:
        return np.arange(len(place))  # from 0 again, wherever the tokens stand
    given = np.broadcast_to(place, (rows, 1)) if position_ids is None else position_ids
    given = given + (rule == "position_ids_plus_one")
    if given.min() < 0 or given.max() >= length:  # the table has as many rows as there are keys
        raise RejectedError(
            "position_ids",
            "DEC-09",
            f"must be in 0..{length - 1}, got {given.min()}..{given.max()}",
        )
    return np.asarray(given)


def incremental(
    parameters: Mapping[str, ndarray],
    batch: Mapping[str, ndarray],
    configuration: Configuration,
    *,
    prefill: int,
    chunk: int = 1,
    positions_from_mask: bool = False,
    call: model.Call | None = None,
    rules: model.Rules | None = None,
    decode_position: str = "position_ids",
) -> tuple[Float[ndarray, "B L V"], list[ForwardResult]]:
    """Return logits of all positions when given ids are fed in calls of `prefill`, then `chunk`.

    With `positions_from_mask` position ids are the running count of the mask, as its `generate`
    prepares them. Spec: DIAL-02. Source: modeling_openmoe.py::prepare_inputs_for_generation.
    """
    rules = dialects.rules("torch_port") if rules is None else rules
    batches.check_parameters(
        parameters, configuration, doubled_gate=rules.activations[0] == "swiglu"
    )
    sizes = batches.check_batch(batch, configuration)
    length = sizes["L"]
    prefill = check_integer("prefill", prefill, "DEC-09", least=1, most=length)
    chunk = check_integer("chunk", chunk, "DEC-09", least=1)
    ids, mask = batch["decoder_input_tokens"], batch.get("attention_mask")
    cache = empty_cache(configuration, sizes["B"], length)
    results: list[ForwardResult] = []
    first = 0
    while first < length:
        last = min(first + (chunk if first else prefill), length)
        seen = None if mask is None else mask[:, :last]
        places = counted(seen)[:, first:] if positions_from_mask and seen is not None else None
        cache, result = cached_call(
            parameters,
            ids[:, first:last],
            cache,
            configuration,
            attention_mask=seen,
            position_ids=places,
            call=call,
            rules=rules,
            decode_position=decode_position,
        )
        results.append(result)
        first = last
    return np.concatenate([result.logits for result in results], axis=1), results


def counted(mask: Int[ndarray, "B L"]) -> Int[ndarray, "B L"]:
    """Return position ids that count the visible tokens from 0; hidden ones stand at 1."""
    return np.where(mask > 0, mask.cumsum(axis=1) - 1, 1)


def greedy(
    parameters: Mapping[str, ndarray],
    ids: Int[ndarray, "B L"],
    configuration: Configuration,
    *,
    new_tokens: int,
    attention_mask: Int[ndarray, "B L"] | None = None,
    use_cache: bool = True,
    end: int = 1,
    padding: int = 0,
    rules: model.Rules | None = None,
    decode_position: str = "position_ids",
) -> Int[ndarray, "B M"]:
    """Return prompt and best next ids, one after another; a row that ended goes on with padding.

    Without a mask, ids equal to `padding` are hidden, the start token among them. The answer may
    then depend on `use_cache`: a recorded defect.
    Spec: DIAL-02. Source: transformers 4.36.2 GenerationMixin over modeling_openmoe.py.
    """
    new_tokens = check_integer("new_tokens", new_tokens, "DEC-09", least=1)
    sizes: dict[str, int] = {}
    check_array("ids", ids, "B L", sizes, "DEC-09", kind="i")
    check_within("ids", ids, "DEC-09", 0, configuration.vocabulary_size - 1)
    if attention_mask is not None:
        check_array("attention_mask", attention_mask, "B L", sizes, "DEC-09", kind="i")
    if attention_mask is None:
        hides = (ids == padding).any() and padding != end
        attention_mask = (ids != padding if hides else np.ones(ids.shape, bool)).astype(np.int32)
    options = {"rules": rules, "decode_position": decode_position}
    length = ids.shape[1] + new_tokens
    open_ = np.ones(len(ids), bool)
    cache = empty_cache(configuration, len(ids), length)
    for _ in range(new_tokens):
        past = int(cache.index[0]) if use_cache else 0
        fresh = cache if use_cache else empty_cache(configuration, len(ids), length)
        cache, result = cached_call(
            parameters,
            ids[:, past:],
            fresh,
            configuration,
            attention_mask=attention_mask,
            position_ids=counted(attention_mask)[:, past:],
            **options,  # type: ignore[arg-type]
        )
        best = np.where(open_, result.logits[:, -1].argmax(axis=-1), padding)
        ids = np.concatenate([ids, best[:, None].astype(ids.dtype)], axis=1)
        attention_mask = np.pad(attention_mask, ((0, 0), (0, 1)), constant_values=1)
        open_ &= best != end
        if not open_.any():
            break
    return ids
