"""Two checkpoints, tier by tier: structure, bits, numbers; and what is wrong, by name.

The functional tier is `functional`'s; `verifying` puts all four together.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from rich.console import Console

from openmoe_reference.checkpoints import model_digest
from openmoe_spec.config import Configuration
from openmoe_tools.checkpoints import working
from openmoe_tools.checkpoints.containers.opening import Checkpoint
from openmoe_tools.checkpoints.diagnosis.diagnosis import Diagnosis
from openmoe_tools.checkpoints.digests import NARROWER, Digest, all_digests
from openmoe_tools.checkpoints.verification import numeric, structure
from openmoe_tools.checkpoints.verification.findings import (
    BITWISE,
    DIFFERS,
    HOLDS,
    INCOMPLETE,
    NUMERIC,
    STRUCTURE,
    Finding,
    Verdict,
)
from openmoe_tools.checkpoints.verification.numeric import Difference
from openmoe_tools.checkpoints.working import Budget

Models = tuple[Configuration | None, Configuration | None]


@dataclass
class Comparison:
    """What was found of two sides.

    digests      of both sides, by tensor
    differing    the tensors of both, of one shape, whose values differ after the declared cast
    differences  by how much
    """

    a: Checkpoint
    b: Checkpoint
    cast: str | None
    digests: tuple[dict[str, Digest], dict[str, Digest]]
    verdicts: list[Verdict]
    findings: list[Finding]
    differing: list[str] = field(default_factory=list)
    differences: dict[str, Difference] = field(default_factory=dict)

    @property
    def model_digests(self) -> tuple[str, str]:
        """Return the model digest of each side (CKPT-02)."""
        one, other = ({n: d.digest for n, d in side.items()} for side in self.digests)
        return model_digest(one), model_digest(other)


def compare(
    a: Checkpoint,
    b: Checkpoint,
    budget: Budget,
    *,
    cast: str | None = None,
    ulps: int = 0,
    models: Models = (None, None),
    to: Console | None = None,
) -> Comparison:
    """Return what differs between two checkpoints, and why. Errors: UsageError.

    cast    the dtype that the target's tensors may have, the source's values rounded to it
    ulps    what the numeric tier lets pass, in units of the last place of the target's dtype
    models  the configurations of the two sides, where they are known
    """
    to = to or Console(quiet=True)
    found = structure.compare(a, b, cast, models)
    heads = next(((m.num_heads, m.key_value_heads) for m in models if m is not None), None)
    wholes = tuple(_whole(one) for one in (a, b))
    digests = _digests(a, b, wholes, budget, cast, to=to)
    shared = [name for name in digests[0] if name in digests[1]]
    differing = [name for name in shared if not _equal(digests, name, cast)]
    alike = [name for name in differing if a.tensors[name].shape == b.tensors[name].shape]
    differences = _differences(a, b, alike, budget, cast, to=to)
    # What differs by its dtype alone differs in no value: the structure says so.
    valued = [name for name in alike if differences[name].differing]
    apart = [name for name in differing if name not in alike]
    diagnosis = Diagnosis(a, b, digests, valued + apart, budget, heads)
    sizes = sum(b.size(name) for name in diagnosis.differing)
    with working.bar(to, "diagnosis", sizes) as moved:
        found += diagnosis.findings(lambda name: moved(b.size(name)))
    verdicts = [
        _structure(found, a, b),
        _bitwise(a, b, shared, valued + apart, cast),
        _numeric(differences, apart, ulps, compared=len(shared)),
    ]
    return Comparison(a, b, cast, digests, verdicts, found, valued + apart, differences)


def _whole(one: Checkpoint) -> list[str]:
    """Return the tensors of a side that can be put together."""
    broken = structure.broken(one)
    return [name for name in one.tensors if name not in broken]


def _digests(
    a: Checkpoint,
    b: Checkpoint,
    wholes: tuple[list[str], ...],
    budget: Budget,
    cast: str | None,
    *,
    to: Console,
) -> tuple[dict[str, Digest], dict[str, Digest]]:
    """Return both sides' digests, the source's in every dtype that the target has it in."""
    ours, theirs = wholes
    wanted = {b.dtype(name) for name in theirs} | ({cast} if cast else set())

    def casts(name: str) -> tuple[str, ...]:
        own = a.dtype(name)
        return tuple(sorted(one for one in wanted if one != own and one in NARROWER.get(own, ())))

    total = sum(map(a.size, ours)) + sum(map(b.size, theirs))
    with working.bar(to, "digests", total) as moved:
        return (
            all_digests(a, budget, names=ours, casts=casts, done=moved),
            all_digests(b, budget, names=theirs, done=moved),
        )


def _equal(
    digests: tuple[Mapping[str, Digest], Mapping[str, Digest]], name: str, cast: str | None
) -> bool:
    """Return whether a tensor's digests are the same, after the cast where one was declared."""
    one, other = (side[name] for side in digests)
    if one.digest == other.digest:
        return True
    return other.dtype == cast and one.cast.get(other.dtype) == other.digest


