"""The folder of one checkpoint: whether it is whole, and what is in it. See `checkpoints`."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp  # type: ignore[import-untyped, unused-ignore]
from jax.experimental import multihost_utils
from jax.sharding import SingleDeviceSharding

from openmoe_production.orbax_errors import quieten, reason

Warn = Callable[[str], None]

STATE = ("parameters", "optimizer")
"""The items of a step that are trees of arrays."""

ITEMS = dict.fromkeys(STATE, ocp.StandardCheckpointHandler) | dict.fromkeys(
    ("data", "settings"), ocp.JsonCheckpointHandler
)
LIST = "files.json"
_OWN = "_CHECKPOINT_METADATA"  # Orbax's own, which it writes last
ASIDE = ".orbax-checkpoint-tmp"


class CheckpointError(Exception):
    """A checkpoint that cannot be written, read or gone on from, in one line."""


# ---- which there are -----------------------------------------------------------------------------


def complete_steps(folder: Path, warn: Warn | None = None) -> list[int]:
    """Return the complete steps of a folder in their order. Errors: CheckpointError."""
    found = []
    try:
        names = [one.name for one in folder.iterdir()] if folder.exists() else []
    except OSError as error:
        raise CheckpointError(
            f"{folder}: {error.strerror}; name a folder of checkpoints"
        ) from error
    for name in names:
        number = re.fullmatch(rf"(0|[1-9]\d*)({re.escape(ASIDE)}.*)?", name)
        if number is None:
            continue
        lacks = "is half-written" if number[2] else flaw(folder / name)
        if lacks is None:
            found.append(int(name))
        elif warn is not None and jax.process_index() == 0:
            warn(f"{folder}: step {number[1]} {lacks}; it is passed over")
    return sorted(found)


def agreed(steps: Sequence[int]) -> list[int]:
    """Return the first process's list of steps: what others see of a folder may be older."""
    if jax.process_count() == 1:
        return list(steps)
    number = int(multihost_utils.broadcast_one_to_all(np.int32(len(steps))))
    own = np.resize(np.array([*steps, 0], np.int32), number)
    return [int(one) for one in multihost_utils.broadcast_one_to_all(own)] if number else []


def newest_step(folder: Path, warn: Warn | None = None) -> int | None:
    """Return the newest complete step as the first process sees it."""
    return max(agreed(complete_steps(folder, warn)), default=None)


def find_step(path: Path, step: int | None = None, *, warn: Warn = print) -> Path:
    """Return the folder of a step, by default the newest complete one, the same to all processes.

    path  a run's folder, its folder of checkpoints, or that of a step
    Errors: CheckpointError.
    """
    path = path.absolute()
    if (path / LIST).is_file():
        if step not in {None, int(path.name) if path.name.isdecimal() else None}:
            raise CheckpointError(f"{path}: is one step, and not step {step}; name none")
        return path
    folder = path / "checkpoints" if (path / "checkpoints").is_dir() else path
    newest = newest_step(folder, warn) if step is None else step
    if newest is None:
        raise CheckpointError(f"{path}: holds no complete step of a run")
    return folder / str(newest)


# ---- one step ------------------------------------------------------------------------------------


def restored(step: Path, abstract: Mapping[str, Any]) -> dict[str, Any]:
    """Return trees of arrays, of which Orbax is asked only when nothing speaks against them.

    It would give shapes and dtypes other than those that are stored, take damage for data, and tell of
    what it cannot read in many lines.
    """
    _require_undamaged(step, abstract)
    _require_alike(step, shapes(step, abstract), abstract)
    first = SingleDeviceSharding(jax.local_devices()[0])
    placed = jax.tree.map(
        lambda leaf: leaf if leaf.sharding else leaf.update(sharding=first),
        {name: dict(tree) for name, tree in abstract.items()},
    )
    how = {name: ocp.args.StandardRestore(tree) for name, tree in placed.items()}
    with _reads(step, how) as reader:
        found = reader.restore(step, args=ocp.args.Composite(**how))
    return {name: found[name] for name in how}


def read(step: Path, item: str) -> Any:
    """Return an item of JSON."""
    _require_undamaged(step, (item,))
    with _reads(step, (item,)) as reader:
        return reader.restore(step, args=ocp.args.Composite(**{item: ocp.args.JsonRestore()}))[item]


def shapes(step: Path, items: Collection[str]) -> dict[str, Any]:
    """Return shapes and dtypes of the arrays of some items."""
    struct: Any = jax.ShapeDtypeStruct
    with _reads(step, items) as reader:
        known = reader.metadata(step).item_metadata
        trees = {name: dict(known[name].tree) for name in items}
        return dict(jax.tree.map(lambda leaf: struct(leaf.shape, leaf.dtype), trees))


