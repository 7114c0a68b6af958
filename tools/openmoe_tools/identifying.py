"""`openmoe conform --identify`: choices, evidence and dialect of an implementation, printed."""

from __future__ import annotations

import json as json_module
from pathlib import Path

from rich.console import Console
from rich.table import Table

from openmoe_conformance import identify
from openmoe_conformance.identify import Answer, Identity
from openmoe_conformance.subject import Subject
from openmoe_spec.dialects import DIALECTS, POINTS
from openmoe_tools import files


def run(subject: Subject, console: Console, json: Path | None) -> int:
    """Print what is found, write it where asked; 0 one dialect, 1 a mixture, 2 undecided."""
    files.writable(json)
    console.print(f"openmoe conform --identify: {subject.name} {subject.version}", markup=False)
    identity = identify.identify(subject.adapter)
    render(identity, console)
    made = identify.as_json(identity, subject.name)
    files.write(json, lambda: json_module.dumps(made, indent=1, allow_nan=False) + "\n")
    return verdict(identity)[0]


def render(identity: Identity, console: Console) -> None:
    """Print a row a point with its evidence, differing values, and one line of verdict."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("point", no_wrap=True)
    table.add_column("choice", no_wrap=True)
    table.add_column("dialects", no_wrap=True)
    table.add_column("evidence", overflow="fold")
    for answer in identity.answers:
        evidence = [f"{one.function}, {one.what}: {one.evidence}" for one in answer.findings]
        style = "" if answer.choice else "dim" if not answer.findings else "bold yellow"
        shown = "\n".join(evidence) or POINTS[answer.point].question
        table.add_row(answer.point, answer.state, _speakers(answer), shown, style=style)
    console.print(table, markup=False)
    for finding in identity.raised:
        text = f"not told: {finding.function}, {finding.what}: {finding.evidence}"
        console.print(text, markup=False, highlight=False, style="dim")
    for name, one in identity.values.items():
        if len(one["fits"]) < len(DIALECTS):
            fits = ", ".join(one["fits"]) or "no dialect"
            console.print(f"value {name} = {one['value']}: {fits}", markup=False, highlight=False)
    _, sentence, style = verdict(identity)
    console.print(sentence, markup=False, highlight=False, style=style)


def _speakers(answer: Answer) -> str:
    if answer.choice is None:
        return ""
    return ", ".join(one for one in DIALECTS if DIALECTS[one][answer.point] == answer.choice)


def verdict(identity: Identity) -> tuple[int, str, str]:
    """Return the exit code, the verdict in a line, and its colour."""
    shown = f"{len(identity.known)} of {len(POINTS)} points shown"
    if len(identity.fitting) == 1:
        return 0, f"SPEAKS {identity.fitting[0]}: {shown}, none against it", "bold green"
    if identity.fitting:
        fits = " and ".join(identity.fitting)
        sentence = f"UNDECIDED: {shown}; they fit {fits}, what would tell is not shown"
        return 2, sentence, "bold yellow"
    if not identity.known and not any(one.findings for one in identity.answers):
        asked = (
            "what was asked raised or answered nonsense" if identity.raised else "nothing to ask"
        )
        return 2, f"UNDECIDED: {asked}", "bold yellow"
    states = {one.point: one.state for one in identity.answers}
    states |= {name: str(one["value"]) for name, one in identity.values.items()}
    against = [f"{point} ({states[point]})" for point in identity.against(identity.nearest)]
    return (
        1,
        f"MIXTURE: {shown}; nearest is {identity.nearest}, against it: {', '.join(against)}",
        "bold red",
    )
