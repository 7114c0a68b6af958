"""Files that a command writes: refused before the work starts, complete when they have their name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from openmoe_conformance.outcome import UsageError


def writable(*paths: Path | None, read: Sequence[Path | None] = ()) -> None:
    """Refuse a path that is a folder, lies in none, is given twice, or would replace what is `read`.

    Errors: UsageError.
    """
    given = [path for path in paths if path is not None]
    for path in given:
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; name a file")
        if not path.parent.is_dir():
            raise UsageError(f"{path}: its folder does not exist")
        for source in read:
            if source is not None and any(_is_of(one, source) for one in (path, _part(path))):
                raise UsageError(f"{path}: would be written over or into {source}, which is read")
    if len({path.resolve() for path in given}) < len(given):
        raise UsageError(f"{given[0]}: two reports cannot go into one file")


def _is_of(path: Path, source: Path) -> bool:
    """Return whether a path is a source, by this or another name, or lies in it."""
    if source.resolve() in (path.resolve(), *path.resolve().parents):
        return True
    return path.exists() and source.exists() and path.samefile(source)


def _part(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def folder(path: Path | None) -> None:
    """Refuse a path that is no folder and cannot become one. Errors: UsageError."""
    if path is not None and path.exists() and not path.is_dir():
        raise UsageError(f"{path}: is no folder")


def write(path: Path | None, render: Callable[[], str | bytes]) -> None:
    """Write under a temporary name first: what has the final name is complete."""
    if path is None:
        return
    part = _part(path)
    try:
        content = render()
        part.write_bytes(content.encode() if isinstance(content, str) else content)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error
