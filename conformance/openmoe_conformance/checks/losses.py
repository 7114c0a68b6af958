"""Checks of SPEC.md "Losses and metrics of the layer"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance import strategies
from openmoe_conformance.checks import Case, check
from openmoe_conformance.checks.rejecting import must_reject
from openmoe_conformance.compare import close
from openmoe_conformance.outcome import Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject, UnsupportedError
from openmoe_reference import losses, moe, routing

BOUND = {"relative": 5e-6, "of_largest": 1e-6}


def _expert_index(case: Case) -> ndarray:
    options = {"k": case["k"], "capacity": 1, "padding_mask": case.get("padding_mask")}
    return np.asarray(routing.decide(case["probabilities"], **options).expert_index)


def _compare_balance(subject: Subject, case: Case, evidence: Evidence) -> None:
    index, mask = _expert_index(case), case.get("padding_mask")
    wide = case["probabilities"].astype(np.float64)
    wanted = losses.balance_loss(wide, index, padding_mask=mask)
    got = subject.scalar("balance_loss", case["probabilities"], index, padding_mask=mask)
    close("balance_loss", got, wanted, evidence, **BOUND, absolute=1e-7)


@check("LOSS-01", "balance_loss", cases=strategies.probabilities())
def balance_loss_is_e_squared_f_p(subject: Subject, case: Case, evidence: Evidence) -> None:
    """E^2 x mean of f x P over groups and experts."""
    _compare_balance(subject, case, evidence)


def _two_unlike_groups(_: Profile) -> Iterator[Case]:
    level = np.zeros((2, 6, 4), np.float32)
    level[0, :, 0], level[1, :, 3] = 3, 3
    for k in (1, 2):
        yield {"probabilities": routing.softmax(level), "k": k}


@check("LOSS-02", "balance_loss", cases=_two_unlike_groups)
def products_are_averaged_over_groups(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Two groups that each overload another expert are not balanced, though their union is."""
    _compare_balance(subject, case, evidence)
    evidence.examples += 1


def _balanced(_: Profile) -> Iterator[Case]:
    for experts, k in ((4, 1), (4, 2), (8, 3)):
        choices = (np.arange(experts)[:, None] + np.arange(k)) % experts
        yield {
            "probabilities": np.full((1, experts, experts), 1 / experts, np.float32),
            "expert_index": choices[None].astype(np.int32),
            "k": k,
        }


