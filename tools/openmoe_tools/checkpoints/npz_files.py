"""NumPy archives of a model's tensors, as test vectors have them: `a|b|c` is the name a/b/c."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from numpy import ndarray

from openmoe_spec.places import Region
from openmoe_tools.checkpoints.stored import DTYPES, Stored, Unreadable, dtype_of, slices

TARGET, STATE = "target/", "state/"


class Npz:
    """The arrays of one archive, each read whole when a region of it is asked for."""

    kind = "npz"

    def __init__(self, path: Path) -> None:
        """List the arrays from their headers. Errors: UsageError."""
        self.path = path
        self.notes: list[str] = []
        self.tensors: dict[str, Stored] = {}
        self._keys: dict[str, str] = {}
        try:
            with zipfile.ZipFile(path) as archive:
                entries = archive.namelist()
                for entry in entries:
                    with archive.open(entry) as file:
                        version = np.lib.format.read_magic(file)
                        read = {
                            (1, 0): np.lib.format.read_array_header_1_0,
                            (2, 0): np.lib.format.read_array_header_2_0,
                        }[version]
                        shape, _, dtype = read(file)
                    self._add(entry.removesuffix(".npy"), shape, dtype.name)
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise Unreadable(f"{path}: is no archive of NumPy arrays ({error})") from error

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
        try:
            with np.load(self.path, allow_pickle=False) as archive:
                found = archive[self._keys[name]][slices(region)]
                return np.asarray(found, DTYPES[self.tensors[name].dtype])
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise Unreadable(f"{self.path}: {name} cannot be read ({error})") from error

    def stream(self, name: str) -> Iterator[bytes] | None:
        del name
        return None
