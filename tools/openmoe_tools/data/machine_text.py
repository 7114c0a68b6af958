"""Text that a plain machine has: its Python's sources, packages, manual pages and documentation."""

from __future__ import annotations

import ast
import gzip
import hashlib
import os
import re
import string
import sysconfig
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from openmoe_tools.data.corpus import Document

MANUALS, SHARED_DOCUMENTATION = Path("/usr/share/man"), Path("/usr/share/doc")
SHORTEST, _LARGEST = 200, 2**18
"""Bytes of a document that the machine has: less says nothing, more was made by a program."""
_MOST_SIGNS = 0.4
"""Share of a text that may be other than letters and spaces, digits among them: else it is a table."""
_LETTERS = (string.ascii_letters + string.whitespace).encode()
_LEFT_OUT = frozenset(
    ("__pycache__", "dist-packages", "encodings", "idle_test", "site-packages", "test", "tests")
)
_NO_PROSE = frozenset(("SOURCES.txt", "entry_points.txt", "requires.txt", "top_level.txt"))
_CODE = re.compile(r"(?!_sysconfigdata|topics).*\.py")
_PROSE = re.compile(r"(README|LICEN[CS]E|COPYING|METADATA).*|.*\.(md|rst|txt)(\.gz)?")
_MANUAL = re.compile(r".*\.[1-9][a-z]*(\.gz)?")


def files_below(root: Path, wanted: re.Pattern[str]) -> dict[str, Path]:
    """Return files by name, which is their path below a folder; none where there is no folder."""
    found: dict[str, Path] = {}
    for folder, inside, names in os.walk(root):
        inside[:] = [one for one in inside if one not in _LEFT_OUT]
        paths = (Path(folder, one) for one in names if wanted.fullmatch(one))
        found |= {one.relative_to(root).as_posix(): one for one in paths}
    return found


def _paths(name: str) -> Path:
    return Path(sysconfig.get_path(name))


def _documentation() -> Mapping[str, Path | str]:
    """Return texts beside packages and programs, and the topics of Python's own help."""
    found = files_below(SHARED_DOCUMENTATION, _PROSE) | files_below(_paths("purelib"), _PROSE)
    prose = {name: path for name, path in found.items() if path.name not in _NO_PROSE}
    topics = _paths("stdlib") / "pydoc_data" / "topics.py"
    if not topics.is_file():
        return prose
    code = ast.parse(topics.read_text(encoding="utf-8")).body
    assigned = next(one.value for one in code if isinstance(one, ast.Assign))
    named: dict[str, str] = ast.literal_eval(assigned)
    return prose | {f"topics/{name}": text for name, text in named.items()}


def _manuals() -> Mapping[str, Path]:
    """Return English pages: those of other languages are in folders of their own."""
    sections = [MANUALS / f"man{number}" for number in range(1, 9)]
    return {name: path for one in sections for name, path in files_below(one, _MANUAL).items()}


def _without_licence(text: str) -> str:
    """Return code without the comment at its beginning if that is a licence, as in every file."""
    comment = re.match(r"(#.*\n|\s*\n)+", text)
    legal = comment and re.search("(?i)copyright|licen[cs]e", comment[0])
    return text[comment.end() :] if comment and legal else text


def _without_fields(text: str) -> str:
    """Return the description that follows the fields of a package's metadata."""
    return text.partition("\n\n")[2] if text.startswith("Metadata-Version:") else text


_HEADINGS = re.compile(r"\.\s*S[HS] +(.*)")
_FONTS = re.compile(r"\.\s*(?:B|I|SM|SB|[BIR][BIR]|IP) +(.*)")
_BREAKS = re.compile(r"\.\s*(?:PP|P|LP|HP|TP|IP|sp)\b")
_ESCAPES: Sequence[tuple[str, str]] = (
    (r"\\f(?:\[\w*\]|\(..|.)|\\s[-+]?\d+|\\[&|^/,%c:]|\\\".*", ""),
    (r"\\\((?:aq|cq|oq)|\\'", "'"),
    (r"\\\((?:lq|rq|dq)|\\\*\((?:lq|rq|L\"|R\")|\\\*\([LR]\"", '"'),
    (r"\\\((?:em|en|mi)|\\-", "-"),
    (r"\\\(bu", "*"),
    (r"\\\*(?:\(..|\[\w*\]|.)", ""),
    (r"\\[ ~0]", " "),
    (r"\\(?:e|\(rs)", r"\\"),
    (r"\\\(ti", "~"),
    (r"\\\(ha", "^"),
)


