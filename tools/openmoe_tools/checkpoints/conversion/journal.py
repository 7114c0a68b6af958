"""The journal of a conversion: which tensors are done, so that the same command goes on after a kill."""

from __future__ import annotations

import fcntl
import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from openmoe_conformance.outcome import UsageError

PARTIAL, JOURNAL = ".partial", ".journal"
_PLAN = '{"plan": "'


class Note:
    """Writes down what is done, each line on the disk before the next tensor counts as done."""

    def __init__(self, file: Any, done: dict[str, str]) -> None:
        self._file = file
        self._lock = threading.Lock()
        self.digests = dict(done)

    def __call__(self, name: str, digest: str) -> None:
        line = json.dumps({"tensor": name, "digest": digest}) + "\n"
        with self._lock:
            self._file.write(line)
            self._file.flush()
            os.fsync(self._file.fileno())
            self.digests[name] = digest


@contextmanager
def opened(target: Path, identity: str) -> Iterator[tuple[dict[str, str], Note]]:
    """Open the journal of a target: what is done of the plan of that identity, and what notes more.

    Errors: UsageError where it is another plan's, or another process holds it.
    """
    path, partial = target.with_name(target.name + JOURNAL), target.with_name(target.name + PARTIAL)
    try:
        file = path.open("a+", encoding="utf-8", errors="replace")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written ({error.strerror})") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise UsageError(f"{path}: another conversion is writing {target.name}") from error
        file.seek(0)
        text = file.read()
        begun, done, good = _entries(text)
        if begun is None and text and not text.startswith(_PLAN) and not _PLAN.startswith(text):
            raise UsageError(
                f"{path}: is there, and no journal of a conversion; name another target"
            )
        if begun is None and partial.exists() and any(partial.iterdir()):
            raise UsageError(f"{partial}: is there, and no {path.name} beside it; remove it")
        file.truncate(good)  # a torn line must not become part of the next
        if begun is None or not partial.exists():
            file.truncate(0)
            begun, done = identity, {}
            file.write(json.dumps({"plan": begun}) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if begun != identity:
            raise UsageError(
                f"{path}: is of another conversion, or its source has changed since; remove it and "
                f"{partial.name} to begin again"
            )
        yield done, Note(file, done)


def _entries(text: str) -> tuple[str | None, dict[str, str], int]:
    """Return the plan and the finished tensors of a journal, and where its last whole line ends."""
    begun: str | None = None
    done: dict[str, str] = {}
    good = 0
    for line in text.splitlines(keepends=True):
        try:
            entry = json.loads(line)
        except ValueError:
            break
        if not line.endswith("\n") or not isinstance(entry, dict):
            break
        if begun is None and set(entry) == {"plan"}:
            begun = str(entry["plan"])
        elif begun is not None and set(entry) == {"tensor", "digest"}:
            done[str(entry["tensor"])] = str(entry["digest"])
        else:
            break
        good += len(line.encode())
    return begun, done, good
