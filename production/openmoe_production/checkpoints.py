"""Checkpoints of a training run, on Orbax: a step is in a folder whole, or passed over.

A step is a folder named by its number. It has four items, `parameters`, `optimizer`, `data` (where
the data is) and `settings` (what a run must agree on to go on from it), and `files.json`, their
files with sizes and digests: Orbax writes a step aside and gives it its name when it is complete,
but what has come to a file since, it cannot see. A step's folder can be copied and stands for itself.
Every process of a run calls the same functions; the folder is on a file system that all of them see.
Needs the package orbax-checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import jax
import orbax.checkpoint as ocp  # type: ignore[import-untyped, unused-ignore]

from openmoe_production.checkpoint_steps import (
    ASIDE,
    ITEMS,
    LIST,
    STATE,
    CheckpointError,
    Warn,
    agreed,
    complete_steps,
    entry,
    find_step,
    flaw,
    newest_step,
    read,
    require_complete,
    require_same,
    restored,
    shapes,
)
from openmoe_production.orbax_errors import quieten, reason, writers

__all__ = [
    "CheckpointError",
    "Checkpoints",
    "complete_steps",
    "find_step",
    "read_settings",
    "read_shapes",
    "restored_parameters",
]


class Checkpoints:
    """The steps of a run in a folder, which is made with the first of them.

    settings      nested and of JSON; those of the newest step must be the same
    keep          how many of the newest steps stay; None: all
    keep_steps    steps that stay whatever comes
    asynchronous  whether `save` returns before files are written
    timeout       seconds that a step may take; so long processes wait for one that has failed
    warn          is told, in a line each, of steps that are passed over
    Errors: CheckpointError, which names every setting that differs.
    """

    def __init__(
        self,
        folder: Path,
        settings: Mapping[str, Any],
        *,
        keep: int | None = 3,
        keep_steps: Collection[int] = (),
        asynchronous: bool = True,
        timeout: int = 1200,
        warn: Warn = print,
    ) -> None:
        self.folder = folder.absolute()  # as Orbax wants it
        self._settings = json.loads(json.dumps(settings))
        self._keep, self._keep_steps = keep, keep_steps
        self._asynchronous, self._timeout = asynchronous, timeout
        self._manager: Any = None
        self._writing: int | None = None
        newest = newest_step(self.folder, warn)
        if newest is not None:
            require_same(self.folder, read(self.folder / str(newest), "settings"), self._settings)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None
    ) -> None:
        if error is None:
            self.close()
        else:
            with suppress(CheckpointError):  # the first error is the one to be shown
                self.close()

    def steps(self) -> list[int]:
        """Return the steps that are complete, in their order, as the first process sees them."""
        return agreed(complete_steps(self.folder))

    def latest(self) -> int | None:
        """Return the newest step that is complete, the same to all processes, or None."""
        return newest_step(self.folder)

    def save(self, step: int, state: Mapping[str, Any], data_state: Mapping[str, Any]) -> None:
        """Save a step; arrays may be donated as soon as this returns.

        state       trees of arrays by STATE
        data_state  of JSON
        Errors: CheckpointError, also of the step before, behind which nothing was written; then the
        newest good step is as it was, and the next one may be saved.
        """
        self.wait()
        data = json.loads(json.dumps(data_state))  # written later, when the caller's has gone on
        with self._writes(step):
            if self._manager is None:
                self._manager = self._managed()
            if step in self._manager.all_steps():
                if flaw(self.folder / str(step)) is None:
                    raise CheckpointError(f"{self.folder}: step {step} is there already")
                self._manager.delete(step)
            trees = {name: ocp.args.StandardSave(dict(state[name])) for name in STATE}
            rest = {"data": data, "settings": self._settings}
            texts = {name: ocp.args.JsonSave(value) for name, value in rest.items()}
            self._writing = step
            self._manager.save(step, args=ocp.args.Composite(**trees, **texts), force=True)
        if not self._asynchronous:
            self.wait()

    def restore(self, step: int, abstract: Mapping[str, Any]) -> tuple[dict[str, Any], Any]:
        """Return the state of a step, exactly, and that of its data.

        abstract  trees of `jax.ShapeDtypeStruct` by STATE, with the shardings that arrays shall have
        Errors: CheckpointError on damage, and on names, shapes and dtypes that are others.
        """
        self.wait()
        return restored(self.folder / str(step), abstract), read(self.folder / str(step), "data")

    def wait(self) -> None:
        """Wait until what was saved is complete. Errors: CheckpointError."""
        if self._writing is not None:
            with self._writes(self._writing):
                self._manager.wait_until_finished()
            self._writing = None

    def close(self) -> None:
        """Wait, and end what writes. Errors: CheckpointError."""
        self.wait()
        if self._manager is not None:
            self._manager.close()
            self._manager = None

    def _managed(self) -> Any:
        quieten()
        kept = _Kept(self._is_good, self._keep, self._keep_steps)
        options = ocp.CheckpointManagerOptions(
            preservation_policy=kept,
            cleanup_tmp_directories=True,
            async_options=ocp.AsyncOptions(
                timeout_secs=self._timeout, post_finalization_callback=self._list_files
            ),
        )
        handlers = {name: kind() for name, kind in ITEMS.items()}
        return ocp.CheckpointManager(self.folder, options=options, item_handlers=handlers)

    def _is_good(self, step: int) -> bool:
        return step == self._writing or flaw(self.folder / str(step)) is None

    def _list_files(self) -> None:
        """List a step's files when all are written, before it has its name. In one process."""
        (aside,) = self.folder.glob(f"{self._writing}{ASIDE}*")
        files = [one for name in ITEMS for one in (aside / name).rglob("*") if one.is_file()]
        names = [one.relative_to(aside).as_posix() for one in files]
        with ThreadPoolExecutor() as pool:
            listed = dict(zip(names, pool.map(entry, files), strict=True))
        (aside / LIST).write_text(json.dumps(listed))

    @contextmanager
    def _writes(self, step: int) -> Iterator[None]:
        """Turn whatever fails into a CheckpointError, and remove what there is of the step.

        What TensorStore still writes then, goes when the next step is saved.
        """
        try:
            yield
        except CheckpointError:
            raise
        except Exception as error:
            manager, self._manager, self._writing = self._manager, None, None
            for end in (manager and manager.close, *writers()):
                with suppress(Exception):  # the same once more
                    end()
            if jax.process_index() == 0:
                for aside in self.folder.glob(f"{step}{ASIDE}*"):
                    shutil.rmtree(aside, ignore_errors=True)
            good = max(complete_steps(self.folder), default=None)
            rest = "no step is saved" if good is None else f"step {good} is saved and good"
            raise CheckpointError(
                f"{self.folder}: step {step} cannot be saved: {reason(error)}; {rest}"
            ) from error


