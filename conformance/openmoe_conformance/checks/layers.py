"""Checks of SPEC.md "Layers": embedding, norm, token mask, output projection."""

from __future__ import annotations

from collections.abc import Iterator

import ml_dtypes
import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance import answers, model_cases, strategies
from openmoe_conformance.checks import Case, check
from openmoe_conformance.compare import close, same
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.strategies import normal
from openmoe_conformance.subject import Subject
from openmoe_reference import layers, part_gradients

BOUND = {"relative": 1e-5, "absolute": 1e-5}
GRADIENT_BOUND = {"relative": 2e-5, "absolute": 2e-5}
"""Bounds of a layer's output and of its gradients (JUDGE-07)."""


# ---- embedding ---------------------------------------------------------------------------------


@st.composite
def _embeddings(draw: st.DrawFn) -> Case:
    """Draw a table [V, D] and ids [B, L] with many repeats, 0 among them."""
    rows, width = draw(st.sampled_from(((7, 4), (11, 6))))
    return {
        "table": normal(draw(st.integers(0, 2**16)), rows, width),
        "ids": draw(strategies.small_integers((2, 5), 0, rows - 1)).astype(np.int32),
    }


@check("LAYER-01", "embed", cases=_embeddings())
def embeddings_are_rows(subject: Subject, case: Case, _: Evidence) -> None:
    """Every id gives its row of the table, bit for bit, wherever it stands."""
    wanted = case["table"][case["ids"]]
    same("embed", subject.array("embed", wanted.shape, case["table"], case["ids"]), wanted)


@check("LAYER-01", "embed(dtype)", cases=_embeddings())
def embeddings_are_rounded(subject: Subject, case: Case, _: Evidence) -> None:
    """With bfloat16 activations it is the rounded row."""
    wanted = case["table"].astype(ml_dtypes.bfloat16)[case["ids"]]
    got = subject.array("embed", wanted.shape, case["table"], case["ids"], dtype="bfloat16")
    same("embed(bfloat16)", got.astype(np.float32), wanted.astype(np.float32))


@check("LAYER-02", "embed", cases=_embeddings())
def unknown_ids_give_zeros(subject: Subject, case: Case, _: Evidence) -> None:
    """An id below 0, or V or above, gives zeros and leaves its neighbours as they are."""
    rows = len(case["table"])
    outside = np.array([[-1, rows, -rows, 2**31 - 1, -(2**31)]], np.int32)
    ids = np.concatenate([outside, case["ids"]]).astype(np.int32)
    wanted = np.concatenate([np.zeros((1, 5, case["table"].shape[1])), case["table"][case["ids"]]])
    got = subject.array("embed", wanted.shape, case["table"], ids)
    same("embed of unknown ids", got, wanted)


# ---- norm --------------------------------------------------------------------------------------


@st.composite
def _norms(draw: st.DrawFn, sizes: tuple[float, ...] = (0.0, 1e-4, 1e-3, 1.0, 300.0)) -> Case:
    """Draw rows with a mean of their own, from 0 over the size of epsilon's root to large."""
    width = draw(st.sampled_from((4, 7, 16)))
    seed = draw(st.integers(0, 2**16))
    size = draw(st.sampled_from(sizes))
    inputs = size * (normal(seed, 2, 3, width) + draw(st.sampled_from((0, 3))))
    return {
        "inputs": inputs.astype(np.float32),
        "scale": 1 + normal(seed + 1, width),
        # Small where the quotient is steep, so that gradients are near 1.
        "cotangent": np.float32(max(size, 1e-3)) * normal(seed + 2, 2, 3, width),
    }


@check("LAYER-03", "rms_norm", cases=_norms())
def norms_divide_by_the_root_mean_square(subject: Subject, case: Case, evidence: Evidence) -> None:
    """X / sqrt(mean(x^2) + 1e-6) x scale: no mean is subtracted, zeros stay zeros."""
    x = case["inputs"].astype(np.float64)
    wanted = x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + 1e-6) * case["scale"]
    got = subject.array("rms_norm", wanted.shape, case["inputs"], case["scale"])
    close("rms_norm", got, wanted, evidence, **BOUND)


