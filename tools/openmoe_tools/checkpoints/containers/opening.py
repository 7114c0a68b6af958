"""What a path is: which container, and which tensors of an OpenMoE model lie in it."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy import ndarray

from openmoe_spec.layouts import JOIN, SPLIT, TRANSPOSE
from openmoe_spec.places import (
    Found,
    Part,
    Placed,
    Region,
    Shape,
    recognise,
    shape_after,
    stored_region,
    undone,
    whole,
)
from openmoe_tools.checkpoints.containers import (
    npz_files,
    orbax,
    safetensors_files,
    t5x,
    torch_files,
)
from openmoe_tools.checkpoints.containers.regions import CACHED, STRIP, apply, blocks, turn
from openmoe_tools.checkpoints.containers.stored import (
    DTYPES,
    Incomplete,
    Reader,
    Unreadable,
    extent,
    printable,
)

RUN_STEPS = "checkpoints"


@dataclass
class Checkpoint:
    """A model's tensors by the names of PARAM-01, wherever and however they are stored."""

    path: Path
    reader: Reader
    found: Found
    step: int | None = None
    notes: list[str] = field(default_factory=list)

    @property
    def tensors(self) -> dict[str, Placed]:
        return self.found.tensors

    @property
    def state(self) -> list[str]:
        """Return the names of what is the optimizer's, or a counter."""
        return [name for name, one in self.reader.tensors.items() if one.of_state]

    def dtype(self, name: str) -> str:
        """Return a tensor's dtype. Errors: UsageError where its parts have several."""
        found = {self.reader.tensors[one.theirs].dtype for one in self.tensors[name].parts}
        if len(found) > 1:
            raise Unreadable(f"{self.path}: the experts of {name} have dtypes {sorted(found)}")
        return found.pop()

    def elements(self, name: str) -> int:
        """Return how many values a tensor has."""
        return math.prod(self.tensors[name].shape)

    def size(self, name: str) -> int:
        """Return the bytes of a tensor's values."""
        return self.elements(name) * DTYPES[self.dtype(name)].itemsize

    def places(self, name: str) -> list[str]:
        """Return the files and folders that hold a tensor."""
        return sorted({self.reader.tensors[one.theirs].place for one in self.tensors[name].parts})

    def read(self, name: str, region: Region | None = None) -> ndarray:
        """Return a region of a tensor as ours has it, by default all of it. Errors: UsageError."""
        placed = self.tensors[name]
        region = whole(placed.shape) if region is None else region
        parts = {part.matrix: part for part in placed.parts}
        if None in parts:
            return self._part(parts[None], placed.shape, region)
        lacking = next((e for e in range(*region[0]) if e not in parts), None)
        if lacking is not None:
            raise Incomplete(f"{self.path}: lacks expert {lacking} of {name}")
        out = np.empty(extent(region), DTYPES[self.dtype(name)])
        for i, expert in enumerate(range(*region[0])):
            out[i] = self._part(parts[expert], placed.shape[1:], region[1:])
        return out

    def _part(self, part: Part, shape: Shape, region: Region) -> ndarray:
        """Return a region of a part of ours that has a shape."""
        own = list(self.reader.tensors[part.theirs].shape)
        if part.at is not None:
            own.pop(part.at[0])
        if shape_after(undone(part.operations), tuple(own)) != shape:
            raise Unreadable(f"{self.path}: {part.theirs} has a shape that is not its neighbours'")
        stored = self.reader.tensors[part.theirs]
        if part.operations == (TRANSPOSE,) and len(stored.shape) == 2 and stored.chunk is None:
            return self._turned(part, region)
        whole_rows = any(one in part.operations for one in (SPLIT, JOIN))
        asked = (*region[:-1], (0, shape[-1])) if whole_rows else region
        found = self.reader.read(part.theirs, stored_region(part, asked))
        if part.at is not None:
            found = found.squeeze(part.at[0])
        found = apply(undone(part.operations), found)
        found = found[..., slice(*region[-1])] if whole_rows else found
        return np.require(found, requirements=["C", "W"])  # a caller's own, as it is laid out in C

    def _turned(self, part: Part, region: Region) -> ndarray:
        """Return a region of a transposed matrix, read and turned by strips that fit a core's cache."""
        (low, high), (first, last) = region
        out = np.empty((high - low, last - first), DTYPES[self.reader.tensors[part.theirs].dtype])
        step = CACHED // (max(1, high - low) * out.itemsize)
        step = max(STRIP, step - step % STRIP)  # whole lines of the cache are written
        for start in range(first, last, step):
            stop = min(start + step, last)
            strip = self.reader.read(part.theirs, ((start, stop), (low, high)))
            turn(strip, out[:, start - first : stop - first])
        return out

    def blocks(self, name: str, limit: int) -> Iterator[Region]:
        """Yield regions that follow each other in C order, of about so many bytes or one row."""
        shape = self.tensors[name].shape
        return blocks(shape, DTYPES[self.dtype(name)].itemsize, limit, self._rows(name))

    def _rows(self, name: str) -> int:
        """Return how many rows of a matrix are decoded together, 1 where any can be."""
        part = self.tensors[name].parts[0]
        chunk = self.reader.tensors[part.theirs].chunk
        if chunk is None or part.operations[:1] == ("transpose",):
            return 1
        own = [n for axis, n in enumerate(chunk) if part.at is None or axis != part.at[0]]
        rank = len(self.tensors[name].shape) - (part.matrix is not None)
        return own[rank - 2] if rank > 1 else 1


# ---- from a path -------------------------------------------------------------------------------


