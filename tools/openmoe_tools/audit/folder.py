"""An audit as files: a manifest, tables, and what a report shows of words and text.

The manifest's schema is `audit.schema.json`, beside this file.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_tools import files
from openmoe_tools.audit.counting.layout import pair_forms
from openmoe_tools.audit.counting.tables import Tables

SCHEMA = "openmoe-audit/1"
MANIFEST, TABLES, PAIRS, PIECES, SAMPLE, TRACE = (
    *("audit.json", "tables.npz", "pairs.npz", "pieces.json", "sample.json"),
    "trace",
)


@dataclass(frozen=True)
class Audit:
    """What is known of a model's routing over a text.

    pairs   tables that compare checkpoints; None: one was audited alone
    pieces  of a tokeniser, by id; None: there is none
    sample  rows of the text with their experts, to look at
    """

    manifest: dict[str, Any]
    tables: Tables
    pairs: dict[str, ndarray] | None
    pieces: list[str] | None
    sample: list[dict[str, Any]]
    path: Path


def read(path: Path) -> Audit:
    """Return the audit that a folder holds. Errors: UsageError naming what is missing or damaged."""
    if not path.is_dir():
        raise UsageError(f"{path}: is no folder of an audit; `openmoe audit run` makes one")
    if not (path / MANIFEST).is_file():
        raise UsageError(
            f"{path}: holds no {MANIFEST}; the audit did not end, and the same command goes on with it"
        )
    manifest = _json(path / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("schema") != SCHEMA:
        raise UsageError(f"{path / MANIFEST}: is no manifest of an audit ({SCHEMA})")
    tables = Tables.load(path / TABLES)
    return Audit(
        manifest,
        tables,
        _pairs(path / PAIRS, manifest, tables) if (path / PAIRS).is_file() else None,
        _json(path / PIECES) if (path / PIECES).is_file() else None,
        _json(path / SAMPLE) if (path / SAMPLE).is_file() else [],
        path,
    )


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error


def _pairs(path: Path, manifest: Mapping[str, Any], tables: Tables) -> dict[str, ndarray]:
    forms = pair_forms(tables.sizes, len(manifest.get("checkpoints", ())))
    try:
        with np.load(path, allow_pickle=False) as stored:
            found = {name: stored[name] for name in stored.files}
    except (OSError, ValueError, EOFError, KeyError) as error:
        raise UsageError(f"{path}: cannot be read ({error})") from error
    for name, form in forms.items():
        if name not in found or found[name].shape != form.shape:
            raise UsageError(f"{path}: lacks the table {name} of shape {list(form.shape)}")
    return found


def write(
    path: Path,
    *,
    manifest: Mapping[str, Any],
    tables: Tables,
    pairs: Mapping[str, ndarray] | None = None,
    pieces: Sequence[str] | None = None,
    sample: Sequence[Mapping[str, Any]] = (),
) -> None:
    """Write an audit into a folder, its manifest last: where that is, everything is. Errors: UsageError."""
    tables.save(path / TABLES)
    if pairs is not None:
        files.write(path / PAIRS, lambda: _npz(pairs))
    if pieces is not None:
        files.write(path / PIECES, lambda: json.dumps(list(pieces), ensure_ascii=False) + "\n")
    files.write(path / SAMPLE, lambda: json.dumps(list(sample)) + "\n")
    files.write(path / MANIFEST, lambda: json.dumps(manifest, indent=1, allow_nan=False) + "\n")


def _npz(arrays: Mapping[str, ndarray]) -> bytes:
    made = io.BytesIO()
    np.savez_compressed(made, allow_pickle=False, **dict(arrays))
    return made.getvalue()
