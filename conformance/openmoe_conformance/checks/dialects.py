"""Checks of SPEC.md "Dialects"."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict

import numpy as np
from hypothesis import strategies as st
from numpy import ndarray

from openmoe_conformance import model_cases
from openmoe_conformance.answers import array
from openmoe_conformance.checks import Case, check
from openmoe_conformance.compare import close, same
from openmoe_conformance.dialect_adapter import DialectAdapter
from openmoe_conformance.identify import identify
from openmoe_conformance.outcome import Disagreement, Evidence
from openmoe_conformance.profile import Profile
from openmoe_conformance.subject import Subject, UnsupportedError
from openmoe_spec import dialects
from openmoe_spec.dialects import DIALECTS, POINTS

BOUND = {"relative": 2e-4, "absolute": 2e-4}


@check("DIAL-01", "forward", cases=lambda _: iter([{"native": True}]), whole_model=True)
def it_speaks_what_it_says(subject: Subject, _: Case, evidence: Evidence) -> None:
    """At every point that a probe can tell, the choice is that of the implementation's own dialect."""
    identity = identify(subject.adapter)
    evidence.examples += sum(bool(one.findings) for one in identity.answers)
    for finding in identity.raised:
        raise Disagreement(f"{finding.function}, {finding.what}: {finding.evidence}")
    if not identity.known:
        raise UnsupportedError("no probe tells anything about it")
    for one in identity.answers:
        wanted = DIALECTS[subject.dialect][one.point]
        if one.findings and one.choice != wanted:
            raise Disagreement(
                f"{one.point}: {one.state}, {subject.dialect} has {wanted}; "
                + "; ".join(f"{f.function}, {f.what}: {f.evidence}" for f in one.findings)
            )


def _single_choices(_: Profile) -> Iterator[Case]:
    yield from ({"point": name, "option": o} for name, p in POINTS.items() for o in p.options)


@check("DIAL-01", "forward(dialect)", cases=_single_choices, whole_model=True)
def single_choices_are_honoured(subject: Subject, case: Case, evidence: Evidence) -> None:
    """A forward pass with one choice exchanged is the reference's with that one exchanged."""
    table = {case["point"]: case["option"]}
    built = model_cases.fixed(kind="padded", experts=8, rows=2, length=12, training=False)
    _compare_forward(subject, built, table, evidence)
    evidence.examples += 1


