"""Writing containers piece by piece: T5X, Orbax and safetensors, each tensor by regions.

A writer fills a folder that nobody reads before it has its final name.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_spec.places import Region, Shape
from openmoe_tools.checkpoints.containers import zarr_arrays
from openmoe_tools.checkpoints.containers.stored import DTYPES, slices

CHUNK = 64 << 20
"""The largest chunk that is written, as the training code's host arrays were."""


@dataclass(frozen=True)
class Out:
    """A tensor to be written: its shape and dtype there."""

    shape: Shape
    dtype: str

    @property
    def size(self) -> int:
        """Return the bytes of its values."""
        return math.prod(self.shape) * DTYPES[self.dtype].itemsize


class Writer(Protocol):
    """A container that is being written; `layout` names the rules of its tensors."""

    layout: str

    def begin(self, folder: Path) -> None:
        """Prepare the folder, in which earlier work may lie already."""

    def multiple(self, name: str) -> int:
        """Return how many rows of a tensor are encoded together."""

    def write(self, name: str, region: Region, values: ndarray) -> None:
        """Write a region of a tensor."""

    def finish(self, name: str) -> None:
        """Bring a tensor to the disk: it survives a loss of power."""

    def close(self) -> None:
        """Write what speaks of all tensors: the index."""


def chunk_of(out: Out) -> Shape:
    """Return the chunk of a tensor: whole rows, as many as fit, a divisor of them all."""
    shape, itemsize = out.shape, DTYPES[out.dtype].itemsize
    if out.size <= CHUNK or len(shape) < 2:
        return shape
    axis = len(shape) - 2  # one matrix at a time
    inner = shape[-1] * itemsize
    fitting = (n for n in range(1, shape[axis] + 1) if shape[axis] % n == 0 and n * inner <= CHUNK)
    rows = max(fitting, default=1)
    return (*(1,) * axis, rows, *shape[axis + 1 :])


class _Arrays:
    """Arrays of zarr 2, one folder each."""

    def __init__(self, tensors: Mapping[str, Out], compressor: Mapping[str, Any]) -> None:
        self.tensors = dict(tensors)
        self.compressor = dict(compressor)
        self.folder = Path()

    def path_of(self, name: str) -> str:
        """Return the folder of a tensor."""
        raise NotImplementedError

    def begin(self, folder: Path) -> None:
        self.folder = folder

    def multiple(self, name: str) -> int:
        chunk = chunk_of(self.tensors[name])
        return chunk[-2] if len(chunk) > 1 else 1

    def write(self, name: str, region: Region, values: ndarray) -> None:
        out = self.tensors[name]
        spec = {
            "driver": "zarr",
            "kvstore": zarr_arrays.folder_store(self.folder / self.path_of(name)),
            "metadata": self.metadata(out),
            "context": {"cache_pool": {"total_bytes_limit": 0}},
        }
        try:
            library = zarr_arrays.tensorstore()
            handle = library.open(spec, open=True, create=True).result()
            handle[slices(region)].write(np.ascontiguousarray(values)).result()
        except (ValueError, OSError) as error:
            raise UsageError(
                f"{self.folder / self.path_of(name)}: cannot be written ({zarr_arrays.short(error)})"
            ) from error

    def metadata(self, out: Out) -> dict[str, Any]:
        """Return what `.zarray` says."""
        dtype = DTYPES[out.dtype]
        return {
            "zarr_format": 2,
            "shape": list(out.shape),
            "chunks": [max(1, n) for n in chunk_of(out)],
            "dtype": "bfloat16" if out.dtype == "bfloat16" else dtype.newbyteorder("<").str,
            "compressor": self.compressor,
            "fill_value": None,
            "filters": None,
            "order": "C",
            "dimension_separator": ".",
        }

    def finish(self, name: str) -> None:
        folder = self.folder / self.path_of(name)
        for file in folder.iterdir():
            sync(file)
        sync(folder)


class T5XWriter(_Arrays):
    """A folder as the training code reads it: `target` and a step, without an optimizer's state."""

    layout = "t5x"

    def __init__(self, tensors: Mapping[str, Out], step: int) -> None:
        """Take the tensors by the training code's names, without `target/`."""
        super().__init__(tensors, {"id": "gzip", "level": 1})
        self.step = step

    def path_of(self, name: str) -> str:
        return f"target.{name.replace('/', '.')}"

    def close(self) -> None:
        import msgpack  # type: ignore[import-untyped, unused-ignore] # noqa: PLC0415

        tree: dict[str, Any] = {}
        for name, out in self.tensors.items():
            *parents, leaf = name.split("/")
            level = tree
            for one in parents:
                level = level.setdefault(one, {})
            level[leaf] = {
                "driver": "zarr",
                "dtype": out.dtype,
                "kvstore": {"driver": "file", "path": f"{self.path_of(name)}/"},
                "metadata": {
                    "chunks": list(chunk_of(out)),
                    "compressor": self.compressor,
                    "shape": list(out.shape),
                },
            }
        step = msgpack.packb(((), "int32", np.int32(self.step).tobytes()), use_bin_type=True)
        state = {"step": msgpack.ExtType(3, step), "param_states": {}}
        content = {"version": 3, "optimizer": {"target": tree, "state": state}}
        write_file(self.folder / "checkpoint", msgpack.packb(content, use_bin_type=True))


class OrbaxWriter(_Arrays):
    """A tree as Orbax's StandardCheckpointer restores it, a folder a tensor."""

    layout = "t5x"

    def __init__(self, tensors: Mapping[str, Out]) -> None:
        """Take the tensors by the training code's names, whose levels become the tree's."""
        super().__init__(tensors, {"id": "zstd", "level": 1})

    def path_of(self, name: str) -> str:
        return name.replace("/", ".")

    def close(self) -> None:
        tree = {}
        for name, out in self.tensors.items():
            keys = name.split("/")
            tree[str(tuple(keys))] = {
                "key_metadata": [{"key": key, "key_type": 2} for key in keys],
                "value_metadata": {
                    "value_type": "np.ndarray",
                    "skip_deserialize": False,
                    "write_shape": list(out.shape),
                },
            }
        content = {
            "tree_metadata": tree,
            "use_ocdbt": False,
            "use_zarr3": False,
            "store_array_data_equal_to_fill_value": True,
            "custom_metadata": None,
        }
        write_file(self.folder / "_METADATA", json.dumps(content).encode())
        now = time.time_ns()
        handler = "orbax.checkpoint._src.handlers.standard_checkpoint_handler"
        own = {
            "item_handlers": f"{handler}.StandardCheckpointHandler",
            "metrics": {},
            "performance_metrics": {},
            "init_timestamp_nsecs": now,
            "commit_timestamp_nsecs": now,
            "custom_metadata": {},
        }
        write_file(self.folder / "_CHECKPOINT_METADATA", json.dumps(own).encode())
        write_file(self.folder / "commit_success.txt", b"Checkpoint commit was successful.\n")


def write_file(file: Path, content: bytes) -> None:
    """Write a small file and bring it to the disk."""
    file.write_bytes(content)
    sync(file)


def sync(path: Path) -> None:
    """Bring a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
