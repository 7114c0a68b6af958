"""`openmoe audit report` and `openmoe audit summary`: what an audit's tables say."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from openmoe_tools import files
from openmoe_tools.audit import folder
from openmoe_tools.audit.measures import report as measuring
from openmoe_tools.terminal import console, say

PAGE = "report.html"


@dataclass(frozen=True)
class Request:
    """The options of `openmoe audit report`.

    output   the page; None: report.html in the audit's folder
    figures  a folder for figures as files; formats: pdf, png
    """

    audit: Path
    output: Path | None
    figures: Path | None
    formats: Sequence[str]
    json: Path | None


def report(request: Request) -> int:
    """Write the page, and what else was asked for; return 0. Errors: UsageError."""
    output = request.output or request.audit / PAGE
    audit = folder.read(request.audit)
    files.writable(output, request.json)
    made = measuring.make(audit)
    from openmoe_tools.audit.report import page  # noqa: PLC0415

    files.write(output, lambda: page.render(made))
    files.write(request.json, lambda: json.dumps(made, allow_nan=False) + "\n")
    to = console()
    if request.figures is not None:
        from openmoe_tools.audit.report import printing  # noqa: PLC0415 - an optional extra

        written = printing.export(made, request.figures, tuple(request.formats))
        say(to, f"{len(written)} figures in {request.figures}")
    size = output.stat().st_size / 1e6
    say(to, f"{output}: {size:.1f} MB, one file; open it in a browser", "bold")
    return 0


def summarise(path: Path) -> int:
    """Print what an audit found on one screen; return 0. Errors: UsageError."""
    from openmoe_tools.audit import summary  # noqa: PLC0415

    audit = folder.read(path)
    summary.show(measuring.make(audit), console())
    say(console(), f"now: openmoe audit report {path}")
    return 0
