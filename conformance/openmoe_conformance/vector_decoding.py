"""Comparisons of stored decoding: prefill, teacher-forced steps, generation."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import answers
from openmoe_conformance.compare import close, fields_of, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.subject import Subject, UnsupportedError
from openmoe_conformance.vector_cases import Arrays, Comparison, Kind, Run, VectorCase, once
from openmoe_conformance.vector_passes import batch, forward, is_bfloat16, parameters

STEP_BOUND = {"relative": 3e-5, "absolute": 3e-5}
CACHE_BOUND = {"relative": 2e-5, "absolute": 2e-5}
BFLOAT16_LOGITS = 0.1
BFLOAT16_BOUND = {"relative": 0.0, "absolute": BFLOAT16_LOGITS}
_EQUAL = 1e-4
"""Below this stored steps and the stored full pass are the same but for rounding."""
_END = 1
_STORED = {"prefill": "prefill_cache", "cache": "final_cache"}


def _bound(case: VectorCase, float32: dict[str, float]) -> dict[str, float]:
    return BFLOAT16_BOUND if is_bfloat16(case) else float32


def _start(arrays: Arrays) -> ndarray:
    """Return n_b of each row."""
    return arrays["prefill/initial_index"].astype(np.int64)


def _decode(
    s: Subject, case: VectorCase, arrays: Arrays, ids: ndarray, steps: int
) -> dict[str, Any]:
    fed = batch(arrays) | {"decoder_input_tokens": ids.astype(np.int32)}
    answer = s.call(
        "decode",
        parameters(arrays),
        fed,
        configuration=case.config["configuration"],
        steps=steps,
        **case.config["call"],
    )
    return fields_of(answer, ("logits", "prefill", "cache"))


def _stepped(s: Subject, case: VectorCase, arrays: Arrays) -> dict[str, Any]:
    """Return what the steps on the stored ids gave, made once."""
    ids, steps = arrays["batch/decoder_input_tokens"], case.config["steps"]
    return once(s, case, "decode", lambda: _decode(s, case, arrays, ids, steps))


def _cache(answer: Mapping[str, Any], which: str) -> dict[str, Any]:
    if answer[which] is None:
        raise UnsupportedError(f"decode() shows no {which}")
    found = fields_of(answer[which], ("keys", "values", "index"))
    if lacking := [name for name, value in found.items() if value is None]:
        raise Disagreement(f"decode: {which} lacks {', '.join(lacking)}")
    return found


def _stored(arrays: Arrays, which: str, name: str) -> ndarray:
    """Return keys or values of all layers, [n, B, L, H, N], stored as [B, H, N, L] a layer."""
    path = f"{which}/decoder/layers_{{}}/self_attention/{name}"
    layers = range(sum(path.format(i) in arrays for i in range(len(arrays))))
    return np.stack([np.moveaxis(arrays[path.format(i)], -1, 1) for i in layers])


def _filled(arrays: Arrays) -> ndarray:
    """Return which slots the prefill fills, to be broadcast to [n, B, L, H, N]."""
    length = arrays["batch/decoder_input_tokens"].shape[1]
    return (np.arange(length) < _start(arrays)[:, None])[None, :, :, None, None]


def _same_index(which: str, got: Mapping[str, Any], arrays: Arrays) -> None:
    """Require the index that every layer's stored cache has."""
    pattern = rf"{_STORED[which]}/decoder/layers_\d+/self_attention/cache_index"
    for name in arrays:
        if re.fullmatch(pattern, name):
            same(f"{which}: index", answers.array("index", got["index"]), arrays[name])


