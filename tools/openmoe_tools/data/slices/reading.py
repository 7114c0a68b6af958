"""What is to be read of the files of packages: documents by name, and the text of each.

Nothing of a package is run: catalogues of messages, too, are read as what they are, bytes.
"""

from __future__ import annotations

import html
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from openmoe_tools.data.machine_text import manual_text

_LONGEST = 2**26
"""Bytes of a file that is decompressed."""
_BLOCK = 3000
"""Characters of a document that is made of short paragraphs: glosses, messages, fortunes."""
SHORTEST_MESSAGE = 40


class UnreadableError(Exception):
    """A file that is left out; the message says why, in words that are counted."""


def decoded(content: bytes) -> str:
    """Return a file's text, decompressed if it is gzip's. Errors: UnreadableError."""
    if content[:2] == b"\x1f\x8b":
        try:
            content = zlib.decompressobj(31).decompress(content, _LONGEST)
        except zlib.error as error:
            raise UnreadableError("cannot be read") from error
    try:
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        raise UnreadableError("no UTF-8") from error


# ---- code --------------------------------------------------------------------------------------


def without_licence(text: str) -> str:
    """Return code without the comment at its beginning if that is a licence, as in every file."""
    lines = re.sub(r"(?s)\A\s*/\*.*?\*/\s*", "", text, count=1)
    first = text[: len(text) - len(lines)]
    if not first:
        found = re.match(r"(?:[ \t]*(?://|#|;|%|--|\.\\\"|'\\\").*\n|[ \t]*\n)+", text)
        first = found[0] if found else ""
    return text[len(first) :] if re.search("(?i)copyright|licen[cs]e", first) else text


# ---- pages -------------------------------------------------------------------------------------

_TAG = re.compile(r"<!--.*?-->|<(/?)([a-zA-Z][\w:-]*)([^<>]*)>", re.DOTALL)
_WITHIN = re.compile(
    "a|abbr|acronym|b|bdi|bdo|big|cite|code|del|dfn|em|font|i|img|input|ins|kbd|label|mark|q|s|samp|"
    "small|span|strong|sub|sup|tt|u|var|wbr"
)
"""What does not end a paragraph."""
_PASSED = frozenset(
    ("aside", "button", "footer", "head", "header", "nav", "noscript", "script", "style", "svg")
)
_PASSED_CLASSES = re.compile(
    r"(?:class|id)=\"(?:docnav[^\"]*|nav(?:header|footer)|toc|banner|title|TopLeftHeader|indexterm)\""
)


def paragraphs(page: str) -> list[str]:
    """Return the paragraphs of a page of HTML, without what leads to other pages."""
    found: list[str] = []
    told: list[str] = []
    waiting, depth, end, set_off = "", 0, 0, False

    def close() -> None:
        text = html.unescape("".join(told))
        kept = text.strip("\n") if set_off else " ".join(text.split())
        if kept.strip():
            found.append(kept)
        told.clear()

    for tag in _TAG.finditer(page):
        if not waiting:
            told.append(page[end : tag.start()])
        end = tag.end()
        closing, name, rest = tag[1], (tag[2] or "").lower(), tag[3] or ""
        if waiting:
            if name == waiting and not rest.endswith("/"):
                depth += -1 if closing else 1
                waiting = waiting if depth else ""
            continue
        if name and not _WITHIN.fullmatch(name):
            close()
            set_off = name == "pre" and not closing
        alone = closing or rest.endswith("/")
        if not alone and (name in _PASSED or _passed(name, rest)):
            waiting, depth = name, 1
    if not waiting:
        told.append(page[end:])
    close()
    return found


def _passed(name: str, rest: str) -> bool:
    return name in {"div", "p", "ul", "table", "dl"} and bool(_PASSED_CLASSES.search(rest))


def page_text(page: str, known: frozenset[str] = frozenset()) -> str:
    """Return the text of a page, without the paragraphs that are known."""
    return "\n\n".join(one for one in paragraphs(page) if one not in known)


def _sections(name: str, content: bytes) -> Mapping[str, str]:
    """Return the sections of a page, from a heading to the next: translations have as many."""
    text = decoded(content)
    text = text[max(0, text.find("<body")) :]
    ends = [0, *(one.start() for one in re.finditer(r"<h[1-4][ >]", text)), len(text)]
    return {f"{name}/{i:03}": text[a:b] for i, (a, b) in enumerate(pairwise(ends)) if i}


# ---- short paragraphs --------------------------------------------------------------------------


def blocks(name: str, given: Iterable[str]) -> dict[str, str]:
    """Return documents of some length that are made of short paragraphs."""
    found: list[list[str]] = []
    size = _BLOCK
    for one in given:
        if size >= _BLOCK:
            found.append([])
            size = 0
        found[-1].append(one)
        size += len(one)
    return {f"{name}/{i:05}": "\n\n".join(some) for i, some in enumerate(found)}


