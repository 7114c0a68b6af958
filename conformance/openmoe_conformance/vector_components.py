"""Comparisons of stored parts of a model: feed-forward, norm, attention, embedding, cross entropy.

Bounds are those of the vectors' documentation; bfloat16 gradients, which no function of the adapter
computes in that dtype, are compared with float32 ones as a layer's are (JUDGE-07).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.subject import Subject
from openmoe_conformance.vector_cases import Arrays, Comparison, Kind, Run, VectorCase, below
from openmoe_conformance.vector_layers import BFLOAT16_GRADIENT_BOUND

BOUND = {"relative": 1e-5, "absolute": 1e-6}
BFLOAT16_BOUND = {"relative": 2e-2, "absolute": 2e-2}
NORM_BFLOAT16_BOUND = {"relative": 2.0**-6}  # two units of the last place (LAYER-04)
ROTATED_BOUND = {"relative": 1e-5, "absolute": 1e-5}
ATTENTION_GRADIENT_BOUND = {"relative": 1e-5, "of_largest": 1e-5}  # ATTN-13
_LONG_TABLE = 64
"""Positions from which float32 angles lose so many bits that sine and cosine show it."""


def _dtype(case: VectorCase) -> str:
    return str(case.config.get("dtype", "float32"))


def _bound(case: VectorCase, bfloat16: dict[str, float] = BFLOAT16_BOUND) -> dict[str, float]:
    return bfloat16 if _dtype(case) == "bfloat16" else BOUND


def _kernels(arrays: Arrays) -> dict[str, ndarray]:
    stored = below(arrays, "params/")
    return {name.removesuffix("/kernel"): array for name, array in stored.items()}


def _rows(part: str, array: ndarray) -> ndarray:
    """Return an array as a part takes it: a feed-forward knows no batch, [B, L, D] is [B L, D]."""
    return array.reshape(-1, array.shape[-1]) if part == "feed_forward" else array


def _gradients(part: str, options: Callable[[VectorCase, Arrays], dict[str, Any]]) -> Run:
    """Return the comparison of the gradients of one part with those stored below `d_`."""

    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        weights = {"scale": arrays["scale"]} if part == "rms_norm" else _kernels(arrays)
        named = {f"d_params/{name}/kernel": name for name in weights} | {"d_inputs": "inputs"}
        named = {"d_scale": "scale"} | named if part == "rms_norm" else named
        wanted = {name: arrays[path] for path, name in named.items() if path in arrays}
        wanted["inputs"] = _rows(part, wanted["inputs"])
        got = s.named(
            "part_gradients",
            {name: array.shape for name, array in wanted.items()},
            part,
            _rows(part, arrays["inputs"]),
            weights,
            _rows(part, arrays["cotangent"]),
            **options(case, arrays),
        )
        bound = ATTENTION_GRADIENT_BOUND if part == "attention" else BOUND
        bound = BFLOAT16_GRADIENT_BOUND if _dtype(case) == "bfloat16" else bound
        for name, array in wanted.items():
            close(f"d_{name}", got[name], array, evidence, **bound)

    return run


# ---- layers ------------------------------------------------------------------------------------


def _feed_forward(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    inputs, wanted = (_rows("feed_forward", arrays[name]) for name in ("inputs", "output"))
    options = _activations(case, arrays) | {"dtype": _dtype(case)}
    got = s.array("feed_forward", wanted.shape, inputs, _kernels(arrays), **options)
    close("output", got, wanted, evidence, **_bound(case))


def _activations(case: VectorCase, _: Arrays) -> dict[str, Any]:
    return {"activations": tuple(case.config["activations"])}


def _swiglu(s: Subject, _: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    """Between kernels of ones on the diagonal what is left of a feed-forward is its activation."""
    x, y = arrays["x"], arrays["y"]
    width, hidden = x.shape[1], y.shape[1]
    kernels = {"wi": np.eye(width, dtype=x.dtype), "wo": np.eye(hidden, width, dtype=x.dtype)}
    got = s.array("feed_forward", x.shape, x, kernels, activations=("swiglu",))
    close("y", got[:, :hidden], y, evidence, **BOUND)


def _norm(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    shape, scale = arrays["output"].shape, arrays["scale"]
    got = s.array("rms_norm", shape, arrays["inputs"], scale, dtype=_dtype(case))
    close("output", got, arrays["output"], evidence, **_bound(case, NORM_BFLOAT16_BOUND))


def _token_mask(s: Subject, _: VectorCase, arrays: Arrays, __: Evidence) -> None:
    got = answers.array("token_mask", s.call("token_mask", arrays["decoder_input_tokens"]))
    same("token_mask", got, arrays["logit_mask"][..., 0])


def _embed(ids: str, output: str) -> Run:
    def run(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
        shape, dtype = arrays[output].shape, _dtype(case)
        got = s.array("embed", shape, arrays["embedding"], arrays[ids], dtype=dtype)
        same(output, got.astype(np.float32), arrays[output])

    return run


# ---- attention ---------------------------------------------------------------------------------


def _tables(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    sine = arrays["sin"]
    positions = arrays["rows"] if "rows" in arrays else np.arange(len(sine))
    got = s.call("rotary_tables", positions.astype(np.int32), head_dim=case.config["head_dim"])
    if not isinstance(got, tuple | list) or len(got) != 2:
        raise Disagreement(
            f"rotary_tables: must return sines and cosines, got {type(got).__name__}"
        )
    bound = {"relative": 0.0, "absolute": 3e-4 if positions.max() >= _LONG_TABLE else 1e-5}
    for name, one in zip(("sin", "cos"), got, strict=True):
        close(name, answers.numbers(name, one, sine.shape), arrays[name], evidence, **bound)


def _rotated(s: Subject, _: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    """Keys by slot; queries too, unless they are alone and have an index."""
    slots = np.arange(arrays["k"].shape[1], dtype=np.int32)
    index = arrays.get("rotary_index")
    places = {"q": slots if index is None else index[:, None], "k": slots}
    for name, place in places.items():
        heads, wanted = arrays[name], arrays[f"{name}_out"]
        close(name, s.array("rotate", heads.shape, heads, place), wanted, evidence, **ROTATED_BOUND)


def _decoder_mask(wanted: str, targets: str, *more: str) -> Comparison:
    def run(s: Subject, _: VectorCase, arrays: Arrays, __: Evidence) -> None:
        options = {name: arrays[name] for name in more}
        got = answers.array(wanted, s.call("decoder_mask", arrays[targets], **options))
        same(wanted, got.astype(np.float32), arrays[wanted][:, 0])

    return Comparison(run, (wanted, targets, *more))


def _mask(case: VectorCase, arrays: Arrays) -> dict[str, Any]:
    mask = arrays["mask"][:, 0] != 0 if "mask" in arrays else None
    return {"mask": mask, "num_heads": case.config["num_heads"]}


def _attention(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    options = _mask(case, arrays)
    got = s.array(
        "attention",
        arrays["output"].shape,
        arrays["inputs"],
        _kernels(arrays),
        options.pop("mask"),
        dtype=_dtype(case),
        **options,
    )
    close("output", got, arrays["output"], evidence, **_bound(case))


# ---- cross entropy -----------------------------------------------------------------------------


def _loss_arguments(case: VectorCase, arrays: Arrays) -> tuple[tuple[ndarray, ...], dict[str, Any]]:
    factor = arrays.get("normalizing_factor")
    options = {
        "weights": arrays.get("weights"),
        "normalizing_factor": None if factor is None else float(factor),
        "z_loss": case.config["z_loss"],
        "label_smoothing": case.config["label_smoothing"],
    }
    return (arrays["logits"], arrays["targets"]), options


def _cross_entropy(field: str) -> Comparison:
    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        arguments, options = _loss_arguments(case, arrays)
        got = s.named("cross_entropy", {field: ()}, *arguments, **options)
        close(field, got[field], arrays[field], evidence, **BOUND)

    return Comparison(run, (field,))


def _logit_gradient(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    arguments, options = _loss_arguments(case, arrays)
    shape = arrays["logits"].shape
    got = s.array("cross_entropy_gradient", shape, *arguments, **options)
    close("d_logits", got, arrays["d_logits"], evidence, **BOUND)


def _normalizer(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    """Weights that were normalised already stay as they are."""
    targets, weights = arrays["targets"], arrays["weights"]
    batch = {"decoder_target_tokens": targets, "decoder_loss_weights": weights}
    shapes = {"factor": (), "weights": weights.shape}
    got = s.named("normalizer", shapes, case.config["loss_normalizing_factor"], batch)
    close("factor", got["factor"], arrays["normalizing_factor"], evidence, **BOUND)
    close("weights", got["weights"], weights, evidence, **BOUND)


_OUTPUT = ("output",)
_GRADIENTS = ("cotangent", "d_inputs")
KINDS: Mapping[str, Kind] = {
    "feed_forward": Kind(
        {
            "output": Comparison(_feed_forward, _OUTPUT),
            "gradients": Comparison(
                _gradients("feed_forward", _activations), (*_GRADIENTS, "d_params/.+")
            ),
        },
        ("inputs", "params/wo/kernel"),
        ("activations",),
    ),
    "swiglu": Kind({"output": Comparison(_swiglu)}, ("x", "y")),
    "norm": Kind(
        {
            "output": Comparison(_norm, _OUTPUT),
            "gradients": Comparison(
                _gradients("rms_norm", lambda *_: {}), (*_GRADIENTS, "d_scale")
            ),
        },
        ("inputs", "scale"),
    ),
    "token_mask": Kind({"mask": Comparison(_token_mask)}, ("decoder_input_tokens", "logit_mask")),
    "embedding": Kind(
        {
            "output": Comparison(_embed("ids", "output"), ("ids", "output")),
            "outside": Comparison(_embed("ids_oob", "output_oob"), ("ids_oob", "output_oob")),
        },
        ("embedding",),
    ),
    "rotary": Kind(
        {
            "tables": Comparison(_tables, ("sin", "cos")),
            "rotated": Comparison(_rotated, ("q", "k", "q_out", "k_out")),
        },
    ),
    "decoder_mask": Kind(
        {
            "causal": _decoder_mask("causal", "targets"),
            "padded": _decoder_mask("padded", "targets_padded"),
            "packed": _decoder_mask("packed", "targets_packed", "segment_ids"),
            "prefix": _decoder_mask(
                "packed_prefix", "targets_packed", "segment_ids", "causal_attention"
            ),
        },
    ),
    "attention": Kind(
        {
            "output": Comparison(_attention, _OUTPUT),
            "gradients": Comparison(_gradients("attention", _mask), (*_GRADIENTS, "d_params/.+")),
        },
        ("inputs", *(f"params/{name}/kernel" for name in ("query", "key", "value", "out"))),
        ("num_heads",),
    ),
    "cross_entropy": Kind(
        {
            "cross_entropy": _cross_entropy("loss"),
            "z_loss": _cross_entropy("z_loss"),
            "weight_sum": _cross_entropy("weight_sum"),
            "gradient": Comparison(_logit_gradient, ("d_logits",)),
            "normalizer": Comparison(_normalizer, ("weights", "normalizing_factor")),
        },
        ("logits", "targets"),
        ("z_loss", "label_smoothing", "loss_normalizing_factor"),
    ),
}
"""Kinds of parts by name."""
