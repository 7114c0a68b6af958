"""A line of the verdict."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from openmoe_tools.audit.measures.figures import Made, number

Found = tuple[str, str, Mapping[str, Made]]
"""An answer, a sentence, the numbers in it."""


def value(found: Any, low: Any = None, high: Any = None, *, chance: Any = None) -> Made:
    """Return a number with its interval, and what chance would give."""
    return {
        "value": number(found),
        "low": number(low),
        "high": number(high),
        "chance": number(chance),
    }


def line(identifier: str, finding: str, found: Found, *, rule: str, clauses: Sequence[str]) -> Made:
    """Return a finding with its answer, what that rests on, and the rule that gave it."""
    answer, statement, numbers = found
    return {
        "id": identifier,
        "finding": finding,
        "answer": answer,
        "statement": statement,
        "numbers": dict(numbers),
        "rule": rule,
        "clauses": list(clauses),
    }
