"""Comparisons of stored rows of decoder features, from config or, where they are long, arrays."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from openmoe_conformance.adapter import UnsupportedError
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import fields_of, same
from openmoe_conformance.data_answers import rows
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.subject import Subject
from openmoe_conformance.vector_cases import Arrays, Comparison, Kind, Run, VectorCase, below, once

FEATURES = (
    *("decoder_target_tokens", "decoder_input_tokens", "decoder_loss_weights"),
    *("decoder_causal_attention", "decoder_segment_ids", "decoder_positions"),
)
"""What rows may hold."""


def _numbered(case: VectorCase, arrays: Arrays, name: str) -> list[dict[str, Any]]:
    """Return mappings of ids in their order: `config.<name>`, or the arrays `<name>/<number>/*`."""
    if name in case.config:
        listed: list[Any] = case.config[name]
        return [{key: np.asarray(a, np.int32) for key, a in one.items()} for one in listed]
    stored = below(arrays, f"{name}/")
    count = 1 + max((int(key.partition("/")[0]) for key in stored), default=-1)
    return [below(stored, f"{number}/") for number in range(count)]


def _answer(s: Subject, case: VectorCase, arrays: Arrays) -> Any:
    options = {
        name: case.config[name]
        for name in ("lengths", "pack", "loss_on_targets_only", "start")
        if name in case.config
    }
    examples = _numbered(case, arrays, "examples")
    return once(s, case, "features", lambda: s.call("decoder_features", examples, **options))


def _feature(name: str) -> Run:
    def run(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
        wanted = np.stack([one[name] for one in _numbered(case, arrays, "outputs")])
        got = rows("decoder_features", _answer(s, case, arrays), (name,))[name]
        same(f"decoder_features.{name}", got, wanted)

    return run


def _row_count(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    name = "decoder_target_tokens"
    got = rows("decoder_features", _answer(s, case, arrays), (name,))[name]
    same("decoder_features: number of rows", len(got), len(_numbered(case, arrays, "outputs")))


def _no_causal_attention(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    name = "decoder_causal_attention"
    if fields_of(_answer(s, case, arrays), (name,))[name] is not None:
        raise Disagreement(f"decoder_features: holds {name} without inputs")


def _rejected(s: Subject, case: VectorCase, arrays: Arrays, _: Evidence) -> None:
    if not s.rejects_invalid_input:
        raise UnsupportedError("does not declare rejects_invalid_input")
    must_reject(f"decoder_features: {case.exercises}", lambda: _answer(s, case, arrays))


KINDS: Mapping[str, Kind] = {
    "decoder_features": Kind(
        {
            **{name: Comparison(_feature(name)) for name in FEATURES},
            "rows": Comparison(_row_count),
            "no_causal_attention": Comparison(_no_causal_attention),
            "rejected": Comparison(_rejected),
        },
        config=("lengths", "pack"),
    ),
}
"""The one kind."""
