"""Deliberately naive decoding: prompt, prefill, cached steps, choosing tokens, generation.

Written from SPEC.md chapter 14 as plain loops over float64, sharing nothing with the reference but
records and configuration. Shapes use the letters of chapter 2.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from naive_layers import Attended, Vector
from naive_model import Model, forward
from numpy import ndarray

from openmoe_spec.records import Cache

Batch = Mapping[str, ndarray]
Cached = list[list[Attended]]
"""Keys and values [n][B], each [slots][H][N], not rotated."""


def prompt(batch: Batch) -> tuple[list[list[int]], list[int]]:
    """Return the prompt rows [B][L] and the length of each."""
    rows, lengths = [], []
    for ids, marks in zip(
        batch["decoder_input_tokens"].tolist(),
        batch["decoder_causal_attention"].tolist(),
        strict=True,
    ):
        row = [token if mark else 0 for token, mark in zip(ids, marks, strict=True)]
        rows.append(row)
        lengths.append(sum(1 for token in row[1:] if token != 0))
    return rows, lengths


def prefill(model: Model, batch: Batch) -> Cached:
    """Return the keys and values that one pass over the prompts leaves in the cache."""
    rows, lengths = prompt(batch)
    result = forward(
        model,
        {
            "decoder_input_tokens": np.array(rows),
            "decoder_target_tokens": batch["decoder_causal_attention"],
        },
    )
    return [
        [
            Attended([], one.keys[:length], one.values[:length])
            for one, length in zip(layer, lengths, strict=True)
        ]
        for layer in result.attended
    ]


def step(model: Model, cached: Cached, tokens: Sequence[int]) -> tuple[list[Vector], Cached]:
    """Return the logits [B][V] of the next token of each row, and the cache with it."""
    batch = {"decoder_input_tokens": np.array([[token] for token in tokens])}
    result = forward(model, batch, earlier=cached)
    return [row[0] for row in result.logits.tolist()], result.attended


def as_cache(model: Model, cached: Cached, length: int) -> Cache:
    """Return a cache in its common form, with zeros in slots not filled yet."""
    c = model.configuration
    heads = c.num_heads if c.num_kv_heads is None else c.num_kv_heads
    keys = np.zeros((len(cached), len(cached[0]), length, heads, c.head_dim))
    values = np.zeros(keys.shape)
    index = np.zeros(len(cached[0]), np.int32)
    for i, layer in enumerate(cached):
        for b, one in enumerate(layer):
            index[b] = len(one.keys)
            for slot in range(len(one.keys)):
                keys[i, b, slot] = one.keys[slot]
                values[i, b, slot] = one.values[slot]
    return Cache(keys, values, index)


# ---------------------------------------------------------------------------- choosing a token


def sample(
    logits: Sequence[float],
    *,
    noise: Sequence[float] | None = None,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 0.0,
) -> int:
    """Return the token of one row of logits [V]; `noise` is the draw."""
    if temperature <= 1e-4:
        return _first_largest(logits)
    scaled = [value / temperature for value in logits]
    least = -math.inf
    if top_k > 0:
        least = sorted(scaled, reverse=True)[top_k - 1]
    if top_p > 0:
        largest = max(scaled)
        powers = [math.exp(value - largest) for value in scaled]
        total = math.fsum(powers)
        taken: list[float] = []
        for value in sorted(scaled, reverse=True):
            if math.fsum(taken) >= top_p * total:
                break
            taken.append(math.exp(value - largest))
            least = value
    drawn = [0.0] * len(scaled) if noise is None else noise
    return _first_largest(
        [
            value + more if value >= least else -math.inf
            for value, more in zip(scaled, drawn, strict=True)
        ]
    )


def _first_largest(values: Sequence[float]) -> int:
    best = 0
    for place, value in enumerate(values):
        if value > values[best]:
            best = place
    return best


def generate(
    model: Model,
    batch: Batch,
    *,
    noise: ndarray | None = None,
    temperature: float = 0.0,
    top_k: int = 0,
    top_p: float = 0.0,
) -> list[list[int]]:
    """Return the new ids [B][L] of each row, zeros behind them; `noise` is [B, steps, V]."""
    rows, lengths = prompt(batch)
    length = len(rows[0])
    cached = prefill(model, batch)
    made: list[list[int]] = [[] for _ in rows]
    ended = [False] * len(rows)
    tokens = [row[n] for row, n in zip(rows, lengths, strict=True)]
    steps = 0
    while not all(ended):
        logits, cached = step(model, cached, tokens)
        for b, row in enumerate(logits):
            drawn = None if noise is None else noise[b, steps].tolist()
            token = sample(row, noise=drawn, temperature=temperature, top_k=top_k, top_p=top_p)
            place = lengths[b] + len(made[b]) + 1
            given = rows[b][place] if place < length else 0
            tokens[b] = 0 if ended[b] else given or token
            if not ended[b]:
                # An id of the prompt that stands behind an id 0 is kept, and ends nothing.
                made[b].append(tokens[b])
                ended[b] = (token == 1 and not given) or place == length
        steps += 1
    return [ids + [0] * (length - len(ids)) for ids in made]