def _prompt(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    got = _cache(_stepped(s, case, arrays), "prefill")
    same("index after prefill", answers.array("index", got["index"]), _start(arrays))
    _same_index("prefill", got, arrays)


def _contents(which: str) -> Run:
    def run(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
        got = _cache(_stepped(s, case, arrays), which)
        for name, stored in (("keys", "cached_key"), ("values", "cached_value")):
            wanted = _stored(arrays, _STORED[which], stored)
            found = answers.numbers(f"{which}: {name}", got[name], wanted.shape)
            if which == "prefill":
                found = np.where(_filled(arrays), found, wanted)
            close(f"{which}: {name}", found, wanted, evidence, **_bound(case, CACHE_BOUND))
        if which == "cache":
            _same_index(which, got, arrays)

    return run


def _unfilled(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    got = _cache(_stepped(s, case, arrays), "prefill")
    for name in ("keys", "values"):
        beyond = np.where(_filled(arrays), 0, answers.array(name, got[name]))
        same(f"prefill: {name} beyond the prompt", beyond, np.zeros(beyond.shape))


def _step_logits(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    wanted = arrays["step_logits"]
    got = answers.numbers("logits", _stepped(s, case, arrays)["logits"], wanted.shape)
    close("logits of steps", got, wanted, evidence, **_bound(case, STEP_BOUND))


def _as_full_pass(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    """Steps against the stored full pass, wherever the stored steps equal it."""
    full, stored = arrays["full_forward_eval_logits"], arrays["step_logits"]
    places = np.minimum(_start(arrays)[:, None] + np.arange(stored.shape[1]), full.shape[1] - 1)
    wanted = np.take_along_axis(full, places[..., None], axis=1)
    alike = np.abs(stored - wanted).max(axis=-1) < _EQUAL
    if not alike.any():
        raise UnsupportedError("no stored step equals the full pass")
    got = answers.numbers("logits", _stepped(s, case, arrays)["logits"], stored.shape)
    close("logits of steps", got[alike], wanted[alike], evidence, **_bound(case, STEP_BOUND))


def _full_pass(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    wanted = arrays["full_forward_eval_logits"]
    got = forward(s, case, arrays, training=False).logits
    close("logits of the full pass", got, wanted, evidence, **_bound(case, STEP_BOUND))


def _generate(s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence) -> None:
    wanted = arrays["predict_batch/sequences"]
    if is_bfloat16(case):
        _best_but_for_rounding(s, case, arrays, evidence)
        return
    got = s.array(
        "generate",
        wanted.shape,
        parameters(arrays),
        batch(arrays),
        configuration=case.config["configuration"],
        **case.config["call"],
    )
    same("sequences", got, wanted)


def _best_but_for_rounding(
    s: Subject, case: VectorCase, arrays: Arrays, evidence: Evidence
) -> None:
    """Feed the stored ids: each must be as good as the best, as far as bfloat16 logits can tell."""
    sequences, start = arrays["predict_batch/sequences"], _start(arrays)
    ids, length = arrays["batch/decoder_input_tokens"].copy(), sequences.shape[1]
    for row, first in enumerate(start):
        ids[row, first + 1 :] = sequences[row, : length - first - 1]
    steps = int(length - start.max())  # as many as the row with the longest prompt has room for
    shape = (len(ids), steps, case.config["configuration"]["vocabulary_size"])
    logits = answers.numbers("logits", _decode(s, case, arrays, ids, steps)["logits"], shape)
    chosen = np.take_along_axis(logits, sequences[:, :steps, None], axis=-1)[..., 0]
    behind = logits.max(axis=-1).astype(np.float64) - chosen
    ended = np.pad(sequences[:, : steps - 1] == _END, ((0, 0), (1, 0))).cumsum(axis=1) > 0
    behind = behind[~ended]
    bound = {"relative": 0.0, "absolute": 2 * BFLOAT16_LOGITS}
    what = "best logit minus that of the stored id"
    close(what, behind, np.zeros(behind.shape), evidence, **bound)


_STEPS, _FULL = ("step_logits",), ("full_forward_eval_logits",)


def _caches(which: str) -> Comparison:
    path = rf"{_STORED[which]}/decoder/layers_\d+/self_attention/cached_"
    return Comparison(_contents(which), (f"{path}key", f"{path}value"))


KINDS: Mapping[str, Kind] = {
    "decoding": Kind(
        {
            "decode_prompt": Comparison(_prompt),
            "decode_prefill": _caches("prefill"),
            "decode_unfilled": Comparison(_unfilled),
            "decode_logits": Comparison(_step_logits, _STEPS),
            "decode_cache": _caches("cache"),
            "decode_as_full_pass": Comparison(_as_full_pass, (*_STEPS, *_FULL)),
            "forward_logits": Comparison(_full_pass, _FULL),
            "generate": Comparison(_generate, ("predict_batch/sequences",)),
        },
        (
            *("batch/decoder_input_tokens", "batch/decoder_causal_attention"),
            *("prefill/initial_index", "params/token_embedder/embedding"),
        ),
        ("configuration", "call", "steps"),
    )
}
"""Kinds of decoding by name."""
