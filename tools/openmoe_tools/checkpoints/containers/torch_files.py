"""PyTorch's files, `pytorch_model.bin` and its shards: read by PyTorch's weights-only loader alone.

An optional extra. Source: torch.load(weights_only=True, mmap=True).
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_spec.places import Region
from openmoe_tools.checkpoints.containers.safetensors_files import Shards
from openmoe_tools.checkpoints.containers.stored import (
    DTYPES,
    Stored,
    Unreadable,
    dtype_of,
    shape_of,
    slices,
)
from openmoe_tools.checkpoints.containers.zarr_arrays import short

WEIGHTS, INDEX = "pytorch_model.bin", "pytorch_model.bin.index.json"
_LARGEST_PICKLE = 1 << 26


class Torch:
    """The tensors of one file or of all shards."""

    kind = "torch"

    def __init__(self, path: Path) -> None:
        """Map the files and list their tensors. Errors: UsageError."""
        self.path = path
        self.notes: list[str] = []
        self.tensors: dict[str, Stored] = {}
        self._values: dict[str, Any] = {}
        if path.is_file():
            self._add(path)
        elif (path / WEIGHTS).is_file():
            self._add(path / WEIGHTS)
        else:
            shards = Shards(path / INDEX)
            for name in shards.files:
                self._add(path / name)
            shards.compare({name: one.place for name, one in self.tensors.items()})
            self.notes += shards.notes(self.tensors, ".bin")

    def _add(self, file: Path) -> None:
        _require_plain(file)
        try:
            import torch  # type: ignore[import-not-found, unused-ignore] # noqa: PLC0415
        except ImportError as error:
            raise Unreadable(f"{file}: is PyTorch's, and reading it needs PyTorch") from error
        try:
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        except Exception as error:  # of many kinds, on damaged or hostile bytes
            raise Unreadable(
                f"{file}: PyTorch's weights-only loader refuses it ({short(error)[:120]})"
            ) from error
        if not isinstance(found, dict):
            raise Unreadable(f"{file}: holds no mapping from names to tensors")
        for name, value in found.items():
            if not isinstance(name, str) or not isinstance(value, torch.Tensor):
                raise Unreadable(f"{file}: holds {str(name)[:60]!r}, which is no tensor")
            if name in self.tensors:
                raise Unreadable(f"{file}: {name} stands in {self.tensors[name].place} too")
            source = f"{file}: {name}"
            dtype = dtype_of(str(value.dtype).removeprefix("torch."), source)
            shape = shape_of(tuple(value.shape), source)
            one = Stored(name, shape, dtype, file.name)
            is_held = value.device.type == "cpu" and value.layout == torch.strided
            if not is_held or one.size > value.untyped_storage().nbytes():
                raise Unreadable(f"{source}: has values that the file does not hold one by one")
            self.tensors[name] = one
            self._values[name] = value.detach()

    def read(self, name: str, region: Region) -> ndarray:
        import torch  # type: ignore[import-not-found, unused-ignore] # noqa: PLC0415

        dtype = DTYPES[self.tensors[name].dtype]
        part = self._values[name][slices(region)].contiguous()
        if dtype.name in {"bfloat16", "float8_e4m3fn", "float8_e5m2"}:
            bits = part.view(torch.uint8 if dtype.itemsize == 1 else torch.int16)
            return np.array(bits.numpy()).view(dtype)
        return np.array(part.numpy())

    def stream(self, name: str) -> Iterator[bytes] | None:
        del name
        return None


def _require_plain(file: Path) -> None:
    """Refuse a file that is no archive as PyTorch writes them: stored, not compressed."""
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
    except Exception as error:  # of many kinds, on damaged bytes
        raise Unreadable(f"{file}: is no archive of PyTorch ({short(error)})") from error
    for one in entries:
        if one.compress_type != zipfile.ZIP_STORED or one.file_size > file.stat().st_size:
            raise Unreadable(f"{file}: {one.filename[:60]!r} is compressed, as PyTorch never does")
        if one.filename.endswith(".pkl") and one.file_size > _LARGEST_PICKLE:
            raise Unreadable(f"{file}: {one.filename[:60]!r} has {one.file_size:,} bytes")
