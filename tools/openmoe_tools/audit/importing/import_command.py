"""`openmoe audit import`: routing that was recorded elsewhere, as an audit like any other."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from openmoe_conformance.outcome import UsageError
from openmoe_spec import SPEC_VERSION, __version__
from openmoe_tools.audit import folder, reporting
from openmoe_tools.audit.counting.layout import FOLDS, REPLICATES, Sizes
from openmoe_tools.audit.counting.tables import Tables
from openmoe_tools.audit.importing import Imported, open_import
from openmoe_tools.audit.importing.recordings import Options
from openmoe_tools.audit.passing import sampling
from openmoe_tools.audit.trace.writing import TraceWriter
from openmoe_tools.data import gathering, opening

LARGEST = 1 << 28
"""Cells of the table of positions: 2 GB. A longer document would be counted in more."""


@dataclass(frozen=True)
class Request:
    """The options of `openmoe audit import`; trace: write a trace of it too."""

    form: str
    files: tuple[Path, ...]
    out: Path
    options: Options
    pieces: Path | None
    trace: bool


def import_routing(request: Request) -> int:
    """Write an audit of recorded routing, and show what came of it; return 0. Errors: UsageError."""
    if (request.out / folder.MANIFEST).exists():
        raise UsageError(f"{request.out}: holds an audit already; name a new folder")
    found = open_import(request.form, request.files, request.options)
    sizes = _sizes(found)
    gathering.make_folder(request.out)
    started = time.perf_counter()
    pieces = None if request.pieces is None else _pieces(request.pieces, found)
    manifest = _manifest(found)
    tables = Tables(sizes)
    sample: list[dict[str, Any]] = []
    for routed, sums in found.parts():
        tables.add(routed)
        if sums is not None:
            tables.add_probabilities(*sums)
        if not sample and "tokens" in found.recorded:
            name = found.slices[int(routed.slice[0])]
            sample.append(sampling.sample(routed, name, found.rules))
    tables.count_documents(found.documents, np.array(found.document_slices, np.int64))
    _write_trace(request, found, manifest)
    totals = {
        "tokens": found.tokens,
        "documents": len(found.documents),
        "calls": 0,
        "seconds": round(time.perf_counter() - started, 3),
    }
    folder.write(
        request.out,
        manifest=manifest | {"totals": totals},
        tables=tables,
        pieces=pieces,
        sample=sample,
    )
    return reporting.summarise(request.out)


def _write_trace(request: Request, found: Imported, manifest: dict[str, Any]) -> None:
    if not request.trace:
        return
    opening.require("openmoe audit import --trace", "pyarrow", extra="audit")
    with TraceWriter(request.out / folder.TRACE, manifest, after=0) as writer:
        for routed in found.routed():
            writer.add(routed)


def _sizes(found: Imported) -> Sizes:
    layers = len(found.layers)
    cells = FOLDS * found.length * layers * found.experts * found.choices
    if cells > LARGEST:
        raise UsageError(
            f"a document of {found.length:,} tokens: its positions would be counted in {8e-9 * cells:.0f} GB; "
            "give --documents with shorter parts, or leave it out"
        )
    return Sizes(
        vocabulary=found.vocabulary,
        length=found.length,
        slices=len(found.slices),
        layers=layers,
        experts=found.experts,
        choices=found.choices,
        rules=found.rules,
    )


def _pieces(path: Path, found: Imported) -> list[str]:
    """Return the pieces of a tokeniser, by id; ids beyond them have none. Errors: UsageError."""
    if not path.is_file():
        raise UsageError(f"--tokenizer {path}: does not exist")
    opening.require("openmoe audit import --tokenizer", "sentencepiece", extra="audit")
    vocabulary = opening.vocabulary(path)
    if found.vocabulary > vocabulary.size:
        raise UsageError(
            f"--tokenizer {path}: has {vocabulary.size:,} ids, and id {found.vocabulary - 1} is recorded; "
            "it is not this model's tokeniser"
        )
    return vocabulary.pieces(range(vocabulary.size))


def _manifest(found: Imported) -> dict[str, Any]:
    """Return what is known; of a trace of our own, what it says of its model, text and recipe."""
    told = found.manifest or {}
    model = {
        "name": found.format,
        "path": ", ".join(Path(one).name for one in found.files),
        "step": None,
        "digest": None,
        "layers": list(found.layers),
        "experts": found.experts,
        "choices": found.choices,
        "vocabulary_size": found.vocabulary,
        "certificate": {"status": "none", "file": None},
    }
    recipe: dict[str, Any] = dict.fromkeys(("rows", "tokens", "share", "mesh", "dtype", "capacity"))
    recipe |= {
        "capacity_factor": None,
        "length": found.length,
        "backend": "recorded",
        "rules": [{"name": name} for name in found.rules],
    }
    counted: dict[str, Any] = {"seed": 0, "folds": FOLDS, "replicates": REPLICATES, "what_if": []}
    slices = [{"name": name, "digest": found.digest} for name in found.slices]
    return {
        "schema": folder.SCHEMA,
        "spec_version": SPEC_VERSION,
        "version": __version__,
        "source": f"import:{found.format}",
        "model": model | told.get("model", {}),
        "tokenizer": told.get("tokenizer"),
        "corpus": {"digest": found.digest, "slices": slices} | told.get("corpus", {}),
        "recipe": recipe | told.get("recipe", {}) | counted,
        "checkpoints": [],
        "recorded": list(found.recorded),
    }
