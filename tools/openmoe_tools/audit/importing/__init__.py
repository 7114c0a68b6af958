"""Routing that was recorded elsewhere, as a stream of `Routed` and what is known of it. Spec: AUDIT-27."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openmoe_conformance.outcome import UsageError
from openmoe_tools.audit.counting.routed import Routed
from openmoe_tools.audit.importing import (
    plain_columns,
    port,
    routed_experts,
    router_logits,
    traces,
)
from openmoe_tools.audit.importing.laying import Laid, Part
from openmoe_tools.audit.importing.recordings import Options, Recording
from openmoe_tools.data import opening

COMMAND = "openmoe audit import"
READERS: Mapping[str, Callable[[Sequence[Path], Options], Iterator[Recording]]] = {
    "port": port.read,
    "router_logits": router_logits.read,
    "routed_experts": routed_experts.read,
    "npz": plain_columns.read_npz,
    "parquet": plain_columns.read_parquet,
}
FORMATS = tuple(READERS)
RECORDED = ("tokens", "positions", "documents", "drops", "margins", "gates", "probabilities")
"""What may be known, in the order in which manifests name it."""


@dataclass(frozen=True)
class Imported:
    """Routing that is known to be sound: every file was read once.

    layers      numbers of the sparse layers in their model; 0, 1, ... where it is not known
    recorded    of RECORDED, what all the files tell
    rules       names of the capacity rules whose drops are known
    documents, document_slices  names, and numbers of their slices; where they are not known, one
    files       SHA-256 by the name of each file that was read; digest: of them all
    manifest    digests and recipe of the audit that a trace is of; None: of another source
    parts       makes an iterator of the tokens, whole rows at a time, with sums of probabilities
    """

    format: str
    layers: tuple[int, ...]
    experts: int
    choices: int
    vocabulary: int
    length: int
    slices: tuple[str, ...]
    rules: tuple[str, ...]
    recorded: tuple[str, ...]
    tokens: int
    documents: tuple[str, ...]
    document_slices: tuple[int, ...]
    files: Mapping[str, str]
    digest: str
    manifest: Mapping[str, Any] | None
    parts: Callable[[], Iterator[Part]]

    def routed(self) -> Iterator[Routed]:
        """Yield the tokens, whole rows at a time. Errors: UsageError."""
        return (one.routed for one in self.parts())


def open_import(form: str, paths: Sequence[Path], options: Options | None = None, /) -> Imported:
    """Return recorded routing, every file of which was read and found sound.

    form  one of FORMATS
    Errors: UsageError, which names the file, and the token where one is wrong. Spec: AUDIT-27.
    """
    options = options or Options()
    if form not in READERS:
        raise UsageError(f"--format {form}: is none of {', '.join(FORMATS)}")
    if not paths:
        raise UsageError("FILES: none are given")
    for path in (*paths, options.tokens, options.documents):
        if path is not None and not path.exists():
            raise UsageError(f"{path}: does not exist")
    if form == "parquet":
        opening.require(COMMAND, "pyarrow", extra="audit")
        if any(path.is_dir() for path in paths):
            return _of_trace(paths, options)
    return _of_files(form, paths, options)


# ---- files ---------------------------------------------------------------------------------------


def _of_files(form: str, paths: Sequence[Path], options: Options) -> Imported:
    seen = _Seen()
    laid = Laid(options)
    for _ in laid.lay(seen.alike(READERS[form](paths, options))):
        pass  # every file is read before anything is made of one
    first = seen.first
    if first is None:
        raise UsageError(f"{paths[0]}: has no token")
    if options.experts not in {None, first.experts}:
        raise UsageError(f"--experts {options.experts}: {first.where} is of {first.experts}")
    layers = first.expert.shape[1]
    if options.layers not in {None, layers}:
        raise UsageError(f"--layers {options.layers}: {first.where} has {layers}")
    if options.choices not in {None, first.expert.shape[2]}:
        raise UsageError(f"--choices {options.choices}: {first.where} has {first.expert.shape[2]}")
    known = laid.known | seen.known
    files = {
        str(path): _digest(path)
        for path in (*paths, options.tokens, options.documents)
        if path is not None
    }
    return Imported(
        format=form,
        layers=tuple(range(layers)),
        experts=first.experts,
        choices=first.expert.shape[2],
        vocabulary=_vocabulary(options, laid.vocabulary),
        length=laid.length,
        slices=tuple(laid.slices),
        rules=first.rules if "drops" in known else (),
        recorded=tuple(one for one in RECORDED if one in known),
        tokens=laid.tokens,
        documents=tuple(laid.names),
        document_slices=tuple(laid.slice_of),
        files=files,
        digest=_of_all(files),
        manifest=None,
        parts=lambda: Laid(options).lay(READERS[form](paths, options)),
    )


class _Seen:
    """What recordings tell, which must be the same of all of them."""

    def __init__(self) -> None:
        self.first: Recording | None = None
        self.known: frozenset[str] = frozenset()

    def alike(self, recordings: Iterator[Recording]) -> Iterator[Recording]:
        for one in recordings:
            known = _known(one)
            if self.first is None:
                self.first, self.known = one, known
            ours, theirs = _shape(self.first), _shape(one)
            if ours != theirs or self.known != known:
                raise UsageError(
                    f"{one.where}: tells of {theirs}, {', '.join(sorted(known)) or 'no more'}; "
                    f"{self.first.where} of {ours}, {', '.join(sorted(self.known)) or 'no more'}"
                )
            yield one


def _shape(one: Recording) -> str:
    rules = f", drops by {', '.join(one.rules)}" if one.rules else ""
    sizes = one.expert.shape[1:] if one.expert.ndim == 3 else one.expert.shape
    return f"{list(sizes)} layers and choices of {one.experts} experts{rules}"


def _known(one: Recording) -> frozenset[str]:
    fields = {
        "drops": one.dropped,
        "margins": one.margin,
        "gates": one.gate,
        "probabilities": one.sums,
    }
    return frozenset(name for name, value in fields.items() if value is not None)


def _vocabulary(options: Options, least: int) -> int:
    if options.vocabulary is None:
        return least
    if options.vocabulary < least:
        raise UsageError(f"--vocabulary {options.vocabulary}: id {least - 1} is in the text")
    return options.vocabulary


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UsageError(f"{path}: cannot be read ({error.strerror})") from error


def _of_all(files: Mapping[str, str]) -> str:
    """Return a digest of files in their order, whatever their names are."""
    return hashlib.sha256("".join(f"{one}\n" for one in files.values()).encode()).hexdigest()


# ---- traces --------------------------------------------------------------------------------------


def _of_trace(paths: Sequence[Path], options: Options) -> Imported:
    """Return a trace of our own. Errors: UsageError."""
    if len(paths) > 1:
        raise UsageError(f"{paths[1]}: one trace at a time; merge the audits that come of them")
    if options != Options():
        raise UsageError(f"{paths[0]}: a trace tells itself what options are for: give none")
    found = traces.open_folder(paths[0])
    head, documents = found.trace.head, found.documents
    files = {str(path): _digest(path) for path in found.files}
    return Imported(
        format="parquet",
        layers=head.layers,
        experts=head.experts,
        choices=head.choices,
        vocabulary=head.vocabulary_size,
        length=head.length,
        slices=head.slices,
        rules=head.rules if found.trace.kinds.dropped else (),
        recorded=tuple(one for one in RECORDED if one in found.recorded),
        tokens=found.trace.tokens,
        documents=tuple(documents.names),
        document_slices=tuple(head.slices.index(one) for one in documents.slices),
        files=files,
        digest=_of_all(files),
        manifest=found.manifest,
        parts=lambda: (Part(one, None) for one in found.read()),
    )
