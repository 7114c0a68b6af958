"""`openmoe audit run`: one pass of a model over text, and the tables that come of it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from openmoe_conformance.outcome import UsageError
from openmoe_tools import conforming
from openmoe_tools.audit.passing import model as models
from openmoe_tools.audit.passing import pairs, text
from openmoe_tools.audit.passing.recording import BACKENDS
from openmoe_tools.audit.passing.streaming import Pass
from openmoe_tools.data import gathering, opening
from openmoe_tools.runs import devices, restoring

if TYPE_CHECKING:  # an optional extra
    from openmoe_production.vocabulary import Vocabulary

COMMAND = "openmoe audit run"
ROWS = 8


@dataclass(frozen=True)
class Request:
    """The options of `openmoe audit run`.

    text      `SLICE=PATH`; corpus: a folder of SLICE.jsonl
    rows      of a call, which share capacity groups; length: ids of a row, None for the model's, 512 at most
    tokens    read of each slice at most; None: all
    capacity  evaluation or training: whose factor is in force
    series    the run's other steps are compared; against: `LABEL=CHECKPOINT` too
    compared  tokens that checkpoints are compared on
    share     `I/N`: only the calls whose number leaves I - 1 when divided by N
    """

    checkpoint: Path
    out: Path
    text: tuple[str, ...] = ()
    corpus: Path | None = None
    tokenizer: Path | None = None
    field: str = "text"
    rows: int = ROWS
    length: int | None = None
    tokens: int | None = None
    trace: bool = False
    gates: bool = False
    backend: str = "production"
    mesh: str | None = None
    cpu_devices: int | None = None
    dtype: str = "float32"
    capacity: str = "evaluation"
    series: bool = False
    against: tuple[str, ...] = ()
    compared: int = 50_000
    certificate: Path | None = None
    share: str | None = None


def run(request: Request) -> int:
    """Run the audit, or go on with it, and show what came of it; return 0. Errors: UsageError."""
    if not request.checkpoint.exists():
        raise UsageError(f"{request.checkpoint}: does not exist")
    share = _check(request)
    pieces, file = _vocabulary(request)
    slices = text.slices(
        request.text, request.corpus, text_field=request.field, limit=request.tokens
    )
    others = pairs.others(request.checkpoint, series=request.series, against=request.against)
    audited = models.load(request.checkpoint)
    models.require_fitting(pieces, audited, file)
    certified = models.certified(request.certificate, audited.digest)
    made = Pass(request, audited, pieces=pieces, tokenizer=file, slices=slices, share=share)
    started = time.perf_counter()
    made.go()
    made.compare(others)
    made.conclude(certified, time.perf_counter() - started)
    from openmoe_tools.audit import reporting  # noqa: PLC0415 - reads what was written

    reporting.summarise(request.out)
    return 0


def _check(request: Request) -> tuple[int, int]:
    """Refuse options before anything is loaded; return the share of the calls. Errors: UsageError."""
    if request.backend not in BACKENDS:
        raise UsageError(f"--backend {request.backend}: must be one of {', '.join(BACKENDS)}")
    if request.dtype not in {"float32", "bfloat16"}:
        raise UsageError(f"--dtype {request.dtype}: must be float32 or bfloat16")
    if request.capacity not in {"evaluation", "training"}:
        raise UsageError(f"--capacity {request.capacity}: must be evaluation or training")
    opening.require(COMMAND, "sentencepiece", extra="audit")
    if request.trace:
        opening.require(f"{COMMAND} --trace", "pyarrow", extra="audit")
    elif request.gates:
        raise UsageError("--gates: are columns of a trace; give --trace too")
    if request.backend == "production":
        conforming.require_jax("--backend production (reference needs none)")
        devices.begin(devices.Devices(cpu=request.cpu_devices))
    elif request.mesh is not None or request.cpu_devices is not None:
        raise UsageError("--mesh and --cpu-devices: are of --backend production")
    if request.mesh is not None:
        devices.sizes(request.mesh)
    gathering.make_folder(request.out)
    return _share(request.share)


def _share(given: str | None) -> tuple[int, int]:
    if given is None:
        return 0, 1
    number, _, parts = given.partition("/")
    if not (number.isdecimal() and parts.isdecimal() and 1 <= int(number) <= int(parts)):
        raise UsageError(f"--share {given}: must be I/N, as 1/4, with I from 1 to N")
    return int(number) - 1, int(parts)


def _vocabulary(request: Request) -> tuple[Vocabulary, Path]:
    found = request.tokenizer or restoring.tokenizer_of(request.checkpoint)
    if found is None:
        raise UsageError(
            f"{request.checkpoint}: has no tokeniser beside it; name one with --tokenizer FILE"
        )
    if not found.is_file():
        raise UsageError(f"--tokenizer {found}: does not exist")
    return opening.vocabulary(found), found
