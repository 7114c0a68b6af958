"""`--identify`: which choice an implementation makes at each point, and which dialect it speaks.

Every probe is put to the implementation and to the reference under each option of its points; the option
whose answer it gives is its choice. Nothing is declared: the evidence is what it answered. Spec: DIAL-01.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.adapter import UnsupportedError, call, describe
from openmoe_conformance.dialect_adapter import DialectAdapter
from openmoe_conformance.probes import Known, Probe, all_probes
from openmoe_spec import dialects
from openmoe_spec.config import PUBLISHED
from openmoe_spec.dialects import DIALECTS, POINTS, T5X

NEAR = 1e-3
"""An answer belongs to an option when it is within this share of the option's largest number."""


@dataclass(frozen=True)
class Finding:
    """What one probe found: options by point that fit the answer, and the numbers behind it.

    fits  empty for a point: no option gives this answer; without points: it raised
    """

    function: str
    what: str
    fits: Mapping[str, tuple[str, ...]]
    evidence: str


@dataclass(frozen=True)
class Answer:
    """What is known of one point: its choice, or why there is none."""

    point: str
    choice: str | None
    findings: tuple[Finding, ...]

    @property
    def state(self) -> str:
        """Return the choice, or `not shown`, `none of the known`, `contradicting`."""
        told = [one.fits[self.point] for one in self.findings]
        if self.choice is not None:
            return self.choice
        if not told:
            return "not shown"
        return "none of the known" if all(not one for one in told) else "contradicting"


@dataclass(frozen=True)
class Identity:
    """The choices of an implementation, questions on which it raised, values of configurations."""

    answers: tuple[Answer, ...]
    raised: tuple[Finding, ...] = ()
    values: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @property
    def fitting(self) -> tuple[str, ...]:
        """Return the dialects that no known choice contradicts; none when nothing is known."""
        return tuple(name for name in DIALECTS if not self.against(name)) if self.known else ()

    @property
    def known(self) -> dict[str, str]:
        """Return the choices that were told."""
        return {one.point: one.choice for one in self.answers if one.choice is not None}

    def against(self, dialect: str) -> tuple[str, ...]:
        """Return the points and values at which the implementation is not of a dialect."""
        points = [
            one.point
            for one in self.answers
            if one.findings and one.choice != DIALECTS[dialect][one.point]
        ]
        return (*points, *(name for name, by in self.values.items() if dialect not in by["fits"]))

    @property
    def nearest(self) -> str:
        """Return the dialect with the fewest points against it."""
        return min(DIALECTS, key=lambda name: len(self.against(name)))


def identify(adapter: Any) -> Identity:
    """Return what the probes tell about an adapter; what it lacks is not shown."""
    found: dict[str, list[Finding]] = {point: [] for point in POINTS}
    raised: list[Finding] = []
    known: dict[str, str] = {}
    for probe in all_probes():
        finding = _put(probe, adapter, {**T5X, **known})
        if finding is None:
            continue
        if not finding.fits:
            raised.append(finding)
        for point in finding.fits:
            found[point].append(finding)
            choice = _choice(point, found[point])
            known.pop(point, None)
            if choice is not None:
                known[point] = choice
    answers = tuple(Answer(point, known.get(point), tuple(found[point])) for point in POINTS)
    return Identity(answers, tuple(raised), _values(adapter))


def _choice(point: str, findings: list[Finding]) -> str | None:
    """Return the one option that every finding allows."""
    options = set(POINTS[point].options)
    for one in findings:
        options &= set(one.fits[point])
    return options.pop() if len(options) == 1 else None


Combination = tuple[str, ...]


def _put(probe: Probe, adapter: Any, known: Known) -> Finding | None:
    """Return what a probe finds; None when the adapter lacks it or it tells nothing apart."""
    expected = _expected(probe, known)
    if len(expected) < 2:
        return None
    try:
        got = _answers(probe, adapter, known, expected)
    except UnsupportedError:
        return None
    except Exception as error:  # noqa: BLE001 - a stranger may raise anything
        return Finding(probe.function, probe.what, {}, f"raised {describe(error)}")
    if trouble := _nonsense(got, expected):
        return Finding(probe.function, probe.what, {}, trouble)
    telling = _telling(probe, _nearest(probe, got, expected))
    return (
        Finding(probe.function, probe.what, telling, _evidence(got, expected)) if telling else None
    )


def _telling(probe: Probe, fits: tuple[Combination, ...] | None) -> dict[str, tuple[str, ...]]:
    """Return the options left at each point that the answer tells something of."""
    if fits is None or (probe.faint and not fits):
        return {}
    options = {
        point: tuple(dict.fromkeys(combination[i] for combination in fits))
        for i, point in enumerate(probe.points)
    }
    return {
        point: some for point, some in options.items() if len(some) < len(POINTS[point].options)
    }


def _tables(probe: Probe, known: Known) -> dict[Combination, Known]:
    """Return the table of choices for each combination of the probe's options."""
    base = T5X if probe.alone else known
    options = (POINTS[point].options for point in probe.points)
    return {
        one: {**base, **dict(zip(probe.points, one, strict=True))}
        for one in itertools.product(*options)
    }