def open_checkpoint(path: Path, step: int | None = None) -> Checkpoint:
    """Return the checkpoint that a path is, or the newest complete one in it. Errors: UsageError.

    path  a file of tensors, a folder with one, a step of Orbax or T5X, or a folder of steps
    """
    notes: list[str] = []
    try:
        found, number = _reader(path, step, notes)
    except OSError as error:
        raise Unreadable(f"{path}: cannot be read ({error.strerror or error})") from error
    opened = of(found)
    opened.step = number
    opened.notes = [printable(one, 300) for one in (*notes, *found.notes)]
    return opened


def of(reader: Reader) -> Checkpoint:
    """Return the checkpoint that a container is. Errors: UsageError."""
    shapes = {name: one.shape for name, one in reader.tensors.items() if not one.of_state}
    if not shapes:
        raise Unreadable(f"{reader.path}: holds no tensor of a model")
    for name, shape in shapes.items():
        stacked = max(shape[:2], default=0) if name.startswith(_STACKED) else 0
        if _LONG_NUMBER.search(name) or stacked > _MOST_STACKED:
            raise Unreadable(f"{reader.path}: {name} is of more layers or experts than a model has")
    return Checkpoint(reader.path, reader, recognise(shapes), None, list(reader.notes))


_LONG_NUMBER = re.compile(r"(?:layers|experts)[._][0-9]{6}")
_STACKED, _MOST_STACKED = ("decoder/layers/", "decoder/decoder/", "decoder/blocks/"), 10**5
"""Rules list layers and experts one by one: a hostile name or shape must not make them billions."""


def _reader(path: Path, step: int | None, notes: list[str]) -> tuple[Reader, int | None]:
    if not path.exists():
        if path.is_symlink():
            raise Unreadable(f"{path}: is a link that leads nowhere")
        raise Unreadable(f"{path}: is not there; name a file or folder of a checkpoint")
    if path.is_file():
        return _of_file(path), None
    list(path.iterdir())  # a folder that cannot be read says so
    own = _of_folder(path)
    if own is not None:
        if step is not None and _number(path.name) != step:
            raise Unreadable(f"{path}: is one checkpoint, and not step {step}")
        return own, _number(path.name)
    return _newest(path, step, notes)


def _of_file(path: Path) -> Reader:
    if path.name == t5x.INDEX:
        return t5x.T5X(path.parent)
    if path.name in {safetensors_files.INDEX, torch_files.INDEX}:
        made = _of_folder(path.parent)
        assert made is not None, path
        return made
    if path.suffix == ".safetensors":
        return safetensors_files.Safetensors(path)
    if path.suffix in {".bin", ".pt", ".pth"}:
        return torch_files.Torch(path)
    if path.suffix == ".npz":
        return npz_files.Npz(path)
    raise Unreadable(
        f"{path}: is no file of tensors that is read: .safetensors, .bin, an index of them, or a "
        "checkpoint's folder"
    )


def _of_folder(path: Path) -> Reader | None:
    if (path / t5x.INDEX).is_file():
        return t5x.T5X(path)
    if (path / safetensors_files.WEIGHTS).is_file() or (path / safetensors_files.INDEX).is_file():
        return safetensors_files.Safetensors(path)
    if (path / torch_files.WEIGHTS).is_file() or (path / torch_files.INDEX).is_file():
        return torch_files.Torch(path)
    if orbax.is_tree(path):
        return orbax.Orbax(path)
    item = orbax.item_of(path)
    return None if item is None else orbax.Orbax(item)


_STEP = re.compile(r"(?:checkpoint_|step_)?([0-9]+)")
_UNFINISHED = re.compile(rf"{_STEP.pattern}(?:\.tmp|{re.escape(orbax.ASIDE)}).*", re.DOTALL)


def _number(name: str) -> int | None:
    match = _STEP.fullmatch(name)
    return None if match is None else int(match[1])


def _of_step(folder: Path, name: str) -> Reader | None:
    if _number(name) is None:
        raise Incomplete(f"{folder / name}: is half-written: it is renamed when it is whole")
    return _of_folder(folder / name)


def _newest(path: Path, step: int | None, notes: list[str]) -> tuple[Reader, int]:
    """Return the newest complete step of a folder, passing over those that are not."""
    folder = path / RUN_STEPS if (path / RUN_STEPS).is_dir() else path
    names = sorted(one.name for one in folder.iterdir() if one.is_dir())
    steps = {number: name for name in names if (number := _number(name)) is not None}
    unfinished = {int(match[1]): name for name in names if (match := _UNFINISHED.fullmatch(name))}
    if step is not None:
        if step not in steps and step not in unfinished:
            known = ", ".join(map(str, sorted(steps))) or "no step"
            raise Unreadable(f"{path}: has {known}, and not {step}")
        steps = {step: steps[step]} if step in steps else {}
        unfinished = {step: unfinished[step]} if step in unfinished else {}
    problems: list[str] = []
    incomplete: Incomplete | None = None
    for number in sorted(steps.keys() | unfinished.keys(), reverse=True):
        try:
            found = _of_step(folder, steps.get(number, unfinished.get(number, "")))
        except Incomplete as error:
            problems.append(f"step {number} is passed over: {error}")
            incomplete = incomplete or error
            continue
        if found is not None:
            notes += problems
            return found, number
        problems.append(f"step {number} is passed over: it holds no checkpoint")
    if incomplete is not None:
        raise incomplete
    raise Unreadable(
        f"{path}: holds no checkpoint: no T5X index, no Orbax tree, no model.safetensors and no "
        "pytorch_model.bin, by itself or in folders of steps"
    )
