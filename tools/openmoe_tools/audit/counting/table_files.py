"""Tables as a file: an npz archive of them by name, with their sizes in `sizes.json`.

The same tables are the same bytes. What is read is held against the sizes before memory is taken
for it, and every array against its checksum. Spec: AUDIT-21.
"""

from __future__ import annotations

import io
import json
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy import ndarray

from openmoe_conformance.outcome import UsageError
from openmoe_tools import files
from openmoe_tools.audit.counting.layout import Form, Sizes, WhatIf, forms

SCHEMA = "openmoe-audit-tables/1"
SIZES = "sizes.json"

_LEVEL = 1
"""Of compression: tables are mostly zeros, and written often."""
_PIECE = 1 << 20
"""Bytes that are packed, and unpacked, at once."""
_LARGEST_SIZES = 1 << 20
"""Bytes of `sizes.json`, at most."""
_LARGEST_HEADER = 10 + (1 << 16)
"""Bytes before the values of an array, at most."""
_DAMAGE = (
    *(OSError, ValueError, KeyError, TypeError, EOFError, NotImplementedError, RuntimeError),
    *(OverflowError, MemoryError, zipfile.BadZipFile, zlib.error, UsageError),
)
"""What an archive raises that is none, or not whole."""


def check_sizes(sizes: Sizes) -> None:
    """Refuse sizes that no audit has. Errors: UsageError."""
    for name in ("vocabulary", "length", "slices", "layers", "experts", "choices"):
        size = getattr(sizes, name)
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise UsageError(f"tables: {name} is {size!r}; must be a whole number, 1 at least")
    if sizes.choices > sizes.experts:
        raise UsageError(f"tables: {sizes.choices} choices among {sizes.experts} experts; too many")
    if not all(isinstance(one, str) for one in sizes.rules):
        raise UsageError(f"tables: rules are {sizes.rules!r}; must be names")
    types: tuple[set[type], ...] = ({str}, {int}, {int, float}, {int})
    for rule in sizes.what_if:
        if not all(type(one) in kinds for one, kinds in zip(rule, types, strict=True)):
            raise UsageError(f"tables: what_if has {tuple(rule)!r}; must be a rule of capacity")


# ---- writing -----------------------------------------------------------------------------------


def write(path: Path, sizes: Sizes, arrays: Mapping[str, ndarray]) -> None:
    """Write tables into a file, complete when it has its name. Errors: UsageError."""
    files.write(path, lambda: _packed(sizes, arrays))


def _packed(sizes: Sizes, arrays: Mapping[str, ndarray]) -> bytes:
    made = io.BytesIO()
    # Entries that are opened by name have the date 1980-01-01: no clock is in the bytes.
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as archive:
        with archive.open(SIZES, "w") as file:
            file.write(_told(sizes).encode())
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as file:
                _write_header(file, array)
                flat = array.reshape(-1).view(np.uint8)
                for start in range(0, len(flat), _PIECE):
                    file.write(flat[start : start + _PIECE].data)
    return made.getvalue()


def _told(sizes: Sizes) -> str:
    what_if = [rule._asdict() for rule in sizes.what_if]
    return json.dumps({"schema": SCHEMA, **vars(sizes), "what_if": what_if}, indent=1) + "\n"


# ---- reading -----------------------------------------------------------------------------------


def read(path: Path) -> tuple[Sizes, dict[str, ndarray]]:
    """Return what a file holds. Errors: UsageError on damaged files and others."""
    refusing = _refusing(f"{path}: is no file of an audit's tables, or damaged")
    with refusing, path.open("rb") as file, zipfile.ZipFile(file) as archive:
        sizes = _sizes(archive)
        wanted = forms(sizes)
        names = sorted(entry.filename for entry in archive.infolist())
        if names != sorted([SIZES, *(f"{name}.npy" for name in wanted)]):
            raise ValueError("its tables are not those of its sizes")
        return sizes, {name: _array(archive, name, form) for name, form in wanted.items()}


@contextmanager
def _refusing(what: str) -> Iterator[None]:
    try:
        yield
    except _DAMAGE as error:
        said = " ".join(str(error).split())[:200] or type(error).__name__
        raise UsageError(f"{what} ({said})") from error


def _entry(archive: zipfile.ZipFile, name: str) -> zipfile.ZipInfo:
    entry = archive.getinfo(name)
    if entry.compress_type not in {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED}:
        raise ValueError(f"{name} is compressed in another way")
    return entry


def _sizes(archive: zipfile.ZipFile) -> Sizes:
    entry = _entry(archive, SIZES)
    if entry.file_size > _LARGEST_SIZES:
        raise ValueError(f"{SIZES} is too large")
    told: dict[str, Any] = json.loads(archive.read(entry))
    if not isinstance(told, dict) or told.pop("schema", None) != SCHEMA:
        raise ValueError(f"{SIZES} is not of {SCHEMA}")
    told["rules"] = tuple(told["rules"])
    told["what_if"] = tuple(WhatIf(**one) for one in told["what_if"])
    sizes = Sizes(**told)
    check_sizes(sizes)
    return sizes


def _array(archive: zipfile.ZipFile, name: str, form: Form) -> ndarray:
    entry, size = _entry(archive, f"{name}.npy"), math.prod(form.shape)
    size *= np.dtype(form.dtype).itemsize
    if not size <= entry.file_size <= size + _LARGEST_HEADER:
        raise ValueError(f"{name} has not the size of its shape")
    found = np.zeros(form.shape, form.dtype)
    flat = found.reshape(-1).view(np.uint8)
    with archive.open(entry) as file:
        _check_header(file, name, found)
        for start in range(0, size, _PIECE):
            piece = np.frombuffer(_exactly(file, min(_PIECE, size - start)), np.uint8)
            if piece.any():  # zeros take no memory
                flat[start : start + len(piece)] = piece
        if file.read(1):  # at the end the checksum is looked at
            raise ValueError(f"{name} is longer than its shape")
    if form.dtype is np.int64 and found.size and found.min() < 0:
        raise ValueError(f"{name} holds numbers below 0")
    return found


def _check_header(file: IO[bytes], name: str, array: ndarray) -> None:
    """Read the header of an array in the file, which must be that of `array`, however it is padded."""
    wanted = io.BytesIO()
    _write_header(wanted, array)
    start = _exactly(file, 10)  # magic, version, the length of what follows
    text = _exactly(file, int.from_bytes(start[8:], "little"))
    if start[:8] != wanted.getvalue()[:8] or text.split() != wanted.getvalue()[10:].split():
        raise ValueError(f"{name} is {text[:100]!r}, which is not of its sizes")


def _write_header(file: IO[bytes], array: ndarray) -> None:
    header = np.lib.format.header_data_from_array_1_0(array)
    np.lib.format.write_array_header_1_0(file, header)


def _exactly(file: IO[bytes], size: int) -> bytes:
    made = file.read(size)
    while len(made) < size:
        more = file.read(size - len(made))
        if not more:
            raise EOFError("it ends too early")
        made += more
    return made
