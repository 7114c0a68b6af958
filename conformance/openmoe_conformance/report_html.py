"""The report as one self-contained HTML page: no script, nothing loaded from elsewhere."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from html import escape
from importlib import resources
from itertools import groupby
from typing import Any

from openmoe_conformance.ladder import FINEST_CERTIFIED
from openmoe_conformance.protocol import FUNCTIONS
from openmoe_conformance.report import replay_command
from openmoe_conformance.report_junit import printable
from openmoe_spec.clauses import CLASSES

_COLOUR = {
    "pass": "good",
    **dict.fromkeys(("fail", "error", "unexpected pass"), "bad"),
    **dict.fromkeys(("expected failure", "inconclusive"), "unsure"),
}
_NOT_A_FINDING = ("pass", "skipped")
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>Conformance of {name}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<style>{style}</style></head>
<body>
<h1>{name} <small>{version}</small></h1>
<p class="verdict {colour}"><strong>{word}</strong> <span>{rest}</span></p>
<p class="soft">OpenMoE specification {spec_version} · kit {kit_version} · profile {profile} ·
seed {seed} · {seconds} s</p>
<nav>{links}</nav>
{sections}
</body></html>
"""


def render(report: Mapping[str, Any]) -> str:
    """Return the page."""
    sections = {
        "Implementation": _implementation(report["implementation"]),
        "Ledger": _ledger(report),
        "Findings": _findings(report),
        "Routing resolution": _resolution(report["resolution"]),
        "Real input": _real_input(report["real_input"]),
        "Clauses": _clauses(report),
        "Skipped": _skipped(report["results"]),
    }
    shown = [(title.replace(" ", "-"), title, body) for title, body in sections.items() if body]
    word, _, rest = report["verdict"]["line"].partition(": ")
    plain = ("spec_version", "kit_version", "profile", "seed", "seconds")
    return _PAGE.format(
        style=resources.files("openmoe_conformance").joinpath("report.css").read_text("utf-8"),
        name=_text(report["implementation"]["name"]),
        version=_text(report["implementation"]["version"]),
        colour={0: "good", 1: "bad"}.get(report["verdict"]["exit_code"], "unsure"),
        word=_text(word),
        rest=_text(rest),
        links=" ".join(f'<a href="#{name}">{title}</a>' for name, title, _ in shown),
        sections="\n".join(f'<h2 id="{name}">{title}</h2>\n{body}' for name, title, body in shown),
        **{name: _text(report[name]) for name in plain},
    )


# ---- pieces ------------------------------------------------------------------------------------


def _text(value: object) -> str:
    return escape(printable(str(value)))