def manual_text(page: str) -> str:
    """Return the text of a manual page in the macros `man`, without its layout; else nothing.

    Requests that are not known are left out, as tables and pages that name another one are.
    """
    if not re.search(r"^\.\s*SH", page, re.MULTILINE) or re.search(r"^\.TS", page, re.MULTILINE):
        return ""
    lines = []
    for line in page.splitlines():
        if heading := _HEADINGS.match(line):
            lines += ["", heading[1].strip('"')]
        elif line.startswith((".", "'")):
            lines += [""] if _BREAKS.match(line) else []
            if words := _FONTS.match(line):
                given = [a or b for a, b in re.findall(r'"([^"]*)"|(\S+)', words[1])]
                joined = "" if re.match(r"\.\s*[BIR][BIR] ", line) else " "
                # The second argument of IP is a width.
                lines.append(joined.join(given[:1] if "IP" in line[:4] else given))
        else:
            lines.append(line)
    text = "\n".join(lines)
    for escape, meant in _ESCAPES:
        text = re.sub(escape, meant, text)
    return re.sub(r"\n{3,}", "\n\n", text).strip() + "\n"


@dataclass(frozen=True)
class Kind:
    """A kind of text that a machine has.

    share  of the corpus, beside those of the others: what a kind has not, the others fill
    find   gives files, or texts, by name
    plain  gives what is to be read of the text of a file
    signs  share of its bytes that may be no letter of English
    """

    share: float
    find: Callable[[], Mapping[str, Path | str]]
    plain: Callable[[str], str]
    signs: float = _MOST_SIGNS


KINDS: Mapping[str, Kind] = {
    "library": Kind(5, lambda: files_below(_paths("stdlib"), _CODE), _without_licence),
    "packages": Kind(2, lambda: files_below(_paths("purelib"), _CODE), _without_licence),
    "manuals": Kind(2, _manuals, manual_text),
    "documentation": Kind(1, _documentation, _without_fields),
}
"""Where two kinds have the same text, the one that is named first has it."""


class _UnfitError(Exception):
    """A text that is left out; the message says why, in words that are counted."""


def _read(place: Path | str, kind: Kind) -> str:
    """Return a text that is worth reading. Errors: _UnfitError."""
    try:
        content = place.encode() if isinstance(place, str) else place.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        text = kind.plain(content.decode("utf-8").replace("\r\n", "\n")).strip("\n") + "\n"
    except UnicodeDecodeError as error:
        raise _UnfitError("no UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _UnfitError("cannot be read") from error
    size = len(encoded := text.encode())
    if not SHORTEST <= size <= _LARGEST:
        raise _UnfitError("too short" if size < SHORTEST else "too long")
    if len(encoded.translate(None, _LETTERS)) > kind.signs * size or "\0" in text:
        raise _UnfitError("no prose and no code")
    return text


def documents_of(kind: Kind, seed: int, left_out: Counter[str]) -> Iterator[Document]:
    """Yield the documents of a kind, one of each package or program in turn, as a seed orders them."""
    found = kind.find()
    turns: Counter[str] = Counter()
    order: list[tuple[int, int, str]] = []
    for name in sorted(found, key=lambda one: rank(seed, one)):
        family = re.split(r"(?<=\w)[-._/]", name, maxsplit=1)[0]
        order.append((turns[family], len(order), name))
        turns[family] += 1
    for _, _, name in sorted(order):
        try:
            yield Document(name, _read(found[name], kind))
        except _UnfitError as error:
            left_out[str(error)] += 1


def rank(seed: int, name: str) -> bytes:
    """Return a place in an order that has nothing to do with names."""
    return hashlib.sha256(f"{seed} {name}".encode()).digest()
