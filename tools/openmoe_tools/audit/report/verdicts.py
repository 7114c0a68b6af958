"""The first screen of the page: what was found, and of what. It is complete without the script."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from openmoe_tools.audit.report.markup import facts, number, prose, table, text

_SIGNS: Mapping[str, tuple[str, str]] = {
    "holds": ("yes", '<path d="M5 10.5l3.5 3.5L15 6.5"/>'),
    "in part": ("part", '<path d="M10 1a9 9 0 0 1 0 18z" class="full"/>'),
    "does not hold": ("no", '<path d="M6 6l8 8M14 6l-8 8"/>'),
    "not decided": ("open", '<path d="M7 8a3 3 0 1 1 4.5 2.6Q10 11.5 10 13M10 15.5v.5"/>'),
    "not recorded": ("quiet", '<path d="M5.5 10h9"/>'),
}
"""Class and sign of each answer; signs are drawn, as fonts differ in what they have."""


def box(report: Mapping[str, Any]) -> str:
    """Return the verdict with its lines, notes, and the facts of the audit."""
    verdict = report["verdict"]
    lines = "\n".join(_line(one) for one in verdict["lines"])
    notes = "\n".join(f"<li>{prose(one)}</li>" for one in verdict["notes"])
    rules = table(
        ("Finding", "Rule", "Clauses"),
        (
            (text(one["finding"]), prose(one["rule"]), text(", ".join(one["clauses"])))
            for one in verdict["lines"]
        ),
    )
    return f"""<section id="verdict" class="verdict" aria-labelledby="verdict-title">
<div>
<h2 id="verdict-title">Verdict</h2>
<p class="driver">What drives the routing: <strong>{text(verdict["driver"])}</strong></p>
<ul class="answers">
{lines}
</ul>
<details><summary>How these are decided</summary>
<div class="scroll" tabindex="0" role="region" aria-label="Decision rules">{rules}</div></details>
</div>
<aside aria-label="What was audited">
<p class="certificate"><strong>Certificate.</strong> {prose(verdict["certificate"])}</p>
{facts(_facts(report["manifest"]))}
{f'<h3>Notes</h3><ul class="notes">{notes}</ul>' if notes else ""}
</aside>
</section>"""


def _line(line: Mapping[str, Any]) -> str:
    colour, sign = _SIGNS.get(line["answer"], _SIGNS["not decided"])
    numbers = " · ".join(_number(name, one) for name, one in line["numbers"].items())
    return f"""<li><p class="answer {colour}"><svg viewBox="0 0 20 20" aria-hidden="true">\
<circle cx="10" cy="10" r="9"/>{sign}</svg> {text(line["answer"])}</p>
<div><p><strong>{text(line["finding"])}</strong></p>
<p>{prose(line["statement"])}</p>{f'<p class="soft">{numbers}</p>' if numbers else ""}</div></li>"""


def _number(name: str, one: Mapping[str, Any]) -> str:
    """Return a number with its interval and what chance would give."""
    told = f"{text(name)} <b>{number(one['value'])}</b>"
    if one["low"] is not None and one["high"] is not None:
        told += f" ({number(one['low'])} to {number(one['high'])})"
    return told if one["chance"] is None else f"{told}, by chance {number(one['chance'])}"


def _facts(manifest: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what the audit was of; an import may lack some of it."""
    model, recipe = manifest["model"], manifest.get("recipe") or {}
    corpus, totals = manifest["corpus"], manifest["totals"]
    step = "" if model.get("step") is None else f", step {text(model['step'])}"
    yield "Model", f"<b>{text(model['name'])}</b>{step}"
    layers = ", ".join(map(str, model["layers"]))
    yield "Routers", f"layers {text(layers)}; {model['choices']} of {model['experts']} experts"
    documents = f"{number(totals['documents'])} documents in {_slices(corpus['slices'])}"
    yield "Text", f"<b>{number(totals['tokens'])}</b> tokens of {documents}"
    rows, length = recipe.get("rows"), recipe.get("length")
    yield "Calls", f"{text(rows)} rows of {text(length)} ids" if rows and length else ""
    rules = recipe.get("rules") or []
    yield "Capacity", "<br>".join(map(_rule, rules)) or "no rule: drops were not counted"
    yield "Model digest", _digest(model.get("digest"))
    yield "Text digest", _digest(corpus.get("digest"))
    yield "Tokeniser", _digest((manifest.get("tokenizer") or {}).get("digest"))
    yield "Source", text(manifest.get("source", ""))
    versions = (manifest.get("spec_version"), manifest.get("version"))
    yield "Made by", text("specification {}, openmoe-spec {}".format(*versions))


def _slices(slices: list[Mapping[str, Any]]) -> str:
    """Return slices with the names of the first few."""
    names = ", ".join(text(one["name"]) for one in slices[:16])
    more = f" and {len(slices) - 16} more" if len(slices) > 16 else ""
    return f"{len(slices)} slice{'s' * (len(slices) != 1)} ({names}{more})"


def _rule(rule: Mapping[str, Any]) -> str:
    """Return a capacity rule; an import may not know its numbers."""
    told = []
    if rule.get("groups") is not None and rule.get("group_size") is not None:
        groups = rule["groups"]
        told.append(
            f"{number(groups)} group{'s' * (groups != 1)} of {number(rule['group_size'])} tokens"
        )
    if rule.get("capacity") is not None:
        told.append(f"{number(rule['capacity'])} slots an expert")
    return ": ".join(filter(None, (f"<b>{text(rule['name'])}</b>", ", ".join(told))))


def _digest(digest: object) -> str:
    return f'<code class="digest">{text(digest)}</code>' if digest else "not known"