def _wide_rows(_: Profile) -> Iterator[Case]:
    # So wide that a sum in bfloat16 stands still: from 256 on, adding 1 changes nothing.
    for seed, size in enumerate((1e-3, 1.0, 30.0)):
        inputs = size * (1 + 0.1 * normal(seed, 1, 2, 1024))
        yield {"inputs": inputs.astype(np.float32), "scale": 1 + normal(seed + 9, 1024)}


@check("LAYER-04", "rms_norm(dtype)", cases=_wide_rows)
def bfloat16_norms_have_float32_statistics(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """Within two units of the last bfloat16 place of the reference, and a bfloat16 number."""
    wanted = layers.rms_norm(case["inputs"], case["scale"], dtype="bfloat16").astype(np.float64)
    answer = subject.array(
        "rms_norm", wanted.shape, case["inputs"], case["scale"], dtype="bfloat16"
    )
    got = answer.astype(np.float64)
    same("rms_norm(bfloat16), rounded to bfloat16", got.astype(ml_dtypes.bfloat16), got)
    _, exponent = np.frexp(wanted)
    unit = np.ldexp(1.0, exponent - 8)  # of the last place: 8 significant bits
    close(
        "rms_norm(bfloat16) in units", got / unit, wanted / unit, evidence, relative=0, absolute=2
    )
    evidence.examples += 1


# ---- token mask --------------------------------------------------------------------------------


def _compare_token_mask(subject: Subject, ids: ndarray, wanted: ndarray) -> None:
    got = answers.array("token_mask", subject.call("token_mask", ids))
    same("token_mask", got, wanted)


@check(
    "LAYER-05",
    "token_mask",
    cases=strategies.small_integers((2, 6), 0, 2).map(lambda ids: {"ids": ids.astype(np.int32)}),
)
def tokens_keep_the_position_before_them(subject: Subject, case: Case, _: Evidence) -> None:
    """A position counts when it, or the one after it in its row, holds an id, or it is the first."""
    ids = case["ids"]
    rows, length = ids.shape
    wanted = np.zeros(ids.shape, bool)
    for b in range(rows):
        for t in range(length):
            following = t + 1 < length and ids[b, t + 1] > 0
            wanted[b, t] = ids[b, t] > 0 or following or t == 0
    _compare_token_mask(subject, ids, wanted)


@check(
    "LAYER-05", "token_mask", cases=lambda _: iter([{"ids": np.array([[0, 5, 0, 0, 7]], np.int32)}])
)
def the_example_of_the_text(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Ids (0, 5, 0, 0, 7) give (1, 1, 0, 1, 1)."""
    _compare_token_mask(subject, case["ids"], np.array([[1, 1, 0, 1, 1]], bool))
    evidence.examples += 1


# ---- output projection -------------------------------------------------------------------------


@st.composite
def _projections(draw: st.DrawFn) -> Case:
    """Draw normed outputs, a kernel and a mask; D = V among them."""
    width, vocabulary = draw(st.sampled_from(((6, 11), (8, 8))))
    seed = draw(st.integers(0, 2**16))
    mask = draw(strategies.small_integers((2, 4), 0, 1)).astype(bool)
    return {
        "inputs": normal(seed, 2, 4, width),
        "kernel": normal(seed + 1, width, vocabulary),
        "mask": mask,
    }


@check("LAYER-06", "output_logits", cases=_projections())
def logits_are_a_product(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The inputs times the kernel as it is, not divided by sqrt(D)."""
    wanted = case["inputs"].astype(np.float64) @ case["kernel"].astype(np.float64)
    got = subject.array("output_logits", wanted.shape, case["inputs"], case["kernel"])
    close("output_logits", got, wanted, evidence, **BOUND)


@check("LAYER-06", "output_logits", "rms_norm(dtype)", cases=_projections())
def bfloat16_activations_meet_a_float32_kernel(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """With bfloat16 inputs neither the kernel nor the product is rounded."""
    inputs = case["inputs"].astype(ml_dtypes.bfloat16)
    wanted = inputs.astype(np.float64) @ case["kernel"].astype(np.float64)
    got = subject.array("output_logits", wanted.shape, inputs, case["kernel"])
    close("output_logits of bfloat16 inputs", got, wanted, evidence, **BOUND)


def _one_model(_: Profile) -> Iterator[Case]:
    yield model_cases.fixed(length=12, training=False)


@check("LAYER-06", "forward", cases=_one_model)
def the_projection_is_a_tensor_of_its_own(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A model's logits double with their kernel, and nothing but it."""
    fields, weights, batch = model_cases.build(case)
    name = "decoder/logits_dense/kernel"
    doubled = weights | {name: 2 * weights[name]}
    once, twice = (
        subject.forward(tree, batch, configuration=fields).logits for tree in (weights, doubled)
    )
    same("logits of a doubled kernel", twice, 2 * once)
    if not once.any():
        raise Disagreement("forward: every logit is 0")
    evidence.examples += 1


@check("LAYER-07", "output_logits(mask)", cases=_projections())
def masked_logits_are_zero(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Masked positions have exact zeros, the others what they have without a mask."""
    shape = (*case["mask"].shape, case["kernel"].shape[1])
    got = subject.array("output_logits", shape, case["inputs"], case["kernel"], mask=case["mask"])
    same("output_logits, masked", got[~case["mask"]], np.zeros_like(got[~case["mask"]]))
    wanted = case["inputs"].astype(np.float64) @ case["kernel"].astype(np.float64)
    shown = case["mask"][..., None]
    close("output_logits", got * shown, wanted * shown, evidence, **BOUND)


@check("LAYER-07", "forward", cases=_one_model)
def padding_has_no_logits(subject: Subject, case: Case, evidence: Evidence) -> None:
    """In a padded batch every logit of a position that is no token is 0, and no other row is."""
    fields, weights, batch = model_cases.build(case)
    ids = batch["decoder_input_tokens"].copy()
    ids[:, 8:] = 0
    logits = subject.forward(
        weights, batch | {"decoder_input_tokens": ids}, configuration=fields
    ).logits
    same("rows with logits", (logits != 0).any(axis=-1), layers.token_mask(ids))
    evidence.examples += 1


# ---- gradients ---------------------------------------------------------------------------------


@check("LAYER-09", "part_gradients", cases=_norms((0.0, 1e-4, 1e-3, 1.0)))
def norms_are_differentiated(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Through the quotient and through its mean of squares."""
    arrays = (case["inputs"], {"scale": case["scale"]}, case["cotangent"])
    wanted = part_gradients.norm_gradients(case["inputs"], case["scale"], case["cotangent"])
    shapes = {name: value.shape for name, value in wanted.items()}
    got = subject.named("part_gradients", shapes, "rms_norm", *arrays)
    for name, value in wanted.items():
        close(f"gradient of {name}", got[name], value, evidence, **GRADIENT_BOUND)


@check("LAYER-09", "part_gradients", cases=_embeddings())
def every_occurrence_of_an_id_counts(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A row's gradient is the sum over the positions that hold its id, id 0 included."""
    table, ids = case["table"], case["ids"].copy()
    ids[0, :2] = 0
    cotangent = normal(0, *ids.shape, table.shape[1])
    wanted = np.zeros(table.shape)
    for place in np.ndindex(*ids.shape):
        wanted[ids[place]] += cotangent[place]
    got = subject.named(
        "part_gradients",
        {"table": table.shape},
        *("embed", ids, {"table": table}, cotangent),
        size=len(table),
    )
    close("gradient of the table", got["table"], wanted, evidence, **GRADIENT_BOUND)
