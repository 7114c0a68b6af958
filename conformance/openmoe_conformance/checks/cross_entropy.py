"""Checks of SPEC.md "Loss of the model": cross entropy of logits and its divisor."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance import model_cases
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import close
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import cross_entropy, part_gradients

BOUND = {"relative": 5e-6, "of_largest": 1e-6, "absolute": 1e-6}

# ---- cross entropy of given logits ---------------------------------------------------------

SIZES = ((1, 3, 2), (2, 4, 7), (3, 5, 29))  # B, L, V


@st.composite
def _texts(
    draw: st.DrawFn,
    *,
    z_losses: tuple[float, ...] = (0.0,),
    smoothings: tuple[float, ...] = (0.0,),
) -> Case:
    """Draw a size, how positions are weighted and what the loss is divided by (0: nothing)."""
    return {
        "size": draw(st.sampled_from(range(len(SIZES)))),
        "weights": draw(st.sampled_from(("none", "whole", "real"))),
        "factor": draw(st.sampled_from((0.0, 0.5, 7.0))),
        "z_loss": draw(st.sampled_from(z_losses)),
        "label_smoothing": draw(st.sampled_from(smoothings)),
        "seed": draw(st.integers(0, 2**16)),
    }


def _text(case: Case) -> tuple[ndarray, ndarray, dict[str, Any]]:
    """Return logits, targets and the loss's options; id 0 is among the targets."""
    generator = np.random.default_rng(case["seed"])
    rows, length, vocabulary = SIZES[case["size"]]
    logits = generator.normal(scale=2.0, size=(rows, length, vocabulary)).astype(np.float32)
    targets = generator.integers(0, vocabulary, (rows, length)).astype(np.int32)
    targets[0, 0] = 0
    weights: dict[str, Any] = {
        "none": None,
        "whole": (np.arange(targets.size) % 2).reshape(targets.shape).astype(np.int32),
        "real": generator.random(targets.shape).astype(np.float32),
    }
    return (
        logits,
        targets,
        {
            "weights": weights[case["weights"]],
            "normalizing_factor": case["factor"] or None,
            "z_loss": case["z_loss"],
            "label_smoothing": case["label_smoothing"],
        },
    )


def _compare_text(subject: Subject, case: Case, evidence: Evidence) -> None:
    logits, targets, options = _text(case)
    wanted = cross_entropy.cross_entropy(logits.astype(np.float64), targets, **options)._asdict()
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(wanted, ())
    got = subject.named("cross_entropy", shapes, logits, targets, **options)
    for name, value in got.items():
        close(name, value, wanted[name], evidence, **BOUND)


