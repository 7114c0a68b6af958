"""Checks of SPEC.md "Loss of the model": its parts, their sum and accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import numpy as np

from openmoe_conformance import model_cases
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.cross_entropy import BOUND
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import close
from openmoe_conformance.model_judging import OF_LARGEST, Given, forced, given, settled
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject
from openmoe_reference import cross_entropy

STRONG = {
    "auxiliary_loss_factor": 0.5,
    "router_z_loss_factor": 0.25,
    "z_loss_factor": 0.01,
    "label_smoothing": 0.1,
}
"""Factors at which each part of the loss is worth something, so that none can be wrong unseen."""


def _compare_loss(subject: Subject, one: Given, evidence: Evidence, *names: str) -> None:
    decisions = settled(subject, one, evidence)
    if decisions is None:
        return
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(names, ())
    got = subject.named("loss", shapes, one.parameters, one.batch, **one.arguments())
    result = forced(one, decisions).result
    wanted = cross_entropy.total_loss(result.logits, one.batch, result.metrics, one.configuration)
    for name, value in got.items():
        close(name, value, wanted[name], evidence, **BOUND)


def _passes(_: Profile) -> Iterator[Case]:
    for seed, (kind, training) in enumerate((("padded", True), ("prefix_packed", False))):
        yield model_cases.fixed(kind=kind, training=training, seed=seed)


@check("LOSS-21", "loss(training)", cases=_passes)
def the_total_is_the_sum_of_four(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Cross entropy, z-loss and both router losses, each shown without the others."""
    names = ("total", "cross_entropy", "z_loss", "auxiliary_loss", "router_z_loss", "weight_sum")
    _compare_loss(subject, given(case, **STRONG), evidence, *names)
    evidence.examples += 1


@check("LOSS-23", "loss(training)", cases=_passes)
def router_losses_are_means_over_layers(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Factor x mean over two sparse layers, whatever the number of tokens."""
    names = ("auxiliary_loss", "router_z_loss")
    _compare_loss(subject, given(case, **STRONG), evidence, *names)
    evidence.examples += 1


@check(
    "LOSS-24",
    "loss(training)",
    cases=lambda _: iter([{"training": True}, {"training": False}]),
)
def training_drops_more(subject: Subject, case: Case, evidence: Evidence) -> None:
    """One batch of which training keeps fewer choices than evaluation does."""
    crowd = model_cases.fixed(kind="full", rows=4, training=case["training"])
    _compare_loss(subject, given(crowd, **STRONG), evidence, "total", "cross_entropy")
    evidence.examples += 1


def _judged_texts(_: Profile) -> Iterator[Case]:
    for kind in ("random", "ties"):
        yield model_cases.fixed(kind="padded", training=False) | {"logits": kind}


@check("LOSS-22", "loss", cases=_judged_texts)
def accuracy_is_weighted(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Where half of the targets are the largest logit's, and where all logits are equal.

    All positions have a weight, those without a target too, whose id 0 wins among equals.
    """
    one = given(case, **STRONG)
    if case["logits"] == "ties":
        head = "decoder/logits_dense/kernel"
        flat = {**one.parameters, head: np.zeros_like(one.parameters[head])}
        one = replace(one, parameters=flat)
    logits = forced(one, {}).result.logits
    generator = np.random.default_rng(case["seed"])
    targets, best = one.batch["decoder_target_tokens"], logits.argmax(axis=-1)
    right = (generator.random(targets.shape) < 0.5) & (targets > 0) & (best > 0)
    batch = {
        **one.batch,
        "decoder_target_tokens": np.where(right, best, targets).astype(np.int32),
        "decoder_loss_weights": generator.random(targets.shape).astype(np.float32),
    }
    ranked = np.sort(logits, axis=-1)
    gap = (ranked[..., -1] - ranked[..., -2])[ranked[..., -1] != ranked[..., -2]]
    if (gap > 2 * OF_LARGEST * np.abs(logits).max()).all():
        _compare_loss(subject, replace(one, batch=batch), evidence, "accuracy")
    evidence.examples += 1


@check("LOSS-25", "rejects_invalid_input", "loss", cases=lambda _: iter([model_cases.fixed()]))
def a_loss_without_weights_is_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """A model's loss on a batch whose weights are all 0 raises instead of dividing by 0."""
    one = given(case | {"training": False})
    nothing = np.zeros_like(one.batch["decoder_target_tokens"])
    batch = {**one.batch, "decoder_loss_weights": nothing}
    must_reject(
        "loss with weights of 0",
        lambda: subject.call("loss", one.parameters, batch, configuration=one.fields),
    )
