"""Writing safetensors by regions, which their library cannot: it takes whole tensors."""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_spec.places import Region, Shape
from openmoe_tools.checkpoints.containers.safetensors_files import INDEX, TYPES, WEIGHTS
from openmoe_tools.checkpoints.containers.writers import Out, sync, write_file


class SafetensorsWriter:
    """One file, or shards with an index; each is laid out at once and filled by regions."""

    def __init__(self, tensors: Mapping[str, Out], layout: str, shard_size: int) -> None:
        """Take the tensors by their names there, in the order in which they are to lie."""
        self.tensors = dict(tensors)
        self.layout = layout
        self.folder = Path()
        self.shards = _shards(self.tensors, shard_size)
        number = len(self.shards)
        names = (
            [WEIGHTS]
            if number == 1
            else [f"model-{i + 1:05}-of-{number:05}.safetensors" for i in range(number)]
        )
        self.headers = {
            name: _header({n: tensors[n] for n in shard})
            for name, shard in zip(names, self.shards, strict=True)
        }
        self.place = {
            tensor: (file, start)
            for file, shard in zip(names, self.shards, strict=True)
            for tensor, start in _offsets(self.tensors, shard, len(self.headers[file]))
        }

    def begin(self, folder: Path) -> None:
        self.folder = folder
        for file, header in self.headers.items():
            held = [name for name, (own, _) in self.place.items() if own == file]
            size = len(header) + sum(self.tensors[name].size for name in held)
            descriptor = os.open(folder / file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                _at(descriptor, header, 0)
                os.truncate(descriptor, size)
                with contextlib.suppress(
                    OSError
                ):  # a file system that cannot: the room is not kept
                    os.posix_fallocate(descriptor, 0, size)
            finally:
                os.close(descriptor)

    def multiple(self, name: str) -> int:
        del name
        return 1

    def write(self, name: str, region: Region, values: ndarray) -> None:
        file, start = self.place[name]
        out = self.tensors[name]
        try:
            descriptor = os.open(self.folder / file, os.O_RDWR | os.O_CLOEXEC)
            try:
                _fill(descriptor, start, out.shape, region, np.ascontiguousarray(values))
            finally:
                os.close(descriptor)
        except OSError as error:
            raise UsageError(
                f"{self.folder / file}: cannot be written ({error.strerror})"
            ) from error

    def finish(self, name: str) -> None:
        sync(self.folder / self.place[name][0])

    def close(self) -> None:
        if len(self.headers) > 1:
            total = sum(one.size for one in self.tensors.values())
            places = {name: self.place[name][0] for name in sorted(self.place)}
            content = {"metadata": {"total_size": total}, "weight_map": places}
            write_file(self.folder / INDEX, (json.dumps(content, indent=2) + "\n").encode())


def _shards(tensors: Mapping[str, Out], limit: int) -> list[list[str]]:
    """Return tensors in files of at most so many bytes; one that is larger has its own."""
    shards: list[list[str]] = [[]]
    size = 0
    for name, out in tensors.items():
        if shards[-1] and size + out.size > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += out.size
    return shards


def _header(tensors: Mapping[str, Out]) -> bytes:
    names = {ours: theirs for theirs, ours in TYPES.items()}
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, out in tensors.items():
        content[name] = {
            "dtype": names[out.dtype],
            "shape": list(out.shape),
            "data_offsets": [offset, offset + out.size],
        }
        offset += out.size
    text = json.dumps(content, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _offsets(tensors: Mapping[str, Out], names: list[str], start: int) -> list[tuple[str, int]]:
    found = []
    for name in names:
        found.append((name, start))
        start += tensors[name].size
    return found


def _fill(descriptor: int, offset: int, shape: Shape, region: Region, values: ndarray) -> None:
    """Write a region of the tensor of a shape that begins at an offset."""
    inner = math.prod(shape[1:]) * values.dtype.itemsize
    if all((0, n) == one for n, one in zip(shape[1:], region[1:], strict=True)):
        start = region[0][0] if shape else 0
        _at(descriptor, values.reshape(-1).view(np.uint8).data, offset + start * inner)
        return
    for i, row in enumerate(range(*region[0])):
        _fill(descriptor, offset + row * inner, shape[1:], region[1:], values[i])


def _at(descriptor: int, content: Any, offset: int) -> None:
    view = memoryview(content)
    while view:
        number = os.pwrite(descriptor, view[: 1 << 30], offset)
        view, offset = view[number:], offset + number
