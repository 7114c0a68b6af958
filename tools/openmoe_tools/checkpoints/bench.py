"""What reading, digesting and converting cost beside the hash, the codec and the disk alone.

python -m openmoe_tools.checkpoints.bench [--output FILE] [--folder FOLDER] [--largest 8b]
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from openmoe_spec.config import PUBLISHED, Configuration
from openmoe_spec.layouts import layout
from openmoe_spec.parameters import count, parameters
from openmoe_spec.places import place, stored_shapes
from openmoe_tools import files
from openmoe_tools.checkpoints import digests, working
from openmoe_tools.checkpoints.bench_bounds import (
    deflate_alone,
    disk_alone,
    hash_alone,
    inflate_alone,
)
from openmoe_tools.checkpoints.containers.opening import open_checkpoint
from openmoe_tools.checkpoints.containers.safetensors_writer import SafetensorsWriter
from openmoe_tools.checkpoints.containers.writers import Out
from openmoe_tools.checkpoints.conversion.converting import convert
from openmoe_tools.checkpoints.conversion.planning import plan
from openmoe_tools.timing import in_turns

ROUNDS = 5
DIGEST_TARGET, CONVERT_TARGET, MEMORY_TARGET = 0.8, 0.7, 1.5
MEMORY = "1500MB"

SAMPLE = replace(
    PUBLISHED["base"], name="sample", num_layers=4, num_moe_layers=1, vocabulary_size=32_768
)
"""Base with four layers and a small vocabulary: half a gigabyte in float32."""

SIZES: Mapping[str, Configuration] = {
    "base": PUBLISHED["base"],
    "3b": replace(PUBLISHED["8b"], name="3b", num_layers=6, num_moe_layers=1),
    "8b": PUBLISHED["8b"],
}
"""Models of which the peak memory is taken, in bfloat16."""


def write_model(folder: Path, model: Configuration, dtype: str, seed: int = 0) -> Path:
    """Write a folder of safetensors with drawn values, a piece at a time; return it."""
    ours = {one.name: one.shape for one in parameters(model)}
    shapes = stored_shapes(place(layout("port"), ours))
    writer = SafetensorsWriter({n: Out(s, dtype) for n, s in shapes.items()}, "port", 5 * 10**9)
    folder.mkdir(parents=True)
    writer.begin(folder)
    draws = np.random.default_rng(seed)
    piece = digests.cast(draws.standard_normal(1 << 22, np.float32) * np.float32(0.02), dtype)
    for name, shape in shapes.items():
        inner = int(np.prod(shape[1:]))
        step = max(1, piece.size // inner)
        for start in range(0, shape[0], step):
            number = min(step, shape[0] - start)
            shift = int(draws.integers(piece.size))
            values = (
                np.roll(piece, shift)[: number * inner]
                if number * inner <= piece.size
                else (np.resize(piece, number * inner))
            )
            region = ((start, start + number), *((0, n) for n in shape[1:]))
            writer.write(name, region, values.reshape(number, *shape[1:]))
        writer.finish(name)
    writer.close()
    return folder


def _digests(path: Path, jobs: int) -> Callable[[], object]:
    return lambda: digests.all_digests(
        open_checkpoint(path), working.Budget.of(working.memory(MEMORY), jobs)
    )


def _converted(source: Path, target: Path, to: str, jobs: int) -> Callable[[], object]:
    def run() -> None:
        shutil.rmtree(target, ignore_errors=True)
        budget = working.Budget.of(working.memory(MEMORY), jobs)
        made = plan(open_checkpoint(source), to)
        convert(made, target, budget, written=lambda _: None, reread=lambda _: None)

    return run


def _row(what: str, bound: float, ours: float, size: int, target: float | None) -> str:
    ratio = bound / ours
    state = "" if target is None else f">= {target}: {'met' if ratio >= target else 'missed'}"
    rate = f"{size / ours / 1e6:,.0f} MB/s"
    return f"| {what} | {bound:.2f} | {ours:.2f} | {ratio:.2f} | {rate} | {state} |"


_HEAD = (
    "| what | bound, s | ours, s | bound / ours | ours | target |\n| -- | -- | -- | -- | -- | -- |"
)


def digest_section(plain: Path, compressed: Path, size: int) -> str:
    """Return the digest pass beside the hash and the codec, on one core and on all."""
    cores = len(os.sched_getaffinity(0))
    taken = in_turns(
        {
            "hash": hash_alone(plain),
            "plain": _digests(plain, 1),
            "plain, all": _digests(plain, cores),
            "inflate": inflate_alone(compressed, 1),
            "gzip": _digests(compressed, 1),
            "inflate, all": inflate_alone(compressed, cores),
            "gzip, all": _digests(compressed, cores),
        },
        ROUNDS,
    )
    rows = [
        _row(
            "safetensors, 1 core; SHA-256 alone", taken["hash"], taken["plain"], size, DIGEST_TARGET
        ),
        _row(
            f"safetensors, {cores} cores; SHA-256 alone on as many",
            taken["hash"] / cores,
            taken["plain, all"],
            size,
            None,
        ),
        _row(
            "T5X, gzip, 1 thread of ours; zlib alone, 1 core",
            taken["inflate"],
            taken["gzip"],
            size,
            DIGEST_TARGET,
        ),
        _row(
            f"T5X, gzip, {cores} cores; zlib alone on as many",
            taken["inflate, all"],
            taken["gzip, all"],
            size,
            DIGEST_TARGET,
        ),
    ]
    return "\n".join(["## Digests", "", _HEAD, *rows])


def convert_section(plain: Path, compressed: Path, folder: Path, size: int) -> str:
    """Return conversions, all their reading again included, beside the slower of codec and disk."""
    cores = len(os.sched_getaffinity(0))
    programs: dict[str, Callable[[], object]] = {
        "disk": disk_alone(size, folder),
        "deflate": deflate_alone(compressed, cores),
        "inflate": inflate_alone(compressed, cores),
        "to t5x": _converted(plain, folder / "made_t5x", "t5x", cores),
        "to t5x, 1": _converted(plain, folder / "made_t5x", "t5x", 1),
        "to hf": _converted(compressed, folder / "made_hf", "hf", cores),
        "to hf, 1": _converted(compressed, folder / "made_hf", "hf", 1),
        "hf to hf": _converted(plain, folder / "made_again", "hf", cores),
    }
    taken = in_turns(programs, 3)
    slower = {name: max(taken[name], taken["disk"]) for name in ("deflate", "inflate")}
    rows = [
        _row(
            "safetensors to T5X; zlib level 1, or the disk",
            slower["deflate"],
            taken["to t5x"],
            size,
            CONVERT_TARGET,
        ),
        _row("the same, one tensor at a time", slower["deflate"], taken["to t5x, 1"], size, None),
        _row(
            "T5X to safetensors; zlib, or the disk",
            slower["inflate"],
            taken["to hf"],
            size,
            CONVERT_TARGET,
        ),
        _row("the same, one tensor at a time", slower["inflate"], taken["to hf, 1"], size, None),
        _row(
            "safetensors to safetensors; the disk",
            taken["disk"],
            taken["hf to hf"],
            size,
            CONVERT_TARGET,
        ),
    ]
    return "\n".join(["## Conversions", "", _HEAD, *rows])


_PROGRAM = """
import sys
from openmoe_tools.command_line import main
try:
    main()
