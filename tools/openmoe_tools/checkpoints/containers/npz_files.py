"""NumPy archives of a model's tensors, as test vectors have them: `a|b|c` is the name a/b/c."""

from __future__ import annotations

import math
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy import ndarray

from openmoe_spec.places import Region
from openmoe_tools.checkpoints.containers.stored import DTYPES, Stored, Unreadable, dtype_of, slices
from openmoe_tools.checkpoints.containers.zarr_arrays import short

TARGET, STATE = "target/", "state/"
_DENSEST = 1100
"""So many times its own size a deflated entry holds at most."""

_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
_PACKED = (zipfile.BadZipFile, zlib.error)


class Npz:
    """The arrays of one archive, each read whole when a region of it is asked for."""

    kind = "npz"

    def __init__(self, path: Path) -> None:
        """List the arrays from their headers. Errors: UsageError."""
        self.path = path
        self.notes: list[str] = []
        self.tensors: dict[str, Stored] = {}
        self._keys: dict[str, str] = {}
        with self._refusing("is no archive of NumPy arrays"), zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if entry.file_size > _DENSEST * max(1, entry.compress_size):
                    raise Unreadable(f"{path}: {entry.filename} is denser than any array packs")
                with archive.open(entry) as file:
                    version = np.lib.format.read_magic(file)
                    shape, _, dtype = _HEADERS[version](file)
                    if math.prod(shape) * dtype.itemsize + file.tell() != entry.file_size:
                        raise Unreadable(f"{path}: {entry.filename} has not the size of its shape")
                self._add(entry.filename.removesuffix(".npy"), shape, dtype.name)

    @contextmanager
    def _refusing(self, what: str) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, KeyError, EOFError, NotImplementedError, *_PACKED) as error:
            raise Unreadable(f"{self.path}: {what} ({short(error)})") from error

    def _add(self, key: str, shape: tuple[int, ...], dtype: str) -> None:
        given = key.replace("|", "/")
        name = given.removeprefix(TARGET)
        if name in self.tensors:
            raise Unreadable(f"{self.path}: has two tensors {name}")
        dtype = dtype_of(dtype, f"{self.path}: {name}")
        self._keys[name] = key
        of_state = given.startswith(STATE)
        self.tensors[name] = Stored(name, shape, dtype, self.path.name, shape or None, of_state)

    def read(self, name: str, region: Region) -> ndarray:
        with self._refusing(f"{name} cannot be read"), np.load(self.path) as archive:
            found = archive[self._keys[name]][slices(region)]
            return np.asarray(found, DTYPES[self.tensors[name].dtype])

    def stream(self, name: str) -> Iterator[bytes] | None:
        del name
        return None
