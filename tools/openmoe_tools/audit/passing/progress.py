"""How far a pass has come, on the disk: a pass that was killed goes on from there."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from openmoe_conformance.outcome import UsageError
from openmoe_tools import files
from openmoe_tools.audit import folder
from openmoe_tools.audit.counting.layout import Sizes
from openmoe_tools.audit.counting.tables import Tables
from openmoe_tools.data import gathering

FOLDER, STATE = "progress", "state.json"
EVERY = 60.0
"""Seconds between two savings; they change nothing of what is counted."""


@dataclass
class State:
    """What a pass has counted.

    calls   the number of the first call that is not counted yet; done: how many were
    parts   complete parts of the trace
    sample  rows to be shown
    """

    tables: Tables
    calls: int = 0
    done: int = 0
    parts: int = 0
    sample: list[dict[str, Any]] = field(default_factory=list)


class Progress:
    """The folder of a pass that has not ended."""

    def __init__(self, out: Path, key: str) -> None:
        """`key` tells this pass from others."""
        self._out, self._key = out, key
        self._folder = out / FOLDER
        self._saved = time.monotonic()

    def begin(self, sizes: Sizes) -> State:
        """Return a fresh state, or that of a pass that was interrupted. Errors: UsageError."""
        if (self._out / folder.MANIFEST).exists():
            raise UsageError(
                f"{self._out}: holds an audit that has ended; name another folder with --out, or remove it"
            )
        if not (self._folder / STATE).is_file():
            return State(Tables(sizes))
        told = json.loads((self._folder / STATE).read_text(encoding="utf-8"))
        if told["key"] != self._key:
            raise UsageError(
                f"{self._out}: holds an audit that was interrupted, of another model, text or options; "
                "give the same, or name another folder with --out"
            )
        tables = Tables.load(self._folder / f"tables-{told['calls']}.npz")
        return State(tables, told["calls"], told["done"], told["parts"], told["sample"])

    def due(self) -> bool:
        """Return whether it is time to save."""
        return time.monotonic() - self._saved > EVERY

    def save(self, state: State) -> None:
        """Write the state; the one before stays until this is complete. Errors: UsageError."""
        gathering.make_folder(self._folder)
        tables = self._folder / f"tables-{state.calls}.npz"
        state.tables.save(tables)
        told = {
            "key": self._key,
            "calls": state.calls,
            "done": state.done,
            "parts": state.parts,
            "sample": state.sample,
        }
        files.write(self._folder / STATE, lambda: json.dumps(told) + "\n")
        for old in self._folder.glob("tables-*.npz"):
            if old != tables:
                old.unlink()
        self._saved = time.monotonic()

    def end(self) -> None:
        """Remove what is not needed any more."""
        shutil.rmtree(self._folder, ignore_errors=True)
