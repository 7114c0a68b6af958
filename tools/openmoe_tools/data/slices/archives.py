"""Archives of packages: what files they hold, of which version they are, under which licence.

Nothing is unpacked to the disk and nothing is run: files are read in memory, links are passed over.
"""

from __future__ import annotations

import email
import hashlib
import json
import posixpath
import re
import shutil
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

_LARGEST, _MOST = 2**26, 2**30
"""Bytes of one file, which else is passed over, and of all that are wanted of an archive."""
_BROKEN = (OSError, EOFError, ValueError, KeyError, tarfile.TarError, zipfile.BadZipFile)
_UNKNOWN = "see the package"


class ArchiveError(Exception):
    """An archive that cannot be read; the message says which and why, in one line."""


def read(path: Path, wanted: re.Pattern[str]) -> dict[str, bytes]:
    """Return those files of a .deb, .tgz or .whl whose names fit, by name.

    Errors: ArchiveError, for a name that leads out of the archive too.
    """
    found: dict[str, bytes] = {}
    size = 0
    try:
        for name, length, content in _members(path):
            plain = posixpath.normpath(name)
            if plain.startswith(("/", "..")) or "\\" in plain:
                raise ArchiveError(f"{path.name}: holds {name!r}, which leads out of it")
            if not wanted.fullmatch(plain) or length > _LARGEST:
                continue
            size += length
            if size > _MOST:
                raise ArchiveError(f"{path.name}: holds over {_MOST >> 20} MiB of such files")
            found[plain] = content()
    except _BROKEN as error:
        raise ArchiveError(f"{path.name}: cannot be read ({_line(error)})") from error
    return found


def digest(path: Path) -> str:
    """Return the SHA256 of an archive."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def described(path: Path) -> tuple[str, str]:
    """Return the version and, in few words, the licence that a package tells. Errors: ArchiveError."""
    if path.suffix == ".deb":
        return _run_deb("--field", path, "Version").strip(), _licence_of_debian(path)
    named = read(path, re.compile(r"package/package\.json|[^/]+\.dist-info/METADATA"))
    texts = [one.decode("utf-8", "replace") for one in named.values()]
    if len(texts) != 1:
        raise ArchiveError(f"{path.name}: does not tell its version")
    if path.suffix == ".whl":
        told = email.message_from_string(texts[0])
        licence = told["License-Expression"] or told["License"] or _UNKNOWN
        return str(told["Version"]), _short(str(licence))
    try:
        package = json.loads(texts[0])
        return str(package["version"]), _short(str(package.get("license", _UNKNOWN)))
    except (ValueError, KeyError, AttributeError) as error:
        raise ArchiveError(f"{path.name}: does not tell its version") from error


def licence_in(text: str) -> str:
    """Return the licence that Debian's file `copyright` tells of all files, in few words."""
    for stanza in re.split(r"\n\s*\n", text):
        if re.search(r"(?m)^Files:\s*\*\s*$", stanza) and (
            found := re.search(r"(?m)^License:[ \t]*(\S.*)$", stanza)
        ):
            return _short(found[1])
    common = sorted(set(re.findall(r"/usr/share/common-licenses/([\w.+-]*\w)", text)))
    words = {
        "public domain": "public domain",
        "unrestricted use": "unrestricted use",
        r"Redistribution and use in source and binary forms": "BSD",
    }
    found_words = [
        name
        for words_of, name in words.items()
        if re.search(rf"(?i){words_of}", " ".join(text.split()))
    ]
    return _short(", ".join([*common, *found_words])) if common or found_words else _UNKNOWN


def _short(text: str) -> str:
    line = " ".join(text.split())
    return line if len(line) <= 80 else line[:77] + "..."


def _line(error: BaseException) -> str:
    return _short(str(error)) or type(error).__name__


def _licence_of_debian(path: Path) -> str:
    found = read(path, re.compile(r"usr/share/doc/[^/]+/copyright"))
    texts = [one.decode("utf-8", "replace") for _, one in sorted(found.items())]
    return licence_in(texts[0]) if texts else _UNKNOWN


# ---- each form ---------------------------------------------------------------------------------

_Member = tuple[str, int, Callable[[], bytes]]


def _members(path: Path) -> Iterator[_Member]:
    """Yield names, sizes and readers of an archive's plain files. Errors: those of `_BROKEN`."""
    if path.suffix == ".whl":
        with zipfile.ZipFile(path) as zipped:
            for told in zipped.infolist():
                if not told.is_dir():
                    yield told.filename, told.file_size, _of_zip(zipped, told)
        return
    with _opened(path) as file, tarfile.open(fileobj=file, mode="r|*") as archive:
        for member in archive:
            if member.isfile():
                yield member.name, member.size, _of_tar(archive, member)


def _of_zip(zipped: zipfile.ZipFile, told: zipfile.ZipInfo) -> Callable[[], bytes]:
    def content() -> bytes:
        with zipped.open(told) as file:
            return file.read(_LARGEST)

    return content


def _of_tar(archive: tarfile.TarFile, member: tarfile.TarInfo) -> Callable[[], bytes]:
    def content() -> bytes:
        file = archive.extractfile(member)
        return b"" if file is None else file.read()

    return content


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """Give the tar archive of a package, as bytes that are read once."""
    if path.suffix != ".deb":
        with path.open("rb") as file:
            yield file
        return
    program = _program(path)
    with subprocess.Popen(  # noqa: S603 - a file that is named, never one of its own
        [program, "--fsys-tarfile", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
    ) as process:
        assert process.stdout is not None
        yield process.stdout
        process.stdout.read()  # the end of it, which tells nothing
    if process.returncode:
        raise OSError("dpkg-deb cannot open it")


def _program(path: Path) -> str:
    found = shutil.which("dpkg-deb")
    if found is None:
        raise ArchiveError(f"{path.name}: needs dpkg-deb, which this machine has not")
    return found


def _run_deb(option: str, path: Path, *more: str) -> str:
    made = subprocess.run(  # noqa: S603
        [_program(path), option, str(path), *more], capture_output=True, text=True, check=False
    )
    if made.returncode:
        raise ArchiveError(f"{path.name}: cannot be read ({_short(made.stderr)})")
    return made.stdout


def named(found: Mapping[str, bytes], wanted: re.Pattern[str]) -> dict[str, bytes]:
    """Return files by the part of their name that a pattern calls `name`, in its order."""
    names = {fits["name"]: path for path in sorted(found) if (fits := wanted.fullmatch(path))}
    return {name: found[path] for name, path in sorted(names.items())}