def _prose(text: str) -> str:
    """Return text of SPEC.md or of the ladder with code, emphasis and powers of two set as such."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", _text(text))
    marked = re.sub(r"\*(\w[\w .-]*)\*", r"<em>\1</em>", marked)
    return re.sub(r"\b2\^-(\w+)", r"2<sup>&minus;\1</sup>", marked)


def _link(url: str) -> str:
    if not url.startswith(("http://", "https://")):
        return _text(url)  # a stranger wrote it: javascript: and the like stay plain text
    return f'<a href="{_text(url)}" rel="noopener noreferrer">{_text(url)}</a>'


def _pill(outcome: str, target: str = "") -> str:
    tag, link = ("a", f' href="#{_text(target)}"') if target else ("span", "")
    colour = _COLOUR.get(outcome, "quiet")
    return f'<{tag} class="pill {colour}"{link}>{_text(outcome)}</{tag}>'


def _share(share: float) -> str:
    """Return whole per cents of which only all is 100 % and only nothing is 0 %."""
    if 0 < share < 0.005:
        return "&lt;1%"
    return "&gt;99%" if 0.995 <= share < 1 else f"{share:.0%}"


def _error(error: float | None) -> str:
    if error is None:
        return ""
    return f"{error:.2g}" if error < 1e308 else "∞"  # report.py writes infinity as 1e308


def _roundoff(value: float) -> str:
    mantissa, exponent = math.frexp(value)
    return _prose(f"2^{exponent - 1}" if mantissa == 0.5 else f"{value:.3g}" if value else "exact")


def _facts(rows: Iterable[tuple[str, str]]) -> str:
    inner = "\n".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows if value)
    return f'<dl class="facts">\n{inner}\n</dl>'


def _chart(caption: str, columns: Iterable[tuple[str, float, str]]) -> str:
    """Return columns from 0 to 100 %, each of a label, a share and a colour."""
    inner = "\n".join(
        f'<span>{_share(share)}<span class="track {colour}"><i style="height:{100 * share:.1f}%">'
        f"</i></span>{_prose(label)}</span>"
        for label, share, colour in columns
    )
    head = f'<figcaption class="soft">{caption}</figcaption>'
    return f'<figure>{head}\n<div class="columns">\n{inner}\n</div></figure>'


# ---- sections ----------------------------------------------------------------------------------


def _implementation(implementation: Mapping[str, Any]) -> str:
    offered = implementation["functions"]
    missing = [name for name in FUNCTIONS if name not in offered]
    arithmetic = implementation["arithmetic"].items()
    return _facts(
        (
            ("Name", _text(implementation["name"])),
            ("Loaded", f"<code>{_text(implementation['loaded'])}</code>"),
            ("Version", _text(implementation["version"])),
            ("Address", _link(implementation["url"])),
            ("Roundoffs", ", ".join(f"{_text(name)} {_roundoff(u)}" for name, u in arithmetic)),
            ("Offers", ", ".join(f"<code>{_text(name)}</code>" for name in offered)),
            ("Lacks", ", ".join(f"<code>{_text(name)}</code>" for name in missing)),
            ("Notes", "<br>".join(_text(note) for note in implementation["notes"])),
        )
    )


def _ledger(report: Mapping[str, Any]) -> str:
    ledger = report["ledger"]
    tiles = "\n".join(
        f'<div class="{_COLOUR.get(name, "") if count else "quiet"}"><dt>{_text(name)}</dt>'
        f"<dd>{count}</dd></div>"
        for name, count in ledger.items()
        if name != "balanced"
    )
    state = '<strong class="good">Balanced</strong>: every planned item has one result.'
    if not ledger["balanced"]:
        state = '<strong class="bad">Not balanced</strong>: '
        state += f"{len(report['results'])} results where {ledger['planned']} are owed."
    return f'<dl class="tiles">\n{tiles}\n</dl>\n<p>{state}</p>'


def _findings(report: Mapping[str, Any]) -> str:
    found = [r for r in report["results"] if r["outcome"] not in _NOT_A_FINDING]
    texts = {row["id"]: row["text"] for row in report["clauses"]}
    order = {name: place for place, name in enumerate(texts)}
    found.sort(key=lambda result: (order.get(result["clause"], len(order)), result["clause"]))
    parts = []
    for clause, group in groupby(found, key=lambda result: str(result["clause"])):
        findings, name = [_finding(result, report) for result in group], _text(clause)
        head = f'<a href="#{name}">{name}</a>' if clause in texts else name or "No clause"
        count = f"{len(findings)} item" + "s" * (len(findings) > 1)
        parts.append(f'<h3 id="findings-{name}">{head} <small>{count}</small></h3>')
        parts.append(f'<p class="soft">{_prose(texts.get(clause, ""))}</p>')
        parts += findings
    return "\n".join(parts)


def _finding(result: Mapping[str, Any], report: Mapping[str, Any]) -> str:
    facts = [_text(result["source"])]
    if result["examples"]:
        facts.append(f"{result['examples']} examples")
    if result["error"] is not None:
        facts.append(f"worst error {_error(result['error'])} &times; the limit")
    if result["tokens"]:
        facts.append(f"{result['undecided']} of {result['tokens']} tokens undecided")
    if result["outcome"] == "error" and result["fault"] == "kit":
        facts.append("fault of the kit, not of the implementation")
    parts = [
        f"<p>{_pill(result['outcome'])} <code>{_text(result['item'])}</code>",
        f'<span class="soft">{" · ".join(facts)}</span></p>',
        f'<p class="message">{_text(result["message"])}</p>',
    ]
    if result["replay"]:
        parts.append(f"<p><code>{_text(replay_command(report, result))}</code></p>")
    if result["url"]:
        parts.append(f"<p>{_link(result['url'])}</p>")
    return '<div class="finding">\n{}\n</div>'.format("\n".join(parts))


def _resolution(resolution: Mapping[str, Any] | None) -> str:
    if resolution is None:
        return ""
    uncertified = f"Grey: finer than the certified {_prose(f'2^-{FINEST_CERTIFIED}')}."
    columns = []
    for label, share in resolution["rungs"].items():
        margin = re.fullmatch(r"2\^-(\d+)", label)
        certified = margin is None or int(margin[1]) <= FINEST_CERTIFIED
        columns.append((label, share, ("good" if share == 1 else "bad") if certified else "quiet"))
    chart = _chart(f"Choices right, by margin between two logits. {uncertified}", columns)
    return f"<p><strong>{_prose(resolution['line'])}</strong></p>\n{chart}"


def _real_input(real: Mapping[str, Any] | None) -> str:
    if real is None:
        return ""
    facts = (
        ("Text", f"{real['tokens']} tokens of {real['documents']} documents"),
        ("Text sha256", f"<code>{_text(real['text_sha256'])}</code>"),
        ("Tokeniser", f"{real['vocabulary_size']} pieces"),
        ("Tokeniser sha256", f"<code>{_text(real['model_sha256'])}</code>"),
    )
    return "\n".join([_facts(facts), *(_pass(figures) for figures in real["passes"])])


def _pass(figures: Mapping[str, Any]) -> str:
    kept, charts = "no group's queues could be judged", ""
    if "kept_first" in figures:
        kept = f"first choices {figures['kept_first']:.1%}, second {figures['kept_second']:.1%}"
        kept += f"; nothing of {figures['dropped_all']:.1%} of the tokens"
        charts = "\n".join(_drops(figures, which) for which in ("first", "second"))
    undecided = f"{figures['undecided']} of {figures['tokens']} tokens"
    if numbers := figures["undecided_tokens"][:10]:
        more = ", …" if figures["undecided"] > len(numbers) else ""
        undecided += f": numbers {', '.join(map(str, numbers))}{more}"
    facts = (
        ("Groups", f"{figures['groups']} of {figures['tokens_per_group']} tokens"),
        ("Capacity", f"{figures['capacity']} slots for each expert in a group"),
        ("Kept", kept),
        ("Undecided", undecided),
        ("Output error / limit", _error(figures["worst_output_error"])),
    )
    return f'<h3>{_text(figures["name"])}</h3>\n{_facts(facts)}\n<div class="charts">{charts}</div>'


def _drops(figures: Mapping[str, Any], which: str) -> str:
    shares = enumerate(figures[f"drop_share_{which}"], 1)
    columns = [(str(tenth), share, "unsure") for tenth, share in shares]
    return _chart(f"{which.title()} choices dropped, by tenth of the group", columns)


def _clauses(report: Mapping[str, Any]) -> str:
    found = {r["clause"] for r in report["results"] if r["outcome"] not in _NOT_A_FINDING}
    legend = ", ".join(f"{letter} {meaning}" for letter, meaning in CLASSES.items())
    names = ("Clause", "Class", "Outcome", "Items", "Examples", "Error / limit", "Text")
    head = "".join(f"<th>{name}</th>" for name in names)
    parts = [f'<p class="soft">Classes: {legend}.</p>', f"<table>\n<thead><tr>{head}</tr></thead>"]
    for chapter, group in groupby(report["clauses"], key=lambda row: str(row["chapter"])):
        rows = list(group)
        counts = Counter(row["outcome"] for row in rows)
        tally = ", ".join(f"{count} {_text(name)}" for name, count in counts.items())
        title = f'{_text(chapter)} <span class="soft">{tally}</span>'
        parts.append(f'<tbody>\n<tr><th colspan="7" scope="rowgroup">{title}</th></tr>')
        parts += [_clause(row, linked=row["id"] in found) for row in rows]
        parts.append("</tbody>")
    return "\n".join([*parts, "</table>"])


def _clause(row: Mapping[str, Any], *, linked: bool) -> str:
    name, meaning = _text(row["id"]), _text(CLASSES.get(row["class"], ""))
    ran, why = row["items"] > 0, "Reason: " if row["class"] == "I" else ""
    return f"""<tr id="{name}"><td><a href="#{name}">{name}</a></td>
<td><abbr title="{meaning}">{_text(row["class"])}</abbr></td>
<td>{_pill(row["outcome"], f"findings-{name}" if linked else "")}</td>
<td data-label="items">{f"{row['executed']}/{row['items']}" if ran else ""}</td>
<td data-label="examples">{row["examples"] if ran else ""}</td>
<td data-label="error / limit">{_error(row["error"])}</td>
<td><p>{_prose(row["text"])}</p><p class="soft">{why}{_prose(row["source"])}</p></td></tr>"""


def _skipped(results: Iterable[Mapping[str, Any]]) -> str:
    reasons: dict[str, list[str]] = {}
    for result in results:
        if result["outcome"] == "skipped":
            line = f"<li>{_text(result['clause'])} <code>{_text(result['item'])}</code></li>"
            reasons.setdefault(result["message"], []).append(line)
    return "\n".join(
        f"<details><summary>{len(lines)} &times; {_text(reason)}</summary>\n<ul>"
        + "\n".join(lines)
        + "</ul></details>"
        for reason, lines in sorted(reasons.items(), key=lambda entry: -len(entry[1]))
    )
