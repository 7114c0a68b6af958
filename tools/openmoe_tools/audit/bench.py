"""What an audit costs: beside the forward pass alone, by tables, in memory, in SQL, and as a page.

python -m openmoe_tools.audit.bench [--output FILE]
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from openmoe_reference.initialisation import initialise
from openmoe_spec.config import Configuration
from openmoe_tools import files
from openmoe_tools.audit import folder
from openmoe_tools.audit.bench_text import SIZES, manifest, routed
from openmoe_tools.audit.counting.layout import Sizes
from openmoe_tools.audit.counting.tables import Tables
from openmoe_tools.audit.passing.flattening import flat, replayed
from openmoe_tools.audit.passing.model import Audited
from openmoe_tools.audit.passing.recording import How, Machine
from openmoe_tools.audit.passing.rules import rules, what_ifs
from openmoe_tools.audit.passing.text import Call
from openmoe_tools.timing import in_turns

ROUNDS = 7
MODEL = Configuration(
    name="small",
    num_layers=6,
    num_moe_layers=3,
    embed_dim=128,
    num_heads=4,
    head_dim=32,
    mlp_dim=256,
    num_experts=8,
    vocabulary_size=8320,
    max_length=512,
)
"""The preset `small`."""
ROWS = 8
_TRACING = (
    "The preset `small`, calls of 8 x 512 ids. The output projection is not computed for an audit. "
    "In a run, a call is counted while the next one is computed."
)
_MEMORY = (
    "Peak of a process that counts tokens, with ids as frequent as words are. Tables have the same size for "
    "any text, and take memory where they are written: those of 8B are {whole:.1f} GB if every id occurs in "
    "every fold, with every expert."
)
QUERY_TOKENS = 4_000_000
MEMORY_TOKENS = (100_000, 10_000_000)


def _state(met: bool) -> str:
    return "met" if met else "missed"


# ---- beside the forward pass ----------------------------------------------------------------------


def tracing_section() -> str:
    """Return what the pass of an audit takes beside the model's forward pass alone, as Markdown."""
    import jax  # noqa: PLC0415 - an optional extra

    from openmoe_production.model import forward, stack  # noqa: PLC0415

    weights = initialise(MODEL, np.random.default_rng(0))
    audited = Audited(Path("small"), MODEL, weights, None, "0" * 64)
    ids = np.random.default_rng(1).integers(1, 8000, (ROWS, 512), np.int32)
    ids[:, 0] = 0
    targets = np.roll(ids, -1, axis=1)
    targets[:, -1] = 1
    call = Call(0, ids, targets, 0, ("a",) * ROWS, np.arange(ROWS), ("a",))
    record = Machine(How(), audited).recorder(audited)
    ours = rules(MODEL, ROWS, 512, factor=MODEL.eval_capacity_factor)
    asked = what_ifs(MODEL, ROWS, 512, ours[0])
    sizes = Sizes(8320, 512, 1, 3, 8, 2, tuple(one.name for one in ours), asked)
    tables = Tables(sizes)
    tensors = stack(weights, MODEL)
    plain = jax.jit(
        lambda parameters, batch: forward(parameters, batch, MODEL).logits.argmax(axis=-1)
    )
    batch = {"decoder_input_tokens": ids, "decoder_target_tokens": targets}

    def counted(*, with_replay: bool) -> None:
        found = record(ids, targets)
        one = flat(call, found, ours)
        tables.add(one.routed, [[groups] for groups in one.groups])
        if with_replay:
            for number, dropped in replayed(call, found, ours[0], asked):
                tables.add_what_if(number, dropped, one.routed.position)

    seconds = in_turns(
        {
            "forward pass to the likeliest ids": lambda: plain(tensors, batch).block_until_ready(),
            "the routers' decisions alone": lambda: record(ids, targets),
            "an audit's call, one after another": lambda: counted(with_replay=False),
            f"the same with {len(asked)} replays": lambda: counted(with_replay=True),
        },
        ROUNDS,
    )
    bound, *_ = seconds.values()
    rows = [
        f"| {name} | {1000 * one:.0f} | {one / bound:.2f} | {ROWS * 512 / one:,.0f} |"
        for name, one in seconds.items()
    ]
    most = seconds["an audit's call, one after another"] / bound
    return "\n".join(
        [
            "## Beside the forward pass",
            "",
            _TRACING,
            "",
            "| what | ms | of the forward pass | tokens/s |",
            "| -- | -- | -- | -- |",
            *rows,
            "",
            f"Target: at most 1.10 of the forward pass: {_state(most <= 1.10)}.",
            "",
        ]
    )


# ---- counting -------------------------------------------------------------------------------------


def counting_section() -> str:
    """Return token-layers that are counted in a second, as Markdown."""
    batches = [routed(seed, 16_384) for seed in range(4)]
    tables = Tables(SIZES)
    number = iter(range(10**9))

    def add(*, known: bool) -> None:
        one, groups = batches[next(number) % len(batches)]
        less = replace(one, gate=None, margin=None, entropy=None)
        tables.add(one if known else less, groups)

    seconds = in_turns({"less": lambda: add(known=False), "all": lambda: add(known=True)}, ROUNDS)
    token_layers = 16_384 * SIZES.layers
    rates = {name: token_layers / one / 1e6 for name, one in seconds.items()}
    return f"""## Counting

Batches of 16,384 tokens, L = {SIZES.layers}, E = {SIZES.experts}, K = {SIZES.choices}, V = {SIZES.vocabulary:,}, \
{SIZES.slices} slices, two capacity rules; one core. Tables of tokens, positions, slices, drops and loads are
never counted without neighbours and the replicates of the bootstrap.

| tables | million token-layers/s | target |
| -- | -- | -- |
| of choices, drops, groups, neighbours and documents | {rates["less"]:.2f} | >= 2: {_state(rates["less"] >= 2)} |
| all: margins, gates and entropies too | {rates["all"]:.2f} | |
"""