@check("DIAL-02", "forward(dialect)", cases=model_cases.models(kinds=("padded",)))
def the_port_forward(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Logits and routing of the published port, with an attention mask that hides padding."""
    _compare_forward(subject, case, "torch_port", evidence)


def _compare_forward(
    subject: Subject, case: Case, dialect: str | dict[str, str], evidence: Evidence
) -> None:
    doubled = dialects.choices(dialect)["feed_forward"] == "cubic"
    fields = model_cases.configuration(case)
    weights = model_cases.weights(fields, case["seed"], doubled_gate=doubled)
    batch = _masked(model_cases.batch(case), hidden=case["seed"] % 3)
    options = {"configuration": fields, "training": case["training"]}
    wanted = DialectAdapter(dialect).forward(weights, batch, **options)
    got = subject.forward(weights, batch, dialect=dialect, **options)
    for index, record in got.decisions.items():
        for name in ("expert_index", "kept"):
            shown, expected = getattr(record, name), getattr(wanted.decisions[index], name)
            same(f"{dialect}: decisions[{index}].{name}", shown, expected)
    close(f"{dialect}: logits", got.logits, wanted.logits, evidence, **BOUND)


def _masked(batch: dict[str, ndarray], *, hidden: int) -> dict[str, ndarray]:
    """Return a batch with a caller's attention mask: padding and the first few tokens are hidden."""
    mask = (batch["decoder_target_tokens"] > 0).astype(np.int32)
    mask[:, : min(hidden, mask.shape[1] - 2)] = 0
    mask[:, -2] = 1
    return batch | {"attention_mask": mask}


@check("DIAL-02", "loss(dialect)", cases=model_cases.models(kinds=("full",)))
def the_port_loss_ignores_its_targets(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The port's loss is that of targets which are all ones; other targets change nothing."""
    fields, weights, batch = model_cases.build(case)
    options = {"configuration": fields, "dialect": "torch_port"}
    wanted = DialectAdapter("torch_port").loss(weights, batch, configuration=fields)
    for targets in (
        batch["decoder_target_tokens"],
        np.full_like(batch["decoder_target_tokens"], 5),
    ):
        changed = batch | {"decoder_target_tokens": targets}
        found = subject.named("loss", {"total": ()}, weights, changed, **options)
        close("loss", found["total"], wanted["total"], evidence, relative=2e-5)


@st.composite
def _calls(draw: st.DrawFn) -> Case:
    """Draw a model and how its row is cut into cached calls."""
    return draw(model_cases.models(kinds=("full",))) | {
        "prefill": draw(st.integers(3, 4)),  # more than the padding: its ids would leave the table
        "chunk": draw(st.integers(1, 2)),
        "left_padding": draw(st.integers(0, 2)),
        "positions_from_mask": draw(st.booleans()),
    }


@check("DIAL-02", "cached_calls", cases=_calls())
def the_port_decodes_with_its_defects(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Cached calls route their own tokens alone; a lone query stands at its position id."""
    fields, weights, batch = model_cases.build(case)
    mask = np.ones_like(batch["decoder_input_tokens"])
    mask[:, : case["left_padding"]] = 0
    fed = {"decoder_input_tokens": batch["decoder_input_tokens"], "attention_mask": mask}
    options = {
        "configuration": fields,
        **{name: case[name] for name in ("prefill", "chunk", "positions_from_mask")},
    }
    wanted = DialectAdapter("torch_port").cached_calls(weights, fed, **options)["logits"]
    answer = subject.named("cached_calls", {"logits": wanted.shape}, weights, fed, **options)
    close("cached_calls: logits", answer["logits"], wanted, evidence, **BOUND)


@check("DIAL-03", "forward(dialect)", cases=model_cases.models())
def the_paper_forward(subject: Subject, case: Case, evidence: Evidence) -> None:
    """Equations 3 and 4: scaled attention, two-projection gates, experts and extra side by side."""
    _compare_forward(subject, case, "paper", evidence)


@check(
    "DIAL-03",
    "learning_rate(dialect)",
    cases=lambda _: iter([{"step": step} for step in (0, 1, 100, 9999, 10000, 40000)]),
)
def the_paper_warms_up(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The rate rises linearly to 0.01 at step 10,000 and falls as 1 / sqrt(step) behind it."""
    step = case["step"]
    wanted = min(step / 10000, 1) / max(step, 10000) ** 0.5
    got = subject.scalar("learning_rate", step, dialect="paper")
    close(f"learning_rate({step})", got, wanted, evidence, relative=2e-6)
    evidence.examples += 1


def _published(_: Profile) -> Iterator[Case]:
    yield from (
        {"dialect": dialect, "name": name} for dialect in DIALECTS for name in ("base", "8b", "34b")
    )


@check("DIAL-04", "configuration(dialect)", cases=_published)
def published_configurations_of_a_dialect(subject: Subject, case: Case, evidence: Evidence) -> None:
    """The published configurations, with the fields that the dialect sets otherwise."""
    answer = subject.call("configuration", case["name"], dialect=case["dialect"])
    wanted = asdict(dialects.configuration(case["dialect"], case["name"]))
    for name in ("mlp_dim", "z_loss_factor", "label_smoothing", "router_z_loss_factor"):
        if name not in answer:
            raise Disagreement(f"configuration({case['name']}): lacks {name}")
        same(f"{case['dialect']}, {case['name']}, {name}", array(name, answer[name]), wanted[name])
    evidence.examples += 1
