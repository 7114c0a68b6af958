"""The report on a terminal: clauses, findings, ladder, real input, ledger, verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from openmoe_conformance.report import replay_command

_STYLE = {
    "pass": "green",
    "fail": "bold red",
    "error": "bold red",
    "unexpected pass": "bold red",
    "inconclusive": "bold yellow",
    "expected failure": "yellow",
    "skipped": "dim",
    "not run": "dim",
}
_QUIET = ("pass", "skipped")
_MOST_OF_A_CLAUSE = 2


def render(report: Mapping[str, Any], console: Console) -> None:
    """Print the whole report."""
    _clauses(report, console)
    _skips(report, console)
    _ladder(report, console)
    _real_input(report, console)
    _findings(report, console)
    ledger = report["ledger"]
    parts = [f"{ledger[name]} {name}" for name in _STYLE if ledger.get(name)]
    state = "balanced" if ledger["balanced"] else "NOT BALANCED"
    _line(console, f"\nLedger: {' + '.join(parts)} = {ledger['planned']} planned, {state}")
    code = report["verdict"]["exit_code"]
    style = {0: "bold green", 1: "bold red"}.get(code, "bold yellow")
    _line(console, f"{report['verdict']['line']} ({report['seconds']:.0f} s)", style)


def _clauses(report: Mapping[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("clause", "class", "outcome", "items", "examples", "error/limit"):
        right = name in ("items", "examples", "error/limit")
        table.add_column(name, justify="right" if right else "left", no_wrap=True)
    room = max(console.width - _BEFORE_TEXT, 16)
    table.add_column("what it says", no_wrap=True)
    for row in report["clauses"]:
        if row["outcome"] in ("informative", "not run"):
            continue
        text = row["text"]
        table.add_row(
            row["id"],
            row["class"],
            Text(row["outcome"], _STYLE[row["outcome"]]),
            f"{row['executed']}/{row['items']}",
            str(row["examples"]),
            _error(row),
            text if len(text) <= room else text[: room - 3] + "...",
        )
    if table.row_count:
        console.print(table)
    not_run = [row["id"] for row in report["clauses"] if row["outcome"] == "not run"]
    if len(not_run) > _MOST_IDS:
        _line(console, f"{len(not_run)} clauses were not decided by this run", "dim")
    elif not_run:
        _line(console, f"Not decided by this run: {', '.join(not_run)}", "dim")


def _error(row: Mapping[str, Any]) -> str:
    if row["error"] is None:
        return "exact" if row["outcome"] in ("pass", "expected failure") else ""
    return f"{row['error']:.2g}"


_MOST_IDS = 10
_BEFORE_TEXT = 66
"""Columns that the table needs left of the clause's text."""


def _line(console: Console, text: str, style: str = "") -> None:
    """Print one line of text as it is, unwrapped."""
    console.print(Text(text, style), soft_wrap=True)


def _skips(report: Mapping[str, Any], console: Console) -> None:
    reasons = Counter(r["message"] for r in report["results"] if r["outcome"] == "skipped")
    for reason, count in reasons.most_common():
        _line(console, f"skipped {count}: {reason}", "dim")


def _ladder(report: Mapping[str, Any], console: Console) -> None:
    resolution = report["resolution"]
    if resolution is None:
        return
    _line(console, f"\nRouting resolution: {resolution['line']}", "bold")
    table = Table(box=None, pad_edge=False)
    for rung in resolution["rungs"]:
        table.add_column(rung, justify="right", no_wrap=True)
    table.add_row(*(f"{share:.0%}" for share in resolution["rungs"].values()))
    console.print(table)
    _line(console, "share of choices right by margin; certified down to 2^-20", "dim")


def _real_input(report: Mapping[str, Any], console: Console) -> None:
    real = report["real_input"]
    if real is None:
        return
    _line(
        console,
        f"\nReal input: {real['tokens']} tokens of {real['documents']} files of the Python "
        f"standard library, {real['vocabulary_size']} pieces, text sha256 "
        f"{real['text_sha256'][:12]}",
        "bold",
    )
    for figures in real["passes"]:
        line = (
            f"{figures['name']}: {figures['groups']} groups of {figures['tokens_per_group']}, "
            f"capacity {figures['capacity']}; {figures['undecided']} tokens undecided"
        )
        line += f", {figures['seconds']:.0f} s"
        if figures["undecided_tokens"]:
            shown = ", ".join(map(str, figures["undecided_tokens"][:10]))
            line += f" (numbers {shown}{', ...' if figures['undecided'] > 10 else ''})"
        _line(console, line)
        if "kept_first" not in figures:
            continue
        _line(
            console,
            f"  kept: first choices {figures['kept_first']:.1%}, second choices "
            f"{figures['kept_second']:.1%}; tokens with nothing kept {figures['dropped_all']:.1%}",
        )
        for which in ("first", "second"):
            shares = " ".join(f"{share:4.0%}" for share in figures[f"drop_share_{which}"])
            _line(console, f"  {which:6} choices dropped, by tenth of the group: {shares}")


def _findings(report: Mapping[str, Any], console: Console) -> None:
    """Print what went wrong by clause: clauses that a check caught first, in the order of SPEC.md."""
    order = {row["id"]: number for number, row in enumerate(report["clauses"])}
    texts = {row["id"]: row["text"] for row in report["clauses"]}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for result in report["results"]:
        if result["outcome"] not in _QUIET:
            found.setdefault(result["clause"], []).append(result)
    for results in found.values():
        results.sort(key=_source)

    def rank(clause: str) -> tuple[int, int]:
        return _source(found[clause][0]), order.get(clause, len(order))

    for clause in sorted(found, key=rank):
        console.print()
        _line(console, f"{clause or 'no clause'}  {texts.get(clause, '')}", "bold")
        for result in found[clause][:_MOST_OF_A_CLAUSE]:
            _finding(report, result, console)
        if len(found[clause]) > _MOST_OF_A_CLAUSE:
            more = len(found[clause]) - _MOST_OF_A_CLAUSE
            _line(console, f"  ... and {more} more of {clause}; --json FILE holds all", "dim")


def _source(result: Mapping[str, Any]) -> int:
    return ("check", "real input", "vector").index(result["source"])


def _finding(report: Mapping[str, Any], result: Mapping[str, Any], console: Console) -> None:
    head = Text(f"  {result['outcome'].upper()} ", _STYLE[result["outcome"]])
    console.print(head + Text(result["item"]), soft_wrap=True)
    _line(console, f"    {result['message']}")
    if result["url"]:
        _line(console, f"    {result['url']}")
    if result["replay"]:
        _line(console, f"    {replay_command(report, result)}")
