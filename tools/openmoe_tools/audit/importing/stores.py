"""Arrays and JSON of strangers' files: read, never executed, or refused in a line. Spec: AUDIT-27."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError

ARRAYS = (".npy", ".npz", ".safetensors")


class Store:
    """Arrays of a file by name; each is read when it is asked for."""

    def __init__(self, names: Sequence[str], get: Callable[[str], ndarray]) -> None:
        self.names, self._get = tuple(names), get

    def __contains__(self, name: str) -> bool:
        return name in self.names

    def __getitem__(self, name: str) -> ndarray:
        return self._get(name)


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    """Open npy (whose one array is named ""), npz or safetensors. Errors: UsageError."""
    with explained(path):
        if path.suffix == ".npy":
            array = np.load(path, mmap_mode="r", allow_pickle=False)
            yield Store([""], lambda _: array)
        elif path.suffix == ".npz":
            with path.open("rb") as file:
                stored = np.load(file, allow_pickle=False)
                if not isinstance(stored, np.lib.npyio.NpzFile):
                    raise UsageError(f"{path}: is no npz, whatever its name says")
                yield Store(stored.files, stored.__getitem__)
        elif path.suffix == ".safetensors":
            from safetensors import safe_open  # noqa: PLC0415

            with safe_open(path, framework="numpy") as tensors:
                yield Store(list(tensors.keys()), tensors.get_tensor)
        else:
            raise UsageError(f"{path}: is none of {', '.join(ARRAYS)}")


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Say of a file what went wrong while it was read. Errors: UsageError."""
    import zipfile  # noqa: PLC0415
    import zlib  # noqa: PLC0415

    from safetensors import SafetensorError  # noqa: PLC0415

    wrong = (OSError, ValueError, EOFError, KeyError, zipfile.BadZipFile, zlib.error)
    try:
        yield
    except (*wrong, SafetensorError, MemoryError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
        raise UsageError(f"{path}: cannot be read ({reason or type(error).__name__})") from error


def lines(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Yield the objects of a file of JSON, or of one object a line, each with where it stands.

    Errors: UsageError.
    """
    with explained(path), path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                found = json.loads(line)
            except json.JSONDecodeError as error:
                # Perhaps one object over several lines.
                if number > 1:
                    raise UsageError(f"{where}: is no JSON ({error.msg})") from error
                where, found = str(path), json.loads(line + file.read())
            if not isinstance(found, dict):
                raise UsageError(f"{where}: is no JSON object")
            yield where, found


def as_array(value: Any, where: str, dtype: type[np.generic] | None = None) -> ndarray:
    """Return nested lists as an array. Errors: UsageError where they are ragged, or hold else."""
    try:
        found = np.array(value, dtype)
    except (ValueError, TypeError, OverflowError) as error:
        raise UsageError(f"{where}: is no array of numbers ({error})") from error
    if found.dtype == object:
        raise UsageError(f"{where}: is no array of numbers")
    return found


def integers(path: Path, names: Sequence[str]) -> ndarray:
    """Return the whole numbers int64 [N] of npy, npz, safetensors or JSON.

    names  of the array, where there are several
    Errors: UsageError.
    """
    if path.suffix in {".json", ".jsonl"}:
        with explained(path):
            found = as_array(json.loads(path.read_text(encoding="utf-8")), str(path))
    else:
        with opened(path) as store:
            found = np.asarray(store[_only(store, names, path)])
    if found.ndim != 1 or found.dtype.kind not in "iu":
        raise UsageError(f"{path}: is {found.dtype} {list(found.shape)}, not whole numbers [N]")
    if found.dtype.kind == "u" and found.size and found.max() > np.iinfo(np.int64).max:
        raise UsageError(f"{path}: {found.max()} is too large")
    return found.astype(np.int64)


def _only(store: Store, names: Sequence[str], path: Path) -> str:
    for name in names:
        if name in store:
            return name
    if len(store.names) != 1:
        raise UsageError(f"{path}: has several arrays, and none is named {names[0]}")
    return store.names[0]


def one_of(store: Store, name: str, path: Path) -> ndarray:
    """Return the array of a name, or the only one there is. Errors: UsageError."""
    return store[_only(store, [name], path)]
