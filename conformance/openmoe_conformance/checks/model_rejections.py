"""Checks of SPEC.md "The model": what it must reject."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import ml_dtypes
import numpy as np

from openmoe_conformance import model_cases
from openmoe_conformance.adapter import UnsupportedError
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject

LEAVES = (
    "token_embedder/embedding",
    "decoder/layers_0/mlp/wi_0/kernel",
    "decoder/layers_1/mlp/router/router_weights/w/kernel",
    "decoder/layers_1/mlp/expert/wo/kernel",
    "decoder/decoder_norm/scale",
)
"""Tensors of every form: a table, a dense kernel, the router's, the experts' and a norm's."""

STRANGE = "decoder/layers_0/mlp/wi_2/kernel"


def _wrong_trees(_: Profile) -> Iterator[Case]:
    for leaf in LEAVES:
        for wrong in ("missing", "longer", "flat", "bfloat16"):
            yield {"leaf": leaf, "wrong": wrong}
    yield {"leaf": "decoder/layers_0/mlp/wi_0/kernel", "wrong": "half"}
    yield {"leaf": "decoder/logits_dense/kernel", "wrong": "turned"}
    yield {"leaf": STRANGE, "wrong": "extra"}


def _spoilt(parameters: Mapping[str, Any], leaf: str, wrong: str) -> dict[str, Any]:
    tree = dict(parameters)
    if wrong == "missing":
        del tree[leaf]
        return tree
    if wrong == "extra":
        return tree | {leaf: np.ones((3, 2), np.float32)}
    value = tree[leaf]
    spoilt = {
        "longer": np.concatenate([value, value[..., :1]], axis=-1),
        "flat": value.reshape(1, -1),
        "half": value[..., : value.shape[-1] // 2],
        "turned": np.ascontiguousarray(value.T),
        "bfloat16": value.astype(ml_dtypes.bfloat16),
    }
    return tree | {leaf: spoilt[wrong]}


@check("MODEL-09", "rejects_invalid_input", "forward", cases=_wrong_trees)
def wrong_trees_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """A leaf that is missing, extra, of another shape or not float32 raises, named with its shapes."""
    fields, parameters, batch = model_cases.build(model_cases.fixed(blocks=1))
    leaf, tree = case["leaf"], _spoilt(parameters, case["leaf"], case["wrong"])
    try:
        subject.call("forward", tree, batch, configuration=fields)
    except UnsupportedError:
        raise
    except Exception as error:  # noqa: BLE001 - which exception is the implementation's own business
        message = str(error)
    else:
        raise Disagreement(f"parameters with {leaf} {case['wrong']}: were accepted")
    if leaf not in message:
        raise Disagreement(f"the message does not name {leaf}: {message}")
    shapes = [one[leaf].shape for one in (parameters, tree) if leaf in one]
    numbers = re.findall(r"\d+", message.replace(leaf, ""))
    lacking = [shape for shape in shapes if not set(map(str, shape)) <= set(numbers)]
    if lacking and case["wrong"] != "bfloat16":
        raise Disagreement(f"the message does not show the shape {list(lacking[0])}: {message}")


def _wrong_batches(_: Profile) -> Iterator[Case]:
    for wrong in ("negative", "unknown"):
        for name in ("decoder_input_tokens", "decoder_target_tokens"):
            yield {"wrong": wrong, "array": name}
    yield from ({"wrong": wrong} for wrong in ("long", "no rows", "no columns", "padding"))
    yield {"wrong": "interleaved"}


@check("MODEL-10", "rejects_invalid_input", "forward", cases=_wrong_batches)
def wrong_batches_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Unknown ids, rows too long, an empty batch, a row of padding, segments that interleave."""
    kind = "packed" if case["wrong"] == "interleaved" else "full"
    fields, parameters, batch = model_cases.build(model_cases.fixed(blocks=1, kind=kind))
    if case["wrong"] in ("negative", "unknown"):
        value = batch[case["array"]].copy()
        value[1, 3] = -1 if case["wrong"] == "negative" else fields["vocabulary_size"]
        batch |= {case["array"]: value}
    elif case["wrong"] == "long":
        fields |= {"max_length": 15}
    elif case["wrong"] == "no rows":
        batch = {name: value[:0] for name, value in batch.items()}
    elif case["wrong"] == "no columns":
        batch = {name: value[:, :0] for name, value in batch.items()}
    elif case["wrong"] == "padding":
        batch = {name: value * np.array([[1], [0]], np.int32) for name, value in batch.items()}
    else:
        ids = np.resize(np.array([1, 1, 2, 1], np.int32), batch["decoder_segment_ids"].shape)
        batch |= {"decoder_segment_ids": ids}
    must_reject(
        f"a batch with {case['wrong']} {case.get('array', '')}".rstrip(),
        lambda: subject.call("forward", parameters, batch, configuration=fields),
    )
