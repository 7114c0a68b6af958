"""A report's verdict on one screen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

STYLES = {
    "holds": "green",
    "in part": "yellow",
    "does not hold": "red",
    "not decided": "magenta",
    "not recorded": "dim",
}
WIDTH = max(map(len, STYLES))


def show(report: Mapping[str, Any], console: Console) -> None:
    """Print the verdict of a report: for each finding its answer, and the numbers behind it.

    Lines are cut at the terminal's width; at most two a finding, and four.
    """
    manifest, verdict = report["manifest"], report["verdict"]
    totals, recipe = manifest["totals"], manifest["recipe"]
    rules = ", ".join(str(one["name"]) for one in recipe["rules"]) or "no capacity rule"
    _print(console, report["title"], "bold")
    _print(
        console,
        f"{totals['tokens']:,} tokens of {totals['documents']:,} documents in "
        f"{len(manifest['corpus']['slices'])} slices; {rules}; driver of the routing: {verdict['driver']}",
    )
    _print(console, verdict["certificate"], "dim")
    for one in verdict["lines"]:
        answer = Text(f"{one['answer']:<{WIDTH}}", STYLES[one["answer"]])
        _cut(console, answer + Text(f"  {one['finding']}"))
        _cut(console, Text(f"{'':<{WIDTH}}  {_numbers(one)}", "dim"))


def _print(console: Console, text: str, style: str = "") -> None:
    _cut(console, Text(text, style))


def _cut(console: Console, line: Text) -> None:
    """Print one line, cut where the terminal ends; a text's own line ends are shown as spaces."""
    joined = Text(" ").join(line.split("\n")) if "\n" in line.plain else line
    console.print(joined, no_wrap=True, overflow="ellipsis", highlight=False, crop=True)


def _numbers(line: Mapping[str, Any]) -> str:
    """Return the numbers of a finding with intervals, or what was said in their place."""
    known = {name: one for name, one in line["numbers"].items() if one["value"] is not None}
    if not known or line["id"] == "nothing_odd":
        return str(line["statement"])
    return "; ".join(f"{name} {_number(one)}" for name, one in known.items())


def _number(one: Mapping[str, Any]) -> str:
    found = f"{one['value']:.3g}"
    if one["low"] is not None and one["high"] is not None:
        found += f" [{one['low']:.3g}, {one['high']:.3g}]"
    return found
