"""What a comparison of two checkpoints says: findings, and a verdict of each tier."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

STRUCTURE, BITWISE, NUMERIC, FUNCTIONAL = "structure", "bitwise", "numeric", "functional"
TIERS = (STRUCTURE, BITWISE, NUMERIC, FUNCTIONAL)

HOLDS, DIFFERS, INCOMPLETE, NOT_RUN = "holds", "differs", "incomplete", "not run"
VERDICTS = (HOLDS, DIFFERS, INCOMPLETE, NOT_RUN)
"""What a tier can say. `not run` is no verdict: it neither holds nor fails."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth knowing.

    cause    its name, from the list in the documentation
    tensors  the tensors that it is about, by the names of PARAM-01
    where    the place in them: experts, rows, columns, a file; empty: all
    text     what is wrong, in a sentence
    fix      what to do about it; empty where there is nothing to do
    exact    a second read has shown that this explains every difference there
    """

    tier: str
    cause: str
    tensors: tuple[str, ...]
    where: str
    text: str
    fix: str = ""
    exact: bool = False

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self) | {"tensors": list(self.tensors)}


@dataclass
class Verdict:
    """What a tier says, with its numbers."""

    tier: str
    verdict: str = NOT_RUN
    summary: str = ""
    numbers: dict[str, Any] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """Return it as JSON has it."""
        return asdict(self)


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """Return 1 where a tier differs, else 2 where one is incomplete, else 0."""
    said = {one.verdict for one in verdicts}
    return 1 if DIFFERS in said else 2 if INCOMPLETE in said else 0


def folded(names: Iterable[str]) -> dict[str, list[str]]:
    """Return names by those of several layers in one: `decoder/layers_{1, 3}/mlp/wi_0/kernel`."""
    kinds: dict[str, list[str]] = {}
    layers: dict[str, list[int]] = {}
    for name in names:
        match = re.search(r"layers_(\d+)", name)
        key = name if match is None else name.replace(match[0], "layers_#", 1)
        kinds.setdefault(key, []).append(name)
        layers.setdefault(key, []).extend([] if match is None else [int(match[1])])
    return {key.replace("#", _numbers(layers[key]), 1): ones for key, ones in kinds.items()}


def _numbers(found: list[int]) -> str:
    found = sorted(found)
    return str(found[0]) if len(found) == 1 else "{" + ranges(found) + "}" if found else ""


def ranges(numbers: Iterable[int]) -> str:
    """Return whole numbers in order as `0-3, 7`."""
    runs: list[list[int]] = []
    for one in sorted(set(numbers)):
        if runs and one == runs[-1][1] + 1:
            runs[-1][1] = one
        else:
            runs.append([one, one])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


def listed(names: Iterable[str], most: int = 4) -> str:
    """Return the first few names, and how many more there are."""
    all_names = list(names)
    more = f" and {len(all_names) - most} more" if len(all_names) > most else ""
    return ", ".join(all_names[:most]) + more


def merged(found: Iterable[Finding]) -> list[Finding]:
    """Return findings with those of one cause, place and text under all their tensors."""
    groups: dict[tuple[str, ...], list[Finding]] = {}
    for one in found:
        groups.setdefault((one.tier, one.cause, one.where, one.text, one.fix), []).append(one)
    return [
        Finding(
            ones[0].tier,
            ones[0].cause,
            tuple(name for one in ones for name in one.tensors),
            ones[0].where,
            ones[0].text,
            ones[0].fix,
            all(one.exact for one in ones),
        )
        for ones in groups.values()
    ]


def by_tier(verdicts: Iterable[Verdict]) -> Mapping[str, Verdict]:
    """Return verdicts by the name of their tier."""
    return {one.tier: one for one in verdicts}