@check("LOSS-15", "cross_entropy(weights)", "cross_entropy(normalizing_factor)", cases=_texts())
def losses_are_weighted_added_and_divided(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Sum of weight x (logsumexp - target's logit) over the factor; without weights all count."""
    _compare_text(subject, case, evidence)


@check("LOSS-15", "cross_entropy", cases=lambda _: iter([{"scale": 64.0}, {"scale": -512.0}]))
def large_logits_do_not_overflow(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Logits in the hundreds, the largest subtracted before the exponential."""
    plain: Case = {"size": 2, "weights": "none", "factor": 0.0, "z_loss": 0.0, "seed": 1}
    logits, targets, _ = _text(plain | {"label_smoothing": 0.0})
    logits = logits * np.float32(case["scale"])
    wanted = cross_entropy.cross_entropy(logits.astype(np.float64), targets)
    got = subject.named("cross_entropy", {"loss": ()}, logits, targets)
    close("loss", got["loss"], wanted.loss, evidence, **BOUND)
    evidence.examples += 1


@check("LOSS-16", "cross_entropy(z_loss)", cases=_texts(z_losses=(1e-4, 0.25)))
def the_z_loss_is_contained_and_shown(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Z x logsumexp^2 is part of the loss, weighted and divided like it, and shown beside it."""
    _compare_text(subject, case, evidence)


@check("LOSS-17", "cross_entropy(label_smoothing)", cases=_texts(smoothings=(0.001, 0.1, 0.5)))
def smoothing_spreads_over_the_other_ids(subject: Subject, case: Case, evidence: Evidence) -> None:
    """1 - s on the target, s / (V - 1) on each other id, less the entropy of that."""
    _compare_text(subject, case, evidence)


@check(
    "LOSS-17",
    "cross_entropy(label_smoothing)",
    cases=lambda _: iter([{"vocabulary": 2}, {"vocabulary": 29}]),
)
def a_perfect_prediction_costs_nothing(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Logits that are the logarithm of the smoothed target give 0."""
    vocabulary, share = case["vocabulary"], 0.1
    targets = np.array([[0, 1]], np.int32)
    soft = np.full((1, 2, vocabulary), share / (vocabulary - 1))
    np.put_along_axis(soft, targets[..., None], 1 - share, axis=-1)
    logits = np.log(soft).astype(np.float32)
    got = subject.named("cross_entropy", {"loss": ()}, logits, targets, label_smoothing=share)
    close("loss", got["loss"], 0.0, evidence, **BOUND)
    evidence.examples += 1


@check(
    "LOSS-18",
    "cross_entropy_gradient(weights)",
    "cross_entropy_gradient(normalizing_factor)",
    "cross_entropy_gradient(z_loss)",
    "cross_entropy_gradient(label_smoothing)",
    cases=_texts(z_losses=(0.0, 1e-4, 0.25), smoothings=(0.0, 0.1)),
)
def the_gradient_in_the_logits(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Weight / factor x ((1 + 2 z logsumexp) softmax - target distribution)."""
    logits, targets, options = _text(case)
    wanted = part_gradients.cross_entropy_gradient(logits, targets, **options)
    got = subject.array("cross_entropy_gradient", logits.shape, logits, targets, **options)
    close("gradient", got, wanted, evidence, **BOUND)


# ---- what it is divided by -----------------------------------------------------------------


@st.composite
def _batches(draw: st.DrawFn) -> Case:
    """Draw a batch's kind and how it is weighted: as its kind is, or by real numbers."""
    return {
        "kind": draw(st.sampled_from(model_cases.KINDS)),
        "rows": draw(st.sampled_from((1, 3))),
        "length": draw(st.sampled_from((4, 16))),
        "real_weights": draw(st.booleans()),
        "seed": draw(st.integers(0, 2**16)),
    }


def _batch(case: Case) -> dict[str, ndarray]:
    batch = model_cases.batch(case)
    if case["real_weights"]:
        shape = batch["decoder_target_tokens"].shape
        drawn = np.random.default_rng(case["seed"]).random(shape).astype(np.float32)
        batch["decoder_loss_weights"] = drawn
    return batch


def _compare_normalizer(subject: Subject, case: Case, evidence: Evidence, name: str) -> None:
    batch = _batch(case)
    factor, weights = cross_entropy.normalizer(name, batch)
    shapes = {"factor": (), "weights": weights.shape}
    got = subject.named("normalizer", shapes, name, batch)
    close("weights", got["weights"], weights, evidence, **BOUND)
    close("factor", got["factor"], factor, evidence, **BOUND)


@check("LOSS-19", "normalizer", cases=_batches())
def real_target_tokens(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The sum of the loss weights as they are; without them of the positions with a target."""
    _compare_normalizer(subject, case, evidence, "NUM_REAL_TARGET_TOKENS")


@check("LOSS-20", "normalizer", cases=_batches())
def total_target_tokens(subject: Subject, case: Case, evidence: Evidence) -> None:
    """B x L, whatever the weights."""
    _compare_normalizer(subject, case, evidence, "NUM_TOTAL_TARGET_TOKENS")


@check("LOSS-20", "normalizer", cases=_batches())
def the_average_of_a_sequence(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Weights add up to 1 in each row, and in each segment of a packed row."""
    _compare_normalizer(subject, case, evidence, "AVERAGE_PER_SEQUENCE")


# ---- what must be rejected -----------------------------------------------------------------


def _wrong_texts(_: Profile) -> Iterator[Case]:
    logits = np.zeros((2, 3, 4), np.float32)
    good: Case = {"logits": logits, "targets": np.ones((2, 3), np.int32)}
    infinite, unknown = logits.copy(), logits.copy()
    infinite[1, 2, 3], unknown[0, 0, 0] = np.inf, np.nan
    for name, value in (
        ("targets", np.full((2, 3), 4, np.int32)),
        ("targets", np.full((2, 3), -1, np.int32)),
        ("targets", np.ones((2, 2), np.int32)),
        ("targets", np.ones((2, 3), np.float32)),
        ("logits", logits[0]),
        ("logits", infinite),
        ("logits", unknown),
        ("weights", np.full((2, 3), -1, np.float32)),
        ("weights", np.full((2, 3), np.nan, np.float32)),
        ("weights", np.ones((3, 2), np.float32)),
        ("normalizing_factor", 0.0),
        ("normalizing_factor", -1.0),
        ("normalizing_factor", float("nan")),
        ("label_smoothing", 1.0),
        ("label_smoothing", -0.1),
        ("z_loss", float("inf")),
    ):
        yield good | {name: value, "wrong": name}


@check(
    "LOSS-25",
    "rejects_invalid_input",
    "cross_entropy(weights)",
    "cross_entropy(normalizing_factor)",
    "cross_entropy(z_loss)",
    "cross_entropy(label_smoothing)",
    cases=_wrong_texts,
)
def wrong_texts_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Unknown targets, negative weights, factors and shares out of range, shapes, not-a-number."""
    names = ("weights", "normalizing_factor", "z_loss", "label_smoothing")
    options = {name: case[name] for name in names if name in case}
    must_reject(
        f"cross_entropy with wrong {case['wrong']}",
        lambda: subject.call("cross_entropy", case["logits"], case["targets"], **options),
    )


def _weightless(_: Profile) -> Iterator[Case]:
    for name in ("NUM_REAL_TARGET_TOKENS", "AVERAGE_PER_SEQUENCE"):
        yield {"name": name, "targets": np.ones((2, 3), np.int32), "weight": 0}
    yield {"name": "LOSS", "targets": np.ones((2, 3), np.int32), "weight": 1}


@check("LOSS-25", "rejects_invalid_input", "normalizer", cases=_weightless)
def weights_that_add_up_to_nothing_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Weights that are all 0, and a normalising factor that nobody knows."""
    weights = np.full_like(case["targets"], case["weight"])
    batch = {"decoder_target_tokens": case["targets"], "decoder_loss_weights": weights}
    must_reject(
        f"normalizer {case['name']} with weights {case['weight']}",
        lambda: subject.call("normalizer", case["name"], batch),
    )
