"""A verification as terminal lines, JUnit and one HTML page; `verify.schema.json` describes its JSON."""

from __future__ import annotations

import html
from collections.abc import Mapping, Sequence
from importlib import resources
from typing import Any
from xml.etree import ElementTree as ET

from rich.console import Console
from rich.table import Table
from rich.text import Text

from openmoe_conformance.report_junit import printable
from openmoe_tools.checkpoints.verification.findings import (
    DIFFERS,
    HOLDS,
    INCOMPLETE,
    folded,
    listed,
)
from openmoe_tools.terminal import say

_STYLE = {HOLDS: "green", DIFFERS: "red", INCOMPLETE: "yellow"}
_COLOUR = {HOLDS: "good", DIFFERS: "bad", INCOMPLETE: "unsure"}
WORDS = {0: "HOLDS", 1: "DOES NOT HOLD", 2: "INCOMPLETE"}


def terminal(report: Mapping[str, Any], to: Console) -> None:
    """Print a verification."""
    for name in ("source", "target"):
        side = report[name]
        step = "" if side["step"] is None else f", step {side['step']}"
        say(to, f"{name}: {side['path']} ({side['container']}, {side['layout_title']}{step})")
        dtypes = ", ".join(side["dtypes"])
        say(to, f"        {side['tensors']} tensors, {side['parameters']:,} parameters, {dtypes}")
        for note in side["notes"]:
            say(to, f"        note: {note}", "yellow")
    for note in report["notes"]:
        say(to, f"note: {note}", "yellow")
    say(to)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("tier", "verdict", ""):
        table.add_column(name, no_wrap=bool(name), overflow="fold")
    for one in report["verdicts"]:
        style = _STYLE.get(one["verdict"], "dim")
        table.add_row(*(Text(one[name]) for name in ("tier", "verdict", "summary")), style=style)
    to.print(table)
    for number, one in enumerate(report["findings"], 1):
        say(to, f"\n{number}. {one['cause']}{_behind(one)}", "bold")
        say(to, f"   {_names(one)}")
        say(to, f"   {one['text']}")
        if one["fix"]:
            say(to, f"   fix: {one['fix']}")
    say(to)
    code = report["exit_code"]
    say(to, report["line"], _STYLE[(HOLDS, DIFFERS, INCOMPLETE)[code]])


def _behind(one: Mapping[str, Any]) -> str:
    told = [one["where"]] if one["where"] else []
    if one["tier"] == "bitwise":
        exact = "explains every difference there"
        told.append(exact if one["exact"] else "not explained value by value")
    return f" ({'; '.join(told)})" if told else ""


def _names(one: Mapping[str, Any]) -> str:
    return listed(folded(one["tensors"]), 6) or "the whole model"


def junit(report: Mapping[str, Any]) -> bytes:
    """Return a JUnit report: a case a tier, with what was found."""
    verdicts = report["verdicts"]
    failing = [one for one in verdicts if one["verdict"] == DIFFERS]
    skipped = [one for one in verdicts if one["verdict"] not in {HOLDS, DIFFERS}]
    numbers = {"tests": len(verdicts), "failures": len(failing), "skipped": len(skipped)}
    suites = ET.Element("testsuites")
    suite = ET.SubElement(suites, "testsuite", name="openmoe verify", errors="0")
    suite.attrib |= {name: str(number) for name, number in numbers.items()}
    for one in verdicts:
        case = ET.SubElement(suite, "testcase", classname="openmoe.verify", name=one["tier"])
        if one in failing:
            found = [f for f in report["findings"] if f["tier"] == one["tier"]]
            text = "\n".join(f"{f['cause']}{_behind(f)}: {_names(f)}: {f['text']}" for f in found)
            failure = ET.SubElement(case, "failure", message=printable(one["summary"]))
            failure.text = printable(text)
        elif one in skipped:
            message = printable(f"{one['verdict']}: {one['summary']}")
            ET.SubElement(case, "skipped", message=message)
    return ET.tostring(suites, encoding="utf-8", xml_declaration=True)