def _expected(probe: Probe, known: Known) -> dict[Combination, ndarray]:
    """Return the reference's answer under each combination of the probe's options."""
    answers = {}
    for combination, table in _tables(probe, known).items():
        try:
            answers[combination] = _numbers(probe.ask(DialectAdapter(table), table))
        except Exception:  # noqa: BLE001, S112 - an option under which the question has no answer
            continue
    return answers


def _answers(
    probe: Probe, adapter: Any, known: Known, expected: Mapping[Combination, ndarray]
) -> dict[Combination, ndarray]:
    """Return what the adapter answers to the question as each combination puts it: once if alike."""
    if not probe.by_option:
        return dict.fromkeys(expected, _numbers(probe.ask(adapter, known)))
    answers, refused = {}, None
    tables = _tables(probe, known)
    for combination in expected:
        try:
            answers[combination] = _numbers(probe.ask(adapter, tables[combination]))
        except UnsupportedError:
            raise
        except Exception as error:  # noqa: BLE001 - it may refuse what another option takes
            refused = error
    if refused is not None and not answers:
        raise refused
    return answers


def _numbers(answer: Any) -> ndarray:
    return np.asarray(answer).astype(np.float64).reshape(-1)


def _nonsense(got: Mapping[Combination, ndarray], expected: Mapping[Combination, ndarray]) -> str:
    """Return why no answer can be compared; empty when one can."""
    for one, value in got.items():
        if value.shape == expected[one].shape and np.isfinite(value).all():
            return ""
    value = next(iter(got.values()))
    size = next(iter(expected.values())).size
    if value.size != size:
        return f"answered {value.size} numbers, expected {size}"
    return "answered infinity or not-a-number"


def _nearest(
    probe: Probe, got: Mapping[Combination, ndarray], expected: Mapping[Combination, ndarray]
) -> tuple[Combination, ...] | None:
    """Return the combinations that give this answer: none if none is near, None if all agree."""
    distance = {one: _apart(got[one], value) for one, value in expected.items() if one in got}
    best = min(distance, key=lambda one: distance[one])
    alike = tuple(one for one, value in expected.items() if _same(value, expected[best]))
    if len(alike) == len(expected):
        return None
    gap = min(_apart(expected[best], expected[one]) for one in expected if one not in alike)
    limit = NEAR * float(np.abs(expected[best]).max(initial=0))
    limit = probe.share * gap if probe.share else limit if probe.by_option else min(limit, gap / 4)
    return alike if distance[best] <= limit else ()


def _apart(a: ndarray, b: ndarray) -> float:
    if a.shape != b.shape or not np.isfinite(a).all():
        return np.inf
    return float(np.abs(a - b).max(initial=0))


def _same(a: ndarray, b: ndarray) -> bool:
    return _apart(a, b) <= 1e-6 * float(np.abs(a).max(initial=0))


def _evidence(got: Mapping[Combination, ndarray], expected: Mapping[Combination, ndarray]) -> str:
    """Return the number that parts the nearest option from the next, as it came and as each gives it."""
    order = sorted(got, key=lambda one: _apart(got[one], expected[one]))
    best = order[0]
    others = [one for one in expected if not _same(expected[one], expected[best])]
    next_ = min(others, key=lambda one: _apart(expected[one], expected[best]))
    place = 0
    if expected[next_].shape == expected[best].shape:
        place = int(np.abs(expected[next_] - expected[best]).argmax())
    options = ", ".join(f"{' + '.join(one)} {value[place]:.6g}" for one, value in expected.items())
    return f"number {place}: got {got[best][place]:.6g}; {options}"


def _values(adapter: Any) -> dict[str, dict[str, Any]]:
    """Return the fields of the published configurations that dialects set differently."""
    found: dict[str, dict[str, Any]] = {}
    for name in PUBLISHED:
        try:
            shown = call(adapter, "configuration", name)
        except Exception:  # noqa: BLE001, S112 - not offered, or not in this form
            continue
        by_dialect = {one: asdict(dialects.configuration(one, name)) for one in DIALECTS}
        for key in sorted({key for one in dialects.VALUES.values() for key in one.get(name, {})}):
            if isinstance(shown, Mapping) and key in shown:
                fits = tuple(one for one, all_ in by_dialect.items() if all_[key] == shown[key])
                found[f"{name}.{key}"] = {"value": shown[key], "fits": fits}
    return found


def as_json(identity: Identity, name: str) -> dict[str, Any]:
    """Return an identity as plain data; schema `openmoe-identity/1`."""
    return {
        "schema": "openmoe-identity/1",
        "implementation": name,
        "fitting": list(identity.fitting),
        "nearest": identity.nearest,
        "against": {one: list(identity.against(one)) for one in DIALECTS},
        "points": [
            {
                "point": one.point,
                "question": POINTS[one.point].question,
                "state": one.state,
                "dialects": [d for d, table in DIALECTS.items() if table[one.point] == one.choice],
                "findings": [asdict(finding) for finding in one.findings],
            }
            for one in identity.answers
        ],
        "raised": [asdict(finding) for finding in identity.raised],
        "values": {name: dict(one) for name, one in identity.values.items()},
    }
