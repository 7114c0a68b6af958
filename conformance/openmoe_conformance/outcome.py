"""Outcomes, results and the ledger: a green report means executed checks.

Spec: CONF-04, JUDGE-05.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any


class UsageError(Exception):
    """A user's mistake: one line that says what, where and what to do."""

    exit_code = 3


class Outcome(enum.Enum):
    """What became of one planned item."""

    PASS = "pass"  # noqa: S105 - no password
    FAIL = "fail"
    ERROR = "error"
    SKIPPED = "skipped"
    XFAIL = "expected failure"
    XPASS = "unexpected pass"
    INCONCLUSIVE = "inconclusive"


class Source(enum.Enum):
    """Where an item comes from."""

    CHECK = "check"
    VECTOR = "vector"
    REAL_INPUT = "real input"


LARGEST_ERROR = 1e308
"""What an infinite error is written as: JSON has no infinity."""


@dataclass(frozen=True)
class Result:
    """One executed or skipped item: a check, one comparison of a vector case, a real-input pass.

    item      unique name, such as `check:routing.ties` or `vector:routing/masked_000/decision`
    clause    id of the clause it decides
    examples  inputs tried
    error     worst error seen, in units of `limit` (1.0 is the limit); None where nothing is real
    undecided tokens whose choice the band leaves open, of `tokens`
    message   why, when it is not a pass
    fault     "implementation" or "kit": whose fault an ERROR is
    replay    file that `openmoe replay` takes, when a failing input was saved
    url       issue of an expected failure
    details   further findings, such as the rungs of the ladder
    """

    item: str
    clause: str
    outcome: Outcome
    source: Source
    examples: int = 0
    error: float | None = None
    tokens: int = 0
    undecided: int = 0
    seconds: float = 0.0
    message: str = ""
    fault: str = "implementation"
    replay: str = ""
    url: str = ""
    details: dict[str, Any] = field(default_factory=dict)


@dataclass
class Evidence:
    """What a check gathers while it runs."""

    examples: int = 0
    error: float | None = None
    tokens: int = 0
    undecided: int = 0
    details: dict[str, Any] = field(default_factory=dict)

    def measured(self, error: float) -> None:
        """Record an error in units of its limit; beyond measure it is the largest double."""
        error = min(LARGEST_ERROR, error)  # also for not-a-number
        self.error = error if self.error is None else max(self.error, error)

    def judged(self, tokens: int, undecided: int) -> None:
        """Record how many tokens were judged and how many the band left open."""
        self.tokens += tokens
        self.undecided += undecided


class Disagreement(Exception):  # noqa: N818 - it is a finding, not an error of the program
    """The implementation differs from what the clause demands."""


UNDECIDED_BUDGET = 0.01
"""Largest share of undecided tokens at which a check still counts (JUDGE-05)."""


@dataclass(frozen=True)
class Ledger:
    """Planned items, counted by a walk of its own, against results by outcome (invariant 2)."""

    planned: int
    counts: dict[Outcome, int]

    @property
    def balanced(self) -> bool:
        """Whether every planned item has exactly one result."""
        return sum(self.counts.values()) == self.planned


def ledger(planned: int, results: Iterable[Result]) -> Ledger:
    """Return the ledger of a run."""
    counts = Counter(result.outcome for result in results)
    return Ledger(planned, {outcome: counts[outcome] for outcome in Outcome})


def exit_code(results: list[Result], planned: int) -> int:
    """Return 0 holds, 1 does not hold, 2 incomplete or inconclusive.

    Skips alone do not make a run incomplete, but a run in which nothing was executed is.
    """
    balance = ledger(planned, results)
    implementation = [r for r in results if r.outcome is Outcome.ERROR and r.fault != "kit"]
    if balance.counts[Outcome.FAIL] or balance.counts[Outcome.XPASS] or implementation:
        return 1
    executed = balance.counts[Outcome.PASS] + balance.counts[Outcome.XFAIL]
    unsure = balance.counts[Outcome.INCONCLUSIVE] + balance.counts[Outcome.ERROR]
    return 2 if unsure or not balance.balanced or not executed else 0