# ---- memory ---------------------------------------------------------------------------------------

_COUNTED = """
import sys
from openmoe_tools.audit import bench_text
from openmoe_tools.audit.counting.tables import Tables
sizes = getattr(bench_text, sys.argv[2])
tables = Tables(sizes)
left, seed = int(sys.argv[1]), 0
while left > 0:
    one, groups = bench_text.routed(seed % 64, min(16384, left), sizes)
    tables.add(one, groups)
    left, seed = left - 16384, seed + 1
print(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
"""


def memory_section() -> str:
    """Return the peak memory of counting few and many tokens, as Markdown."""
    if not Path("/proc/self/status").exists():
        return "## Memory\n\nNot measured: the system does not tell.\n"
    peaks = {name: [_peak(number, name) for number in MEMORY_TOKENS] for name in ("SMALL", "SIZES")}
    growth = peaks["SMALL"][1] / peaks["SMALL"][0] - 1
    whole = sum(table.nbytes for table in Tables(SIZES).arrays.values()) / 1e9
    few, many = (f"{number:,} tokens" for number in MEMORY_TOKENS)
    rows = [
        f"| {name} | {one / 1e6:.2f} | {two / 1e6:.2f} | {two / one - 1:+.1%} |"
        for name, (one, two) in zip(("`small`", "8B"), peaks.values(), strict=True)
    ]
    return "\n".join(
        [
            "## Memory",
            "",
            _MEMORY.format(whole=whole),
            "",
            f"| tables of | {few}, GB | {many}, GB | |",
            "| -- | -- | -- | -- |",
            *rows,
            "",
            f"Target, of `small`: equal within 5 %: {_state(abs(growth) <= 0.05)}.",
            "",
        ]
    )


def _peak(tokens: int, sizes: str) -> float:
    arguments = [sys.executable, "-c", _COUNTED, str(tokens), sizes]
    result = subprocess.run(arguments, capture_output=True, text=True, check=True)  # noqa: S603
    return float(result.stdout)


# ---- trace and report -----------------------------------------------------------------------------


def trace_section(work: Path) -> str:
    """Return how large a trace is, and how long figure 14 takes of it, as Markdown."""
    from openmoe_tools.audit.trace import queries, views  # noqa: PLC0415
    from openmoe_tools.audit.trace.writing import TraceWriter  # noqa: PLC0415

    path = work / "audit"
    begun = time.perf_counter()
    with TraceWriter(path / folder.TRACE, manifest(), after=0) as writer:
        for seed in range(-(-QUERY_TOKENS // 65_536)):
            writer.add(replace(routed(seed % 16, 65_536)[0], entropy=None))
    written = time.perf_counter() - begun
    size = sum(one.stat().st_size for one in (path / folder.TRACE).glob("*.parquet"))
    tokens = -(-QUERY_TOKENS // 65_536) * 65_536
    sql = queries.QUERIES["token_spread"](layer=0)
    taken = in_turns({"query": lambda: _queried(views, path, sql)}, 3)["query"]
    return f"""## Trace

{tokens:,} tokens, L = {SIZES.layers}, K = {SIZES.choices}, drops of two rules and margins: {size / tokens:.2f} bytes \
a token, drawing and writing {written:.0f} s.
The query of figure 14 in DuckDB, opening included: {taken:.2f} s. Target: at most 2 s: {_state(taken <= 2)}.
"""


def _queried(views: Any, path: Path, sql: str) -> None:
    with views.connected(path) as (connection, _):
        connection.execute(sql).fetchall()


def report_section() -> str:
    """Return how large a report is, and how long it takes, as Markdown."""
    from openmoe_tools.audit.measures import report  # noqa: PLC0415
    from openmoe_tools.audit.report import page  # noqa: PLC0415

    tables = Tables(SIZES)
    for seed in range(64):
        tables.add(*routed(seed, 16_384))
    pieces = [f"piece{i}" for i in range(SIZES.vocabulary)]
    audit = folder.Audit(manifest(), tables, None, pieces, [], Path("audit"))
    begun = time.perf_counter()
    made = report.make(audit)
    measured = time.perf_counter() - begun
    text = page.render(made)
    drawn = time.perf_counter() - begun - measured
    size = len(text.encode()) / 1e6
    return f"""## Report

Of 64 x 16,384 tokens of the sizes above: {size:.1f} MB; {measured:.1f} s to measure, {drawn:.1f} s to write the page. \
Target: at most 3 MB: {_state(size <= 3)}.
"""


def main() -> None:
    """Measure, print the page and write it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    asked = parser.parse_args()
    files.writable(asked.output)
    head = (
        f"# Benchmarks of the audit\n\nPython {platform.python_version()}, NumPy {np.__version__}, "
        f"{len(os.sched_getaffinity(0))} cores.\nTimes are medians of programs that ran in turns in one process.\n"
    )
    with tempfile.TemporaryDirectory() as work:
        sections = [
            tracing_section(),
            counting_section(),
            memory_section(),
            trace_section(Path(work)),
            report_section(),
        ]
    text = "\n".join([head, *sections])
    print(text)
    files.write(asked.output, lambda: text)


if __name__ == "__main__":
    main()
