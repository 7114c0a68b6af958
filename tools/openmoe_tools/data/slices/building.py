"""`openmoe data corpus`: text of several slices in a folder, with a manifest of where it is from.

The manifest's schema is `corpus.schema.json`, beside this file. The same sources and options give the same
bytes.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import platform
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.progress import track
from rich.table import Table

from openmoe_conformance.outcome import UsageError
from openmoe_tools import files
from openmoe_tools.data import gathering
from openmoe_tools.data.corpus import Document
from openmoe_tools.data.machine_text import documents_of
from openmoe_tools.data.slices import machine
from openmoe_tools.terminal import console, say

SCHEMA = "openmoe-slices/1"
RECIPES = ("machine", "packages")
MEGABYTES = {"machine": 0.5, "packages": 2.0}
LEAST = 50_000
"""Bytes of a slice: of less, too little can be said."""
LONGEST = 2000
"""Characters of a part, which is a line of a slice's file."""


@dataclass(frozen=True)
class Request:
    """The options of `openmoe data corpus`.

    slices     names of those that are wanted; (): all
    megabytes  of a slice at most; None: the recipe's
    downloads  of `packages`: where they are kept, and used again
    """

    folder: Path
    recipe: str
    slices: tuple[str, ...] = ()
    megabytes: float | None = None
    downloads: Path | None = None
    seed: int = 0
    json: Path | None = None


@dataclass
class Slice:
    """A slice of a corpus: its parts, and where they are from.

    category  code, data, markup, prose, reference, language or control
    reason    why it is left out; None: it is not
    least     bytes of which it is a slice
    """

    name: str
    category: str
    sources: list[dict[str, Any]]
    lines: list[str] = field(default_factory=list)
    documents: int = 0
    size: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    reason: str | None = None
    least: int = LEAST

    def take(self, documents: Iterable[Document], *, most: float, seen: gathering.Seen) -> None:
        """Take documents' parts, `most` bytes of them, but those whose like was taken before."""
        for document in documents:
            if self.size >= most:
                return
            began = self.size
            for number, part in enumerate(gathering.cut(document.text, LONGEST)):
                if self.size >= most:
                    break
                if seen(part):
                    self.left_out["seen before"] += 1
                    continue
                told = {"text": part, "name": document.name, "slice": self.name, "part": number}
                self.lines.append(json.dumps(told, ensure_ascii=False) + "\n")
                self.size += len(part.encode())
            self.documents += self.size > began

    def manifest(self) -> dict[str, Any]:
        """Return what the manifest says of it."""
        return {
            "name": self.name,
            "kind": self.category,
            "documents": self.documents,
            "parts": len(self.lines),
            "bytes": self.size,
            "sha256": hashlib.sha256("".join(self.lines).encode()).hexdigest(),
            "sources": self.sources,
            "left_out": dict(sorted(self.left_out.items())),
        }


def build(request: Request) -> int:
    """Write a corpus, and show what is in it; return 0, or 2 where a wanted slice is missing.

    Errors: UsageError.
    """
    _check(request)
    gathering.make_folder(request.folder)
    files.writable(request.json)
    megabytes = request.megabytes or MEGABYTES[request.recipe]
    if request.recipe == "packages":
        from openmoe_tools.data.slices import packages  # noqa: PLC0415

        made = packages.slices(request, megabytes)
    else:
        made = _of_machine(request, megabytes)
    for one in made:
        if one.reason is None and one.size < min(one.least, 1e6 * megabytes / 2):
            one.reason = f"{one.size:,} bytes are too few" if one.size else "there is none"
    there = [one for one in made if one.reason is None]
    if not there:
        why = f"{made[0].name}: {made[0].reason}"
        raise UsageError(f"--recipe {request.recipe}: gives no slice large enough ({why})")
    manifest = {
        "schema": SCHEMA,
        "recipe": request.recipe,
        "options": {"megabytes": megabytes, "seed": request.seed, "slices": list(request.slices)},
        "slices": [one.manifest() for one in there],
        "missing": [
            {"name": one.name, "reason": one.reason} for one in made if one.reason is not None
        ],
    }
    for one in there:
        files.write(request.folder / f"{one.name}.jsonl", "".join(one.lines).encode)
    files.write(request.folder / "manifest.json", lambda: json.dumps(manifest, indent=1) + "\n")
    files.write(request.json, lambda: json.dumps(manifest, indent=1) + "\n")
    _show(request, manifest)
    wanted = request.recipe == "packages" or bool(request.slices)
    return 2 if manifest["missing"] and wanted else 0


def _check(request: Request) -> None:
    if request.recipe not in RECIPES:
        raise UsageError(f"--recipe {request.recipe}: must be one of {', '.join(RECIPES)}")
    if request.recipe == "machine":
        require_known(request.slices, machine.SLICES)
    if request.recipe == "machine" and request.downloads is not None:
        raise UsageError("--downloads: is of --recipe packages; machine takes what is installed")
    if (request.folder / "manifest.json").exists():
        raise UsageError(f"{request.folder}: holds a corpus already; name a new folder")


def require_known(asked: Iterable[str], known: Iterable[str]) -> None:
    """Refuse names of slices that a recipe has not. Errors: UsageError."""
    names = list(known)
    for one in asked:
        if one not in names:
            near = difflib.get_close_matches(one, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(names)}"
            raise UsageError(f"--slice {one}: is none of this recipe; {hint}")


def _of_machine(request: Request, megabytes: float) -> list[Slice]:
    asked = [name for name in machine.SLICES if name in request.slices or not request.slices]
    seen = gathering.Seen()
    source = {
        "registry": "machine",
        "package": "what is installed",
        "version": f"Python {platform.python_version()}",
        "sha256": None,
        "licence": "those of the packages",
    }
    made = []
    to = console()
    for name in track(asked, "slices", console=to, disable=not to.is_terminal):
        category, kind = machine.SLICES[name]
        one = Slice(name, category, [source])
        found = documents_of(kind, request.seed, one.left_out)
        one.take(found, most=1e6 * megabytes, seen=seen)
        made.append(one)
    return made


def _show(request: Request, manifest: Mapping[str, Any]) -> None:
    to = console()
    table = Table("slice", "kind", "documents", "bytes", "licence")
    for one in manifest["slices"]:
        licences = sorted({str(source["licence"]) for source in one["sources"]})
        cells = (f"{one['documents']:,}", f"{one['bytes']:,}", ", ".join(licences))
        table.add_row(one["name"], one["kind"], *cells)
    to.print(table)
    for one in manifest["missing"]:
        say(to, f"left out: {one['name']} ({one['reason']})")
    say(to, f"now: openmoe audit run CHECKPOINT --corpus {request.folder} --out DIR", "bold")