def _differences(
    a: Checkpoint, b: Checkpoint, names: list[str], budget: Budget, cast: str | None, *, to: Console
) -> dict[str, Difference]:
    def need(name: str) -> int:
        return sum(working.need_of(one, name, budget) for one in (a, b))

    with working.bar(to, "differences", sum(b.size(name) for name in names)) as moved:
        return working.each(
            names,
            lambda name: numeric.difference(a, b, name, budget, cast),
            budget=budget,
            need=need,
            done=lambda name: moved(b.size(name)),
        )


def _structure(found: list[Finding], a: Checkpoint, b: Checkpoint) -> Verdict:
    wrong = [one for one in found if one.tier == STRUCTURE]
    numbers = {"source": len(a.tensors), "target": len(b.tensors), "findings": len(wrong)}
    if wrong:
        causes = sorted({one.cause for one in wrong})
        return Verdict(STRUCTURE, DIFFERS, f"{len(wrong)} findings: {', '.join(causes)}", numbers)
    text = f"{len(a.tensors)} tensors, each with its name, shape and dtype; nothing unused"
    return Verdict(STRUCTURE, HOLDS, text, numbers)


def _bitwise(
    a: Checkpoint, b: Checkpoint, shared: list[str], differing: list[str], cast: str | None
) -> Verdict:
    number = sum(b.elements(name) for name in shared)
    numbers = {"compared": len(shared), "differing": len(differing), "elements": number}
    if not shared:
        return Verdict(BITWISE, INCOMPLETE, "no tensor is on both sides", numbers)
    if differing:
        text = f"{len(differing)} of {len(shared)} tensors differ"
        return Verdict(BITWISE, DIFFERS, text, numbers)
    if len(shared) < max(len(a.tensors), len(b.tensors)):
        text = f"{len(shared)} tensors are the same, the others are on one side alone, or not whole"
        return Verdict(BITWISE, INCOMPLETE, text, numbers)
    how = f" after the declared cast to {cast}" if cast else ""
    return Verdict(BITWISE, HOLDS, f"all {number:,} values are the same{how}, bit for bit", numbers)


def _numeric(
    differences: Mapping[str, Difference], apart: list[str], ulps: int, *, compared: int
) -> Verdict:
    over = {n: one for n, one in differences.items() if one.differing}
    largest = max((one.largest_ulps for one in over.values()), default=0)
    infinite = sum(one.not_finite for one in over.values())
    numbers = {
        "allowed_ulps": ulps,
        "largest_ulps": largest,
        "largest_absolute": max((one.largest_absolute for one in over.values()), default=0.0),
        "largest_relative": max((one.largest_relative for one in over.values()), default=0.0),
        "differing": sum(one.differing for one in over.values()),
        "not_finite": infinite,
    }
    if apart:
        text = f"{len(apart)} tensors have another shape, and no differences"
        return Verdict(NUMERIC, DIFFERS, text, numbers)
    if not compared:
        return Verdict(NUMERIC, INCOMPLETE, "no tensor is on both sides", numbers)
    if not over:
        return Verdict(NUMERIC, HOLDS, "no value differs", numbers)
    text = (
        f"{numbers['differing']:,} values differ, by up to {largest:,} units of the last place "
        f"({numbers['largest_absolute']:.3g})"
    )
    holds = largest <= ulps and not infinite
    return Verdict(NUMERIC, HOLDS if holds else DIFFERS, text, numbers)
