"""`openmoe verify`: is the one checkpoint the other? Four tiers, each with its own verdict.

The report's schema is `verify.schema.json`, beside this file.
Spec: CKPT-01..CKPT-04.
"""

from __future__ import annotations

import json as json_module
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from openmoe_conformance.outcome import UsageError
from openmoe_spec import SPEC_VERSION, __version__
from openmoe_spec.dialects import choices
from openmoe_spec.errors import RejectedError
from openmoe_tools import files
from openmoe_tools.checkpoints import digests, settings, working
from openmoe_tools.checkpoints.containers.opening import Checkpoint, open_checkpoint
from openmoe_tools.checkpoints.verification import certificate, comparing, rendering
from openmoe_tools.checkpoints.verification.comparing import Comparison
from openmoe_tools.checkpoints.verification.findings import (
    DIFFERS,
    INCOMPLETE,
    NOT_RUN,
    Finding,
    Verdict,
    exit_code,
    listed,
)
from openmoe_tools.checkpoints.working import Budget
from openmoe_tools.terminal import console, say

SCHEMA = "openmoe-verification/1"
INCOMPLETE_CODE = 2
IMPLEMENTATIONS = ("reference", "production")


@dataclass(frozen=True)
class Request:
    """The options of `openmoe verify`.

    functional  None: where a configuration is known and the model is small enough
    """

    source: Path | None
    target: Path
    step: int | None
    cast: str | None
    ulps: int
    config: str | None
    functional: bool | None
    dialect: str
    target_dialect: str | None
    outputs: Path | None
    probes: Path | None
    implementation: str
    memory: str
    jobs: int
    certify: Path | None
    certificate: Path | None
    json: Path | None
    junit: Path | None
    html: Path | None


def verify(request: Request) -> int:
    """Compare two checkpoints, print and write what was found; return 0, 1 or 2. Errors: UsageError."""
    read = (request.source, request.target, request.certificate, request.outputs)
    files.writable(
        request.json, request.junit, request.html, request.certify, request.probes, read=read
    )
    if request.certificate is not None:
        return _recheck(request)
    if request.source is None:
        raise UsageError(
            "verify: takes two checkpoints, SOURCE and TARGET; with --certificate one will do"
        )
    _require_runnable(request)
    if request.cast is not None:
        digests.require_weights(request.cast, f"--cast {request.cast}")
    budget = Budget.of(working.memory(request.memory), request.jobs)
    a, b = open_checkpoint(request.source, request.step), open_checkpoint(request.target)
    models = (settings.configuration(a, request.config), settings.configuration(b, request.config))
    to = console()
    from openmoe_tools.checkpoints.function import function_tier  # noqa: PLC0415 - reads the reference

    if request.probes is not None:
        function_tier.write_probes(request, a, models[0])
        say(
            to,
            f"{request.probes}: ids for the target's own program; give its logits with --outputs",
        )
        return 0
    found = comparing.compare(
        a, b, budget, cast=request.cast, ulps=request.ulps, models=models, to=to
    )
    functional, more, numbers = function_tier.judge(request, found, models[0] or models[1], to)
    verdicts = [*found.verdicts, functional]
    findings = [*found.findings, *more]
    report = build(found, verdicts, findings, functional=numbers, notes=settings.unlike(*models))
    rendering.terminal(report, to)
    write: Callable[[Path | None, Callable[[], str | bytes]], None] = files.write
    write(request.json, lambda: _json(report))
    write(request.junit, lambda: rendering.junit(report))
    write(request.html, lambda: rendering.page(report))
    write(request.certify, lambda: _json(certificate.certify(found, verdicts)))
    return int(report["exit_code"])


def _require_runnable(request: Request) -> None:
    """Refuse what the functional tier would, before hours are spent on the others. Errors: UsageError."""
    if request.implementation not in IMPLEMENTATIONS:
        names = ", ".join(IMPLEMENTATIONS)
        raise UsageError(f"--implementation {request.implementation}: must be one of {names}")
    for option, name in (
        ("--dialect", request.dialect),
        ("--target-dialect", request.target_dialect),
    ):
        try:
            choices(name or request.dialect)
        except RejectedError as error:
            raise UsageError(f"{option}: {error}") from error
    if request.outputs is not None and not request.outputs.is_file():
        raise UsageError(
            f"{request.outputs}: is no file; --outputs takes an npz of input_ids and logits"
        )


def _json(content: Mapping[str, Any]) -> str:
    return json_module.dumps(content, indent=1, allow_nan=False) + "\n"


def build(
    found: Comparison,
    verdicts: list[Verdict],
    findings: list[Finding],
    *,
    functional: Mapping[str, Any] | None,
    notes: list[str],
) -> dict[str, Any]:
    """Return the report as data."""
    code = exit_code(verdicts)
    roots = found.model_digests
    return {
        "schema": SCHEMA,
        "spec_version": SPEC_VERSION,
        "version": __version__,
        "mapping_digest": certificate.mapping_digest(),
        "cast": found.cast,
        "source": side(found.a, roots[0]),
        "target": side(found.b, roots[1]),
        "verdicts": [one.as_dict() for one in verdicts],
        "findings": [one.as_dict() for one in findings],
        "differences": {
            name: one.as_dict() for name, one in found.differences.items() if one.differing
        },
        "functional": functional,
        "notes": notes,
        "exit_code": code,
        "line": line(verdicts, findings),
    }


