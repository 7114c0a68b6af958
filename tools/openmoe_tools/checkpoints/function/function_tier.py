"""Whether the functional tier is run, on what, and what its result is called in a verification."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console

from openmoe_conformance.outcome import UsageError
from openmoe_spec.config import Configuration
from openmoe_tools.checkpoints import loading, settings
from openmoe_tools.checkpoints.containers.opening import Checkpoint
from openmoe_tools.checkpoints.containers.stored import Unreadable
from openmoe_tools.checkpoints.function import functional, probes
from openmoe_tools.checkpoints.function.result import Functional
from openmoe_tools.checkpoints.function.sides import Recorded, Side, read_recorded
from openmoe_tools.checkpoints.verification import structure
from openmoe_tools.checkpoints.verification.comparing import Comparison
from openmoe_tools.checkpoints.verification.findings import (
    BITWISE,
    DIFFERS,
    FUNCTIONAL,
    HOLDS,
    INCOMPLETE,
    NOT_RUN,
    Finding,
    Verdict,
    by_tier,
)
from openmoe_tools.terminal import say

if TYPE_CHECKING:
    from openmoe_tools.checkpoints.verification.verifying import Request

LARGEST = 20_000_000
"""Elements of a model that is run without being asked to: a minute with the reference."""

_FIXES = {
    "forward differs": "look at this operation in the target's program: its weights are right",
    "function differs": "mend the weights first: what the forward passes say follows from them",
    "not exercised": "ask for more with other probes, or compare these parts by hand",
}

Judged = tuple[Verdict, list[Finding], Mapping[str, Any] | None]


def judge(request: Request, found: Comparison, model: Configuration | None, to: Console) -> Judged:
    """Return the verdict of the functional tier, its findings and its numbers. Errors: UsageError."""
    asked = bool(request.functional) or request.outputs is not None
    reason = _reason(found, model, asked=asked)
    if request.functional is False and request.outputs is None:
        return Verdict(FUNCTIONAL, NOT_RUN, "--no-functional"), [], None
    if reason is not None:
        if asked:
            return Verdict(FUNCTIONAL, INCOMPLETE, reason), [], None
        return Verdict(FUNCTIONAL, NOT_RUN, reason), [], None
    assert model is not None
    try:
        made = _run(request, found, model, to)
    except Unreadable as error:  # what the other tiers found is told all the same
        return Verdict(FUNCTIONAL, INCOMPLETE, f"cannot be run: {error}"), [], None
    summary = _summary(made)
    findings = []
    if made.verdict != HOLDS:
        differs = "forward differs" if _same_weights(found) else "function differs"
        cause = differs if made.verdict == DIFFERS else "not exercised"
        text = "; ".join(made.findings)
        where = "" if made.first is None else f"first at {made.first}"
        findings.append(Finding(FUNCTIONAL, cause, (), where, text, _FIXES[cause]))
    return Verdict(FUNCTIONAL, made.verdict, summary, {}), findings, made.as_dict()


def write_probes(request: Request, a: Checkpoint, model: Configuration | None) -> None:
    """Write ids for the target's own program, whose logits `--outputs` takes. Errors: UsageError."""
    assert request.probes is not None
    wrong = settings.mismatch(a, model)
    if model is None or wrong is not None:
        raise UsageError(f"--probes: {wrong or 'no configuration is known; name it with --config'}")
    side = Side(loading.weights(a), request.dialect, request.implementation)
    probes.write(request.probes, functional.prepare(side, model))


def _reason(found: Comparison, model: Configuration | None, *, asked: bool) -> str | None:
    """Return why the tier cannot be run; None: it can."""
    if model is None:
        return "no configuration is known; name it with --config"
    for one, side in ((found.a, "source"), (found.b, "target")):
        apart = structure.broken(one)
        if apart:
            return f"the {side} cannot be run: {next(iter(apart.values())).text}"
        wide = [name for name in one.tensors if one.dtype(name) not in loading.DTYPES]
        if wide:
            return f"the {side} is {one.dtype(wide[0])}, and {', '.join(loading.DTYPES)} are run"
        wrong = settings.mismatch(one, model)
        if wrong is not None:
            return f"the {side} cannot be run: {wrong}"
    size = sum(map(found.a.elements, found.a.tensors))
    if size > LARGEST and not asked:
        return f"{size:,} parameters; ask for it with --functional"
    return None


def _same_weights(found: Comparison) -> bool:
    return by_tier(found.verdicts)[BITWISE].verdict == HOLDS


def _run(request: Request, found: Comparison, model: Configuration, to: Console) -> Functional:
    say(to, "running both models on probes ...", "dim")
    a = Side(loading.weights(found.a), request.dialect, request.implementation)
    if request.outputs is not None:
        b: Side | Recorded = read_recorded(request.outputs)
    else:
        dialect = request.target_dialect or request.dialect
        b = Side(loading.weights(found.b), dialect, request.implementation)
    # A dtype that narrows is a declared cast: it has an effect, which is measured.
    return functional.compare(a, b, model, cast=found.cast, same_weights=_same_weights(found))


def _summary(made: Functional) -> str:
    if made.logits is None:
        return made.findings[0] if made.findings else "nothing was compared"
    allowed = "" if made.logits_allowed is None else f", allowed {made.logits_allowed:.2g}"
    rows = ", ".join(sorted({f"{number} {mode}" for mode, number in made.modes.items()}))
    text = (
        f"{made.logits.tokens:,} tokens: logits apart by up to {made.logits.maximum:.2g}{allowed}; "
        f"passes: {rows}"
    )
    if made.verdict == INCOMPLETE and made.findings:
        return f"{made.findings[0]}; {text}"
    if made.first is not None:
        return f"parts first at {made.first}; {text}"
    return text