@check("LOSS-03", "balance_loss", cases=_balanced)
def perfect_balance_gives_k(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Uniform probabilities and evenly spread choices give K: nothing is divided by K."""
    got = subject.scalar("balance_loss", case["probabilities"], case["expert_index"])
    close("balance_loss", got, case["k"], evidence, relative=5e-6)
    evidence.examples += 1


@check("LOSS-03", "moe", cases=strategies.layers())
def dropped_choices_count_in_the_balance(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The layer's auxiliary_loss is the same whatever the capacity drops."""
    _compare_metric(subject, case | {"capacity": 1}, evidence, "auxiliary_loss")


@check("LOSS-04", "balance_loss(padding_mask)", cases=strategies.probabilities(masked=True))
def ignored_padding_still_divides(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Ignored tokens add nothing to f and P, whose divisors still count them."""
    _compare_balance(subject, case, evidence)


@check("LOSS-04", "moe", cases=strategies.layers(zero_rows=True))
def padding_counts_in_the_balance(subject: Subject, case: Case, evidence: Evidence) -> None:
    """By default zero rows count in f, P and both divisors."""
    _compare_metric(subject, case, evidence, "auxiliary_loss")


@check(
    "LOSS-04",
    "moe(ignore_padding)",
    "moe(router)",
    cases=strategies.layers(zero_rows=True),
)
def scatter_padding_counts_its_choices(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The scatter router's ignored padding has choices, and f counts them."""
    options = {"ignore_padding": True, "router": "scatter"}
    _compare_metric(subject, case, evidence, "auxiliary_loss", **options)


def _logits(case: Case) -> ndarray:
    return routing.router_logits(case["inputs"], case["kernel"])


@check("LOSS-05", "router_z_loss", cases=strategies.hidden_states())
def z_loss_is_mean_square_of_logsumexp(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Sum logsumexp^2 / (G T), also for large logits."""
    for scale in (1, 64, -512):
        logits = (_logits(case) * scale).astype(np.float32)
        wanted = losses.router_z_loss(logits.astype(np.float64))
        got = subject.scalar("router_z_loss", logits)
        close(f"router_z_loss (logits x {scale})", got, wanted, evidence, **BOUND, absolute=1e-6)


@check("LOSS-06", "router_z_loss(padding_mask)", cases=strategies.hidden_states(zero_rows=True))
def padding_adds_log_e_squared(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Ignored padding has logits 0, not no logits."""
    logits = _logits(case) + np.float32(1)  # so that a mask makes a difference
    mask = (case["inputs"] != 0).any(axis=-1)
    wanted = losses.router_z_loss(logits.astype(np.float64), padding_mask=mask)
    got = subject.scalar("router_z_loss", logits, padding_mask=mask)
    close("router_z_loss", got, wanted, evidence, **BOUND, absolute=1e-6)


@check("LOSS-06", "moe", cases=strategies.layers(zero_rows=True))
def padding_counts_in_the_z_loss(subject: Subject, case: Case, evidence: Evidence) -> None:
    """By default each zero row adds (ln E)^2 and counts in the divisor."""
    _compare_metric(subject, case, evidence, "router_z_loss")


# ---- the sown metrics, from the layer ----------------------------------------------------------


def _compare_metric(
    subject: Subject, case: Case, evidence: Evidence, name: str, **options: Any
) -> None:
    weights = strategies.parameters(case)
    sizes = {"k": case["k"], "capacity": case["capacity"]}
    got = subject.moe(case["inputs"], weights, **sizes, **options)
    if got.metrics is None or name not in got.metrics:
        raise UnsupportedError(f"moe() shows no metric {name}")
    wanted = moe.moe(case["inputs"], weights, **sizes, **options)
    assert wanted.metrics is not None
    close(name, got.metrics[name], wanted.metrics[name], evidence, **BOUND, absolute=1e-6)


@check("LOSS-07", "moe", cases=strategies.layers())
def tokens_left_behind(subject: Subject, case: Case, evidence: Evidence) -> None:
    """1 - tokens with at least one kept choice / tokens."""
    _compare_metric(subject, case, evidence, "fraction_tokens_left_behind")


@check("LOSS-08", "moe", cases=strategies.layers())
def confidence_of_what_was_kept(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Sum of kept gates / number of kept choices."""
    _compare_metric(subject, case, evidence, "router_confidence")


@check("LOSS-09", "moe", cases=strategies.layers())
def usage_of_the_slots(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Kept choices / (E C G)."""
    _compare_metric(subject, case, evidence, "expert_usage")


@check("LOSS-10", "moe(ignore_padding)", cases=strategies.layers(zero_rows=True))
def ignored_padding_leaves_the_denominator(
    subject: Subject, case: Case, evidence: Evidence
) -> None:
    """With padding ignored only real tokens count; without any the quotients are not-a-number."""
    for name in ("fraction_tokens_left_behind", "router_confidence", "expert_usage"):
        _compare_metric(subject, case, evidence, name, ignore_padding=True)


@check(
    "LOSS-10",
    "moe(ignore_padding)",
    "moe(router)",
    cases=strategies.layers(zero_rows=True),
)
def the_scatter_router_counts_k_times(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The scatter router's count of real tokens is K times too large, as in training."""
    options = {"ignore_padding": True, "router": "scatter"}
    _compare_metric(subject, case, evidence, "fraction_tokens_left_behind", **options)


@check("LOSS-11", "moe(router)", cases=strategies.layers())
def experts_choose_has_no_balance_loss(subject: Subject, case: Case, evidence: Evidence) -> None:
    """With the experts-choose router the balance loss is 0 and expert_usage 1."""
    one = case | {"capacity": min(case["capacity"], case["inputs"].shape[1])}
    for name in ("auxiliary_loss", "expert_usage"):
        _compare_metric(subject, one, evidence, name, router="experts_choose")


def _illegal(_: Profile) -> Iterator[Case]:
    probabilities = np.full((1, 3, 4), 0.25, np.float32)
    index = np.zeros((1, 3, 2), np.int32)
    yield {"probabilities": probabilities * np.nan, "expert_index": index}
    yield {"probabilities": probabilities[0], "expert_index": index}
    yield {"probabilities": probabilities, "expert_index": index[:, :2]}
    yield {"probabilities": probabilities, "expert_index": index + 4}
    mask = np.ones((1, 2), bool)
    yield {"probabilities": probabilities, "expert_index": index, "padding_mask": mask}
    wrong = np.full((1, 3), 0.5, np.float32)
    yield {"probabilities": probabilities, "expert_index": index, "padding_mask": wrong}


@check(
    "LOSS-13",
    "rejects_invalid_input",
    "balance_loss(padding_mask)",
    cases=_illegal,
)
def illegal_balance_inputs_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Not finite, of shapes that do not match, or an expert that is none: raises."""
    must_reject(
        "balance_loss with wrong arguments",
        lambda: subject.call(
            "balance_loss",
            case["probabilities"],
            case["expert_index"],
            padding_mask=case.get("padding_mask"),
        ),
    )


@check(
    "LOSS-13",
    "rejects_invalid_input",
    "router_z_loss",
    cases=lambda _: iter([{"value": v} for v in (float("nan"), float("inf"))]),
)
def illegal_logits_are_rejected(subject: Subject, case: Case, _: Evidence) -> None:
    """Logits that are not finite raise."""
    logits = np.full((1, 2, 3), case["value"], np.float32)
    must_reject("router_z_loss of such logits", lambda: subject.call("router_z_loss", logits))
