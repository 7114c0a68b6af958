"""What a whole model and its gradients refuse: parameters, batches, parts."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import ml_dtypes
import numpy as np
from rejections import (
    LEGAL,
    NOT_COUNTS,
    Row,
    changed,
    misshaped,
    not_whole,
    rows_of_arrays,
    rows_of_mapping,
    rows_of_sizes,
    rows_of_values,
)
from rejections_layers import (
    ACTIVATIONS,
    BIAS,
    FEED_FORWARD,
    IDS,
    KERNELS,
    SEGMENTS,
    TARGETS,
    H,
    normal,
)

from openmoe_conformance import model_cases
from openmoe_reference import model, part_gradients
from openmoe_spec.config import Configuration

CONFIGURATION = Configuration(
    name="small",
    num_layers=2,
    num_moe_layers=1,
    embed_dim=4,
    num_heads=2,
    head_dim=2,
    mlp_dim=3,
    num_experts=2,
    vocabulary_size=7,
    max_length=4,
)
V = CONFIGURATION.vocabulary_size
PARAMETERS = model_cases.weights(asdict(CONFIGURATION), 0)
WEIGHED = np.array([[0, 1, 1], [1, 0, 0]], np.int32)
BATCH = {
    "decoder_input_tokens": IDS,
    "decoder_target_tokens": TARGETS,
    "decoder_loss_weights": WEIGHED,
    "decoder_segment_ids": SEGMENTS,
    "decoder_positions": IDS,
    "decoder_causal_attention": WEIGHED,
    "attention_mask": WEIGHED,
    "position_ids": IDS,
}
MODEL = {"parameters": PARAMETERS, "batch": BATCH, "configuration": CONFIGURATION}
CALL, RULES = model.Call(), model.Rules()
_BLOCK: dict[str, Any] = {
    "x": normal(2, 3, 4),
    **dict.fromkeys(("mlp_norm", "experts", "extra_norm", "extra_mlp"), lambda x: x),
}
_COTANGENT = normal(2, 3, 5)

LEGAL.update(
    {
        "batches.check_parameters": {
            "parameters": PARAMETERS,
            "configuration": CONFIGURATION,
            "doubled_gate": True,
        },
        "batches.check_batch": {"batch": BATCH, "configuration": CONFIGURATION},
        "model.forward": MODEL | {"call": CALL, "rules": RULES},
        "model.run": {
            "parameters": PARAMETERS,
            "input_ids": IDS,
            "bias": BIAS,
            "configuration": CONFIGURATION,
            "call": CALL,
            "rules": RULES,
        },
        "model.sequential_block": _BLOCK,
        "model.parallel_block": _BLOCK,
        "model_gradients.model_gradients": MODEL
        | {"call": None, "of_embedding": part_gradients.embedding_gradient},
        "part_gradients.embedding_gradient": {
            "ids": IDS,
            "cotangent": _COTANGENT,
            "vocabulary_size": V,
        },
        "part_gradients.frozen_start_gradient": {
            "ids": IDS,
            "cotangent": _COTANGENT,
            "vocabulary_size": V,
        },
        "part_gradients.norm_gradients": {
            "inputs": normal(2, 3, 5),
            "scale": normal(5),
            "cotangent": _COTANGENT,
        },
        "part_gradients.feed_forward_gradients": {
            "inputs": normal(1, 3, 5),
            "kernels": FEED_FORWARD,
            "cotangent": normal(1, 3, 5),
            "activations": ACTIVATIONS,
        },
        "part_gradients.attention_gradients": {
            "inputs": normal(2, 3, 5),
            "kernels": KERNELS,
            "bias": BIAS,
            "cotangent": _COTANGENT,
            "num_heads": H,
        },
    }
)


# ---- parameters and batches


def tree_rows(function: str) -> Iterator[Row]:
    """Yield rows for the parameters of a function that has them checked by `check_parameters`."""
    legal, name = LEGAL[function]["parameters"], "decoder/logits_dense/kernel"
    values: dict[str, Any] = {
        "nothing": None,
        "a missing leaf": {key: legal[key] for key in legal if key != name},
        "an extra leaf": legal | {"decoder/bias": legal[name]},
        "a leaf turned": legal | {name: legal[name].T},
        "a leaf of float16": legal | {name: legal[name].astype(np.float16)},
    }
    yield from rows_of_values(function, "parameters", values, "MODEL-09")


def leaf_rows() -> Iterator[Row]:
    """Yield rows for every way in which a tree of parameters may be wrong."""
    function, name = "batches.check_parameters", "decoder/layers_1/mlp/expert/wi_0/kernel"
    leaf = PARAMETERS[name]
    dense = PARAMETERS["decoder/layers_0/mlp/wi_0/kernel"]
    values: dict[str, Any] = {
        "a list of arrays": list(PARAMETERS.values()),
        "a word": name,
        "no leaf": {},
        "an extra number": PARAMETERS | {1: leaf},
        "the leaf of another layer": PARAMETERS | {"decoder/layers_1/mlp/wi_0/kernel": dense},
        "a leaf that is nothing": PARAMETERS | {name: None},
        "a leaf that is a list": PARAMETERS | {name: leaf.tolist()},
        "a gate as wide as wi_1": PARAMETERS | {name: leaf[..., :3]},
    }
    for other in PARAMETERS:
        values[f"without {other}"] = {key: PARAMETERS[key] for key in PARAMETERS if key != other}
    for kind in (ml_dtypes.bfloat16, np.int32, bool, np.complex64, object, str):
        values[f"a leaf of {np.dtype(kind).name}"] = PARAMETERS | {name: leaf.astype(kind)}
    yield from rows_of_values(function, "parameters", values, "MODEL-09")


def unreal_rows(function: str) -> Iterator[Row]:
    """Yield rows for a leaf that holds something not finite, whichever function meets it."""
    legal = LEGAL[function]["parameters"]
    clauses = ("LAYER-08", "ATTN-12", "MOE-11", "ROUTE-20", "MODEL-09")
    for name, leaf in legal.items():
        for value in (np.nan, np.inf):
            place = tuple(size - 1 for size in leaf.shape)
            broken = legal | {name: changed(leaf, place, value)}
            # A layer knows its arrays by shorter names.
            short = tuple({*name.split("/"), "parameters", "kernels", "table", "inputs"})
            yield Row(function, f"{name}: {value}", {"parameters": broken}, short, clauses)


def batch_rows(function: str, names: tuple[str, ...], *clauses: str) -> Iterator[Row]:
    """Yield rows for the features of a batch that a function reads."""
    legal = LEGAL[function]["batch"]
    for name in names:
        value = legal[name]
        wrong = dict(misshaped(value)) | {"nothing": None}
        if name == "decoder_loss_weights":
            wrong["not a number"] = changed(value.astype(np.float32), (0, 1), np.nan)
            wrong["words"] = value.astype(str)
        else:
            wrong |= dict(not_whole(value))
        wrong |= {f"axis {axis} twice as long": value.repeat(2, axis) for axis in (0, 1)}
        for what, array in wrong.items():
            changes = {"batch": legal | {name: array}}
            yield Row(
                function, f"{name}: {what}", changes, ("batch", "segment_ids", "weights"), clauses
            )


def whole_batch_rows() -> Iterator[Row]:
    """Yield rows for every way in which a batch may be wrong."""
    function = "batches.check_batch"
    yield from batch_rows(function, tuple(BATCH), "MODEL-10")
    values: dict[str, Any] = {
        "a list": list(BATCH.values()),
        "a word": "decoder_input_tokens",
        "no feature": {},
        "no inputs": {name: BATCH[name] for name in BATCH if name != "decoder_input_tokens"},
        "longer than max_length": {name: value.repeat(2, 1) for name, value in BATCH.items()},
    }
    for name in ("decoder_input_tokens", "decoder_target_tokens"):
        for what, value in {"an id of V": V, "a negative id": -1}.items():
            values[f"{name}: {what}"] = BATCH | {name: changed(BATCH[name], (0, 1), value)}
    for name in ("decoder_target_tokens", "attention_mask"):
        values[f"{name}: a row of padding"] = BATCH | {name: changed(BATCH[name], (1,), 0)}
    yield from rows_of_values(function, "batch", values, "MODEL-10")
    mixed = BATCH | {"decoder_segment_ids": np.array([[1, 2, 1], [1, 0, 0]], np.int32)}
    what = "segments that interleave"
    yield Row(function, what, {"batch": mixed}, ("batch", "segment_ids"), ("MODEL-10", "ATTN-12"))


def checked_batch_rows(function: str) -> Iterator[Row]:
    """Yield rows for the batch of a function that has it checked by `check_batch`."""
    legal = LEGAL[function]["batch"]
    values = {
        "nothing": None,
        "an unknown feature": legal | {"encoder_input_tokens": IDS},
        "an id of V": legal | {"decoder_input_tokens": changed(IDS, (0, 1), V)},
    }
    yield from rows_of_values(function, "batch", values, "MODEL-10")


def model_rows() -> Iterator[Row]:
    """Yield the illegal calls of a whole model."""
    yield from leaf_rows()
    yield from whole_batch_rows()
    yield from unreal_rows("model.forward")
    for function in ("batches.check_parameters", *WHOLE):
        yield from tree_rows(function)
    for function in ("batches.check_batch", *WHOLE):
        yield from checked_batch_rows(function)
    for function in WHOLE:
        without = {name: BATCH[name] for name in BATCH if name != "decoder_target_tokens"}
        yield from rows_of_values(function, "batch", {"no targets": without}, "ATTN-12")
    function = "model_gradients.model_gradients"
    nothing = BATCH | {"decoder_loss_weights": np.zeros_like(WEIGHED)}
    what, names = "weights that add up to 0", ("batch", "normalizing_factor", "weights")
    yield Row(function, what, {"batch": nothing}, names, ("LOSS-25",))


WHOLE = ("model.forward", "model_gradients.model_gradients")


# ---- gradients of parts


def gradient_rows() -> Iterator[Row]:
    """Yield the illegal calls of the gradients of parts."""
    clause = ("LAYER-08",)
    for name in ("embedding_gradient", "frozen_start_gradient"):
        function = f"part_gradients.{name}"
        yield from rows_of_arrays(function, ("ids", "cotangent"), clause)
        yield from rows_of_sizes(function, {"ids": (0, 1), "cotangent": (0, 1)}, clause)
        yield from rows_of_values(function, "vocabulary_size", NOT_COUNTS, *clause)
    function = "part_gradients.norm_gradients"
    axes = {"inputs": (0, 1, 2), "scale": (0,), "cotangent": (0, 1, 2)}
    yield from rows_of_arrays(function, tuple(axes), clause)
    yield from rows_of_sizes(function, axes, clause)
    function, clause = "part_gradients.feed_forward_gradients", ("MOE-11",)
    yield from rows_of_arrays(function, ("inputs", "cotangent"), clause)
    names = ("wi_0", "wi_1", "wo", "inputs")
    for row in rows_of_sizes(function, {"inputs": (0, 1), "cotangent": (0, 1, 2)}, clause):
        yield row._replace(arguments=(*row.arguments, *names))
    yield from rows_of_mapping(function, "kernels", clause, names=names)
    unknown = {"an unknown one": ("swiglu", "relu")}
    for row in rows_of_values(function, "activations", unknown, *clause):
        yield row._replace(arguments=("activation", "activations"))
    function, clause = "part_gradients.attention_gradients", ("ATTN-12",)
    yield from rows_of_arrays(function, ("inputs", "cotangent"), clause)
    axes = dict.fromkeys(("inputs", "cotangent", "bias"), (0, 1, 2))
    for row in rows_of_sizes(function, axes, clause):
        yield row._replace(arguments=(*row.arguments, "kernels"))
    yield from rows_of_mapping(function, "kernels", clause, names=("inputs", "num_heads"))
    counts = NOT_COUNTS | {"no divisor": 3}
    yield from rows_of_values(function, "num_heads", counts, *clause)


ROWS = [*model_rows(), *gradient_rows()]