@dataclass(frozen=True)
class _Kept:
    """Orbax's policy of what stays: a broken step is no newest one, and goes with those beside it."""

    is_good: Callable[[int], bool]
    keep: int | None
    keep_steps: Collection[int]

    def should_preserve(self, checkpoints: Sequence[Any], *, context: Any) -> list[bool]:
        steps = [one.step for one in checkpoints]
        if self.keep is None:
            return [True] * len(steps)
        oldest = min(sorted(filter(self.is_good, steps))[-self.keep :])
        return [step >= oldest or step in self.keep_steps for step in steps]


def read_settings(path: Path, step: int | None = None) -> dict[str, Any]:
    """Return the settings of the run that a checkpoint is of. Errors: CheckpointError."""
    return dict(read(find_step(path, step), "settings"))


def read_shapes(path: Path, step: int | None = None) -> dict[str, Any]:
    """Return shapes and dtypes of a step's arrays, by STATE; no array is read.

    Errors: CheckpointError.
    """
    found = find_step(path, step)
    require_complete(found)
    return shapes(found, STATE)


def restored_parameters(
    path: Path, step: int | None, abstract: Mapping[str, jax.ShapeDtypeStruct]
) -> dict[str, jax.Array]:
    """Return the parameters of a step, by default the newest; nothing else of it is read.

    path      as in `find_step`
    abstract  shapes, dtypes and shardings by name; without a sharding, on the first device
    Errors: CheckpointError.
    """
    found = restored(find_step(path, step), {"parameters": abstract})["parameters"]
    return dict(found)
