"""A trace of our own as a source: what its metadata says, and its tokens. Spec: AUDIT-27."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.counting.routed import Routed
from openmoe_tools.audit.trace import reading
from openmoe_tools.audit.trace.columns import DOCUMENTS


@dataclass(frozen=True)
class Source:
    """An open trace with its documents."""

    trace: reading.Trace
    documents: reading.Documents

    @property
    def files(self) -> tuple[Path, ...]:
        return (*self.trace.files, self.trace.folder / DOCUMENTS)

    @property
    def recorded(self) -> frozenset[str]:
        """Return what its columns tell, if its own run knew it."""
        kinds = self.trace.kinds
        there = {
            "tokens": True,
            "positions": True,
            "documents": True,
            "drops": kinds.dropped,
            "margins": kinds.margin and kinds.order,
            "gates": kinds.gates,
        }
        told = self.trace.head.recorded or there
        return frozenset(name for name, known in there.items() if known and name in told)

    @property
    def manifest(self) -> Mapping[str, Any]:
        head = self.trace.head
        return {
            "model": {"digest": head.model_digest},
            "tokenizer": {"digest": head.tokenizer_digest},
            "corpus": {"digest": head.corpus_digest},
            "recipe": head.recipe,
        }

    def read(self) -> Iterator[Routed]:
        return reading.read(self.trace.folder)


def open_folder(path: Path) -> Source:
    """Return the trace of a folder, or of an audit's. Errors: UsageError."""
    folder = path / "trace" if (path / "trace").is_dir() else path
    trace = reading.open_trace(folder)
    documents = reading.documents(trace)
    for name in documents.slices:
        if name not in trace.head.slices:
            raise UsageError(f"{folder / DOCUMENTS}: has a slice {name!r} that is not of the trace")
    return Source(trace, documents)