except SystemExit as end:
    print(open("/proc/self/status").read())
    sys.exit(end.code)
"""


def _peak(*arguments: object) -> tuple[float, float]:
    """Return the peak memory in GB and the seconds of a command."""
    begun = time.perf_counter()
    made = subprocess.run(  # noqa: S603 - this program itself
        [sys.executable, "-c", _PROGRAM, *map(str, arguments)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    peak = re.search(r"VmHWM:\s+(\d+) kB", made.stdout)
    assert peak is not None
    return int(peak[1]) * 1024 / 1e9, time.perf_counter() - begun


def memory_section(folder: Path, largest: str) -> str:
    """Return the peak memory of conversion and verification at several sizes, in bfloat16."""
    rows = []
    names = list(SIZES)
    for name in names[: names.index(largest) + 1]:
        model = SIZES[name]
        size = 2 * count(model).total
        if shutil.disk_usage(folder).free < 2.2 * size:
            rows.append(f"| {name} | {size / 1e9:.1f} | | | | | not run: the disk is too small |")
            continue
        print(f"peak memory: {name}", file=sys.stderr, flush=True)
        source = write_model(folder / name, model, "bfloat16")
        target = folder / f"{name}_made"
        common = ("--memory", MEMORY)
        made = _peak("convert", source, target, "--to", "hf", "--layout", "per_expert", *common)
        seen = _peak("verify", source, target, "--no-functional", *common)
        for one in (source, target):
            shutil.rmtree(one)
        largest_peak = max(made[0], seen[0])
        state = "met" if largest_peak <= MEMORY_TARGET else "missed"
        rows.append(
            f"| {name} | {size / 1e9:.1f} | {made[0]:.2f} | {made[1]:.0f} | {seen[0]:.2f} | "
            f"{seen[1]:.0f} | <= {MEMORY_TARGET} GB: {state} |"
        )
    heads = ("model", "GB", "convert, GB", "s", "verify, GB", "s", "target")
    lines = [f"| {' | '.join(heads)} |", f"|{' -- |' * len(heads)}"]
    text = (
        f"`openmoe convert --layout per_expert`, then `openmoe verify --no-functional`, both with "
        f"`--memory {MEMORY}`, the source bfloat16:"
    )
    return "\n".join(["## Peak memory", "", text, "", *lines, *rows])


def plan_section() -> str:
    """Return how long the plan of a 34B conversion takes."""
    _, seconds = _peak("convert", "34b", "nowhere", "--to", "hf", "--cast", "bfloat16", "--dry-run")
    return (
        f"## A plan without weights\n\n`openmoe convert 34b ... --dry-run`: {seconds:.1f} s, the start of "
        "Python included."
    )


def page(folder: Path, largest: str) -> str:
    """Measure and return the page."""
    plain = write_model(folder / "plain", SAMPLE, "float32")
    compressed = folder / "compressed"
    _converted(plain, compressed, "t5x", 0)()
    size = 4 * count(SAMPLE).total
    head = (
        f"# Benchmarks of the checkpoint tools\n\nPython {sys.version.split()[0]}, NumPy {np.__version__}, "
        f"{len(os.sched_getaffinity(0))} cores.\nRatios are of programs that ran in turns in one process, "
        f"medians; the sample has {size / 1e6:,.0f} MB, float32."
    )
    print("digests", file=sys.stderr, flush=True)
    sections = [head, digest_section(plain, compressed, size)]
    print("conversions", file=sys.stderr, flush=True)
    sections += [convert_section(plain, compressed, folder, size), plan_section()]
    shutil.rmtree(plain)
    shutil.rmtree(compressed)
    sections.append(memory_section(folder, largest))
    return "\n\n".join(sections) + "\n"


def main() -> None:
    """Measure, print the page and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--folder", type=Path, help="where the models are written")
    parser.add_argument("--largest", choices=list(SIZES), default="3b")
    given = parser.parse_args()
    files.writable(given.output)
    with tempfile.TemporaryDirectory(dir=given.folder) as folder:
        text = page(Path(folder), given.largest)
    print(text)
    files.write(given.output, lambda: text)


if __name__ == "__main__":
    main()