_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Verification of {target}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>{style}</style></head>
<body>
<h1>{target} <small>against {source}</small></h1>
<p class="verdict {colour}"><strong>{word}</strong> <span>{rest}</span></p>
<p class="soft">OpenMoE specification {spec_version} · openmoe-spec {version} · mapping
<code>{mapping}</code></p>
<h2>Sides</h2>
{sides}
<h2>Verdicts</h2>
{verdicts}
<h2>Findings</h2>
{findings}
<h2>Tensors that differ</h2>
{differences}
</body></html>
"""


def page(report: Mapping[str, Any]) -> str:
    """Return one self-contained HTML page: no script, nothing loaded from elsewhere."""
    word, _, rest = report["line"].partition(": ")
    return _PAGE.format(
        style=resources.files("openmoe_conformance").joinpath("report.css").read_text("utf-8"),
        target=_text(report["target"]["name"]),
        source=_text(report["source"]["name"]),
        colour=("good", "bad", "unsure")[report["exit_code"]],
        word=_text(word),
        rest=_text(rest),
        spec_version=_text(report["spec_version"]),
        version=_text(report["version"]),
        mapping=_text(report["mapping_digest"][:16]),
        sides="\n".join(_side(name, report[name]) for name in ("source", "target")),
        verdicts=_table(
            ("Tier", "Verdict", "What was found"),
            [
                (_text(v["tier"]), _pill(v["verdict"]), _text(v["summary"]))
                for v in report["verdicts"]
            ],
        ),
        findings="\n".join(map(_finding, report["findings"])) or "<p>None.</p>",
        differences=_differences(report["differences"]) or "<p>None.</p>",
    )


def _text(value: object) -> str:
    return html.escape(printable(str(value)))


def _pill(verdict: str) -> str:
    return f'<span class="pill {_COLOUR.get(verdict, "quiet")}">{_text(verdict)}</span>'


def _side(name: str, side: Mapping[str, Any]) -> str:
    dtypes = _text(", ".join(side["dtypes"]))
    rows = {
        name.title(): f"<code>{_text(side['path'])}</code>",
        "Container": f"{_text(side['container'])}, {_text(side['layout_title'])}",
        "Step": "" if side["step"] is None else _text(side["step"]),
        "Tensors": f"{side['tensors']}, {side['parameters']:,} parameters, {dtypes}",
        "Model digest": f"<code>{_text(side['model_digest'])}</code>",
        "Notes": "<br>".join(map(_text, side["notes"])),
    }
    inner = "\n".join(f"<dt>{key}</dt><dd>{value}</dd>" for key, value in rows.items() if value)
    return f'<dl class="facts">\n{inner}\n</dl>'


def _table(heads: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    head = "".join(f"<th>{one}</th>" for one in heads)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"


def _finding(one: Mapping[str, Any]) -> str:
    fix = f"<p><strong>Fix:</strong> {_text(one['fix'])}</p>" if one["fix"] else ""
    names = ", ".join(f"<code>{_text(name)}</code>" for name in list(folded(one["tensors"]))[:12])
    return (
        f'<div class="finding">\n<p><span class="pill bad">{_text(one["cause"])}</span> '
        f'<span class="soft">{_text(_behind(one).strip(" ()"))}</span></p>\n<p>{names}</p>\n'
        f'<p class="message">{_text(one["text"])}</p>\n{fix}\n</div>'
    )


def _differences(differences: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        (
            f"<code>{_text(name)}</code>",
            f"{one['differing']:,} of {one['elements']:,}",
            f"{one['largest_ulps']:,}",
            f"{one['largest_absolute']:.3g}",
            _distances(one["ulps"]),
        )
        for name, one in differences.items()
    ]
    heads = ("Tensor", "Values that differ", "Largest, in ulps", "Largest", "By distance in ulps")
    return _table(heads, rows) if rows else ""


def _distances(counts: Mapping[str, int]) -> str:
    """Return the three classes of distances that most values are in."""
    most = sorted((name for name in counts if name != "0"), key=lambda name: -counts[name])[:3]
    return ", ".join(f"&le;{int(name):,}: {counts[name]:,}" for name in sorted(most, key=int))
