"""The report as JUnit XML: one suite per chapter that has results, one case per result."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any
from xml.etree import ElementTree as ET

from openmoe_conformance.report import replay_command

# Everything outside the Char production of XML 1.0, lone surrogates included.
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_NO_CHAPTER = "No clause of this version"
_ELEMENT = {
    "fail": "failure",
    "unexpected pass": "failure",
    "error": "error",
    "inconclusive": "error",
    "skipped": "skipped",
    "expected failure": "skipped",
}


def printable(text: str) -> str:
    r"""Return the text with characters that XML and HTML forbid spelt out, such as `\x1b`."""
    return _FORBIDDEN.sub(lambda match: ascii(match[0])[1:-1], text)


def render(report: Mapping[str, Any]) -> str:
    """Return the XML; a run that does not hold always has a failure or an error in it."""
    chapters = {row["id"]: row["chapter"] for row in report["clauses"]}
    grouped: dict[str, list[Mapping[str, Any]]] = {name: [] for name in chapters.values()}
    for result in report["results"]:
        grouped.setdefault(chapters.get(result["clause"], _NO_CHAPTER), []).append(result)
    implementation = report["implementation"]
    name = f"openmoe conformance of {implementation['name']} {implementation['version']}"
    root = ET.Element("testsuites", name=printable(name.strip()))
    for chapter, results in grouped.items():
        if results:
            suite = ET.SubElement(root, "testsuite", name=printable(chapter))
            suite.append(_properties(report))
            suite.extend([_case(result, report) for result in results])
            _count(suite, (result["seconds"] for result in results))
    reads_green = all(_is_green(result) for result in report["results"])
    if report["verdict"]["exit_code"] and reads_green:
        root.append(_verdict(report))  # results are missing, or nothing was executed
    _count(root, (result["seconds"] for result in report["results"]))
    ET.indent(root)
    text = ET.tostring(root, encoding="unicode")
    return f'<?xml version="1.0" encoding="utf-8"?>\n{text}\n'


def _is_green(result: Mapping[str, Any]) -> bool:
    return _ELEMENT.get(result["outcome"]) not in ("failure", "error")


def _count(element: ET.Element, seconds: Iterable[float]) -> None:
    for attribute, tag in (
        ("tests", "testcase"),
        ("failures", "failure"),
        ("errors", "error"),
        ("skipped", "skipped"),
    ):
        element.set(attribute, str(len(element.findall(f".//{tag}"))))
    element.set("time", f"{sum(seconds):.4f}")


def _properties(report: Mapping[str, Any]) -> ET.Element:
    implementation = report["implementation"]
    properties = ET.Element("properties")
    for name, value in (
        ("implementation", implementation["name"]),
        ("implementation version", implementation["version"]),
        ("implementation url", implementation["url"]),
        ("spec version", report["spec_version"]),
        ("kit version", report["kit_version"]),
        ("profile", report["profile"]),
        ("seed", report["seed"]),
        ("verdict", report["verdict"]["line"]),
    ):
        ET.SubElement(properties, "property", name=name, value=printable(str(value)))
    return properties


def _case(result: Mapping[str, Any], report: Mapping[str, Any]) -> ET.Element:
    case = ET.Element(
        "testcase",
        classname=printable(result["clause"]),
        name=printable(result["item"]),
        time=f"{result['seconds']:.4f}",
    )
    outcome = result["outcome"]
    if tag := _ELEMENT.get(outcome):
        message = printable(_message(result))
        found = ET.SubElement(case, tag, message=message)
        if tag != "skipped":  # the schemas of JUnit know no type there
            found.set("type", outcome)
            found.text = message  # some servers show the text only
        if result["replay"]:
            replay = replay_command(report, result)
            found.text = printable("\n".join(filter(None, (found.text, replay))))
    return case


def _message(result: Mapping[str, Any]) -> str:
    parts = [result["url"], result["message"]]
    if result["outcome"] in ("expected failure", "unexpected pass"):
        parts.insert(0, result["outcome"])
    elif result["outcome"] == "inconclusive":
        parts.insert(0, "inconclusive, which is not a pass")
    elif result["outcome"] == "error" and result["fault"] == "kit":
        parts.insert(0, "fault of the kit, not of the implementation")
    return ": ".join(part for part in parts if part)


def _verdict(report: Mapping[str, Any]) -> ET.Element:
    suite = ET.Element("testsuite", name="Verdict")
    case = ET.SubElement(suite, "testcase", classname="verdict", name="run", time="0.0000")
    line = printable(report["verdict"]["line"])
    ET.SubElement(case, "error", message=line, type="incomplete")
    _count(suite, ())
    return suite
