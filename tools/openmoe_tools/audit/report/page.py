"""The report as one self-contained HTML page: its script draws what its own JSON holds; nothing is loaded."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterator, Mapping
from importlib import resources
from typing import Any

from openmoe_tools.audit.measures.view import PAPERS_LAYER
from openmoe_tools.audit.report import verdicts
from openmoe_tools.audit.report.markup import embedded, identifier, lines, number, prose, text

_SCRIPTS = ("basics.js", "plots.js", "charts.js", "tables.js", "reading.js", "page.js")
_DRAWN = ("heatmap", "lines", "points", "bars", "radar", "text")
"""Kinds that are not tables themselves, and have one beside them."""
_PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<style>
{style}</style></head>
<body data-start="{start}">
<header><h1>{title}</h1>
<p class="soft">{summary}</p></header>
<noscript><p class="empty">The figures and tables below are drawn by a script inside this file, which this browser
does not run. The verdict is complete without it; the data are in this file as JSON, in its last but one
element.</p></noscript>
<main>
{verdict}
<nav id="contents" aria-labelledby="contents-title"><h2 id="contents-title">Contents</h2>
<ol>
{contents}
</ol>
<p class="tools"><button type="button" id="open-tables">Open all tables</button>
<button type="button" id="save">Save the data (JSON)</button></p></nav>
{sections}
</main>
<div id="tip" hidden></div><div id="said" role="status"></div>
<script type="application/json" id="report">{data}</script>
<script>{script}</script>
</body></html>
"""


def render(report: Mapping[str, Any]) -> str:
    """Return the page of a report of schema openmoe-audit-report/1."""
    parts = "\n".join(map(_file, _SCRIPTS))
    script = f'(() => {{\n"use strict";\n{parts}}})();'
    manifest, sections = report["manifest"], list(enumerate(report["sections"]))
    totals, model = manifest["totals"], manifest["model"]
    return _PAGE.format(
        title=text(report["title"]),
        policy=_policy(script),
        style=_file("page.css"),
        start=text(json.dumps(_start(model["layers"]))),
        summary=f"Routing audit: {number(totals['tokens'])} tokens through {len(model['layers'])} "
        f"sparse layers of {model['experts']} experts, {model['choices']} choices a token",
        verdict=verdicts.box(report),
        contents="\n".join(_entry(one) for _, one in sections),
        sections="\n".join(_section(place, one) for place, one in sections),
        data=embedded(report),
        script=script,
    )


def _file(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text("utf-8")


def _policy(script: str) -> str:
    """Return a policy that lets nothing be loaded and no script run but the page's own.

    Browsers that know hashes pass over 'unsafe-inline' where there is one.
    """
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return (
        "default-src 'none'; style-src 'unsafe-inline'; "
        f"script-src 'unsafe-inline' 'sha256-{digest}'; base-uri 'none'; form-action 'none'"
    )


def _start(layers: list[int]) -> dict[str, str]:
    """Return what the figures show first: the layer that the verdict is about."""
    return {"layer": str(layers[min(PAPERS_LAYER, len(layers) - 1)])} if layers else {}


def _entry(section: Mapping[str, Any]) -> str:
    figures = "".join(
        f'<li><a href="#{identifier("figure", one["id"])}">{text(one["title"])}</a></li>'
        for one in section["figures"]
    )
    link = f'<a href="#{identifier("section", section["id"])}">{text(section["title"])}</a>'
    return f"<li>{link}{f'<ul>{figures}</ul>' if figures else ''}</li>"


def _section(place: int, section: Mapping[str, Any]) -> str:
    name = identifier("section", section["id"])
    inner = "\n".join(
        _figure(f"{place} {number}", one) for number, one in enumerate(section["figures"])
    )
    return f"""<section id="{name}" aria-labelledby="{name}-title">
<h2 id="{name}-title">{text(section["title"])}</h2>
<p class="lead">{prose(section["text"])}</p>
{inner}
</section>"""


def _figure(place: str, figure: Mapping[str, Any]) -> str:
    """Return a figure without what the script draws into it."""
    name = identifier("figure", figure["id"])
    paper = f'<span class="paper">{text(figure["paper"])} of the paper</span>'
    return f"""<article class="figure" id="{name}" data-place="{place}" aria-labelledby="{name}-title">
<h3 id="{name}-title">{text(figure["title"])}{paper if figure["paper"] else ""}</h3>
{"".join(_parts(name, figure))}</article>"""


def _parts(name: str, figure: Mapping[str, Any]) -> Iterator[str]:
    kind = identifier(figure["kind"])
    if figure["panels"]:
        yield f'<div class="controls"></div>\n<div class="plot {kind}"></div>\n'
        yield '<ul class="legend" aria-label="Legend"></ul>\n'
    else:
        yield '<p class="empty">Nothing was recorded for this figure.</p>\n'
    if figure["caption"]:
        yield f'<p class="caption">{prose(figure["caption"])}</p>\n'
    if figure["formula"] or figure["clauses"]:
        clauses = text(", ".join(figure["clauses"]))
        formula = f"<code>{text(figure['formula'])}</code>" if figure["formula"] else ""
        yield f'<p class="formula">{formula} <span>{clauses}</span></p>\n'
    if figure["panels"] and figure["kind"] in _DRAWN:
        yield '<details class="twin"><summary>All numbers as a table</summary></details>\n'
    if figure["query"]:
        yield (
            '<details class="sql"><summary>SQL that derives it from the trace</summary>\n'
            f"<p>Run it: <code>openmoe audit query DIR --figure {text(figure['id'])}</code></p>\n"
            f'<pre tabindex="0" id="{name}-sql">{lines(figure["query"])}</pre>\n'
            f'<button type="button" data-copy="{name}-sql">Copy the SQL</button></details>\n'
        )
