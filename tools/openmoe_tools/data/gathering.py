"""A corpus of text from a plain machine, or from files that are named: to train on, and to hold out.

A machine with Python has its library's sources, the packages beside it and what they say of
themselves; most have manual pages. Documents are cut into parts at empty lines, since an objective
reads 65,536 tokens of a group of 128 and no more (DATA-03, DATA-05).
"""

from __future__ import annotations

import ast
import gzip
import hashlib
import json
import math
import os
import re
import string
import sysconfig
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_spec.data import END
from openmoe_tools import files
from openmoe_tools.data import opening
from openmoe_tools.data.corpus import Document

if TYPE_CHECKING:  # an optional extra may be missing
    from openmoe_production.vocabulary import Vocabulary

SCHEMA = "openmoe-corpus/1"
TRAIN, HELD_OUT, MANIFEST = "train.jsonl", "held_out.jsonl", "manifest.json"
MANUALS, SHARED_DOCUMENTATION = Path("/usr/share/man"), Path("/usr/share/doc")
_SHORTEST, _LARGEST = 200, 2**18
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


# ---- what a machine has ------------------------------------------------------------------------


def _below(root: Path, wanted: re.Pattern[str]) -> dict[str, Path]:
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
    found = _below(SHARED_DOCUMENTATION, _PROSE) | _below(_paths("purelib"), _PROSE)
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
    return {name: path for one in sections for name, path in _below(one, _MANUAL).items()}


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
    """

    share: float
    find: Callable[[], Mapping[str, Path | str]]
    plain: Callable[[str], str]


KINDS: Mapping[str, Kind] = {
    "library": Kind(5, lambda: _below(_paths("stdlib"), _CODE), _without_licence),
    "packages": Kind(2, lambda: _below(_paths("purelib"), _CODE), _without_licence),
    "manuals": Kind(2, _manuals, manual_text),
    "documentation": Kind(1, _documentation, _without_fields),
}
"""Where two kinds have the same text, the one that is named first has it."""


class _UnfitError(Exception):
    """A text that is left out; the message says why, in words that are counted."""


def _read(place: Path | str, plain: Callable[[str], str]) -> str:
    """Return a text that is worth reading. Errors: _UnfitError."""
    try:
        content = place.encode() if isinstance(place, str) else place.read_bytes()
        content = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
        text = plain(content.decode("utf-8").replace("\r\n", "\n")).strip("\n") + "\n"
    except UnicodeDecodeError as error:
        raise _UnfitError("no UTF-8") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _UnfitError("cannot be read") from error
    size = len(encoded := text.encode())
    if not _SHORTEST <= size <= _LARGEST:
        raise _UnfitError("too short" if size < _SHORTEST else "too long")
    if len(encoded.translate(None, _LETTERS)) > _MOST_SIGNS * size or "\0" in text:
        raise _UnfitError("no prose and no code")
    return text


def _of_machine(kind: Kind, seed: int, left_out: Counter[str]) -> Iterator[Document]:
    """Yield the documents of a kind, one of each package or program in turn, as a seed orders them."""
    found = kind.find()
    turns: Counter[str] = Counter()
    order: list[tuple[int, int, str]] = []
    for name in sorted(found, key=lambda one: _rank(seed, one)):
        family = re.split(r"(?<=\w)[-._/]", name, maxsplit=1)[0]
        order.append((turns[family], len(order), name))
        turns[family] += 1
    for _, _, name in sorted(order):
        try:
            yield Document(name, _read(found[name], kind.plain))
        except _UnfitError as error:
            left_out[str(error)] += 1


def _named(
    paths: Sequence[Path], field: str, longest: int, seed: int, left_out: Counter[str]
) -> Iterator[Document]:
    """Yield the parts of named documents, each one a document: one file may be all that there is."""
    from openmoe_production.sources import SourceError  # noqa: PLC0415 - it is not always needed

    given = opening.documents(paths, field=field, standard_library=False)
    for number in sorted(range(len(given.sizes)), key=lambda one: _rank(seed, str(one))):
        try:
            parts = cut(str(given[number]).replace("\r\n", "\n"), longest)
        except SourceError:
            left_out["no UTF-8"] += 1
            continue
        yield from (Document(f"{number}/{place}", part) for place, part in enumerate(parts))


def _rank(seed: int, name: str) -> bytes:
    """Return a place in an order that has nothing to do with names."""
    return hashlib.sha256(f"{seed} {name}".encode()).digest()


# ---- what is taken of it -----------------------------------------------------------------------


def cut(text: str, longest: int) -> list[str]:
    """Return a text in parts of `longest` characters at most, which together are the text.

    They end at two empty lines, as between functions, else at one, at a line, at a word, anywhere.
    """
    parts = []
    while len(text) > longest:
        ends = (
            at + len(mark)
            for mark in ("\n\n\n", "\n\n", "\n", " ")
            if (at := text.rfind(mark, longest // 2, longest)) >= 0
        )
        end = next(ends, longest)
        parts.append(text[:end])
        text = text[end:]
    return [*parts, text]


_WORDS, _CHOSEN = 8, 8
"""Words of a run, and one of how many words begins one."""


@lru_cache(maxsize=2**18)
def _begins(word: str) -> bool:
    return zlib.crc32(word.encode()) % _CHOSEN == 0


class _Seen:
    """Texts that were taken: by their hash, and by runs of words, which line breaks do not change."""

    def __init__(self) -> None:
        self._equal: set[bytes] = set()
        self._runs: set[int] = set()

    def __call__(self, text: str) -> bool:
        """Return whether a text, or over half of its runs of words, was seen; if not, remember it.

        A run that a text repeats counts as seen; an empty text does too.
        """
        digest = hashlib.sha256(text.strip().encode()).digest()
        words = re.findall(r"\w+", text.lower())
        runs = [
            zlib.crc32(" ".join(words[i : i + _WORDS]).encode())
            for i, word in enumerate(words)
            if _begins(word)
        ]
        new = set(runs) - self._runs
        if not text.strip() or digest in self._equal or 2 * len(new) < len(runs):
            return True
        self._equal.add(digest)
        self._runs |= new
        return False


@dataclass(frozen=True)
class Taken:
    """A document with its kind, and those of its parts that were taken."""

    kind: str
    document: Document
    parts: Sequence[str]

    @property
    def mark(self) -> float:
        """A number of [0, 1) that follows from the text alone."""
        return fraction(self.document.text)

    @property
    def lines(self) -> str:
        """The parts as JSON lines."""
        named = {"kind": self.kind, "name": self.document.name}
        records = ({"text": one, **named, "part": i} for i, one in enumerate(self.parts))
        return "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records)


def _taken(
    streams: Mapping[str, Iterator[Document]], *, most: float, longest: int, left_out: Counter[str]
) -> Iterator[Taken]:
    """Yield documents, `most` bytes of parts, the next one of the kind that has had least of its share."""
    seen, waiting = _Seen(), dict(streams)
    shares = {name: KINDS[name].share if name in KINDS else 1.0 for name in streams}
    sizes = dict.fromkeys(streams, 0)
    while waiting and sum(sizes.values()) < most:
        kind = min(waiting, key=lambda one: sizes[one] / shares[one])
        document = next(waiting[kind], None)
        if document is None:
            del waiting[kind]
            continue
        parts: list[str] = []
        for part in cut(document.text, longest):
            if sum(sizes.values()) >= most:
                break
            if seen(part):
                left_out["seen before"] += 1
                continue
            parts.append(part)
            sizes[kind] += len(part.encode())
        if parts:
            yield Taken(kind, document, parts)


# ---- writing it --------------------------------------------------------------------------------


def gather(
    folder: Path,
    *,
    paths: Sequence[Path] = (),
    field: str = "text",
    kinds: Sequence[str] = tuple(KINDS),
    megabytes: float = 16.0,
    held_out: float = 0.03,
    longest: int = 2000,
    seed: int = 0,
) -> dict[str, Any]:
    """Write the corpus of this machine, or of `paths`, into a folder; return its manifest.

    megabytes  of text at most, evenly of all there is
    held_out   share of the documents that are not trained on, by their hash; one at least
    longest    characters of a part, which is a line of `train.jsonl` or of `held_out.jsonl`
    Lines hold `text`, `kind`, `name` and `part`. The same texts and options give the same bytes. No part
    is in both files, nor is any document of the machine; of `paths` it is parts that are held out,
    since all may be one file. Errors: UsageError.
    """
    _check(kinds, megabytes, held_out, longest)
    targets = {name: folder / name for name in (TRAIN, HELD_OUT, MANIFEST)}
    make_folder(folder)
    files.writable(*targets.values(), read=paths)
    left_out: Counter[str] = Counter()
    streams = (
        {"named": _named(paths, field, longest, seed, left_out)}
        if paths
        else {name: _of_machine(KINDS[name], seed, left_out) for name in KINDS if name in kinds}
    )
    taken = list(_taken(streams, most=1e6 * megabytes, longest=longest, left_out=left_out))
    where = ", ".join(map(str, paths)) or f"this machine ({', '.join(kinds)})"
    if len(taken) < 2:
        raise UsageError(
            f"{where}: gives {len(taken)} documents, 2 are needed, one of them to hold out; name more "
            "text, or allow more megabytes"
        )
    taken.sort(key=lambda one: _rank(seed, f"{one.kind} {one.document.name}"))
    last = last_held_out([one.mark for one in taken], held_out)
    documents = {
        TRAIN: [one for one in taken if one.mark > last],
        HELD_OUT: [one for one in taken if one.mark <= last],
    }
    made = {name: "".join(one.lines for one in some).encode() for name, some in documents.items()}
    manifest = {
        "schema": SCHEMA,
        "options": {
            "paths": [path.name for path in paths],
            "megabytes": megabytes,
            "held_out": held_out,
            "longest": longest,
            "seed": seed,
        },
        "files": {
            name: _counts(some) | {"sha256": hashlib.sha256(made[name]).hexdigest()}
            for name, some in documents.items()
        },
        "kinds": {
            kind: {
                name: _counts([one for one in some if one.kind == kind])
                for name, some in documents.items()
            }
            for kind in streams
        },
        "left_out": dict(sorted(left_out.items())),
    }
    made[MANIFEST] = (json.dumps(manifest, indent=1) + "\n").encode()
    for name, path in targets.items():
        files.write(path, partial(made.__getitem__, name))
    return manifest


def _check(kinds: Sequence[str], megabytes: float, held_out: float, longest: int) -> None:
    """Refuse options. Errors: UsageError."""
    if unknown := [one for one in kinds if one not in KINDS] or ([] if kinds else ["none"]):
        raise UsageError(f"kinds {unknown[0]}: is none of {', '.join(KINDS)}")
    if not 0 < megabytes < math.inf:
        raise UsageError(f"megabytes {megabytes}: must be above 0")
    check_held_out(held_out)
    if longest < _SHORTEST:
        raise UsageError(f"longest {longest}: must be {_SHORTEST} characters at least")


def check_held_out(share: float) -> None:
    """Refuse a share that leaves nothing to train on, or nothing to hold out. Errors: UsageError."""
    if not 0 < share <= 0.5:
        raise UsageError(f"held_out {share}: must be above 0 and 0.5 at most")


def make_folder(folder: Path) -> None:
    """Make a folder where there is none. Errors: UsageError."""
    files.folder(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"{folder}: cannot be made ({error.strerror})") from error


def fraction(text: str) -> float:
    """Return a number of [0, 1) that follows from a text, evenly spread."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big") / 2**48