def messages(content: bytes) -> Iterator[str]:
    """Yield the sentences of a catalogue (.mo) that were translated. Errors: UnreadableError."""
    for order in ("<", ">"):
        if content[:4] == struct.pack(f"{order}I", 0x950412DE):
            break
    else:
        raise UnreadableError("no catalogue")
    try:
        count, originals, translations = struct.unpack_from(f"{order}3I", content, 8)
        if count > len(content):
            raise UnreadableError("no catalogue")
        for i in range(count):
            pair = []
            for table in (originals, translations):
                size, start = struct.unpack_from(f"{order}2I", content, table + 8 * i)
                pair.append(content[start : start + size].decode("utf-8").partition("\0")[0])
            # A context stands before an original; a tilde before the letter of a shortcut.
            original, text = (one.replace("~", "").strip() for one in pair)
            original = original.rpartition("\4")[2]
            if original and text != original and len(text) >= SHORTEST_MESSAGE:
                yield text
    except struct.error as error:
        raise UnreadableError("no catalogue") from error
    except UnicodeDecodeError as error:
        raise UnreadableError("no UTF-8") from error


def _glosses(name: str, content: bytes) -> Mapping[str, str]:
    """Return WordNet's entries: the words of a meaning, and what they mean."""

    def told() -> Iterator[str]:
        for line in decoded(content).splitlines():
            fields, bar, gloss = line.partition(" | ")
            parts = fields.split(" ")
            if bar and len(parts) > 3 and re.fullmatch("[0-9a-f]{2}", parts[3]):
                words = parts[4 : 4 + 2 * int(parts[3], 16) : 2]
                yield ", ".join(words).replace("_", " ") + ": " + gloss.strip()

    return blocks(name, told())


def _fortunes(name: str, content: bytes) -> Mapping[str, str]:
    given = (one.strip("\n") for one in re.split(r"(?m)^%+$", decoded(content)))
    return blocks(name, (one for one in given if one.strip()))


# ---- a book ------------------------------------------------------------------------------------


def _unpacked(content: bytes, most: int) -> bytes:
    """Return what a block holds, `most` bytes: codes of 9 to 16 bits (LZW), the lowest bit first.

    Behind so many bytes a block is filled up. Errors: UnreadableError.
    """
    table = [bytes([one]) for one in range(256)] + [b""]
    width, held, bits = 9, 0, 0
    before, found, size = b"", [], 0
    for byte in content:
        if size >= most:
            break
        held |= byte << bits
        bits += 8
        if bits < width:
            continue
        code = held & ((1 << width) - 1)
        held >>= width
        bits -= width
        if code > len(table) or (code == len(table) and not before):
            raise UnreadableError("cannot be read")
        entry = table[code] if code < len(table) else before + before[:1]
        found.append(entry)
        size += len(entry)
        if before and len(table) < 1 << 16:
            table.append(before + entry[:1])
        before = entry
        if len(table) == 1 << width and width < 16:
            width += 1
    return b"".join(found)[:most]


def _chapters(_: str, content: bytes) -> Mapping[str, str]:
    """Return the chapters of a Bible of the program `bible`: a table of blocks, each packed for itself.

    Numbers of verses stand in the names of chapters alone. Errors: UnreadableError.
    """
    try:
        most, count = struct.unpack_from(">2I", content, 0x54)
        offsets = struct.unpack_from(f">{min(count, len(content)) + 1}I", content, 0x5C)
    except struct.error as error:
        raise UnreadableError("cannot be read") from error
    whole = b"".join(_unpacked(content[a:b], most) for a, b in pairwise(offsets))
    found: dict[str, list[str]] = {}
    for line in decoded(whole).splitlines():
        if verse := re.match(r"(\d?[A-Za-z]+)(\d+):\d+ (.+)", line):
            found.setdefault(f"{verse[1]}/{int(verse[2]):03}", []).append(verse[3])
    if not found:
        raise UnreadableError("cannot be read")
    return {name: "\n".join(verses) for name, verses in found.items()}


# ---- all of them -------------------------------------------------------------------------------


def _whole(name: str, content: bytes) -> Mapping[str, str]:
    return {name: decoded(content)}


def _as_it_is(text: str) -> str:
    return text


@dataclass(frozen=True)
class Reader:
    """How a kind of file is read.

    split  gives what a file holds, by name; errors: UnreadableError
    plain  gives the text of one of them
    signs  share of a text that may be no letter of English
    """

    split: Callable[[str, bytes], Mapping[str, str]] = _whole
    plain: Callable[[str], str] = _as_it_is
    signs: float = 0.4


READERS: Mapping[str, Reader] = {
    "assembly": Reader(plain=without_licence, signs=0.7),
    "chapters": Reader(_chapters),
    "code": Reader(plain=without_licence, signs=0.5),
    "fortunes": Reader(_fortunes),
    "glosses": Reader(_glosses),
    "manual": Reader(plain=manual_text),
    "messages": Reader(lambda name, content: blocks(name, messages(content)), signs=1.0),
    "page": Reader(plain=page_text, signs=1.0),
    "raw": Reader(plain=without_licence, signs=0.7),
    "sections": Reader(_sections, page_text, 1.0),
}
PAGES: Sequence[str] = ("page", "sections")
"""Readers of pages: what is known of another language can be left out."""
