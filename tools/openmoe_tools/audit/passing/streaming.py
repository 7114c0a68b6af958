"""The one pass of an audit: calls of the model in turn, counted as they come, and files at the end."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy import ndarray
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from openmoe_conformance.outcome import UsageError
from openmoe_spec import SPEC_VERSION, __version__
from openmoe_spec.errors import RejectedError
from openmoe_tools.audit import folder
from openmoe_tools.audit.counting.layout import FOLDS, REPLICATES, Sizes
from openmoe_tools.audit.passing import flattening, pairs, progress, rules, sampling, text
from openmoe_tools.audit.passing.model import Audited
from openmoe_tools.audit.passing.recording import How, Machine, Recorded, Recorder
from openmoe_tools.audit.passing.text import Call, Slice
from openmoe_tools.audit.trace.writing import TraceWriter
from openmoe_tools.runs import devices
from openmoe_tools.terminal import console, say

if TYPE_CHECKING:  # optional extras
    from openmoe_production.vocabulary import Vocabulary
    from openmoe_tools.audit.passing.running import Request

LENGTH = 512
"""Ids of a row, where a model could take longer ones."""
RECORDED = (
    "tokens",
    "positions",
    "documents",
    "drops",
    "groups",
    "margins",
    "gates",
    "probabilities",
)
"""What a pass tells; routing that was recorded elsewhere may tell less."""


class Pass:
    """One audit, from its options to its files."""

    def __init__(
        self,
        request: Request,
        audited: Audited,
        *,
        pieces: Vocabulary,
        tokenizer: Path,
        slices: list[Slice],
        share: tuple[int, int],
    ) -> None:
        self._request, self._audited, self._pieces = request, audited, pieces
        self._slices, self._share = slices, share
        model = audited.configuration
        self._length = request.length or min(model.max_length, LENGTH)
        if not 2 <= self._length <= model.max_length:
            raise UsageError(
                f"--length {self._length}: must be 2 to {model.max_length}, the model's longest row"
            )
        training = request.capacity == "training"
        self._factor = model.train_capacity_factor if training else model.eval_capacity_factor
        try:
            self._rules = rules.rules(model, request.rows, self._length, factor=self._factor)
        except RejectedError as error:
            raise UsageError(f"--rows {request.rows}: {error}") from error
        asked = rules.what_ifs(model, request.rows, self._length, self._rules[0])
        self._sizes = Sizes(
            vocabulary=model.vocabulary_size,
            length=self._length,
            slices=len(slices),
            layers=len(audited.layers),
            experts=model.num_experts,
            choices=model.num_selected_experts,
            rules=tuple(one.name for one in self._rules),
            what_if=asked,
        )
        mesh = None if request.mesh is None else devices.sizes(request.mesh)
        how = How(request.backend, mesh, request.dtype, training)
        self._machine = Machine(how, audited)
        digest = hashlib.sha256(tokenizer.read_bytes()).hexdigest()
        self._told = {
            "model": audited.manifest(),
            "tokenizer": {"digest": digest, "pieces": pieces.num_pieces},
            "corpus": corpus([(one.name, one.digest()) for one in slices]),
            "recipe": self._recipe(),
        }
        self._progress = progress.Progress(request.out, self._key())
        self._compared: list[Call] = []
        self._taken = Counter[int]()
        self._shown = 0
        self._state: progress.State
        self._described: list[dict[str, Any]] = []
        self._pairs: dict[str, ndarray] | None = None
        self._wanted = request.compared if request.series or request.against else 0

    def _key(self) -> str:
        """Return what tells this audit from others that could go into the same folder."""
        kept = [self._request.trace, self._request.gates]
        return hashlib.sha256(json.dumps([self._told, kept]).encode()).hexdigest()

    def go(self) -> None:
        """Run all calls, or those that are left. Errors: UsageError."""
        state = self._progress.begin(self._sizes)
        record = self._machine.recorder(self._audited)
        bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[tokens]:,} tokens"),
            TimeElapsedColumn(),
            console=console(),
            disable=not console().is_terminal,
        )
        with bar, self._trace(state.parts) as trace:
            total = sum(int(one.texts.sizes.sum()) for one in self._slices)
            task = bar.add_task("audit", total=total, tokens=0)
            try:
                for call, found in self._recorded(record, state.calls):
                    one = flattening.flat(call, found, self._rules)
                    self._count(state, call, found, one)
                    if trace is not None:
                        trace.add(one.routed)
                    self._say(call)
                    bar.update(
                        task,
                        description=self._slices[call.slice].name,
                        completed=sum(s.size for s in self._slices),
                        tokens=sum(s.tokens for s in self._slices),
                    )
                    if self._progress.due():
                        state.parts = 0 if trace is None else trace.flush()
                        self._progress.save(state)
            except KeyboardInterrupt:
                state.parts = 0 if trace is None else trace.flush()
                self._progress.save(state)
                raise UsageError("interrupted, and saved: the same command goes on") from None
        if not state.done:
            raise UsageError(
                f"--share {self._request.share}: has no call of the text; take fewer shares"
            )
        self._state = state

    def _say(self, call: Call) -> None:
        """Say when a slice is over, where no bar shows it."""
        before = self._slices[call.slice - 1]
        if call.slice and call.slice != self._shown and not console().is_terminal:
            say(console(), f"{before.name}: {before.tokens:,} tokens")
        self._shown = call.slice

    def _trace(self, parts: int) -> AbstractContextManager[TraceWriter | None]:
        """Return the writer of a trace, behind parts that are there; None where none is asked for."""
        if not self._request.trace:
            return nullcontext()
        more = ("gates", "order") if self._request.gates else ()
        return TraceWriter(self._request.out / folder.TRACE, self._told, after=parts, more=more)

    def _count(
        self, state: progress.State, call: Call, found: Recorded, one: flattening.Flat
    ) -> None:
        tables = state.tables
        tables.add(one.routed, [[groups] for groups in one.groups])
        tables.add_probabilities(one.probability, one.log_sum)
        for number, dropped in flattening.replayed(
            call, found, self._rules[0], self._sizes.what_if
        ):
            tables.add_what_if(number, dropped, one.routed.position)
        if call.begun:
            slices = np.full(len(call.begun), call.slice, np.int16)
            tables.count_documents(call.begun, slices)
        if not any(row["slice"] == self._slices[call.slice].name for row in state.sample):
            name = self._slices[call.slice].name
            state.sample.append(sampling.sample(one.routed, name, self._sizes.rules))
        state.calls, state.done = call.number + 1, state.done + 1

    def _recorded(self, record: Recorder, done: int) -> Iterator[tuple[Call, Recorded]]:
        """Yield calls of this share with what was decided; the next one runs meanwhile."""
        with ThreadPoolExecutor(1) as pool:
            waiting: Any = None
            for call in text.calls(
                self._slices, self._pieces, rows=self._request.rows, length=self._length
            ):
                self._choose(call)
                if call.number < done or call.number % self._share[1] != self._share[0]:
                    continue
                following = call, pool.submit(record, call.ids, call.targets)
                if waiting is not None:
                    yield waiting[0], waiting[1].result()
                waiting = following
            if waiting is not None:
                yield waiting[0], waiting[1].result()

    def _choose(self, call: Call) -> None:
        """Take calls for the comparison of checkpoints: the first ones of each slice, evenly."""
        if self._taken[call.slice] < self._wanted / len(self._slices):
            self._taken[call.slice] += int(flattening.counted(call).sum())
            self._compared.append(call)

    def compare(self, others: Sequence[pairs.Other]) -> None:
        """Run other checkpoints on a part of the text. Errors: UsageError."""
        if not others:
            return
        to = console()
        with to.status("comparing checkpoints") as status:
            self._described, self._pairs = pairs.compare(
                self._audited,
                others,
                calls=self._compared,
                machine=self._machine,
                rules=self._rules,
                sizes=self._sizes,
                heard=lambda label: status.update(f"comparing checkpoints: {label}"),
            )

    def conclude(self, certified: Mapping[str, Any], seconds: float) -> None:
        """Write the audit's files. Errors: UsageError."""
        request, state = self._request, self._state
        read = [one.manifest() for one in self._slices]
        told = self._told["corpus"]
        both = zip(read, told["slices"], strict=True)
        manifest = {
            "schema": folder.SCHEMA,
            "spec_version": SPEC_VERSION,
            "version": __version__,
            "source": "run",
            **self._told,
            "model": self._told["model"] | {"certificate": dict(certified)},
            "corpus": told | {"slices": [one | two for one, two in both]},
            "checkpoints": self._described,
            "recorded": [*RECORDED],
            "totals": {
                "tokens": int(state.tables.arrays["slice_token"].sum()),
                "documents": int(state.tables.arrays["documents"].sum()),
                "calls": state.done,
                "seconds": round(seconds, 3),
            },
        }
        folder.write(
            request.out,
            manifest=manifest,
            tables=state.tables,
            pairs=self._pairs,
            pieces=self._pieces.pieces(range(self._pieces.size)),
            sample=state.sample,
        )
        self._progress.end()

    def _recipe(self) -> dict[str, Any]:
        request = self._request
        return {
            "rows": request.rows,
            "length": self._length,
            "tokens": request.tokens,
            "share": request.share,
            "backend": request.backend,
            "mesh": request.mesh,
            "dtype": request.dtype,
            "capacity": request.capacity,
            "capacity_factor": self._factor,
            "seed": 0,
            "folds": FOLDS,
            "replicates": REPLICATES,
            "rules": [one.manifest() for one in self._rules],
            "what_if": [one._asdict() for one in self._sizes.what_if],
        }


def corpus(slices: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return names and digests of slices, with the digest of them all."""
    told = "".join(f"{name} {digest}\n" for name, digest in slices)
    return {
        "digest": hashlib.sha256(told.encode()).hexdigest(),
        "slices": [{"name": name, "digest": digest} for name, digest in slices],
    }
