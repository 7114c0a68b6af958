"""The report on a terminal: clauses, findings, ladder, real input, ledger, verdict."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

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
_MOST_FINDINGS = 20


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
    console.print(f"\nLedger: {' + '.join(parts)} = {ledger['planned']} planned, {state}")
    code = report["verdict"]["exit_code"]
    style = {0: "bold green", 1: "bold red"}.get(code, "bold yellow")
    console.print(
        Text(f"{report['verdict']['line']} ({report['seconds']:.0f} s)", style), soft_wrap=True
    )


def _clauses(report: Mapping[str, Any], console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name, justify in (
        ("clause", "left"),
        ("class", "left"),
        ("outcome", "left"),
        ("items", "right"),
        ("examples", "right"),
        ("worst error / limit", "right"),
        ("what it says", "left"),
    ):
        table.add_column(name, justify=justify, no_wrap=True, overflow="ellipsis")  # type: ignore[arg-type]
    for row in report["clauses"]:
        if row["outcome"] in ("informative", "not run"):
            continue
        error = "" if row["error"] is None else f"{row['error']:.2g}"
        table.add_row(
            row["id"],
            row["class"],
            Text(row["outcome"], _STYLE[row["outcome"]]),
            f"{row['executed']}/{row['items']}",
            str(row["examples"]),
            error,
            row["text"],
        )
    if table.row_count:
        console.print(table)
    not_run = [row["id"] for row in report["clauses"] if row["outcome"] == "not run"]
    if not_run:
        console.print(f"Not decided by this run: {', '.join(not_run)}", style="dim")


def _skips(report: Mapping[str, Any], console: Console) -> None:
    reasons = Counter(r["message"] for r in report["results"] if r["outcome"] == "skipped")
    for reason, count in reasons.most_common():
        console.print(f"skipped {count}: {reason}", style="dim", markup=False, highlight=False)


def _ladder(report: Mapping[str, Any], console: Console) -> None:
    resolution = report["resolution"]
    if resolution is None:
        return
    console.print(f"\nRouting resolution: {resolution['line']}", style="bold")
    table = Table(box=None, pad_edge=False)
    for rung in resolution["rungs"]:
        table.add_column(rung, justify="right", no_wrap=True)
    table.add_row(*(f"{share:.0%}" for share in resolution["rungs"].values()))
    console.print(table)
    console.print("share of choices right by margin; certified down to 2^-20", style="dim")


def _real_input(report: Mapping[str, Any], console: Console) -> None:
    real = report["real_input"]
    if real is None:
        return
    console.print(
        f"\nReal input: {real['tokens']} tokens of {real['documents']} files of the Python "
        f"standard library, {real['vocabulary_size']} pieces, text sha256 "
        f"{real['text_sha256'][:12]}",
        style="bold",
    )
    for figures in real["passes"]:
        line = (
            f"{figures['name']}: {figures['groups']} groups of {figures['tokens_per_group']}, "
            f"capacity {figures['capacity']}; {figures['undecided']} tokens undecided"
        )
        if figures["undecided_tokens"]:
            shown = ", ".join(map(str, figures["undecided_tokens"][:10]))
            line += f" (numbers {shown}{', ...' if figures['undecided'] > 10 else ''})"
        console.print(line)
        if "kept_first" not in figures:
            continue
        console.print(
            f"  kept: first choices {figures['kept_first']:.1%}, second choices "
            f"{figures['kept_second']:.1%}; tokens with nothing kept {figures['dropped_all']:.1%}"
        )
        for which in ("first", "second"):
            shares = " ".join(f"{share:4.0%}" for share in figures[f"drop_share_{which}"])
            console.print(f"  {which:6} choices dropped, by tenth of the group: {shares}")


def _findings(report: Mapping[str, Any], console: Console) -> None:
    found = [r for r in report["results"] if r["outcome"] not in _QUIET]
    texts = {row["id"]: row["text"] for row in report["clauses"]}
    for result in found[:_MOST_FINDINGS]:
        console.print()
        head = Text(f"{result['outcome'].upper()} ", _STYLE[result["outcome"]])
        console.print(head + Text(f"{result['clause']} {result['item']}", "bold"), soft_wrap=True)
        if result["clause"] in texts:
            console.print(Text(f"  {texts[result['clause']]}", "italic"))
        console.print(Text(f"  {result['message']}"), soft_wrap=True)
        if result["url"]:
            console.print(Text(f"  {result['url']}"), soft_wrap=True)
        if result["replay"]:
            console.print(Text(f"  openmoe replay {result['replay']}"), soft_wrap=True)
    if len(found) > _MOST_FINDINGS:
        console.print(f"\n... and {len(found) - _MOST_FINDINGS} more; --json FILE holds all")
