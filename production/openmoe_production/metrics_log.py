"""What is written down of a training run: a line of JSON a step, and TensorBoard's events if wanted.

The lines of steps that a killed run made behind its last checkpoint are made again, so on resuming
they are dropped. Only the first of several processes writes. Spec: RUN-05.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TextIO

import jax

from openmoe_spec.errors import RejectedError

NAME = "metrics.jsonl"


class MetricsLog:
    """The records of a run in its folder, from a step on.

    begin_step   steps that the run has made and saved; later lines are dropped
    tensorboard  write its event files too, in `tensorboard/`; needs the package tensorboardX
    Errors: RejectedError RUN-01 without that package; OSError.
    """

    def __init__(self, folder: Path, *, begin_step: int, tensorboard: bool = False) -> None:
        self._file: TextIO | None = None
        self._events: Any = None
        if tensorboard:
            writer = _writer()
        if jax.process_index():
            return
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / NAME
        kept = [line for line, step in _lines(path) if step <= begin_step]
        part = path.with_name(f"{NAME}.part")
        part.write_text("".join(kept), encoding="utf-8")
        part.replace(path)
        self._file = path.open("a", encoding="utf-8")
        if tensorboard:
            self._events = writer(str(folder / "tensorboard"), purge_step=begin_step + 1)

    def write(self, step: int, record: Mapping[str, Any]) -> None:
        """Add what is known of a step, of plain numbers, nested; what is not finite is null."""
        if self._file is None:
            return
        strange: list[str] = []
        found = {"step": step, **_plain(record, "", strange)}
        if strange:
            found["not_finite"] = strange
        self._file.write(json.dumps(found, allow_nan=False) + "\n")
        self._file.flush()
        if self._events is not None:
            for name, value in _scalars(record, ""):
                self._events.add_scalar(name, value, step)

    def close(self) -> None:
        """End the files."""
        for one in (self._file, self._events):
            if one is not None:
                one.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        self.close()


def read(folder: Path) -> list[dict[str, Any]]:
    """Return the records of a run, in the order of its steps; a half-written last line is none."""
    return [json.loads(line) for line, _ in _lines(folder / NAME)]


def _lines(path: Path) -> Iterator[tuple[str, int]]:
    """Yield the whole lines of a file with their steps."""
    with suppress(FileNotFoundError):
        for line in path.read_text(encoding="utf-8").splitlines(keepends=True):
            with suppress(ValueError, KeyError, TypeError):
                if line.endswith("\n"):
                    yield line, int(json.loads(line)["step"])


def _plain(value: Any, place: str, strange: list[str]) -> Any:
    if isinstance(value, Mapping):
        return {
            str(name): _plain(one, f"{place}/{name}" if place else str(name), strange)
            for name, one in value.items()
        }
    if isinstance(value, float) and not math.isfinite(value):
        strange.append(place)
        return None
    return value


def _scalars(value: Any, place: str) -> Iterator[tuple[str, float]]:
    """Yield tags and numbers; the members of a list by their place."""
    if isinstance(value, Mapping):
        for name, one in value.items():
            yield from _scalars(one, f"{place}/{name}" if place else str(name))
    elif isinstance(value, list):
        for i, one in enumerate(value):
            yield from _scalars(one, f"{place}/{i}")
    elif isinstance(value, int | float):
        yield place, float(value)


def _writer() -> Any:
    try:
        from tensorboardX import SummaryWriter  # type: ignore[import-untyped, import-not-found, unused-ignore]  # noqa: PLC0415
    except ImportError as error:
        hint = "needs tensorboardX: pip install 'openmoe-spec[tensorboard]'"
        raise RejectedError("log.tensorboard", "RUN-01", hint) from error
    return SummaryWriter