def side(one: Checkpoint, digest: str) -> dict[str, Any]:
    """Return what a report says of one side."""
    return {
        "path": str(one.path),
        "name": one.path.name,
        "container": one.reader.kind,
        "layout": one.found.layout.name,
        "layout_title": one.found.layout.title,
        "step": one.step,
        "tensors": len(one.tensors),
        "parameters": sum(map(one.elements, one.tensors)),
        "dtypes": sorted(
            {one.reader.tensors[p.theirs].dtype for t in one.tensors.values() for p in t.parts}
        ),
        "model_digest": digest,
        "state": len(one.state),
        "notes": list(one.notes),
    }


def line(verdicts: list[Verdict], findings: list[Finding]) -> str:
    """Return the verdict in a line."""
    code = exit_code(verdicts)
    ran = [one for one in verdicts if one.verdict != NOT_RUN]
    if code == 0:
        tiers = ", ".join(one.tier for one in ran)
        return f"{rendering.WORDS[0]}: the target is the source, by {tiers}"
    if code == 1:
        wrong = [one.tier for one in ran if one.verdict == DIFFERS]
        causes = list(dict.fromkeys(one.cause for one in findings))
        told = f": {listed(causes)}" if causes else ""
        return f"{rendering.WORDS[1]}: {', '.join(wrong)}{told}"
    open_ = [f"{one.tier} ({one.summary})" for one in ran if one.verdict == INCOMPLETE]
    return f"{rendering.WORDS[2]}: {'; '.join(open_)}"


# ---- a certificate -------------------------------------------------------------------------------


def _recheck(request: Request) -> int:
    """Say whether the files are those that a certificate speaks of; return 0, 1 or 2."""
    assert request.certificate is not None
    unused: dict[str, object] = {
        "--html": request.html,
        "--junit": request.junit,
        "--certify": request.certify,
    }
    unused |= {"--cast": request.cast, "--probes": request.probes, "--outputs": request.outputs}
    given = [name for name, value in unused.items() if value is not None]
    if given:
        raise UsageError(
            f"{given[0]}: does not go with --certificate, which compares digests alone"
        )
    predicate = certificate.read(request.certificate)
    budget = Budget.of(working.memory(request.memory), request.jobs)
    to = console()
    sides = {certificate.TARGET: request.target}
    if request.source is not None:
        sides = {certificate.SOURCE: request.source, **sides}
    wrong: list[tuple[str, str, str]] = []
    own = certificate.mapping_digest() == predicate["mapping_digest"]
    for name, path in sides.items():
        one = open_checkpoint(path, request.step if name == certificate.SOURCE else None)
        found = _digests(one, budget, to)
        off = list(certificate.discrepancies(predicate, name, one, found))
        word = "is what was certified" if not off else f"{len(off)} tensors are not as certified"
        say(to, f"{name}: {path}: {word}", "red" if off else "green")
        for tensor, text in off[:20]:
            say(to, f"   {tensor}: {text}")
        wrong += [(name, tensor, text) for tensor, text in off]
    stated = predicate["verdicts"]
    say(to)
    for tier, one in stated.items():
        say(to, f"certified {tier}: {one['verdict']}. {one['summary']}")
    if not own:
        say(to, "note: the mapping has changed since; digests do not depend on it", "yellow")
    code = 1 if wrong else exit_code(Verdict(tier, one["verdict"]) for tier, one in stated.items())
    if wrong:
        text = f"{rendering.WORDS[1]}: the files are not those of the certificate"
    elif code == INCOMPLETE_CODE:
        text = f"{rendering.WORDS[2]}: the files are those of the certificate, which leaves a tier open"
    elif code:
        text = (
            f"{rendering.WORDS[1]}: the files are those of the certificate, and it says they differ"
        )
    else:
        which = "both sides are" if len(sides) > 1 else "the target is"
        text = f"{rendering.WORDS[0]}: {which} what was certified"
    say(to, f"\n{text}")
    report = {
        "schema": "openmoe-recheck/1",
        "spec_version": SPEC_VERSION,
        "version": __version__,
        "certificate": str(request.certificate),
        "sides": {name: str(path) for name, path in sides.items()},
        "discrepancies": [
            {"side": name, "tensor": tensor, "text": text_} for name, tensor, text_ in wrong
        ],
        "verdicts": stated,
        "same_mapping": own,
        "exit_code": code,
        "line": text,
    }
    files.write(request.json, lambda: _json(report))
    return code


def _digests(one: Checkpoint, budget: Budget, to: Console) -> dict[str, digests.Digest]:
    total = sum(one.size(name) for name in one.tensors)
    with working.bar(to, "digests", total) as moved:
        return digests.all_digests(one, budget, done=moved)
