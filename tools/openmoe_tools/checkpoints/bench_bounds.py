"""What the checkpoint tools are measured against: the hash, the codec and the disk, each alone."""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np


def hash_alone(path: Path) -> Callable[[], object]:
    """Return hashlib's SHA-256 over the file's bytes, held in memory, on one core."""
    content = b"".join(one.read_bytes() for one in sorted(path.glob("*.safetensors")))

    def run() -> object:
        found = hashlib.sha256()
        for start in range(0, len(content), 1 << 20):
            found.update(memoryview(content)[start : start + (1 << 20)])
        return found.digest()

    return run


def chunk_files(path: Path) -> list[Path]:
    """Return the files of chunks of a T5X checkpoint."""
    return [
        one
        for one in path.rglob("*")
        if one.is_file() and one.parent != path and one.name[0] != "."
    ]


def inflate_alone(path: Path, jobs: int) -> Callable[[], object]:
    """Return zlib's decompression of all chunks, read from the disk's cache."""
    held = chunk_files(path)

    def run() -> object:
        with ThreadPoolExecutor(jobs) as pool:
            return sum(pool.map(lambda one: len(zlib.decompress(one.read_bytes(), 47)), held))

    return run


def deflate_alone(path: Path, jobs: int) -> Callable[[], object]:
    """Return zlib's compression, level 1, of what all chunks hold, written to nothing."""
    held = [zlib.decompress(one.read_bytes(), 47) for one in chunk_files(path)]

    def run() -> object:
        with ThreadPoolExecutor(jobs) as pool:
            return sum(pool.map(lambda one: len(zlib.compress(one, 1)), held))

    return run


def disk_alone(size: int, folder: Path) -> Callable[[], object]:
    """Return writing so many bytes to one file and bringing them to the disk."""
    piece = np.random.default_rng(0).bytes(1 << 24)

    def run() -> None:
        target = folder / "disk"
        with target.open("wb") as file:
            for _ in range(size >> 24):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        target.unlink()

    return run
