"""Checks of SPEC.md "Layers" and "Attention": what they must reject."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject

ONES, IDS = np.ones((2, 3, 4), np.float32), np.ones((2, 3), np.int32)
TABLE, SCALE = np.ones((5, 4), np.float32), np.ones(4, np.float32)


def _refused(subject: Subject, function: str, case: Case, *arguments: str, **options: Any) -> None:
    """Require that a call with the case's wrong argument raises."""
    must_reject(
        f"{function} with {case['wrong']}",
        lambda: subject.call(function, *(case[name] for name in arguments), **options),
    )


def _illegal_embeddings(_: Profile) -> Iterator[Case]:
    good = {"table": TABLE, "ids": IDS}
    yield good | {"table": TABLE[0], "wrong": "a table of rank 1"}
    yield good | {"table": TABLE * np.nan, "wrong": "not-a-number in the table"}
    yield good | {"table": TABLE * np.inf, "wrong": "infinity in the table"}
    yield good | {"ids": IDS[0], "wrong": "ids of rank 1"}
    yield good | {"ids": IDS * np.float32(0.5), "wrong": "ids that are no whole numbers"}


@check("LAYER-08", "rejects_invalid_input", "embed", cases=_illegal_embeddings)
def illegal_embeddings_are_rejected(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A table or ids of another form, or not finite, raise."""
    _refused(subject, "embed", case, "table", "ids")
    evidence.examples += 1


def _illegal_norms(_: Profile) -> Iterator[Case]:
    good = {"inputs": ONES, "scale": SCALE}
    yield good | {"inputs": ONES * np.nan, "wrong": "not-a-number in the inputs"}
    yield good | {"inputs": ONES * np.inf, "wrong": "infinity in the inputs"}
    yield good | {"scale": SCALE * np.inf, "wrong": "infinity in the scale"}
    yield good | {"scale": SCALE[:1], "wrong": "a scale of one element"}
    yield good | {"scale": np.ones(5, np.float32), "wrong": "a scale that is too long"}
    yield good | {"scale": ONES, "wrong": "a scale of rank 3"}


@check("LAYER-08", "rejects_invalid_input", "rms_norm", cases=_illegal_norms)
def illegal_norms_are_rejected(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A scale that is not [D], and values that are not finite, raise."""
    _refused(subject, "rms_norm", case, "inputs", "scale")
    evidence.examples += 1


@check(
    "LAYER-08",
    *("rejects_invalid_input", "embed(dtype)", "rms_norm(dtype)"),
    cases=lambda _: iter([{"dtype": "float8"}, {"dtype": "int32"}]),
)
def unknown_dtypes_are_rejected(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A dtype that no activation has raises."""
    named = {"table": TABLE, "ids": IDS, "inputs": ONES, "scale": SCALE} | {"wrong": case["dtype"]}
    _refused(subject, "embed", named, "table", "ids", dtype=case["dtype"])
    _refused(subject, "rms_norm", named, "inputs", "scale", dtype=case["dtype"])
    evidence.examples += 1


def _illegal_ids(_: Profile) -> Iterator[Case]:
    yield {"ids": IDS[0], "wrong": "ids of rank 1"}
    yield {"ids": IDS * np.float32(0.5), "wrong": "ids that are no whole numbers"}


@check("LAYER-08", "rejects_invalid_input", "token_mask", cases=_illegal_ids)
def illegal_ids_are_rejected(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Ids that are not whole numbers [B, L] raise."""
    _refused(subject, "token_mask", case, "ids")
    evidence.examples += 1


def _illegal_projections(_: Profile) -> Iterator[Case]:
    good = {"inputs": ONES, "kernel": TABLE.T.copy(), "mask": np.ones((2, 3), bool)}
    yield good | {"kernel": TABLE, "wrong": "a kernel [V, D]"}
    yield good | {"kernel": good["kernel"] * np.nan, "wrong": "not-a-number in the kernel"}
    yield good | {"inputs": ONES * np.inf, "wrong": "infinity in the inputs"}
    yield good | {"inputs": ONES[..., :3], "wrong": "inputs that are too narrow"}
    yield good | {"mask": np.ones((2, 4), bool), "wrong": "a mask that is too long"}
    yield good | {"mask": np.ones((1, 3), bool), "wrong": "a mask of one row"}


@check("LAYER-08", "rejects_invalid_input", "output_logits(mask)", cases=_illegal_projections)
def illegal_projections_are_rejected(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A kernel or a mask that does not fit, and values that are not finite, raise."""
    _refused(subject, "output_logits", case, "inputs", "kernel", mask=case["mask"])
    evidence.examples += 1


# ---- attention ---------------------------------------------------------------------------------

KERNELS = {
    "query": np.ones((4, 8), np.float32),
    "key": np.ones((4, 8), np.float32),
    "value": np.ones((4, 8), np.float32),
    "out": np.ones((8, 4), np.float32),
}
"""Of two heads of width 4 or four heads of width 2."""


def _illegal_attentions(_: Profile) -> Iterator[Case]:
    good = {"inputs": ONES, **KERNELS, "mask": np.ones((2, 3, 3), bool), "num_heads": 2}
    for name, kernel in KERNELS.items():
        yield good | {name: kernel * np.nan, "wrong": f"not-a-number in {name}"}
        yield good | {name: kernel.T.copy(), "wrong": f"{name} transposed"}
        yield good | {name: kernel[:, :-1], "wrong": f"{name} of an odd width"}
    yield good | {"inputs": ONES * np.inf, "wrong": "infinity in the inputs"}
    yield good | {"inputs": ONES[0], "wrong": "inputs of rank 2"}
    yield good | {"inputs": ONES[..., :3], "wrong": "inputs that are too narrow"}
    yield good | {"num_heads": 3, "wrong": "heads that do not divide the kernels"}
    yield good | {"num_heads": 8, "wrong": "heads of width 1"}
    yield good | {"mask": np.ones((2, 3, 4), bool), "wrong": "a mask of too many keys"}
    yield good | {"mask": np.ones((1, 3, 3), bool), "wrong": "a mask of one row"}
    yield good | {"mask": np.ones((2, 3), bool), "wrong": "a mask of rank 2"}


@check("ATTN-12", "rejects_invalid_input", "attention", cases=_illegal_attentions)
def illegal_attentions_are_rejected(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Kernels, masks and heads that do not fit, and values that are not finite, raise."""
    kernels = {name: case[name] for name in KERNELS}
    _refused(
        subject,
        "attention",
        case | {"kernels": kernels},
        *("inputs", "kernels", "mask"),
        num_heads=case["num_heads"],
    )
    evidence.examples += 1


@check(
    "ATTN-12",
    *("rejects_invalid_input", "attention"),
    cases=lambda _: iter([{"lacks": name} for name in KERNELS]),
)
def missing_kernels_are_rejected(subject: Subject, case: Case, evidence: Evidence) -> None:
    """An attention without one of its four kernels raises."""
    kernels = {name: kernel for name, kernel in KERNELS.items() if name != case["lacks"]}
    must_reject(
        f"attention without {case['lacks']}",
        lambda: subject.call("attention", ONES, kernels, None, num_heads=2),
    )
    evidence.examples += 1


def _illegal_places(_: Profile) -> Iterator[Case]:
    good = {"heads": np.ones((1, 3, 2, 4), np.float32), "positions": np.arange(3, dtype=np.int32)}
    yield good | {"positions": good["positions"] - 1, "wrong": "a position below 0"}
    yield good | {"heads": good["heads"][..., :3], "wrong": "an odd head width"}


@check("ATTN-12", "rejects_invalid_input", "rotate", cases=_illegal_places)
def illegal_rotations_are_rejected(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Heads of an odd width and positions below 0 raise."""
    _refused(subject, "rotate", case, "heads", "positions")
    evidence.examples += 1


@check("ATTN-12", "rejects_invalid_input", "rotary_tables", cases=_illegal_places)
def illegal_tables_are_rejected(subject: Subject, case: Case, evidence: Evidence) -> None:
    """So they do where tables are made."""
    _refused(subject, "rotary_tables", case, "positions", head_dim=case["heads"].shape[-1])
    evidence.examples += 1


def _illegal_masks(_: Profile) -> Iterator[Case]:
    good = {"targets": np.ones((1, 4), np.int32), "segments": np.array([[1, 1, 2, 2]], np.int32)}
    interleaved = np.array([[1, 2, 1, 2]], np.int32)
    yield good | {"segments": interleaved, "wrong": "segments that interleave"}
    yield good | {"segments": np.array([[3, 3, 1, 3]], np.int32), "wrong": "a segment that returns"}
    yield good | {"segments": good["segments"][:, :3], "wrong": "segments that are too short"}
    yield good | {"targets": good["targets"][0], "wrong": "targets of rank 1"}
    yield good | {"targets": good["targets"] * np.float32(0.5), "wrong": "targets that are no ids"}


@check("ATTN-12", "rejects_invalid_input", "decoder_mask(segment_ids)", cases=_illegal_masks)
def illegal_masks_are_rejected(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Segments that interleave, shapes that do not match and targets that are no ids raise."""
    _refused(subject, "decoder_mask", case, "targets", segment_ids=case["segments"])
    evidence.examples += 1
