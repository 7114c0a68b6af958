"""What layers, attention and feed-forwards of a model refuse."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from rejections import (
    LEGAL,
    NOT_COUNTS,
    NOT_WORDS,
    Row,
    changed,
    rows_of_arrays,
    rows_of_mapping,
    rows_of_sizes,
    rows_of_values,
)

from openmoe_reference import masks

B, L, D, V, F, H, N = 2, 3, 5, 7, 2, 2, 4

_generator = np.random.default_rng(1)


def normal(*shape: int) -> np.ndarray:
    """Return float32 numbers of size 1."""
    return _generator.normal(size=shape).astype(np.float32)


IDS = np.array([[0, 3, 4], [0, 5, 0]], np.int32)
TARGETS = np.array([[3, 4, 1], [5, 0, 0]], np.int32)
SEGMENTS = np.array([[1, 1, 2], [1, 0, 0]], np.int32)
SEEN = np.tril(np.ones((B, L, L), bool))
BIAS = masks.finite_bias((SEEN,))
KERNELS = {name: normal(D, H * N) for name in ("query", "key", "value")} | {"out": normal(H * N, D)}
FEED_FORWARD = {"wi_0": normal(1, D, 2 * F), "wi_1": normal(1, D, F), "wo": normal(1, F, D)}
ACTIVATIONS = ("swiglu", "linear")
HEADS = normal(B, L, H, N)

LEGAL.update(
    {
        "layers.embed": {"table": normal(V, D), "ids": IDS, "dtype": "float32"},
        "layers.rms_norm": {"inputs": normal(B, L, D), "scale": normal(D), "dtype": "float32"},
        "layers.token_mask": {"input_ids": IDS},
        "layers.every_token": {"input_ids": IDS},
        "layers.output_logits": {
            "inputs": normal(B, L, D),
            "kernel": normal(D, V),
            "mask": IDS > 0,
            "dtype": "float32",
        },
        "masks.decoder_mask": {
            "target_ids": TARGETS,
            "segment_ids": SEGMENTS,
            "causal_attention": IDS,
        },
        "masks.check_segments": {"segment_ids": SEGMENTS, "sizes": {"B": B, "L": L}},
        "attention.rotary_tables": {"positions": np.arange(L), "head_dim": N},
        "attention.rotate": {"heads": HEADS, "positions": np.arange(L)},
        "attention.attention": {
            "inputs": normal(B, L, D),
            "kernels": KERNELS,
            "bias": BIAS,
            "num_heads": H,
            "dtype": "float32",
            "positions": np.arange(L),
            "cache": None,
            "scale": "one",
            "softmax_dtype": "activation",
        },
        "attention.check_attention": {
            "inputs": normal(B, L, D),
            "kernels": KERNELS,
            "num_heads": H,
        },
        "attention.attend": {
            "queries": HEADS,
            "keys": HEADS,
            "values": normal(B, L, H, N),
            "bias": BIAS,
            "scale": "one",
            "softmax_dtype": "activation",
        },
        "masks.visible_by_targets": {
            "batch": {
                "decoder_target_tokens": TARGETS,
                "decoder_segment_ids": SEGMENTS,
                "decoder_causal_attention": IDS,
            },
            "bidirectional": True,
        },
        "masks.visible_by_user": {
            "batch": {"decoder_input_tokens": IDS, "attention_mask": IDS},
            "bidirectional": False,
        },
        "masks.finite_bias": {"reasons": (SEEN,)},
        "masks.first_key_open_bias": {"reasons": (SEEN,)},
        "dtypes.matmul": {"x": normal(L, D), "w": normal(D, F), "kind": np.float32},
        "feed_forward.feed_forward": {
            "inputs": normal(1, L, D),
            "kernels": FEED_FORWARD,
            "activations": ACTIVATIONS,
            "dtype": "float32",
        },
        "feed_forward.check_feed_forward": {
            "inputs": normal(1, L, D),
            "kernels": FEED_FORWARD,
            "activations": ACTIVATIONS,
        },
        "feed_forward.projections": {"activations": ACTIVATIONS},
        "feed_forward.silu": {"x": normal(L)},
    }
)

NOT_DTYPES = NOT_WORDS | {"float16": "float16"}
NOT_ACTIVATIONS = {
    "an unknown one": ("swiglu", "relu"),
    "a number": (1, "linear"),
    "nothing": None,
    "no activation": (),
}


def layer_rows() -> Iterator[Row]:
    """Yield the illegal calls of single layers."""
    clause = ("LAYER-08",)
    yield from rows_of_arrays("layers.embed", ("table", "ids"), clause)
    yield from rows_of_arrays("layers.rms_norm", ("inputs",), clause, any_rank=True)
    yield from rows_of_arrays("layers.rms_norm", ("scale",), clause)
    yield from rows_of_sizes("layers.rms_norm", {"inputs": (2,), "scale": (0,)}, clause)
    for function in ("layers.token_mask", "layers.every_token"):
        yield from rows_of_arrays(function, ("input_ids",), clause)
    function = "layers.output_logits"
    yield from rows_of_arrays(function, ("inputs", "kernel", "mask"), clause)
    axes = {"inputs": (0, 1, 2), "kernel": (0,), "mask": (0, 1)}
    yield from rows_of_sizes(function, axes, clause)
    for function in ("layers.embed", "layers.rms_norm", "layers.output_logits"):
        yield from rows_of_values(function, "dtype", NOT_DTYPES, *clause)
    clause = ("MOE-11",)
    for name in ("feed_forward", "gated_mlp", "check_feed_forward"):
        function = f"feed_forward.{name}"
        for what, value in NOT_ACTIVATIONS.items():
            yield Row(function, what, {"activations": value}, ("activation", "activations"), clause)
    for name in ("feed_forward", "check_feed_forward"):
        function = f"feed_forward.{name}"
        names = ("wi_0", "wi_1", "wo", "inputs")
        yield from rows_of_arrays(function, ("inputs",), clause)
        yield from rows_of_mapping(function, "kernels", clause, names=names)
        narrow = FEED_FORWARD | {"wi_0": FEED_FORWARD["wi_1"]}
        what = "wi_0 as wide as wi_1"
        yield Row(function, what, {"kernels": narrow}, ("kernels", "wi_0"), clause)
    yield from rows_of_values("feed_forward.feed_forward", "dtype", NOT_DTYPES, *clause)


def attention_rows() -> Iterator[Row]:
    """Yield the illegal calls of attention and its parts."""
    clause = ("ATTN-12",)
    function = "masks.decoder_mask"
    arrays = tuple(LEGAL[function])
    yield from rows_of_arrays(function, arrays, clause)
    yield from rows_of_sizes(function, dict.fromkeys(arrays, (0, 1)), clause)
    yield from rows_of_arrays("masks.check_segments", ("segment_ids",), clause)
    yield from rows_of_sizes("masks.check_segments", {"segment_ids": (0, 1)}, clause)
    for function in ("masks.decoder_mask", "masks.check_segments"):
        mixed = {"segments that interleave": np.array([[1, 2, 1], [1, 0, 0]], np.int32)}
        yield from rows_of_values(function, "segment_ids", mixed, *clause)
    function = "masks.visible_by_targets"
    yield from rows_of_values(
        function, "batch", {"no targets": {"decoder_input_tokens": IDS}}, *clause
    )

    negative = {"below 0": np.array([0, -1, 2])}
    odd = NOT_COUNTS | {"odd": 3, "one": 1}
    yield from rows_of_values("attention.rotary_tables", "head_dim", odd, *clause)
    for function in ("attention.rotary_tables", "attention.rotate", "attention.attention"):
        yield from rows_of_values(function, "positions", negative, *clause)
        any_rank = function == "attention.rotary_tables"
        yield from rows_of_arrays(function, ("positions",), clause, any_rank=any_rank)
    yield from rows_of_arrays("attention.rotate", ("heads",), clause)
    yield from rows_of_sizes("attention.rotate", {"heads": (1,), "positions": (0,)}, clause)
    odd_heads = {"heads": normal(B, L, H, 3)}
    yield Row("attention.rotate", "an odd width", odd_heads, ("heads", "head_dim"), clause)

    counts = NOT_COUNTS | {"no divisor": 3}
    for function in ("attention.check_attention", "attention.attention"):
        yield from rows_of_arrays(function, ("inputs",), clause)
        yield from rows_of_mapping(function, "kernels", clause, names=("inputs", "num_heads"))
        yield from rows_of_values(function, "num_heads", counts, *clause)
    odd_width = {"num_heads": 8}
    yield Row(function, "an odd width", odd_width, ("num_heads", "head_dim"), clause)
    for row in rows_of_sizes(function, {"bias": (0, 1, 2), "inputs": (0, 2)}, clause):
        yield row._replace(arguments=("bias", "inputs", "kernels"))
    yield from rows_of_values(function, "dtype", NOT_DTYPES, *clause)
    function = "attention.attend"
    yield from rows_of_arrays(function, ("queries", "keys", "values"), clause)
    axes = {"queries": (0, 1, 3), "keys": (0, 1, 2, 3), "values": (0, 1, 2, 3), "bias": (0, 1, 2)}
    yield from rows_of_sizes(function, axes, clause)
    what = "a number of heads that those of keys do not divide"
    yield Row(function, what, {"queries": normal(B, L, 3, N)}, ("queries", "keys"), clause)
    for function in ("attention.attention", "attention.attend"):
        bad = changed(BIAS, (0, 0, 0), np.nan)
        values = {"one axis less": BIAS[0], "a word": "nonsense", "not a number": bad}
        yield from rows_of_values(function, "bias", values, *clause)
        for argument in ("scale", "softmax_dtype"):
            yield from rows_of_values(function, argument, NOT_WORDS, *clause)


ROWS = [*layer_rows(), *attention_rows()]