def last_held_out(marks: Sequence[float], share: float) -> float:
    """Return the largest mark that is held out: one document at least is, and one at least is not."""
    below = sum(one < share for one in marks)
    return sorted(marks)[min(max(below, 1), len(marks) - 1) - 1]


def _counts(taken: Sequence[Taken]) -> dict[str, Any]:
    return {
        "documents": len(taken),
        "parts": sum(len(one.parts) for one in taken),
        "bytes": sum(len(part.encode()) for one in taken for part in one.parts),
    }


# ---- what a model of single tokens can know ----------------------------------------------------


class UnigramEntropy(NamedTuple):
    """Losses of models that know how frequent tokens are and nothing else, nats a token.

    of_held_out     that of the held-out frequencies themselves: none of these models does better
    by_train_counts that of the training frequencies on held-out tokens, one added to each count
    """

    of_held_out: float
    by_train_counts: float


def token_counts(texts: Iterable[str], vocabulary: Vocabulary) -> ndarray:
    """Return how often each id is in texts, int64 [V], with an end behind each as in the causal stream."""
    counts = np.zeros(vocabulary.size, np.int64)
    for text in texts:
        counts += np.bincount(vocabulary.encode(text), minlength=vocabulary.size)
        counts[END] += 1
    return counts


def unigram_entropy(train_counts: ndarray, held_out_counts: ndarray) -> UnigramEntropy:
    """Return what is lost on held-out tokens without looking at any other token.

    Counts are of ids, whole numbers [V]. Errors: UsageError.
    """
    train, held_out = (np.asarray(one, np.float64) for one in (train_counts, held_out_counts))
    if train.ndim != 1 or train.shape != held_out.shape or not held_out.sum() > 0:
        raise UsageError(
            f"counts {list(train.shape)} and {list(held_out.shape)}: must be of the same ids, and "
            "some token be held out"
        )
    there = held_out > 0
    shares = held_out[there] / held_out.sum()
    learnt = (train[there] + 1) / (train.sum() + len(train))
    return UnigramEntropy(
        float(-(shares * np.log(shares)).sum()), float(-(shares * np.log(learnt)).sum())
    )
