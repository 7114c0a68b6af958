"""A corpus of text from a plain machine, or from files that are named: to train on, and to hold out.

A machine with Python has its library's sources, the packages beside it and what they say of
themselves; most have manual pages. Documents are cut into parts at empty lines, since an objective
reads 65,536 tokens of a group of 128 and no more (DATA-03, DATA-05).
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from openmoe_conformance.outcome import UsageError
from openmoe_tools import files
from openmoe_tools.data import opening
from openmoe_tools.data.corpus import Document
from openmoe_tools.data.machine_text import KINDS, SHORTEST, documents_of, rank

SCHEMA = "openmoe-corpus/1"
TRAIN, HELD_OUT, MANIFEST = "train.jsonl", "held_out.jsonl", "manifest.json"


# ---- what is taken of it -----------------------------------------------------------------------


def _named(
    paths: Sequence[Path], field: str, longest: int, seed: int, left_out: Counter[str]
) -> Iterator[Document]:
    """Yield the parts of named documents, each one a document: one file may be all that there is."""
    from openmoe_production.sources import SourceError  # noqa: PLC0415 - it is not always needed

    given = opening.documents(paths, field=field, standard_library=False)
    for number in sorted(range(len(given.sizes)), key=lambda one: rank(seed, str(one))):
        try:
            parts = cut(str(given[number]).replace("\r\n", "\n"), longest)
        except SourceError:
            left_out["no UTF-8"] += 1
            continue
        yield from (Document(f"{number}/{place}", part) for place, part in enumerate(parts))


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


class Seen:
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
    seen, waiting = Seen(), dict(streams)
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
        else {name: documents_of(KINDS[name], seed, left_out) for name in KINDS if name in kinds}
    )
    taken = list(_taken(streams, most=1e6 * megabytes, longest=longest, left_out=left_out))
    where = ", ".join(map(str, paths)) or f"this machine ({', '.join(kinds)})"
    if len(taken) < 2:
        raise UsageError(
            f"{where}: gives {len(taken)} documents, 2 are needed, one of them to hold out; name more "
            "text, or allow more megabytes"
        )
    taken.sort(key=lambda one: rank(seed, f"{one.kind} {one.document.name}"))
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
    if longest < SHORTEST:
        raise UsageError(f"longest {longest}: must be {SHORTEST} characters at least")


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
