"""`openmoe bench`: production's page with a section about the reference."""

from __future__ import annotations

import importlib.util
import statistics
import time
from pathlib import Path

import numpy as np

from openmoe_reference import initialisation, model
from openmoe_spec.config import Configuration
from openmoe_tools import files

SMALL = Configuration(
    name="small",
    num_layers=12,
    num_moe_layers=3,
    embed_dim=48,
    num_heads=12,
    head_dim=4,
    mlp_dim=128,
    num_experts=16,
    vocabulary_size=512,
)
"""Base in miniature."""

ROWS, LENGTH, ROUNDS = 2, 64, 5
MOST_SECONDS = 1.0


def bench(rounds: int, tokens: int, output: Path | None) -> None:
    """Measure, print the page and write it. Errors: UsageError."""
    files.writable(output)
    from openmoe_production import bench as benchmark  # noqa: PLC0415 - it needs JAX
    from openmoe_production import bench_loss, bench_mesh  # noqa: PLC0415

    page = ("--no-write",) if output is None else ("--output", str(output))
    arguments = ("--rounds", str(rounds), "--tokens", str(tokens), *page)
    sections = [bench_loss.section, bench_mesh.section, accelerator_section]
    sections += [reference_section, examples_section, text_section]
    benchmark.main(arguments, sections)


def accelerator_section() -> str:
    """Return layer and train step on an accelerator; a line where there is none."""
    import jax  # noqa: PLC0415

    if jax.default_backend() == "cpu":
        return (
            "## On an accelerator\n\nNot measured: there was none. Where there is one, NumPy and JAX "
            "are enough:\n\n    python -m openmoe_production.bench_accelerator\n"
        )
    from openmoe_production import bench_accelerator  # noqa: PLC0415

    return bench_accelerator.page(bench_accelerator.parse(()))


def reference_section() -> str:
    """Return how long the reference takes for a forward pass of a small model, as Markdown."""
    generator = np.random.default_rng(0)
    weights = initialisation.initialise(SMALL, generator)
    targets = generator.integers(1, SMALL.vocabulary_size, (ROWS, LENGTH), np.int32)
    inputs = np.pad(targets[:, :-1], ((0, 0), (1, 0)))
    batch = {"decoder_input_tokens": inputs, "decoder_target_tokens": targets}
    times = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        model.forward(weights, batch, SMALL)
        times.append(time.perf_counter() - start)
    median = statistics.median(times)
    state = "met" if median < MOST_SECONDS else "missed"
    return f"""## The reference

`openmoe_reference.model.forward`, to be read and not to be fast: {SMALL.num_layers} layers, D = \
{SMALL.embed_dim}, E = {SMALL.num_experts}, V = {SMALL.vocabulary_size},
{ROWS} x {LENGTH} tokens, float32: median of {ROUNDS} runs {median:.2f} s. Target: below \
{MOST_SECONDS:.0f} s, {state}.
"""


def examples_section() -> str:
    """Return how many examples and rows production makes a second beside the reference."""
    from openmoe_production import bench_data  # noqa: PLC0415

    return bench_data.page(bench_data.report(against="openmoe_reference"))


def text_section() -> str:
    """Return where the time goes from text to batches; a line where the extra is missing."""
    if any(importlib.util.find_spec(name) is None for name in ("grain", "sentencepiece")):
        return "## From text to batches\n\nNot measured: it needs the extra `data`.\n"
    from openmoe_production import bench_text  # noqa: PLC0415
    from openmoe_tools.data import corpus, tokenizer  # noqa: PLC0415

    code = [one.text for one in corpus.standard_library_functions()]
    prose = [parts[1] for one in code if len(parts := one.split('"""')) > 1 and parts[1].strip()]
    return bench_text.section(
        [
            bench_text.Corpus(name, texts, tokenizer.train(texts, vocabulary_size=pieces))
            for name, texts, pieces in (
                ("functions of the standard library", code, 8000),
                ("their docstrings", prose, 8000),
            )
        ]
    )
