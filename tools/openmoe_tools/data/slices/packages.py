"""The recipe `packages` carried out: archives are fetched, read and cut into slices.

A slice is the same whichever others are made with it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

from rich.progress import track

from openmoe_conformance.outcome import UsageError
from openmoe_tools.data import gathering
from openmoe_tools.data.machine_text import Kind, documents_of
from openmoe_tools.data.slices import archives, fetching, reading
from openmoe_tools.data.slices.building import Request, Slice, require_known
from openmoe_tools.data.slices.recipes import PACKAGES, Recipe, Source
from openmoe_tools.terminal import console


def slices(request: Request, megabytes: float) -> list[Slice]:
    """Return the slices that a request wants; one that is not to be had has its reason.

    Errors: UsageError.
    """
    require_known(request.slices, PACKAGES)
    if request.downloads is None:
        raise UsageError(
            "--downloads: name a folder, where --recipe packages keeps what it fetches"
        )
    gathering.make_folder(request.downloads)
    asked = [name for name in PACKAGES if name in request.slices or not request.slices]
    to = console()
    shop = _Shop(request.downloads)
    made = []
    for name in track(asked, "slices", console=to, disable=not to.is_terminal):
        recipe = PACKAGES[name]
        one = Slice(name, recipe.category, [], least=recipe.least)
        try:
            _fill(one, recipe, shop, 1e6 * megabytes, request.seed)
        except (fetching.MissingError, archives.ArchiveError) as error:
            one.reason = str(error)
        made.append(one)
    return made


class _Shop:
    """Archives that were asked for: where they are, or why they are not to be had."""

    def __init__(self, downloads: Path) -> None:
        self._downloads = downloads
        self._missing: dict[tuple[str, ...], str] = {}

    def __call__(self, source: Source) -> Path:
        """Return the archive of a source; ask for it once. Errors: MissingError."""
        key = (source.registry, *source.packages)
        if key in self._missing:
            raise fetching.MissingError(self._missing[key])
        try:
            return fetching.fetch(source, self._downloads)
        except fetching.MissingError as error:
            self._missing[key] = str(error)
            raise


def _fill(one: Slice, recipe: Recipe, shop: _Shop, most: float, seed: int) -> None:
    """Take a slice's text. Errors: MissingError, ArchiveError."""
    path = shop(recipe.source)
    one.sources = [_told(recipe.source, path, "text")]
    reader = reading.READERS[recipe.reader]
    if recipe.without is not None:
        other = shop(recipe.without)
        if other != path:
            one.sources.append(_told(recipe.without, other, "compared"))
        known = _known(other, recipe.without.files, recipe.reader)
        reader = replace(reader, plain=partial(reading.page_text, known=known))
    found = _documents(path, recipe.source, reader, one.left_out)
    kind = Kind(1, lambda: found, reader.plain, signs=reader.signs)
    seen = gathering.Seen()
    one.take(documents_of(kind, seed, one.left_out), most=most, seen=seen)


def _documents(
    path: Path, source: Source, reader: reading.Reader, left_out: Counter[str]
) -> Mapping[str, str]:
    """Return what an archive's files hold, by name. Errors: ArchiveError."""
    found: dict[str, str] = {}
    for name, content in archives.named(
        archives.read(path, source.pattern), source.pattern
    ).items():
        try:
            found |= reader.split(name, content)
        except reading.UnreadableError as error:
            left_out[str(error)] += 1
    return found


@lru_cache(maxsize=4)
def _known(path: Path, files: str, reader: str) -> frozenset[str]:
    """Return all paragraphs of a package's pages. Errors: ArchiveError."""
    source = Source("", (), files)
    pages = _documents(path, source, reading.READERS[reader], Counter())
    return frozenset(one for page in pages.values() for one in reading.paragraphs(page))


def _told(source: Source, path: Path, use: str) -> dict[str, Any]:
    """Return where text is from, without an address. Errors: ArchiveError."""
    version, licence = archives.described(path)
    of_debian = source.registry == "debian"
    return {
        "registry": source.registry,
        "package": path.name.partition("_")[0] if of_debian else source.packages[0],
        "version": version,
        "sha256": archives.digest(path),
        "licence": source.licence or licence,
        "use": use,
    }