@contextmanager
def _reads(step: Path, items: Collection[str]) -> Iterator[Any]:
    """Give a reader of some items, which looks at no others."""
    quieten()
    handlers = {name: ITEMS[name]() for name in items}
    try:
        with ocp.Checkpointer(ocp.CompositeCheckpointHandler(**handlers)) as reader:
            yield reader
    except Exception as error:
        raise CheckpointError(f"{_named(step)} cannot be read: {reason(error)}") from error


def flaw(step: Path) -> str | None:
    """Return what a step lacks, as far as names and sizes of files tell, or None."""
    try:
        listed = json.loads((step / LIST).read_text())
    except (OSError, ValueError):
        return "is half-written"
    for name, (size, _) in listed.items():
        file = step / name
        if not file.is_file() or file.stat().st_size != size:
            return f"lacks {name}, or a part of it"
    return None if (step / _OWN).is_file() else f"lacks {_OWN}"


def require_complete(step: Path) -> None:
    """Refuse a step that is not there, or lacks something. Errors: CheckpointError."""
    if not step.exists():
        raise CheckpointError(f"{_named(step)} is not there")
    lacks = flaw(step)
    if lacks is not None:
        raise CheckpointError(f"{_named(step)} {lacks}; remove its folder to go on from another")


def _require_undamaged(step: Path, items: Collection[str]) -> None:
    """Refuse a step of which a file is not as it was written; processes share the reading."""
    require_complete(step)
    listed = json.loads((step / LIST).read_text())
    names = sorted(name for name in listed if name.split("/")[0] in items)
    own = range(jax.process_index(), len(names), jax.process_count())

    def is_same(number: int) -> bool:
        with suppress(OSError):
            return entry(step / names[number]) == listed[names[number]]
        return False

    with ThreadPoolExecutor() as pool:
        damaged = [i for i, same in zip(own, pool.map(is_same, own), strict=True) if not same]
    last = _largest(max(damaged, default=-1))
    if last >= 0:
        raise CheckpointError(
            f"{_named(step)}: {names[last]} is damaged; "
            "remove the step's folder to go on from another"
        )


def entry(file: Path) -> list[Any]:
    """Return what is listed of a file: size and digest."""
    with file.open("rb") as content:
        return [file.stat().st_size, hashlib.file_digest(content, "sha256").hexdigest()]


def _named(step: Path) -> str:
    return f"{step.parent}: step {step.name}"


def _largest(here: int) -> int:
    """Return the largest of what all processes have."""
    if jax.process_count() == 1:
        return here
    return int(np.max(multihost_utils.process_allgather(np.int32(here))))


# ---- what differs --------------------------------------------------------------------------------


def require_same(folder: Path, found: Any, given: Any) -> None:
    """Refuse settings other than those of a checkpoint, naming every field."""
    one, other = dict(_flat(found)), dict(_flat(given))
    differing = [
        f"{place}: checkpoint has {one.get(place, 'nothing')}, this run {other.get(place, 'nothing')}"
        for place in {**one, **other}
        if one.get(place) != other.get(place)
    ]
    if differing:
        raise CheckpointError(
            f"{folder}: is of a run of other settings: {'; '.join(differing)}; "
            "set them back, or name another folder"
        )


def _flat(value: Any, place: str = "") -> Iterator[tuple[str, str]]:
    """Yield places and values as JSON, down to what holds nothing more."""
    inside: Mapping[str, Any] = {}
    if isinstance(value, dict):
        inside = {f"{place}.{name}" if place else name: one for name, one in value.items()}
    elif isinstance(value, list):
        inside = {f"{place}[{i}]": one for i, one in enumerate(value)}
    if not inside:
        yield place, json.dumps(value)
    for name, one in inside.items():
        yield from _flat(one, name)


def _require_alike(step: Path, found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Refuse arrays of other names, shapes or dtypes than those of a step."""
    one, other = _by_place(found), _by_place(wanted)
    differing = [place for place in {**one, **other} if one.get(place) != other.get(place)]
    if differing:
        place = differing[0]
        more = f" (and {len(differing) - 1} more)" if differing[1:] else ""
        raise CheckpointError(
            f"{_named(step)}: {place} is {one.get(place, 'absent')} in it, wanted is "
            f"{other.get(place, 'none')}{more}; give the configuration that it was saved with"
        )


def _by_place(items: Mapping[str, Any]) -> dict[str, str]:
    return {
        item + jax.tree_util.keystr(path): f"{leaf.dtype} {list(leaf.shape)}"
        for item, tree in items.items()
        for path, leaf in jax.tree_util.tree_leaves_with_path(dict(tree))
    }
