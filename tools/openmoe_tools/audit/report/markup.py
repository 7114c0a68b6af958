"""Text of strangers as HTML, and data inside a page: nothing that they hold can end what holds them."""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

UNKNOWN = "not known"
_JOINERS = "\u200c\u200d"
"""Characters that some scripts are written with, though nobody sees them."""
_HIDDEN = re.compile("[^ -~]")
_ADDRESS = re.compile("(https?):", re.IGNORECASE)


def spelt(text: str) -> str:
    r"""Return text with characters that are not seen spelt out, as `\x1b`: codes, marks of direction, halves."""
    return _HIDDEN.sub(_seen, text)


def _seen(found: re.Match[str]) -> str:
    one = found[0]
    if one in _JOINERS or unicodedata.category(one) not in {"Cc", "Cf", "Cs", "Cn", "Zl", "Zp"}:
        return one
    return one.encode("unicode_escape").decode()


def text(value: object) -> str:
    """Return a value as HTML text, of one line, or as an attribute's value.

    An address is written so that who searches the page's source finds only what it would load: nothing.
    """
    return _ADDRESS.sub(r"\1&#58;", escape(spelt(str(value))))


def lines(value: object) -> str:
    """Return text whose line ends stay."""
    return "\n".join(map(text, str(value).split("\n")))


def prose(value: object) -> str:
    """Return text with code and powers set as such."""
    marked = re.sub(r"`([^`]+)`", r"<code>\1</code>", text(value))
    return re.sub(r"(?<![\w.^])(\d+)\^(-?\d+)\b", _power, marked)


def _power(found: re.Match[str]) -> str:
    return f"{found[1]}<sup>{found[2].replace('-', '&minus;')}</sup>"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as text for a reader."""
    if value is None:
        return UNKNOWN
    if float(value).is_integer() and abs(value) < 1e15:
        return f"{int(value):,}"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def identifier(*names: object) -> str:
    """Return a name that an element, or a file, may have."""
    return "-".join(re.sub(r"[^A-Za-z0-9_.]+", "_", str(name)).strip("_") or "_" for name in names)


def facts(rows: Iterable[tuple[str, str]]) -> str:
    """Return names and what they are, both HTML; what is empty is left out."""
    inner = "\n".join(f"<dt>{name}</dt><dd>{value}</dd>" for name, value in rows if value)
    return f'<dl class="facts">\n{inner}\n</dl>'


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Return a table of cells that are HTML."""
    head = "".join(f'<th scope="col">{one}</th>' for one in columns)
    body = "\n".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>"


def embedded(value: Mapping[str, Any]) -> str:
    """Return JSON that stands in a script element: pure ASCII, without what HTML reads as its own."""
    made = json.dumps(value, allow_nan=False, separators=(",", ":"))
    for one in "<>&":
        made = made.replace(one, f"\\u{ord(one):04x}")
    return _ADDRESS.sub(r"\1\\u003a", made)
